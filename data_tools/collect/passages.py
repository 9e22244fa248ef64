"""From documents to clean passages of the domain: first stage of a run, shard by shard.

A document passes these gates in order: control characters go, its language is determined, the domain model keeps it or not, it
is cut into passages, the cleaning rules drop some, personal data is masked. What stays is written with the hashes by which
`duplicates.py` finds copies. A shard's folder gets `passages.jsonl.zst`, `dropped.jsonl.zst` (if asked for),
`unreadable.jsonl`, the arrays of `PassageHashes`, and `done.json`, the last: its statistics, and what it was made from.

Cutting loses nothing: the passages of a document joined give it back, character for character. Nothing here looks beyond one
document, so shards can be made in any order and by any number of workers. Next to read: `duplicates.py`.
"""

import contextlib
import functools
import re
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_tools.collect.clean import dropping_rule, remove_control_characters
from data_tools.collect.domain import DomainModel, load_model
from data_tools.collect.duplicates import PassageHashes
from data_tools.collect.masks import mask_personal_data
from data_tools.collect.reading import Document, Shard, Unreadable, read_documents
from data_tools.collect.report import Statistics
from data_tools.collect.settings import CollectConfig, Window
from data_tools.records.language import language_of
from huatuo_jax.io.files import sha256_file, write_json
from huatuo_jax.io.jsonl import LineWriter, write_lines

TITLE_CHARS = {"zh": 40, "en": 200}
OUT_OF_DOMAIN = "out of domain"


@dataclass(frozen=True)
class PassagesTask:
    """One shard; `folder` is its own, `model` the file of the domain model (None: any domain), `key` what done.json must say."""

    shard: Shard
    config: CollectConfig
    model: Path | None
    folder: Path
    key: str

    @property
    def marker(self) -> Path:
        """The last file that the stage writes."""
        return self.folder / "done.json"

    @property
    def passages(self) -> Path:
        """The clean passages."""
        return self.folder / "passages.jsonl.zst"

    @property
    def dropped(self) -> Path:
        """What was dropped, with the reason; there with `keep_dropped` only."""
        return self.folder / "dropped.jsonl.zst"

    @property
    def unreadable(self) -> Path:
        """Lines and files that could not be read."""
        return self.folder / "unreadable.jsonl"


def make_passages(task: PassagesTask) -> None:
    """Runs the stage on a shard; the folder counts as done when its marker is there with the task's key."""
    task.marker.unlink(missing_ok=True)
    statistics, hashes = Statistics(), PassageHashes(task.config.near)
    model = None if task.model is None else _loaded_model(task.model, task.key)
    with contextlib.ExitStack() as stack:
        passages = stack.enter_context(write_lines(task.passages, compact=True))
        unreadable = stack.enter_context(write_lines(task.unreadable))
        dropped = stack.enter_context(write_lines(task.dropped, compact=True)) if task.config.keep_dropped else None
        for file in task.shard.files:
            for document in read_documents(file, task.config.reading):
                if isinstance(document, Unreadable):
                    unreadable.write(asdict(document))
                    continue
                for row in passages_of(document, task.config, model, statistics, dropped):
                    passages.write(row)
                    hashes.add(row["source"], row["text"])
    statistics.unreadable = unreadable.rows
    hashes.save(task.folder)
    inputs = [
        {"name": file.name, "size": file.size, "modified": file.modified, "sha256": sha256_file(file.path)}
        for file in task.shard.files
    ]
    done = {"key": task.key, "inputs": inputs, "rows": hashes.rows, "sources": hashes.sources, "statistics": statistics.to_json()}
    write_json(task.marker, done)


@functools.lru_cache(maxsize=1)
def _loaded_model(path: Path, key: str) -> DomainModel:
    """The model, read once a process; `key` changes with its content."""
    return load_model(path)


