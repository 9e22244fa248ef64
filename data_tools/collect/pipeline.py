"""The whole way from raw corpora to a folder of clean passages, in three stages: passages, duplicates, output.

    OUT/passages/SHARD.jsonl.zst   the passages; one file per input shard
    OUT/dropped/SHARD.jsonl.zst    what was dropped and why (with keep_dropped)
    OUT/quarantine.jsonl           lines and files that could not be read
    OUT/contaminated.jsonl         passages that held exam questions
    OUT/manifest.json              written last: inputs with hashes, settings, outputs with hashes
    OUT/report.json, report.html   what each step left
    OUT/work/                      what a rerun continues from

Read here first: `collect` is the story. The first stage is `passages.py`, the second `duplicates.py`; the third stands below.
Every piece of work leaves a marker with a key made of its inputs and settings; a rerun does what has no marker with the right
key. Workers and engine change no byte of what is written.
"""

import contextlib
import functools
import itertools
import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from data_tools.collect.domain import DomainModel, save_model
from data_tools.collect.duplicates import REASONS, STAYS, DuplicatesTask, find_duplicates
from data_tools.collect.passages import PassagesTask, make_passages
from data_tools.collect.reading import InputFile, Listing, list_shards, read_rows
from data_tools.collect.report import Statistics, page, to_report
from data_tools.collect.settings import CollectConfig, Overlap
from huatuo_jax.errors import ConfigError, DataError
from huatuo_jax.io.files import full_disk_named, read_json, read_npy, sha256_file, sha256_json, write_json, write_text
from huatuo_jax.io.jsonl import LineWriter, write_lines
from huatuo_jax.io.tasks import OnDone, run_tasks

if TYPE_CHECKING:
    from data_tools.collect.decontaminate import ExamIndex, Hit

CONTAMINATED = "holds an exam question"

OnStage = Callable[[str, list[int]], OnDone]
"""Called with a stage's name and the size of each of its tasks; returns what is called with each finished task's number."""
Task = TypeVar("Task", bound="PassagesTask | DuplicatesTask | OutputTask")


def collect(
    inputs: Sequence[Path],
    out: Path,
    config: CollectConfig,
    model: DomainModel | None,
    workers: int = 1,
    engine: str = "processes",
    redo: bool = False,
    on_stage: OnStage = lambda stage, sizes: lambda number: None,
    on_listing: Callable[[Listing], None] = lambda listing: None,
) -> dict[str, Any]:
    """Runs the pipeline, or continues it, or finds that there is nothing to do; returns the report.

    Args:
      model: the domain; None keeps documents of any (`config.extract` is False then).
      workers, engine: change no byte of what is written.
      redo: allows settings other than those of the run in `out`; what they touch is made again.
      on_listing: called with what lies in the inputs, before any of it is read.

    Raises:
      ConfigError: impossible settings, or other settings than before without `redo`: what would have to be made again is named.
      DataError: nothing to read, no document can be read, a full disk, workers that die.
    """
    listing = list_shards(inputs)
    _check_out(out, inputs)
    # As they will be read back from the file: tuples are lists there.
    settings = json.loads(json.dumps({**config.to_json(), "domain": None if model is None else model.fingerprint}))
    _check_settings(out, settings, redo)
    on_listing(listing)
    work, model_file = out / "work", None
    seconds: dict[str, float] = {}
    done_now: dict[str, int] = {}

    def run_stage(
        name: str,
        function: Callable[[Task], None],
        tasks: Sequence[Task],
        is_done: Callable[[Task], bool],
        size: Callable[[Task], int],
        workers: int = workers,
        engine: str = engine,
    ) -> None:
        began = time.monotonic()
        # The largest first, so that no worker is left alone with one at the end.
        todo = sorted((task for task in tasks if not is_done(task)), key=lambda task: -size(task))
        run_tasks(function, todo, workers, engine, on_stage(name, [size(task) for task in todo]))
        seconds[name], done_now[name] = round(time.monotonic() - began, 2), len(todo)

    with full_disk_named(out):
        write_json(work / "settings.json", settings)
        if model is not None:
            model_file = work / "model.json"
            save_model(model, model_file)

        # First stage. The key of a shard has the names of its files; whether their content is the same, `_is_current` looks.
        passages = []
        for shard in listing.shards:
            key = sha256_json([settings["passages"], settings["domain"], [file.name for file in shard.files]])
            passages.append(PassagesTask(shard, config, model_file, work / "passages" / shard.name, key))
        run_stage("passages", make_passages, passages, _is_current, lambda task: task.shard.size)
        dones = [read_json(task.marker) for task in passages]

        # Second stage, over all shards: one task of this process, which hands the workers parts of itself.
        content = [[done["key"], done["rows"], [entry["sha256"] for entry in done["inputs"]]] for done in dones]
        key = sha256_json([settings["duplicates"], content, [task.shard.name for task in passages]])
        duplicates = DuplicatesTask(tuple(task.folder for task in passages), config, work / "duplicates", key)
        find = functools.partial(find_duplicates, workers=workers, engine=engine)
        run_stage("duplicates", find, [duplicates], _has_key, lambda task: 1, workers=1, engine="processes")

        # Third stage. A change of one shard may decide which copy stays in any other, so each key holds the second stage's.
        outputs, first = [], 0
        for task, done in zip(passages, dones, strict=True):
            key = sha256_json([duplicates.key, settings["output"], task.shard.name])
            outputs.append(OutputTask(task, duplicates.folder, first, done["rows"], out, key))
            first += done["rows"]
        run_stage("output", write_output, outputs, _is_written, lambda task: task.rows)

        statistics = Statistics()
        for done, output in zip(dones, outputs, strict=True):
            statistics.add(Statistics(**done["statistics"]))
            statistics.add(Statistics(**read_json(output.marker)["statistics"]))
        if statistics.unreadable and not statistics.total("raw")[0]:
            raise DataError(f"none of the {statistics.unreadable:,} lines and files can be read; reasons in {work / 'passages'}")
        shards = _publish(out, settings, listing.skipped, dones, outputs)
        report = {
            "passages": sum(shard["passages"] for shard in shards),
            "shards": len(shards),
            **to_report(statistics),
            "not_read": len(listing.skipped),
            "not_read_suffixes": dict(Counter(Path(path).suffix or "none" for path, _ in listing.skipped).most_common()),
            "candidate_pairs": read_json(duplicates.marker)["candidate_pairs"],
            "done_now": done_now,
            "seconds": seconds,
        }
        write_json(out / "report.json", report)
        write_text(out / "report.html", page(report))
    return report


