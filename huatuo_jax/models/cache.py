"""Generation's forward pass: a static-size cache of keys and values, attention to it, and a decoder that appends tokens to it.

What must hold: appending tokens one by one gives the hidden states of the whole row at once (`decoder.py`). The token at position
p of a row lies in slot p, so rows of unequal length stand side by side without padding, and a query at position p sees the slots
up to p. Slots beyond may hold anything finite: they are written before a query can see them.

Example: rows "a b c" and "d" in a cache of four slots, each about to get its next token at slot 3 and slot 1:

    row 0   a b c _ | token at position 3 sees slots 0…3
    row 1   d _ _ _ | token at position 1 sees slots 0…1, whatever slots 2 and 3 still hold from a row before it

Next to read: the engine (`inference/engine.py`), which gives rows of the cache to requests, and `inference/device.py`, which
calls `extend` for prompts and for each new token.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.typing import DTypeLike

from huatuo_jax.config import ModelConfig
from huatuo_jax.models.attention import MASKED
from huatuo_jax.models.decoder import Decoder
from huatuo_jax.models.numerics import matmul
from huatuo_jax.sharding import activation_spec, constrain

CACHE_AXES = (None, "batch", "kv_heads", None, None)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KVCache:
    """Cache of `T` slots for `B` rows.

    Attributes:
      keys, values: [layers, B, kv heads, T, head_dim], in the compute dtype; keys are already rotated. Heads stand before slots,
        so that both products of attention read the cache as it lies.
    """

    keys: jax.Array
    values: jax.Array

    @classmethod
    def empty(
        cls, config: ModelConfig, num_rows: int, slots: int, dtype: DTypeLike = jnp.bfloat16, mesh: Mesh | None = None
    ) -> "KVCache":
        """A cache with nothing written; on a mesh, rows over (data, fsdp) and kv heads over tensor."""
        shape = (config.num_layers, num_rows, config.num_kv_heads, slots, config.head_dim)
        sharding = None if mesh is None else NamedSharding(mesh, activation_spec(mesh, *CACHE_AXES))
        return cls(keys=jnp.zeros(shape, dtype, device=sharding), values=jnp.zeros(shape, dtype, device=sharding))

    def repeat_first(self, num_rows: int) -> "KVCache":
        """A cache of `num_rows` copies of the first row."""
        return jax.tree.map(lambda x: jnp.repeat(x[:, :1], num_rows, axis=1), self)


def write(cache_LBKTH: jax.Array, new_BSKH: jax.Array, layer: jax.Array, rows_B: jax.Array, slots_BS: jax.Array) -> jax.Array:
    """The cache with new keys or values [B, S, K, H] of one layer in their slots, int32 [B, S]; any beyond it are dropped."""
    # Rows and slots beyond the cache belong to tokens that only pad the batch.
    at = cache_LBKTH.at[layer, rows_B[:, None], :, slots_BS]
    return constrain(at.set(new_BSKH.astype(cache_LBKTH.dtype), mode="drop"), *CACHE_AXES)


def read(cache_LBKTH: jax.Array, layer: jax.Array, rows_B: jax.Array | None, visible: int) -> jax.Array:
    """The first `visible` slots of one layer, [B, K, visible, H]; `rows_B` = which rows, None = all in order."""
    _, rows, kv_heads, slots, size = cache_LBKTH.shape
    # Short answers in a long cache read only the slots in use: attention's time is that of reading the cache.
    window = (1, rows, kv_heads, min(visible, slots), size)
    window_BKTH = jax.lax.dynamic_slice(cache_LBKTH, (layer, 0, 0, 0, 0), window)[0]
    return window_BKTH if rows_B is None else jnp.take(window_BKTH, rows_B, axis=0, mode="clip")


def attend_cached(
    q_BSNH: jax.Array, k_BKTH: jax.Array, v_BKTH: jax.Array, positions_BS: jax.Array, slopes: jax.Array | None
) -> jax.Array:
    """Attention of queries at their positions to the cached slots up to there; scores and softmax in fp32.

    Args:
      q_BSNH: queries; head n reads kv head n // (N / K).
      k_BKTH: keys of slots 0…T − 1.
      v_BKTH: values.
      positions_BS: int32 [B, S].
      slopes: ALiBi's, fp32 [N], or None; the bias slope·(slot − position) is added in fp32.
    """
    batch, queries, heads, size = q_BSNH.shape
    kv_heads, slots = k_BKTH.shape[1:3]
    grouped = q_BSNH.reshape(batch, queries, kv_heads, heads // kv_heads, size)
    scores_BKGST = matmul("BSKGH,BKTH->BKGST", grouped, k_BKTH, jnp.float32) * size**-0.5
    distance_BST = jnp.arange(slots) - positions_BS[..., None]
    if slopes is not None:
        bias_BKGST = slopes.reshape(kv_heads, -1, 1, 1) * distance_BST[:, None, None].astype(jnp.float32)
        scores_BKGST += bias_BKGST
    scores_BKGST = jnp.where(distance_BST[:, None, None] <= 0, scores_BKGST, MASKED)
    # XLA's CPU backend has no bf16 product of this layout.
    narrow = jnp.float32 if jax.default_backend() == "cpu" else q_BSNH.dtype
    weights_BKGST = jax.nn.softmax(scores_BKGST, axis=-1).astype(narrow)
    return matmul("BKGST,BKTH->BSKGH", weights_BKGST, v_BKTH, q_BSNH.dtype).reshape(q_BSNH.shape)


Carry = tuple[jax.Array, jax.Array, jax.Array]
"""Hidden states, keys, values."""


def extend(
    decoder: Decoder,
    tokens_BS: jax.Array,
    cache: KVCache,
    starts_B: jax.Array,
    *,
    visible: int,
    rows_B: jax.Array | None = None,
    dtype: DTypeLike = jnp.float32,
) -> tuple[jax.Array, KVCache]:
    """Appends tokens to cached rows: their hidden states after the final norm, [B, S, D], and the cache with them in it.

    Args:
      decoder: with its parameters.
      tokens_BS: int32 [B, S], the next tokens of each row.
      cache: of earlier tokens, in any number of rows.
      starts_B: int32 [B], position of each row's first new token.
      visible: slots that attention reads; at least every start + S that counts.
      rows_B: int32 [B], the cache's row of each of ours; None = the cache has B rows, in this order. Tokens of a row or at a
        position beyond the cache are not kept.
      dtype: of activations and matrix products.
    """
    # Padding behind a row's tokens gets positions too: what it writes there is overwritten before any query sees it.
    positions_BS = starts_B[:, None] + jnp.arange(tokens_BS.shape[1])
    rope, slopes = decoder.rope(positions_BS), decoder.slopes()
    written_B = jnp.arange(len(tokens_BS)) if rows_B is None else rows_B
    graphdef, stacked = nnx.split(decoder.layers)

    def layer(carry: Carry, xs: tuple[nnx.State, jax.Array]) -> tuple[Carry, None]:
        x_BSD, keys, values = carry
        state, index = xs
        block = nnx.merge(graphdef, state)
        q, k, v = block.queries_keys_values(x_BSD, rope)
        keys = write(keys, k, index, written_B, positions_BS)
        values = write(values, v, index, written_B, positions_BS)
        k, v = (read(whole, index, rows_B, visible) for whole in (keys, values))
        return (block.finish(x_BSD, attend_cached(q, k, v, positions_BS, slopes)), keys, values), None

    # The cache is carried, not scanned over: so XLA updates it in place.
    carry = (decoder.embed(tokens_BS, dtype), cache.keys, cache.values)
    (x_BSD, keys, values), _ = jax.lax.scan(layer, carry, (stacked, jnp.arange(decoder.config.num_layers)))
    return decoder.finish(x_BSD), KVCache(keys, values)
