"""Which texts of a model are rejected, and how much of a passage survives in its answer.

Each rule has a name, which reports count it by, and can be switched on and off; `rewriting.py` asks `Filters.reason` about every
question and answer. The last rule to read is recall, for it is also measured on every pair that is written (`RecallStatistics`):

    passage "alpha beta gamma delta", answer "beta delta omega": two of four units survive, recall 0.5.

The phrases are in `phrases.json`. What must hold: a rule looks at the text, the passage and the limits only, so that a run
replayed from its ledger decides as the run did. Next to read: `rewriting.py`.
"""

import json
import re
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.records.language import language_of_passage
from data_tools.unify.passages import Passage, title_of
from huatuo_jax.config import require

MOST_AFTER_QUESTION = 6
"""Characters after the line that asks, in a question that does not hold its own answer."""
JACCARD_CUT = 600
"""Characters of the passage that the original's Jaccard filter looks at."""

_PHRASES: dict[str, list[str]] = json.loads((Path(__file__).parent / "phrases.json").read_text(encoding="utf-8"))
_STOP_WORDS = frozenset(_PHRASES["stop_words"])
_CHINESE_RUN = re.compile(r"[㐀-鿿]{2,}")
_WORD_OR_NUMBER = re.compile(r"[a-z]{3,}|\d+(?:\.\d+)?")
_NO_STATEMENT = re.compile(r"[?？]|请|谢|\bplease\b|\bthank|(?:^| )[A-E] ?[.、:：)）]", re.IGNORECASE)
"""After a question: another one, a request, or what it lets choose from."""
_NO_LETTER = re.compile(r"[\W_]+")


def _any_of(name: str) -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{phrase})" for phrase in _PHRASES[name]), re.IGNORECASE)


_REFUSALS, _LEAKS, _QUESTION_LEAKS = _any_of("refusals"), _any_of("leaks"), _any_of("question_leaks")
_THINKING = _any_of("thinking")
_REFERENCES, _ASKING, _ANSWERED = _any_of("references"), _any_of("asking"), _any_of("answered")


_NO_PASSAGE = Passage("", "", "")


@dataclass(frozen=True)
class Candidate:
    """A text that a model wrote for a passage; `language` is the one asked for, `finish` the endpoint's reason to end it."""

    passage: Passage
    language: str
    text: str
    finish: str = "stop"


@dataclass(frozen=True)
class Limits:
    """The numbers that rules compare with."""

    question_characters: int = 180
    coverage: float = 0.25
    jaccard: float = 0.5


Rule = Callable[[Candidate, Limits], bool]
"""Whether the candidate is rejected."""


def _holds_answer(candidate: Candidate, limits: Limits) -> bool:
    # "为什么缺铁？\n铁蛋白先下降，……": what stands after the question, on lines of its own, asks for nothing and is no request.
    lines = [line.strip() for line in candidate.text.split("\n") if line.strip()]
    asked = next((i for i, line in enumerate(lines) if line.endswith(("?", "？"))), len(lines))
    after = " ".join(lines[asked + 1 :])
    stated = len(after) > MOST_AFTER_QUESTION and not _NO_STATEMENT.search(after)
    return stated or bool(_ANSWERED.search(candidate.text))


def _is_title(candidate: Candidate, limits: Limits) -> bool:
    title = _bare(title_of(candidate.passage))
    return bool(title) and _bare(candidate.text) in (title, "")


def _bare(text: str) -> str:
    """A question or title without the words that only ask, punctuation, spaces and case."""
    # "请介绍一下阿司匹林的作用。" → "阿司匹林的作用": as a question it adds nothing to the title.
    return _NO_LETTER.sub("", _ASKING.sub("", text.casefold().strip()))


def _low_recall(candidate: Candidate, limits: Limits) -> bool:
    # What cannot be measured (an answer in another language than its passage) is not rejected.
    share = recall(candidate.passage.text, candidate.text)
    return share is not None and share < limits.coverage


def _low_jaccard(candidate: Candidate, limits: Limits) -> bool:
    # Sets of characters say something about Chinese texts only: nearly all English texts have the same 30.
    if candidate.language != "zh":
        return False
    answer, passage = set(candidate.text.lower()), set(candidate.passage.text[:JACCARD_CUT].lower())
    return len(answer & passage) <= limits.jaccard * len(answer | passage)


