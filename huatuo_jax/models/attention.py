"""Queries, keys and values in, attended values out: a registry of backends, each with what it can do.

Visible to query i is key j of the same row if j ≤ i (by index in the row) and both have the same segment id. Padding (segment 0)
attends to padding, so no query is ever without a key. `resolve_attention` refuses, before the first step, a backend that cannot
do what the model, the data or the platform needs, and names those that can.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from huatuo_jax.config import ModelConfig
from huatuo_jax.errors import ConfigError
from huatuo_jax.models.attention_blocked import blocked_attention
from huatuo_jax.models.attention_splash import splash_attention
from huatuo_jax.models.matmul import matmul

MASKED = float(np.finfo(np.float32).min)
"""Score of an invisible key: finite, so that a softmax can never become NaN."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Visibility:
    """Which keys a query sees, and how distance lowers their score.

    Attributes:
      segments: int32 [B, S]; keys are as many as queries (a cache has its own attention, in `cache.py`).
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


Attend = Callable[[jax.Array, jax.Array, jax.Array, Visibility], jax.Array]
"""(q [B, S, N, H], k [B, T, K, H], v [B, T, K, H], visibility) → [B, S, N, H] in q's dtype; head n reads kv head n // (N / K)."""


def einsum_attention(q_BSNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, visibility: Visibility) -> jax.Array:
    """The reference: scores and softmax in fp32, everything written out."""
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
    """`jax.nn.dot_product_attention` with the mask written out; its XLA form on every platform."""
    bias_NST = visibility.bias_NST()
    return jax.nn.dot_product_attention(
        q_BSNH,
        k_BTKH,
        v_BTKH,
        bias=None if bias_NST is None else bias_NST[None],
        mask=visibility.mask_BST()[:, None],
        implementation="xla",
    )


def _splash(q_BSNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, visibility: Visibility) -> jax.Array:
    return splash_attention(q_BSNH, k_BTKH, v_BTKH, visibility.segments)


def _blocked(q_BSNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, visibility: Visibility) -> jax.Array:
    return blocked_attention(q_BSNH, k_BTKH, v_BTKH, visibility.segments, visibility.slopes)


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
    "blocked": Backend(_blocked, _EVERYWHERE, segments=True, alibi=True, gqa=True),
    "einsum": Backend(einsum_attention, _EVERYWHERE, segments=True, alibi=True, gqa=True),
    "dot_product": Backend(dot_product_attention, _EVERYWHERE, segments=True, alibi=True, gqa=True),
}
"""In the order of preference of "auto"."""


def attend(name: str, q_BSNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, visibility: Visibility) -> jax.Array:
    """Attention by the backend `name`, as `resolve_attention` returned it."""
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
