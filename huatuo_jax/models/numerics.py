"""Matrix products and norms of the model: in which dtype each operand, sum and gradient is.

Everything that `decoder.py`, `attention.py` and `cache.py` multiply or normalise goes through here. What must hold: operands are
in the compute dtype, every sum is fp32, and weight gradients have the parameters' dtype. Next to read: `decoder.py`.

Products: operands in the compute dtype, sums in fp32, forward and backward. A plain einsum cannot say that for its gradient:
asking for fp32 results makes the backward pass multiply fp32 by bf16, which GPUs run as fp32, and not asking for them is three
times slower for bf16 on CPUs and rounds weight gradients to bf16. It also puts the incoming gradient first in the weights'
gradient, which CPUs then transpose instead of the smaller activations. Hence a gradient of our own.

Weights may be quantised (`qwix.QArray`, made by `huatuo_jax.inference.quantize`): integers that become numbers on their way into
the product; where XLA fuses the two, only the integers are read from memory. They have no backward pass.

Norms: statistics in fp32.
"""

from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

if TYPE_CHECKING:
    from qwix import QArray

# A QArray is recognised by its attribute `qvalue`: qwix is imported only where something is quantised.
Weights: TypeAlias = "jax.Array | QArray"
OutDType: TypeAlias = DTypeLike | None
"""Of a product; None = the compute dtype, which is that of the activations."""

PRODUCT = "product"
"""Name under which a rematerialisation policy finds the results of `project`."""


def matmul(spec: str, x: jax.Array, weights: Weights, out_dtype: OutDType = None) -> jax.Array:
    """`einsum(spec, x, weights)`, with both operands in x's dtype and fp32 accumulation.

    Args:
      spec: einsum of two operands; every index of an operand occurs in the other operand or in the result.
      x: activations; their dtype is the compute dtype.
      weights: fp32 parameters (cast to the compute dtype here; their gradient stays fp32), quantised ones, or activations.
      out_dtype: of the result; None = the compute dtype.
    """
    if hasattr(weights, "qvalue"):
        return _quantized(spec, x, weights, out_dtype)
    if x.dtype == jnp.float32:
        # All three are one dtype, and for batched products (attention's) jax's own gradient suits CPUs better.
        return jnp.einsum(spec, x, weights.astype(x.dtype)).astype(x.dtype if out_dtype is None else out_dtype)
    return _mixed(spec, x, weights, out_dtype)


@partial(jax.custom_vjp, nondiff_argnums=(0, 3))
def _mixed(spec: str, x: jax.Array, weights: jax.Array, out_dtype: OutDType) -> jax.Array:
    product = jnp.einsum(spec, x, weights.astype(x.dtype), preferred_element_type=jnp.float32)
    return product.astype(x.dtype if out_dtype is None else out_dtype)


def project(spec: str, x: jax.Array, weights: Weights) -> jax.Array:
    """`matmul` of activations with parameters, its result marked as worth keeping for the backward pass.

    The mark is needed because policies that look for matrix products do not see those inside a custom gradient.
    """
    if hasattr(weights, "qvalue"):
        return _quantized(spec, x, weights, None)
    return checkpoint_name(_mixed(spec, x, weights, None), PRODUCT)


def _forward(spec: str, x: jax.Array, weights: jax.Array, out_dtype: OutDType) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _mixed(spec, x, weights, out_dtype), (x, weights)


def _backward(
    spec: str, out_dtype: OutDType, residuals: tuple[jax.Array, jax.Array], grad: jax.Array
) -> tuple[jax.Array, jax.Array]:
    del out_dtype
    x, weights = residuals
    operands, out = spec.split("->")
    left, right = operands.split(",")
    grad = grad.astype(x.dtype)
    grad_x = jnp.einsum(f"{out},{right}->{left}", grad, weights.astype(x.dtype), preferred_element_type=jnp.float32)
    grad_weights = jnp.einsum(f"{left},{out}->{right}", x, grad, preferred_element_type=jnp.float32)
    return grad_x.astype(x.dtype), grad_weights.astype(weights.dtype)


_mixed.defvjp(_forward, _backward)


def in_dtype(weights: Weights, dtype: DTypeLike) -> jax.Array:
    """The weights as an array of `dtype`."""
    if hasattr(weights, "qvalue"):
        from qwix import dequantize

        return dequantize(weights).astype(dtype)
    return weights.astype(dtype)


def _quantized(spec: str, x: jax.Array, weights: "QArray", out_dtype: OutDType) -> jax.Array:
    """One scale per output multiplies the fp32 sum; scales that change along the contraction multiply the weights before it."""
    from qwix import dequantize

    # For "BSD,DF->BSF": scales [1, F] of int8 multiply the sums [B, S, F]; scales [D / 64, F] of int4:64 change within a sum, so
    # they multiply the weights [D, F], each one 64 rows.
    operands, out = spec.split("->")
    right = operands.split(",")[1]
    kept = [axis for axis, index in enumerate(right) if index in out]
    per_output = all(size == 1 for axis, size in enumerate(weights.scale.shape) if axis not in kept)
    # The scale then has the sizes of the result's last axes.
    if per_output and out.endswith("".join(right[axis] for axis in kept)):
        product = jnp.einsum(spec, x, weights.qvalue.astype(x.dtype), preferred_element_type=jnp.float32)
        product *= weights.scale.reshape([weights.scale.shape[axis] for axis in kept]).astype(jnp.float32)
    else:
        product = jnp.einsum(spec, x, dequantize(weights.astype(x.dtype)), preferred_element_type=jnp.float32)
    return product.astype(x.dtype if out_dtype is None else out_dtype)


# ---------------------------------------------------------------- norms


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
