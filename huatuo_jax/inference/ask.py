"""A run directory in, greedy answers out: the newest checkpoint with the run's own tokenizer and dialogue format."""

from collections.abc import Sequence
from pathlib import Path

from huatuo_jax.data.dialogue import prompt_tokens
from huatuo_jax.inference.loading import open_model
from huatuo_jax.inference.request import Request

ROWS_AT_ONCE = 64
"""Prompts decoded side by side: bounds the cache's memory."""


class Asker:
    """Answers with the weights of a run's newest checkpoint.

    Attributes:
      tokenizer: that the run was trained with; a changed file is refused.
      step: of the checkpoint.
    """

    def __init__(self, run: Path, max_new_tokens: int = 256, quantize: str | None = None) -> None:
        """Restores the weights, quantised if asked for.

        Raises:
          ConfigError: `quantize` is no kind of quantization, or not one for this model.
          DataError: the run has no whole checkpoint, or its tokenizer is gone or altered.
        """
        model = open_model(run)
        self.max_new_tokens = max_new_tokens
        self._engine = model.engine(ROWS_AT_ONCE, quantizer=model.quantizer(quantize))
        self.tokenizer, self.template, self.step = model.tokenizer, model.template, model.step

    def answer(self, conversations: Sequence[Sequence[str]]) -> list[str]:
        """The next assistant turn of each conversation (user, assistant, …, user)."""
        return self.complete([prompt_tokens(turns, self.tokenizer, self.template) for turns in conversations])

    def complete(self, prompts: Sequence[list[int]], max_new_tokens: int = 0) -> list[str]:
        """The greedy continuation of each prompt of token ids, as text."""
        most = max_new_tokens or self.max_new_tokens
        return [answer.text.strip() for answer in self._engine.answers([Request(prompt, most) for prompt in prompts])]
