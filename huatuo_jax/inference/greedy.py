"""Prompts in, most likely continuations out: greedy decoding of a batch in one compiled loop with a static cache.

Prompts are padded on the left, so that all rows write the same cache slots; padding has segment 0, positions count from each
prompt's first token, and ALiBi's distances do not see the shift: a row's output does not depend on its neighbours.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from huatuo_jax.config import ModelConfig, require
from huatuo_jax.models.attention import resolve_attention
from huatuo_jax.models.cache import KVCache
from huatuo_jax.models.decoder import Decoder, split_decoder

PROMPT_BUCKET = 64
"""Prompt lengths are rounded up to a multiple of this, so that few lengths are ever compiled."""


def greedy(
    model: ModelConfig | nnx.GraphDef[Decoder],
    params: Any,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    eos_id: int,
    *,
    dtype: Any = jnp.float32,
    attention: str = "auto",
) -> list[list[int]]:
    """The most likely next tokens of each prompt, up to and without `eos_id`.

    Args:
      model: the config, or the graphdef of `split_decoder`.
      params: the decoder's parameters, sharded or not.
      prompts: token ids, each prompt at least one.
      max_new_tokens: the most tokens that a row gets.
      eos_id: ends a row; the loop ends when all rows have ended.
      dtype: of the computation and the cache.
      attention: a backend that can use a cache, or "auto".

    Raises:
      ConfigError: an empty prompt, an id outside the vocabulary, or prompt + new tokens beyond the model's `max_length`.
    """
    graphdef = split_decoder(model) if isinstance(model, ModelConfig) else model
    config = nnx.merge(graphdef, params).config
    if not prompts:
        return []
    _check(config, prompts, max_new_tokens)
    platform = jax.default_backend()
    backend = resolve_attention(attention, config, platform, needs_segments=True, needs_cache=True)
    tokens_BP, segments_BP = _pad_left(prompts)
    new_BM, lengths_B = _decode(graphdef, params, tokens_BP, segments_BP, max_new_tokens, eos_id, dtype, backend)
    return [row[:length].tolist() for row, length in zip(np.asarray(new_BM), np.asarray(lengths_B), strict=True)]


def _check(config: ModelConfig, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    require(max_new_tokens >= 1, f"max_new_tokens is {max_new_tokens}; it must be at least 1")
    for index, prompt in enumerate(prompts):
        require(len(prompt) > 0, f"prompt {index} has no tokens; give each at least one")
        require(
            min(prompt) >= 0 and max(prompt) < config.vocab_size,
            f"prompt {index} has a token id outside 0…{config.vocab_size - 1}, the vocabulary of {config.name}; "
            "use the tokenizer that the model was trained with",
        )
        require(
            len(prompt) + max_new_tokens <= config.max_length,
            f"prompt {index} has {len(prompt)} tokens; with {max_new_tokens} new ones it exceeds max_length {config.max_length} "
            f"of {config.name}: shorten the prompt or lower max_new_tokens",
        )


def _pad_left(prompts: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    longest = max(len(prompt) for prompt in prompts)
    width = -(-longest // PROMPT_BUCKET) * PROMPT_BUCKET
    tokens, segments = np.zeros((2, len(prompts), width), np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, width - len(prompt) :] = prompt
        segments[row, width - len(prompt) :] = 1
    return tokens, segments


@partial(jax.jit, static_argnums=(0, 4, 5, 6, 7))
def _decode(
    graphdef: nnx.GraphDef[Decoder],
    params: Any,
    tokens_BP: jax.Array,
    segments_BP: jax.Array,
    max_new_tokens: int,
    eos_id: int,
    dtype: Any,
    attention: str,
) -> tuple[jax.Array, jax.Array]:
    """New tokens int32 [B, M] and how many of them precede EOS, int32 [B]."""
    model = nnx.merge(graphdef, params)
    batch, width = tokens_BP.shape
    lengths_B = segments_BP.sum(axis=1)

    def next_token(hidden_BSD: jax.Array) -> jax.Array:
        return jnp.argmax(model.logits(hidden_BSD[:, -1:])[:, 0], axis=-1).astype(jnp.int32)

    positions_BP = jnp.maximum(jnp.arange(width) - (width - lengths_B)[:, None], 0)
    cache = KVCache.empty(model.config, batch, width + max_new_tokens, dtype)
    hidden_BPD, cache = model(tokens_BP, positions_BP, segments_BP, dtype=dtype, attention=attention, cache=cache)
    first_B = next_token(hidden_BPD)
    new_BM = jnp.full((batch, max_new_tokens), eos_id, jnp.int32).at[:, 0].set(first_B)
    ones_B1 = jnp.ones((batch, 1), jnp.int32)

    def running(state: tuple[Any, ...]) -> jax.Array:
        step, _, done_B, _, _ = state
        return (step < max_new_tokens) & ~done_B.all()

    def advance(state: tuple[Any, ...]) -> tuple[Any, ...]:
        step, last_B, done_B, new_BM, cache = state
        positions_B1 = (lengths_B + step - 1)[:, None]
        hidden_B1D, cache = model(last_B[:, None], positions_B1, ones_B1, dtype=dtype, attention=attention, cache=cache)
        token_B = jnp.where(done_B, eos_id, next_token(hidden_B1D))
        return step + 1, token_B, done_B | (token_B == eos_id), new_BM.at[:, step].set(token_B), cache

    state = (jnp.int32(1), first_B, first_B == eos_id, new_BM, cache)
    new_BM = jax.lax.while_loop(running, advance, state)[3]
    ended_BM = new_BM == eos_id
    return new_BM, jnp.where(ended_BM.any(axis=1), ended_BM.argmax(axis=1), max_new_tokens)
