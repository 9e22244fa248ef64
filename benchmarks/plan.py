"""Order and whole plan of a run of the paper's size, and of 100 M records: seconds and peak memory, nothing but sizes at hand.

    python -m benchmarks.plan [--records 5_680_000 100_000_000] [--packing first_fit]

Each size runs in a process of its own, so that its peak memory is its own. Lengths are log-normal (median 300 tokens, some beyond
the cut at 4096); the mixture is the paper's, scaled. "plan" draws the order again, packs, counts and writes the folder. CPU
seconds are beside wall seconds, because both programs use one core and other work on the machine stretches only the latter. What
must hold: it is the planner of `huatuo-data plan`, on sizes alone. Next to read: `huatuo_jax/data/priority.py`, `packing.py`.
"""

import argparse
import multiprocessing
import resource
import tempfile
import time
from typing import Any, cast

import numpy as np
from rich.console import Console
from rich.table import Table

from data_tools.planning.planner import make_plan
from huatuo_jax.config import DataConfig
from huatuo_jax.data.packing import Packing
from huatuo_jax.data.priority import draw_order
from huatuo_jax.data.token_store import TokenDataset
from huatuo_jax.mixtures import PAPER, PAPER_RECORDS

PROMPT_TOKENS = 20


class Sizes:
    """The sizes of a token dataset that is not there: one question and one answer a record."""

    manifest_hash = "sizes"

    def __init__(self, counts: dict[str, int]):
        self.counts, self.sources = counts, tuple(counts)
        rng = np.random.default_rng(0)
        self._lengths = {source: _lengths(rng, count) for source, count in counts.items()}

    def count(self, source: str) -> int:
        """Records of a source."""
        return self.counts[source]

    def offsets(self, split: str) -> np.ndarray:
        """First document of each source."""
        return np.cumsum([0, *self.counts.values()])

    def lengths(self, source: str) -> np.ndarray:
        """Tokens of each record."""
        return self._lengths[source]

    def first_targets(self, source: str) -> np.ndarray:
        """Where each answer begins."""
        return np.full(self.counts[source], PROMPT_TOKENS, np.int32)

    def target_counts(self, source: str) -> np.ndarray:
        """Tokens of each answer."""
        return self._lengths[source] - PROMPT_TOKENS


def _lengths(rng: np.random.Generator, count: int) -> np.ndarray:
    out = np.empty(count, np.int32)
    # In blocks: 100 M float64 at once would be counted among the planner's peak.
    for start in range(0, count, 1 << 20):
        block = out[start : start + (1 << 20)]
        block[:] = rng.lognormal(5.7, 0.7, len(block)) + PROMPT_TOKENS
    return out


def measure(draws: int, packing: Packing) -> dict[str, Any]:
    """Times order and plan of about `draws` draws of the paper's mixture."""
    scale = draws / sum(PAPER_RECORDS[source] * mix.epochs for source, mix in PAPER.items())
    dataset = Sizes({source: int(count * scale) for source, count in PAPER_RECORDS.items()})
    wall, cpu = time.perf_counter(), time.process_time()
    order = draw_order(dataset.counts, PAPER, seed=42)
    out: dict[str, Any] = {"draws": len(order), "order": (time.perf_counter() - wall, time.process_time() - cpu)}
    del order  # `make_plan` draws its own
    wall, cpu = time.perf_counter(), time.process_time()
    plan = make_plan(cast(TokenDataset, dataset), DataConfig(mixture=PAPER, packing=packing))
    with tempfile.TemporaryDirectory() as folder:
        plan.save(folder)
    out["plan"] = (time.perf_counter() - wall, time.process_time() - cpu)
    out["fill"] = plan.manifest["statistics"]["fill"]
    out["peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return out


def main() -> None:
    """Prints one line a size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, nargs="+", default=[5_680_000, 100_000_000])
    parser.add_argument("--packing", choices=["first_fit", "faithful"], default="first_fit")
    args = parser.parse_args()
    table = Table("draws", "order s (CPU)", "plan s (CPU)", "fill", "peak GiB", title=args.packing)
    for draws in args.records:
        # Spawned: a fork would begin with this process's memory.
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            r = pool.apply(measure, (draws, args.packing))
        seconds = [f"{wall:.1f} ({cpu:.1f})" for wall, cpu in (r["order"], r["plan"])]
        table.add_row(f"{r['draws']:,}", *seconds, f"{r['fill']:.4f}", f"{r['peak_gib']:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
