"""Lengths in, tokens and money out: the forecast of a run before its first call, and the tokens of calls that nobody counted.

Tokens per character differ between models, so these are assumptions, printed with every forecast. Once the ledger holds enough
answers of the model, what they really took replaces them.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from data_tools.records.language import language_of_passage
from data_tools.unify.passages import Passage
from data_tools.unify.rewriting import Rewriting, shown_text
from huatuo_jax.chat_client.budget import Caps, Prices, TokenRates, Usage

QUESTION_TOKENS = 45
ANSWER_SHARE = 0.8
"""Tokens of an answer per token of its passage."""
ENOUGH = 100
"""Answers of a step in the ledger from which on they, not the assumptions, are the forecast's base."""


@dataclass
class Forecast:
    """Adds passages up and says what rewriting them takes.

    Attributes:
      passages, characters: of all passages, by source.
    """

    how: Rewriting
    max_output_tokens: int
    rates: TokenRates = field(default_factory=TokenRates)
    passages: Counter[str] = field(default_factory=Counter)
    characters: Counter[str] = field(default_factory=Counter)
    question: Usage = field(default_factory=Usage)
    answer: Usage = field(default_factory=Usage)
    _frames: dict[tuple[str, str], float] = field(default_factory=dict)

    def add(self, passage: Passage) -> None:
        """Takes one passage into account."""
        self.passages[passage.source] += 1
        self.characters[passage.source] += len(passage.text)
        text = shown_text(passage)
        if not text or len(text) > self.how.longest:
            return
        spoken = language_of_passage(text) if self.how.spoken == "passage" else self.how.spoken
        cuts = self.how.prompts.cuts
        prompt = self._frame("question", spoken) + self.rates.tokens(cuts.apply("question", text))
        self.question += Usage(round(prompt), QUESTION_TOKENS)
        if not self.how.question_only:
            shown = self.rates.tokens(cuts.apply("answer", text))
            prompt = self._frame("answer", spoken) + QUESTION_TOKENS + shown
            self.answer += Usage(round(prompt), min(self.max_output_tokens, round(ANSWER_SHARE * shown)))

    def _frame(self, step: str, spoken: str) -> float:
        """Tokens of a step's template around the passage."""
        if (step, spoken) not in self._frames:
            prompts = self.how.prompts
            messages = prompts.question(spoken, "") if step == "question" else prompts.answer(spoken, "", "")
            self._frames[step, spoken] = self.rates.usage(messages, 0).prompt
        return self._frames[step, spoken]

    def report(self, totals: dict[str, int], prices: Prices, caps: Caps, requests_per_minute: float | None) -> dict[str, Any]:
        """The forecast of all passages, durable answers included.

        Args:
          totals: of the ledger (see `Ledger.totals`): steps with enough answers are forecast from them.
        """
        passages = self.passages.total()
        question, question_calls, measured = self._step("question", self.question, passages, totals)
        answer, answer_calls, measured_too = Usage(), 0, True
        if not self.how.question_only:
            answer, answer_calls, measured_too = self._step("answer", self.answer, passages, totals)
        whole = question + answer
        cost = prices.cost(whole.prompt, whole.output)
        fits = (caps.tokens is None or whole.prompt + whole.output <= caps.tokens) and (caps.cost is None or cost <= caps.cost)
        return {
            "passages": passages,
            "characters": self.characters.total(),
            "calls": question_calls + answer_calls,
            "prompt_tokens": whole.prompt,
            "output_tokens": whole.output,
            "cost": round(cost, 4) if prices != Prices() else None,
            "within_caps": fits,
            "least_hours": round((question_calls + answer_calls) / requests_per_minute / 60, 2) if requests_per_minute else None,
            "based_on": "answers in the ledger" if measured and measured_too else "assumed tokens per character",
            "assumed": {"tokens_per_chinese_character": self.rates.chinese, "tokens_per_other_character": self.rates.other},
        }

    def _step(self, step: str, assumed: Usage, passages: int, totals: dict[str, int]) -> tuple[Usage, int, bool]:
        """Usage and calls of one step, one call a passage; with enough answers in the ledger their mean, else the assumptions."""
        calls = totals.get(f"{step}_calls", 0)
        if calls < ENOUGH:
            return assumed, passages, False
        prompt, output = (totals.get(f"{step}_{kind}_tokens", 0) / calls for kind in ("prompt", "output"))
        return Usage(round(passages * prompt), round(passages * output)), passages, True
