"""One large JSON document in, its parts out one by one: files of many gigabytes need the memory of one part.

An array yields its elements. An object whose values are lists, `{source: [dialogue, …], …}`, yields a `Pair` per element; any
other value of it yields one `Pair`.
"""

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from data_tools.reading import CHUNK, Item, Pair, TornFileError

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


def iterate_document(path: Path, beginning: bytes, rest: IO[bytes]) -> Iterator[Item]:
    """Yields (number from 1, part) of the document that is `beginning` followed by `rest`.

    Raises:
      TornFileError: if it is not one whole JSON document in UTF-8.
    """
    window = _Window(path, beginning, rest)
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

    def __init__(self, path: Path, beginning: bytes, rest: IO[bytes]) -> None:
        self._path, self._rest = path, rest
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
        wanted = max(CHUNK, len(self._text) - self._at)
        self._text, self._dropped, self._at = self._text[self._at :], self._dropped + self._at, 0
        block = self._rest.read(wanted)
        self._ended = not block
        self._feed(block)

    def _feed(self, block: bytes) -> None:
        try:
            self._text += self._decoder.decode(block, final=self._ended)
        except UnicodeDecodeError as error:
            raise self.error(f"not UTF-8 ({error.reason}) near the value") from error
