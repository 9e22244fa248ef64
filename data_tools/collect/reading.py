"""From folders of raw files to documents: which files are read together (shards), and what each of them holds.

The start of the way to a passage. `list_shards` finds .jsonl, .ndjson, .json, .parquet, .txt, .html and .pdf, plain or .gz, .xz,
.zst. Each large file, or group of small ones, becomes a shard and so one output file. The list depends on names and sizes only,
so every run and every machine makes the same one. `read_documents` then gives the documents of a file in order and never raises
for what is in it: an `Unreadable` names the place and the reason. Bytes are UTF-8 or GB18030. Next to read: `passages.py`.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_tools.collect.documents import check_package, html_text, pdf_text
from data_tools.collect.settings import ReadingConfig
from data_tools.records.layouts import canonical_source
from huatuo_jax.errors import ConfigError, DataError
from huatuo_jax.io.files import TornFileError, open_bytes
from huatuo_jax.io.jsonl import Fault, Item, KeyedValue, iterate_values
from huatuo_jax.io.tables import iterate_parquet
from huatuo_jax.io.text import SNIFFED, open_text

ONE_DOCUMENT = (".txt", ".html", ".htm", ".pdf")
"""Formats whose files are one document each; those of the others hold rows."""
FORMATS = (".jsonl", ".ndjson", ".json", ".parquet", *ONE_DOCUMENT)
COMPRESSIONS = (".gz", ".xz", ".zst")
GROUP_BYTES = 64 << 20
GROUP_FILES = 20_000
NAME_BYTES = 180
"""Of a shard's name; file systems take 255, of which suffixes need some."""
LONGEST_ROW = 1 << 40
"""Bytes of a row that a stage reads back."""
REMEDY = "raise --max-line-bytes to read it"


# Shards


@dataclass(frozen=True)
class InputFile:
    """One file of a raw corpus.

    Attributes:
      path: where it lies. name: its path below the folder that was given, or its file name, as `printable` shows it.
      size, modified: bytes and nanoseconds, to see whether it has changed.
    """

    path: str
    name: str
    size: int
    modified: int

    @property
    def format(self) -> str:
        """The suffix that tells how to read it, without a compression's."""
        return _format_of(self.name) or ""

    @property
    def source(self) -> str:
        """The source of rows that name none: the file's stem; of a file that is one document, its folder's name."""
        if self.format not in ONE_DOCUMENT:
            return self.stem
        return os.path.basename(os.path.dirname(os.path.abspath(self.path))) or self.stem

    @property
    def stem(self) -> str:
        """The file's name without its suffixes."""
        name = os.path.basename(self.name)
        for suffix in (*COMPRESSIONS, *FORMATS):
            name = name.removesuffix(suffix)
        return name


@dataclass(frozen=True)
class Shard:
    """Files that are processed together; `name` is the stem of its output file."""

    name: str
    files: tuple[InputFile, ...]

    @property
    def size(self) -> int:
        """Bytes of its files as they lie on disk."""
        return sum(file.size for file in self.files)


@dataclass(frozen=True)
class Listing:
    """What lies in the inputs.

    Attributes:
      shards: in the order of their names. skipped: (path, reason) of what is there but is not read.
    """

    shards: tuple[Shard, ...]
    skipped: tuple[tuple[str, str], ...]


def list_shards(inputs: Sequence[Path], group_bytes: int = GROUP_BYTES) -> Listing:
    """Finds the corpus files in `inputs` (files, or folders searched to any depth) and groups small ones.

    Raises:
      ConfigError: an input is missing, given twice, or is a file of an unknown format.
      DataError: nothing to read.
    """
    endings = f"{' '.join(FORMATS)}, plain or with {' '.join(COMPRESSIONS)}"
    files: list[InputFile] = []
    skipped: list[tuple[str, str]] = []
    for given in inputs:
        if given.is_dir():
            files += _in_folder(given, skipped)
        elif not given.exists():
            raise ConfigError(f"{given} is not there")
        elif _format_of(given.name) is None:
            raise ConfigError(f"{given}: its name ends in none of {endings}")
        else:
            files.append(_input_file(given, given.name))
    # By their real place: a folder and a link to a file in it would double that file's documents.
    by_place: dict[str, InputFile] = {}
    for file in files:
        first = by_place.setdefault(os.path.realpath(file.path), file)
        if first is not file:
            raise ConfigError(f"{file.path} is given twice (also as {first.path}): its documents would be doubled")
    for file in {file.format: file for file in files}.values():
        check_package(file.format, file.path)
    if not files:
        raise DataError(f"no corpus files in {', '.join(map(str, inputs))}; looked for {endings}")
    return Listing(tuple(grouped(files, group_bytes)), tuple(skipped))


