"""Passages: read from the files of corpora, and made into question-and-answer pairs by rule (`unify --template`).

A passage is a text of a corpus that becomes one pair. `read_passages` yields them for both ways to unify; `to_pair` is the way
without a language model, a stand-in for the rewriting of HuatuoGPT-II (§"data unification") that costs nothing: the whole program
can be tried with it, but its questions are as plain as the titles. It takes what a passage offers, in this order:
  1. a patient's question and a doctor's answer (lines `患者：…`, `医生：…`): just these, with the line above if the patient asks
     nothing;
  2. one of the first two lines is a question (ends in ? or ？), or the passage comes from a web corpus (its source says so),
     where the first line is what a user wrote: that line, answered by the lines after it;
  3. a title (its field `title`, a line after `TITLE:`, or a short first line that is not a sentence): a question about it;
  4. else its first words, quoted in the question.
What must hold: a row is yielded or listed as rejected, never lost; the same passage always gives the same pair; the id of a row
without one follows its content, so that rows added or removed before it, or a new name of its file, change nothing.
Next to read: `pairs.py` (where pairs go), or `rewriting.py` (pairs by a language model).
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_tools.records.importing import Progress, RejectedLog, plain_stem, read_all
from data_tools.records.language import language_of_passage
from data_tools.records.layouts import canonical_source
from huatuo_jax.errors import RecordError

QUOTED = {"zh": 30, "en": 80}
"""Characters of the passage that stand in for a title."""
# A longer first line is a paragraph, whatever it ends in.
TITLE_LENGTH = {"zh": 40, "en": 200}
QUESTION_LENGTH = 300
WEB_CORPUS = "web_corpus"
"""In a source's name (`medical_web_corpus_en`, say) it says that a passage's first line is what a user wrote."""
# A question about the "Introduction" could be about anything.
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

_TITLE_HEADING = re.compile(r"^title\s*:\s*", re.IGNORECASE)
_QUESTION_END = ("?", "？")
_CHINESE_CLAUSE = re.compile(r"[，。；！∶、]")
"""In a first line it says that the passage begins within a sentence (texts with hard line breaks), not with a title."""
_SENTENCE_END = (".", "。", "!", "！", ";", "；", ",", "，", "、", ":", "：", *_QUESTION_END)


@dataclass(frozen=True)
class Passage:
    """A text of a corpus; two rows with the same id, source, text and title are the same passage.

    Attributes:
      path, line: where it stands.
    """

    id: str
    source: str
    text: str
    title: str = ""
    path: Path = field(default=Path(), compare=False)
    line: int = field(default=0, compare=False)


def read_passages(
    paths: Sequence[Path], source: str | None, rejected: RejectedLog, on_read: Progress | None = None
) -> Iterator[Passage]:
    """Yields the passages of the files in order; rows that are none, and files that are torn, go to `rejected`.

    Args:
      source: overrides the source that rows name; without both, a row's source is its file's name.
    """

    def read(row: Any, path: Path, line: int) -> Passage:
        named = row.get("source") if isinstance(row, dict) else None
        source_name = canonical_source(source or (named if isinstance(named, str) else "") or plain_stem(path))
        passage = to_passage(row, source_name, path, line)
        # JSON can hold half a character (a lone surrogate): raises UnicodeEncodeError here, where the row can be named.
        f"{passage.source}\n{passage.id}\n{passage.title}\n{passage.text}".encode()
        return passage

    return read_all(paths, read, rejected, on_read)


def to_passage(row: Any, source: str, path: Path, line: int) -> Passage:
    """Reads a row of a corpus: an object with `text` (and perhaps `id`, `title`), or a bare string.

    Raises:
      RecordError: with the reason why the row is not a passage.
    """
    if isinstance(row, str):  # a document that is an array of bare texts
        row = {"text": row}
    if not isinstance(row, dict):
        raise RecordError(f"row is of type {type(row).__name__}, not an object or a string")
    if row.get("text") is None:
        # The usual mistake is to give the SFT data too: that goes to `import` as it is.
        has_turns = any(row.get(key) is not None for key in ("turns", "conversations", "messages", "instruction"))
        raise RecordError("row is a dialogue already; give it to `huatuo-data import`" if has_turns else "row has no `text`")
    text, title, id = row["text"], row.get("title") or "", row.get("id")
    for name, value in (("text", text), ("title", title)):
        if not isinstance(value, str):
            raise RecordError(f"`{name}` is of type {type(value).__name__}, not a string")
    return Passage(content_id(text, title) if id is None else str(id), source, text, title, path, line)


def content_id(text: str, title: str) -> str:
    """The id of a text that has none of its own: 16 hexadecimal digits; `collect` gives its documents the same."""
    # Two rows with the same text have one id: a number beside it would depend on what else is in the file.
    return hashlib.blake2b(f"{title}\0{text}".encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def to_pair(passage: Passage) -> tuple[str, str]:
    """A question and its answer; the same passage and id always give the same pair.

    Raises:
      RecordError: if the passage is blank.
    """
    text = passage.text.strip()
    if not text:
        raise RecordError("passage is blank")
    language = language_of_passage(text)
    # From what is certain (a field, marked roles) to what is guessed from the layout of the first lines.
    if title := passage.title.strip():
        return _ask_about(title, language, passage.id), text
    # "怎么办？\n患者：头痛三天。\n医生：请就诊。" → ("头痛三天。\n怎么办？", "请就诊。")
    # Cut by words and not by one pattern, whose time would grow with the square of a run of blanks.
    title, patient, rest = text.partition("患者：")
    question, doctor, answer = rest.partition("医生：")
    if patient and doctor and answer.strip():
        question = question.strip()
        if not any(mark in question for mark in _QUESTION_END):
            question = f"{question}\n{title.strip()}".strip()
        if question:
            return question, answer.strip()
    # "Acne\nWhat causes Acne ?\nBlocked pores." → ("What causes Acne?", "Blocked pores.")
    lines = [line.strip() for line in text.split("\n")]
    for i, line in enumerate(lines[:2]):
        rest = "\n".join(lines[i + 1 :]).strip()
        is_question = line.endswith(_QUESTION_END) or (i == 0 and WEB_CORPUS in passage.source)
        if is_question and line and len(line) <= QUESTION_LENGTH and rest:
            return re.sub(r"\s+([?？])$", r"\1", line), rest
    if title_and_rest := _split_title(lines, language):
        return _ask_about(title_and_rest[0], language, passage.id), title_and_rest[1]
    opening = " ".join(text.split())[: QUOTED[language]]
    if language == "en" and len(text) > QUOTED["en"]:
        opening = opening.rsplit(" ", 1)[0]  # not within a word
    return _choose(OPENING[language], passage.id).format(opening), text


def title_of(passage: Passage) -> str:
    """A passage's title: its field, else a first line that looks like one, else nothing."""
    text = passage.text.strip()
    if passage.title.strip() or not text:
        return passage.title.strip()
    title_and_rest = _split_title([line.strip() for line in text.split("\n")], language_of_passage(text))
    return title_and_rest[0] if title_and_rest else ""


