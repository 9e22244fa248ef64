"""Unified datasets in, token dataset out: shards in parallel processes, resumable, the manifest last."""

import functools
import json
import multiprocessing
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.records.unified import UnifiedDataset
from data_tools.tokens.build_shard import ShardBuilder, WorkerSettings, build_in_worker, read_marker, start_worker
from data_tools.tokens.build_tasks import ShardTask, plan_shards
from huatuo_jax.config import require
from huatuo_jax.config_files import differences, listed
from huatuo_jax.data.formats import get_format
from huatuo_jax.data.token_store import SCHEMA, SPLITS, STATISTICS
from huatuo_jax.data.tokenizers import Tokenizer, copy_tokenizer, load_tokenizer
from huatuo_jax.errors import ConfigError, DataError
from huatuo_jax.io.files import read_json, write_json, write_npy, write_text

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
    _check_settings(out, settings)
    if (out / "manifest.json").exists():
        dialogue_format.check(tokenizer)
        manifest = read_json(out / "manifest.json")
        return {"sources": manifest["sources"], "new_records": 0, "seconds": 0.0, "nothing_to_do": True}
    tasks = plan_shards(datasets, request.holdout)
    resumed = (out / "build.json").exists()
    write_json(out / "build.json", settings)
    open_tasks = [task for task in tasks if read_marker(task, out) is None]
    new_records = sum(len(task.records) for task in open_tasks)
    worker = WorkerSettings(tuple(str(folder) for folder in request.unified), dialogue_format.name, request.max_len, str(out))
    open_tasks.sort(key=lambda task: -task.size)
    try:
        if request.workers > 1 and len(open_tasks) > 1:
            # A dialogue format is checked against the whole vocabulary: while the workers begin, that costs no time.
            check = functools.partial(dialogue_format.check, tokenizer)
            _run_in_workers(open_tasks, (worker, tokenizer), request.workers, check, on_start, on_done)
        else:
            dialogue_format.check(tokenizer)
            _run_here(open_tasks, ShardBuilder(worker, tokenizer), on_start, on_done)
    except ConfigError:
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
    for left_by_a_kill in out.glob("*/.*.tmp"):
        left_by_a_kill.unlink(missing_ok=True)
    write_json(out / "manifest.json", manifest)
    for source in manifest["sources"]:
        shutil.rmtree(out / source / ".done", ignore_errors=True)
    return {
        "sources": manifest["sources"],
        "new_records": new_records,
        "seconds": time.monotonic() - began,
        "nothing_to_do": False,
    }


def _remove_build(tasks: Sequence[ShardTask], out: Path) -> None:
    """Leaves `out` as it was before a build that should not have begun."""
    for source in {task.source for task in tasks}:
        shutil.rmtree(out / source, ignore_errors=True)
    (out / "build.json").unlink(missing_ok=True)
    if not any(out.iterdir()):
        out.rmdir()


def _check_settings(out: Path, settings: dict[str, Any]) -> None:
    """Refuses to write into a folder that holds anything but a build of the same settings."""
    if not (out / "build.json").exists():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise ConfigError(f"{out} is not empty and holds no token dataset; give another --out")
        return
    before = read_json(out / "build.json")
    if changed := differences(before, settings):
        raise ConfigError(
            f"{out} belongs to a build with other settings ({listed(changed)}); give another --out, or delete it to start over"
        )


def _run_here(tasks: Sequence[ShardTask], builder: ShardBuilder, on_start: OnDone, on_done: OnDone) -> None:
    done = 0
    on_start(sum(len(task.records) for task in tasks))
    for task in tasks:
        builder.build(task)
        done += len(task.records)
        on_done(done)


def _run_in_workers(
    tasks: Sequence[ShardTask],
    shared: tuple[WorkerSettings, Tokenizer],
    workers: int,
    check: Callable[[], None],
    on_start: OnDone,
    on_done: OnDone,
) -> None:
    """Builds the shards in parallel processes, unless `check`, called while they begin, raises."""
    workers = min(workers, len(tasks))
    context = multiprocessing.get_context("fork" if _has_one_thread() else "spawn")
    progress, stop = context.Value("q", 0), context.Event()
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=start_worker, initargs=(*shared, progress, stop))
    try:
        waiting = {pool.submit(build_in_worker, task) for task in tasks}
        # The threads that hand out the tasks take turns with this one: let them finish first.
        wait(waiting, timeout=0.01)
        check()
        on_start(sum(len(task.records) for task in tasks))
        while waiting:
            finished, waiting = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
            on_done(progress.value)
            for future in finished:
                future.result()
    except BrokenProcessPool as error:
        raise DataError(
            "a worker process died, perhaps for want of memory; the same command continues with the shards that are done "
            f"(give fewer than --workers {workers} if it happens again)"
        ) from error
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


def _has_one_thread() -> bool:
    """Whether a fork is safe, which starts at once and has the tokenizer loaded.

    Any other thread (jax, readers of ArrayRecord, a progress bar) might hold a lock that stays locked in the copy for ever.
    """
    threads = Path("/proc/self/task")
    return threads.is_dir() and len(list(threads.iterdir())) == 1


def _finish_sources(tasks: Sequence[ShardTask], out: Path) -> dict[str, Any]:
    """Writes the arrays and `rejected.jsonl`; returns the manifest's entry of each source.

    A rejected record cannot be expressed, so it has no tokens to count: every token of the other records is in
    `train.tokens`, `holdout.tokens` or `cut_tokens`.
    """
    sources: dict[str, Any] = {}
    rejected: list[dict[str, str]] = []
    for source in dict.fromkeys(task.source for task in tasks):
        own = [(task, _done(task, out)) for task in tasks if task.source == source]
        entry: dict[str, Any] = {}
        for split in SPLITS:
            parts = [done for task, done in own if task.split == split]
            for name in STATISTICS:
                array = np.concatenate([np.zeros(0, np.int32), *(part[name] for part in parts)])
                write_npy(out / source / f"{split}.{name}.npy", array)
            entry[split] = {
                "records": sum(len(part["lengths"]) for part in parts),
                "tokens": int(sum(part["lengths"].sum(dtype=np.int64) for part in parts)),
                "target_tokens": int(sum(part["target_counts"].sum(dtype=np.int64) for part in parts)),
            }
        refused = [one for _, done in own for one in done["rejected"]]
        if not entry["train"]["records"]:
            raise DataError(
                f"every training record of {source} is rejected (the first one, {refused[0]['id']}: {refused[0]['reason']}); "
                "choose another dialogue format or leave the source out"
            )
        rejected += refused
        entry |= {
            "rejected": len(refused),
            "cut": sum(done["cut"] for _, done in own),
            "cut_tokens": sum(done["cut_tokens"] for _, done in own),
            "shards": [
                {
                    "file": task.path(out).name,
                    "split": task.split,
                    "records": len(done["lengths"]),
                    "tokens": int(done["lengths"].sum()),
                }
                for task, done in own
            ],
        }
        sources[source] = entry
    write_text(out / "rejected.jsonl", "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in rejected))
    return sources


def _done(task: ShardTask, out: Path) -> dict[str, Any]:
    done = read_marker(task, out)
    if done is None:
        raise DataError(f"{task.path(out)} disappeared during the build; run the same command again")
    return done
