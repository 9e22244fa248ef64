"""Ten steps on made-up rows: what `test_parallel_equals_serial.py` compares between layouts.

Run as a script it is one of two processes that share a mesh over loopback:

    python two_processes.py PORT PROCESS_ID ACCUMULATION…

Process 0 prints the losses of each accumulation as JSON.
"""

import json
import sys

import numpy as np

from tests.support.environment import use_devices

STEPS, ROWS, LENGTH, VOCABULARY = 10, 32, 32, 256


def made_up_rows(step: int) -> dict[str, np.ndarray]:
    """Two examples a row, the second one shorter by padding; a third of the targets is ignored."""
    rng = np.random.default_rng(step)
    tokens = rng.integers(1, VOCABULARY, (ROWS, LENGTH))
    index = np.broadcast_to(np.arange(LENGTH), (ROWS, LENGTH))
    first = rng.integers(8, 16, (ROWS, 1))
    padding = index >= rng.integers(20, LENGTH + 1, (ROWS, 1))
    segments = np.where(padding, 0, np.where(index < first, 1, 2))
    ignored = padding | (rng.random((ROWS, LENGTH)) < 0.33)
    rows = {
        "tokens": np.where(padding, 0, tokens),
        "targets": np.where(ignored, -100, (tokens * 7 + 3) % VOCABULARY),
        "segment_ids": segments,
        "positions": np.where(index < first, index, index - first),
        "source_ids": np.where(padding, -1, segments - 1),
    }
    return {name: value.astype(np.int32) for name, value in rows.items()}


def ten_losses(mesh_sizes: tuple[int, int, int], accumulation: int, devices: int, **fields) -> list[float]:
    """Losses of ten steps on the first `devices` devices."""
    import jax

    from huatuo_jax.config import ComputeConfig, DataConfig, MeshConfig, OptimizerConfig, RunConfig
    from huatuo_jax.models.presets import preset
    from huatuo_jax.sharding import make_mesh
    from huatuo_jax.training.step import build_step

    config = RunConfig(
        name="parallel",
        model=preset("tiny-baichuan2-7b", num_layers=2),
        data=DataConfig(sequence_length=LENGTH),
        compute=ComputeConfig(dtype="float32", loss_chunks=4),
        optimizer=OptimizerConfig(learning_rate=1e-3, schedule="constant", warmup=0.0),
        batch_size=ROWS,
        accumulation=accumulation,
        **fields,
    )
    mesh = make_mesh(MeshConfig(*mesh_sizes), jax.devices()[:devices])
    train = build_step(config, mesh, total_steps=STEPS, sources=("first", "second"))
    state, losses = train.init(0), []
    for step in range(STEPS):
        rows = made_up_rows(step)
        batch = {
            name: jax.make_array_from_callback(value.shape, train.batch_sharding, lambda index, value=value: value[index])
            for name, value in rows.items()
        }
        state, metrics = train.step(state, batch)
        losses.append(float(metrics["loss"]))
    return losses


def main() -> None:
    port, process_id, *accumulations = sys.argv[1:]
    use_devices(4)
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=int(process_id))
    assert jax.device_count() == 8 and len(jax.local_devices()) == 4
    losses = {accumulation: ten_losses((1, 4, 2), int(accumulation), devices=8) for accumulation in accumulations}
    if process_id == "0":
        print(json.dumps(losses))


if __name__ == "__main__":
    main()
