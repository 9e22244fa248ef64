"""Runs every benchmark one after the other, on an otherwise idle machine, and prints what RESULTS.md holds.

    make bench

What must hold: machine and commit stand above the figures. The comparisons that need two commits or minutes of both cores
(`equivalence`, `token_stores`, `generate`, `hf_files`, `pods`, `unify_client`) are started by hand.
"""

import os
import platform
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
BENCHMARKS = (
    ("Order and plan", ["benchmarks.plan"]),
    ("Steps of collect", ["benchmarks.collect"]),
    ("Tokenising into the token dataset", ["benchmarks.tokenizing"]),
    ("Loader", ["benchmarks.loader"]),
    ("Train step against torch", ["benchmarks.train_step"]),
    ("Memory of the loss layer", ["benchmarks.loss_memory"]),
    ("Trace and lower the 7B step", ["benchmarks.lowering"]),
    ("Quantised weights of the quickstart's run, if it is there", ["benchmarks.quantization"]),
)


def main() -> int:
    """Prints a heading and the output of each; returns the number of failures."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True).stdout.strip()
    machine = platform.processor() or platform.machine()
    print(f"{machine}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}, commit {commit}")
    failures = 0
    for title, command in BENCHMARKS:
        print(f"\n## {title}\n", flush=True)
        environment = os.environ | {"JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS", "cpu")}
        # A process for each: one benchmark's threads and caches must not be the next one's, and a failure must not end the
        # others.
        failures += subprocess.run([sys.executable, "-m", *command], cwd=HERE.parent, env=environment).returncode != 0
    return failures


if __name__ == "__main__":
    sys.exit(main())
