"""One corpus file in, its documents and what could not be read out: .jsonl, .json, .txt, .parquet, plain or .gz, .xz, .zst.

A `.txt` file is one document. Rows of the other formats are objects with a text field, or bare strings.
"""

import hashlib
import io
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from data_tools.collect.encodings import SNIFFED, AsUtf8, detect_encoding
from data_tools.collect.shards import InputFile, printable
from data_tools.records.layouts import canonical_source
from huatuo_jax.errors import ConfigError, DataError
from huatuo_jax.io.jsonl import Fault, Pair, TornFileError, iterate_document, open_bytes, parse_json, starts_document

PARQUET_ROWS = 256


@dataclass(frozen=True)
class ReadingConfig:
    """How rows are read.

    Attributes:
      text_field, title_field, source_field: keys of a row; `title_field` and `source_field` may be absent from it.
      source: overrides the source that rows name; without both, it is the file's name.
      max_line_bytes: longer lines (and .txt files, and the rest of a .json document from a longer value on) are not read but put
        into quarantine.
    """

    text_field: str = "text"
    title_field: str = "title"
    source_field: str = "source"
    source: str | None = None
    max_line_bytes: int = 256 << 20


@dataclass(frozen=True)
class Document:
    """One text of a corpus. `id` is its row's own, or made of its place and content, so that every run gives the same."""

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
    readers = {".txt": _read_text, ".parquet": _read_parquet, ".json": _read_json}
    try:
        for number, value in readers.get(file.format, _read_lines)(file, config):
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
    if isinstance(value, Pair):
        value = value.value
    row = {config.text_field: value} if isinstance(value, str) else value
    if not isinstance(row, dict):
        return unreadable(f"row is of type {type(row).__name__}, not an object or a string")
    text, title = row.get(config.text_field), row.get(config.title_field) or ""
    if not isinstance(text, str):
        found = "missing" if text is None else f"of type {type(text).__name__}, not a string"
        return unreadable(f"`{config.text_field}` is {found}; the row's keys: {', '.join(map(str, list(row)[:8]))}")
    source = config.source or row.get(config.source_field) or file.source
    own, title = row.get("id"), title if isinstance(title, str) else ""
    for name, field in (("text", text), ("title", title), ("id", str(own))):
        try:
            field.encode("utf-8")
        except UnicodeEncodeError as error:
            return unreadable(f"{name} is not valid Unicode (lone surrogate at character {error.start})")
    content = hashlib.blake2b(f"{file.name}\0{number}\0{text}".encode(), digest_size=8).hexdigest()
    return Document(content if own is None else str(own), canonical_source(str(source)) or "unnamed", text, title)


@contextmanager
def _as_utf8(file: InputFile) -> Iterator[IO[bytes]]:
    """The decompressed content of a file as UTF-8."""
    with open_bytes(Path(file.path)) as opened:
        beginning = _read_up_to(opened, SNIFFED)
        rest = io.BufferedReader(_Joined(beginning.removeprefix(b"\xef\xbb\xbf"), opened), SNIFFED)
        if detect_encoding(beginning) == "gb18030":
            yield io.BufferedReader(AsUtf8(rest), SNIFFED)
        else:
            yield rest


def _read_up_to(file: IO[bytes], count: int) -> bytes:
    parts = []
    while count > 0 and (part := file.read(count)):
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


class _Joined(io.RawIOBase):
    """Bytes that were read already, then the rest of their file."""

    def __init__(self, beginning: bytes, rest: IO[bytes]) -> None:
        self._beginning, self._rest = beginning, rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = self._beginning[: len(buffer)]
        self._beginning = self._beginning[len(buffer) :]
        content = content or self._rest.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)


def _read_lines(file: InputFile, config: ReadingConfig) -> Iterator[tuple[int, Any]]:
    with _as_utf8(file) as opened:
        yield from _lines(opened, config)


def _lines(opened: IO[bytes], config: ReadingConfig) -> Iterator[tuple[int, Any]]:
    limit, number = config.max_line_bytes, 0
    while line := opened.readline(limit + 1):
        number += 1
        if len(line) > limit and not line.endswith(b"\n"):
            while line and not line.endswith(b"\n"):
                line = opened.readline(SNIFFED)
            yield number, Fault(f"line is longer than the limit of {limit:,} bytes; raise --max-line-bytes to read it")
        elif line.strip():
            yield number, parse_json(line)


def _read_json(file: InputFile, config: ReadingConfig) -> Iterator[tuple[int, Any]]:
    """A JSON document is parsed part by part; one value per line is taken too."""
    with _as_utf8(file) as opened:
        beginning = line = opened.readline(SNIFFED)
        while line.isspace():
            line = opened.readline(SNIFFED)
            beginning += line
        if not starts_document(line):
            yield from _lines(io.BufferedReader(_Joined(beginning, opened), SNIFFED), config)
            return
        parts = _Limited(opened, config.max_line_bytes)
        for number, value in iterate_document(Path(file.path), beginning, parts):  # type: ignore[arg-type]
            parts.begin()
            yield number, value


class _Limited:
    """A file that gives no more than a limit between two calls of `begin`: no part of a document is longer."""

    def __init__(self, file: IO[bytes], limit: int) -> None:
        self._file, self._limit, self._left = file, limit, limit

    def begin(self) -> None:
        self._left = self._limit

    def read(self, count: int) -> bytes:
        if self._left <= 0:
            raise DataError(f"a value is longer than the limit of {self._limit:,} bytes; raise --max-line-bytes to read it")
        content = self._file.read(min(count, self._left))
        self._left -= len(content)
        return content


def _read_text(file: InputFile, config: ReadingConfig) -> Iterator[tuple[int, Any]]:
    with _as_utf8(file) as opened:
        content = _read_up_to(opened, config.max_line_bytes + 1)
    if len(content) > config.max_line_bytes:
        raise DataError(f"longer than the limit of {config.max_line_bytes:,} bytes; raise --max-line-bytes to read it")
    if b"\0" in content[:SNIFFED]:
        raise DataError("binary content (NUL bytes), not text")
    text = content.decode("utf-8")
    if text.strip():
        yield 1, text


def _read_parquet(file: InputFile, config: ReadingConfig) -> Iterator[tuple[int, Any]]:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise ConfigError(f"{file.path}: reading .parquet needs pyarrow; pip install 'huatuo-jax[collect]'") from error
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = file.path
            if not path.endswith(".parquet"):
                path = os.path.join(folder, "content.parquet")
                with open_bytes(Path(file.path)) as opened, open(path, "wb") as out:
                    shutil.copyfileobj(opened, out)
            with parquet.ParquetFile(path) as table:
                wanted = {config.text_field, config.title_field, config.source_field, "id"}
                columns = [name for name in table.schema_arrow.names if name in wanted]
                number = 0
                for batch in table.iter_batches(PARQUET_ROWS, columns=columns):
                    for row in batch.to_pylist():
                        number += 1
                        yield number, row
    except pyarrow.ArrowException as error:
        raise DataError(f"not a readable Parquet file ({error})") from error
