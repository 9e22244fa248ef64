"""Attention in blocks of queries, each against the keys up to its own end only: plain XLA, forward and backward, on any platform.

Half of the score matrix is never computed, and none of it is kept for the backward pass, which rebuilds each block from the
saved log-sum-exp (FlashAttention-2, arXiv 2307.08691, algorithm 2, with blocks of queries only). Scores, softmax and sums are
fp32.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

MASKED = -1e30
"""Score of an invisible key. Every query sees itself, so its weight is exactly 0."""

MOST_BLOCKS, SMALLEST_BLOCK = 8, 128
"""Blocks are unrolled in the program: more of them save more work and take longer to compile."""


class Inputs(NamedTuple):
    """What a query's score depends on besides q and k: int32 [B, S] segments, and fp32 [N] ALiBi slopes or None."""

    segments_BS: jax.Array
    slopes_N: jax.Array | None


def blocked_attention(
    q_BSNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, segments_BS: jax.Array, slopes_N: jax.Array | None
) -> jax.Array:
    """Causal attention within segments, with ALiBi if there are slopes: [B, S, N, H] in q's dtype.

    Queries and keys are the same tokens; head n reads kv head n // (N / K).
    """
    batch, length, heads, size = q_BSNH.shape
    kv_heads = k_BSKH.shape[2]
    q_BKGSH = (q_BSNH * size**-0.5).reshape(batch, length, kv_heads, heads // kv_heads, size).transpose(0, 2, 3, 1, 4)
    k_BKSH, v_BKSH = k_BSKH.transpose(0, 2, 1, 3), v_BSKH.transpose(0, 2, 1, 3)
    out_BKGSH = _attend(q_BKGSH, k_BKSH, v_BKSH, Inputs(segments_BS, slopes_N))
    return out_BKGSH.transpose(0, 3, 1, 2, 4).reshape(q_BSNH.shape)


def query_blocks(length: int) -> list[slice]:
    """The blocks of a row of this length: at most MOST_BLOCKS, none but the last below SMALLEST_BLOCK."""
    size = max(SMALLEST_BLOCK, -(-length // MOST_BLOCKS))
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def _product(spec: str, x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.einsum(spec, x, y, preferred_element_type=jnp.float32)


def _scores(q_BKGQH: jax.Array, k_BKTH: jax.Array, inputs: Inputs, rows: slice) -> jax.Array:
    """Masked scores [B, K, G, Q, T] of a block of queries against all keys up to its end."""
    scores = _product("BKGQH,BKTH->BKGQT", q_BKGQH, k_BKTH)
    queries, keys = jnp.arange(rows.start, rows.stop)[:, None], jnp.arange(rows.stop)[None, :]
    if inputs.slopes_N is not None:
        slopes_KG11 = inputs.slopes_N.reshape(*scores.shape[1:3], 1, 1)
        scores += slopes_KG11 * (keys - queries).astype(jnp.float32)
    segments = inputs.segments_BS
    visible_BQT = (segments[:, rows, None] == segments[:, None, : rows.stop]) & (keys <= queries)
    return jnp.where(visible_BQT[:, None, None], scores, MASKED)


@jax.custom_vjp
def _attend(q_BKGSH: jax.Array, k_BKSH: jax.Array, v_BKSH: jax.Array, inputs: Inputs) -> jax.Array:
    return _forward(q_BKGSH, k_BKSH, v_BKSH, inputs)[0]


def _forward(q: jax.Array, k: jax.Array, v: jax.Array, inputs: Inputs) -> tuple[jax.Array, tuple[Any, ...]]:
    outs, norms = [], []
    for rows in query_blocks(q.shape[3]):
        scores = _scores(q[:, :, :, rows], k[:, :, : rows.stop], inputs, rows)
        largest = scores.max(axis=-1, keepdims=True)
        weights = jnp.exp(scores - largest)
        total = weights.sum(axis=-1, keepdims=True)
        outs.append((_product("BKGQT,BKTH->BKGQH", weights.astype(v.dtype), v[:, :, : rows.stop]) / total).astype(q.dtype))
        norms.append(largest + jnp.log(total))
    out, norm = jnp.concatenate(outs, axis=3), jnp.concatenate(norms, axis=3)
    return out, (q, k, v, inputs, out, norm)


def _backward(kept: tuple[Any, ...], grad: jax.Array) -> tuple[Any, ...]:
    q, k, v, inputs, out, norm = kept
    # Σ_t weight · d weight of each query, from the output: no second pass over the score matrix.
    inner = jnp.sum(grad.astype(jnp.float32) * out.astype(jnp.float32), axis=-1, keepdims=True)
    grads_q = []
    grad_k, grad_v = jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)
    for rows in query_blocks(q.shape[3]):
        seen = slice(0, rows.stop)
        q_block, grad_block = q[:, :, :, rows], grad[:, :, :, rows]
        weights = jnp.exp(_scores(q_block, k[:, :, seen], inputs, rows) - norm[:, :, :, rows])
        grad_weights = _product("BKGQH,BKTH->BKGQT", grad_block, v[:, :, seen])
        grad_scores = (weights * (grad_weights - inner[:, :, :, rows])).astype(q.dtype)
        grads_q.append(_product("BKGQT,BKTH->BKGQH", grad_scores, k[:, :, seen]))
        grad_k = grad_k.at[:, :, seen].add(_product("BKGQT,BKGQH->BKTH", grad_scores, q_block))
        grad_v = grad_v.at[:, :, seen].add(_product("BKGQT,BKGQH->BKTH", weights.astype(q.dtype), grad_block))
    grad_q = jnp.concatenate(grads_q, axis=3)
    return grad_q.astype(q.dtype), grad_k.astype(k.dtype), grad_v.astype(v.dtype), None


_attend.defvjp(_forward, _backward)
