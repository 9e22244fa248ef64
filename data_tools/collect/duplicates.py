"""Hashes of passages in priority order in, which copy of each stays out: exact and near duplicates (MinHash LSH).

Passages are numbered in the order of preference: of copies, the one with the smallest number stays. A near duplicate is removed
only if its exact Jaccard index with a passage that *stays* reaches the threshold; so no chain of small changes removes a text
that is like none of those kept. The hashing of MinHash is rensa's; bands are compared by sorting, one after the other, which
needs the memory of one column for all passages instead of an index of all of them.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data_tools.collect.ngrams import HashedRows, characters, jaccard
from huatuo_jax.errors import ConfigError

KEPT = -1


@dataclass(frozen=True)
class NearDuplicates:
    """Settings of near de-duplication.

    Attributes:
      threshold: Jaccard index of the sets of 3-grams (characters in Chinese, words in English) from which texts are copies.
      bands, rows: the signature has bands·rows values; texts that agree in all rows of some band are compared.
      bucket: of texts that agree in a band, each is compared with so many of the preferred ones at most.
    """

    threshold: float = 0.8
    bands: int = 25
    rows: int = 5
    seed: int = 20231115
    bucket: int = 64

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise ConfigError(f"the near-duplicate threshold is {self.threshold}; a Jaccard index lies above 0 and at most at 1")
        recall = 1 - (1 - self.threshold**self.rows) ** self.bands
        if recall < 0.95:
            raise ConfigError(
                f"{self.bands} bands of {self.rows} rows find {recall:.0%} of the pairs at the threshold {self.threshold}; "
                "give fewer rows or more bands"
            )


def content_digests(texts: Sequence[str]) -> np.ndarray:
    """128-bit digest of the letters and digits of each text (see `ngrams.normalise`): uint64 [n, 2]."""
    units = characters(texts)
    content = units.hashes.astype("<u4")
    digests = b"".join(
        hashlib.blake2b(content[units.offsets[i] : units.offsets[i + 1]].tobytes(), digest_size=16).digest()
        for i in range(len(units))
    )
    return np.frombuffer(digests, "<u8").reshape(len(texts), 2)


def exact_duplicates(digests: np.ndarray) -> np.ndarray:
    """For each passage the number of the preferred one with the same digest, or KEPT. int64 [n]."""
    order = np.lexsort((np.arange(len(digests)), digests[:, 1], digests[:, 0]))
    ordered = digests[order]
    new = np.ones(len(digests), bool)
    new[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    leaders = order[np.flatnonzero(new)[np.cumsum(new) - 1]] if len(order) else order
    out = np.empty(len(digests), np.int64)
    out[order] = np.where(new, KEPT, leaders)
    return out


def signatures(sets: HashedRows, settings: NearDuplicates) -> np.ndarray:
    """MinHash signature of each set: uint32 [n, bands·rows].

    Raises:
      ConfigError: rensa is not installed.
    """
    try:
        from rensa import RMinHash
    except ImportError as error:
        raise ConfigError("near de-duplication needs rensa; pip install 'huatuo-jax[collect]'") from error
    permutations = settings.bands * settings.rows
    if not len(sets):
        return np.zeros((0, permutations), np.uint32)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(
        sets.hashes, sets.offsets.astype(np.uint64), permutations, settings.seed
    )
    return np.array(matrix.to_rows(), np.uint32)


def band_keys(signature: np.ndarray, settings: NearDuplicates) -> np.ndarray:
    """A hash per band: uint64 [n, bands]."""
    parts = signature.reshape(len(signature), settings.bands, settings.rows).astype(np.uint64)
    keys = np.zeros(parts.shape[:2], np.uint64)
    for i in range(settings.rows):
        keys = (keys ^ parts[:, :, i]) * np.uint64(0x9E3779B97F4A7C15)
        keys ^= keys >> np.uint64(29)
    return keys


def candidate_pairs(keys: np.ndarray, bucket: int) -> tuple[np.ndarray, int]:
    """Pairs (preferred, other) of passages with the same key of one band: int64 [m, 2]; and how many comparisons `bucket` saved.

    Args:
      keys: uint64 [n], one band of all passages.
    """
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1])) if len(order) else np.zeros(0, np.int64)
    sizes = np.diff(np.append(starts, len(order)))
    saved = 0
    pairs = [np.zeros((0, 2), np.int64)]
    for start, size in zip(starts[sizes > 1], sizes[sizes > 1], strict=True):
        members = order[start : start + size]
        firsts, others = np.triu_indices(min(size, bucket), 1, size)
        saved += math.comb(max(int(size) - bucket, 0), 2)
        pairs.append(np.stack([members[firsts], members[others]], axis=1))
    return np.concatenate(pairs), saved


def similar_pairs(pairs: np.ndarray, sets: HashedRows, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """The pairs whose exact Jaccard index reaches the threshold, int64 [m, 2], and that index, float64 [m]."""
    values = np.array([jaccard(sets.row(a), sets.row(b)) for a, b in pairs.tolist()])
    reached = values >= threshold
    return pairs[reached].reshape(-1, 2), values[reached]


def keep_preferred(pairs: np.ndarray, count: int) -> np.ndarray:
    """Of similar pairs (preferred, other), which passage each removed one is a copy of; KEPT for those that stay. int64 [count].

    In order of preference a passage stays unless it is similar to one that stays.
    """
    out = np.full(count, KEPT, np.int64)
    for first, other in pairs[np.lexsort((pairs[:, 0], pairs[:, 1]))].tolist():
        if out[other] == KEPT and out[first] == KEPT:
            out[other] = first
    return out
