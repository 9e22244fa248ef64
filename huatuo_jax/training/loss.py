"""Hidden states, output weights and targets in; cross-entropy per token out, without [batch, sequence, vocabulary] in memory.

Loss = Σ weight · cross-entropy, with the weights made from the targets beforehand (`token_weights`), so that the sum over
micro-batches and devices is a plain sum and nothing is divided afterwards.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array

from huatuo_jax.sharding import constrain

LossKind = Literal["global", "mean_of_means"]


def token_weights(targets: Array, kind: LossKind, rows_per_mean: int) -> Array:
    """Weight of each token's cross-entropy in the loss of the step.

    "global": 1 / Σ targets of the batch. "mean_of_means": the mean over groups of `rows_per_mean` consecutive rows of the mean
    over the group's targets (the original's loss: a group is the rows of one device). A group without targets contributes nothing
    and still counts as a group, so a token's weight does not depend on what other groups hold; the original's mean is NaN there.

    Args:
      targets: [rows, sequence] int32 of the whole step; negative = ignored.
      kind: which of the two.
      rows_per_mean: rows of a group; divides the rows.

    Returns:
      [rows, sequence] fp32, 0 where the target is ignored.
    """
    is_target = targets >= 0
    row_targets = is_target.sum(axis=1)
    if kind == "global":
        row_weights = jnp.broadcast_to(1.0 / jnp.maximum(row_targets.sum(), 1), row_targets.shape)
    else:
        group_targets = row_targets.reshape(-1, rows_per_mean).sum(axis=1)
        group_weights = 1.0 / (jnp.maximum(group_targets, 1) * len(group_targets))
        row_weights = jnp.repeat(group_weights, rows_per_mean)
    return jnp.where(is_target, row_weights[:, None], 0.0).astype(jnp.float32)


def position_weights(segment_ids: Array) -> Array:
    """Weight of each position in the z loss, a mean over the positions that hold a token: [rows, sequence] fp32, 0 on padding."""
    held = segment_ids > 0
    return held.astype(jnp.float32) / jnp.maximum(held.sum(), 1)


def token_losses(
    hidden: Array, output_weights: Array, targets: Array, *, chunks: int, with_max_logit: bool = False
) -> tuple[Array, Array]:
    """Cross-entropy of each token, computed chunk by chunk along the sequence; the backward pass recomputes each chunk's logits.

    Products are taken in the dtype of `hidden` with fp32 accumulation; logits, softmax and the sum of the weights' gradient over
    the chunks are fp32. The largest array is [batch, sequence / chunks, vocabulary] fp32.

    Args:
      hidden: [batch, sequence, features], after the final norm.
      output_weights: [vocabulary, features] fp32; a NormHead's are normalised already, once for all chunks.
      targets: [batch, sequence] int32, already shifted; negative = ignored.
      chunks: number of chunks; divides the sequence. 1 keeps the logits instead of recomputing them: for small vocabularies.
      with_max_logit: whether the largest logits are wanted (the z loss); else they are zeros.

    Returns:
      Cross-entropy, 0 where ignored, and the largest logit; both [batch, sequence] fp32.
    """
    # Cast, and gathered over the devices, once and not once a chunk. The gradient goes to the fp32 original (see `_project`), so
    # that the sum over chunks is not rounded.
    rounded_weights = constrain(jax.lax.stop_gradient(output_weights).astype(hidden.dtype), "vocab", None)

    def chunk_losses(hidden: Array, targets: Array) -> tuple[Array, Array]:
        logits = _project(hidden, output_weights, rounded_weights)
        # A masked sum instead of a gather: it stays on its device where the vocabulary is sharded.
        is_target = targets[..., None] == jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
        target_logit = jnp.where(is_target, logits, 0.0).sum(axis=-1)
        cross_entropy = jnp.where(targets >= 0, jax.nn.logsumexp(logits, axis=-1) - target_logit, 0.0)
        return cross_entropy, logits.max(axis=-1) if with_max_logit else jnp.zeros_like(cross_entropy)

    def split(x: Array) -> Array:
        return jnp.moveaxis(x.reshape(x.shape[0], chunks, x.shape[1] // chunks, *x.shape[2:]), 1, 0)

    if chunks == 1:
        return chunk_losses(hidden, targets)
    recomputed = jax.checkpoint(chunk_losses, prevent_cse=False)  # the scan keeps the two passes apart already
    _, per_chunk = jax.lax.scan(lambda _, chunk: (None, recomputed(*chunk)), None, (split(hidden), split(targets)))
    cross_entropy, max_logit = (jnp.moveaxis(x, 0, 1).reshape(targets.shape) for x in per_chunk)
    return cross_entropy, max_logit


@jax.custom_vjp
def _project(hidden: Array, weights: Array, rounded_weights: Array) -> Array:
    """hidden · rounded_weights in fp32; the gradient goes to `weights`, of which `rounded_weights` is the cast."""
    return jnp.einsum("bsd,vd->bsv", hidden, rounded_weights, preferred_element_type=jnp.float32)


def _project_forward(hidden: Array, weights: Array, rounded_weights: Array) -> tuple[Array, tuple[Array, Array]]:
    return _project(hidden, weights, rounded_weights), (hidden, rounded_weights)


def _project_backward(kept: tuple[Array, Array], gradient: Array) -> tuple[Array, Array, None]:
    hidden, rounded_weights = kept
    # Both factors of each product in one dtype: a mixed product would run at fp32 speed.
    gradient = gradient.astype(hidden.dtype)
    to_hidden = jnp.einsum("bsv,vd->bsd", gradient, rounded_weights, preferred_element_type=jnp.float32)
    to_weights = jnp.einsum("bsv,bsd->vd", gradient, hidden, preferred_element_type=jnp.float32)
    return to_hidden.astype(hidden.dtype), to_weights, None


_project.defvjp(_project_forward, _project_backward)


def sums_by_source(values: Array, source_ids: Array, num_sources: int) -> Array:
    """Sum of `values` [batch, sequence] over the tokens of each source: [num_sources] fp32; padding has source id -1."""
    of_source = source_ids[None] == jnp.arange(num_sources, dtype=source_ids.dtype)[:, None, None]
    return jnp.where(of_source, values[None], 0.0).sum(axis=(1, 2))
