"""The loss: weighted cross-entropy of the targets, without [batch, sequence, vocabulary] in memory.

Loss = Σ weight · cross-entropy. The step (`step.py`) makes the weights from the targets of the whole batch beforehand
(`token_weights`), so that the sum over micro-batches and devices is a plain sum and nothing is divided afterwards. The model ends
at the hidden states; the product with the output matrix happens here, chunk by chunk.
"""

from functools import partial
from typing import Any, Literal

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

    Example: four rows with 1, 3, 4 and 0 targets. "global": each of the 8 tokens weighs 1/8. "mean_of_means" in groups of two
    rows: both groups have 4 targets, so each token weighs 1/2 · 1/4 = 1/8 too; in groups of one row, a token of the first row
    weighs 1/4 · 1/1, of the second 1/4 · 1/3, of the third 1/4 · 1/4.

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


def weighted_loss(
    hidden: Array, output_weights: Array, targets: Array, weights: Array, square_weights: Array | None = None, *, chunks: int
) -> tuple[Array, Array]:
    """Σ weights · cross-entropy + Σ square_weights · (largest logit)², and the cross-entropies for reports.

    Works on chunks of the sequence, one at a time, and takes each chunk's gradients while its logits are there, so that no logits
    are kept or made twice. Each row's positions that count come first, and chunks in which none counts are left out: logits of
    instructions and padding cost nothing. Products are taken in the dtype of `hidden` with fp32 accumulation; logits, softmax and
    the sum of the weights' gradient over the chunks are fp32. The largest array is [batch, sequence / chunks, vocabulary] fp32.

    Args:
      hidden: [batch, sequence, features], after the final norm.
      output_weights: [vocabulary, features] fp32; a NormHead's are normalised already, once for all chunks.
      targets: [batch, sequence] int32, already shifted; negative = ignored.
      weights: [batch, sequence] fp32, of each cross-entropy.
      square_weights: [batch, sequence] fp32, of each squared largest logit (the z loss); None leaves that term out.
      chunks: number of chunks; divides the sequence.

    Returns:
      The loss, a fp32 scalar, differentiable in `hidden` and `output_weights`; and the cross-entropies [batch, sequence] fp32, 0
      where ignored, through which no gradient passes.
    """
    loss, cross_entropy = _loss(hidden, output_weights, (targets, weights, square_weights), chunks)
    return loss, jax.lax.stop_gradient(cross_entropy)


Facts = tuple[Array, Array, Array | None]
"""targets, weights and square_weights of `weighted_loss`: what no gradient goes to."""
Gradients = tuple[Array, Array]
"""To the hidden states and to the output weights."""


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _loss(hidden: Array, output_weights: Array, facts: Facts, chunks: int) -> tuple[Array, Array]:
    return _over_chunks(hidden, output_weights, facts, chunks, with_gradients=False)[0]


def _loss_forward(
    hidden: Array, output_weights: Array, facts: Facts, chunks: int
) -> tuple[tuple[Array, Array], Gradients | None]:
    # The gradients are taken while the logits are there: the backward pass only scales them.
    return _over_chunks(hidden, output_weights, facts, chunks, with_gradients=True)


def _loss_backward(chunks: int, gradients: Gradients, cotangents: tuple[Array, Array]) -> tuple[Array, Array, None]:
    to_hidden, to_weights = gradients
    return (to_hidden * cotangents[0]).astype(to_hidden.dtype), to_weights * cotangents[0], None


_loss.defvjp(_loss_forward, _loss_backward)


