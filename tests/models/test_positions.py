import jax.numpy as jnp
import numpy as np
import pytest

from huatuo_jax.config import RopeScaling
from huatuo_jax.models.attention import alibi_slopes
from huatuo_jax.models.decoder import apply_rope, rope_frequencies, rope_tables
from huatuo_jax.models.presets import preset


def test_slopes_of_eight_heads_are_halves():
    assert alibi_slopes(8).tolist() == [2.0**-i for i in range(1, 9)]


def test_slopes_of_forty_heads_take_the_gaps_of_the_next_power_of_two():
    slopes = alibi_slopes(40)
    np.testing.assert_allclose(slopes[:32], [2 ** (-i / 4) for i in range(1, 33)], rtol=1e-6)
    np.testing.assert_allclose(slopes[32:], [2 ** (-i / 8) for i in (1, 3, 5, 7, 9, 11, 13, 15)], rtol=1e-6)


def test_rope_turns_dim_i_with_dim_i_plus_half():
    config = preset("tiny-llama2", head_dim=4, rope_theta=100.0)  # a turn of 1 and of 0.1 radian per position
    tables = rope_tables(config, jnp.array([[2]]))
    turned = apply_rope(jnp.array([1.0, 0.0, 0.0, 1.0]).reshape(1, 1, 1, 4), tables).ravel()
    np.testing.assert_allclose(turned, [np.cos(2), -np.sin(0.2), np.sin(2), np.cos(0.2)], rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_angles_stay_exact_at_far_positions(dtype):
    config = preset("tiny-llama2")
    cos, _ = rope_tables(config, jnp.array([[4095]]))
    assert cos.dtype == jnp.float32
    np.testing.assert_allclose(cos[0, 0, 0], np.cos(4095.0), atol=1e-6)
    assert apply_rope(jnp.ones((1, 1, 1, 16), dtype), rope_tables(config, jnp.array([[4095]]))).dtype == dtype


def test_llama3_scaling_slows_only_slow_rotations():
    scaling = RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_length=8192)
    plain = rope_frequencies(preset("tiny-llama3", head_dim=128, rope_scaling=None))
    scaled = rope_frequencies(preset("tiny-llama3", head_dim=128, rope_scaling=scaling))
    wavelengths = 2 * np.pi / plain
    kept, slowed = wavelengths < 8192 / 4, wavelengths > 8192
    np.testing.assert_array_equal(scaled[kept], plain[kept])
    np.testing.assert_allclose(scaled[slowed], plain[slowed] / 8, rtol=1e-6)
    between = scaled[~kept & ~slowed] / plain[~kept & ~slowed]
    assert len(between) and ((between > 1 / 8) & (between < 1)).all()
