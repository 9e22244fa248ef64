"""Where a token stands, in fp32: rotary angles from explicit positions, ALiBi slopes from the number of heads."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from huatuo_jax.config import ModelConfig, RopeScaling


def rope_frequencies(config: ModelConfig) -> np.ndarray:
    """Angle per position of each rotated pair, fp32 [head_dim / 2] (arXiv 2104.09864, eq. 15), with Llama-3's scaling if set."""
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


def rope_tables(config: ModelConfig, positions_BS: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine of the angles at int32 positions [B, S]; both fp32 [B, S, head_dim / 2]."""
    angles_BSP = positions_BS.astype(jnp.float32)[..., None] * rope_frequencies(config)
    return jnp.cos(angles_BSP), jnp.sin(angles_BSP)


def apply_rope(x_BSNH: jax.Array, tables: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotates [B, S, N, H] by the half-split layout (pair i is dims i and i + H/2); computed in fp32, returned in x's dtype."""
    cos_BS1P, sin_BS1P = (table[:, :, None, :] for table in tables)
    first, second = jnp.split(x_BSNH.astype(jnp.float32), 2, axis=-1)
    rotated = (first * cos_BS1P - second * sin_BS1P, second * cos_BS1P + first * sin_BS1P)
    return jnp.concatenate(rotated, axis=-1).astype(x_BSNH.dtype)


def alibi_slopes(num_heads: int) -> np.ndarray:
    """ALiBi's slope per head, fp32 [num_heads] (arXiv 2108.12409 and its reference for counts that are no power of two).

    With p the largest power of two ≤ n: 2^(−8i/p) for i = 1…p, then 2^(−8i/2p) for i = 1, 3, 5, … until there are n.
    """
    power = 2 ** int(math.log2(num_heads))
    slopes = [2.0 ** (-8 * i / power) for i in range(1, power + 1)]
    slopes += [2.0 ** (-8 * i / (2 * power)) for i in range(1, 2 * (num_heads - power), 2)]
    return np.asarray(slopes, np.float32)
