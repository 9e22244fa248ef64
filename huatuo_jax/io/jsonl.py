"""Opens plain, .gz, .xz and .zst files (told apart by their first bytes) and yields their lines or JSON values.

A line or value that cannot be read comes out as a `Fault`; a file that ends too early or is damaged raises `TornFileError`.
"""

import gzip
import io
import json
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from huatuo_jax.errors import DataError

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
    from data_tools.json_stream import iterate_document, starts_document

    with open_bytes(path, on_read) as opened:
        file = io.BufferedReader(opened, CHUNK)  # type: ignore[type-var]
        first = 1
        line = _without_mark(file.readline(SNIFFED))
        while line and not line.strip():
            first += 1
            line = file.readline(SNIFFED)
        if starts_document(line):
            yield from iterate_document(path, line, file)
            return
        number = first
        while line:
            if not line.endswith(b"\n"):
                line += file.readline(LONGEST_LINE + 1 - len(line))
            if len(line) > LONGEST_LINE:
                yield number, Fault(f"line is longer than the limit of {LONGEST_LINE:,} bytes; split it")
                while line and not line.endswith(b"\n"):
                    line = file.readline(CHUNK)
            elif line.strip():
                yield number, parse_json(line)
            line, number = file.readline(LONGEST_LINE + 1), number + 1


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
