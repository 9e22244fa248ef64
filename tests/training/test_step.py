"""The training step on a tiny model: what it reports, what it skips, what it refuses."""

import dataclasses
import re
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from huatuo_jax.config import ComputeConfig, DataConfig, MeshConfig, OptimizerConfig, RunConfig
from huatuo_jax.errors import ConfigError
from huatuo_jax.models.presets import preset
from huatuo_jax.sharding import make_mesh
from huatuo_jax.training.optimizer import build_schedule
from huatuo_jax.training.step import build_eval, build_step, split_rows
from tests.support.two_processes import LENGTH, ROWS, made_up_rows

pytestmark = pytest.mark.usefixtures("compiled_fast")

SOURCES = ("first", "second")
CONFIG = RunConfig(
    name="step",
    model=preset("tiny-baichuan2-7b", num_layers=1),
    data=DataConfig(sequence_length=LENGTH),
    compute=ComputeConfig(dtype="float32", loss_chunks=4),
    optimizer=OptimizerConfig(learning_rate=1e-3, warmup=0.02),
    batch_size=ROWS,
)


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])


@pytest.fixture(scope="module")
def train(mesh):
    return build_step(CONFIG, mesh, total_steps=100, sources=SOURCES)


def hosted(tree):
    return jax.tree.map(np.asarray, tree)


def test_metrics_of_a_step(train, mesh):
    rows = made_up_rows(0)
    state = train.init(0)
    sums = hosted(build_eval(CONFIG, mesh, SOURCES)(state.params, rows))
    state, metrics = train.step(state, rows)
    metrics = hosted(metrics)
    targets = rows["targets"] >= 0
    assert metrics["tokens"] == (rows["segment_ids"] > 0).sum()
    assert metrics["target_tokens"] == targets.sum()
    assert list(metrics["source_target_tokens"]) == [(targets & (rows["source_ids"] == i)).sum() for i in range(2)]
    np.testing.assert_allclose(metrics["source_loss_sum"].sum() / targets.sum(), metrics["loss"], rtol=1e-5)
    np.testing.assert_allclose(metrics["source_loss_sum"], sums["source_loss_sum"], rtol=1e-5)
    assert metrics["learning_rate"] == 0 and metrics["skipped"] == 0 and metrics["grad_norm"] > 0
    assert all(value.dtype == np.float32 for value in metrics.values())


def test_mean_of_means_is_what_its_name_says(mesh):
    config = dataclasses.replace(CONFIG, loss="mean_of_means", rows_per_mean=4)
    train, evaluate = build_step(config, mesh, 100, SOURCES), build_eval(CONFIG, mesh, SOURCES)
    rows = made_up_rows(0)
    rows["targets"][:4, 5:] = -100
    state, means = train.init(0), []
    for start in range(0, ROWS, 4):
        sums = hosted(evaluate(state.params, {name: value[start : start + 4] for name, value in rows.items()}))
        means.append(sums["source_loss_sum"].sum() / sums["source_target_tokens"].sum())
    np.testing.assert_allclose(train.step(state, rows)[1]["loss"], np.mean(means), rtol=1e-5)


def test_z_loss_adds_its_weight_times_the_mean_square_of_the_largest_logit(mesh, train):
    config = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, z_loss_weight=0.5))
    rows = made_up_rows(0)
    with_z, without = (t.step(t.init(0), rows)[1] for t in (build_step(config, mesh, 100, SOURCES), train))
    from flax import nnx

    from huatuo_jax.models.decoder import split_decoder

    @jax.jit
    def logits_of(params):
        decoder = nnx.merge(split_decoder(CONFIG.model), params)
        return decoder.logits(decoder(rows["tokens"], rows["positions"], rows["segment_ids"]))

    logits = logits_of(train.init(0).params)
    expected = 0.5 * np.mean(np.asarray(logits).max(-1)[rows["segment_ids"] > 0] ** 2)
    np.testing.assert_allclose(with_z["loss"] - without["loss"], expected, rtol=1e-4)


