"""What an engine is asked and what it answers; requests that cannot be served are refused before any work."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from huatuo_jax.config import ModelConfig, require
from huatuo_jax.inference.sampling import GREEDY, Sampling

FinishReason = Literal["end", "stop", "length"]


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
class Answer:
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
