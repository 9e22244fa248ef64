"""Opens plain, .gz, .xz and .zst files (told apart by their first bytes) and yields their lines or JSON values.

A line or value that cannot be read comes out as a `Fault`; a file that ends too early or is damaged raises `TornFileError`.
"""

import codecs
import gzip
import io
import json
import lzma
import os
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from etils import epath

from huatuo_jax.errors import DataError
from huatuo_jax.io.files import PathLike, is_local, write_bytes, written_aside

CHUNK = 1 << 20
LONGEST_LINE = 256 << 20
"""Bytes; a longer line is a Fault, so that no file can fill the memory."""
ZSTANDARD_PIECE = 8 << 10
"""Compressed bytes that are expanded at a time: a block of 128 KiB may take 4 bytes, so a larger piece could fill the memory."""
SNIFFED = 1 << 16
"""Bytes of the first line that are looked at: a document of gigabytes may be a single line."""


class TornFileError(DataError):
    """A file cannot be read to its end: torn, damaged, or not JSON although it begins like it."""


@dataclass(frozen=True)
class Fault:
    """A line or value that cannot be used, and why."""

    reason: str


@dataclass(frozen=True)
class Pair:
    """One element of a list that is the value of `key` in a document that is an object."""

    key: str
    value: Any


Item = tuple[int, Any]
"""(line number or index of the value, both from 1; the parsed value, a `Pair` or a `Fault`)"""


@contextmanager
def open_bytes(path: Path, on_read: Callable[[int], None] | None = None) -> Iterator[IO[bytes]]:
    """Opens a file for reading its decompressed bytes.

    Args:
      on_read: called with the number of (compressed) bytes read each time, for progress bars.

    Raises:
      TornFileError: from within the context, when the content ends too early or is damaged.
    """
    try:
        with open(path, "rb") as plain:
            raw = io.BufferedReader(_Counted(plain, on_read), CHUNK)
            magic = raw.peek(6)[:6]
            if magic.startswith(b"\x1f\x8b"):
                with gzip.GzipFile(fileobj=raw) as unpacked:
                    yield unpacked  # type: ignore[misc]
            elif magic.startswith(b"\xfd7zXZ"):
                with lzma.LZMAFile(raw) as unpacked_xz:
                    yield unpacked_xz
            elif magic.startswith(b"\x28\xb5\x2f\xfd"):
                yield io.BufferedReader(_Zstandard(raw), CHUNK)
            else:
                yield raw
    except (EOFError, lzma.LZMAError, gzip.BadGzipFile, zlib.error) as error:
        raise TornFileError(f"{path}: compressed content is torn or damaged ({error})") from error


def iterate_json(path: Path, on_read: Callable[[int], None] | None = None) -> Iterator[Item]:
    """Yields the JSON values of a file: one per line (JSONL), or the parts of one document (see `json_stream`).

    Blank lines are skipped; numbers are line numbers in JSONL and count the parts of a document.

    Raises:
      TornFileError: see `open_bytes`; also for a document that ends too early.
    """
    with open_bytes(path, on_read) as opened:
        yield from iterate_values(path, io.BufferedReader(opened, CHUNK))  # type: ignore[type-var]


def iterate_values(
    path: Path, file: IO[bytes], longest: int | None = None, remedy: str = "split it", lines: bool = False
) -> Iterator[Item]:
    """The values of an opened file of UTF-8; see `iterate_json`.

    Args:
      path: for messages. lines: one value per line, even if the file begins like a document.
      longest: bytes of a line, or of one value of a document; None: LONGEST_LINE. remedy: for what is longer.
    """
    longest = longest or LONGEST_LINE
    number, first = 1, min(SNIFFED, longest + 1)
    line = _without_mark(file.readline(first))
    while line and not line.strip():
        number += 1
        line = file.readline(first)
    if not lines and starts_document(line):
        yield from iterate_document(path, line, file, longest, remedy)
        return
    while line:
        if not line.endswith(b"\n"):
            line += file.readline(longest + 1 - len(line))
        if len(line) > longest and not line.endswith(b"\n"):
            while line and not line.endswith(b"\n"):
                line = file.readline(CHUNK)
            yield number, Fault(f"line is longer than the limit of {longest:,} bytes; {remedy}")
        elif line.strip():
            yield number, parse_json(line)
        line, number = file.readline(longest + 1), number + 1


def _without_mark(line: bytes) -> bytes:
    """Without the UTF-8 byte order mark that some editors put in front of a file."""
    return line.removeprefix(b"\xef\xbb\xbf")


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


