"""Causal attention within segments by JAX's Pallas kernel for TPUs (splash attention): never holds [S, S] scores.

The kernel works on one device's rows and heads, and the compiler cannot split it, so it runs under `jax.shard_map` over the mesh
in scope while the step is traced (`jax.set_mesh(mesh)` or `jax.sharding.use_abstract_mesh`): rows over (data, fsdp), heads over
tensor. Without a mesh in scope it runs as it is. What must hold: the result is that of `attention.einsum_attention`, which is
next to read, for models with RoPE; the kernel takes no bias, so ALiBi models get another backend.
"""

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_mask

from huatuo_jax.sharding import activation_spec

LANES = 128
"""Sequence blocks are multiples of the vector width."""

MAX_BLOCK = 512
"""Larger tiles re-read keys less often but must fit in vector memory beside their scores."""


def splash_attention(
    q_BSNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, segments_BS: jax.Array, interpret: bool = False
) -> jax.Array:
    """Attention of [B, S, N, H] queries to [B, S, K, H] keys and values with segment ids [B, S]; result in q's dtype.

    Args:
      q_BSNH: queries; N is a multiple of K.
      k_BSKH: keys, one per query (no cache).
      v_BSKH: values.
      segments_BS: int32; key j is visible to query i if j ≤ i and both have the same id.
      interpret: runs the kernel in pure JAX (tests on CPU).
    """

    def local(q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array) -> jax.Array:
        return _attend_local(q, k, v, segments, interpret)

    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return local(q_BSNH, k_BSKH, v_BSKH, segments_BS)
    heads = activation_spec(mesh, "batch", None, "heads", None)
    kv_heads = activation_spec(mesh, "batch", None, "kv_heads", None)
    rows = activation_spec(mesh, "batch", None)
    # The kernel's outputs carry no record of the axes they vary over, hence check_vma=False.
    mapped = jax.shard_map(local, in_specs=(heads, kv_heads, kv_heads, rows), out_specs=heads, check_vma=False)
    return mapped(q_BSNH, k_BSKH, v_BSKH, segments_BS)


# Example: a row of 4,000 tokens is padded to 4,096 and goes in blocks of 512; one of 1,100 to 1,152 = 9 · 128, of which no block
# above 384 is a divisor.
def _attend_local(q_BSNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, segments_BS: jax.Array, interpret: bool) -> jax.Array:
    length, num_heads, size = q_BSNH.shape[1:]
    padded = -(-length // LANES) * LANES
    padding = padded - length
    q, k, v = (jnp.pad(x, ((0, 0), (0, padding), (0, 0), (0, 0))).swapaxes(1, 2) for x in (q_BSNH * size**-0.5, k_BSKH, v_BSKH))
    # Causality alone hides the added keys from real queries; their own id keeps them defined.
    segments = jnp.pad(segments_BS, ((0, 0), (0, padding)), constant_values=-1)
    block = next(b for b in range(min(MAX_BLOCK, padded), 0, -LANES) if padded % b == 0)
    mask = splash_mask.MultiHeadMask([splash_mask.CausalMask((padded, padded))] * num_heads)
    kernel = splash.make_splash_mha(
        mask,
        # Tiles of queries by keys: of the forward pass, then of the gradients of keys and values, then of that of queries.
        block_sizes=splash.BlockSizes(
            block_q=block,
            block_kv=block,
            block_q_dkv=block,
            block_kv_dkv=block,
            block_q_dq=block,
            block_kv_dq=block,
        ),
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )
    out_BNSH = jax.vmap(kernel)(q, k, v, splash.SegmentIds(segments, segments))
    return out_BNSH.swapaxes(1, 2)[:, :length].astype(q_BSNH.dtype)
