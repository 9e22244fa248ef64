"""`huatuo-data build`: unified datasets become a token dataset, shard by shard, in parallel processes.

On the way: after `data_tools/records` (the unified dataset), before `huatuo-data plan`. Next to read: `shards.py` (how a build is
cut into shards), `huatuo_jax/data/token_store.py` (the format of what is written). What must hold: an interrupted build continues
to the same bytes (a shard is renamed when it is whole, its marker follows, the manifest comes last), whatever the workers are.
"""

import io
import json
import shutil
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.records.unified import UnifiedDataset
from data_tools.tokens.shards import ShardTask, plan_shards
from huatuo_jax.config import require
from huatuo_jax.config_files import differences, listed
from huatuo_jax.data.dialogue import Examples, Record, encode_records
from huatuo_jax.data.formats import DialogueFormat, get_format
from huatuo_jax.data.token_store import SCHEMA, SPLITS, STATISTICS, write_shard
from huatuo_jax.data.tokenizers import Tokenizer, copy_tokenizer, load_tokenizer
from huatuo_jax.errors import ConfigError, DataError
from huatuo_jax.io.files import read_json, write_bytes, write_json, write_npy, written_aside
from huatuo_jax.io.jsonl import write_lines
from huatuo_jax.io.tasks import advance, run_tasks

# So many records go through the tokenizer in one call: enough to make numpy's calls cheap, and little memory even of books.
BATCH_RECORDS = 1024
BATCH_BYTES = 4 << 20

OnDone = Callable[[int], None]


def _ignore(count: int) -> None:
    pass


@dataclass(frozen=True)
class BuildRequest:
    """What a build is asked for.

    Attributes:
      unified: folders of unified datasets. tokenizer: path. out: folder of the token dataset.
      holdout: records held out per source. max_len: longer records are cut (and counted).
      workers: processes; they do not change what is written.
    """

    unified: tuple[Path, ...]
    tokenizer: Path
    out: Path
    dialogue_format: str = "huatuo"
    holdout: int = 0
    max_len: int = 1_000_000
    workers: int = 1

    def __post_init__(self) -> None:
        require(len(self.unified) >= 1, "no unified dataset is given")
        folders = [folder.resolve() for folder in self.unified]
        require(len(set(folders)) == len(folders), "a unified dataset is given twice: its records would be doubled")
        require(self.holdout >= 0, f"--holdout is {self.holdout}; it must be at least 0")
        require(self.max_len >= 2, f"--max-length is {self.max_len}; it must be at least 2")
        require(self.workers >= 1, f"--workers is {self.workers}; it must be at least 1")


