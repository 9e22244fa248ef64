"""One pre-norm transformer layer: RMSNorm, attention's projections with rotary positions, SwiGLU.

A `Block` holds the parameters of *all* layers, stacked on a leading axis "layers"; its methods see one layer's slice, as the scan
in `decoder.py` hands it to them. Between its two halves the caller computes attention: to the tokens of the same row in training
(`attention.py`), to cached keys and values in generation (`cache.py`). Products go through `numerics.py`, which fixes their
dtypes.

Letters behind a name are its dimensions: B rows, S tokens, D hidden, N heads, K kv heads, H head size, F feed-forward,
P = H / 2 rotated pairs.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from huatuo_jax.config import ModelConfig, RopeScaling
from huatuo_jax.models.numerics import project, rms_norm
from huatuo_jax.sharding import constrain

Initializer = Callable[..., jax.Array]
RopeTables = tuple[jax.Array, jax.Array]
"""Cosine and sine of each angle, fp32 [B, S, P]."""


# ---------------------------------------------------------------- rotary positions (ALiBi's slopes are in attention.py)


def rope_frequencies(config: ModelConfig) -> np.ndarray:
    """Angle per position of each rotated pair, fp32 [head_dim / 2] (arXiv 2104.09864, eq. 15), with Llama-3's scaling if set."""
    # In fp64 and on the host: a power in fp32 would be off by angles at far positions.
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float64) / config.head_dim
    frequencies = config.rope_theta**-exponents
    if config.rope_scaling is not None:
        frequencies = _scale_llama3(frequencies, config.rope_scaling)
    return frequencies.astype(np.float32)


