"""The import: files of any known layout become one unified dataset, and what cannot be used is listed, never lost.

The first step of a record: `huatuo_jax.io.jsonl` reads the values, `layouts` makes records of them, `unified` writes them. Every
line is counted either as a record or in `rejected.jsonl` with file, line and reason; too large a share of rejected lines fails
the command. `unify` and `decontaminate` read their files with the same rules.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from data_tools.records.layouts import to_record
from data_tools.records.unified import UnifiedWriter
from huatuo_jax.errors import ConfigError, DataError, RecordError
from huatuo_jax.io.files import TornFileError, directory_aside
from huatuo_jax.io.jsonl import Fault, KeyedValue, LineWriter, iterate_json, write_lines

COMPRESSIONS = (".gz", ".xz", ".zst")
Progress = Callable[[int], None]
Item = TypeVar("Item")


@dataclass
class RejectedLog:
    """Lists and counts rejected lines: one JSON object {file, line, reason} for each.

    Attributes:
      writer: where they are listed; None counts them only.
      count: lines rejected so far; files: whole files that could not be read to their end.
    """

    writer: LineWriter | None = None
    count: int = 0
    files: list[str] = field(default_factory=list)

    def add(self, path: Path, line: int, reason: str) -> None:
        """Records one rejected line."""
        self.count += 1
        self._list(path, line, reason)

    def add_file(self, path: Path, reason: str) -> None:
        """Records a file that is rejected as a whole: how many records it lost is unknown."""
        self.files.append(str(path))
        self._list(path, None, reason)

    def _list(self, path: Path, line: int | None, reason: str) -> None:
        if self.writer:
            self.writer.write({"file": str(path), "line": line, "reason": reason})


def check_inputs(paths: Sequence[Path]) -> None:
    """Raises `ConfigError` if a file is missing, a folder, or given twice."""
    seen: set[Path] = set()
    for path in paths:
        if not path.is_file():
            raise ConfigError(f"{path} is {'a folder, not a file' if path.is_dir() else 'not there'}")
        if path.resolve() in seen:
            raise ConfigError(f"{path} is given twice: its records would be doubled")
        seen.add(path.resolve())


def plain_stem(path: Path) -> str:
    """A file's name without .json / .jsonl and compression suffixes."""
    name = path.name
    for suffixes in (COMPRESSIONS, (".jsonl", ".json", ".ndjson", ".txt")):
        name = next((name.removesuffix(suffix) for suffix in suffixes if name.endswith(suffix)), name)
    return name


def read_all(
    paths: Sequence[Path], read: Callable[[Any, Path, int], Item], rejected: RejectedLog, on_read: Progress | None = None
) -> Iterator[Item]:
    """Yields `read(value, path, number)` for every JSON value of the files; what fails in reading or in `read` is rejected."""
    for path in paths:
        try:
            for number, value in iterate_json(path, on_read):
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
    content = json.dumps(value.value if isinstance(value, KeyedValue) else value, sort_keys=True)
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
            f"file, line and reason of each are in {listed}; correct the files (or name their layout to `import` with --layout), "
            "or raise --max-rejected"
        )
    if not accepted:
        raise DataError(f"all {total:,} lines are rejected; reasons in {listed}")


def import_files(
    paths: Sequence[Path],
    out: Path,
    source: str | None = None,
    layout: str = "auto",
    max_rejected: float = 0.01,
    on_read: Progress | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Writes the records of `paths` to a new unified dataset in `out`; rejected lines are listed in its `rejected.jsonl`.

    Args:
      source: overrides the source that records name; without both, a record's source is its file's name.
      layout: "auto" or a name of `layouts.LAYOUTS`.
      max_rejected: the largest share of rejected lines with which the import still succeeds.
      on_read: called with the number of bytes read from files each time.
      overwrite: a dataset that is in `out` is replaced once the new one is whole. If that fails, the old one stays with its own
        list of rejected lines, and the new list is beside it, in `OUT.rejected.jsonl`.

    Returns:
      records, sources, rejected, duplicate_ids, duplicate_texts.

    Raises:
      ConfigError: if a file is missing or given twice, or `out` holds a dataset.
      DataError: if there is nothing to import, a file is torn, or too much is rejected (the rejected lines are listed).
    """
    check_inputs(paths)
    replaces = overwrite and (out / "manifest.json").exists()
    listed = out.with_name(f"{out.name}.rejected.jsonl") if replaces else out / "rejected.jsonl"
    with directory_aside(out, replace=True) if replaces else contextlib.nullcontext(out) as folder:
        with UnifiedWriter(folder) as writer:
            with write_lines(listed) as lines:
                rejected = RejectedLog(lines)

                def write(value: Any, path: Path, number: int) -> None:
                    writer.write(to_record(value, layout, source, plain_stem(path), lambda: stable_id(value, path, number)))

                for _ in read_all(paths, write, rejected, on_read):
                    pass
            check_share(rejected, writer.records, max_rejected, listed)
            manifest = writer.finish()
        if replaces:
            listed.rename(folder / "rejected.jsonl")
    report = {key: manifest[key] for key in ("records", "sources", "duplicate_ids", "duplicate_texts")}
    return {**report, "rejected": rejected.count}