def _over_chunks(
    hidden: Array, output_weights: Array, facts: Facts, chunks: int, with_gradients: bool
) -> tuple[tuple[Array, Array], Gradients | None]:
    """(loss, cross-entropies), and the loss's gradients to `hidden` and `output_weights` if wanted."""
    # Example of one row, 8 positions in 4 chunks of 2; targets . . 7 . 9 4 . . at the positions 0 to 7 ("." = ignored):
    #   order  2 4 5 0 1 3 6 7   positions that count first, each group in its old order
    #   used   2                 the row that counts most has 3 targets, in the first 2 chunks; chunks 2 and 3 are never computed
    #   back   3 4 0 5 1 2 6 7   where each position went: brings the results to their old places
    targets, _, square_weights = facts
    counts = _counts(targets, square_weights)
    order = jnp.argsort(~counts, axis=1, stable=True)
    back = jnp.argsort(order, axis=1)
    size = targets.shape[1] // chunks
    used = _computed_chunks(counts, chunks)
    # Cast, and gathered over the devices, once and not once a chunk.
    rounded = constrain(output_weights.astype(hidden.dtype), "vocab", None)
    columns = jax.tree.map(lambda x: _reorder(x, order), (hidden, *facts))

    def chunk_loss(logits: Array, targets: Array, weights: Array, square_weights: Array | None) -> tuple[Array, Array]:
        # A masked sum instead of a gather: it stays on its device where the vocabulary is sharded.
        is_target = targets[..., None] == jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
        target_logit = jnp.where(is_target, logits, 0.0).sum(axis=-1)
        cross_entropy = jnp.where(targets >= 0, jax.nn.logsumexp(logits, axis=-1) - target_logit, 0.0)
        loss = (weights * cross_entropy).sum()
        if square_weights is not None:
            loss += (square_weights * logits.max(axis=-1) ** 2).sum()
        return loss, cross_entropy

    def add_chunk(index: int, sums: tuple[Any, ...]) -> tuple[Any, ...]:
        total, cross_entropy, gradients = sums
        start = index * size
        part, *part_facts = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, size, axis=1), columns)
        logits = jnp.einsum("bsd,vd->bsv", part, rounded, preferred_element_type=jnp.float32)
        (loss, of_tokens), to_logits = jax.value_and_grad(chunk_loss, has_aux=True)(logits, *part_facts)
        if gradients is not None:
            to_hidden, to_weights = gradients
            # Both factors of each product in one dtype: a mixed product would run at fp32 speed.
            to_logits = to_logits.astype(part.dtype)
            to_part = jnp.einsum("bsv,vd->bsd", to_logits, rounded, preferred_element_type=jnp.float32)
            to_hidden = jax.lax.dynamic_update_slice_in_dim(to_hidden, to_part.astype(part.dtype), start, axis=1)
            to_weights += jnp.einsum("bsv,bsd->vd", to_logits, part, preferred_element_type=jnp.float32)
            gradients = to_hidden, to_weights
        cross_entropy = jax.lax.dynamic_update_slice_in_dim(cross_entropy, of_tokens, start, axis=1)
        return total + loss, cross_entropy, gradients

    zero = jnp.zeros((), jnp.float32)
    # The sum of the weights' gradient over chunks is fp32, whatever the compute dtype is.
    empty = (jnp.zeros_like(hidden), jnp.zeros_like(output_weights)) if with_gradients else None
    sums = zero, jnp.zeros(targets.shape, jnp.float32), empty
    loss, cross_entropy, gradients = add_chunk(0, sums) if chunks == 1 else jax.lax.fori_loop(0, used, add_chunk, sums)
    if gradients is not None:
        gradients = _reorder(gradients[0], back), gradients[1]
    return (loss, _reorder(cross_entropy, back)), gradients


def positions_with_logits(targets: Array, square_weights: Array | None, chunks: int) -> Array:
    """At how many positions `weighted_loss` computes logits: fp32 scalar. The arguments are as there."""
    computed = _computed_chunks(_counts(targets, square_weights), chunks)
    return jnp.float32(targets.size // chunks) * computed


def _counts(targets: Array, square_weights: Array | None) -> Array:
    """Which positions enter the loss: bool [batch, sequence]."""
    return targets >= 0 if square_weights is None else (targets >= 0) | (square_weights > 0)


def _computed_chunks(counts: Array, chunks: int) -> Array | int:
    """As many as the row with the most counting positions needs, for these come first in each row."""
    return 1 if chunks == 1 else -(-counts.sum(axis=1).max() // (counts.shape[1] // chunks))


def _reorder(x: Array, order: Array) -> Array:
    """x [batch, sequence, …] with the positions of each row in the order `order` [batch, sequence]."""
    return jax.vmap(lambda row, indices: row.at[indices].get(unique_indices=True, mode="promise_in_bounds"))(x, order)


def sums_by_source(values: Array, source_ids: Array, num_sources: int) -> Array:
    """Sum of `values` [batch, sequence] over the tokens of each source: [num_sources] fp32; padding has source id -1."""
    of_source = source_ids[None] == jnp.arange(num_sources, dtype=source_ids.dtype)[:, None, None]
    return jnp.where(of_source, values[None], 0.0).sum(axis=(1, 2))
