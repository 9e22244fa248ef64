"""Exam questions: the one reader of exams, in the layouts that they are published in.

What it reads, `decontaminate.py` looks for in texts. A row becomes an `Item` with its question and options, or is refused with
the reason: a question whose options were overlooked would be found half as often, and nobody would know. Known are

  {"question": …, "options": {"A": …}}                   and `option` (CMB), `choices` (MMLU), 选项; a list; a list of
  {"question": …, "options": [{"key": "A", "value": …}]}   objects or of pairs; {"text": […], "label": […]} (ARC); one text
  {"question": …, "opa": …, "opb": …}                    (MedMCQA); "A", "B", … (C-Eval, CMMLU); option_a, …; distractor1, …
  {"question": "…\\nA. …\\nB. …"}                        options within the question's text
  {"question": {"stem": …, "choices": […]}}              (CommonsenseQA)

The question may be called Question, query, stem, 题目 and the like; capitals make no difference.
"""

import ast
import contextlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_tools.records.importing import RejectedLog, plain_stem, read_all
from huatuo_jax.errors import DataError, RecordError

MAX_REJECTED = 0.01
"""Share of rows that may be no exam questions before an exam is refused as a whole."""
_QUESTIONS = (
    "question",
    "question_stem",
    "stem",
    "qtext",
    "sent1",
    "query",
    "problem",
    "题目",
    "题干",
    "问题",
    "prompt",
    "input",
)
_OPTIONS = (
    *("options", "option", "choices", "choice", "选项", "candidates", "endings", "answer_choices", "answer_options", "answers"),
    *("opts", "alternatives", "multiple_choice", "possible_answers", "选择项"),
)
_OPTION_TEXTS = ("value", "text", "content", "option", "choice", "option_text", "atext", "answer")
_COLUMN = re.compile(
    r"(?:op|option|choice|ans|answer|ending|sol|选项|distractor)?[ _]?(?:[a-j]|\d)|[a-j]选项|correct_answer|incorrect_answers",
    re.IGNORECASE,
)
"""Columns with an option each: A, opa, option_a, "Option A", choice1, ending0, distractor3."""
_MARK = re.compile(
    r"(?:(?<=^)|(?<=[\s;；。？?：:）)]))(?:[(（\[]([A-J])[)）\]][.．、:：]?|([A-J])\s{0,2}[.．、:：)）])[ \t　]{0,3}"
    r"|^([A-J])[ \t　]{1,3}(?=\S)",
    re.MULTILINE,
)
"""The letter before an option: "A. ", "(B) ", "C、", or "D " at the beginning of a line."""


@dataclass(frozen=True)
class Item:
    """One exam question: `exam` is its file's name."""

    id: str
    exam: str
    question: str
    options: tuple[str, ...] = ()


def read_exams(files: Sequence[Path], odd: list[str] | None = None) -> list[Item]:
    """Reads the questions of all files.

    Args:
      odd: gets file, line and reason of each row that is no exam question; they are left out.

    Raises:
      DataError: no questions, or more than MAX_REJECTED of the rows are none; the first one is named.
    """
    odd = [] if odd is None else odd

    def read(row: Any, path: Path, number: int) -> Item:
        try:
            return to_item(row, plain_stem(path), str(number))
        except RecordError as error:
            odd.append(f"{path}, line {number}: {error}")
            raise

    rejected = RejectedLog()
    items = list(read_all(files, read, rejected))
    if rejected.files:
        raise DataError(f"{rejected.files[0]} cannot be read to its end: questions would be missing; repair it or leave it out")
    total = len(items) + rejected.count
    if rejected.count > MAX_REJECTED * total:
        reason = odd[0] if odd else f"{files[0]} is not JSON"
        raise DataError(f"{reason}; so are {rejected.count:,} of {total:,} rows")
    if not items:
        raise DataError(f"no exam questions in {', '.join(map(str, files))}")
    return items


