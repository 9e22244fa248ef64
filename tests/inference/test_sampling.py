"""Every filter against transformers' own, on the same logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from huatuo_jax.errors import ConfigError
from huatuo_jax.inference.sampling import Sampling, SamplingRows, draw, keep_top_k, keep_top_p, next_tokens, penalise

torch = pytest.importorskip("torch")
from transformers.generation import logits_process as theirs

ROWS, VOCAB = 6, 512


def random_logits(seed: int, spread: float = 3.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(ROWS, VOCAB)).astype(np.float32) * spread


def tied_logits(seed: int) -> np.ndarray:
    """Few different values, zeros of both signs and tokens that are out already."""
    logits = np.random.default_rng(seed).integers(-3, 4, (ROWS, VOCAB)).astype(np.float32) / 2
    logits[logits == 0] *= -1
    logits[0, ::3] = -np.inf
    return logits


LOGITS = [random_logits(0), random_logits(1, 0.1), random_logits(2, 40.0), tied_logits(3)]


def by_transformers(processor, logits: np.ndarray, seen: np.ndarray | None = None) -> np.ndarray:
    return processor(
        torch.zeros((ROWS, 1), dtype=torch.long) if seen is None else torch.tensor(seen), torch.tensor(logits)
    ).numpy()


def per_row(value, dtype=jnp.float32):
    return jnp.full(ROWS, value, dtype)


@pytest.mark.parametrize("logits", LOGITS)
@pytest.mark.parametrize("k", [1, 2, 5, 50, VOCAB - 1, VOCAB, VOCAB + 7])
def test_top_k(logits, k):
    np.testing.assert_array_equal(keep_top_k(logits, per_row(k, jnp.int32)), by_transformers(theirs.TopKLogitsWarper(k), logits))


PROBABILITIES = [1e-9, 0.1, 0.5, 0.7, 0.95, 0.999]


@pytest.mark.parametrize("logits", LOGITS[:3])
@pytest.mark.parametrize("p", PROBABILITIES)
def test_top_p(logits, p):
    np.testing.assert_array_equal(keep_top_p(logits, per_row(p)), by_transformers(theirs.TopPLogitsWarper(p), logits))


@pytest.mark.parametrize("p", PROBABILITIES)
def test_top_p_keeps_as_many_of_equal_tokens_and_of_them_the_lower_ids(p):
    logits = LOGITS[3]
    kept, expected = keep_top_p(logits, per_row(p)), by_transformers(theirs.TopPLogitsWarper(p), logits)
    np.testing.assert_array_equal(np.sort(kept), np.sort(expected))
    for row, whole in zip(np.asarray(kept), logits, strict=True):
        last = row[np.isfinite(row)].min()
        equal = np.flatnonzero(whole == last)
        assert np.isfinite(row[equal]).tolist() == sorted(np.isfinite(row[equal]).tolist(), reverse=True)


@pytest.mark.parametrize("logits", LOGITS)
@pytest.mark.parametrize("penalty", [1.1, 0.8])
def test_repetition_penalty(logits, penalty):
    ids = np.random.default_rng(9).integers(0, VOCAB, (ROWS, 40))
    seen = np.zeros((ROWS, VOCAB), bool)
    np.put_along_axis(seen, ids, True, axis=1)
    expected = by_transformers(theirs.RepetitionPenaltyLogitsProcessor(penalty), logits, ids)
    np.testing.assert_allclose(penalise(logits, seen, per_row(penalty)), expected, rtol=2e-7)


def test_the_whole_chain_draws_only_what_transformers_leaves():
    logits, settings = random_logits(5), Sampling(temperature=0.5, top_k=20, top_p=0.7, repetition_penalty=1.1)
    ids = np.random.default_rng(9).integers(0, VOCAB, (ROWS, 40))
    seen = np.zeros((ROWS, VOCAB), bool)
    np.put_along_axis(seen, ids, True, axis=1)
    left = by_transformers(theirs.RepetitionPenaltyLogitsProcessor(1.1), logits, ids)
    for warper in (theirs.TemperatureLogitsWarper(0.5), theirs.TopKLogitsWarper(20), theirs.TopPLogitsWarper(0.7)):
        left = by_transformers(warper, left, ids)
    drawn = [set() for _ in range(ROWS)]
    chain = jax.jit(next_tokens, static_argnames="sampled")
    for position in range(300):
        rows = rows_of(settings)
        for row, token in enumerate(chain(logits, seen, per_row(position, jnp.int32), rows, sampled=True).tolist()):
            drawn[row].add(token)
    # 300 draws meet every token of a probability above 3 % (and none that was removed).
    for row, tokens in enumerate(drawn):
        chances = np.exp(left[row] - left[row].max()) / np.exp(left[row] - left[row].max()).sum()
        assert tokens <= set(np.flatnonzero(np.isfinite(left[row])).tolist())
        assert tokens >= set(np.flatnonzero(chances > 0.03).tolist())


def rows_of(*settings: Sampling) -> SamplingRows:
    settings = settings if len(settings) == ROWS else settings * ROWS
    column = lambda name, dtype: jnp.asarray([getattr(one, name) for one in settings], dtype)
    return SamplingRows(
        column("temperature", jnp.float32),
        column("top_k", jnp.int32),
        column("top_p", jnp.float32),
        column("repetition_penalty", jnp.float32),
        column("seed", jnp.uint32),
    )


def test_draws_follow_the_probabilities():
    logits = np.log(np.array([[0.5, 0.3, 0.15, 0.05]], np.float32))
    tokens = jax.vmap(lambda seed: draw(logits, seed[None], jnp.zeros(1, jnp.int32))[0])(jnp.arange(4000, dtype=jnp.uint32))
    shares = np.bincount(tokens, minlength=4) / 4000
    np.testing.assert_allclose(shares, np.exp(logits[0]), atol=0.025)  # three standard deviations


def test_each_row_has_its_own_settings():
    logits = random_logits(7)
    mixed = [
        Sampling(),
        Sampling(1.0, seed=1),
        Sampling(1.0, top_k=1, seed=2),
        Sampling(2.0, top_p=1e-6),
        Sampling(1.0, seed=1),
        Sampling(),
    ]
    logits[4] = logits[1]
    tokens = next_tokens(logits, np.zeros(logits.shape, bool), per_row(3, jnp.int32), rows_of(*mixed), sampled=True)
    likeliest = logits.argmax(axis=1)
    assert [tokens[i] == likeliest[i] for i in (0, 2, 3, 5)] == [True] * 4
    assert tokens[1] == tokens[4]


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"repetition_penalty": 0.0},
    ],
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Sampling(**wrong)
