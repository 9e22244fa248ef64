"""From logits to the next token of each row: repetition penalty, temperature, top-k, top-p, then a draw.

Called by every step of `device.decode`. What must hold: each row has settings and draws of its own (`Sampling`), and order and
results are those of transformers' logits processors. Next to read: `device.py`. Top-k and top-p find their threshold by a search
over the bits of a float: a sort takes ten times longer on a vocabulary of 125,696. For four tokens with probabilities .5 .3 .15
.05 and top-p = .7:

    take out from the least likely on while their sum stays at or below 1 − .7:   .05, then .05 + .15; with .3 it would be .5
    kept: .5 .3     (the first set whose probability exceeds .7)
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from huatuo_jax.config import require

REMOVED = -jnp.inf
"""Logit of a token that a filter took out."""


@dataclass(frozen=True)
class Sampling:
    """How one request draws its tokens.

    Attributes:
      temperature: 0 = the most likely token, without a draw.
      top_k: only tokens at least as likely as the k-th; 0 = all.
      top_p: only the likeliest tokens that together exceed this probability; 1 = all.
      repetition_penalty: divides positive and multiplies negative logits of tokens in prompt and answer; 1 = none.
      seed: of the draws; together with a token's position it decides its draw, whatever other rows do.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        ok = math.isfinite(self.temperature) and self.temperature >= 0
        require(ok, f"temperature is {self.temperature}; it must be 0 (greedy) or a positive number")
        require(self.top_k >= 0, f"top_k is {self.top_k}; it must be at least 0 (0 = all tokens)")
        require(0 < self.top_p <= 1, f"top_p is {self.top_p}; it must be above 0 and at most 1 (1 = all tokens)")
        ok = math.isfinite(self.repetition_penalty) and self.repetition_penalty > 0
        require(ok, f"repetition_penalty is {self.repetition_penalty}; it must be a positive number (1 = none)")
        require(0 <= self.seed < 2**32, f"seed is {self.seed}; it must be in 0…4294967295")


GREEDY = Sampling()


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SamplingRows:
    """The settings of `B` rows: fp32 [B] temperature, top_p, repetition_penalty; int32 [B] top_k; uint32 [B] seed."""

    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array
    repetition_penalty: jax.Array
    seed: jax.Array


def penalise(logits_BV: jax.Array, seen_BV: jax.Array, penalty_B: jax.Array) -> jax.Array:
    """Repetition penalty, fp32 [B], on the logits [B, V] of the tokens that were seen, bool [B, V] (arXiv 1909.05858)."""
    penalty_B1 = penalty_B[:, None]
    return jnp.where(seen_BV, jnp.where(logits_BV < 0, logits_BV * penalty_B1, logits_BV / penalty_B1), logits_BV)


def keep_top_k(logits_BV: jax.Array, k_B: jax.Array) -> jax.Array:
    """Logits [B, V] without every token below the k-th largest, k int32 [B]; those equal to it stay. k = 0 keeps all."""
    order_BV = _ordered(logits_BV)
    wanted_B1 = jnp.minimum(k_B, logits_BV.shape[1])[:, None]

    def few_above(bound_B1: jax.Array) -> jax.Array:
        return (order_BV > bound_B1).sum(axis=1, keepdims=True) < wanted_B1

    kept_BV = order_BV >= _smallest(few_above, len(logits_BV))
    return jnp.where(kept_BV | (wanted_B1 == 0), logits_BV, REMOVED)