def _scale_llama3(frequencies: np.ndarray, scaling: RopeScaling) -> np.ndarray:
    """Slow rotations are slowed by `factor`, fast ones kept, those between blended linearly in the rotations per context."""
    rotations = scaling.original_max_length * frequencies / (2 * math.pi)
    kept = (rotations - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    kept = np.clip(kept, 0.0, 1.0)
    return frequencies * (kept + (1 - kept) / scaling.factor)


def rope_tables(config: ModelConfig, positions_BS: jax.Array) -> RopeTables:
    """Cosine and sine of the angles at int32 positions [B, S]; both fp32 [B, S, head_dim / 2]."""
    angles_BSP = positions_BS.astype(jnp.float32)[..., None] * rope_frequencies(config)
    return jnp.cos(angles_BSP), jnp.sin(angles_BSP)


def apply_rope(x_BSNH: jax.Array, tables: RopeTables) -> jax.Array:
    """Rotates [B, S, N, H] by the half-split layout (pair i is dims i and i + H/2); computed in fp32, returned in x's dtype."""
    cos_BS1P, sin_BS1P = (table[:, :, None, :] for table in tables)
    first, second = jnp.split(x_BSNH.astype(jnp.float32), 2, axis=-1)
    rotated = (first * cos_BS1P - second * sin_BS1P, second * cos_BS1P + first * sin_BS1P)
    return jnp.concatenate(rotated, axis=-1).astype(x_BSNH.dtype)


# ---------------------------------------------------------------- parameters and the layer


class ParamFactory:
    """Makes parameters with their logical axes as metadata `axes`, ignored by flax (which shards `out_sharding` eagerly)."""

    def __init__(self, rngs: nnx.Rngs, dtype: DTypeLike, deviation: float, stack: int | None = None) -> None:
        self._rngs, self._dtype, self._stack = rngs, dtype, stack
        self._normal = nnx.initializers.normal(deviation)

    def _make(self, initializer: Initializer, axes: dict[str, int]) -> nnx.Param:
        # All layers of a parameter are one array: one scan runs them, one entry of a checkpoint holds them.
        sizes = axes if self._stack is None else {"layers": self._stack, **axes}
        value = initializer(self._rngs.params(), tuple(sizes.values()), self._dtype)
        return nnx.Param(value, axes=tuple(sizes))

    def weight(self, **axes: int) -> nnx.Param:
        """Normal with the model's deviation; logical axis → size, in order."""
        return self._make(self._normal, axes)

    def scale(self, **axes: int) -> nnx.Param:
        """Ones."""
        return self._make(nnx.initializers.ones, axes)

    def bias(self, **axes: int) -> nnx.Param:
        """Zeros."""
        return self._make(nnx.initializers.zeros, axes)


class Attention(nnx.Module):
    """Projections of self-attention; biases and q/k norms where the model has them."""

    def __init__(self, config: ModelConfig, make: ParamFactory) -> None:
        embed, heads = {"embed": config.hidden_size}, {"heads": config.num_heads, "head_dim": config.head_dim}
        kv_heads = {"kv_heads": config.num_kv_heads, "head_dim": config.head_dim}
        self.query = make.weight(**embed, **heads)
        self.key = make.weight(**embed, **kv_heads)
        self.value = make.weight(**embed, **kv_heads)
        self.output = make.weight(**heads, **embed)
        if config.qkv_bias:
            self.query_bias, self.key_bias, self.value_bias = make.bias(**heads), make.bias(**kv_heads), make.bias(**kv_heads)
        if config.qk_norm:
            self.query_norm, self.key_norm = make.scale(head_dim=config.head_dim), make.scale(head_dim=config.head_dim)


class FeedForward(nnx.Module):
    """SwiGLU (arXiv 2002.05202): down(silu(gate(x)) · up(x))."""

    def __init__(self, config: ModelConfig, make: ParamFactory) -> None:
        self.gate = make.weight(embed=config.hidden_size, ffn=config.ffn_size)
        self.up = make.weight(embed=config.hidden_size, ffn=config.ffn_size)
        self.down = make.weight(ffn=config.ffn_size, embed=config.hidden_size)

    def __call__(self, x_BSD: jax.Array) -> jax.Array:
        """[B, S, D] → [B, S, D]."""
        gate_BSF = project("BSD,DF->BSF", x_BSD, self.gate[...])
        up_BSF = project("BSD,DF->BSF", x_BSD, self.up[...])
        hidden_BSF = constrain(jax.nn.silu(gate_BSF) * up_BSF, "batch", None, "ffn")
        return project("BSF,FD->BSD", hidden_BSF, self.down[...])


class Block(nnx.Module):
    """One layer in two halves, so that the caller decides what the queries attend to (this row, or a cache)."""

    def __init__(self, config: ModelConfig, make: ParamFactory) -> None:
        self.config = config
        self.attention_norm = make.scale(norm=config.hidden_size)
        self.attention = Attention(config, make)
        self.ffn_norm = make.scale(norm=config.hidden_size)
        self.ffn = FeedForward(config, make)

    def queries_keys_values(self, x_BSD: jax.Array, rope: RopeTables | None) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Normed queries [B, S, N, H], keys and values [B, S, K, H]; queries and keys rotated if the model has RoPE."""
        weights, epsilon = self.attention, self.config.norm_eps
        normed_BSD = rms_norm(x_BSD, self.attention_norm[...], epsilon)
        q = project("BSD,DNH->BSNH", normed_BSD, weights.query[...])
        k = project("BSD,DKH->BSKH", normed_BSD, weights.key[...])
        v = project("BSD,DKH->BSKH", normed_BSD, weights.value[...])
        if self.config.qkv_bias:
            q, k, v = (
                x + bias[...].astype(x.dtype)
                for x, bias in ((q, weights.query_bias), (k, weights.key_bias), (v, weights.value_bias))
            )
        if self.config.qk_norm:
            q, k = rms_norm(q, weights.query_norm[...], epsilon), rms_norm(k, weights.key_norm[...], epsilon)
        # Keys are rotated before they are cached, so that a cached key never needs its position again.
        if rope is not None:
            q, k = apply_rope(q, rope), apply_rope(k, rope)
        q = constrain(q, "batch", None, "heads", None)
        k, v = (constrain(x, "batch", None, "kv_heads", None) for x in (k, v))
        return q, k, v

    def finish(self, x_BSD: jax.Array, attended_BSNH: jax.Array) -> jax.Array:
        """Adds the attention's output, then the feed-forward's, to the residual stream."""
        x_BSD = x_BSD + project("BSNH,NHD->BSD", attended_BSNH, self.attention.output[...])
        x_BSD = constrain(x_BSD, "batch", None, None)
        x_BSD = x_BSD + self.ffn(rms_norm(x_BSD, self.ffn_norm[...], self.config.norm_eps))
        return constrain(x_BSD, "batch", None, None)
