"""Chunked cross-entropy against the plain formula; the weights of a loss against sums made by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from huatuo_jax.training.loss import position_weights, sums_by_source, token_weights, weighted_loss

pytestmark = pytest.mark.usefixtures("compiled_fast")

BATCH, SEQUENCE, FEATURES, VOCABULARY = 2, 12, 8, 37


def problem(dtype=jnp.float32):
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(BATCH, SEQUENCE, FEATURES)), dtype)
    weights = jnp.asarray(rng.normal(size=(VOCABULARY, FEATURES)), jnp.float32)
    targets = rng.integers(0, VOCABULARY, (BATCH, SEQUENCE)).astype(np.int32)
    targets[:, :3] = -100
    return hidden, weights, jnp.asarray(targets)


def plain_loss(hidden, weights, targets):
    log_probabilities = jax.nn.log_softmax(hidden.astype(jnp.float32) @ weights.T)
    picked = jnp.take_along_axis(log_probabilities, jnp.maximum(targets, 0)[..., None], -1)[..., 0]
    return -jnp.where(targets >= 0, picked, 0.0)


def loss_of(hidden, weights, targets, chunks):
    return weighted_loss(hidden, weights, targets, jnp.ones(targets.shape), chunks=chunks)[0]


@pytest.mark.parametrize("chunks", [1, 3, 12])
def test_chunks_change_neither_loss_nor_gradient(chunks):
    hidden, weights, targets = problem()
    per_token = token_weights(targets, "global", 1)
    chunked = lambda h, w: 3 * weighted_loss(h, w, targets, per_token, chunks=chunks)[0]
    plain = lambda h, w: 3 * (plain_loss(h, w, targets) * per_token).sum()
    loss, per_position = jax.jit(weighted_loss, static_argnames="chunks")(hidden, weights, targets, per_token, chunks=chunks)
    np.testing.assert_allclose(3 * loss, plain(hidden, weights), rtol=1e-5)
    np.testing.assert_allclose(per_position, plain_loss(hidden, weights, targets), rtol=1e-5)
    gradients = (jax.jit(jax.grad(loss, (0, 1)))(hidden, weights) for loss in (chunked, plain))
    for ours, theirs in zip(*gradients, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_chunks_in_which_nothing_counts_are_left_out():
    """The ignored positions of the row with most targets hold NaN: its 9 targets fill 3 of 4 chunks, the fourth is not made."""
    hidden, weights, targets = problem()
    targets = targets.at[1, ::2].set(-100)
    poisoned = hidden.at[0, :3].set(jnp.nan)
    loss, gradients = jax.jit(jax.value_and_grad(loss_of, (0, 1)), static_argnums=3)(poisoned, weights, targets, 4)
    expected, plain = jax.jit(jax.value_and_grad(lambda h, w: plain_loss(h, w, targets).sum(), (0, 1)))(hidden, weights)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    for ours, theirs in zip(gradients, plain, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
    assert loss_of(hidden, weights, jnp.full_like(targets, -100), 4) == 0


def test_the_gradient_of_the_weights_is_summed_in_fp32_when_products_are_bf16():
    hidden, weights, targets = problem(jnp.bfloat16)
    to_hidden, to_weights = jax.jit(jax.grad(loss_of, (0, 1)), static_argnums=3)(hidden, weights, targets, 12)
    assert (to_hidden.dtype, to_weights.dtype) == (jnp.bfloat16, jnp.float32)
    assert np.any(np.asarray(to_weights) != np.asarray(to_weights.astype(jnp.bfloat16), np.float32))
    exact = jax.jit(jax.grad(lambda w: plain_loss(hidden, w, targets).sum()))(weights)
    np.testing.assert_allclose(to_weights, exact, atol=0.05)


def test_no_array_of_batch_by_sequence_by_vocabulary():
    hidden, weights, targets = problem()
    gradients = jax.jit(jax.grad(loss_of, (0, 1)), static_argnums=3)
    text = gradients.lower(hidden, weights, targets, 4).compile().as_text()
    assert f"f32[{BATCH},{SEQUENCE // 4},{VOCABULARY}]" in text
    assert f"f32[{BATCH},{SEQUENCE},{VOCABULARY}]" not in text and f"f32[4,{BATCH},{SEQUENCE // 4},{VOCABULARY}]" not in text


@pytest.mark.parametrize("chunks", [1, 2])
def test_the_largest_logit_counts_by_its_square_with_or_without_a_target(chunks):
    hidden = jnp.array([[[1.0, 0.0], [0.0, 2.0]]])
    weights = jnp.array([[3.0, 0.0], [1.0, 1.0], [0.0, 5.0]])
    nothing, ones = jnp.zeros((1, 2)), jnp.ones((1, 2))
    square = lambda w: weighted_loss(hidden, w, jnp.array([[0, -100]]), nothing, ones, chunks=chunks)[0]
    assert square(weights) == 3.0**2 + 10.0**2
    np.testing.assert_array_equal(jax.grad(square)(weights), [[6.0, 0.0], [0.0, 0.0], [0.0, 40.0]])


def test_global_weights_give_the_mean_over_all_targets():
    targets = jnp.array([[1, 2, 3], [4, -100, -100]])
    np.testing.assert_array_equal(token_weights(targets, "global", 1), [[0.25, 0.25, 0.25], [0.25, 0, 0]])


def test_mean_of_means_weighs_a_group_by_its_own_targets():
    targets = jnp.array([[1, 2], [3, -100], [-100, -100], [5, -100]])
    expected = [[1 / 6, 1 / 6], [1 / 6, 0], [0, 0], [1 / 2, 0]]
    np.testing.assert_allclose(token_weights(targets, "mean_of_means", 2), expected)


def test_a_group_without_targets_still_counts_as_a_group():
    np.testing.assert_array_equal(token_weights(jnp.array([[1, 2], [-100, -100]]), "mean_of_means", 1), [[0.25, 0.25], [0, 0]])


def test_a_batch_without_targets_has_loss_zero():
    for kind in ("global", "mean_of_means"):
        np.testing.assert_array_equal(token_weights(jnp.full((2, 3), -100), kind, 1), jnp.zeros((2, 3)))


def test_the_z_loss_is_a_mean_over_positions_that_hold_a_token():
    np.testing.assert_allclose(position_weights(jnp.array([[1, 1, 2], [1, 0, 0]])), [[0.25, 0.25, 0.25], [0.25, 0, 0]])


def test_sums_by_source_leave_padding_out():
    sums = sums_by_source(jnp.array([[1.0, 2.0], [4.0, 8.0]]), jnp.array([[0, 2], [2, -1]]), 3)
    np.testing.assert_array_equal(sums, [1.0, 0.0, 6.0])
