"""Three token stores in turn: protobuf records of an older commit, raw bytes in ArrayRecord, flat arrays.

    git worktree add /tmp/before bb2b1de
    python -m benchmarks.token_stores --before /tmp/before [--rounds 5] [--workers 2]

Each store tokenises sft_zh once and reads rows of 4096 through the loader, in a process of its own and in turn, so that other
work on the machine meets all three. Processor time is beside wall time: it hardly changes under load. What must hold: all
three hold the same tokens and codes. Why the flat store stays is
in RESULTS.md; next to read: `huatuo_jax/data/token_store.py`.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

STORES = ("protobuf records", "ArrayRecord of bytes", "flat arrays")
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def use_array_record() -> None:
    """Puts the records' bytes (int32 tokens, uint8 codes) into ArrayRecord files, which take the place of the flat ones."""
    import numpy as np
    from array_record.python import array_record_module as array_record

    from data_tools.tokens import build
    from huatuo_jax.data import token_store
    from huatuo_jax.data.dialogue import Examples

    def write_shard(path: Path, batches: Iterable[Examples], eos_id: int) -> dict[str, np.ndarray]:
        sizes = [np.zeros((3, 0), np.int32)]
        writer = array_record.ArrayRecordWriter(os.fspath(path), "group_size:4,snappy")
        for examples in batches:
            sizes.append(np.stack(token_store._sizes(examples)))
            for tokens, targets in examples.split():
                # Five bytes a token: the id and its code are taken apart again, as a record of bytes would hold them.
                words = token_store.pack_words(tokens, targets, eos_id)
                writer.write((words & (2**30 - 1)).tobytes() + (words >> 30).astype(np.uint8).tobytes())
        writer.close()
        # ArrayRecord has checksums of its own.
        arrays = [*np.concatenate(sizes, axis=1), np.zeros(sum(a.shape[1] for a in sizes), np.int32)]
        return dict(zip(token_store.STATISTICS, arrays, strict=True))

    class Words:
        def __init__(self, dataset: token_store.TokenDataset, split: str) -> None:
            shards = [
                (s, shard)
                for s in dataset.sources
                for shard in dataset.manifest["sources"][s]["shards"]
                if shard["split"] == split
            ]
            self.paths = [os.fspath(dataset.path / source / shard["file"]) for source, shard in shards]
            self.starts = np.cumsum([0, *(shard["records"] for _, shard in shards)])
            self.readers: list[Any] = [None] * len(shards)

        def read(self, doc_ids: np.ndarray, limit: int | None) -> tuple[np.ndarray, np.ndarray]:
            shards = np.searchsorted(self.starts, doc_ids, side="right") - 1
            contents: list[bytes] = [b""] * len(doc_ids)
            for shard in np.unique(shards).tolist():
                if self.readers[shard] is None:
                    self.readers[shard] = array_record.ArrayRecordReader(
                        self.paths[shard], "readahead_buffer_size:0", file_reader_buffer_size=32768
                    )
                places = np.flatnonzero(shards == shard)
                read = self.readers[shard].read((doc_ids[places] - self.starts[shard]).tolist())
                for place, content in zip(places.tolist(), read, strict=True):
                    contents[place] = content
            lengths = np.array([len(content) // 5 for content in contents], np.int64)
            kept = lengths if limit is None else np.minimum(lengths, limit)
            pairs = list(zip(contents, lengths.tolist(), kept.tolist(), strict=True))
            tokens = np.concatenate([np.frombuffer(content, "<u4", count) for content, _, count in pairs])
            codes = np.concatenate([np.frombuffer(content, np.uint8, count, 4 * length) for content, length, count in pairs])
            return tokens | (codes.astype(np.uint32) << 30), kept

    # In place of the real ones, so that everything around the store (build, loader) is the same code.
    build.write_shard, token_store._Words = write_shard, Words  # type: ignore[assignment,misc]


def measure(store: str, folder: Path, workers: int) -> dict[str, float]:
    """Builds and reads with one store, in this process."""
    from data_tools.tokens.build import BuildRequest, build

    if store == STORES[1]:
        use_array_record()
    figures: dict[str, float] = {}
    tokens = folder / f"tokens-{os.getpid()}"
    started, used = time.perf_counter(), processor_seconds()
    report = build(BuildRequest((folder / "unified",), SHARED / "tokenizers" / "baichuan2.model", tokens, workers=workers))
    figures["build_s"], figures["build_cpu_s"] = time.perf_counter() - started, processor_seconds() - used
    # Only now: jax starts threads, and a build that runs beside them cannot fork its workers.
    import jax

    from data_tools.planning.planner import make_plan
    from huatuo_jax.config import DataConfig, MeshConfig, SourceMix
    from huatuo_jax.data import rows
    from huatuo_jax.data.loader import make_loader
    from huatuo_jax.data.token_store import TokenDataset
    from huatuo_jax.sharding import batch_sharding, make_mesh

    (source,) = report["sources"]
    figures["tokens"] = report["sources"][source]["train"]["tokens"]
    shards = [path for path in (tokens / source).iterdir() if "train" in path.name and path.suffix != ".npy"]
    figures["bytes"] = sum(path.stat().st_size for path in shards)
    dataset = TokenDataset.open(tokens)
    plan = make_plan(dataset, DataConfig(mixture={source: SourceMix(epochs=12)}))
    planned = (getattr(rows, "PlannedRows", None) or rows.RowSource)(plan, dataset)  # type: ignore[attr-defined]
    with make_loader(planned, 64, batch_sharding(make_mesh(MeshConfig()))) as batches:
        jax.block_until_ready(next(batches))
        started, used, count = time.perf_counter(), time.process_time(), 0
        for batch in batches:
            jax.block_until_ready(batch)
            count += 64
        figures["rows_per_s"] = count / (time.perf_counter() - started)
        figures["us_per_row"] = (time.process_time() - used) / count * 1e6
    return figures


def processor_seconds() -> float:
    """Of this process and its finished children."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def main() -> None:
    """Prints one line a store: medians over the rounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", required=True, help="a worktree of a commit with protobuf records")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print("RESULT" + json.dumps(measure(args.child[0], Path(args.child[1]), args.workers)))
        return
    from data_tools.records.importing import import_files

    results: dict[str, list[dict[str, float]]] = {store: [] for store in STORES}
    with tempfile.TemporaryDirectory() as folder:
        import_files([SHARED / "sft" / "sft_zh.jsonl.xz"], Path(folder) / "unified")
        for _ in range(args.rounds):
            for store in STORES:
                code = args.before if store == STORES[0] else str(Path(__file__).parents[1])
                command = [sys.executable, __file__, "--before", "-", "--workers", str(args.workers), "--child", store, folder]
                env = {**os.environ, "PYTHONPATH": code, "OPENBLAS_NUM_THREADS": "1"}
                # The older commit reads its own code from its worktree, by PYTHONPATH.
                child = subprocess.run(command, env=env, cwd=code, stdout=subprocess.PIPE, text=True)
                results[store].append(json.loads(child.stdout.split("RESULT")[1]))
    for store, figures in results.items():
        middle = {name: statistics.median(one[name] for one in figures) for name in figures[0]}
        print(
            f"{store:22} build {middle['tokens'] / middle['build_s']:12,.0f} tokens/s, {middle['build_cpu_s']:.2f} CPU seconds; "
            f"loader {middle['rows_per_s']:8,.0f} rows/s, {middle['us_per_row']:6,.0f} µs of processor a row; "
            f"{middle['bytes'] / middle['tokens']:.2f} bytes a token"
        )


if __name__ == "__main__":
    main()
