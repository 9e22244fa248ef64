"""Compiles the real train step of a config for a TPU topology on this machine, no TPU needed: seconds, attention, bytes a device.

    python -m benchmarks.pods --config configs/huatuo2_7b.py --topology v5p:2x4x4

Needs the `tpu` extra (libtpu). What must hold: nothing is run and no parameter is allocated. Next to read:
`huatuo_jax/training/step.py`, `huatuo_jax/models/attention_splash.py`.
"""

import argparse
import os
import time
from typing import Any

# Before jax is imported. Without the second, libtpu waits for a metadata server that only a TPU machine has.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")

import jax
from jax.experimental import topologies

from huatuo_jax.config import RunConfig
from huatuo_jax.config_files import load_config
from huatuo_jax.models.attention import resolve_attention
from huatuo_jax.sharding import make_mesh
from huatuo_jax.training.step import build_step

GIB = 1 << 30


def compile_for(config: RunConfig, topology: str) -> dict[str, Any]:
    """Compiles one step of `config` for `topology`; returns seconds and bytes per device as the compiler gives them."""
    devices: list[Any] = topologies.get_topology_desc(topology, platform="tpu").devices
    mesh = make_mesh(config.mesh, devices)
    # Sources change the step by their metrics only, but they are part of the program that training compiles.
    sources = tuple(config.data.mixture) or ("data",)
    started = time.perf_counter()
    lowered = build_step(config, mesh, total_steps=10_000, sources=sources).lower()
    lowered_at = time.perf_counter()
    memory = lowered.compile().memory_analysis()
    assert memory is not None
    return {
        "config": config.name,
        "topology": topology,
        "chips": len(devices),
        "device": devices[0].device_kind,
        "mesh": dict(mesh.shape),
        "attention": resolve_attention(
            config.compute.attention, config.model, "tpu", needs_segments=config.data.packing == "first_fit"
        ),
        "lower_seconds": lowered_at - started,
        "compile_seconds": time.perf_counter() - lowered_at,
        "state_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        # The sum and not the compiler's own peak, which is 2.6 to 2.9 GiB below it on TPUs. Aliased bytes are the donated state.
        "peak_bytes": memory.argument_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes,
    }


def main() -> None:
    """Prints one block per config."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", nargs="+", default=["configs/huatuo2_7b.py", "configs/huatuo2_13b.py"])
    parser.add_argument("--topology", default="v5p:2x4x4", help="libtpu's name (default: v5p:2x4x4, 32 chips)")
    args = parser.parse_args()
    print(f"jax {jax.__version__}")
    for path in args.config:
        report = compile_for(load_config(path), args.topology)
        print(
            f"{report['config']} on {report['chips']} × {report['device']} {report['mesh']}, attention {report['attention']}: "
            f"lowered in {report['lower_seconds']:.0f} s, compiled in {report['compile_seconds']:.0f} s; per device "
            f"state and batch {report['state_bytes'] / GIB:.2f} GiB, temporary {report['temporary_bytes'] / GIB:.2f} GiB, "
            f"peak {report['peak_bytes'] / GIB:.2f} GiB"
        )


if __name__ == "__main__":
    main()