def build(request: BuildRequest, on_start: OnDone = _ignore, on_done: OnDone = _ignore) -> dict[str, Any]:
    """Writes the token dataset, or continues an interrupted build of the same settings, or finds that there is nothing to do.

    Args:
      on_start: called once, when the workers run, with the number of records to tokenise.
      on_done: called with the number done so far.

    Returns:
      sources (as in the manifest), new_records (tokenised by this call), seconds, nothing_to_do.

    Raises:
      ConfigError: impossible settings, or other settings than those of the build in `out`.
      DataError: a unified dataset is missing or torn; every record of a source is rejected; a worker died.
    """
    began = time.monotonic()
    out = request.out
    datasets = [UnifiedDataset(folder) for folder in request.unified]
    tokenizer, dialogue_format = load_tokenizer(request.tokenizer), get_format(request.dialogue_format)
    settings = {
        "schema": SCHEMA,
        "unified": [dataset.manifest["content"] for dataset in datasets],
        "tokenizer": tokenizer.fingerprint,
        "template": f"{dialogue_format.name} {dialogue_format.version}",
        "max_len": request.max_len,
        "holdout": request.holdout,
    }
    # Uncut and without a mixture: neither sequence length nor priorities are settings of a build, so plans are free to change
    # them.
    _check_settings(out, settings)
    if (out / "manifest.json").exists():
        dialogue_format.check(tokenizer)
        manifest = read_json(out / "manifest.json")
        return {"sources": manifest["sources"], "new_records": 0, "seconds": 0.0, "nothing_to_do": True}
    tasks = plan_shards(datasets, request.holdout)
    resumed = (out / "build.json").exists()
    write_json(out / "build.json", settings)
    # The largest first, so that no worker is left alone with it at the end.
    open_tasks = sorted((task for task in tasks if _read_marker(task, out) is None), key=lambda task: -task.size)
    new_records = sum(len(task.records) for task in open_tasks)

    def check() -> None:
        # The check goes through the whole vocabulary: while the workers start, that costs no time.
        dialogue_format.check(tokenizer)
        on_start(new_records)

    builder = _ShardBuilder(request.unified, tokenizer, dialogue_format, request.max_len, out)
    try:
        run_tasks(builder.build, open_tasks, request.workers, on_progress=on_done, meanwhile=check)
    except ConfigError:
        # The format does not work with the tokenizer: leave no trace of a build that should not have begun.
        if not resumed:
            _remove_build(tasks, out)
        raise
    manifest = {
        "schema": SCHEMA,
        "tokenizer": {
            "path": copy_tokenizer(tokenizer.path, out),
            "fingerprint": tokenizer.fingerprint,
            "vocab_size": tokenizer.vocab_size,
            "eos_id": tokenizer.eos_id,
        },
        "template": dialogue_format.name,
        "template_version": dialogue_format.version,
        "max_len": request.max_len,
        "holdout": request.holdout,
        "unified": settings["unified"],
        "sources": _finish_sources(tasks, out),
    }
    # Nothing that a killed worker left aside belongs to a finished dataset, nor do the markers.
    for left_by_a_kill in out.glob("*/.*.tmp"):
        left_by_a_kill.unlink(missing_ok=True)
    write_json(out / "manifest.json", manifest)
    for source in manifest["sources"]:
        shutil.rmtree(out / source / ".done", ignore_errors=True)
    seconds = time.monotonic() - began
    return {"sources": manifest["sources"], "new_records": new_records, "seconds": seconds, "nothing_to_do": False}


def _check_settings(out: Path, settings: dict[str, Any]) -> None:
    """Refuses to write into a folder that holds anything but a build of the same settings."""
    if not (out / "build.json").exists():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise ConfigError(f"{out} is not empty and holds no token dataset; give another --out")
        return
    if changed := differences(read_json(out / "build.json"), settings):
        raise ConfigError(
            f"{out} belongs to a build with other settings ({listed(changed)}); give another --out, or delete it to start over"
        )


def _remove_build(tasks: Sequence[ShardTask], out: Path) -> None:
    """Leaves `out` as it was before the build."""
    for source in {task.source for task in tasks}:
        shutil.rmtree(out / source, ignore_errors=True)
    (out / "build.json").unlink(missing_ok=True)
    if not any(out.iterdir()):
        out.rmdir()


@dataclass(frozen=True)
class _ShardBuilder:
    """What a worker process holds: it gets a shard's task and writes its file and marker."""

    unified: tuple[Path, ...]
    tokenizer: Tokenizer
    dialogue_format: DialogueFormat
    max_len: int
    out: Path

    @cached_property
    def datasets(self) -> list[UnifiedDataset]:
        """Opened by each worker when its first shard comes."""
        return [UnifiedDataset(folder) for folder in self.unified]

    def build(self, task: ShardTask) -> None:
        """Writes the shard, then its marker."""
        rejected: list[dict[str, Any]] = []
        cut, cut_tokens = 0, 0

        def encoded() -> Iterator[Examples]:
            nonlocal cut, cut_tokens
            for records in self._batches(task.records):
                examples, errors = encode_records(records, self.tokenizer, self.dialogue_format)
                for place, error in errors.items():
                    rejected.append({"source": records[place].source, "id": records[place].id, "reason": str(error)})
                beyond = np.maximum(examples.lengths - self.max_len, 0)
                cut, cut_tokens = cut + int(np.count_nonzero(beyond)), cut_tokens + int(beyond.sum())
                yield examples.cut(self.max_len)

        # First the shard, then the marker: a kill between the two costs one shard, and never leaves a marker without its shard.
        with written_aside(task.path(self.out)) as aside:
            statistics = write_shard(aside, encoded(), self.tokenizer.eos_id)
            written = aside.stat().st_size
        summary = {"bytes": written, "rejected": rejected, "cut": cut, "cut_tokens": cut_tokens}
        marker = io.BytesIO()
        np.savez(marker, summary=np.array(json.dumps(summary)), **statistics)
        write_bytes(task.marker(self.out), marker.getvalue())

    def _batches(self, indices: np.ndarray) -> Iterator[list[Record]]:
        """The records in batches, bounded in number and in bytes."""
        # A task's indices count through all unified datasets, in the order of the request.
        starts = np.cumsum([0, *map(len, self.datasets)])
        owners = np.searchsorted(starts, indices, side="right") - 1
        for owner in np.unique(owners).tolist():
            dataset = self.datasets[owner]
            records = indices[owners == owner] - starts[owner]
            filled = np.cumsum(dataset.sizes[records], dtype=np.int64)
            start = 0
            while start < len(records):
                before = filled[start - 1] if start else 0
                fitting = int(np.searchsorted(filled, before + BATCH_BYTES, side="right"))
                batch = records[start : start + min(BATCH_RECORDS, max(fitting - start, 1))]
                yield dataset.read(batch)
                start += len(batch)
                advance(len(batch))


