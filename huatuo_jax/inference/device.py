"""Generation on the device: rows of a cache that are filled with prompts (`prefill`) and continued token by token (`decode`).

Both are compiled once for each bucket of sizes. They know nothing of requests and text: `engine.py` decides which request gets
which row, and reads the tokens. What must hold: a row's tokens are a function of that row alone, so an answer does not change
with its neighbours. Next to read: `sampling.py`, `models/cache.py`.

Example: two rows, three requests A, B, C, and `steps` = 4. A ends after two tokens, so `decode` returns early (`return_at` = one
row left), C takes A's row, and B's row goes on where it was:

    prefill   A, B             rows  [A, B]
    decode    tokens [a1 a2] [b1 b2]
    prefill   C in row 0       rows  [C, B]
    decode    tokens [c1 c2 c3 c4] [b3 b4 b5 b6]
"""

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from huatuo_jax.inference.sampling import SamplingRows, next_tokens
from huatuo_jax.models.cache import KVCache, extend
from huatuo_jax.models.decoder import Decoder, Params

LARGEST_PIECE = 512
"""Longer prompts are prefilled in pieces of so many tokens, which bounds the memory of their attention scores."""

NO_TOKEN = -1
"""In place of a token where a row was idle."""


def bucket(size: int, smallest: int = 16) -> int:
    """The smallest 2^n or 3·2^n that is at least `size`: few sizes are ever compiled, and at most a third is padding.

    From 16 on: 16, 24, 32, 48, 64, 96, …
    """
    power = smallest
    while power < size:
        if power * 3 // 2 >= size:
            return power * 3 // 2
        power *= 2
    return power


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DecodeState:
    """What `B` rows carry from one call of `decode` to the next, beside their cache.

    Attributes:
      last: int32 [B], the newest token of each row. It is not in the cache yet: the next step writes it and reads its logits.
      length: int32 [B], tokens in the cache, which is the position of `last`.
      left: int32 [B], how many new tokens the row may still get; 0 = the row is idle.
      seen: bool [B, V], tokens of prompt and answer, for the repetition penalty.
      sampling: settings of each row.
    """

    last: jax.Array
    length: jax.Array
    left: jax.Array
    seen: jax.Array
    sampling: SamplingRows

    @classmethod
    def idle(cls, num_rows: int, vocab_size: int) -> "DecodeState":
        """Rows without a request."""

        def zeros(dtype: DTypeLike, *shape: int) -> jax.Array:
            return jnp.zeros((num_rows, *shape), dtype)

        fp32, int32 = jnp.float32, jnp.int32
        sampling = SamplingRows(zeros(fp32), zeros(int32), zeros(fp32) + 1, zeros(fp32) + 1, zeros(jnp.uint32))
        return cls(zeros(int32), zeros(int32), zeros(int32), zeros(bool, vocab_size), sampling)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Decoded:
    """What one call of `decode` did.

    Attributes:
      tokens: int32 [steps, B], NO_TOKEN where a row was idle.
      left: int32 [B], as in the state.
      failed: bool [B], rows whose next logits were not finite.
    """

    tokens: jax.Array
    left: jax.Array
    failed: jax.Array


# `visible` is static because it is the size of what attention reads. The cache is donated: XLA writes into it in place, where it
# would else copy the largest array there is at every call.
@partial(jax.jit, static_argnames=("graphdef", "visible", "dtype"), donate_argnames="cache")
def prefill(
    graphdef: nnx.GraphDef[Decoder],
    params: Params,
    cache: KVCache,
    tokens_RS: jax.Array,
    starts_R: jax.Array,
    rows_R: jax.Array,
    *,
    visible: int,
    dtype: DTypeLike,
) -> KVCache:
    """The cache with a piece of `R` prompts, int32 [R, S], in rows `rows_R` (one beyond it is not kept), from `starts_R` on.

    Padding behind a prompt fills slots that are written again before anything sees them.
    """
    model = nnx.merge(graphdef, params)
    return extend(model, tokens_RS, cache, starts_R, visible=visible, rows_B=rows_R, dtype=dtype)[1]


@partial(jax.jit, donate_argnames="state")
def admit(state: DecodeState, rows_R: jax.Array, new: DecodeState) -> DecodeState:
    """The state with that of `R` `new` rows at `rows_R`, int32 [R]; a row beyond the last is dropped."""
    return jax.tree.map(lambda old, fresh: old.at[rows_R].set(fresh, mode="drop"), state, new)


@partial(jax.jit, static_argnames=("graphdef", "visible", "steps", "sampled", "dtype"), donate_argnames=("cache", "state"))
def decode(
    graphdef: nnx.GraphDef[Decoder],
    params: Params,
    cache: KVCache,
    state: DecodeState,
    end_ids_E: jax.Array,
    return_at: jax.Array,
    *,
    visible: int,
    steps: int,
    sampled: bool,
    dtype: DTypeLike,
) -> tuple[KVCache, DecodeState, Decoded]:
    """Up to `steps` new tokens for every row that is not idle.

    Args:
      end_ids_E: int32 [E]; such a token ends its row (and is among its tokens).
      return_at: int32 scalar; returns early when so few rows are left.
      visible: slots that attention reads; at least the longest row's length + steps.
      sampled: whether any row has a temperature.
    """
    model = nnx.merge(graphdef, params)
    batch = len(state.last)
    nothing = Decoded(jnp.full((steps, batch), NO_TOKEN), state.left, jnp.zeros(batch, bool))

    def goes_on(loop: tuple[jax.Array, KVCache, DecodeState, Decoded]) -> jax.Array:
        # A traced scalar, so that another `return_at` is not another compilation.
        step, _, state, _ = loop
        return (step < steps) & ((state.left > 0).sum() > return_at)

    def advance(
        loop: tuple[jax.Array, KVCache, DecodeState, Decoded],
    ) -> tuple[jax.Array, KVCache, DecodeState, Decoded]:
        step, cache, state, done = loop
        running_B = state.left > 0
        hidden_B1D, cache = extend(model, state.last[:, None], cache, state.length, visible=visible, dtype=dtype)
        logits_BV = model.logits(hidden_B1D)[:, 0]
        # Here and not on the host, which would need all logits [B, V] at every step to see it.
        failed_B = running_B & ~jnp.isfinite(logits_BV).all(axis=1)
        token_B = next_tokens(logits_BV, state.seen, state.length + 1, state.sampling, sampled)
        ended_B = failed_B | jnp.isin(token_B, end_ids_E)
        # Idle rows compute along with the others, for the shapes are static; what they computed is not kept.
        kept_B = running_B & ~failed_B
        state = replace(
            state,
            last=jnp.where(kept_B, token_B, state.last),
            length=state.length + kept_B,
            left=jnp.where(ended_B, 0, state.left - kept_B),
            seen=state.seen.at[jnp.arange(batch), token_B].max(kept_B),
        )
        tokens = done.tokens.at[step].set(jnp.where(kept_B, token_B, NO_TOKEN))
        return step + 1, cache, state, Decoded(tokens, state.left, done.failed | failed_B)

    # A loop on the device: going back to the host for every token would cost more than a small model's step.
    _, cache, state, done = jax.lax.while_loop(goes_on, advance, (jnp.int32(0), cache, state, nothing))
    return cache, state, done
