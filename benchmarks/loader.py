"""Rows of the loader a second, on this machine's devices: how far the input lies from being what a training step waits for.

    python -m benchmarks.loader [PLAN TOKENS] [--batch-size 64] [--steps 40] [--threads 8]

Without a plan, dialogues are tokenised and planned at 4096 first. The consumer does nothing but wait for each batch. The first
batch is counted apart: it opens the files. What must hold: rows come through the loader of training and end on the devices. Next
to read: `huatuo_jax/data/loader.py`.
"""

import argparse
import tempfile
import time
from pathlib import Path

import jax
from rich.console import Console
from rich.table import Table

from benchmarks.corpora import planned_dialogues
from huatuo_jax.config import MeshConfig
from huatuo_jax.data.loader import make_loader
from huatuo_jax.data.plan import Plan
from huatuo_jax.data.rows import PlannedRows
from huatuo_jax.data.token_store import TokenDataset
from huatuo_jax.sharding import batch_sharding, make_mesh


def main() -> None:
    """Prints rows and tokens a second."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", nargs="?")
    parser.add_argument("tokens", nargs="?")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--threads", type=int, default=8)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        plan, tokens = (args.plan, args.tokens) if args.tokens else planned_dialogues(Path(folder))
        measure(PlannedRows(Plan.load(plan), TokenDataset.open(tokens)), args)


def measure(rows: PlannedRows, args: argparse.Namespace) -> None:
    """Reads batches and prints the table."""
    steps = min(args.steps, len(rows) // args.batch_size)
    # With the sharding of training, so that what is measured includes the way onto the devices.
    sharding = batch_sharding(make_mesh(MeshConfig()))
    started = time.perf_counter()
    with make_loader(rows, args.batch_size, sharding, num_steps=steps, threads=args.threads) as loader:
        # Waited for, because a batch is handed out while its copy to the device still runs.
        jax.block_until_ready(next(loader))
        first = time.perf_counter() - started
        started = time.perf_counter()
        for batch in loader:
            jax.block_until_ready(batch)
        seconds = time.perf_counter() - started
    # Without the first batch, which opened the files.
    done = (steps - 1) * args.batch_size
    table = Table("rows of", "batch", "threads", "first batch s", "rows/s", "tokens/s", title=f"{jax.device_count()} devices")
    speed = done / seconds
    cells = (f"{first:.2f}", f"{speed:,.0f}", f"{speed * rows.sequence_length:,.0f}")
    table.add_row(f"{rows.sequence_length:,}", f"{args.batch_size}", f"{args.threads}", *cells)
    Console().print(table)


if __name__ == "__main__":
    main()
