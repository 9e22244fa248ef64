"""The two normalisations of a decoder: RMSNorm of activations, and the unit rows of Baichuan2's output matrix (NormHead)."""

import jax
import jax.numpy as jnp


def rms_norm(x: jax.Array, scale: jax.Array, epsilon: float) -> jax.Array:
    """x / rms(x) · scale over the last axis; statistics and product in fp32, result in x's dtype."""
    wide = x.astype(jnp.float32)
    wide *= jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + epsilon)
    return (wide * scale.astype(jnp.float32)).astype(x.dtype)


def row_lengths(weights_VD: jax.Array) -> jax.Array:
    """The L2 norms of the rows, fp32 [V, 1], by which a NormHead divides them; a row of zeros has a length above 0.

    Training divides at every step, with the gradient; export, quantised and baked inference divide once.
    """
    wide_VD = weights_VD.astype(jnp.float32)
    return jnp.sqrt(jnp.maximum(jnp.sum(jnp.square(wide_VD), axis=-1, keepdims=True), 1e-24))
