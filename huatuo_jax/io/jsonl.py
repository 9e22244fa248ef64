"""JSON values of any file, and files of JSON lines: the one reader and the one writer. (Logs that grow: `files.JsonLog`.)

Every journey starts here: `huatuo-data import`, `collect` and `tokenizer train` read their input with `iterate_json`; records are
made of the values by `data_tools.records.layouts`. A file is *JSON lines* (one value per line) or one *document*, and its content
says which, not its name:

    {"turns": ["q", "a"]}\n{"turns": …          lines
    ["q", "a"]\n["q", "a"]\n                     lines: the first line is a value by itself, and another follows
    [{"turns": …}, {"turns": …}]                 a document: an array of values
    {"SFT_data": [["q", "a"], …], …}             a document: lists of values by the name of their source
    {\n  "instruction": …,\n  "output": …\n}     a document: one value, pretty-printed

What must hold: files may be compressed, in UTF-8 or GB18030, and larger than the memory, and nothing is lost silently. A file of
another kind is named (`text.kind_of`). A line that cannot be read comes out as a `Fault`, and reading goes on after it. For a
document that cannot be read, or a compressed file that ends too early, `TornFileError` is raised: nothing says how much is lost.
Documents are parsed part by part: an array of any length, or an object of arrays as in HuatuoGPT-II's training files, costs the
memory of its longest part. Next to read: `tables.py`, `data_tools/records/layouts.py`.

The parts are parsed with the `json` module, at 145 MB/s. ijson was tried instead (its C backend reads the same two files of
200 MB at 155 MB/s): it silently turns a lone surrogate into "?", refuses the whole file for an integer of 64 bits or a NaN,
and names no place.
"""

import codecs
import io
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from huatuo_jax.io.files import CHUNK, TornFileError, json_line, written_aside
from huatuo_jax.io.text import kind_of, open_text

LONGEST_LINE = 256 << 20
"""Bytes; a longer line (or part of a document) is not read, so that no file can fill the memory."""
LONGEST_FIRST_LINE = 8 << 20
"""Bytes of the first line that are read before its file counts as lines or as a document of one line."""
SNIFFED = 1 << 16
"""Bytes after the first line that are looked at as well."""

RECORD_KEYS = {
    *("turns", "text", "conversations", "conversation", "messages", "history", "id", "idx", "source", "system", "tools"),
    *("instruction", "input", "output", "prompt", "completion", "query", "response"),
    *("question", "answer", "questions", "answers"),
    *("dialogue", "dialog", "weights", "images", "chosen", "rejected", "context", "system_prompt"),
}
"""Keys of records. An object with one of them is a record, although all that is seen of it may be lists."""


@dataclass(frozen=True)
class Fault:
    """A line or value that cannot be used, and why."""

    reason: str


@dataclass(frozen=True)
class KeyedValue:
    """One element of a list that is the value of `key` in a document that is an object."""

    key: str
    value: Any


Item = tuple[int, Any]
"""(line number or index of the part, both from 1; the parsed value, a `KeyedValue` or a `Fault`)"""


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
    # Windows programs put a byte order mark in front of UTF-8, which is no JSON.
    number, first = 1, file.readline(LONGEST_FIRST_LINE).removeprefix(codecs.BOM_UTF8)
    while first and not first.strip():
        number, first = number + first.endswith(b"\n"), file.readline(LONGEST_FIRST_LINE)
    # A first line without an end is the whole file, or so long that what follows it would tell no more.
    following = file.read(SNIFFED) if first.endswith(b"\n") else b""
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
    # One byte more than is allowed tells a line that just fits from one that is too long.
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


# ---------------------------------------------------------------- lines or a document?


def shape_of(first: bytes, following: bytes, path: Path) -> Literal["lines", "parts", "value"]:
    """What a file is that begins with the line `first`, followed by `following`: lines, a document of parts or one value."""
    opening, after = first.strip()[:1], following.strip()
    if opening not in (b"[", b"{"):
        return "lines"
    # Replaced, not refused: the text may end within a character, and what is wrong in a file is reported where it is read.
    alone, text = _parsed(first), (first + following).decode("utf-8", "replace")
    by_source = opening == b"{" and _is_by_source(text)
    if alone is not None:
        if after[:1] in (b"[", b"{", b'"'):
            return "lines"
        # The only line of a file. `["q", "a"]` and `{"data": ["q", "a"]}` in JSON lines are dialogues, and in a .json file lists
        # of passages. Messages are a dialogue in both.
        flat = (
            alone if isinstance(alone, list) else [text for texts in alone.values() if isinstance(texts, list) for text in texts]
        )
        in_lines = ".json" not in path.suffixes and bool(flat) and all(isinstance(value, str) for value in flat)
        if isinstance(alone, list):
            are_messages = bool(alone) and all(isinstance(value, dict) and _SPEAKERS & value.keys() for value in alone)
            return "lines" if in_lines or are_messages else "parts"
        return "parts" if by_source and not in_lines else "lines"
    wrong, next_line = _is_wrong(text), following.lstrip(b"\r\n").split(b"\n", 1)[0]
    # A torn first line of JSON lines may look like the beginning of a document; then the next line is a value by itself.
    if (wrong or not (by_source or opening == b"[")) and _parsed(next_line) is not None:
        return "lines"
    if by_source or opening == b"[":
        return "parts"
    return "value" if after and not wrong else "lines"


_SPEAKERS = {"role", "from"}
"""Keys of a message, of which one says who speaks."""


def _parsed(line: bytes) -> list[Any] | dict[str, Any] | None:
    """The array or object that is the whole line, or None."""
    try:
        value = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, list | dict) else None


_KEY = re.compile(r'\s*[{,]\s*"((?:[^"\\]|\\.)*)"\s*:\s*')