def printable(text: str) -> str:
    """Text that every file can hold: file names in GBK and broken keys come with lone surrogates, which become `\\udcb7`."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _in_folder(folder: Path, skipped: list[tuple[str, str]]) -> Iterator[InputFile]:
    # Links are followed, for corpora are often put together from links; one that leads back up would never end.
    seen = {os.path.realpath(folder)}
    for parent, folders, names in os.walk(folder, followlinks=True):
        for child in sorted(folders):
            real = os.path.realpath(os.path.join(parent, child))
            if real in seen:
                skipped.append((printable(os.path.join(parent, child)), "a link to a folder that is read already"))
                folders.remove(child)
            seen.add(real)
        # In place and sorted: this is the order in which `os.walk` goes on, and the same on every file system.
        folders.sort()
        for name in sorted(names):
            path = Path(parent, name)
            if name.startswith("."):
                continue
            if _format_of(name) is None:
                skipped.append((printable(str(path)), "its suffix is not one of a corpus file"))
            elif not path.exists():
                skipped.append((printable(str(path)), "a link to nothing"))
            else:
                yield _input_file(path, str(path.relative_to(folder)))


def _input_file(path: Path, name: str) -> InputFile:
    status = path.stat()
    return InputFile(str(path), printable(name), status.st_size, status.st_mtime_ns)


def _format_of(name: str) -> str | None:
    for suffix in COMPRESSIONS:
        name = name.removesuffix(suffix)
    return next((suffix for suffix in FORMATS if name.endswith(suffix)), None)


def grouped(files: Sequence[InputFile], group_bytes: int) -> Iterator[Shard]:
    """A file of rows by itself; neighbouring files of one document each, of the same format and folder, together."""
    # As shards of their own, a million web pages would be a million output files.
    group: list[InputFile] = []
    names: set[str] = set()
    size = 0
    for file in sorted(files, key=lambda file: (os.path.dirname(file.name), file.name, file.path)):
        joins = (
            bool(group)
            and file.format == group[-1].format
            and file.format in ONE_DOCUMENT
            and os.path.dirname(group[0].name) == os.path.dirname(file.name)
            and size + file.size <= group_bytes
            and len(group) < GROUP_FILES
        )
        if group and not joins:
            yield Shard(_unused_name(group[0], names), tuple(group))
            group, size = [], 0
        group.append(file)
        size += file.size
    if group:
        yield Shard(_unused_name(group[0], names), tuple(group))


def _unused_name(first: InputFile, names: set[str]) -> str:
    """A file name made of the first file's path; with a hash of the path where another shard has it, or it is too long."""
    # books/cn/a.txt becomes "books-cn-a"; books-cn/a.txt, which would be the same, "books-cn-a-" and a hash.
    whole = os.path.join(os.path.dirname(first.name), first.stem).replace(os.sep, "-")
    plain = whole.encode()[:NAME_BYTES].decode("utf-8", "ignore")
    if plain != whole or plain in names:
        plain += "-" + hashlib.blake2b(first.name.encode() + os.fsencode(first.path), digest_size=4).hexdigest()
    names.add(plain)
    return plain


# Documents


@dataclass(frozen=True)
class Document:
    """One text of a corpus. `id` is its row's own, or made of its title and text, so that rows that move keep theirs."""

    id: str
    source: str
    text: str
    title: str = ""


@dataclass(frozen=True)
class Unreadable:
    """A line (from 1), or a whole file (line None), that cannot be read, and why."""

    file: str
    line: int | None
    reason: str


