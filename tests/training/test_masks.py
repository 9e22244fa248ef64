"""A row that packs several examples trains on them as if each stood alone; in the original's mode it does not."""

import jax
import numpy as np
import pytest

from huatuo_jax.config import ComputeConfig, DataConfig, MeshConfig, RunConfig
from huatuo_jax.models.presets import preset
from huatuo_jax.sharding import make_mesh
from huatuo_jax.training.step import build_eval, build_step

LENGTH = 64
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


@pytest.mark.parametrize("model", ["tiny-baichuan2-7b", "tiny-baichuan2-13b"], ids=["rope", "alibi"])
def test_a_packed_row_is_the_sum_of_its_examples(model):
    config = RunConfig(
        name="masks",
        # Large weights, so that attention is sharp and a leak between examples could not hide.
        model=preset(model, initializer_range=0.3),
        data=DataConfig(sequence_length=LENGTH),
        compute=ComputeConfig(dtype="float32", loss_chunks=4),
        batch_size=1,
    )
    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    evaluate = build_eval(config, mesh, ("only",))
    params = build_step(config, mesh, 1, ("only",)).init(0).params

    def loss_sum(examples, segmented):
        sums = evaluate(params, row_of(examples, segmented))
        assert sums["source_target_tokens"][0] == sum((targets >= 0).sum() for _, targets in examples)
        return float(sums["source_loss_sum"][0])

    examples = made_up_examples()
    alone = sum(loss_sum([example], segmented=True) for example in examples)
    np.testing.assert_allclose(loss_sum(examples, segmented=True), alone, rtol=1e-5)
    assert abs(loss_sum(examples, segmented=False) - alone) > 0.01 * alone
