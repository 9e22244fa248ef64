"""Log-likelihoods of given continuations of one prefix, with an engine's weights; the prefix is computed once.

Beside generation, on the same engine and cache: multiple-choice questions are scored this way, the question being the prefix and
its options the continuations. What must hold: an option's score does not depend on the others or on how many rows the engine has.
Next to read: `models/cache.py`. The last token of the prefix goes with each continuation, for its logits predict the
continuation's first token:

    prefix "a b c", continuation "x y"     cache: a b     input: c x     targets: x y
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from huatuo_jax.errors import DataError
from huatuo_jax.inference.device import LARGEST_PIECE, bucket
from huatuo_jax.inference.engine import Engine
from huatuo_jax.inference.requests import check_prompt
from huatuo_jax.models.cache import KVCache, extend
from huatuo_jax.models.decoder import Decoder, Params


class LogLikelihood(NamedTuple):
    """Of one continuation: the sum of its tokens' log-probabilities (natural), and whether each is the likeliest in its place."""

    total: float
    is_greedy: bool


def log_likelihoods(engine: Engine, prefix: Sequence[int], continuations: Sequence[Sequence[int]]) -> list[LogLikelihood]:
    """log p(continuation | prefix) of each continuation.

    Args:
      prefix: token ids, at least one (the begin token, where there is nothing else).
      continuations: token ids, each at least one.

    Raises:
      ConfigError: an empty prefix or continuation, an id outside the vocabulary, or more tokens than the context.
      DataError: logits that are not finite.
    """
    for index, continuation in enumerate(continuations):
        check_prompt(engine.config, continuation, 1, f"continuation {index}")
        check_prompt(engine.config, prefix, len(continuation), "the prefix")
    if not continuations:
        return []
    longest = len(prefix) + max(map(len, continuations))
    # One row is enough for the prefix; on a mesh rows are sharded, so there must be as many as the mesh divides.
    shared = engine.fill(engine.new_cache(1 if engine.mesh is None else engine.num_rows, longest), {0: prefix[:-1]})
    scores: list[LogLikelihood] = []
    for start in range(0, len(continuations), engine.num_rows):
        scores += _score_rows(engine, shared, prefix, continuations[start : start + engine.num_rows])
    return scores


def _score_rows(
    engine: Engine, shared: KVCache, prefix: Sequence[int], continuations: Sequence[Sequence[int]]
) -> list[LogLikelihood]:
    """Scores so many continuations as the engine has rows, each in a row with its own copy of the prefix."""
    height = engine.rows_for(len(continuations))
    cache = shared.repeat_first(height)  # copies, for `_score` writes each row's continuation into its own
    totals, greedy = np.zeros(height), np.ones(height, bool)
    longest = max(map(len, continuations))
    for start in range(0, longest, LARGEST_PIECE):
        width = bucket(min(longest - start, LARGEST_PIECE))
        inputs, targets = np.zeros((2, height, width), np.int32)
        counts = np.zeros((height, width), bool)
        for row, continuation in enumerate(continuations):
            piece = continuation[start : start + width]
            inputs[row, : len(piece)] = [*prefix[-1:], *continuation][start : start + len(piece)]
            targets[row, : len(piece)], counts[row, : len(piece)] = piece, True
        first = len(prefix) - 1 + start
        with engine.on_mesh():
            cache, log_probs, likeliest = _score(
                engine.graphdef,
                engine.params,
                cache,
                inputs,
                np.full(height, first, np.int32),
                targets,
                visible=bucket(first + width),
                dtype=engine.dtype,
            )
        log_probs, likeliest = jax.device_get((log_probs, likeliest))
        # In fp64, so that a long sum of logarithms keeps the digits in which two options differ.
        totals += np.where(counts, log_probs, 0).sum(axis=1, dtype=np.float64)
        greedy &= (likeliest | ~counts).all(axis=1)
    if not np.isfinite(totals).all():
        broken = int(np.flatnonzero(~np.isfinite(totals))[0])
        raise DataError(f"continuation {broken}: its log-likelihood is {totals[broken]}; the weights are broken, or need float32")
    return [LogLikelihood(float(totals[row]), bool(greedy[row])) for row in range(len(continuations))]


@partial(jax.jit, static_argnames=("graphdef", "visible", "dtype"), donate_argnames="cache")
def _score(
    graphdef: nnx.GraphDef[Decoder],
    params: Params,
    cache: KVCache,
    tokens_RS: jax.Array,
    starts_R: jax.Array,
    targets_RS: jax.Array,
    *,
    visible: int,
    dtype: DTypeLike,
) -> tuple[KVCache, jax.Array, jax.Array]:
    """Extends all rows by a piece: fp32 [R, S] log-probability of each position's target, and whether it is the likeliest."""
    model = nnx.merge(graphdef, params)
    hidden_RSD, cache = extend(model, tokens_RS, cache, starts_R, visible=visible, dtype=dtype)

    def score_row(row: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        hidden_SD, targets_S = row
        logits_SV = model.logits(hidden_SD[None])[0]
        chosen_S = jnp.take_along_axis(logits_SV, targets_S[:, None], axis=1)[:, 0]
        return chosen_S - jax.nn.logsumexp(logits_SV, axis=1), jnp.argmax(logits_SV, axis=1) == targets_S

    # Row by row, so that the logits of one row exist at a time: [rows, S, V] would be the largest array of all.
    return cache, *jax.lax.map(score_row, (hidden_RSD, targets_RS))