def keep_top_p(logits_BV: jax.Array, p_B: jax.Array) -> jax.Array:
    """Logits [B, V] of the likeliest tokens up to the one with which their probability exceeds p, fp32 [B]; p = 1 keeps all.

    As in transformers, tokens are taken out from the least likely on while their sum is at most 1 − p. Of equal tokens, the
    higher ids go first (there, an unstable sort decides which; as many stay).
    """
    order_BV, chance_BV = _ordered(logits_BV), jax.nn.softmax(logits_BV, axis=1)
    spare_B1 = 1 - p_B[:, None]

    def mass(which_BV: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(which_BV, chance_BV, 0), axis=1, keepdims=True)

    # The bound is the likelihood at which the sum of the less and equally likely tokens first exceeds 1 − p: all below it go, all
    # above it stay. It is at most the largest, so that one token stays whatever rounding makes of the sum.
    largest_B1 = order_BV.max(axis=1, keepdims=True)
    bound_B1 = _smallest(lambda bound_B1: (mass(order_BV <= bound_B1) > spare_B1) | (bound_B1 >= largest_B1), len(logits_BV))
    # Of the tokens at the bound, those go that do not yet exceed 1 − p when the higher ids go first.
    equal_BV = order_BV == bound_B1
    reached_BV = mass(order_BV < bound_B1) + jax.lax.cumsum(jnp.where(equal_BV, chance_BV, 0), axis=1, reverse=True)
    first_BV = jnp.arange(logits_BV.shape[1]) == jnp.argmax(equal_BV, axis=1, keepdims=True)
    kept_BV = (order_BV > bound_B1) | (equal_BV & ((reached_BV > spare_B1) | first_BV))
    return jnp.where(kept_BV | (p_B[:, None] >= 1), logits_BV, REMOVED)


def draw(logits_BV: jax.Array, seed_B: jax.Array, position_B: jax.Array) -> jax.Array:
    """One token of each row by its probability, int32 [B]; a function of the row's logits, its seed and the token's position."""

    # Gumbel's trick: the largest of logit + noise is a draw by probability, without a cumulative sum over the vocabulary.
    def noise(seed: jax.Array, position: jax.Array) -> jax.Array:
        return jax.random.gumbel(jax.random.fold_in(jax.random.key(seed), position), logits_BV.shape[1:])

    return jnp.argmax(logits_BV + jax.vmap(noise)(seed_B, position_B), axis=1).astype(jnp.int32)


def next_tokens(logits_BV: jax.Array, seen_BV: jax.Array, position_B: jax.Array, rows: SamplingRows, sampled: bool) -> jax.Array:
    """The next token of each row, int32 [B]. `sampled` says whether any row has a temperature: without, no filter runs."""
    logits_BV = penalise(logits_BV, seen_BV, rows.repetition_penalty)
    likeliest_B = jnp.argmax(logits_BV, axis=1).astype(jnp.int32)
    if not sampled:
        return likeliest_B
    # Both are computed and one is chosen for each row, because shapes are static; a division by 1 keeps greedy rows finite.
    greedy_B = rows.temperature == 0
    logits_BV = logits_BV / jnp.where(greedy_B, 1, rows.temperature)[:, None]
    logits_BV = keep_top_p(keep_top_k(logits_BV, rows.top_k), rows.top_p)
    return jnp.where(greedy_B, likeliest_B, draw(logits_BV, rows.seed, position_B))


def _ordered(x: jax.Array) -> jax.Array:
    """uint32 in the order of the fp32 numbers `x` (the sign bit flipped, and the others too where it is set)."""
    # Positive floats are ordered as their bits are, negative ones in reverse. + 0.0 makes −0 the same as 0.
    bits = jax.lax.bitcast_convert_type(x + 0.0, jnp.uint32)
    return jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))


def _smallest(holds: Callable[[jax.Array], jax.Array], rows: int) -> jax.Array:
    """The smallest uint32 for which a predicate that turns from false to true holds, [rows, 1]: bit by bit, exact.

    For numbers of three bits and a predicate that holds from 5 on: does it hold at 3 (011)? No, so the first bit is set. At 5
    (101)? Yes, so the second is not. At 4 (100)? No, so the third is set: 101 = 5.
    """

    def halve(index: jax.Array, bound_B1: jax.Array) -> jax.Array:
        bit = jnp.uint32(1 << 31) >> index.astype(jnp.uint32)
        # The largest number without this and later bits decides: if it holds already, the bit stays clear.
        return jnp.where(holds(bound_B1 | (bit - 1)), bound_B1, bound_B1 | bit)

    return jax.lax.fori_loop(0, 32, halve, jnp.zeros((rows, 1), jnp.uint32))
