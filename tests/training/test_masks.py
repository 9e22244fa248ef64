"""A row that packs several examples trains on them as if each stood alone; in the original's mode it does not."""

import functools

import jax
import numpy as np
import pytest

from data_tools.planning.planner import make_plan
from huatuo_jax.config import ComputeConfig, DataConfig, MeshConfig, RunConfig, SourceMix
from huatuo_jax.data.rows import PlannedRows
from huatuo_jax.data.token_store import TokenDataset
from huatuo_jax.models.presets import preset
from huatuo_jax.sharding import make_mesh
from huatuo_jax.training.step import build_eval, build_step
from tests.support.token_folder import write_tokens

pytestmark = pytest.mark.usefixtures("compiled_fast")

LENGTH = 64
SOURCES = ("medical_books_cn", "sft")
EXAMPLES = [20, 31, 9]


def row_of(examples: list[tuple[np.ndarray, np.ndarray]], segmented: bool) -> dict[str, np.ndarray]:
    """One row [1, LENGTH] of (tokens, shifted targets) pairs, then padding."""
    tokens, targets, segments, positions = (np.zeros((1, LENGTH), np.int32) for _ in range(4))
    targets[:] = -100
    start = 0
    for number, (example, answers) in enumerate(examples, 1):
        here = (0, slice(start, start + len(example)))
        tokens[here], targets[here] = example, answers
        segments[here] = number if segmented else 1
        positions[here] = np.arange(len(example)) + (0 if segmented else start)
        start += len(example)
    source_ids = np.where(segments > 0, 0, -1).astype(np.int32)
    return {"tokens": tokens, "targets": targets, "segment_ids": segments, "positions": positions, "source_ids": source_ids}


def made_up_examples() -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    examples = []
    for length in EXAMPLES:
        tokens = rng.integers(1, 256, length).astype(np.int32)
        targets = np.append(tokens[1:], -100)
        targets[:3] = -100
        examples.append((tokens, targets.astype(np.int32)))
    return examples


@functools.cache
def loss_sums_of(model: str):
    """Function (row [1, LENGTH]) → (loss sum, target tokens) of each of two sources, for one set of weights."""
    config = RunConfig(
        name="masks",
        # Large weights, so that attention is sharp and a leak between examples could not hide.
        model=preset(model, initializer_range=0.3),
        data=DataConfig(sequence_length=LENGTH),
        compute=ComputeConfig(dtype="float32", loss_chunks=4),
        batch_size=1,
    )
    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    evaluate = build_eval(config, mesh, SOURCES)
    params = build_step(config, mesh, 1, SOURCES).init(0).params

    def loss_sums(row: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        sums = evaluate(params, row)
        return np.asarray(sums["source_loss_sum"], np.float64), np.asarray(sums["source_target_tokens"])

    return loss_sums


BOTH_MODELS = pytest.mark.parametrize("model", ["tiny-baichuan2-7b", "tiny-baichuan2-13b"], ids=["rope", "alibi"])


@BOTH_MODELS
def test_a_packed_row_is_the_sum_of_its_examples(model):
    loss_sums = loss_sums_of(model)

    def loss_sum(examples, segmented):
        losses, counted = loss_sums(row_of(examples, segmented))
        assert counted[0] == sum((targets >= 0).sum() for _, targets in examples)
        return losses[0]

    examples = made_up_examples()
    alone = sum(loss_sum([example], segmented=True) for example in examples)
    np.testing.assert_allclose(loss_sum(examples, segmented=True), alone, rtol=1e-5)
    assert abs(loss_sum(examples, segmented=False) - alone) > 0.01 * alone


def made_up_dialogues(count: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Tokens and unshifted targets as the dialogue encoder gives them: a question that is ignored, an answer that is not."""
    rng = np.random.default_rng(seed)
    dialogues = []
    for length in rng.integers(6, 40, count):
        tokens = rng.integers(1, 256, length).astype(np.int32)
        learned = np.arange(length) >= rng.integers(2, length - 2)
        dialogues.append((tokens, np.where(learned, tokens, -100).astype(np.int32)))
    return dialogues


@BOTH_MODELS
def test_planned_rows_are_the_sum_of_their_records(model, tmp_path):
    """From the token dataset through packing, plan and rows to the loss: per source, and not so in faithful mode."""
    records = {SOURCES[0]: made_up_dialogues(9, seed=1), SOURCES[1]: made_up_dialogues(7, seed=2)}
    dataset = TokenDataset.open(write_tokens(tmp_path / "tokens", records))
    loss_sums = loss_sums_of(model)

    def planned(packing: str) -> tuple[np.ndarray, np.ndarray]:
        mixture = {SOURCES[0]: SourceMix(4.0), SOURCES[1]: SourceMix(1.0)}
        plan = make_plan(dataset, DataConfig(mixture=mixture, sequence_length=LENGTH, packing=packing))
        assert len(plan) < 16 and max(len(plan.docs(i)) for i in range(len(plan))) >= 3
        rows = PlannedRows(plan, dataset)
        sums = [loss_sums({name: array[None] for name, array in rows[i].items()}) for i in range(len(plan))]
        return sum(losses for losses, _ in sums), sum(counted for _, counted in sums)

    def alone(source: str) -> tuple[float, int]:
        sums = [
            loss_sums(row_of([(tokens, np.append(targets[1:], -100))], segmented=True)) for tokens, targets in records[source]
        ]
        return sum(losses[0] for losses, _ in sums), sum(counted[0] for _, counted in sums)

    expected, targets = (np.array(values) for values in zip(*map(alone, SOURCES), strict=True))
    losses, counted = planned("first_fit")
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    np.testing.assert_array_equal(counted, targets)
    losses, counted = planned("faithful")
    np.testing.assert_array_equal(counted, targets)
    assert np.all(np.abs(losses - expected) > 1e-3 * expected)