# These come first, so that a call without a whole text is counted by the reason why it has none.
_NO_TEXT: dict[str, Rule] = {
    "refused": lambda candidate, limits: candidate.finish == "refused",
    "blocked": lambda candidate, limits: candidate.finish == "content_filter",
    "truncated": lambda candidate, limits: candidate.finish == "length",
    "empty": lambda candidate, limits: not candidate.text,
}
_ANY_TEXT: dict[str, Rule] = {
    "refusal": lambda candidate, limits: bool(_REFUSALS.search(candidate.text)),
    "thinking": lambda candidate, limits: bool(_THINKING.search(candidate.text)),
    "language": lambda candidate, limits: language_of_passage(candidate.text) != candidate.language,
}
QUESTION_RULES: dict[str, Rule] = {
    **_NO_TEXT,
    "question_length": lambda candidate, limits: len(candidate.text) > limits.question_characters,
    **_ANY_TEXT,
    # A question must stand by itself: it names no text, neither as a question would nor as an answer.
    "question_leak": lambda candidate, limits: bool(_QUESTION_LEAKS.search(candidate.text) or _LEAKS.search(candidate.text)),
    "question_title": _is_title,
    "question_answered": _holds_answer,
}
ANSWER_RULES: dict[str, Rule] = {
    **_NO_TEXT,
    "reference": lambda candidate, limits: bool(_REFERENCES.search(candidate.text)),
    **_ANY_TEXT,
    "leak": lambda candidate, limits: bool(_LEAKS.search(candidate.text)),
    "coverage": _low_recall,
    "jaccard": _low_jaccard,
}
"""The rules of each step, by name; the first one that rejects a text gives the reason."""

ALWAYS = frozenset({"refused", "blocked", "empty"})
"""Not switchable: there is no text to keep."""
# Jaccard is off, as in the original's released code; recall measures the same, and in both languages.
DEFAULT = frozenset(QUESTION_RULES | ANSWER_RULES) - {"jaccard"}
FAITHFUL = ALWAYS | {"question_length", "reference"}
"""What the original rejects (FIDELITY §2)."""


@dataclass(frozen=True)
class Filters:
    """The rules that are on, and their limits."""

    enabled: frozenset[str] = DEFAULT
    limits: Limits = Limits()

    def reason(self, step: str, candidate: Candidate) -> str | None:
        """The first rule that rejects a text of this step ("question" or "answer"); None if it may stay."""
        rules = QUESTION_RULES if step == "question" else ANSWER_RULES
        return next((name for name, rejects in rules.items() if name in self.enabled and rejects(candidate, self.limits)), None)

    def missing(self, text: str, finish: str) -> str | None:
        """Why a reply has no whole text, whatever its passage; None if it has one."""
        candidate = Candidate(_NO_PASSAGE, "", text, finish)
        return next(
            (name for name, rejects in _NO_TEXT.items() if name in self.enabled and rejects(candidate, self.limits)), None
        )


def choose_filters(start: frozenset[str], switched_on: Iterable[str], switched_off: Iterable[str], limits: Limits) -> Filters:
    """The filters after `--filter NAME` and `--no-filter NAME`.

    Raises:
      ConfigError: for an unknown name, one that cannot be switched off, or a limit out of range.
    """
    on, off = frozenset(switched_on), frozenset(switched_off)
    known = QUESTION_RULES | ANSWER_RULES
    unknown, fixed, both = (", ".join(sorted(names)) for names in ((on | off) - known.keys(), off & ALWAYS, on & off))
    require(not unknown, f"no filter is called {unknown}; there are {', '.join(sorted(known))}")
    require(not fixed, f"the filter {fixed} cannot be switched off: it stands for a call without a text")
    require(not both, f"the filter {both} is switched on and off at once")
    for name, share in (("coverage", limits.coverage), ("jaccard", limits.jaccard)):
        require(0 <= share <= 1, f"the limit of {name} is {share}; it is a share between 0 and 1")
    longest = limits.question_characters
    require(longest >= 1, f"--max-question is {longest}; it is a number of characters of at least 1")
    return Filters((start | on) - off, limits)