def test_a_batch_with_non_finite_gradients_is_skipped(train):
    good, bad = made_up_rows(0), made_up_rows(1)
    bad["tokens"] = bad["tokens"].copy()
    bad["tokens"][0, 0] = 10**6  # an id beyond the vocabulary has no embedding: NaN
    state, _ = train.step(train.init(0), good)
    before = hosted((state.params, state.opt_state))
    for skipped in (1, 2):
        state, metrics = train.step(state, bad)
        assert metrics["skipped"] == 1 and not np.isfinite(metrics["grad_norm"])
        assert (state.step, state.updates, state.skipped_total, state.skipped_in_a_row) == (1 + skipped, 1, skipped, skipped)
    jax.tree.map(np.testing.assert_array_equal, hosted((state.params, state.opt_state)), before)
    state, metrics = train.step(state, good)
    assert (state.step, state.updates, state.skipped_total, state.skipped_in_a_row) == (4, 2, 2, 0)
    np.testing.assert_allclose(metrics["learning_rate"], build_schedule(CONFIG.optimizer, 100)(1))


def test_state_and_shardings_are_known_before_anything_is_allocated():
    mesh = make_mesh(MeshConfig(2, 2, 2))
    train = build_step(CONFIG, mesh, 100, SOURCES)
    state = train.init(0)
    described = jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), state)
    assert described == jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), train.abstract_state)
    query, moment = state.params["layers"]["attention"]["query"], state.opt_state[1].mu["layers"]["attention"]["query"]
    assert query.sharding == moment.sharding and query.addressable_shards[0].data.size * 4 == query.size


def test_the_step_is_compiled_once_and_its_state_donated(train):
    first = train.init(0)
    second, _ = train.step(first, made_up_rows(0))
    compiled = train.step._cache_size()
    train.step(second, made_up_rows(1))
    assert train.step._cache_size() == compiled
    assert jax.tree.leaves(first.params)[0].is_deleted()


def test_splitting_into_micro_batches_moves_no_rows():
    mesh = make_mesh(MeshConfig(1, 8, 1))
    rows = build_step(CONFIG, mesh, 1, SOURCES).batch_sharding
    placed = jax.device_put(jnp.arange(32 * 3).reshape(32, 3), rows)
    compiled = jax.jit(lambda x: split_rows(x, 4)).lower(placed).compile()
    assert not re.search(r"all-|collective-|permute", compiled.as_text())
    parts = compiled(placed)
    assert parts.shape == (4, 8, 3) and parts.addressable_shards[0].data.shape == (4, 1, 3)
    np.testing.assert_array_equal(parts[1, :, 0], np.arange(1, 32, 4) * 3)


def test_rows_that_do_not_divide_over_the_mesh_are_refused():
    with pytest.raises(ConfigError, match=r"4 rows do not divide over 8"):
        build_step(dataclasses.replace(CONFIG, accumulation=8), make_mesh(MeshConfig(1, 8, 1)), 1, SOURCES)


def test_chunks_that_do_not_divide_the_sequence_are_refused(mesh):
    with pytest.raises(ConfigError, match=r"sequence_length \(32\) is not a multiple of compute.loss_chunks \(5\)"):
        build_step(dataclasses.replace(CONFIG, compute=ComputeConfig(loss_chunks=5)), mesh, 1, SOURCES)


def test_the_7b_step_lowers_within_a_minute():
    config = RunConfig(name="7b", model=preset("baichuan2-7b"), batch_size=128, accumulation=4)
    start = time.perf_counter()
    lowered = build_step(config, make_mesh(MeshConfig()), 1000, SOURCES).lower()
    assert time.perf_counter() - start < 60
    assert lowered.in_tree is not None


def test_bfloat16_moments_and_compute(mesh):
    config = dataclasses.replace(
        CONFIG,
        compute=ComputeConfig(dtype="bfloat16", loss_chunks=4),
        optimizer=dataclasses.replace(CONFIG.optimizer, state_dtype="bfloat16", second_moment_dtype="bfloat16"),
    )
    train = build_step(config, mesh, 100, SOURCES)
    state, losses = train.init(0), []
    for _ in range(20):
        state, metrics = train.step(state, made_up_rows(0))
        losses.append(float(metrics["loss"]))
    assert {leaf.dtype for leaf in jax.tree.leaves((state.opt_state[1].mu, state.opt_state[1].nu))} == {jnp.dtype("bfloat16")}
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
    assert losses[-1] < losses[0] - 0.3
