"""Seconds to build, trace and lower the full-size training step for fake devices, without allocating a parameter.

    python -m benchmarks.lowering [--model baichuan2-7b] [--devices 8] [--compile]

What a user waits for before the compiler begins. What must hold: it is the step of training, at its real size. Next to read:
`huatuo_jax/training/step.py`.
"""

import argparse
import os
import resource
import time


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="baichuan2-7b")
    parser.add_argument("--devices", type=int, default=8)
    parser.add_argument("--compile", action="store_true", help="compile too, and print the bytes per device")
    args = parser.parse_args()
    # Before jax is imported, hence the imports below: the number of devices is fixed when its backend starts.
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={args.devices}"

    import jax
    from rich.console import Console
    from rich.table import Table

    from huatuo_jax.config import MeshConfig, RunConfig
    from huatuo_jax.models.presets import preset
    from huatuo_jax.sharding import make_mesh
    from huatuo_jax.training.step import build_step

    config = RunConfig(name="lowering", model=preset(args.model), batch_size=128, accumulation=4)
    mesh = make_mesh(MeshConfig())
    # A 7B's state would be 84 GiB: memory that grows by more than some hundred MiB means that something was allocated.
    before, start = _peak_mebibytes(), time.perf_counter()
    train = build_step(config, mesh, total_steps=1000, sources=("a", "b"))
    built = time.perf_counter()
    lowered = train.lower()  # traces too
    done = time.perf_counter()
    parameters = sum(leaf.size for leaf in jax.tree.leaves(train.abstract_state.params))
    table = Table("what", "value", title=f"{args.model}, {parameters / 1e9:.2f} G parameters, {args.devices} devices")
    table.add_row("build", f"{built - start:.1f} s")
    table.add_row("trace and lower", f"{done - built:.1f} s")
    table.add_row("host memory grew by", f"{_peak_mebibytes() - before:,.0f} MiB")
    if args.compile:
        memory = lowered.compile().memory_analysis()
        assert memory is not None
        table.add_row("compile", f"{time.perf_counter() - done:.1f} s")
        table.add_row("state and batch per device", f"{memory.argument_size_in_bytes / 2**30:.2f} GiB")
        table.add_row("temporary per device", f"{memory.temp_size_in_bytes / 2**30:.2f} GiB")
    Console().print(table)


def _peak_mebibytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
