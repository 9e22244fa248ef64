"""Attention within a row: what a query sees, the ways to compute it, and the choice among them.

Key j of the same row is visible to query i if j ≤ i (by index in the row) and both have the same segment id. Padding (segment 0)
attends to padding, so every query has at least one key: itself. A row of two examples and one place of padding:

    segments  1 1 1 2 2 0
    query 1   x x . . . .      its own example, up to itself
    query 4   . . . x x .      nothing of the example that lies before it in the row
    query 5   . . . . . x      padding: its result is finite and is never used

The step (`training/step.py`) calls `resolve_attention` before it compiles anything; the decoder then calls `attend` in every
layer. What must hold: all backends compute the same, and one that cannot do what the model, the data or the platform needs is
refused by name and never replaced silently. Next to read: `cache.py` (attention to a cache of earlier tokens),
`attention_splash.py` (the call of JAX's TPU kernel).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from huatuo_jax.config import ModelConfig
from huatuo_jax.errors import ConfigError
from huatuo_jax.models.numerics import matmul

MASKED = -1e30
"""Score of an invisible key: finite, so that no softmax becomes NaN; beside a visible key its weight is exactly 0."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Visibility:
    """Which keys a query sees, and how distance lowers their score.

    Attributes:
      segments: int32 [B, S]; keys are as many as queries.
      slopes: ALiBi's, fp32 [heads], or None. The bias slope·(j − i) is added in fp32.
    """

    segments: jax.Array
    slopes: jax.Array | None = None

    def distance_ST(self) -> jax.Array:
        """j − i, int32 [S, T = S]: at most 0 for visible keys."""
        index = jnp.arange(self.segments.shape[1])
        return index[None, :] - index[:, None]

    def mask_BST(self) -> jax.Array:
        """True where key j is visible to query i, bool [B, S, T]."""
        same_segment = self.segments[:, :, None] == self.segments[:, None, :]
        return same_segment & (self.distance_ST() <= 0)

    def bias_NST(self) -> jax.Array | None:
        """ALiBi's bias, fp32 [heads, S, T], or None."""
        if self.slopes is None:
            return None
        return self.slopes[:, None, None] * self.distance_ST().astype(jnp.float32)


def alibi_slopes(num_heads: int) -> np.ndarray:
    """ALiBi's slope per head, fp32 [num_heads] (arXiv 2108.12409 and its reference for counts that are no power of two).

    With p the largest power of two ≤ n: 2^(−8i/p) for i = 1…p, then 2^(−8i/2p) for i = 1, 3, 5, … until there are n.
    """
    power = 2 ** int(math.log2(num_heads))
    slopes = [2.0 ** (-8 * i / power) for i in range(1, power + 1)]
    slopes += [2.0 ** (-8 * i / (2 * power)) for i in range(1, 2 * (num_heads - power), 2)]
    return np.asarray(slopes, np.float32)


# ---------------------------------------------------------------- with the whole score matrix


