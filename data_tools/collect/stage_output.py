"""Third stage, shard by shard: passages and the choice of copies in, the output file out; those with exam questions go."""

import functools
import itertools
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_tools.collect.exams import ExamIndex, Hit, Overlap, read_exams
from data_tools.collect.passage_files import RowWriter, read_rows, write_rows
from data_tools.collect.settings import CollectConfig
from data_tools.collect.stage_duplicates import REASONS, STAYS
from data_tools.collect.statistics import Statistics
from huatuo_jax.io.files import read_npy, sha256_file, write_json

BATCH = 256
CONTAMINATED = "holds an exam question"


@dataclass(frozen=True)
class OutputTask:
    """One shard: `passages` its folder of the first stage, `first` its first global number, `out` the folder of the run."""

    name: str
    passages: Path
    duplicates: Path
    first: int
    rows: int
    out: Path
    config: CollectConfig
    key: str

    @property
    def marker(self) -> Path:
        """Says, when it is there with the key, that the output is."""
        return self.out / "work" / "output" / f"{self.name}.json"

    @property
    def output(self) -> Path:
        """The passages that stay."""
        return self.out / "passages" / f"{self.name}.jsonl.zst"


def write_output(task: OutputTask) -> None:
    """Runs the stage on a shard."""
    task.marker.unlink(missing_ok=True)
    statistics = Statistics()
    codes = read_npy(task.duplicates / "codes.npy")[task.first : task.first + task.rows]
    copies = read_npy(task.duplicates / "kept_copies.npy")[task.first : task.first + task.rows]
    index = None
    if task.config.exams:
        index = _exam_index(task.config.exams, task.config.overlap, " ".join(task.config.output_part()["exams"]))
    dropped_path, contaminated = task.out / "dropped" / f"{task.name}.jsonl.zst", []
    with write_rows(task.output) as output, write_rows(dropped_path) as dropped:

        def staying() -> Iterator[dict[str, Any]]:
            for row, code, copy in zip(read_rows(task.passages / "passages.jsonl.zst"), codes, copies, strict=True):
                if code == STAYS:
                    yield row
                else:
                    _drop(row, REASONS[int(code)], statistics, dropped, {"copy_of": int(copy)})

        for row, hits in ((row, []) for row in staying()) if index is None else with_questions(staying(), index):
            statistics.count(row["source"], "deduplicated", row["text"])
            if hits:
                contaminated.append(_contamination(row, hits))
                _drop(row, CONTAMINATED, statistics, dropped, {"exam": hits[0].item.exam, "item": hits[0].item.id})
                continue
            if index is not None:
                statistics.count(row["source"], "decontaminated", row["text"])
            output.write(row)
    if task.config.keep_dropped:
        _join(task.passages / "dropped.jsonl.zst", dropped_path)
    else:
        dropped_path.unlink()
    write_json(
        task.marker,
        {
            "key": task.key,
            "passages": output.rows,
            "bytes": task.output.stat().st_size,
            "sha256": sha256_file(task.output),
            "statistics": statistics.to_json(),
            "contaminated": contaminated,
        },
    )


def with_questions(rows: Iterator[dict[str, Any]], index: ExamIndex) -> Iterator[tuple[dict[str, Any], list[Hit]]]:
    """Each passage with the questions that it holds, alone or together with the one before or after it in its document."""
    # The last passage of a batch waits for its neighbour in the next.
    held: list[tuple[dict[str, Any], list[Hit]]] = []
    while new := list(itertools.islice(rows, BATCH)):
        batch = [row for row, _ in held] + new
        documents = [row["id"].rpartition("-")[0] for row in batch]
        follows = [False, *(a == b for a, b in itertools.pairwise(documents))]
        found, cut = index.find_with_cut([row["text"] for row in batch], follows)
        if held:
            found[0] = held[0][1]
        for i, hits in enumerate(cut):
            for place in (i - 1, i) if hits else ():
                known = {hit.item for hit in found[place]}
                found[place] = found[place] + [hit for hit in hits if hit.item not in known]
        yield from zip(batch[:-1], found, strict=False)
        held = [(batch[-1], found[-1])]
    yield from held


def _drop(row: dict[str, Any], reason: str, statistics: Statistics, dropped: RowWriter, why: dict[str, Any]) -> None:
    statistics.drop(row["source"], reason, row["text"])
    dropped.write({"id": row["id"], "source": row["source"], "dropped": reason, **why, "text": row["text"]})


def _contamination(row: dict[str, Any], hits: list[Hit]) -> dict[str, Any]:
    found = [{"exam": hit.item.exam, "item": hit.item.id, "share": round(hit.share, 3)} for hit in hits]
    return {"id": row["id"], "source": row["source"], "questions": found}


def _join(first: Path, second: Path) -> None:
    """Puts the rows of `first` in front of those of `second`: compressed files may be joined as they are."""
    aside = second.with_name(f".{second.name}.joined.tmp")
    with open(aside, "wb") as out:
        for path in (first, second):
            with open(path, "rb") as file:
                shutil.copyfileobj(file, out)
    aside.replace(second)


@functools.lru_cache(maxsize=1)
def _exam_index(exams: tuple[Path, ...], overlap: Overlap, hashes: str) -> ExamIndex:
    """The index, built once a process; `hashes` changes with the files' content."""
    return ExamIndex(read_exams(exams), overlap)