def _read_marker(task: ShardTask, out: Path) -> dict[str, Any] | None:
    """The summary and statistics of a finished shard, or None: not done, not as the marker says, or a torn marker."""
    marker, path = task.marker(out), task.path(out)
    if not marker.exists():
        return None
    try:
        with np.load(marker, allow_pickle=False) as arrays:
            done = {**json.loads(str(arrays["summary"])), **{name: arrays[name] for name in STATISTICS}}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
        return None
    # The shard itself may have been torn since, by a full disk or by hand.
    return done if path.exists() and path.stat().st_size == done["bytes"] else None


def _finish_sources(tasks: Sequence[ShardTask], out: Path) -> dict[str, Any]:
    """Writes the sizes and `rejected.jsonl`; returns the manifest's entry of each source.

    A rejected record cannot be expressed, so it has no tokens to count: every token of the other records is in `train.tokens`,
    `holdout.tokens` or `cut_tokens`.
    """
    sources: dict[str, Any] = {}
    with write_lines(out / "rejected.jsonl") as rejected_file:
        for source in dict.fromkeys(task.source for task in tasks):
            shards = [(task, _done(task, out)) for task in tasks if task.source == source]
            entry: dict[str, Any] = {}
            for split in SPLITS:
                of_split = [done for task, done in shards if task.split == split]
                arrays = {
                    name: np.concatenate([np.zeros(0, np.int32), *(done[name] for done in of_split)]) for name in STATISTICS
                }
                for name, array in arrays.items() if of_split else ():
                    write_npy(out / source / f"{split}.{name}.npy", array)
                entry[split] = {
                    "records": len(arrays["lengths"]),
                    "tokens": int(arrays["lengths"].sum(dtype=np.int64)),
                    "target_tokens": int(arrays["target_counts"].sum(dtype=np.int64)),
                    "crc32": {name: zlib.crc32(array.data) for name, array in arrays.items()},
                }
            rejected = [one for _, done in shards for one in done["rejected"]]
            if not entry["train"]["records"]:
                raise DataError(
                    f"every training record of {source} is rejected (the first, {rejected[0]['id']}: {rejected[0]['reason']}); "
                    "choose another dialogue format or leave the source out"
                )
            for line in rejected:
                rejected_file.write(line)
            sources[source] = entry | {
                "rejected": len(rejected),
                "cut": sum(done["cut"] for _, done in shards),
                "cut_tokens": sum(done["cut_tokens"] for _, done in shards),
                "shards": [
                    {
                        "file": task.path(out).name,
                        "split": task.split,
                        "records": len(done["lengths"]),
                        "tokens": int(done["lengths"].sum(dtype=np.int64)),
                    }
                    for task, done in shards
                ],
            }
    return sources


def _done(task: ShardTask, out: Path) -> dict[str, Any]:
    done = _read_marker(task, out)
    if done is None:
        raise DataError(f"{task.path(out)} disappeared during the build; run the same command again")
    return done
