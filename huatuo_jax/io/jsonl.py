"""JSON lines and JSON documents: the one reader and the one writer. (Logs that grow line by line: `files.JsonLog`.)

A file is *JSON lines* (one value per line) or one *document*, and its content says which, not its name:

    {"turns": ["q", "a"]}\n{"turns": …          lines
    ["q", "a"]\n["q", "a"]\n                     lines: the first line is a value by itself, and another follows
    [{"turns": …}, {"turns": …}]                 a document: an array of values
    {"SFT_data": [["q", "a"], …], …}             a document: lists of values by the name of their source
    {\n  "instruction": …,\n  "output": …\n}     a document: one value, pretty-printed

Files may be compressed, in UTF-8 or GB18030, and larger than the memory: documents are parsed part by part. A file of another
kind is named (`text.kind_of`). A line that cannot be read comes out as a `Fault`, and reading goes on after it; a document that
cannot be read, like a compressed file that ends too early, raises `TornFileError`, for nothing says how much is lost. Records are
made of the values by `data_tools.records.layouts`.
"""

import codecs
import io
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from huatuo_jax.io.files import CHUNK, TornFileError, written_aside
from huatuo_jax.io.json_document import JsonDocument, shape_of
from huatuo_jax.io.text import kind_of, open_text, read_up_to

LONGEST_LINE = 256 << 20
"""Bytes; a longer line (or part of a document) is not read, so that no file can fill the memory."""
LONGEST_FIRST_LINE = 8 << 20
"""Bytes of the first line that are read before its file counts as lines or as a document of one line."""
SNIFFED = 1 << 16
"""Bytes after the first line that are looked at as well."""


@dataclass(frozen=True)
class Fault:
    """A line or value that cannot be used, and why."""

    reason: str


Item = tuple[int, Any]
"""(line number or index of the part, both from 1; the parsed value, a `Pair` or a `Fault`)"""


def iterate_json(path: Path, on_read: Callable[[int], None] | None = None) -> Iterator[Item]:
    """Yields the values of a file of JSON lines, or the parts of a document; see `open_text` and `iterate_values`.

    Raises:
      TornFileError: the file is of another kind (Parquet, a ZIP archive, …), or as in `iterate_values`.
    """
    kind, remedy = kind_of(path)
    if kind:
        raise TornFileError(f"{path} is {kind}, not JSON; {remedy}")
    with open_text(path, on_read) as file:
        yield from iterate_values(path, file)


def iterate_values(
    path: Path, file: IO[bytes], limit: int | None = None, remedy: str = "split it", lines: bool = False
) -> Iterator[Item]:
    """Yields the values of an opened file in UTF-8; see `iterate_json`.

    Args:
      path: for messages.
      limit: in bytes, of a line or a part of a document; None = LONGEST_LINE. remedy: what to do about a longer one.
      lines: one value per line, even if the file begins like a document.

    Raises:
      TornFileError: a document ends too early, is not JSON, or has a part that is too long.
    """
    limit = LONGEST_LINE if limit is None else limit
    number, first = 1, file.readline(LONGEST_FIRST_LINE).removeprefix(codecs.BOM_UTF8)
    while first and not first.strip():
        number, first = number + first.endswith(b"\n"), file.readline(LONGEST_FIRST_LINE)
    following = read_up_to(file, SNIFFED) if first.endswith(b"\n") else b""
    shape = "lines" if lines else shape_of(first, following, path)
    whole = io.BufferedReader(_Joined(first + following, file), CHUNK)
    if shape == "lines":
        yield from _lines(whole, number, limit, remedy)
        return
    document = JsonDocument(whole, path, limit, remedy)
    if shape == "value":
        yield 1, document.value()
    else:
        yield from enumerate(document.parts(), 1)
    document.end()


def _lines(file: IO[bytes], number: int, limit: int, remedy: str) -> Iterator[Item]:
    """The values of JSON lines; `number` is that of the first line, and blank lines are skipped."""
    while line := file.readline(limit + 1):
        if len(line) > limit and not line.endswith(b"\n"):
            while line and not line.endswith(b"\n"):
                line = file.readline(CHUNK)
            yield number, Fault(f"line is longer than the limit of {limit:,} bytes; {remedy}")
        elif line.strip():
            yield number, parse_json(line)
        number += 1


def parse_json(content: bytes) -> Any:
    """The value of one line of JSON, or a `Fault`."""
    try:
        return json.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        return Fault(f"not UTF-8 ({error.reason} at byte {error.start})")
    except RecursionError:
        return Fault("not usable JSON (nested too deeply)")
    except ValueError as error:
        return Fault(f"not valid JSON ({error})")


class _Joined(io.RawIOBase):
    """Bytes that were read already, then the rest of their file."""

    def __init__(self, beginning: bytes, rest: IO[bytes]) -> None:
        self._beginning, self._rest = io.BytesIO(beginning), rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = self._beginning.read(len(buffer)) or self._rest.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)


# ---------------------------------------------------------------- writing

ZSTANDARD_LEVEL = 3


class LineWriter:
    """Writes values, one a line; `rows` counts them."""

    def __init__(self, file: IO[bytes], compact: bool = False) -> None:
        self._file = file
        self._separators = (",", ":") if compact else None
        self.rows = 0

    def write(self, row: Any) -> None:
        """Appends a value."""
        text = json.dumps(row, ensure_ascii=False, separators=self._separators)
        try:
            line = text.encode("utf-8")
        except UnicodeEncodeError:  # UTF-8 holds no lone surrogate, the escape \\ud800 of JSON does
            line = json.dumps(row, separators=self._separators).encode("ascii")
        self._file.write(line + b"\n")
        self.rows += 1


@contextmanager
def write_lines(path: Path, compact: bool = False) -> Iterator[LineWriter]:
    """Opens a new file of JSON lines; it appears, whole and on the disk, when the context ends without an error.

    Args:
      path: compressed with Zstandard if its name ends in .zst.
      compact: without the blanks after "," and ":".
    """
    with written_aside(path) as aside, open(aside, "wb") as raw:
        if path.suffix == ".zst":
            import zstandard

            with zstandard.ZstdCompressor(level=ZSTANDARD_LEVEL).stream_writer(raw, closefd=False) as compressed:
                yield LineWriter(compressed, compact)
        else:
            yield LineWriter(raw, compact)
        raw.flush()
        os.fsync(raw.fileno())
