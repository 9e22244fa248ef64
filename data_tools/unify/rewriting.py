"""One passage in, a pair or its rejection out: which calls it needs is a function of the answers so far, so runs can be replayed.

`rewrite` is a generator that yields the next call and is sent its answer; whoever drives it takes the answer from the ledger or
from the endpoint. Nothing else decides what becomes of a passage.
"""

import re
from collections.abc import Generator
from dataclasses import dataclass

from data_tools.records.language import LANGUAGES, language_of_passage
from data_tools.unify.filters import Candidate, Filters
from data_tools.unify.passages import Passage
from data_tools.unify.prompting import Prompts
from huatuo_jax.chat_client.calls import Answer, Call, Messages
from huatuo_jax.config import require

TOO_LONG, BLANK, UNFINISHED = "passage_too_long", "passage_blank", "unfinished"
_THINKING = re.compile(r"^\s*<think>.*?</think>", re.DOTALL)
_LABEL = re.compile(r"^(问题|提问|回答|答案|Question|Answer)\s*[：:]\s*", re.IGNORECASE)
_QUOTES = (("“", "”"), ('"', '"'), ("「", "」"))


@dataclass(frozen=True)
class Try:
    """A text that a model wrote, and the rule that rejected it (None = kept)."""

    step: str
    text: str
    reason: str | None


@dataclass(frozen=True)
class Outcome:
    """What became of a passage: a pair, or the reason why not, with every text written on the way."""

    pair: tuple[str, str] | None
    reason: str | None
    tries: tuple[Try, ...] = ()


@dataclass(frozen=True)
class Rewriting:
    """How passages are rewritten: prompts, filters, tries per step and round, output language ("passage" = the passage's own).

    Attributes:
      question_only: the passage itself is the answer.
      rounds: how often the tries are granted; `--retry-rejected` adds one.
      longest: longer passages (in characters) are rejected without a call.
    """

    prompts: Prompts
    filters: Filters
    tries: int = 2
    rounds: int = 1
    spoken: str = "passage"
    question_only: bool = False
    longest: int = 8000

    def __post_init__(self) -> None:
        require(self.tries >= 1, f"--tries is {self.tries}; a step needs at least 1")
        require(self.longest >= 1, f"--max-passage is {self.longest}; it is a number of characters of at least 1")
        require(
            self.spoken in (*LANGUAGES, "passage"), f"--language is {self.spoken}; it is one of passage, {', '.join(LANGUAGES)}"
        )


def shown_text(passage: Passage) -> str:
    """The passage as prompts show it: its title in front if it does not begin with it."""
    text, title = passage.text.strip(), passage.title.strip()
    return f"{title}\n{text}" if title and not text.startswith(title) else text


def rewrite(passage: Passage, how: Rewriting) -> Generator[Call, Answer, Outcome]:
    """Yields the calls that a passage needs, one after the other, and returns its outcome."""
    text = shown_text(passage)
    if not text:
        return Outcome(None, BLANK)
    if len(text) > how.longest:
        return Outcome(None, TOO_LONG)
    spoken = language_of_passage(text) if how.spoken == "passage" else how.spoken
    tries: list[Try] = []
    for round_number in range(how.rounds):
        asked = how.prompts.question(spoken, text)
        question = yield from _written(passage, "question", round_number, asked, spoken, how, tries)
        if question is None:
            continue
        if how.question_only:
            return Outcome((question, passage.text.strip()), None, tuple(tries))
        asked = how.prompts.answer(spoken, text, question)
        answer = yield from _written(passage, "answer", round_number, asked, spoken, how, tries)
        if answer is not None:
            return Outcome((question, answer), None, tuple(tries))
    return Outcome(None, tries[-1].reason, tuple(tries))


def _written(
    passage: Passage, step: str, round_number: int, messages: Messages, spoken: str, how: Rewriting, tries: list[Try]
) -> Generator[Call, Answer, str | None]:
    """Asks for a text until no rule rejects it or the tries are used up; then None."""
    for attempt in range(how.tries):
        answer = yield Call(f"{passage.source}/{passage.id}", step, round_number, attempt, messages)
        text = bare_text(answer.text, step)
        reason = how.filters.reason(step, Candidate(passage, spoken, text, answer.finish))
        tries.append(Try(step, text, reason))
        if reason is None:
            return text
    return None


def bare_text(text: str, step: str) -> str:
    """A model's text without a reasoning block, a label such as `问题：`, and quotation marks around a whole question."""
    text = _LABEL.sub("", _THINKING.sub("", text).strip()).strip()
    for opening, closing in _QUOTES if step == "question" else ():
        if len(text) > 2 and text.startswith(opening) and text.endswith(closing) and closing not in text[1:-1]:
            text = text[1:-1].strip()
    return text
