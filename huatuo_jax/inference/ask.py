"""A run directory and conversations in, greedy answers out: with the run's newest weights, tokenizer and dialogue format."""

from collections.abc import Sequence
from pathlib import Path

from huatuo_jax.checkpoint import restore_params
from huatuo_jax.data.dialogue import prompt_tokens
from huatuo_jax.data.templates import get_template
from huatuo_jax.data.tokenizer import load_tokenizer
from huatuo_jax.errors import DataError
from huatuo_jax.inference.greedy import greedy

ROWS_AT_ONCE = 64
"""Prompts of one batch: bounds the cache's memory."""


class Asker:
    """Answers with the weights of a run's newest checkpoint.

    Attributes:
      tokenizer: that the run was trained with; a changed file is refused.
      step: of the checkpoint.
    """

    def __init__(self, run: Path, max_new_tokens: int = 256) -> None:
        """Restores the weights; `DataError` if the run has no whole checkpoint or its tokenizer is gone or altered."""
        self.model, self.params, meta = restore_params(run)
        self.step = meta["step"]
        self.max_new_tokens = max_new_tokens
        trained_with = meta["tokenizer"]
        self.tokenizer = load_tokenizer(run / trained_with["path"])
        if self.tokenizer.fingerprint != trained_with["fingerprint"]:
            raise DataError(
                f"{self.tokenizer.path} is not the tokenizer that {run} was trained with (its SHA-256 differs); "
                "put the old file back"
            )
        self.template = get_template(meta["template"])

    def answer(self, conversations: Sequence[Sequence[str]]) -> list[str]:
        """The next assistant turn of each conversation (user, assistant, …, user)."""
        return self.complete([prompt_tokens(turns, self.tokenizer, self.template) for turns in conversations])

    def complete(self, prompts: Sequence[list[int]], max_new_tokens: int = 0) -> list[str]:
        """The greedy continuation of each prompt of token ids, as text."""
        most = max_new_tokens or self.max_new_tokens
        answers: list[str] = []
        for start in range(0, len(prompts), ROWS_AT_ONCE):
            batch = prompts[start : start + ROWS_AT_ONCE]
            continued = greedy(self.model, self.params, batch, most, self.tokenizer.eos_id)
            answers += [self.tokenizer.decode(ids).strip() for ids in continued]
        return answers
