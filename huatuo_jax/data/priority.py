"""Priority sampling: the order of all draws, from record counts, priorities, epochs and a seed.

The law (HuatuoGPT-II, "data priority sampling"): without replacement over the records of all sources,
P_t(x) = π(x) / Σ_{y not yet drawn} π(y). That is exactly ascending order of the keys E_x / π(x) with E_x ~ Exp(1)
(Efraimidis and Spirakis, 2006), so one sort draws everything, for any number of records. With two sources:

    web, π = 32, E = 0.8  1.6  0.4   keys 0.025  0.050  0.0125
    sft, π = 1,  E = 0.7  0.02       keys 0.7    0.02
    order: web 2 (0.0125), sft 1 (0.02), web 0, web 1, sft 0     sft comes last but for a lucky draw

What must hold: the order is the same on every machine and numpy version. Only what is fixed for ever is used: the raw stream of
Philox, the four basic operations of IEEE 754 (numpy's own `log` differs in the last bit between CPUs) and a stable sort. Each
source has a random stream of its own, named by the source: adding a source leaves the order within the others as it is.
Next on the way: `packing.py`.
"""

import hashlib
from collections.abc import Mapping

import numpy as np

from huatuo_jax.config import SourceMix, require

# A block of 512 KiB stays in the cache while its logarithms are taken.
_BLOCK = 1 << 16
_LN2 = 0.6931471805599453
_SQRT_HALF = 0.7071067811865476
_ATANH_TERMS = 11


def draw_order(counts: Mapping[str, int], mixture: Mapping[str, SourceMix], seed: int) -> np.ndarray:
    """The order in which all draws of all sources come.

    Documents are numbered through the sources in the order of `counts`: record i of a source has the id
    (records of the sources before it) + i. A source with epochs e enters int(n·e) times: each record floor(e) times, and some
    records, chosen by the seed, once more; all copies are drawn together, not one epoch after the other.

    Args:
      counts: records a source; a source that `mixture` leaves out is not drawn.
      mixture: source → priority π and epochs. Only ratios of priorities matter.
      seed: of the order, at least 0.

    Returns:
      int64 [draws], document ids.

    Raises:
      ConfigError: a source of the mixture is not in `counts`, or the seed is negative.
    """
    require(seed >= 0, f"data.seed is {seed}; it must be at least 0")
    unknown = [source for source in mixture if source not in counts]
    require(
        not unknown,
        f"the mixture names sources that the data does not have: {', '.join(unknown)}; it has {', '.join(counts) or 'none'}; "
        "take them out of data.mixture, or build the token dataset with their records",
    )
    documents, keys, offset = [np.empty(0, np.int64)], [np.empty(0, np.float64)], 0
    for source, count in counts.items():
        if source in mixture:
            records = draws_of_source(source, count, mixture[source].epochs, seed)
            documents.append(records + offset)
            keys.append(_exponentials(_stream(source, "order", seed), len(records)) / mixture[source].priority)
        offset += count
    # Stable, so that equal keys (they do occur among 10⁸ draws) come in the order of the sources everywhere.
    order = np.argsort(np.concatenate(keys), kind="stable")
    keys.clear()
    return np.concatenate(documents)[order]


def draws_of_source(source: str, count: int, epochs: float, seed: int) -> np.ndarray:
    """The record of each of a source's int(count·epochs) draws: int64 [draws], before any order.

    5 records and 2.4 epochs are 12 draws: 0 1 2 3 4 0 1 2 3 4, then 2 records that the seed chooses, say 1 2.
    """
    draws = int(count * epochs)
    copies = draws // count if count else 0
    extra = draws - copies * count
    chosen = np.empty(0, np.int64)
    if extra:
        raw = _stream(source, "extra", seed).random_raw(count)
        chosen = np.sort(np.argsort(raw, kind="stable")[:extra])
    return np.concatenate([np.tile(np.arange(count, dtype=np.int64), copies), chosen])


def _stream(source: str, purpose: str, seed: int) -> np.random.Philox:
    name = int.from_bytes(hashlib.sha256(f"{purpose}/{source}".encode()).digest()[:16], "little")
    return np.random.Philox(np.random.SeedSequence([seed, name]))


def _exponentials(stream: np.random.Philox, n: int) -> np.ndarray:
    """n draws of Exp(1), float64, bit-equal everywhere; in blocks that stay in the cache."""
    out = np.empty(n, np.float64)
    for start in range(0, n, _BLOCK):
        block = out[start : start + _BLOCK]
        # 52 random bits, exact in float64; the half keeps the number off 0 and 1, where the logarithm has no use.
        uniform = (stream.random_raw(len(block)) >> np.uint64(12)).astype(np.float64)
        uniform += 0.5
        uniform *= 2.0**-52
        block[:] = minus_log(uniform)
    return out


def minus_log(x: np.ndarray) -> np.ndarray:
    """−ln x for 0 < x < 1 from basic operations: x = m·2^e with √½ ≤ m < √2, then ln m = 2·artanh((m − 1)/(m + 1)).

    |s| = |(m − 1)/(m + 1)| is at most 0.172, so 12 terms of artanh s = s + s³/3 + s⁵/5 + … reach the last bit.
    """
    mantissa, exponent = np.frexp(x)
    low = mantissa < _SQRT_HALF
    mantissa = np.where(low, mantissa * 2.0, mantissa)
    whole = exponent.astype(np.float64) - low
    s = (mantissa - 1.0) / (mantissa + 1.0)
    square = s * s
    series = np.full_like(s, 1.0 / (2 * _ATANH_TERMS + 1))
    for k in range(_ATANH_TERMS - 1, -1, -1):
        series *= square
        series += 1.0 / (2 * k + 1)
    series *= s
    series *= -2.0
    whole *= -_LN2
    return whole + series
