"""The import: files of any known layout become one unified dataset, and what cannot be used is listed, never lost.

The first step of a record: `huatuo_jax.io.tables` reads the values, `layouts` makes records of them, `unified` writes them. Every
value is counted either as a record or in `rejected.jsonl` with file, line and reason; too large a share of rejected lines fails
the command. `unify` reads its files with the same rules.
"""

import contextlib
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from data_tools.records.layouts import RecordReader
from data_tools.records.unified import UnifiedWriter
from huatuo_jax.errors import ConfigError, DataError, RecordError
from huatuo_jax.io.files import TornFileError, directory_aside
from huatuo_jax.io.jsonl import Fault, KeyedValue, LineWriter, write_lines
from huatuo_jax.io.tables import COMPRESSIONS, import_pyarrow, is_table, iterate_rows
from huatuo_jax.io.text import holds_no_json, kind_of

Progress = Callable[[int], None]
Item = TypeVar("Item")


@dataclass
class RejectedLog:
    """Lists and counts rejected lines: one JSON object {file, line, reason} for each.

    Attributes:
      writer: where they are listed; None counts them only.
      count: lines rejected so far; files: whole files that could not be read to their end.
      reasons: how many lines were rejected for each kind of reason: numbers and what is quoted are left out of it.
    """

    writer: LineWriter | None = None
    count: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    files: list[str] = field(default_factory=list)

    def add(self, path: Path, line: int, reason: str) -> None:
        """Records one rejected line."""
        self.count += 1
        kind = _VARYING.sub("…", reason)[:LONGEST_REASON]
        # Reasons that hold free text must not fill the memory.
        self.reasons[kind if kind in self.reasons or len(self.reasons) < MOST_REASONS else "other reasons"] += 1
        self._list(path, line, reason)

    def add_file(self, path: Path, reason: str) -> None:
        """Records a file that is rejected as a whole: how many records it lost is unknown."""
        self.files.append(str(path))
        self._list(path, None, reason)

    def _list(self, path: Path, line: int | None, reason: str) -> None:
        if self.writer:
            self.writer.write({"file": str(path), "line": line, "reason": reason})


_VARYING = re.compile(r"'[^']*'|\"[^\"]*\"|\d[\d,.]*")
LONGEST_REASON, MOST_REASONS = 160, 50


def check_inputs(paths: Sequence[Path]) -> None:
    """Raises `ConfigError` if a file is missing, a folder, given twice, or of a kind that `read_all` cannot read."""
    seen: set[Path] = set()
    for path in paths:
        if not path.is_file():
            raise ConfigError(f"{path} is {'a folder, not a file' if path.is_dir() else 'not there'}")
        if path.resolve() in seen:
            raise ConfigError(f"{path} is given twice: its records would be doubled")
        seen.add(path.resolve())
        _check_kind(path)


def _check_kind(path: Path) -> None:
    try:
        kind, remedy = kind_of(path)
        if kind == "Parquet":
            import_pyarrow(path)
        elif kind:
            raise ConfigError(f"{path} is {kind}, not JSON, Parquet or CSV; {remedy}")
        elif not is_table(path) and (held := holds_no_json(path)):
            remedy = "`huatuo-data collect` reads .txt; a table needs a name that ends in .csv or .tsv"
            raise ConfigError(f"{path} holds {held}, not JSON; {remedy}")
    except TornFileError:
        pass  # it is listed among the rejected when it is read


def plain_stem(path: Path) -> str:
    """A file's name without the suffixes of its format and compression."""
    name = path.name
    for suffixes in (COMPRESSIONS, (".jsonl", ".json", ".ndjson", ".txt", ".parquet", ".csv", ".tsv")):
        name = next((name.removesuffix(suffix) for suffix in suffixes if name.endswith(suffix)), name)
    return name


def read_all(
    paths: Sequence[Path], read: Callable[[Any, Path, int], Item], rejected: RejectedLog, on_read: Progress | None = None
) -> Iterator[Item]:
    """Yields `read(value, path, number)` for every value or row of the files; what fails in reading or in `read` is rejected."""
    for path in paths:
        try:
            for number, value in iterate_rows(path, on_read):
                try:
                    if isinstance(value, Fault):
                        raise RecordError(value.reason)
                    item = read(value, path, number)
                except RecordError as error:
                    rejected.add(path, number, str(error))
                except UnicodeEncodeError as error:
                    rejected.add(path, number, f"text is not valid Unicode (lone surrogate at character {error.start})")
                else:
                    yield item
        except TornFileError as error:
            rejected.add_file(path, str(error))