class _Counted(io.RawIOBase):
    """A raw file that reports how many bytes are read from it."""

    def __init__(self, file: IO[bytes], on_read: Callable[[int], None] | None) -> None:
        self._file = file
        self._on_read = on_read or (lambda count: None)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._file.readinto(buffer)  # type: ignore[attr-defined]
        self._on_read(count)
        return count


class _Zstandard(io.RawIOBase):
    """Decompresses Zstandard frames; unlike `zstandard.stream_reader` it reports a frame that ends too early."""

    def __init__(self, file: IO[bytes]) -> None:
        import zstandard

        self._file = file
        self._decompressor = zstandard.ZstdDecompressor()
        self._frame: Any = None
        self._waiting = memoryview(b"")
        self._input = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        import zstandard

        while not self._waiting:
            content = self._input or self._file.read(ZSTANDARD_PIECE)
            self._input = b""
            if not content:
                if self._frame is not None:
                    raise EOFError("the file ended within a Zstandard frame")
                return 0
            if self._frame is None:
                self._frame = self._decompressor.decompressobj()
            try:
                self._waiting = memoryview(self._frame.decompress(content))
            except zstandard.ZstdError as error:
                raise EOFError(str(error)) from error
            if self._frame.eof:
                self._input = self._frame.unused_data
                self._frame = None
        count = min(len(buffer), len(self._waiting))
        buffer[:count] = self._waiting[:count]
        self._waiting = self._waiting[count:]
        return count


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


class JsonLog:
    """A file of JSON lines that grows line by line: what was logged of a run, the answers to a file of questions.

    A kill may cut the last line short; that piece is dropped when the log is opened again. Object stores cannot append: there the
    lines are held, and `sync` writes the whole file.

    Attributes:
      rows: what the file held when it was opened.
    """

    def __init__(self, path: PathLike, until: Callable[[Any], bool] = lambda row: False, durable: bool = False) -> None:
        """Opens a log for more, or a new one.

        Args:
          until: the first row for which this is true is removed, and all that follow.
          durable: each line is on the disk before `append` returns; else it survives the process, but not a loss of power.

        Raises:
          DataError: a line before the last one is not JSON.
        """
        content, size = _content(path), 0
        self.path, self.rows = path, list[Any]()
        for row, end in _rows_and_ends(content, path):
            if until(row):
                break
            self.rows.append(row)
            size = end
        content = content[:size]
        self._durable = durable
        self._held = [content]
        self._file: IO[bytes] | None = None
        if is_local(path):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            self._file = open(path, "ab")  # noqa: SIM115
            self._file.truncate(size)
        if content and not content.endswith(b"\n"):
            self._add(b"\n")

    def append(self, row: Any) -> None:
        """Adds a line; ValueError for NaN and infinity, which are not JSON."""
        self._add(json.dumps(row, ensure_ascii=False, allow_nan=False).encode("utf-8") + b"\n")

    def _add(self, line: bytes) -> None:
        if self._file is None:
            self._held.append(line)
            return
        self._file.write(line)
        self._file.flush()
        if self._durable:
            os.fsync(self._file.fileno())

    def sync(self) -> None:
        """After this the file holds every line, in an object store too."""
        if self._file is None:
            write_bytes(self.path, b"".join(self._held))

    def close(self) -> None:
        """Syncs and closes."""
        self.sync()
        if self._file is not None:
            self._file.close()


def read_log(path: PathLike) -> list[Any]:
    """The rows of a log, without a last line that is being written or was cut short by a kill; [] if there is no such file.

    Raises:
      DataError: a line before the last one is not JSON.
    """
    return [row for row, _ in _rows_and_ends(_content(path), path)]


def _content(path: PathLike) -> bytes:
    file = epath.Path(path)
    return file.read_bytes() if file.exists() else b""


def _rows_and_ends(content: bytes, path: PathLike) -> Iterator[tuple[Any, int]]:
    """The rows of a log, each with the place of its line's end."""
    end = 0
    for number, line in enumerate(content.splitlines(keepends=True), 1):
        end += len(line)
        if not line.strip():
            continue
        row = parse_json(line)
        if not isinstance(row, Fault):
            yield row, end
        elif end < len(content):
            shown = line[:80].decode("utf-8", "replace").strip()
            raise DataError(f"{path}, line {number}: {row.reason}: {shown!r}; remove that line")


RECORD_KEYS = {"turns", "text", "conversations", "messages", "history", "instruction", "id", "idx", "source"}
"""Keys that begin a record of JSONL: a line that begins with one of them is not the start of `{source: [[…], …]}`."""

