"""The first bytes of a file in, its encoding out: UTF-8 or GB18030; and a reader that hands on GB18030 as UTF-8."""

import codecs
import io
from typing import IO, Any

from huatuo_jax.errors import DataError

SNIFFED = 1 << 20


def detect_encoding(beginning: bytes) -> str:
    """ "utf-8" or "gb18030", by the lines of a file's first megabyte that are not ASCII.

    Bytes of UTF-8 often decode as GB18030 without an error (as nonsense), but hardly ever the other way round: a file is GB18030
    only if most such lines are no UTF-8 and all of it decodes as GB18030. Single broken lines do not decide.

    Raises:
      DataError: for UTF-16 and UTF-32 (by their byte order mark) and for binary content (NUL bytes).
    """
    if beginning.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError("UTF-16 or UTF-32; convert it to UTF-8 first")
    lines = [line for line in beginning.split(b"\n") if not line.isascii()]
    if len(beginning) >= SNIFFED and len(lines) > 1:
        lines.pop()
    broken = sum(not _decodes(line, "utf-8") for line in lines)
    if broken * 2 > len(lines) and _decodes(beginning, "gb18030"):
        return "gb18030"
    return "utf-8"


def _decodes(content: bytes, encoding: str) -> bool:
    """Whether bytes decode, except for a character that the end may have cut."""
    try:
        codecs.getincrementaldecoder(encoding)().decode(content)
    except UnicodeDecodeError:
        return False
    return True


class AsUtf8(io.RawIOBase):
    """A file of GB18030 bytes, read as UTF-8 bytes; what does not decode becomes U+FFFD."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._decoder = codecs.getincrementaldecoder("gb18030")("replace")
        self._waiting = b""

    def readable(self) -> bool:  # noqa: D102
        return True

    def readinto(self, buffer: Any) -> int:  # noqa: D102
        while not self._waiting:
            content = self._file.read(SNIFFED)
            self._waiting = self._decoder.decode(content, final=not content).encode("utf-8")
            if not content:
                break
        count = min(len(buffer), len(self._waiting))
        buffer[:count] = self._waiting[:count]
        self._waiting = self._waiting[count:]
        return count
