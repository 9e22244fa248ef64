"""A request in a row of the cache: new tokens in, text and at last the answer out; and what the device must know of it."""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from huatuo_jax.data.tokenizers import Tokenizer
from huatuo_jax.errors import DataError
from huatuo_jax.inference.device import NO_TOKEN, Rows
from huatuo_jax.inference.request import Answer, FinishReason, Request
from huatuo_jax.inference.sampling import SamplingRows
from huatuo_jax.inference.text_stream import TextStream


class Occupant:
    """A request that is being answered.

    Attributes:
      index: its place among the requests.
      tokens: of the answer so far.
    """

    def __init__(self, index: int, request: Request, tokenizer: Tokenizer | None) -> None:
        self.index, self.request = index, request
        self.tokens: list[int] = []
        self._stream = None if tokenizer is None else TextStream(tokenizer, request.stop)

    def take(self, new: Sequence[int], failed: bool, end_ids: Collection[int]) -> tuple[Answer | None, str]:
        """Adds new tokens: the answer if it has ended, and the text that has become certain.

        Raises:
          DataError: the logits behind the last new token were not finite (`failed`).
        """
        text = ""
        for token in new:
            if token == NO_TOKEN:
                continue
            if token in end_ids:
                return self._finish("end", text)
            self.tokens.append(token)
            text += self._stream.push(token) if self._stream else ""
            if self._stream and self._stream.stopped:
                return self._finish("stop", text)
        if failed:
            name = self.request.name or f"prompt {self.index}"
            raise DataError(
                f"{name}: the logits of new token {len(self.tokens) + 1} are not finite numbers; the weights are broken, or the "
                "model needs dtype float32"
            )
        if len(self.tokens) >= self.request.max_new_tokens:
            return self._finish("length", text)
        return None, text

    def _finish(self, reason: FinishReason, text: str) -> tuple[Answer, str]:
        text += self._stream.finish() if self._stream else ""
        # A character that was held back as incomplete may complete a stop string.
        if self._stream and self._stream.stopped:
            reason = "stop"
        return Answer(self.tokens, self._stream.text if self._stream else "", reason), text


def rows_of(requests: Sequence[Request], height: int, vocab_size: int) -> Rows:
    """The state of `height` rows whose prompts, but for the last token, are in the cache; more rows than requests repeat them."""

    def column(values: Sequence[Any], dtype: Any) -> Any:
        return np.resize(np.asarray(values, dtype), height)

    seen_RV: Any = np.zeros((height, vocab_size), bool)
    for row, request in enumerate(requests):
        seen_RV[row, list(request.prompt)] = True
    settings = [request.sampling for request in requests]
    return Rows(
        last=column([request.prompt[-1] for request in requests], np.int32),
        length=column([len(request.prompt) - 1 for request in requests], np.int32),
        left=column([request.max_new_tokens for request in requests], np.int32),
        seen=seen_RV,
        sampling=SamplingRows(
            temperature=column([one.temperature for one in settings], np.float32),
            top_k=column([one.top_k for one in settings], np.int32),
            top_p=column([one.top_p for one in settings], np.float32),
            repetition_penalty=column([one.repetition_penalty for one in settings], np.float32),
            seed=column([one.seed for one in settings], np.uint32),
        ),
    )