def read_documents(file: InputFile, config: ReadingConfig) -> Iterator[Document | Unreadable]:
    """Yields the documents of a file in order, and an `Unreadable` for each line that is none; never raises for content."""
    readers = {".txt": _read_text, ".parquet": _read_parquet, ".pdf": _read_page, ".html": _read_page, ".htm": _read_page}
    try:
        for number, value in readers.get(file.format, _read_json)(file, config):
            yield _to_document(value, file, number, config)
    except (TornFileError, DataError, UnicodeDecodeError) as error:
        yield Unreadable(printable(file.path), None, printable(str(error).removeprefix(f"{file.path}: ")))
    except PermissionError as error:
        yield Unreadable(printable(file.path), None, f"cannot be opened ({error.strerror})")


def _to_document(value: Any, file: InputFile, number: int, config: ReadingConfig) -> Document | Unreadable:
    def unreadable(reason: str) -> Unreadable:
        return Unreadable(printable(file.path), number, printable(reason))

    if isinstance(value, Fault):
        return unreadable(value.reason)
    if isinstance(value, KeyedValue):
        value = value.value
    row = {config.text_field: value} if isinstance(value, str) else value
    if not isinstance(row, dict):
        return unreadable(f"row is of type {type(row).__name__}, not an object or a string")
    text, title = row.get(config.text_field), row.get(config.title_field)
    if not isinstance(text, str):
        kind = "missing" if text is None else f"of type {type(text).__name__}, not a string"
        return unreadable(f"`{config.text_field}` is {kind}; the row's keys: {', '.join(map(str, list(row)[:8]))}")
    source = config.source or row.get(config.source_field) or file.source
    id, title = row.get("id"), title if isinstance(title, str) else ""
    # JSON may hold half of a surrogate pair, which no UTF-8 file can: found here, it costs a line and not the run.
    for name, field in (("text", text), ("title", title), ("id", str(id))):
        try:
            field.encode("utf-8")
        except UnicodeEncodeError as error:
            return unreadable(f"{name} is not valid Unicode (lone surrogate at character {error.start})")
    # Of its content alone, as `unify` makes them: rows before it, or another name of the file, must not change it.
    if id is None:
        id = hashlib.blake2b(f"{title}\0{text}".encode(), digest_size=8).hexdigest()
    return Document(str(id), canonical_source(str(source)) or "unnamed", text, title)


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file that a stage of the run wrote."""
    # Without the limit for lines of raw files: an escaped document may be longer than it was.
    with open_bytes(path) as file:
        yield from (row for _, row in iterate_values(path, file, LONGEST_ROW, lines=True))


# One reader per format: (line or row number from 1, value) of a file


def _read_json(file: InputFile, config: ReadingConfig) -> Iterator[Item]:
    with open_text(Path(file.path), errors="replace") as opened:
        yield from iterate_values(Path(file.path), opened, config.max_line_bytes, REMEDY, lines=file.format != ".json")


def _read_text(file: InputFile, config: ReadingConfig) -> Iterator[Item]:
    with open_text(Path(file.path), errors="replace") as opened:
        content = opened.read(config.max_line_bytes + 1)  # one byte more tells that it is too long
    if len(content) > config.max_line_bytes:
        raise DataError(f"longer than the limit of {config.max_line_bytes:,} bytes; {REMEDY}")
    if b"\0" in content[:SNIFFED]:
        raise DataError("binary content (NUL bytes), not text")
    text = content.decode("utf-8")
    if text.strip():
        yield 1, text


def _read_page(file: InputFile, config: ReadingConfig) -> Iterator[Item]:
    """The one document of a web page or a PDF file."""
    with open_bytes(Path(file.path)) as opened:
        content = opened.read(config.max_line_bytes + 1)
    if len(content) > config.max_line_bytes:
        raise DataError(f"longer than the limit of {config.max_line_bytes:,} bytes; {REMEDY}")
    title, text = ("", pdf_text(content)) if file.format == ".pdf" else html_text(content)
    yield 1, {config.title_field: title, config.text_field: text}


def _read_parquet(file: InputFile, config: ReadingConfig) -> Iterator[Item]:
    wanted = (config.text_field, config.title_field, config.source_field, "id")
    yield from enumerate(iterate_parquet(Path(file.path), wanted), 1)