def to_item(row: Any, exam: str, default_id: str) -> Item:
    """The question of a row of any layout.

    Raises:
      RecordError: no question, or options in a form that is not known.
    """
    if not isinstance(row, dict):
        raise RecordError(f"no exam question (a row is an object with `question`, not of type {type(row).__name__})")
    by_name = {str(key).strip().lower(): value for key, value in row.items()}
    question = next((by_name[key] for key in _QUESTIONS if by_name.get(key)), None)
    if isinstance(question, dict):
        return to_item({**row, "question": None, **question}, exam, default_id)
    if not isinstance(question, str):
        raise RecordError(f"no exam question (an object with `question`); its keys are {', '.join(map(str, row))[:200]}")
    found = next(((key, by_name[key]) for key in _OPTIONS if by_name.get(key) not in (None, "", [], {})), None)
    if found is not None:
        options = _options(*found)
    else:
        options = [text for key, value in by_name.items() if _COLUMN.fullmatch(key) for text in _texts(value)]
        if not options:
            question, options = split_options(question)
    id = by_name.get("id")
    return Item(str(default_id if id is None else id), exam, question, tuple(filter(None, options)))


def _options(key: str, value: Any) -> list[str]:
    """The texts of an options field."""
    if isinstance(value, str):
        if value.lstrip()[:1] in ("[", "{"):
            # A list or an object in a cell of a table, as JSON or as Python writes it.
            with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError):
                return _options(key, ast.literal_eval(value.strip()))
            raise RecordError(f"`{key}` begins as a list or an object, but is none ({value[:80]})")
        before, options = split_options(value)
        if not options and (parts := [part.strip() for part in re.split(r"[|;；]", value) if part.strip()])[1:]:
            return [re.sub(r"^[(（]?[A-Ja-j][)）.、:：]\s*", "", part) for part in parts]
        return ([before] if before.strip() else []) + options or value.splitlines()
    if isinstance(value, dict):
        # {"text": ["yes", "no"], "label": ["A", "B"]}, beside {"A": "yes", "B": "no"}
        lists = [value[name] for name in _OPTION_TEXTS if isinstance(value.get(name), list)]
        return _options(key, lists[0]) if lists else [text for entry in value.values() for text in _texts(entry)]
    if isinstance(value, list):
        options = [text for entry in value for text in _texts(entry)]
        if options:
            return options
    raise RecordError(f"`{key}` holds options in a form that is not known ({type(value).__name__}: {str(value)[:80]})")


def _texts(value: Any) -> list[str]:
    """The text of one option (a text, a number, ["A", "text"], {"key": "A", "value": "text"}), or of several."""
    if isinstance(value, str):
        return [value] if value.strip() else []
    if isinstance(value, bool) or value is None:
        return []
    if isinstance(value, (int, float)):
        return [str(value)]
    if isinstance(value, dict):
        named = next((value[name] for name in _OPTION_TEXTS if isinstance(value.get(name), (str, int, float))), None)
        return _texts(named) if named is not None else [text for entry in value.values() for text in _texts(entry)]
    if isinstance(value, list):
        is_pair = len(value) == 2 and isinstance(value[0], str) and re.fullmatch(r"[A-Ja-j]\.?", value[0])
        return [text for entry in (value[1:] if is_pair else value) for text in _texts(entry)]
    raise RecordError(f"an option is of type {type(value).__name__}, not a text")


def split_options(text: str) -> tuple[str, list[str]]:
    """A text's part before its options, and these: "Which? A. one B. two" becomes "Which?" and ["one", "two"].

    Only marks in order, from A on and at least two, count: "vitamin A. Which" holds none. Those at the beginnings of lines come
    first, so that "B. C. difficile" is one option.
    """
    found = list(_MARK.finditer(text))
    marks = _in_order([match for match in found if not match.start() or text[match.start() - 1] == "\n"]) or _in_order(found)
    if not marks:
        return text, []
    ends = [*(match.start() for match in marks[1:]), len(text)]
    options = [text[match.end() : end].strip() for match, end in zip(marks, ends, strict=True)]
    return text[: marks[0].start()].strip(), options


def _in_order(found: list[re.Match[str]]) -> list[re.Match[str]]:
    """The marks A, B, C, …; none if there are not two. Of several before the first B, the last A counts."""
    # "A 40-year-old man … Which? A. one B. two" begins with an A that marks nothing.
    marks: list[re.Match[str]] = []
    for match in found:
        letter = match[match.lastindex or 0]
        if letter == "A" and len(marks) < 2:
            marks = [match]
        elif marks and letter == "ABCDEFGHIJ"[len(marks) : len(marks) + 1]:
            marks.append(match)
    return marks if len(marks) > 1 else []