def _publish(
    out: Path,
    settings: dict[str, Any],
    skipped: Sequence[tuple[str, str]],
    dones: Sequence[dict[str, Any]],
    outputs: Sequence["OutputTask"],
) -> list[dict[str, Any]]:
    """Puts together what is listed once per run, removes files of shards that are gone, and writes the manifest; its shards."""
    shards = []
    with write_lines(out / "quarantine.jsonl") as quarantine, write_lines(out / "contaminated.jsonl") as contaminated:
        for done, task in zip(dones, outputs, strict=True):
            marker = read_json(task.marker)
            inputs = [{name: entry[name] for name in ("name", "size", "sha256")} for entry in done["inputs"]]
            output = {"output": task.output.name, "passages": marker["passages"], "sha256": marker["sha256"]}
            shards.append(output | {"inputs": inputs})
            _write_all(quarantine, read_rows(task.first_stage.unreadable))
            _write_all(contaminated, marker["contaminated"])
        _write_all(quarantine, ({"file": path, "line": None, "reason": reason, "read": False} for path, reason in skipped))
    # Input files that were removed since the last run have left their output behind.
    names = {task.output.name for task in outputs}
    folders = {task.first_stage.folder.name for task in outputs}
    for folder, current in ((out / "passages", names), (out / "dropped", names), (out / "work" / "passages", folders)):
        for path in folder.glob("*"):
            if path.name not in current:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    write_json(out / "manifest.json", {"settings": settings, "shards": shards})
    return shards


def _write_all(file: LineWriter, rows: Iterable[dict[str, Any]]) -> None:
    for row in rows:
        file.write(row)


# What is done already


def _has_key(task: "PassagesTask | DuplicatesTask | OutputTask") -> bool:
    """Whether the task's marker is there and says that its output was made from the same inputs and settings."""
    return task.marker.exists() and bool(read_json(task.marker)["key"] == task.key)


def _is_current(task: PassagesTask) -> bool:
    """Whether the shard's passages are there, made from these files as they are and with these settings."""
    if not _has_key(task):
        return False
    before = {entry["name"]: entry for entry in read_json(task.marker)["inputs"]}
    return all(_is_same(file, before.get(file.name)) for file in task.shard.files)


def _is_same(file: InputFile, before: dict[str, Any] | None) -> bool:
    """By size and time of change; by content where only the time differs."""
    # A copy of a corpus has other times; to hash it costs far less than to collect it again.
    if before is None or before["size"] != file.size:
        return False
    return bool(before["modified"] == file.modified or before["sha256"] == sha256_file(file.path))


