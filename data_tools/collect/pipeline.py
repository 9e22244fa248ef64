"""Raw corpora in, a folder of clean passages out, in three stages: passages, duplicates, output.

    OUT/passages/SHARD.jsonl.zst   the passages; one file per input shard
    OUT/dropped/SHARD.jsonl.zst    what was dropped and why (with keep_dropped)
    OUT/quarantine.jsonl           lines and files that could not be read
    OUT/contaminated.jsonl         passages that held exam questions
    OUT/manifest.json              written last: inputs with hashes, settings, outputs with hashes
    OUT/report.json, report.html   what each step left
    OUT/work/                      what a rerun continues from

Every piece of work leaves a marker with a key made of its inputs and settings; a rerun does what has no marker with the right
one.
"""

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_tools.collect.domain_model import DomainModel, save_model
from data_tools.collect.passages import PassagesTask, make_passages
from data_tools.collect.settings import CollectConfig
from data_tools.collect.shards import InputFile, Listing, list_shards
from data_tools.collect.stage_duplicates import DuplicatesTask, find_duplicates
from data_tools.collect.stage_output import OutputTask, write_output
from data_tools.collect.statistics import Statistics
from huatuo_jax.config_files import differences, listed
from huatuo_jax.errors import ConfigError, DataError
from huatuo_jax.io.files import full_disk_named, read_json, sha256_file, sha256_json, write_json, write_text
from huatuo_jax.io.tasks import OnDone, run_tasks

OnStage = Callable[[str, list[int]], OnDone]
"""Called with a stage's name and the size of each of its tasks; returns what is called with each finished task's number."""


def _silent(stage: str, sizes: list[int]) -> OnDone:
    return lambda number: None


@dataclass(frozen=True)
class CollectResult:
    """What a run did.

    Attributes:
      statistics: of the whole run, whatever was done earlier included.
      shards: their number. done_now: stage → tasks that this call ran. seconds: per stage.
    """

    statistics: Statistics
    shards: int
    passages: int
    skipped: tuple[tuple[str, str], ...]
    done_now: dict[str, int]
    seconds: dict[str, float]
    duplicates: dict[str, Any] = field(default_factory=dict)


def collect(
    inputs: Sequence[Path],
    out: Path,
    config: CollectConfig,
    model: DomainModel | None,
    workers: int = 1,
    engine: str = "processes",
    redo: bool = False,
    on_stage: OnStage = _silent,
) -> CollectResult:
    """Runs the pipeline, or continues it, or finds that there is nothing to do.

    Args:
      model: the domain; None keeps documents of any (`config.extract` is False then).
      workers, engine: change no byte of what is written.
      redo: allows settings other than those of the run in `out`; what they touch is made again.

    Raises:
      ConfigError: impossible settings, or other settings than before without `redo`: what would have to be made again is named.
      DataError: nothing to read, no document can be read, a full disk, workers that die.
    """
    listing = list_shards(inputs)
    _check_out(out, inputs)
    settings = json.loads(json.dumps({**config.to_json(), "domain": None if model is None else model.fingerprint}))
    _check_settings(out, settings, redo)
    with full_disk_named(out):
        return _collect(listing, out, config, model, settings, workers, engine, on_stage)


def _collect(
    listing: Listing,
    out: Path,
    config: CollectConfig,
    model: DomainModel | None,
    settings: dict[str, Any],
    workers: int,
    engine: str,
    on_stage: OnStage,
) -> CollectResult:
    work = out / "work"
    write_json(work / "settings.json", settings)
    model_file = None
    if model is not None:
        model_file = work / "model.json"
        save_model(model, model_file)
    seconds, done_now = {}, {}

    began = time.monotonic()
    passages_tasks = [_passages_task(shard, config, model_file, settings, work) for shard in listing.shards]
    open_tasks = [task for task in passages_tasks if not _is_current(task)]
    # The largest first, so that no worker is left alone with one at the end.
    open_tasks.sort(key=lambda task: -task.shard.size)
    run_tasks(make_passages, open_tasks, workers, engine, on_stage("passages", [task.shard.size for task in open_tasks]))
    seconds["passages"], done_now["passages"] = time.monotonic() - began, len(open_tasks)
    dones = [read_json(task.folder / "done.json") for task in passages_tasks]

    began = time.monotonic()
    key = sha256_json([settings["duplicates"], [_content(done) for done in dones], [task.shard.name for task in passages_tasks]])
    duplicates = DuplicatesTask(tuple(task.folder for task in passages_tasks), config, work / "duplicates", key)
    is_open = _key_of(duplicates.folder / "done.json") != key
    on_done = on_stage("duplicates", [1] * is_open)
    if is_open:
        find_duplicates(duplicates, workers, engine)
        on_done(0)
    seconds["duplicates"], done_now["duplicates"] = time.monotonic() - began, int(is_open)

    began = time.monotonic()
    outputs = _output_tasks(passages_tasks, dones, duplicates, out, config, settings)
    open_outputs = [task for task in outputs if not _is_written(task)]
    run_tasks(write_output, open_outputs, workers, engine, on_stage("output", [task.rows for task in open_outputs]))
    seconds["output"], done_now["output"] = time.monotonic() - began, len(open_outputs)
    return _finish(listing, out, settings, passages_tasks, dones, outputs, done_now, seconds)


