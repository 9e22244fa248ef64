"""What runs on the device: rows of a cache that are filled with prompts (`prefill`) and continued token by token (`decode`).

Both are compiled once per bucket of sizes. They know nothing of requests or text; `engine.py` decides what goes where.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from huatuo_jax.inference.sampling import SamplingRows, next_tokens
from huatuo_jax.models.cache import KVCache
from huatuo_jax.models.decoder import Decoder

LARGEST_PIECE = 512
"""Longer prompts are prefilled in pieces of so many tokens, which bounds the memory of their attention scores."""

NO_TOKEN = -1


def bucket(size: int, smallest: int = 16) -> int:
    """The smallest 2^n or 3·2^n that is at least `size`: few sizes are ever compiled, and at most a third is padding."""
    power = smallest
    while power < size:
        if power * 3 // 2 >= size:
            return power * 3 // 2
        power *= 2
    return power


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Rows:
    """The state of `B` rows between two calls.

    Attributes:
      last: int32 [B], the newest token of each row, not yet in the cache.
      length: int32 [B], tokens in the cache, which is the position of `last`.
      left: int32 [B], how many new tokens the row may still get; 0 = the row rests.
      seen: bool [B, V], tokens of prompt and answer.
      sampling: settings of each row.
    """

    last: jax.Array
    length: jax.Array
    left: jax.Array
    seen: jax.Array
    sampling: SamplingRows

    @classmethod
    def resting(cls, num_rows: int, vocab_size: int) -> "Rows":
        """Rows without a request."""

        def zeros(dtype: Any, *shape: int) -> jax.Array:
            return jnp.zeros((num_rows, *shape), dtype)

        decimals, whole = jnp.float32, jnp.int32
        sampling = SamplingRows(zeros(decimals), zeros(whole), zeros(decimals) + 1, zeros(decimals) + 1, zeros(jnp.uint32))
        return cls(zeros(whole), zeros(whole), zeros(whole), zeros(bool, vocab_size), sampling)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Steps:
    """What `decode` did: tokens int32 [steps, B], NO_TOKEN where a row rested; left int32 [B]; failed bool [B], rows whose next
    logits were not finite."""

    tokens: jax.Array
    left: jax.Array
    failed: jax.Array


@partial(jax.jit, static_argnames=("graphdef", "visible", "dtype"), donate_argnames="cache")
def prefill(
    graphdef: nnx.GraphDef[Decoder],
    params: Any,
    cache: KVCache,
    tokens_RS: jax.Array,
    starts_R: jax.Array,
    rows_R: jax.Array,
    *,
    visible: int,
    dtype: Any,
) -> KVCache:
    """The cache with a piece of `R` prompts in rows `rows_R` (one beyond the cache is not kept), from positions `starts_R` on.

    Padding behind a prompt fills slots that are written again before anything sees them.
    """
    model = nnx.merge(graphdef, params)
    return model.extend(tokens_RS, cache, starts_R, visible=visible, rows_B=rows_R, dtype=dtype)[1]


@partial(jax.jit, donate_argnames="rows")
def admit(rows: Rows, places_R: jax.Array, new: Rows) -> Rows:
    """The rows with `new` ones at `places_R`; a place beyond them is dropped."""
    return jax.tree.map(lambda old, fresh: old.at[places_R].set(fresh, mode="drop"), rows, new)


@partial(jax.jit, static_argnames=("graphdef", "visible", "steps", "sampled", "dtype"), donate_argnames=("cache", "rows"))
def decode(
    graphdef: nnx.GraphDef[Decoder],
    params: Any,
    cache: KVCache,
    rows: Rows,
    end_ids_E: jax.Array,
    return_at: jax.Array,
    *,
    visible: int,
    steps: int,
    sampled: bool,
    dtype: Any,
) -> tuple[KVCache, Rows, Steps]:
    """Up to `steps` new tokens for every row that is not at rest.

    Args:
      end_ids_E: int32 [E]; such a token ends its row (and is among its tokens).
      return_at: int32 scalar; returns early when so few rows are left.
      visible: slots that attention reads; at least the longest row's length + steps.
      sampled: whether any row has a temperature.
    """
    model = nnx.merge(graphdef, params)
    batch = len(rows.last)
    nothing = Steps(jnp.full((steps, batch), NO_TOKEN), rows.left, jnp.zeros(batch, bool))

    def goes_on(state: tuple[jax.Array, KVCache, Rows, Steps]) -> jax.Array:
        step, _, rows, _ = state
        return (step < steps) & ((rows.left > 0).sum() > return_at)

    def advance(state: tuple[jax.Array, KVCache, Rows, Steps]) -> tuple[jax.Array, KVCache, Rows, Steps]:
        step, cache, rows, done = state
        running_B = rows.left > 0
        hidden_B1D, cache = model.extend(rows.last[:, None], cache, rows.length, visible=visible, dtype=dtype)
        logits_BV = model.logits(hidden_B1D)[:, 0]
        failed_B = running_B & ~jnp.isfinite(logits_BV).all(axis=1)
        token_B = next_tokens(logits_BV, rows.seen, rows.length + 1, rows.sampling, sampled)
        ended_B = failed_B | jnp.isin(token_B, end_ids_E)
        kept_B = running_B & ~failed_B
        rows = replace(
            rows,
            last=jnp.where(kept_B, token_B, rows.last),
            length=rows.length + kept_B,
            left=jnp.where(ended_B, 0, rows.left - kept_B),
            seen=rows.seen.at[jnp.arange(batch), token_B].max(kept_B),
        )
        tokens = done.tokens.at[step].set(jnp.where(kept_B, token_B, NO_TOKEN))
        return step + 1, cache, rows, Steps(tokens, rows.left, done.failed | failed_B)

    _, cache, rows, done = jax.lax.while_loop(goes_on, advance, (jnp.int32(0), cache, rows, nothing))
    return cache, rows, done


@partial(jax.jit, static_argnames=("graphdef", "visible", "dtype"), donate_argnames="cache")
def score(
    graphdef: nnx.GraphDef[Decoder],
    params: Any,
    cache: KVCache,
    tokens_RS: jax.Array,
    starts_R: jax.Array,
    targets_RS: jax.Array,
    *,
    visible: int,
    dtype: Any,
) -> tuple[KVCache, jax.Array, jax.Array]:
    """Extends all rows by a piece: fp32 [R, S] log-probability of each position's target, and whether it is the likeliest."""
    model = nnx.merge(graphdef, params)
    hidden_RSD, cache = model.extend(tokens_RS, cache, starts_R, visible=visible, dtype=dtype)

    def score_row(row: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        hidden_SD, targets_S = row
        logits_SV = model.logits(hidden_SD[None])[0]
        chosen_S = jnp.take_along_axis(logits_SV, targets_S[:, None], axis=1)[:, 0]
        return chosen_S - jax.nn.logsumexp(logits_SV, axis=1), jnp.argmax(logits_SV, axis=1) == targets_S

    # Row by row, so that the logits of one row exist at a time.
    return cache, *jax.lax.map(score_row, (hidden_RSD, targets_RS))
