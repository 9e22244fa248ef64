"""Different facts in the same words: which pairs of near copies are no copies. Part of the choice in `duplicates.py`.

Pages made from a template (the symptoms of one disease and of another, a drug as tablets and as syrup) share more than .8 of
their 3-grams and say different things. What they share is boilerplate; what differs is the subject. Copies differ elsewhere: in
scattered words, in their order, in a title that somebody reworded, in lines that a site added. So a pair is different facts if

  subject   a word of one's title stands in its body too, and nowhere in the other;
  field     both titles have words that the other passage lacks, and both bodies have a stretch that the other lacks;
  number    all that either has beyond the other is numbers, and both have some.

A reworded title over the same body is none of these: its new words are not in the body. The title is the passage's own or its
document's; without one, the first line of several, or the first clause. Next to read: `duplicates.py`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_tools.collect.ngrams import HashedRows, ngrams, words
from data_tools.records.language import language_of

STRETCH = 4
"""3-grams in a row that the other passage lacks: a replaced word alone gives 3."""
PAIRS_AT_ONCE = 10_000
_NUMBER = re.compile(r"\d+")
_OPENING = re.compile(r"(?:[^。：:？?！!；;.]{1,4}[：:]\s?)?[^。：:？?！!；;.]{2,60}[。：:？?！!；;.](?=.{10})", re.DOTALL)
"""The first clause of a text of one line, up to which it says what it is about; with a label such as 问： before it."""


@dataclass(frozen=True)
class Passage:
    """A passage as it is written out; `title` is "" where the row has none."""

    text: str
    title: str = ""

    def parts(self) -> tuple[str, str]:
        """Title and body."""
        if self.title:
            return self.title, self.text
        first, _, rest = self.text.partition("\n")
        if rest.strip():
            return first, rest
        match = _OPENING.match(self.text)
        return (self.text[: match.end()], self.text[match.end() :]) if match else ("", self.text)


def different_facts(pairs: np.ndarray, passages: Sequence[Passage]) -> np.ndarray:
    """For each pair of places in `passages`, int64 [m, 2], whether the two state different facts: bool [m]."""
    if not len(pairs):
        return np.zeros(0, bool)
    titles, bodies = zip(*(passage.parts() for passage in passages), strict=True)
    of_titles, of_bodies = words(titles), words(bodies)
    # Subjects are looked for by words in English, by pairs of characters in Chinese, where single ones are everywhere.
    is_zh = [language_of(passage.text) == "zh" for passage in passages]
    title_names, body_names = _names(of_titles, is_zh), _names(of_bodies, is_zh)
    known = np.unique(np.concatenate([of_titles.hashes, of_bodies.hashes, title_names.hashes, body_names.hashes]))
    title, body = _presence(title_names, known), _presence(body_names, known)
    # With the title 肺炎 and the body 治疗肺炎, `repeated` has the pair 肺炎, `everything` 肺炎, 治疗 and 疗肺.
    repeated, everything = title.multiply(body).tocsr(), title.maximum(body).tocsr()
    single = _presence(of_titles, known).maximum(_presence(of_bodies, known)).tocsr()
    digits = sorted({number for passage in passages for number in _NUMBER.findall(f"{passage.title}\n{passage.text}")})
    is_number = np.isin(known, words(digits).hashes).astype(np.int32)
    grams = ngrams(of_bodies, 3)
    sets = grams.sets()
    out = []
    for start in range(0, len(pairs), PAIRS_AT_ONCE):
        a, b = pairs[start : start + PAIRS_AT_ONCE].T
        subject = _lacks(repeated, everything, a, b) | _lacks(repeated, everything, b, a)
        field = ~subject & _lacks(title, everything, a, b) & _lacks(title, everything, b, a)
        for i in np.flatnonzero(field).tolist():
            field[i] = _has_stretch(grams.row(a[i]), sets.row(b[i])) and _has_stretch(grams.row(b[i]), sets.row(a[i]))
        number = _only_numbers(single, is_number, a, b) & _only_numbers(single, is_number, b, a)
        out.append(subject | field | number)
    return np.concatenate(out)


def _names(units: HashedRows, is_zh: Sequence[bool]) -> HashedRows:
    pairs = ngrams(units, 2)
    rows = [pairs.row(i) if is_zh[i] and len(pairs.row(i)) else units.row(i) for i in range(len(units))]
    return HashedRows(np.concatenate(rows), np.cumsum([0, *map(len, rows)]))


def _presence(rows: HashedRows, known: np.ndarray) -> Any:
    """Whether each row has each of the known hashes: sparse int32 [rows, known], 0 or 1."""
    from scipy import sparse  # of scikit-learn's, which `collect` installs

    sets = rows.sets()
    columns = np.searchsorted(known, sets.hashes)
    return sparse.csr_matrix((np.ones(len(columns), np.int32), columns, sets.offsets), (len(rows), len(known)))


def _count(matrix: Any) -> np.ndarray:
    return np.asarray(matrix.sum(axis=1)).ravel()


def _lacks(of: Any, others: Any, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Whether row a of the first matrix has something that row b of the second lacks: bool [m]."""
    rows = of[a]
    return _count(rows) > _count(rows.multiply(others[b]))


def _only_numbers(single: Any, is_number: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Whether a has units beyond b, and all of them are numbers: bool [m]."""
    rows = single[a]
    beyond = rows - rows.multiply(single[b])
    total = _count(beyond)
    return (total > 0) & (np.asarray(beyond @ is_number).ravel() == total)


def _has_stretch(grams: np.ndarray, others: np.ndarray) -> bool:
    """Whether STRETCH 3-grams in a row are missing from the others, which ascend."""
    if len(grams) < STRETCH or not len(others):
        return len(grams) >= STRETCH
    missing = others[np.minimum(np.searchsorted(others, grams), len(others) - 1)] != grams
    # Missing: 0 1 1 1 1 0 1. Each place together with the three after it: 0 1 0 0, so there is such a stretch.
    together = missing[: len(missing) - STRETCH + 1]
    for shift in range(1, STRETCH):
        together = together & missing[shift : len(missing) - STRETCH + 1 + shift]
    return bool(together.any())
