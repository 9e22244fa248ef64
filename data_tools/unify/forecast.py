"""How many tokens, how much money and how much time a run will take, before its first call (`unify --estimate`).

Tokens per character differ between models, so the forecast is made of assumptions, which are printed with it. Once the ledger
holds enough replies of a step, what they really took replaces the assumptions.
What must hold: adding a passage costs no call and no memory. Next to read: `huatuo_jax/chat_client/budget.py` (how tokens are
estimated), `pipeline.py` (who asks).
"""

from collections.abc import Mapping
from typing import Any

from data_tools.unify.passages import Passage
from data_tools.unify.rewriting import Rewriting, shown_text
from huatuo_jax.chat_client.budget import PER_CHINESE, PER_OTHER, Caps, Prices, estimated_tokens, estimated_usage
from huatuo_jax.chat_client.calls import Usage

# Assumptions, not measured on a model: each forecast says what it is based on.
QUESTION_TOKENS = 45
ANSWER_SHARE = 0.8
"""Tokens of an answer per token of its passage."""
ENOUGH = 100
"""Replies of a step in the ledger from which on they, not the assumptions, are the forecast's base."""


class Forecast:
    """Adds passages up and says what rewriting them takes.

    Attributes:
      passages: their number; characters: of all of them; assumed: tokens by step.
    """

    def __init__(self, rewriting: Rewriting, max_new_tokens: int) -> None:
        self.passages = self.characters = 0
        self.assumed = {"question": Usage()} if rewriting.question_only else {"question": Usage(), "answer": Usage()}
        self._rewriting, self._limit = rewriting, max_new_tokens
        self._frames: dict[tuple[str, str], int] = {}

    def add(self, passage: Passage) -> None:
        """Takes one passage into account."""
        self.passages += 1
        self.characters += len(passage.text)
        text = shown_text(passage)
        if not text or len(text) > self._rewriting.longest:
            return  # `rewrite` rejects it without a call
        language, cuts = self._rewriting.language_for(text), self._rewriting.prompts.cuts
        for step in self.assumed:
            shown = estimated_tokens(cuts.apply(step, text))
            if step == "question":
                prompt, output = shown, QUESTION_TOKENS
            else:
                prompt, output = shown + QUESTION_TOKENS, min(self._limit, round(ANSWER_SHARE * shown))
            self.assumed[step] += Usage(round(self._frame(step, language) + prompt), output)

    def _frame(self, step: str, language: str) -> int:
        """Tokens of a step's prompt around the passage and the question."""
        # The same for every passage; filling a prompt for each would be most of the forecast's time.
        if (step, language) not in self._frames:
            prompts = self._rewriting.prompts
            messages = prompts.question(language, "") if step == "question" else prompts.answer(language, "", "")
            self._frames[step, language] = estimated_usage(messages, 0).prompt
        return self._frames[step, language]

    def report(self, totals: Mapping[str, int], caps: Caps, requests_per_minute: float | None) -> dict[str, Any]:
        """The forecast of all passages, one call a step, durable replies included.

        Args:
          totals: of the ledger (see `Ledger.totals`): steps with enough replies are forecast from them.
        """
        whole, measured = Usage(), True
        for step, assumed in self.assumed.items():
            replies = totals.get(f"{step}_calls", 0)
            if replies < ENOUGH:
                # A handful of replies, of the corpus' first passages, would be a worse guess than the assumptions.
                whole, measured = whole + assumed, False
            else:
                prompt, output = (totals.get(f"{step}_{kind}_tokens", 0) / replies for kind in ("prompt", "output"))
                whole += Usage(round(self.passages * prompt), round(self.passages * output))
        calls, cost = self.passages * len(self.assumed), caps.prices.cost(whole)
        fits = (caps.tokens is None or whole.total <= caps.tokens) and (caps.cost is None or cost <= caps.cost)
        return {
            "passages": self.passages,
            "characters": self.characters,
            "calls": calls,
            "prompt_tokens": whole.prompt,
            "output_tokens": whole.output,
            "cost": round(cost, 4) if caps.prices != Prices() else None,
            "within_caps": fits,
            "least_hours": round(calls / requests_per_minute / 60, 2) if requests_per_minute else None,
            "based_on": "answers in the ledger" if measured else "assumed tokens per character",
            "assumed": {"tokens_per_chinese_character": PER_CHINESE, "tokens_per_other_character": PER_OTHER},
        }