def einsum_attention(q_BSNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, visibility: Visibility) -> jax.Array:
    """The reference, [B, S, N, H] in q's dtype: scores [B, K, G, S, T] and softmax in fp32, everything written out."""
    batch, queries, heads, size = q_BSNH.shape
    kv_heads = k_BTKH.shape[2]
    grouped = (batch, queries, kv_heads, heads // kv_heads, size)
    scores_BKGST = matmul("BSKGH,BTKH->BKGST", q_BSNH.reshape(grouped), k_BTKH, jnp.float32) * size**-0.5
    bias_NST = visibility.bias_NST()
    if bias_NST is not None:
        scores_BKGST += bias_NST.reshape(kv_heads, heads // kv_heads, *bias_NST.shape[1:])
    scores_BKGST = jnp.where(visibility.mask_BST()[:, None, None], scores_BKGST, MASKED)
    weights_BKGST = jax.nn.softmax(scores_BKGST, axis=-1).astype(q_BSNH.dtype)
    return matmul("BKGST,BTKH->BSKGH", weights_BKGST, v_BTKH).reshape(q_BSNH.shape)


def dot_product_attention(q_BSNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, visibility: Visibility) -> jax.Array:
    """[B, S, N, H] by `jax.nn.dot_product_attention` with the mask written out; its XLA form on every platform."""
    bias_NST = visibility.bias_NST()
    return jax.nn.dot_product_attention(
        q_BSNH,
        k_BTKH,
        v_BTKH,
        bias=None if bias_NST is None else bias_NST[None],
        mask=visibility.mask_BST()[:, None],
        implementation="xla",
    )


# ---------------------------------------------------------------- in blocks of queries
#
# Plain XLA, forward and backward, on any platform. Each block of queries meets the keys up to its own end only, so half of the
# score matrix is never computed; none of it is kept for the backward pass, which makes each block again from the saved
# log-sum-exp (FlashAttention-2, arXiv 2307.08691, algorithm 2, with blocks of queries only). Scores, softmax and sums are fp32.
#
# Example: 1,024 tokens make 8 blocks of 128 queries. Block 0 reads keys 0…127, block 1 keys 0…255, … block 7 all of them: in
# tiles of 128 × 128 scores 1 + 2 + … + 8 = 36 of the 64 that the whole matrix has, and at most 8 of them exist at one time.

MOST_BLOCKS, SMALLEST_BLOCK = 8, 128
"""Blocks are unrolled in the program: more of them save more work and take longer to compile."""


def blocked_attention(q_BSNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, visibility: Visibility) -> jax.Array:
    """The attention of `einsum_attention`, [B, S, N, H] in q's dtype, block by block."""
    batch, length, heads, size = q_BSNH.shape
    kv_heads = k_BSKH.shape[2]
    q_BKGSH = (q_BSNH * size**-0.5).reshape(batch, length, kv_heads, heads // kv_heads, size).transpose(0, 2, 3, 1, 4)
    k_BKSH, v_BKSH = k_BSKH.transpose(0, 2, 1, 3), v_BSKH.transpose(0, 2, 1, 3)
    out_BKGSH = _over_blocks(q_BKGSH, k_BKSH, v_BKSH, visibility)
    return out_BKGSH.transpose(0, 3, 1, 2, 4).reshape(q_BSNH.shape)


def query_blocks(length: int) -> list[slice]:
    """The blocks of a row of this length: at most MOST_BLOCKS, none but the last below SMALLEST_BLOCK."""
    size = max(SMALLEST_BLOCK, -(-length // MOST_BLOCKS))
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def _product(spec: str, x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.einsum(spec, x, y, preferred_element_type=jnp.float32)


def _scores(q_BKGQH: jax.Array, k_BKTH: jax.Array, visibility: Visibility, rows: slice) -> jax.Array:
    """Masked scores [B, K, G, Q, T] of a block of queries against all keys up to its end."""
    scores = _product("BKGQH,BKTH->BKGQT", q_BKGQH, k_BKTH)
    queries, keys = jnp.arange(rows.start, rows.stop)[:, None], jnp.arange(rows.stop)[None, :]
    if visibility.slopes is not None:
        slopes_KG11 = visibility.slopes.reshape(*scores.shape[1:3], 1, 1)
        scores += slopes_KG11 * (keys - queries).astype(jnp.float32)
    segments_BS = visibility.segments
    visible_BQT = (segments_BS[:, rows, None] == segments_BS[:, None, : rows.stop]) & (keys <= queries)
    return jnp.where(visible_BQT[:, None, None], scores, MASKED)


@jax.custom_vjp
def _over_blocks(q_BKGSH: jax.Array, k_BKSH: jax.Array, v_BKSH: jax.Array, visibility: Visibility) -> jax.Array:
    return _forward(q_BKGSH, k_BKSH, v_BKSH, visibility)[0]


def _forward(q: jax.Array, k: jax.Array, v: jax.Array, visibility: Visibility) -> tuple[jax.Array, tuple[Any, ...]]:
    outs, norms = [], []
    for rows in query_blocks(q.shape[3]):
        scores = _scores(q[:, :, :, rows], k[:, :, : rows.stop], visibility, rows)
        largest = scores.max(axis=-1, keepdims=True)
        weights = jnp.exp(scores - largest)
        total = weights.sum(axis=-1, keepdims=True)
        outs.append((_product("BKGQT,BKTH->BKGQH", weights.astype(v.dtype), v[:, :, : rows.stop]) / total).astype(q.dtype))
        norms.append(largest + jnp.log(total))
    out, norm = jnp.concatenate(outs, axis=3), jnp.concatenate(norms, axis=3)
    return out, (q, k, v, visibility, out, norm)


def _backward(kept: tuple[Any, ...], grad: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    q, k, v, visibility, out, norm = kept
    # Σ_t weight · d weight of each query, from the output: no second pass over the score matrix.
    inner = jnp.sum(grad.astype(jnp.float32) * out.astype(jnp.float32), axis=-1, keepdims=True)
    grads_q = []
    grad_k, grad_v = jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)
    for rows in query_blocks(q.shape[3]):
        seen = slice(0, rows.stop)
        q_block, grad_block = q[:, :, :, rows], grad[:, :, :, rows]
        weights = jnp.exp(_scores(q_block, k[:, :, seen], visibility, rows) - norm[:, :, :, rows])
        grad_weights = _product("BKGQH,BKTH->BKGQT", grad_block, v[:, :, seen])
        grad_scores = (weights * (grad_weights - inner[:, :, :, rows])).astype(q.dtype)
        grads_q.append(_product("BKGQT,BKTH->BKGQH", grad_scores, k[:, :, seen]))
        grad_k = grad_k.at[:, :, seen].add(_product("BKGQT,BKGQH->BKTH", grad_scores, q_block))
        grad_v = grad_v.at[:, :, seen].add(_product("BKGQT,BKGQH->BKTH", weights.astype(q.dtype), grad_block))
    grad_q = jnp.concatenate(grads_q, axis=3)
    # None: no gradient goes to segments and slopes.
    return grad_q.astype(q.dtype), grad_k.astype(k.dtype), grad_v.astype(v.dtype), None


_over_blocks.defvjp(_forward, _backward)


# ---------------------------------------------------------------- the choice


def _splash(q_BSNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, visibility: Visibility) -> jax.Array:
    # Imported here: Pallas takes 0.3 s to import, and only a TPU needs it.
    from huatuo_jax.models.attention_splash import splash_attention

    return splash_attention(q_BSNH, k_BTKH, v_BTKH, visibility.segments)


Attend = Callable[[jax.Array, jax.Array, jax.Array, Visibility], jax.Array]
"""(q [B, S, N, H], k [B, T, K, H], v [B, T, K, H], visibility) → [B, S, N, H] in q's dtype; head n reads kv head n // (N / K)."""


@dataclass(frozen=True)
class Backend:
    """One way to compute attention and what it can do."""

    attend: Attend
    platforms: frozenset[str]
    segments: bool
    alibi: bool
    gqa: bool


_EVERYWHERE = frozenset({"cpu", "gpu", "tpu"})

BACKENDS: dict[str, Backend] = {
    "splash": Backend(_splash, frozenset({"tpu"}), segments=True, alibi=False, gqa=True),
    "blocked": Backend(blocked_attention, _EVERYWHERE, segments=True, alibi=True, gqa=True),
    "einsum": Backend(einsum_attention, _EVERYWHERE, segments=True, alibi=True, gqa=True),
    "dot_product": Backend(dot_product_attention, _EVERYWHERE, segments=True, alibi=True, gqa=True),
}
"""In the order of preference of "auto"."""


def attend(name: str, q_BSNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, visibility: Visibility) -> jax.Array:
    """Attention [B, S, N, H] by the backend `name`, as `resolve_attention` returned it; shapes as of `Attend`."""
    return BACKENDS[name].attend(q_BSNH, k_BTKH, v_BTKH, visibility)


def resolve_attention(name: str, model: ModelConfig, platform: str, needs_segments: bool = True) -> str:
    """The backend to use: `name` if it can do the job, the first capable one for "auto".

    Args:
      name: a key of `BACKENDS`, or "auto".
      model: tells whether ALiBi and grouped kv heads are needed.
      platform: "cpu", "gpu" or "tpu" (`jax.default_backend()`).
      needs_segments: rows hold more than one segment id; padding is one of them.

    Raises:
      ConfigError: `name` is unknown, or cannot do what is needed; the message says what is missing and which backends can.
    """
    needs = {
        "segments": needs_segments,
        "alibi": model.positions == "alibi",
        "gqa": model.num_kv_heads < model.num_heads,
    }
    missing = {
        known: [what for what, needed in needs.items() if needed and not getattr(backend, what)]
        + ([f"platform {platform}"] if platform not in backend.platforms else [])
        for known, backend in BACKENDS.items()
    }
    capable = [known for known, lacks in missing.items() if not lacks]
    if name == "auto" and capable:
        return capable[0]
    if name in capable:
        return name
    choices = f"backends that can: {', '.join(capable)}" if capable else "no backend can"
    if name == "auto" or name in BACKENDS:
        lacks = f"cannot do: {', '.join(missing[name])}" if name in BACKENDS else "found no backend"
        raise ConfigError(f"attention {name!r} {lacks} (model {model.name} on {platform}); {choices}")
    raise ConfigError(f"attention {name!r} is unknown; {choices} (or 'auto')")
