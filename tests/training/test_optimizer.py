"""The schedule at points worked out by hand; AdamW against PyTorch's."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from huatuo_jax.config import OptimizerConfig
from huatuo_jax.training.optimizer import build_optimizer, build_schedule, round_stochastically

PEAK = 1e-4


def rates(total_steps, *counts, **fields):
    schedule = build_schedule(OptimizerConfig(**fields), total_steps)
    return [float(schedule(count)) / PEAK for count in counts]


def test_huatuo_schedule_of_1000_steps_in_one_pass():
    """N = 1350, so the warm-up takes int(13.5) = 13 updates and the cosine spans 1337."""
    expected = [0.0, 6 / 13, 1.0, 0.5 * (1 + np.cos(np.pi * (999 - 13) / 1337))]
    np.testing.assert_allclose(rates(1000, 0, 6, 13, 999), expected, rtol=1e-5)
    assert round(rates(1000, 999)[0], 2) == 0.16


def test_huatuo_schedule_over_two_passes_ends_lower():
    """E = 2: N = 1000 · 2.35 / 2 = 1175, warm-up 11."""
    np.testing.assert_allclose(
        rates(1000, 11, 999, schedule_epochs=2.0), [1.0, 0.5 * (1 + np.cos(np.pi * 988 / 1164))], rtol=1e-4
    )


def test_cosine_reaches_its_floor_at_the_last_update():
    np.testing.assert_allclose(rates(102, 0, 1, 51, 101, 200, schedule="cosine", floor=0.1), [0, 1, 0.55, 0.1, 0.1], rtol=1e-4)


def test_constant_after_warm_up():
    np.testing.assert_allclose(rates(100, 0, 5, 10, 99, schedule="constant", warmup=0.1), [0, 0.5, 1, 1], rtol=1e-6)


def test_updates_equal_pytorch_adamw_with_clipping():
    torch = pytest.importorskip("torch")
    config = OptimizerConfig(learning_rate=1e-2, clip_norm=1.0)
    schedule = build_schedule(config, 200)
    optimizer = build_optimizer(config, schedule)
    rng = np.random.default_rng(0)
    ours = {"matrix": rng.normal(size=(3, 4)).astype(np.float32), "norm": np.ones(4, np.float32)}
    theirs = {name: torch.tensor(value, requires_grad=True) for name, value in ours.items()}
    torch_optimizer = torch.optim.AdamW(theirs.values(), lr=1e-2, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1)
    ours = {name: jnp.asarray(value) for name, value in ours.items()}
    state, update = optimizer.init(ours), jax.jit(optimizer.update)
    for count in range(20):
        scale = 10.0 if count % 2 else 0.05
        gradients = {name: scale * rng.normal(size=value.shape).astype(np.float32) for name, value in ours.items()}
        for name, value in theirs.items():
            value.grad = torch.tensor(gradients[name])
        torch.nn.utils.clip_grad_norm_(theirs.values(), 1.0)
        torch_optimizer.param_groups[0]["lr"] = float(schedule(count))
        torch_optimizer.step()
        updates, state = update(gradients, state, ours)
        ours = optax.apply_updates(ours, updates)
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value.detach().numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("first,second", [("float32", "float32"), ("bfloat16", "float32"), ("bfloat16", "bfloat16")])
def test_moments_are_stored_in_the_dtypes_asked_for(first, second):
    config = OptimizerConfig(state_dtype=first, second_moment_dtype=second)
    optimizer = build_optimizer(config, optax.constant_schedule(1e-2))
    params = {"w": jnp.ones(4)}
    state = optimizer.init(params)
    for _ in range(2):
        updates, state = optimizer.update({"w": jnp.ones(4)}, state, params)
        adam = state[1]
        assert (adam.mu["w"].dtype, adam.nu["w"].dtype, updates["w"].dtype) == (first, second, jnp.float32)


def test_a_bf16_second_moment_keeps_moving():
    """After 2,000 gradients of 1 then 3,000 of 2 it is 4 - 3·0.999^3000 ≈ 3.85; rounded to nearest it would stick."""
    config = OptimizerConfig(second_moment_dtype="bfloat16", clip_norm=1e9)
    optimizer = build_optimizer(config, optax.constant_schedule(0.0))
    params = {"w": jnp.ones(64)}

    def many(state, gradient, times):
        body = lambda _, s: optimizer.update({"w": gradient * jnp.ones(64)}, s, params)[1]
        return jax.jit(lambda s: jax.lax.fori_loop(0, times, body, s))(state)

    state = many(many(optimizer.init(params), 1.0, 2000), 2.0, 3000)
    expected = 0.999**3000 * (1 - 0.999**2000) + 4 * (1 - 0.999**3000)
    np.testing.assert_allclose(np.asarray(state[1].nu["w"], np.float32), expected, rtol=0.05)


def test_stochastic_rounding_has_the_right_mean_and_only_two_outcomes():
    value = jnp.float32(1.0 + 0.3 / 128)
    round_once = jax.jit(round_stochastically)
    rounded = [float(round_once(value, jnp.int32(count))) for count in range(2000)]
    assert set(rounded) == {1.0, 1.0 + 1 / 128}
    assert abs(np.mean(rounded) - float(value)) < 0.1 / 128
    assert float(round_stochastically(jnp.float32(0.0), jnp.int32(5))) == 0.0