def _is_by_source(text: str) -> bool:
    """Whether an object, as far as `text` goes, holds lists by the names of their sources: {"SFT_data": [["q", "a"], …], …}."""
    seen, at = False, 0
    while (key := _KEY.match(text, at)) is not None:
        seen = True
        if key[1] in RECORD_KEYS or not text.startswith("[", key.end()):
            return text[key.end() :] == "" and key[1] not in RECORD_KEYS
        try:
            _, at = _scan(text, key.end())
        except (ValueError, RecursionError):
            break
    return seen


_scan = json.JSONDecoder().raw_decode  # unlike json.loads it says where the value ends
_UNFINISHED = frozenset(
    word[:length]
    for word in ("true", "false", "null", "NaN", "Infinity", "-Infinity", ".", "e+", "e-", "E+", "E-")
    for length in range(9)
)
"""What may stand between the place where parsing failed and the end of a text that goes on: pieces of words and numbers."""


def _goes_on(error: json.JSONDecodeError) -> bool:
    """Whether more text could turn what failed to parse into JSON."""
    if error.msg.startswith("Unterminated string"):
        return True
    rest = error.doc[error.pos :].strip()
    return rest in _UNFINISHED or (error.msg.startswith("Invalid \\u") and len(rest) < 12)


def _is_wrong(text: str) -> bool:
    """Whether no JSON begins with `text`."""
    try:
        _scan(text, len(text) - len(text.lstrip()))
    except RecursionError:
        return True
    except json.JSONDecodeError as error:
        return not _goes_on(error)
    return False


# ---------------------------------------------------------------- documents, part by part

_BLANK = re.compile(r"[ \t\r\n]*")


class JsonDocument:
    """The text around the current place of a document; grows where a value goes on, and drops what was read."""

    def __init__(self, file: IO[bytes], path: Path, limit: int, remedy: str) -> None:
        self._file, self._path, self._limit, self._remedy = file, path, limit, remedy
        # Incremental, because a block may end within a character.
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._text, self._at, self._dropped, self._ended = "", 0, 0, False

    def parts(self) -> Iterator[Any]:
        """The elements of the array, or a `KeyedValue` for each element of the lists in the object, that begins here."""
        if self._peek() == "[":
            yield from self._members("]", self.value)
            return
        for key in self._members("}", self._key):  # each value is taken before the next key is asked for
            if self._peek() == "[":
                yield from (KeyedValue(key, value) for value in self._members("]", self.value))
            else:
                yield KeyedValue(key, self.value())

    def value(self) -> Any:
        """The value that begins here."""
        self._peek()
        while True:
            try:
                value, end = _scan(self._text, self._at)
                # A number at the very end of the window may go on in the next block: "2", "2." and "2e+" of 2e+5.
                if self._ended or len(self._text) - end > 2 or self._text[end:] not in _UNFINISHED:
                    self._at = end
                    return value
            except RecursionError:
                raise self._error("nested too deeply") from None
            except json.JSONDecodeError as error:
                if self._ended and _goes_on(error):
                    raise self._error("the file is torn: it ends within the value") from error
                if not _goes_on(error):
                    self._at = error.pos
                    raise self._error(f"not valid JSON ({error.msg})") from error
            self._grow()

    def end(self) -> None:
        """Raises TornFileError if anything follows."""
        if self._peek():
            raise self._error("content after the end of the document")

    def _members(self, closing: str, take: Callable[[], Any]) -> Iterator[Any]:
        self._at += 1
        if self._peek() == closing:
            self._at += 1
            return
        while True:
            yield take()
            follows = self._peek()
            if follows not in (",", closing):
                torn = self._ended and self._text[self._at :] in _UNFINISHED
                raise self._error("the file is torn: it ends" if torn else f"expected ',' or '{closing}', found {follows!r},")
            self._at += 1
            if follows == closing:
                return

    def _key(self) -> str:
        key = self.value()
        if not isinstance(key, str) or self._peek() != ":":
            raise self._error("expected a key")
        self._at += 1
        return key

    def _peek(self) -> str:
        """The next character that is not blank; empty at the end."""
        while True:
            self._at = _BLANK.match(self._text, self._at).end()  # type: ignore[union-attr]
            if self._at < len(self._text) or self._ended:
                return self._text[self._at : self._at + 1]
            self._grow()

    def _grow(self) -> None:
        """Reads on, doubling what lies ahead, so that a long value is scanned a few times only."""
        ahead = len(self._text) - self._at
        if ahead > self._limit:
            raise TornFileError(f"{self._path}: a value is longer than the limit of {self._limit:,} bytes; {self._remedy}")
        self._text, self._dropped, self._at = self._text[self._at :], self._dropped + self._at, 0
        block = self._file.read(min(max(CHUNK, ahead), self._limit + 1 - ahead))
        self._ended = not block
        try:
            self._text += self._decoder.decode(block, final=self._ended)
        except UnicodeDecodeError as error:
            raise self._error(f"not UTF-8 ({error.reason}) near the value") from error

    def _error(self, reason: str) -> TornFileError:
        place = self._dropped + self._at
        return TornFileError(f"{self._path}: {reason} at character {place:,}; the whole file is rejected")


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
        self._file.write(json_line(row, separators=self._separators))
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

            # Closing the stream must not close the file, which is still to be brought to the disk.
            with zstandard.ZstdCompressor(level=ZSTANDARD_LEVEL).stream_writer(raw, closefd=False) as compressed:
                yield LineWriter(compressed, compact)
        else:
            yield LineWriter(raw, compact)
        # Before the rename of `written_aside`; see `files.write_bytes`.
        raw.flush()
        os.fsync(raw.fileno())
