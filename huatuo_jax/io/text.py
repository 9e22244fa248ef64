"""Text files as people have them: in UTF-8 or GB18030, compressed or not; and files of another kind, told by how they begin.

On the way: `files.open_bytes` unpacks a file, here its bytes become UTF-8, and `jsonl` and `tables` read values from them. What
must hold: a file of another kind is named once, before work is spent on it, and not once per line; bytes that no encoding
explains stay wrong, so that the reader can name their line.
"""

import codecs
import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from huatuo_jax.errors import DataError
from huatuo_jax.io.files import TornFileError, open_bytes

SNIFFED = 1 << 20
"""Bytes at the beginning of a file that show its encoding."""
_KIND_SNIFFED = 1 << 16

_KINDS = (
    (b"PAR1", "Parquet", "`huatuo-data import` reads it, and makes records of it"),
    (b"ARROW1", "an Arrow file", "save it as Parquet"),
    (b"\xff\xff\xff\xff", "an Arrow stream", "save it as Parquet"),
    (b"FEA1", "a Feather file", "save it as Parquet"),
    (b"SQLite format 3\0", "an SQLite database", "export its table as CSV"),
    (b"\x89HDF\r\n", "an HDF5 file", "save its texts as JSON lines"),
    (b"\x93NUMPY", "a NumPy array", "save its texts as JSON lines"),
    (b"%PDF", "PDF", "`huatuo-data collect` reads it"),
    (b"{\\rtf", "an RTF document", "save it as plain text"),
    (b"PK\x03\x04", "a ZIP archive, or an Office file such as .xlsx or .docx", "unpack it, or save the sheet as CSV"),
    (b"\xd0\xcf\x11\xe0", "an old Office file such as .xls or .doc", "save the sheet as CSV"),
    (b"\x89PNG", "an image", "leave it out"),
    (b"\xff\xd8\xff", "an image", "leave it out"),
    (b"GIF8", "an image", "leave it out"),
    (b"BZh", "compressed with bzip2", "unpack it"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it"),
    (b"Rar!", "a RAR archive", "unpack it"),
    (b"\x04\x22\x4d\x18", "compressed with LZ4", "unpack it"),
    (b"version https://git-lfs.github.com", "a pointer of Git LFS, not the file itself", "fetch it with `git lfs pull`"),
    (codecs.BOM_UTF16_LE, "UTF-16 or UTF-32", "convert it to UTF-8"),
    (codecs.BOM_UTF16_BE, "UTF-16 or UTF-32", "convert it to UTF-8"),
)  # fmt: skip
"""How files of other kinds begin, what they are, and what to do."""


def kind_of(path: Path) -> tuple[str, str]:
    """What a file is that is neither text nor unknown (then ""), and what to do with it.

    Raises:
      TornFileError: its compressed content is damaged from the beginning.
    """
    with open_bytes(path) as file:
        beginning = read_up_to(file, _KIND_SNIFFED)
    for magic, kind, remedy in _KINDS:
        if beginning.startswith(magic):
            return kind, remedy
    if beginning[257:262] == b"ustar":
        return "a tar archive", "unpack it"
    if beginning.removeprefix(codecs.BOM_UTF8).lstrip()[:14].lower().startswith((b"<!doctype html", b"<html")):
        return "HTML", "`huatuo-data collect` reads it"
    return "", ""


def holds_no_json(path: Path) -> str:
    """What a file holds of which no line can be JSON, "" if some line may be."""
    with open_bytes(path) as file:
        beginning = read_up_to(file, _KIND_SNIFFED).removeprefix(codecs.BOM_UTF8)
    # UTF-16 without a mark too: every other byte of its ASCII characters is NUL.
    if b"\0" in beginning[:4096]:
        return "binary content (NUL bytes)"
    lines = [line.lstrip() for line in beginning.splitlines() if line.strip()][:20]
    return "" if not lines or any(line.startswith((b"{", b"[", b'"')) for line in lines) else "plain text"


def read_up_to(file: IO[bytes], count: int) -> bytes:
    """The next `count` bytes, or all that are left; a compressed file gives fewer at a time."""
    blocks = []
    while count > 0 and (block := file.read(count)):
        blocks.append(block)
        count -= len(block)
    return b"".join(blocks)


@contextmanager
def open_text(path: Path, on_read: Callable[[int], None] | None = None, errors: str = "keep") -> Iterator[IO[bytes]]:
    """Opens the decompressed content of a file as UTF-8, without a byte order mark; see `open_bytes` and `detect_encoding`.

    Args:
      errors: what becomes of bytes in a file of GB18030 that are none: "keep" makes them no UTF-8 either, so that a reader finds
        them in their line; "replace" makes them U+FFFD.
    """
    with open_bytes(path, on_read) as opened:
        try:
            yield io.BufferedReader(_AsUtf8(opened, errors), SNIFFED)
        except _NotReadable as error:
            raise TornFileError(f"{path}: {error}") from error


class _NotReadable(DataError):
    """Raised within a file that does not know its path."""


class _AsUtf8(io.RawIOBase):
    """A file whose encoding its first megabyte shows, read as UTF-8."""

    def __init__(self, file: IO[bytes], errors: str) -> None:
        self._file = file
        beginning = read_up_to(file, SNIFFED)
        self._decoder = None
        if detect_encoding(beginning) == "gb18030":
            self._decoder = codecs.getincrementaldecoder("gb18030")("surrogateescape" if errors == "keep" else "replace")
        self._waiting = self._encoded(beginning.removeprefix(codecs.BOM_UTF8))

    def _encoded(self, content: bytes) -> memoryview:
        if self._decoder is not None:
            # A byte that was kept is half of a surrogate pair here, and three bytes that are no UTF-8 afterwards.
            content = self._decoder.decode(content, final=not content).encode("utf-8", "surrogatepass")
        return memoryview(content)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._waiting:
            content = self._file.read(SNIFFED)
            self._waiting = self._encoded(content)
            if not content:
                break
        count = min(len(buffer), len(self._waiting))
        buffer[:count] = self._waiting[:count]
        self._waiting = self._waiting[count:]
        return count


def detect_encoding(beginning: bytes) -> str:
    """ "utf-8" or "gb18030", by the lines of a file's first megabyte that are not ASCII.

    Bytes of UTF-8 often decode as GB18030 without an error (as nonsense), but hardly ever the other way round: a file is GB18030
    only if most such lines are no UTF-8 and nearly all decode as GB18030, into characters as Chinese texts have them. Single
    broken lines do not decide.

    Raises:
      DataError: for UTF-16 and UTF-32 (by their byte order mark).
    """
    if beginning.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise _NotReadable("UTF-16 or UTF-32; convert it to UTF-8 first")
    # Of 300 lines in Chinese 3 are broken UTF-8: a damaged file of UTF-8. 297 are: GB18030, in which a few short lines happen
    # to be valid UTF-8 too.
    lines = [line for line in beginning.split(b"\n") if not line.isascii()]
    if len(beginning) >= SNIFFED and len(lines) > 1:
        lines.pop()  # the megabyte may end within it
    if sum(not _decodes(line, "utf-8") for line in lines) * 2 <= len(lines):
        return "utf-8"
    undecodable = sum(not _decodes(line, "gb18030") for line in lines)
    return "gb18030" if undecodable * 10 <= len(lines) and _has_common_pairs(beginning) else "utf-8"


def _has_common_pairs(content: bytes) -> bool:
    """Whether most bytes beyond ASCII stand in pairs, as the characters of GB2312 do."""
    # "café " in Latin-1 decodes as GB18030 too, into one rare character of E9 and a blank or letter; 病 is B2 A1.
    beyond = len(content.translate(None, bytes(range(0x81))))
    return 2 * 2 * len(_PAIR.findall(content)) > beyond


_PAIR = re.compile(rb"[\xa1-\xf7][\xa1-\xfe]")


def _decodes(content: bytes, encoding: str) -> bool:
    """Whether bytes decode, except for a character that the end may have cut."""
    try:
        codecs.getincrementaldecoder(encoding)().decode(content)
    except UnicodeDecodeError:
        return False
    return True
