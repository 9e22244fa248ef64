"""What becomes of a passage, as a pure function of the replies so far.

`rewrite` is a generator: it yields the next call that the passage needs and is sent the reply to it, until it returns the
outcome. `pipeline.py` drives it and takes each reply from the ledger or from the endpoint; nothing else decides anything. So a
run can be killed anywhere and replayed, and another filter takes effect on replies that are there already.

    yields Call(question, attempt 0)   is sent a reply that names the text     (rejected: question_leak)
    yields Call(question, attempt 1)   is sent "Why …?"
    yields Call(answer, attempt 0)     is sent "Because …"
    returns Outcome(("Why …?", "Because …"))

What must hold: no clock, no randomness, no state outside the generator. Next to read: `filters.py`, then `pipeline.py`.
"""

import re
from collections.abc import Generator
from dataclasses import dataclass

from data_tools.records.language import LANGUAGES, language_of_passage
from data_tools.unify.filters import Candidate, Filters
from data_tools.unify.passages import Passage
from data_tools.unify.prompting import Prompts
from huatuo_jax.chat_client.calls import Call, Messages, Reply
from huatuo_jax.config import require

# Why a passage has no pair, where no filter is the reason.
TOO_LONG, BLANK, UNFINISHED = "passage_too_long", "passage_blank", "unfinished"
# What models put around the text that was asked for.
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
    """How passages are rewritten.

    Attributes:
      tries: texts per step and round, before the step is given up.
      rounds: how often the tries are granted; `--retry-rejected` adds one.
      language: of the pairs; "passage" = the passage's own.
      question_only: the passage itself is the answer.
      longest: longer passages (in characters) are rejected without a call.
    """

    prompts: Prompts
    filters: Filters
    tries: int = 2
    rounds: int = 1
    language: str = "passage"
    question_only: bool = False
    longest: int = 8000

    def __post_init__(self) -> None:
        languages = ("passage", *LANGUAGES)
        require(self.tries >= 1, f"--tries is {self.tries}; a step needs at least 1")
        require(self.longest >= 1, f"--max-passage is {self.longest}; it is a number of characters of at least 1")
        require(self.language in languages, f"--language is {self.language}; it is one of {', '.join(languages)}")

    def language_for(self, text: str) -> str:
        """The language of the pair that a passage becomes."""
        return language_of_passage(text) if self.language == "passage" else self.language


def shown_text(passage: Passage) -> str:
    """The passage as prompts show it: its title in front if it does not begin with it."""
    # A section of a book often makes sense only under its heading.
    text, title = passage.text.strip(), passage.title.strip()
    return f"{title}\n{text}" if title and not text.startswith(title) else text


def rewrite(passage: Passage, settings: Rewriting) -> Generator[Call, Reply, Outcome]:
    """Yields the calls that a passage needs, one after the other, and returns its outcome."""
    text = shown_text(passage)
    if not text:
        return Outcome(None, BLANK)
    if len(text) > settings.longest:
        return Outcome(None, TOO_LONG)
    language = settings.language_for(text)
    tries: list[Try] = []

    def accepted_text(step: str, round_number: int, messages: Messages) -> Generator[Call, Reply, str | None]:
        """Asks until no rule rejects the text or the tries are used up; then None."""
        for attempt in range(settings.tries):
            reply = yield Call(f"{passage.source}/{passage.id}", step, round_number, attempt, messages)
            # The ledger holds what the endpoint sent. What of it is kept is decided here, so better rules need no new call.
            text = bare_text(reply.text, step)
            reason = settings.filters.reason(step, Candidate(passage, language, text, reply.finish))
            tries.append(Try(step, text, reason))
            if reason is None:
                return text
        return None

    # A round starts from the question again: where no answer was accepted, the question may be the reason.
    for round_number in range(settings.rounds):
        question = yield from accepted_text("question", round_number, settings.prompts.question(language, text))
        if question is None:
            continue
        if settings.question_only:
            # Word for word: without the title that the prompt shows in front of it.
            return Outcome((question, passage.text.strip()), None, tuple(tries))
        answer = yield from accepted_text("answer", round_number, settings.prompts.answer(language, text, question))
        if answer is not None:
            return Outcome((question, answer), None, tuple(tries))
    return Outcome(None, tries[-1].reason, tuple(tries))


def bare_text(text: str, step: str) -> str:
    """A model's text without a reasoning block, a label such as `问题：`, and quotation marks around a whole question."""
    # '<think>Hm.</think>\n\nQuestion: "Why is that?"' → "Why is that?"
    text = _LABEL.sub("", _THINKING.sub("", text).strip()).strip()
    for opening, closing in _QUOTES if step == "question" else ():
        # '"Why" and "how"' begins and ends with a mark too, but they are not one pair of marks.
        if len(text) > 2 and text.startswith(opening) and text.endswith(closing) and closing not in text[1:-1]:
            text = text[1:-1].strip()
    return text
