"""A prefix and its possible continuations in, their log-likelihoods out; the prefix is computed once."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from huatuo_jax.errors import DataError
from huatuo_jax.inference.device import LARGEST_PIECE, bucket, score
from huatuo_jax.inference.engine import Engine
from huatuo_jax.inference.request import check_prompt
from huatuo_jax.models.cache import KVCache


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
    shared = engine.fill(engine.new_cache(1 if engine.mesh is None else engine.num_rows, longest), [0], [prefix[:-1]])
    found: list[LogLikelihood] = []
    for start in range(0, len(continuations), engine.num_rows):
        found += _score_rows(engine, shared, prefix, continuations[start : start + engine.num_rows])
    return found


def _score_rows(
    engine: Engine, shared: KVCache, prefix: Sequence[int], continuations: Sequence[Sequence[int]]
) -> list[LogLikelihood]:
    height = engine.rows_for(len(continuations))
    cache = shared.repeat_first(height)
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
            cache, chances, likeliest = score(
                engine.graphdef,
                engine.params,
                cache,
                inputs,
                np.full(height, first, np.int32),
                targets,
                visible=bucket(first + width),
                dtype=engine.dtype,
            )
        chances, likeliest = jax.device_get((chances, likeliest))
        totals += np.where(counts, chances, 0).sum(axis=1, dtype=np.float64)
        greedy &= (likeliest | ~counts).all(axis=1)
    if not np.isfinite(totals).all():
        broken = int(np.flatnonzero(~np.isfinite(totals))[0])
        raise DataError(f"continuation {broken}: its log-likelihood is {totals[broken]}; the weights are broken, or need float32")
    return [LogLikelihood(float(totals[row]), bool(greedy[row])) for row in range(len(continuations))]