def _is_written(task: "OutputTask") -> bool:
    """Whether the shard's output is there, whole and made with these settings."""
    # The size is compared too: a file that a full disk or a hand has cut is there and has a marker.
    if not _has_key(task) or not task.output.exists():
        return False
    return bool(read_json(task.marker).get("bytes") == task.output.stat().st_size)


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
    from huatuo_jax.config_files import differences, listed

    changed = differences(read_json(path), settings)
    if not changed:
        return
    touched = {change.name.split(".")[0] for change in changed}
    if touched & {"passages", "domain"}:
        again = "every shard's passages, the choice of copies and the output would be made again"
    elif "duplicates" in touched:
        again = "the choice of copies and the output would be made again, the passages of all shards kept"
    else:
        again = "only the output would be made again"
    raise ConfigError(
        f"{out} belongs to a run with other settings ({listed(changed)}). With --redo, {again}; or give another --out"
    )


# Third stage, shard by shard: what stays is written; copies and passages with exam questions go


@dataclass(frozen=True)
class OutputTask:
    """One shard: its task of the first stage, the global number of its first passage and how many it has, the folders of the
    second stage and of the run, and what its marker must say."""

    first_stage: PassagesTask
    duplicates: Path
    first_number: int
    rows: int
    out: Path
    key: str

    @property
    def marker(self) -> Path:
        """The last file that the stage writes."""
        return self.out / "work" / "output" / f"{self.first_stage.folder.name}.json"

    @property
    def output(self) -> Path:
        """The passages that stay."""
        return self.out / "passages" / f"{self.first_stage.folder.name}.jsonl.zst"


def write_output(task: OutputTask) -> None:
    """Runs the stage on a shard."""
    # Without a marker a kill from here on leaves a shard that counts as not written.
    task.marker.unlink(missing_ok=True)
    config, statistics = task.first_stage.config, Statistics()
    contaminated: list[dict[str, Any]] = []
    with contextlib.ExitStack() as stack:
        output = stack.enter_context(write_lines(task.output, compact=True))
        dropped = None
        if config.keep_dropped:
            dropped = stack.enter_context(write_lines(task.out / "dropped" / task.output.name, compact=True))
            _write_all(dropped, read_rows(task.first_stage.dropped))

        def drop(row: dict[str, Any], reason: str, why: dict[str, Any]) -> None:
            statistics.drop(row["source"], reason, row["text"])
            if dropped is not None:
                dropped.write({"id": row["id"], "source": row["source"], "dropped": reason, **why, "text": row["text"]})

        def staying() -> Iterator[dict[str, Any]]:
            of_shard = slice(task.first_number, task.first_number + task.rows)
            codes = read_npy(task.duplicates / "codes.npy")[of_shard]
            ids = read_npy(task.duplicates / "kept_ids.npy")[of_shard] if config.keep_dropped else itertools.repeat(b"")
            # Not strict: `repeat` has no end.
            for row, code, id in zip(read_rows(task.first_stage.passages), codes, ids, strict=False):
                if code == STAYS:
                    yield row
                else:
                    drop(row, REASONS[int(code)], {"copy_of": id.decode()})

        for row, hits in _with_questions(staying(), config):
            statistics.count(row["source"], "deduplicated", row["text"])
            if hits:
                contaminated.append({"id": row["id"], "source": row["source"], "questions": [hit.to_json() for hit in hits]})
                drop(row, CONTAMINATED, {"exam": hits[0].item.exam, "item": hits[0].item.id})
                continue
            if config.exams:  # without them the report has no such step
                statistics.count(row["source"], "decontaminated", row["text"])
            output.write(row)
    marker = {
        "key": task.key,
        "passages": output.rows,
        "bytes": task.output.stat().st_size,
        "sha256": sha256_file(task.output),
        "statistics": statistics.to_json(),
        "contaminated": contaminated,
    }
    write_json(task.marker, marker)


def _with_questions(rows: Iterator[dict[str, Any]], config: CollectConfig) -> Iterator[tuple[dict[str, Any], "Sequence[Hit]"]]:
    """Each passage with the exam questions that it holds."""
    if not config.exams:
        return ((row, ()) for row in rows)
    from data_tools.collect.decontaminate import with_questions

    return with_questions(rows, _exam_index(config.exams, config.overlap, " ".join(config.output_part()["exams"])))


@functools.lru_cache(maxsize=1)
def _exam_index(exams: tuple[Path, ...], overlap: Overlap, hashes: str) -> "ExamIndex":
    """The index, built once a process; `hashes` changes with the files' content."""
    from data_tools.collect.decontaminate import ExamIndex
    from data_tools.collect.exams import read_exams

    return ExamIndex(read_exams(exams), overlap)