_OBJECT_OF_LISTS = re.compile(rb'\{\s*"((?:[^"\\]|\\.)*)"\s*:\s*\[\s*([\[\]]|$)')
_BLANK = re.compile(r"[ \t\r\n]*")


def starts_document(line: bytes) -> bool:
    """Whether a file whose first line begins with `line` is one JSON document rather than one value per line."""
    line = line.strip()
    if line.startswith(b"[") or line == b"{":
        return True
    match = _OBJECT_OF_LISTS.match(line)
    return match is not None and match[1].decode("utf-8", "replace") not in RECORD_KEYS


def iterate_document(path: Path, beginning: bytes, rest: IO[bytes], longest: int, remedy: str) -> Iterator[Item]:
    """Yields (number from 1, part) of the document that is `beginning` followed by `rest`; see `iterate_values`.

    Raises:
      TornFileError: if it is not one whole JSON document in UTF-8.
    """
    window = _Window(path, beginning, rest, longest, remedy)
    number = 0
    if window.peek() == "[":
        for value in window.elements():
            number += 1
            yield number, value
    else:
        for key in window.member_names():
            if window.peek() == "[":
                for value in window.elements():
                    number += 1
                    yield number, Pair(key, value)
            else:
                number += 1
                yield number, Pair(key, window.value())
    if window.peek():
        raise window.error("content after the end of the document")


class _Window:
    """The text around the current position of a document; grows where a value goes on, and drops what was read."""

    def __init__(self, path: Path, beginning: bytes, rest: IO[bytes], longest: int, remedy: str) -> None:
        self._path, self._rest = path, rest
        self._longest, self._remedy, self._read = longest, remedy, 0
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._scan = json.JSONDecoder().raw_decode
        self._text, self._at, self._dropped, self._ended = "", 0, 0, False
        self._feed(beginning)

    def error(self, reason: str) -> TornFileError:
        return TornFileError(f"{self._path}: {reason} at character {self._dropped + self._at:,}; the whole file is rejected")

    def elements(self) -> Iterator[Any]:
        """The values of the array that begins here."""
        yield from self._members("]", self.value)

    def member_names(self) -> Iterator[str]:
        """The keys of the object that begins here; the caller takes each value before it asks for the next key."""
        if self.peek() != "{":
            raise self.error("neither an array nor an object")
        yield from self._members("}", self._key)

    def _members(self, closing: str, take: Any) -> Iterator[Any]:
        self._at += 1
        if self.peek() == closing:
            self._at += 1
            return
        while True:
            yield take()
            found = self.peek()
            self._at += 1
            if found == closing:
                return
            if found != ",":
                self._at -= 1
                raise self.error("the file is torn: it ends" if not found else f"expected ',' or '{closing}', found {found!r},")

    def _key(self) -> str:
        key = self.value()
        if not isinstance(key, str) or self.peek() != ":":
            raise self.error("expected a key")
        self._at += 1
        return key

    def peek(self) -> str:
        """The next character that is not blank; empty at the end."""
        while True:
            self._at = _BLANK.match(self._text, self._at).end()  # type: ignore[union-attr]
            if self._at < len(self._text) or self._ended:
                return self._text[self._at : self._at + 1]
            self._grow()

    def value(self) -> Any:
        """The value that begins here."""
        self._read = 0
        self.peek()
        while True:
            try:
                value, end = self._scan(self._text, self._at)
                # A number at the very end of the window may go on in the next block.
                if end < len(self._text) or self._ended:
                    self._at = end
                    return value
            except RecursionError:
                raise self.error("nested too deeply") from None
            except ValueError as error:
                if self._ended:
                    torn = self._at >= len(self._text) or getattr(error, "pos", 0) >= len(self._text.rstrip()) - 1
                    torn = torn or "Unterminated" in str(error)
                    reason = "the file is torn: it ends within the value" if torn else f"not valid JSON ({error})"
                    raise self.error(reason) from error
            self._grow()

    def _grow(self) -> None:
        """Reads on, doubling what lies ahead, so that a long value is scanned a few times only."""
        if self._read >= self._longest:
            raise TornFileError(f"{self._path}: a value is longer than the limit of {self._longest:,} bytes; {self._remedy}")
        wanted = min(max(CHUNK, len(self._text) - self._at), self._longest - self._read)
        self._text, self._dropped, self._at = self._text[self._at :], self._dropped + self._at, 0
        block = self._rest.read(wanted)
        self._read += len(block)
        self._ended = not block
        self._feed(block)

    def _feed(self, block: bytes) -> None:
        try:
            self._text += self._decoder.decode(block, final=self._ended)
        except UnicodeDecodeError as error:
            raise self.error(f"not UTF-8 ({error.reason}) near the value") from error
