"""The cache's slots and the attention that reads them, against attention over whole rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from huatuo_jax.models.attention import Visibility, alibi_slopes, einsum_attention
from huatuo_jax.models.cache import KVCache, attend_cached, read, write
from huatuo_jax.models.presets import preset


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("alibi", [False, True])
def test_each_query_sees_its_own_row_up_to_its_position(kv_heads, alibi):
    rows, length, heads, size = 3, 16, 4, 8
    draw = np.random.default_rng(0)
    q, k, v = (draw.normal(size=(rows, length, n, size)).astype(np.float32) for n in (heads, kv_heads, kv_heads))
    slopes = jnp.asarray(alibi_slopes(heads)) if alibi else None
    everything = Visibility(jnp.ones((rows, length), jnp.int32), slopes)
    whole = np.asarray(jax.jit(lambda *qkv: einsum_attention(*qkv, everything))(q, k, v))
    positions = np.array([[0, 1], [7, 8], [14, 15]])
    queries = np.take_along_axis(q, positions[:, :, None, None], axis=1)
    ours = jax.jit(attend_cached)(queries, k.swapaxes(1, 2), v.swapaxes(1, 2), positions, slopes)
    np.testing.assert_allclose(ours, np.take_along_axis(whole, positions[:, :, None, None], axis=1), atol=1e-6)


def test_rows_are_written_at_their_own_slots_and_nothing_beyond_the_cache():
    keys = KVCache.empty(preset("tiny-yi"), 3, 8, jnp.float32).keys
    new = jnp.arange(1.0, 5.0).reshape(2, 2, 1, 1) * jnp.ones((2, 2, 2, 16))
    written = write(keys, new, jnp.int32(1), jnp.array([2, 0]), jnp.array([[3, 4], [7, 8]]))
    assert np.count_nonzero(written) == 3 * 2 * 16
    assert [float(written[1, row, :, slot].max()) for row, slot in ((2, 3), (2, 4), (0, 7))] == [1, 2, 3]
    np.testing.assert_array_equal(read(written, jnp.int32(1), jnp.array([2]), 4)[0, :, 3], np.ones((2, 16)))
    assert not write(keys, new, jnp.int32(1), jnp.array([3, 9]), jnp.array([[0, 1], [0, 1]])).any()
