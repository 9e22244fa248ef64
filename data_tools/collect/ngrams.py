"""Texts in, hashes of their character or word n-grams out, as flat arrays with row offsets (CSR): numpy, no loop per n-gram.

Both kinds see a text after the same normalisation (NFKC, lower case, letters and digits only), so that spacing, punctuation,
full-width forms and line breaks make no difference. The hashes are the same on every machine and in every process.
"""

import functools
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data_tools.records.language import language_of

CODE_POINTS = 0x110000
HAN_BLOCKS = ((0x3400, 0xA000), (0xF900, 0xFB00), (0x20000, 0x31350))
_STEP = np.uint64(0x9E3779B97F4A7C15)
_PRIME = np.uint64(0x100000001B3)


@dataclass(frozen=True)
class HashedRows:
    """Rows of hashes.

    Attributes:
      hashes: uint64 [total]; row i is `hashes[offsets[i]:offsets[i + 1]]`.
      offsets: int64 [rows + 1].
    """

    hashes: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def row(self, i: int) -> np.ndarray:
        """Hashes of row i, uint64 [n]."""
        return self.hashes[self.offsets[i] : self.offsets[i + 1]]

    def sets(self) -> "HashedRows":
        """The same rows as sets: every hash once, ascending."""
        rows = np.repeat(np.arange(len(self)), np.diff(self.offsets))
        order = np.lexsort((self.hashes, rows))
        hashes, rows = self.hashes[order], rows[order]
        first = np.ones(len(hashes), bool)
        first[1:] = (hashes[1:] != hashes[:-1]) | (rows[1:] != rows[:-1])
        return HashedRows(hashes[first], _offsets(rows[first], len(self)))


def normalise(text: str) -> str:
    """NFKC and lower case; what is then neither letter nor digit does not count (see `characters`)."""
    return unicodedata.normalize("NFKC", text).lower()


def characters(texts: Sequence[str]) -> HashedRows:
    """Code points (as uint64) of the letters and digits of each text, after `normalise`."""
    normal = [normalise(text) for text in texts]
    codes = np.frombuffer("".join(normal).encode("utf-32-le", "surrogatepass"), np.uint32)
    rows = np.repeat(np.arange(len(normal)), np.fromiter(map(len, normal), np.int64, len(normal)))
    kept = _is_word()[codes] > 0
    return HashedRows(codes[kept].astype(np.uint64), _offsets(rows[kept], len(normal)))


def words(texts: Sequence[str]) -> HashedRows:
    """A hash per word of each text, after `normalise`; a Chinese character is a word of its own."""
    normal = [normalise(text) for text in texts]
    codes = np.frombuffer("\0".join([*normal, ""]).encode("utf-32-le", "surrogatepass"), np.uint32)
    if not len(codes):
        return HashedRows(np.zeros(0, np.uint64), np.zeros(len(normal) + 1, np.int64))
    kinds = _is_word()[codes]
    starts = kinds > 0
    starts[1:] &= (kinds[1:] == 2) | (kinds[1:] != kinds[:-1])
    first = np.flatnonzero(starts)
    if not len(first):
        return HashedRows(np.zeros(0, np.uint64), np.zeros(len(normal) + 1, np.int64))
    positions = np.arange(len(codes)) - np.repeat(np.append(0, first), np.diff(np.concatenate([[0], first, [len(codes)]])))
    letters = _mix(codes.astype(np.uint64) | (positions.astype(np.uint64) << np.uint64(21)))
    letters[kinds == 0] = 0
    hashes = _mix(np.add.reduceat(letters, first))
    row_of_code = np.cumsum(codes == 0) - (codes == 0)
    return HashedRows(hashes, _offsets(row_of_code[first], len(normal)))


def ngrams(units: HashedRows, n: int) -> HashedRows:
    """Hashes of all runs of n units within a row; a row with fewer units has none."""
    count = len(units.hashes) - n + 1
    if count <= 0:
        return HashedRows(np.zeros(0, np.uint64), np.zeros(len(units) + 1, np.int64))
    combined = np.zeros(count, np.uint64)
    for i in range(n):
        combined = combined * _PRIME + _mix(units.hashes[i : i + count])
    rows = np.repeat(np.arange(len(units)), np.diff(units.offsets))
    inside = rows[:count] == rows[n - 1 :]
    return HashedRows(_mix(combined[inside]), _offsets(rows[:count][inside], len(units)))


def shingles(texts: Sequence[str], n: int = 3) -> HashedRows:
    """The set of n-grams of each text: of characters in Chinese, of words in English.

    A text with fewer than n units has one shingle, all of it, so that short texts are compared as a whole.
    """
    is_zh = np.array([language_of(text) == "zh" for text in texts], bool)
    rows: list[np.ndarray] = [np.zeros(0, np.uint64)] * len(texts)
    for units, chosen in ((characters, np.flatnonzero(is_zh)), (words, np.flatnonzero(~is_zh))):
        found = units([texts[i] for i in chosen.tolist()])
        grams = ngrams(found, n).sets()
        for k, i in enumerate(chosen.tolist()):
            row = grams.row(k)
            rows[i] = row if len(row) else _mix(found.row(k).sum(dtype=np.uint64, keepdims=True))
    offsets = np.zeros(len(texts) + 1, np.int64)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    return HashedRows(np.concatenate([np.zeros(0, np.uint64), *rows]), offsets)


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """Jaccard index of two sets, each given as distinct values."""
    both = len(np.intersect1d(a, b, assume_unique=True))
    either = len(a) + len(b) - both
    return both / either if either else 1.0


def _mix(values: np.ndarray) -> np.ndarray:
    """Spreads uint64 values over all bits (the finaliser of splitmix64)."""
    mixed = values + _STEP
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _offsets(rows: np.ndarray, count: int) -> np.ndarray:
    """Offsets int64 [count + 1] of ascending row numbers."""
    return np.searchsorted(rows, np.arange(count + 1)).astype(np.int64)


@functools.cache
def _is_word() -> np.ndarray:
    """Per code point: 0 = neither letter nor digit, 1 = letter or digit, 2 = Chinese character. uint8 [CODE_POINTS]."""
    table = np.fromiter((chr(code).isalnum() for code in range(CODE_POINTS)), np.uint8, CODE_POINTS)
    for first, end in HAN_BLOCKS:
        table[first:end] *= 2
    return table