def _split_title(lines: list[str], language: str) -> tuple[str, str] | None:
    """The title and what follows it, if the lines begin with one."""
    heading = _TITLE_HEADING.match(lines[0])
    if heading:
        # The title follows `TITLE:` on the same line or, as in PubMed's abstracts, on the next.
        lines = [lines[0][heading.end() :], *lines[1:]]
        lines = lines if lines[0] else lines[1:]
    title, rest = (lines[0], "\n".join(lines[1:]).strip()) if lines else ("", "")
    # "氨肽素" is a title; "取出，用米泔浸七日，" (a clause) and "It is rare." (a sentence) are the beginning of the text.
    is_title = bool(heading) or not (title.endswith(_SENTENCE_END) or _CHINESE_CLAUSE.search(title) or len(title) < 2)
    if not (title and rest and is_title) or len(title) > TITLE_LENGTH[language] or title.lower() in GENERIC_TITLES:
        return None
    return title, rest


def _ask_about(title: str, language: str, id: str) -> str:
    if title.endswith(_QUESTION_END):
        return title
    return _choose(ABOUT[language], id).format(title.rstrip("。.:："))


def _choose(wordings: tuple[str, ...], id: str) -> str:
    """One of several wordings: evenly spread over ids, and always the same for the same id."""
    # Not Python's hash(), which differs between runs, and no counter, which would differ with the order of the files.
    return wordings[int.from_bytes(hashlib.blake2b(id.encode(), digest_size=8).digest(), "little") % len(wordings)]