def passages_of(
    document: Document,
    config: CollectConfig,
    model: DomainModel | None,
    statistics: Statistics,
    dropped: LineWriter | None = None,
) -> Iterator[dict[str, Any]]:
    """The clean passages of one document as rows; counts what is kept and dropped."""
    source = document.source
    statistics.count(source, "raw", document.text)  # as it was given: all shares in the report are of these bytes
    text = remove_control_characters(document.text)
    language = language_of(text)

    def masked(piece: str, count: bool = True) -> str:
        if not config.mask:
            return piece
        piece, masks = mask_personal_data(piece, config.clinical)
        if count:
            statistics.mask(masks)
        return piece

    def drop(reason: str, piece: str, id: str) -> None:
        # Dropped texts are read by people too, but the report counts masks of what is kept.
        statistics.drop(source, reason, piece, lambda shown: masked(shown, count=False))
        if dropped is not None:
            dropped.write({"id": id, "source": source, "dropped": reason, "text": masked(piece, count=False)})

    score = None
    if model is not None:
        kept, score = model.keeps(text, language)
        if not kept and source not in config.in_domain:
            drop(OUT_OF_DOMAIN, text, document.id)
            return
    statistics.count(source, "extracted", text)
    bounds = segment(text, config.windows[language], language)
    given_title = remove_control_characters(document.title).strip()
    title = given_title or (_first_heading(text, language) if len(bounds) > 1 else "")
    for number, (start, end) in enumerate(bounds):
        piece, id = text[start:end].strip(), f"{document.id}-{number}"
        # A Chinese document may quote a page of English: its passages have languages of their own. Only `too_short` asks.
        is_short = len(piece) < max(config.clean.min_chars_zh, config.clean.min_chars_en)
        if rule := dropping_rule(piece, language_of(piece) if len(bounds) > 1 and is_short else language, config.clean):
            drop(rule, piece, id)
            continue
        piece = masked(piece)
        statistics.count(source, "cleaned", piece)
        row: dict[str, Any] = {"id": id, "source": source, "text": piece}
        # The first passage holds the heading itself.
        if title and (number or given_title):
            row["title"] = masked(title)
        row["language"] = language
        if score is not None:
            row["score"] = round(score, 4)
        yield row


def _first_heading(text: str, language: str) -> str:
    """The first line of a document if it reads like its title."""
    first = text[: 4 * TITLE_CHARS[language]].strip().split("\n", 1)[0].strip()
    return first if len(first) > 1 and is_heading(first, TITLE_CHARS[language]) else ""


# Cutting a document into passages

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
_LIST_ITEM = re.compile(r"[ \t　]{0,8}(?:[-*•·●▪◦]|[(（]?\d{1,3}[.)）、．]|[(（]?[一二三四五六七八九十]{1,3}[)）、．]|[①-⑳])")
_ENDS_SENTENCE = ("。", "！", "？", "!", "?", "；", ";", ".", "…", "，", ",", "、", "”", '"', "）")
_INTRODUCES = (":", "：")
HEADING_CHARS = {"zh": 30, "en": 90}


def segment(text: str, window: Window, language: str) -> list[tuple[int, int]]:
    """Bounds (start, end) of the passages of a document; empty for an empty one.

    Among the places within the window the strongest is taken, the furthest of several; a sentence longer than the window is cut
    at a blank or, without one, at the window's end. A heading stays with what follows it, a list or table with the line that
    introduces it, unless the window is too small for that.
    """
    # A window of 10 to 50 and a document of 90 characters, where it may be cut after characters 18 (a sentence), 30 (a
    # paragraph) and 47 (a sentence). From 0, the places 10 to 50 are within reach. Each strength is worth a third of the
    # window: 18 scores 1·50//3 + 18 = 34, 30 scores 3·50//3 + 30 = 80, 47 scores 63, so the paragraph ends the passage (0, 30);
    # a sentence end is preferred to it only if it lies 34 characters further on. 60 characters are left, too many for one
    # passage: the next limit is min(30 + 50, 90 - 10) = 80, so that the last passage has at least 10.
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
        # A line has ended; what it was decides on two places: the one before it, and the one after it.
        line, gap = text[line_start : match.start()], match["lines"].count("\n")
        heading = is_heading(line, heading_chars) and not after_heading
        # Before a heading is a good place to cut, unless more blank lines follow it than a heading has.
        if heading and line_start and places and places[-1] == line_start and strengths[-1] >= LINE and gap < 3:
            strengths[-1] = max(strengths[-1], HEADING if strengths[-1] >= PARAGRAPH else PARAGRAPH)
        # After a heading or a line such as "the following:" no cut: it belongs to what comes next.
        if not heading and not line.rstrip().endswith(_INTRODUCES):
            inside = gap == 1 and (_LIST_ITEM.match(text, end) or ("|" in line or "\t" in line.strip()))
            places.append(end)
            strengths.append(WITHIN_LIST if inside else PARAGRAPH if gap > 1 else LINE)
        line_start, after_heading = end, heading
    return places, strengths