def units(text: str) -> set[str]:
    """What recall counts: distinct pairs of neighbouring Chinese characters, words in Latin letters, and numbers.

    Words have three letters or more, stop words are left out: "心率为60次/分" → 心率, 率为, 60.
    """
    text = text.lower()
    counted = set(_WORD_OR_NUMBER.findall(text)) - _STOP_WORDS
    for run in _CHINESE_RUN.findall(text):
        # Chinese has no spaces between words; pairs of neighbours stand in for them: 心动周期 → 心动, 动周, 周期.
        counted.update(map(str.__add__, run, run[1:]))
    return counted


def recall(passage: str, answer: str) -> float | None:
    """Share of the passage's units that its answer has; None if it has none or the two are in different languages."""
    # An answer in another language shares no unit with its passage, however faithful it is: that is not a recall of 0.
    wanted = units(passage)
    if not wanted or language_of_passage(passage) != language_of_passage(answer):
        return None
    return len(wanted & units(answer)) / len(wanted)


class RecallStatistics:
    """Collects recall and length of answers per source; four bytes a pair each."""

    def __init__(self) -> None:
        # All values are kept, for the plot: five million pairs are 20 MB.
        self._recalls: dict[str, array[float]] = {}
        self._lengths: dict[str, tuple[int, int]] = {}

    def add(self, source: str, passage: str, answer: str) -> None:
        """Takes one pair into account."""
        value = recall(passage, answer)
        self._recalls.setdefault(source, array("f")).append(np.nan if value is None else value)
        passages, answers = self._lengths.get(source, (0, 0))
        self._lengths[source] = passages + len(passage), answers + len(answer)

    def values(self) -> dict[str, np.ndarray]:
        """The measured recalls per source, in the order of the sources' names."""
        recalls = {source: np.array(self._recalls[source]) for source in sorted(self._recalls)}
        return {source: values[~np.isnan(values)] for source, values in recalls.items()}

    def report(self) -> dict[str, dict[str, Any]]:
        """Per source: pairs measured, mean, median and 10th percentile of recall, and characters of answers per passage's."""
        rows = {}
        for source, values in self.values().items():
            passages, answers = self._lengths[source]
            row: dict[str, Any] = {"measured": int(values.size), "length_ratio": round(answers / max(1, passages), 4)}
            for name, percentile in (("median", 50), ("p10", 10)):
                row[name] = round(float(np.percentile(values, percentile)), 4) if values.size else None
            row["mean"] = round(float(values.mean()), 4) if values.size else None
            rows[source] = row
        return rows


def plot(recalls: dict[str, np.ndarray], path: Path) -> None:
    """Draws the distribution of recall per source to a picture file: one row a source, worst at the top.

    A row is a box from the 25th to the 75th percentile with the median in it, and a line from the 5th to the 95th.
    """
    from huatuo_jax.report.style import PALETTE, new_figure, save_figure

    rows = sorted(((s, v) for s, v in recalls.items() if v.size), key=lambda row: float(np.median(row[1])), reverse=True)
    figure = new_figure(height=1.8 + 0.55 * max(1, len(rows)), grid="x")
    [axes] = figure.axes
    for place, (_, values) in enumerate(rows):
        low, first, median, third, high = np.percentile(values, [5, 25, 50, 75, 95])
        axes.plot([low, high], [place, place], color=PALETTE[0], linewidth=1.2)
        axes.barh(place, third - first, left=first, height=0.5, color=PALETTE[0], alpha=0.35)
        axes.plot([median, median], [place - 0.25, place + 0.25], color=PALETTE[0], linewidth=2.5)
        axes.text(median, place + 0.3, f"{median:.0%}", ha="center", va="bottom", fontsize=8)
    axes.set_yticks(range(len(rows)), [f"{source}  (n = {values.size:,})" for source, values in rows])
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set(xlim=(0, 1), ylim=(-0.6, max(1, len(rows)) - 0.2))
    axes.set_xlabel("share of a passage's n-grams that its answer has\n(box: half of the pairs, line: nine tenths)")
    axes.set_title("What survives of each passage in its answer", loc="left")
    save_figure(path, figure)
