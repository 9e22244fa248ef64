"""Files of passages or dialogues in, the same files without the rows that hold exam questions out, and a list of those."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data_tools.collect.exams import ExamIndex, Hit
from data_tools.records.importing import check_inputs, plain_stem
from data_tools.records.layouts import to_record
from huatuo_jax.errors import ConfigError, DataError, RecordError
from huatuo_jax.io.files import written_aside
from huatuo_jax.io.jsonl import Fault, Pair, iterate_json

BATCH = 256


def decontaminate_files(
    paths: Sequence[Path], out: Path, index: ExamIndex, on_read: Callable[[int], None] | None = None
) -> dict[str, Any]:
    """Writes `out/NAME.jsonl` for each file and `out/contaminated.jsonl`.

    A row keeps its layout; parts of a document that is an object of lists (HuatuoGPT-II's training JSON) get their key as source.

    Returns:
      files: name → {rows, contaminated}; items: "exam/id" of every question found, with how often; unusable questions.

    Raises:
      ConfigError: two inputs would become the same file. DataError: a row whose text cannot be told; it is named.
    """
    check_inputs(paths)
    names = [f"{plain_stem(path)}.jsonl" for path in paths]
    if len(set(names)) < len(names) or "contaminated.jsonl" in names:
        raise ConfigError("two of the files have the same name, or one is called contaminated; decontaminate them one by one")
    if any((out / name).resolve() == path.resolve() for name, path in zip(names, paths, strict=True)):
        raise ConfigError(f"--out {out} is the folder of an input file; give another")
    files: dict[str, Any] = {}
    items: dict[str, int] = {}
    with _open(out / "contaminated.jsonl") as listed:
        for path, name in zip(paths, names, strict=True):
            files[path.name] = {"rows": 0, "contaminated": 0}
            with _open(out / name) as kept:
                for batch in _batches(path, on_read):
                    for (number, row, text), hits in zip(batch, index.find([text for _, _, text in batch]), strict=True):
                        files[path.name]["rows"] += 1
                        if not hits:
                            kept(row)
                            continue
                        files[path.name]["contaminated"] += 1
                        listed(_entry(path, number, text, hits))
                        for hit in hits:
                            item = f"{hit.item.exam}/{hit.item.id}"
                            items[item] = items.get(item, 0) + 1
    return {"files": files, "items": items, "questions": len(index.items), "unusable_questions": index.unusable}


def text_of(value: Any) -> str:
    """All text of a row: a passage, the turns of a dialogue in any known layout, or a question with its options.

    Raises:
      RecordError: with the reason why there is none.
    """
    row = value.value if isinstance(value, Pair) else value
    if isinstance(row, dict) and isinstance(row.get("question"), str):
        options = row.get("options") or {}
        return "\n".join([row["question"], *map(str, options.values() if isinstance(options, dict) else options)])
    record = to_record(value, "auto", None, "data", lambda: "0")
    return "\n".join([record.system or "", record.text or "", *record.turns])


def _entry(path: Path, number: int, text: str, hits: Sequence[Hit]) -> dict[str, Any]:
    questions = [
        {"exam": hit.item.exam, "item": hit.item.id, "share": round(hit.share, 3), "question": hit.item.question[:200]}
        for hit in hits
    ]
    return {"file": str(path), "line": number, "questions": questions, "text": text[:400]}


def _batches(path: Path, on_read: Callable[[int], None] | None) -> Iterator[list[tuple[int, Any, str]]]:
    batch: list[tuple[int, Any, str]] = []
    for number, value in iterate_json(path, on_read):
        try:
            if isinstance(value, Fault):
                raise RecordError(value.reason)
            batch.append((number, _row(value), text_of(value)))
        except RecordError as error:
            raise DataError(f"{path}, line {number}: {error}; mend the line or take it out") from error
        if len(batch) == BATCH:
            yield batch
            batch = []
    yield batch


def _row(value: Any) -> Any:
    if not isinstance(value, Pair):
        return value
    return {"source": value.key, **({"turns": value.value} if isinstance(value.value, list) else value.value)}


@contextmanager
def _open(path: Path) -> Iterator[Callable[[Any], None]]:
    with written_aside(path) as aside, open(aside, "wb") as file:

        def write(row: Any) -> None:
            file.write(json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")

        yield write
        file.flush()
        os.fsync(file.fileno())
