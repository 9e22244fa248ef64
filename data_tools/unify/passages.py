"""Passages in, (question, answer) pairs out, without a language model: the question comes from the title, the answer is the text.

A stand-in for the rewriting by a language model (HuatuoGPT-II, §"data unification") that costs nothing: the whole pipeline can
be tried with it, but its questions are as plain as the titles. What a passage offers is used in this order:
  1. a patient's question and a doctor's answer (lines `患者：…`, `医生：…`): just these, with the line above if the patient asks
     nothing;
  2. one of the first two lines is a question (ends in ? or ？), or the passage comes from a web corpus (its source says so),
     where the first line is what a user wrote: that line, answered by the lines after it;
  3. a title (its field `title`, a line after `TITLE:`, or a short first line that is not a sentence): a question about it;
  4. else its first words, quoted in the question.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_tools.records.importing import Progress, RejectedLog, plain_stem, stable_id
from data_tools.records.language import language_of_passage
from data_tools.records.layouts import canonical_source
from huatuo_jax.errors import RecordError
from huatuo_jax.io.files import TornFileError
from huatuo_jax.io.jsonl import Fault, iterate_json

QUOTED = {"zh": 30, "en": 80}
"""Characters of the passage that stand in for a title."""
TITLE_LENGTH = {"zh": 40, "en": 200}
QUESTION_LENGTH = 300
WEB_CORPUS = "web_corpus"
"""In a source's name (`medical_web_corpus_en`, say) it says that a passage's first line is what a user wrote."""
GENERIC_TITLES = {"introduction", "learning outcomes", "abstract", "summary", "overview", "background", "目的", "摘要", "前言"}

ABOUT = {
    "zh": (
        "请介绍一下{}。",
        "关于{}，有哪些需要了解的内容？",
        "我想了解{}，能详细说说吗？",
        "请围绕“{}”作一个专业的说明。",
        "{}是怎么回事？请具体讲讲。",
    ),
    "en": (
        "Please tell me about {}.",
        "What should I know about {}?",
        "Could you explain {} in detail?",
        "Give a professional account of the following topic: {}.",
        "I would like to learn about {}. What can you tell me?",
    ),
}
OPENING = {
    "zh": (
        "请讲讲与“{}……”有关的知识。",
        "“{}……”这部分内容具体说的是什么？",
        "请以“{}……”为主题，给出完整的说明。",
    ),
    "en": (
        'What is there to know about this: "{} …"?',
        'Please give the full account that begins "{} …".',
        'Explain the topic that is introduced by "{} …".',
    ),
}

_CONSULTATION = re.compile(r"^\s*(?P<title>.*?)\s*患者：(?P<question>.*?)\s*医生：(?P<answer>.+)$", re.DOTALL)
_TITLE_HEADING = re.compile(r"^title\s*:\s*", re.IGNORECASE)
_QUESTION_END = ("?", "？")
_CHINESE_CLAUSE = re.compile(r"[，。；！∶、]")
"""In a first line it says that the passage begins within a sentence (texts with hard line breaks), not with a title."""
_SENTENCE_END = (".", "。", "!", "！", ";", "；", ",", "，", "、", ":", "：", *_QUESTION_END)


@dataclass(frozen=True)
class Passage:
    """What the unifier needs of a row of a corpus."""

    id: str
    source: str
    text: str
    title: str = ""


def to_pair(passage: Passage) -> tuple[str, str]:
    """A question and its answer; the same passage and id always give the same pair.

    Raises:
      RecordError: if the passage is blank.
    """
    text = passage.text.strip()
    if not text:
        raise RecordError("passage is blank")
    spoken = language_of_passage(text)
    if title := passage.title.strip():
        return _ask(title, spoken, passage.id), text
    consultation = _CONSULTATION.match(text)
    if consultation and consultation["answer"].strip():
        title, question = consultation["title"].strip(), consultation["question"].strip()
        if not any(mark in question for mark in _QUESTION_END):
            question = f"{question}\n{title}".strip()
        if question:
            return question, consultation["answer"].strip()
    lines = [line.strip() for line in text.split("\n")]
    for i, line in enumerate(lines[:2]):
        rest = "\n".join(lines[i + 1 :]).strip()
        asked = line.endswith(_QUESTION_END) or (i == 0 and WEB_CORPUS in passage.source)
        if asked and line and len(line) <= QUESTION_LENGTH and rest:
            return re.sub(r"\s+([?？])$", r"\1", line), rest
    if found := _find_title(lines, spoken):
        return _ask(found[0], spoken, passage.id), found[1]
    opening = " ".join(text.split())[: QUOTED[spoken]]
    if spoken == "en" and len(text) > QUOTED["en"]:
        opening = opening.rsplit(" ", 1)[0]
    return _choose(OPENING[spoken], passage.id).format(opening), text


def title_of(passage: Passage) -> str:
    """A passage's title: its own, else a first line that looks like one, else nothing."""
    text = passage.text.strip()
    if passage.title.strip() or not text:
        return passage.title.strip()
    found = _find_title([line.strip() for line in text.split("\n")], language_of_passage(text))
    return found[0] if found else ""


