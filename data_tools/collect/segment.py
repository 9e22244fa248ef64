"""A document in, the bounds of its passages out: cut at sentence ends and better places, within a window of lengths.

The passages tile the document: joined they give it back, character for character. A heading stays with what follows it, a list
or table with the line that introduces it, unless the window is too small for that.
"""

import re
from array import array
from bisect import bisect_left, bisect_right
from dataclasses import dataclass

from huatuo_jax.errors import ConfigError

WITHIN_LIST, SENTENCE, LINE, PARAGRAPH, HEADING = range(5)
"""Strengths of the places where a document may be cut, weakest first; `HEADING` is the place before a heading."""

_PLACE = re.compile(
    r"(?P<lines>\n[\s　]*)"
    r"|[。！？!?；…]+[”’\"'」』）)】]*[ \t　]*"
    r"|(?<=[^\s.][^\s.])\.+[\"'”’)\]]*[ \t]+(?=[\"'“‘(\[]?[A-Z0-9])"
)
_ABBREVIATION = re.compile(
    r"(?:\b(?:Dr|Mr|Mrs|Ms|Prof|St|vs|cf|al|Fig|Figs|No|Nos|Vol|Eq|Ref|approx|ca|etc|Inc|Ltd|Jr|Sr|e\.g|i\.e)|\b[A-Z])$"
)
_LIST_ITEM = re.compile(r"[ \t　]*(?:[-*•·●▪◦]|[(（]?\d{1,3}[.)）、．]|[(（]?[一二三四五六七八九十]{1,3}[)）、．]|[①-⑳])")
_ENDS_SENTENCE = ("。", "！", "？", "!", "?", "；", ";", ".", "…", "，", ",", "、", "”", '"', "）")
_INTRODUCES = (":", "：")
HEADING_CHARS = {"zh": 30, "en": 90}


@dataclass(frozen=True)
class Window:
    """Lengths of passages in characters.

    Attributes:
      shortest: a passage gets at least this many where the document allows. longest: it never gets more.
    """

    shortest: int
    longest: int

    def __post_init__(self) -> None:
        if not 1 <= self.shortest <= self.longest // 2:
            raise ConfigError(
                f"the passage window is {self.shortest} to {self.longest} characters; the shortest must be at least 1 and at "
                "most half of the longest, or sentences would be cut to fit"
            )


def segment(text: str, window: Window, language: str) -> list[tuple[int, int]]:
    """Bounds (start, end) of the passages of a document; empty for an empty one.

    Among the places within the window the strongest is taken, the furthest of several; a sentence longer than the window is cut
    at a blank or, without one, at the window's end.
    """
    if len(text) <= window.longest:
        return [(0, len(text))] if text else []
    places, strengths = _places(text, HEADING_CHARS[language])
    bounds: list[tuple[int, int]] = []
    start, end = 0, len(text)
    while end - start > window.longest:
        # The last two passages share what is left, so that no scrap remains.
        limit = min(start + window.longest, max(end - window.shortest, start + window.shortest))
        first, last = bisect_left(places, start + window.shortest), bisect_right(places, limit)
        if first < last:
            best = max(range(first, last), key=lambda i: (strengths[i] * window.longest // 3 + places[i], places[i]))
            cut = places[best]
        else:
            blank = max(text.rfind(" ", start + window.shortest, limit), text.rfind("，", start + window.shortest, limit))
            cut = blank + 1 if blank >= 0 else limit
        bounds.append((start, cut))
        start = cut
    bounds.append((start, end))
    return bounds


def is_heading(line: str, longest: int) -> bool:
    """Whether a line looks like a heading: short, not a list item, not the end of a sentence."""
    line = line.strip()
    return 0 < len(line) <= longest and not line.endswith(_ENDS_SENTENCE) and not _LIST_ITEM.match(line) and "|" not in line


def _places(text: str, heading_chars: int) -> tuple["array[int]", "array[int]"]:
    """Where the text may be cut (ascending), and the strength of each place."""
    places, strengths = array("q"), array("b")
    line_start, after_heading = 0, False
    for match in _PLACE.finditer(text):
        end = match.end()
        if match["lines"] is None:
            if text[match.start()] != "." or not _ABBREVIATION.search(text, max(line_start, match.start() - 8), match.start()):
                places.append(end)
                strengths.append(SENTENCE)
            continue
        line, gap = text[line_start : match.start()], match["lines"].count("\n")
        heading = is_heading(line, heading_chars) and not after_heading
        if heading and line_start and places and places[-1] == line_start and strengths[-1] >= LINE and gap < 3:
            strengths[-1] = max(strengths[-1], HEADING if strengths[-1] >= PARAGRAPH else PARAGRAPH)
        if not heading and not line.rstrip().endswith(_INTRODUCES):
            inside = gap == 1 and (_LIST_ITEM.match(text, end) or ("|" in line or "\t" in line.strip()))
            places.append(end)
            strengths.append(WITHIN_LIST if inside else PARAGRAPH if gap > 1 else LINE)
        line_start, after_heading = end, heading
    return places, strengths
