"""JSON documents: told apart from JSON lines by parsing what a file begins with, and read part by part.

`jsonl.iterate_values` asks `shape_of` about the first line and what follows, and reads documents through `JsonDocument`, which
holds no more of a file than one window of text: an array of any length, or an object of arrays as in HuatuoGPT-II's training
files, costs the memory of its longest part.

The windows are parsed with the `json` module, at 145 MB/s. ijson was tried instead (its C backend reads the same two files of
200 MB at 155 MB/s): it turns a lone surrogate into "?" without a word, refuses the whole file for an integer of 64 bits or a NaN,
and names no place.
"""

import codecs
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from huatuo_jax.io.files import CHUNK, TornFileError

RECORD_KEYS = {
    *("turns", "text", "conversations", "conversation", "messages", "history", "id", "idx", "source", "system", "tools"),
    *("dialogue", "dialog", "weights", "images", "chosen", "rejected", "context", "system_prompt"),
    *(
        "instruction",
        "input",
        "output",
        "prompt",
        "completion",
        "query",
        "response",
        "question",
        "answer",
        "questions",
        "answers",
    ),
}
"""Keys of records. An object with one of them is a record, although all that is seen of it may be lists."""


@dataclass(frozen=True)
class Pair:
    """One element of a list that is the value of `key` in a document that is an object."""

    key: str
    value: Any


def shape_of(first: bytes, following: bytes, path: Path) -> Literal["lines", "parts", "value"]:
    """What a file is that begins with the line `first`, followed by `following`: lines, a document of parts or one value."""
    opening, after = first.strip()[:1], following.strip()
    if opening not in (b"[", b"{"):
        return "lines"
    alone, text = _parsed(first), (first + following).decode("utf-8", "replace")
    by_source = opening == b"{" and _is_by_source(text)
    if alone is not None:
        if after[:1] in (b"[", b"{", b'"'):
            return "lines"
        if isinstance(alone, list):
            # The only line of a file: `["q", "a"]` in JSON lines is a dialogue, and in a .json file a list of passages.
            is_dialogue = alone and all(isinstance(value, str) for value in alone) and ".json" not in path.suffixes
            return "lines" if is_dialogue else "parts"
        return "parts" if by_source else "lines"
    wrong, next_line = _is_wrong(text), following.lstrip(b"\r\n").split(b"\n", 1)[0]
    # A torn first line of JSON lines may look like the beginning of a document; then the next line is a value by itself.
    if (wrong or not (by_source or opening == b"[")) and _parsed(next_line) is not None:
        return "lines"
    if by_source or opening == b"[":
        return "parts"
    return "value" if after and not wrong else "lines"


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


_scan = json.JSONDecoder().raw_decode
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


_BLANK = re.compile(r"[ \t\r\n]*")


class JsonDocument:
    """The text around the current place of a document; grows where a value goes on, and drops what was read."""

    def __init__(self, file: IO[bytes], path: Path, limit: int, remedy: str) -> None:
        self._file, self._path, self._limit, self._remedy = file, path, limit, remedy
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._text, self._at, self._dropped, self._ended = "", 0, 0, False

    def parts(self) -> Iterator[Any]:
        """The elements of the array, or a `Pair` for each element of the lists in the object, that begins here."""
        if self._peek() == "[":
            yield from self._members("]", self.value)
            return
        for key in self._members("}", self._key):  # each value is taken before the next key is asked for
            if self._peek() == "[":
                yield from (Pair(key, value) for value in self._members("]", self.value))
            else:
                yield Pair(key, self.value())

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
