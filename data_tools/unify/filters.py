"""A model's question or answer in, the name of the rule that rejects it out: every rule has a name and can be switched."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from data_tools.records.language import language_of_passage
from data_tools.unify.coverage import PHRASES, recall
from data_tools.unify.passages import Passage, title_of
from huatuo_jax.errors import ConfigError

JACCARD_CUT = 600
"""Characters of the passage that the original's Jaccard filter looks at."""


@dataclass(frozen=True)
class Candidate:
    """A text that a model wrote for a passage, `finish` being the endpoint's reason to end it."""

    passage: Passage
    spoken: str
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


def _any(name: str) -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{phrase})" for phrase in PHRASES[name]), re.IGNORECASE)


_REFUSALS, _LEAKS, _QUESTION_LEAKS = _any("refusals"), _any("leaks"), _any("question_leaks")
_REFERENCES, _ASKING = _any("references"), _any("asking")
_NO_LETTER = re.compile(r"[\W_]+")


def _refused(candidate: Candidate, limits: Limits) -> bool:
    return candidate.finish == "refused"


def _empty(candidate: Candidate, limits: Limits) -> bool:
    return not candidate.text


def _truncated(candidate: Candidate, limits: Limits) -> bool:
    return candidate.finish == "length"


def _blocked(candidate: Candidate, limits: Limits) -> bool:
    return candidate.finish == "content_filter"


def _refusal(candidate: Candidate, limits: Limits) -> bool:
    return _REFUSALS.search(candidate.text) is not None


def _other_language(candidate: Candidate, limits: Limits) -> bool:
    return language_of_passage(candidate.text) != candidate.spoken


def _question_length(candidate: Candidate, limits: Limits) -> bool:
    return len(candidate.text) > limits.question_characters


def _question_title(candidate: Candidate, limits: Limits) -> bool:
    title = _bare(title_of(candidate.passage))
    return bool(title) and _bare(candidate.text) in (title, "")


def _bare(text: str) -> str:
    """A question or title without the words that only ask, punctuation, spaces and case."""
    return _NO_LETTER.sub("", _ASKING.sub("", text.casefold().strip()))


def _question_leak(candidate: Candidate, limits: Limits) -> bool:
    return any(pattern.search(candidate.text) for pattern in (_QUESTION_LEAKS, _LEAKS))


def _reference(candidate: Candidate, limits: Limits) -> bool:
    return _REFERENCES.search(candidate.text) is not None


def _leak(candidate: Candidate, limits: Limits) -> bool:
    return _LEAKS.search(candidate.text) is not None


def _coverage(candidate: Candidate, limits: Limits) -> bool:
    found = recall(candidate.passage.text, candidate.text)
    return found is not None and found < limits.coverage


def _jaccard(candidate: Candidate, limits: Limits) -> bool:
    if candidate.spoken != "zh":
        return False
    answer, passage = set(candidate.text.lower()), set(candidate.passage.text[:JACCARD_CUT].lower())
    return len(answer & passage) <= limits.jaccard * len(answer | passage)


_BOTH: dict[str, Rule] = {"refused": _refused, "blocked": _blocked, "truncated": _truncated, "empty": _empty}
QUESTION_RULES: dict[str, Rule] = _BOTH | {
    "question_length": _question_length,
    "refusal": _refusal,
    "language": _other_language,
    "question_leak": _question_leak,
    "question_title": _question_title,
}
ANSWER_RULES: dict[str, Rule] = _BOTH | {
    "reference": _reference,
    "refusal": _refusal,
    "language": _other_language,
    "leak": _leak,
    "coverage": _coverage,
    "jaccard": _jaccard,
}
ALWAYS = frozenset(_BOTH) - {"truncated"}
"""Not switchable: there is no text to keep."""
DEFAULT = (frozenset(QUESTION_RULES) | frozenset(ANSWER_RULES)) - {"jaccard"}
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


def choose_filters(start: frozenset[str], switched_on: Iterable[str], switched_off: Iterable[str], limits: Limits) -> Filters:
    """The filters after `--filter NAME` and `--no-filter NAME`.

    Raises:
      ConfigError: for an unknown name, one that cannot be switched off, or a limit out of range.
    """
    on, off = frozenset(switched_on), frozenset(switched_off)
    known = sorted(frozenset(QUESTION_RULES) | frozenset(ANSWER_RULES))
    if unknown := sorted((on | off) - frozenset(known)):
        raise ConfigError(f"no filter is called {', '.join(unknown)}; there are {', '.join(known)}")
    if fixed := sorted(off & ALWAYS):
        raise ConfigError(f"the filter {', '.join(fixed)} cannot be switched off: it stands for a call without a text")
    if both := sorted(on & off):
        raise ConfigError(f"the filter {', '.join(both)} is switched on and off at once")
    for name in ("coverage", "jaccard"):
        if not 0 <= getattr(limits, name) <= 1:
            raise ConfigError(f"the limit of {name} is {getattr(limits, name)}; it is a share between 0 and 1")
    if limits.question_characters < 1:
        raise ConfigError(f"--max-question is {limits.question_characters}; it is a number of characters of at least 1")
    return Filters((start | on) - off, limits)
