"""Hashed n-grams of characters (Chinese) or words (English): by them copies, exam questions and learned features are found.

Many texts at once become flat arrays with row offsets (CSR), in numpy, without a Python loop per n-gram: three texts of 4, 0 and
2 characters are `hashes` of 6 values and `offsets` [0, 4, 4, 6].

Texts are normalised first (NFKC, lower case, letters and digits only), so that spacing, punctuation, full-width forms and line
breaks make no difference. The hashes must be the same on every machine and in every process, for they are stored and compared
across workers. Next to read: `duplicates.py`, `exams.py`.
"""

import functools
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from data_tools.records.language import language_of

CODE_POINTS = 0x110000
# Unified ideographs with extension A; compatibility ideographs; extensions B to G.
HAN_BLOCKS = ((0x3400, 0xA000), (0xF900, 0xFB00), (0x20000, 0x31350))
GOLDEN = np.uint64(0x9E3779B97F4A7C15)
"""2^64 over the golden ratio: the usual odd constant of multiplicative hashing."""
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
        # One sort for all rows, by row and then by hash: a value that equals the one before it in its row is a repetition.
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
    # Of the texts "ab 中" and "c", as code points with a 0 after each text:
    #   codes   a b _ 中 0 c 0
    #   kinds   1 1 0 2  0 1 0     a word begins where the kind changes, and at every Chinese character
    #   first   ^     ^    ^       = [0, 3, 5]
    # A letter is hashed together with its place in its word, so that the sum over a word's letters depends on their order.
    kinds = _is_word()[codes]
    starts = kinds > 0
    starts[1:] &= (kinds[1:] == 2) | (kinds[1:] != kinds[:-1])
    first = np.flatnonzero(starts)
    if not len(first):
        return HashedRows(np.zeros(0, np.uint64), np.zeros(len(normal) + 1, np.int64))
    positions = np.arange(len(codes)) - np.repeat(np.append(0, first), np.diff(np.concatenate([[0], first, [len(codes)]])))
    letters = mix(codes.astype(np.uint64) | (positions.astype(np.uint64) << np.uint64(21)))
    letters[kinds == 0] = 0
    hashes = mix(np.add.reduceat(letters, first))
    row_of_code = np.cumsum(codes == 0) - (codes == 0)
    return HashedRows(hashes, _offsets(row_of_code[first], len(normal)))


def ngrams(units: HashedRows, n: int) -> HashedRows:
    """Hashes of all runs of n units within a row; a row with fewer units has none."""
    combined = runs(mix(units.hashes), n)
    rows = np.repeat(np.arange(len(units)), np.diff(units.offsets))
    # A run that begins in one row and ends in the next is no n-gram of either.
    inside = rows[: len(combined)] == rows[n - 1 :]
    return HashedRows(mix(combined[inside]), _offsets(rows[: len(combined)][inside], len(units)))


def runs(values: np.ndarray, n: int) -> np.ndarray:
    """A number for each run of n values, equal for equal runs: a polynomial in them, uint64 [max(0, len - n + 1)]."""
    # A run of 12 is two of 6, each two of 3, each one of 1 and one of 2: four products in place of twelve.
    if n == 1:
        return values
    count, half = max(0, len(values) - n + 1), n // 2
    first = runs(values, half)
    rest = first if 2 * half == n else runs(values, n - half)
    return first[:count] * np.uint64(pow(int(_PRIME), n - half, 1 << 64)) + rest[half : half + count]


class Beginnings:
    """Where in a text one of many terms may begin, asked of all places at once.

    A table of 65,536 hashes of the first two characters of each term: of 2,500 terms, one place in 30 is named wrongly, none is
    missed. What is named must be looked at; what is not, need not.
    """

    def __init__(self, terms: Iterable[str]) -> None:
        self._table = np.zeros(1 << 16, bool)
        for term in terms:
            self._table[self._hashes(term[:2])] = True

    def places(self, text: str) -> list[int]:
        """Places, ascending."""
        return np.flatnonzero(self._table[self._hashes(text)]).tolist()

    @staticmethod
    def _hashes(text: str) -> np.ndarray:
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        return (codes[:-1] * np.uint32(40503) ^ codes[1:]) & np.uint32(0xFFFF)


def shingles(texts: Sequence[str], n: int = 3) -> HashedRows:
    """The set of n-grams of each text: of characters in Chinese, of words in English.

    A text with fewer than n units has one shingle, all of it, so that short texts are compared as a whole.
    """
    is_zh = np.array([language_of(text) == "zh" for text in texts], bool)
    rows: list[np.ndarray] = [np.zeros(0, np.uint64)] * len(texts)
    for units, chosen in ((characters, np.flatnonzero(is_zh)), (words, np.flatnonzero(~is_zh))):
        rows_of_units = units([texts[i] for i in chosen.tolist()])
        grams = ngrams(rows_of_units, n).sets()
        for k, i in enumerate(chosen.tolist()):
            row = grams.row(k)  # of "肺炎", 2 characters: empty, so the sum of its units stands for all of it
            rows[i] = row if len(row) else mix(rows_of_units.row(k).sum(dtype=np.uint64, keepdims=True))
    offsets = np.zeros(len(texts) + 1, np.int64)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    return HashedRows(np.concatenate([np.zeros(0, np.uint64), *rows]), offsets)


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """Jaccard index of two sets, each given as distinct values."""
    both = len(np.intersect1d(a, b, assume_unique=True))
    either = len(a) + len(b) - both
    return both / either if either else 1.0


def mix(values: np.ndarray) -> np.ndarray:
    """Spreads uint64 values over all bits (the finaliser of splitmix64)."""
    mixed = values + GOLDEN
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _offsets(rows: np.ndarray, count: int) -> np.ndarray:
    """Offsets int64 [count + 1] of ascending row numbers."""
    return np.searchsorted(rows, np.arange(count + 1)).astype(np.int64)


@functools.cache
def _is_word() -> np.ndarray:
    """Per code point: 0 = neither letter nor digit, 1 = letter or digit, 2 = Chinese character. uint8 [CODE_POINTS]."""
    # A table, so that a whole batch of texts is looked up at once; Python's own answer for each code point, as in str.isalnum.
    table = np.fromiter((chr(code).isalnum() for code in range(CODE_POINTS)), np.uint8, CODE_POINTS)
    for first, end in HAN_BLOCKS:
        table[first:end] *= 2
    return table
