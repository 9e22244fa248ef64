"""What an engine is asked and what it answers: requests, completions, and the text of a completion as it grows.

A `Request` is token ids to continue. While the engine works on it, it is an `ActiveRequest`: it takes new token ids, keeps the
text that has become certain (`TextStream`) and notices the end; then it becomes a `Completion`. What must hold: text that was
given out is never taken back, and nothing here touches a device. Next to read: `engine.py` decides which request gets which row
of the cache, `device.py` computes.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from huatuo_jax.config import ModelConfig, require
from huatuo_jax.data.tokenizers import Tokenizer
from huatuo_jax.errors import DataError
from huatuo_jax.inference.sampling import GREEDY, Sampling

FinishReason = Literal["end", "stop", "length"]

REPLACEMENT = "�"
"""What tokenizers write for bytes that do not (yet) form a character."""


@dataclass(frozen=True)
class Request:
    """A prompt to continue.

    Attributes:
      prompt: token ids, at least one.
      max_new_tokens: the most tokens that the answer gets.
      stop: the answer's text ends before the first of these strings; needs an engine with a tokenizer.
      name: what errors call it; "" = by its place in the list.
    """

    prompt: Sequence[int]
    max_new_tokens: int
    sampling: Sampling = GREEDY
    stop: tuple[str, ...] = ()
    name: str = ""


@dataclass(frozen=True)
class Completion:
    """A continued prompt.

    Attributes:
      tokens: the new ids, without the end token; with the ids of a stop string.
      text: of the tokens, up to a stop string; "" from an engine without a tokenizer.
      finish_reason: "end" = an end token, "stop" = a stop string, "length" = max_new_tokens.
    """

    tokens: list[int]
    text: str
    finish_reason: FinishReason


def check_prompt(config: ModelConfig, prompt: Sequence[int], new_tokens: int, name: str) -> None:
    """Raises ConfigError for an empty prompt, ids outside the vocabulary, no new tokens, or more than the context holds."""
    require(new_tokens >= 1, f"{name}: max_new_tokens is {new_tokens}; it must be at least 1")
    require(len(prompt) > 0, f"{name} has no tokens; give at least one")
    require(
        min(prompt) >= 0 and max(prompt) < config.vocab_size,
        f"{name} has token id {max(prompt) if min(prompt) >= 0 else min(prompt)}, outside 0…{config.vocab_size - 1}, the "
        f"vocabulary of {config.name}; use the tokenizer that the model was trained with",
    )
    require(
        len(prompt) + new_tokens <= config.max_length,
        f"{name} has {len(prompt)} tokens; with {new_tokens} new ones it exceeds the context of {config.name}, "
        f"{config.max_length}: shorten the prompt or allow fewer new ones (--max-new-tokens)",
    )


class TextStream:
    """Text of token ids that arrive one after another, given out as soon as it is certain.

    Uncertain is half a character, for a character may take several tokens, and an end that may be the beginning of a stop string.
    With the stop string "END":

        tokens    "The", " E", "N", "ergy"        push returns    "The", " ", "", "ENergy"
        tokens    "The", " E", "ND"               push returns    "The", " ", ""             and `stopped` is set

    Attributes:
      stopped: a stop string was found; the text ends before it, and further tokens are ignored.
      text: all that was given out so far.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        require("" not in stop, "a stop string is empty; leave it out")
        self.stopped = False
        self.text = ""
        self._tokenizer, self._stop = tokenizer, tuple(stop)
        self._ids: list[int] = []
        # The text of ids[:_read] is known. Decoding begins earlier, at _context: SentencePiece drops the space before the first
        # piece that it decodes, so a token's text shows only behind another token.
        self._context = self._read = 0
        self._held = ""

    def push(self, token: int) -> str:
        """The text that has become certain with this token; often "", as while a character's bytes are incomplete."""
        # A model's vocabulary may be larger than its tokenizer's (padded): such an id has no text.
        if self.stopped or token >= self._tokenizer.vocab_size:
            return ""
        self._ids.append(token)
        return self._release(self._decode(at_end=False), at_end=False)

    def finish(self) -> str:
        """The rest of the text: no more tokens will come."""
        return "" if self.stopped else self._release(self._decode(at_end=True), at_end=True)

    def _decode(self, at_end: bool) -> str:
        """The text of the tokens that were not read before; "" while it ends within a character."""
        # Decoding all tokens at every step would cost the square of an answer's length.
        known = self._tokenizer.decode(self._ids[self._context : self._read])
        text = self._tokenizer.decode(self._ids[self._context :])
        # Half a character: its other bytes are still to come. At the end none will, and the mark itself is the text.
        if text.endswith(REPLACEMENT) and not at_end:
            return ""
        self._context, self._read = self._read, len(self._ids)
        return text[len(known) :]

    def _release(self, new: str, at_end: bool) -> str:
        """What is certain of the text that was held back and the new text."""
        text = self._held + new
        places = [place for place in map(text.find, self._stop) if place >= 0]
        if places:
            self.stopped, certain = True, min(places)
        elif at_end:
            certain = len(text)
        else:
            beginnings = (stop[:length] for stop in self._stop for length in range(1, len(stop)))
            certain = len(text) - max((len(beginning) for beginning in beginnings if text.endswith(beginning)), default=0)
        self._held = text[certain:]
        self.text += text[:certain]
        return text[:certain]


class ActiveRequest:
    """A request that has a row of the cache, and what was decoded for it so far.

    Attributes:
      index: its place among the requests.
      tokens: of the answer so far.
    """

    def __init__(self, index: int, request: Request, tokenizer: Tokenizer | None) -> None:
        self.index, self.request = index, request
        self.tokens: list[int] = []
        self._stream = None if tokenizer is None else TextStream(tokenizer, request.stop)

    def add(self, new: Sequence[int], failed: bool, end_ids: Collection[int]) -> tuple[Completion | None, str]:
        """Adds new token ids: the completion if the answer has ended, and the text that has become certain.

        Raises:
          DataError: the logits behind the last new token were not finite (`failed`).
        """
        text = ""
        for token in new:
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

    def _finish(self, reason: FinishReason, text: str) -> tuple[Completion, str]:
        if self._stream is None:
            return Completion(self.tokens, "", reason), ""
        text += self._stream.finish()
        # A character that was held back as incomplete may complete a stop string.
        return Completion(self.tokens, self._stream.text, "stop" if self._stream.stopped else reason), text