def _passages_task(shard: Any, config: CollectConfig, model: Path | None, settings: dict[str, Any], work: Path) -> PassagesTask:
    key = sha256_json([settings["passages"], settings["domain"], [file.name for file in shard.files]])
    return PassagesTask(shard, config, model, work / "passages" / shard.name, key)


def _is_current(task: PassagesTask) -> bool:
    """Whether the shard's passages are there, made from these files as they are and with these settings."""
    marker = task.folder / "done.json"
    if _key_of(marker) != task.key:
        return False
    before = {entry["name"]: entry for entry in read_json(marker)["inputs"]}
    return all(_is_same(file, before.get(file.name)) for file in task.shard.files)


def _is_same(file: InputFile, before: dict[str, Any] | None) -> bool:
    """By size and time of change; by content where only the time differs."""
    if before is None or before["size"] != file.size:
        return False
    return bool(before["modified"] == file.modified or before["sha256"] == sha256_file(file.path))


def _is_written(task: OutputTask) -> bool:
    """Whether the shard's output is there, whole and made with these settings."""
    if _key_of(task.marker) != task.key or not task.output.exists():
        return False
    return bool(read_json(task.marker).get("bytes") == task.output.stat().st_size)


def _key_of(marker: Path) -> str | None:
    return read_json(marker)["key"] if marker.exists() else None


def _content(done: dict[str, Any]) -> Any:
    return [done["key"], done["rows"], [entry["sha256"] for entry in done["inputs"]]]


def _output_tasks(
    passages: Sequence[PassagesTask],
    dones: Sequence[dict[str, Any]],
    duplicates: DuplicatesTask,
    out: Path,
    config: CollectConfig,
    settings: dict[str, Any],
) -> list[OutputTask]:
    tasks, first = [], 0
    for task, done in zip(passages, dones, strict=True):
        key = sha256_json([duplicates.key, settings["output"], task.shard.name])
        tasks.append(OutputTask(task.shard.name, task.folder, duplicates.folder, first, done["rows"], out, config, key))
        first += done["rows"]
    return tasks


def _finish(
    listing: Listing,
    out: Path,
    settings: dict[str, Any],
    passages_tasks: Sequence[PassagesTask],
    dones: Sequence[dict[str, Any]],
    outputs: Sequence[OutputTask],
    done_now: dict[str, int],
    seconds: dict[str, float],
) -> CollectResult:
    """Adds up the shards, removes what no shard stands for any more, and writes the manifest."""
    statistics, contaminated, shards = Statistics(), [], []
    for done, task in zip(dones, outputs, strict=True):
        marker = read_json(task.marker)
        statistics.add(Statistics(**done["statistics"]))
        statistics.add(Statistics(**marker["statistics"]))
        contaminated += marker["contaminated"]
        inputs = [{name: entry[name] for name in ("name", "size", "sha256")} for entry in done["inputs"]]
        shards.append({"output": task.output.name, "passages": marker["passages"], "sha256": marker["sha256"], "inputs": inputs})
    if statistics.unreadable and not statistics.total("raw")[0]:
        raise DataError(
            f"none of the {statistics.unreadable:,} lines and files can be read; reasons in {out / 'work' / 'passages'}"
        )
    skipped = [{"file": path, "line": None, "reason": reason, "read": False} for path, reason in listing.skipped]
    quarantine = [(task.folder / "unreadable.jsonl").read_text(encoding="utf-8") for task in passages_tasks]
    write_text(out / "quarantine.jsonl", "".join(quarantine) + _lines(skipped))
    write_text(out / "contaminated.jsonl", _lines(contaminated))
    _remove_others(out / "passages", {task.output.name for task in outputs})
    _remove_others(out / "dropped", {task.output.name for task in outputs})
    _remove_others(out / "work" / "passages", {task.folder.name for task in passages_tasks})
    write_json(out / "manifest.json", {"settings": settings, "shards": shards})
    passages = sum(shard["passages"] for shard in shards)
    duplicates = read_json(out / "work" / "duplicates" / "done.json")
    return CollectResult(statistics, len(shards), passages, listing.skipped, done_now, seconds, duplicates)


def _lines(rows: Sequence[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _remove_others(folder: Path, names: set[str]) -> None:
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        if path.name not in names:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _check_out(out: Path, inputs: Sequence[Path]) -> None:
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out} is a file; give a folder")
    for given in inputs:
        if given.is_dir() and given.resolve() in (out.resolve(), *out.resolve().parents):
            raise ConfigError(
                f"--out {out} lies in the input folder {given}: the next run would read its own output; choose another"
            )
    if out.is_dir() and any(out.iterdir()) and not (out / "work" / "settings.json").exists():
        raise ConfigError(f"{out} is not empty and holds no run of collect; give another --out")


def _check_settings(out: Path, settings: dict[str, Any], redo: bool) -> None:
    """Refuses settings other than those of the run in `out`, and says what they would make necessary."""
    path = out / "work" / "settings.json"
    if redo or not path.exists():
        return
    before = read_json(path)
    changed = differences(before, settings)
    if not changed:
        return
    touched = {part for part in settings if before.get(part) != settings[part]}
    if touched & {"passages", "domain"}:
        again = "every shard's passages, the choice of copies and the output would be made again"
    elif "duplicates" in touched:
        again = "the choice of copies and the output would be made again, the passages of all shards kept"
    else:
        again = "only the output would be made again"
    raise ConfigError(
        f"{out} belongs to a run with other settings ({listed(changed)}). With --redo, {again}; or give another --out"
    )