def _find_title(lines: list[str], spoken: str) -> tuple[str, str] | None:
    """The passage's title and what follows it, if it begins with one."""
    head = _TITLE_HEADING.match(lines[0])
    if head:
        lines = [lines[0][head.end() :], *lines[1:]]
        lines = lines if lines[0] else lines[1:]
    title, rest = (lines[0], "\n".join(lines[1:]).strip()) if lines else ("", "")
    is_title = bool(head) or not (title.endswith(_SENTENCE_END) or _CHINESE_CLAUSE.search(title) or len(title) < 2)
    if not (title and rest and is_title) or len(title) > TITLE_LENGTH[spoken] or title.lower() in GENERIC_TITLES:
        return None
    return title, rest


def _ask(title: str, spoken: str, id: str) -> str:
    if title.endswith(_QUESTION_END):
        return title
    return _choose(ABOUT[spoken], id).format(title.rstrip("。.:："))


def _choose(wordings: tuple[str, ...], id: str) -> str:
    """One of several wordings: evenly spread over ids, and always the same for the same id."""
    return wordings[int.from_bytes(hashlib.blake2b(id.encode(), digest_size=8).digest(), "little") % len(wordings)]


def to_passage(value: Any, source: str, id: str) -> Passage:
    """Reads a row of a corpus: an object with `text` (and perhaps `id`, `title`), or a bare string.

    Raises:
      RecordError: with the reason why the row is not a passage.
    """
    if isinstance(value, str):
        return Passage(id, source, value)
    if not isinstance(value, dict):
        raise RecordError(f"row is of type {type(value).__name__}, not an object or a string")
    if value.get("text") is None:
        has_turns = any(value.get(key) is not None for key in ("turns", "conversations", "messages", "instruction"))
        raise RecordError("row is a dialogue already; give it to `huatuo-data import`" if has_turns else "row has no `text`")
    title = value.get("title") or ""
    for name, field in (("text", value["text"]), ("title", title)):
        if not isinstance(field, str):
            raise RecordError(f"`{name}` is of type {type(field).__name__}, not a string")
    own = value.get("id")
    return Passage(str(own) if own is not None else id, source, value["text"], title)


@dataclass(frozen=True)
class Row:
    """One row of a corpus file: a passage, or the reason why it is none; `line` is None for a file that ends too early."""

    path: Path
    line: int | None
    passage: Passage | None
    reason: str = ""

    def reject(self, rejected: RejectedLog, reason: str | None = None) -> None:
        """Writes it to the list of rejected rows."""
        if self.line is None:
            rejected.add_file(self.path, self.reason)
        else:
            rejected.add(self.path, self.line, reason or self.reason)


def read_passages(paths: Sequence[Path], source: str | None, on_read: Progress | None = None) -> Iterator[Row]:
    """Yields the rows of the files in order.

    Args:
      source: overrides the source that rows name; without both, a row's source is its file's name.
    """
    for path in paths:
        try:
            for number, value in iterate_json(path, on_read):
                try:
                    yield Row(path, number, _passage(value, path, number, source))
                except RecordError as error:
                    yield Row(path, number, None, str(error))
                except UnicodeEncodeError as error:
                    yield Row(path, number, None, f"text is not valid Unicode (lone surrogate at character {error.start})")
        except TornFileError as error:
            yield Row(path, None, None, str(error))


def _passage(value: Any, path: Path, number: int, source: str | None) -> Passage:
    if isinstance(value, Fault):
        raise RecordError(value.reason)
    own = value.get("source") if isinstance(value, dict) and isinstance(value.get("source"), str) else None
    passage = to_passage(value, canonical_source(source or own or plain_stem(path)), stable_id(value, path, number))
    f"{passage.source}\n{passage.id}\n{passage.title}\n{passage.text}".encode()
    return passage