def stable_id(value: Any, path: Path, number: int) -> str:
    """The id of a record without one: from its content and its place, so that a second import gives the same."""
    # Cells of Parquet may hold dates or bytes, which JSON does not know.
    content = json.dumps(value.value if isinstance(value, KeyedValue) else value, sort_keys=True, default=str)
    return hashlib.blake2b(f"{plain_stem(path)}\0{number}\0{content}".encode(), digest_size=8).hexdigest()


def check_share(rejected: RejectedLog, accepted: int, max_rejected: float, listed: Path) -> None:
    """Raises the error that ends a run: nothing to read, torn files, or too large a share of rejected lines."""
    total = accepted + rejected.count
    if rejected.files:
        raise DataError(
            f"{len(rejected.files)} file(s) cannot be read to their end, so an unknown number of records is lost: "
            f"{', '.join(rejected.files[:5])}; reasons in {listed}; repair them or leave them out"
        )
    if not total:
        raise DataError("the input holds no records: every file is empty")
    share = rejected.count / total
    if share > max_rejected:
        raise DataError(
            f"{rejected.count:,} of {total:,} lines ({share:.2%}) are rejected, more than --max-rejected {max_rejected:.2%}; "
            f"{_most_common(rejected)}; file, line and reason of each are in {listed}; correct the files (or name to "
            "`import` their layout with --layout, or their keys with --map), or raise --max-rejected"
        )
    if not accepted:
        raise DataError(f"all {total:,} lines are rejected; {_most_common(rejected)}; reasons in {listed}")


def _most_common(rejected: RejectedLog) -> str:
    reason, count = rejected.reasons.most_common(1)[0]
    return f"{count:,} because {reason}"


def import_files(
    paths: Sequence[Path],
    out: Path,
    reader: RecordReader | None = None,
    max_rejected: float = 0.01,
    on_read: Progress | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Writes the records of `paths` to a new unified dataset in `out`; rejected lines are listed in its `rejected.jsonl`.

    Args:
      reader: how values become records (None: by their keys); its counts are those of this import afterwards.
      max_rejected: the largest share of rejected lines with which the import still succeeds.
      on_read: called with the number of bytes read from files each time.
      overwrite: a dataset that is in `out` is replaced once the new one is whole. If that fails, the old one stays with its own
        list of rejected lines, and the new list is beside it, in `OUT.rejected.jsonl`.

    Returns:
      records, sources, rejected, duplicate_ids, duplicate_texts. Where there are any: rejected_reasons, how many for each kind of
      reason; unread_keys: by name, how many records had something under a key that was not read; joined and cut: how many records
      an option has changed.

    Raises:
      ConfigError: if a file is missing or given twice, or `out` holds a dataset.
      DataError: if there is nothing to import, a file is torn, or too much is rejected (the rejected lines are listed).
    """
    check_inputs(paths)
    reader = reader or RecordReader()
    replaces = overwrite and (out / "manifest.json").exists()
    listed = out.with_name(f"{out.name}.rejected.jsonl") if replaces else out / "rejected.jsonl"
    with directory_aside(out, replace=True) if replaces else contextlib.nullcontext(out) as folder:
        with UnifiedWriter(folder) as writer:
            with write_lines(listed) as lines:
                rejected = RejectedLog(lines)

                def write(value: Any, path: Path, number: int) -> None:
                    writer.write(reader.read(value, plain_stem(path), lambda: stable_id(value, path, number)))

                for _ in read_all(paths, write, rejected, on_read):
                    pass
            check_share(rejected, writer.records, max_rejected, listed)
            manifest = writer.finish()
        if replaces:
            listed.rename(folder / "rejected.jsonl")
    report = {key: manifest[key] for key in ("records", "sources", "duplicate_ids", "duplicate_texts")}
    counted = {
        "rejected_reasons": dict(rejected.reasons.most_common()),
        "unread_keys": dict(reader.unread.most_common()),
        "joined": reader.joined,
        "cut": reader.cut,
    }
    return {**report, "rejected": rejected.count, **{name: count for name, count in counted.items() if count}}
