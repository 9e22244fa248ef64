"""Exam files in, an index of their n-grams out that finds the questions which a text holds.

N-grams are of characters in Chinese and of words in English. A question's own text and each of its options count apart, so that
letters before options, line breaks and the order of options make no difference.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.collect.ngrams import HashedRows, characters, ngrams, normalise, words
from data_tools.records.importing import plain_stem
from data_tools.records.language import language_of
from huatuo_jax.errors import ConfigError, DataError
from huatuo_jax.io.jsonl import Fault, iterate_json

SEAM_CHARS_PER_UNIT = 12
"""So many characters at the end or start of a text hold a letter or word of a question that is cut there."""


@dataclass(frozen=True)
class Overlap:
    """When a text counts as holding a question.

    Attributes:
      zh_characters, en_words: length of the n-grams.
      share: of a question's n-grams, the least that must occur in the text.
      long_question: n-grams from which a question is told by itself; a shorter one ("The drug of choice is") only if it is there
        whole and has `whole_question` n-grams, or together with the same share of its options, or as a line of its own with
        some of them (a line alone may be a heading: "Aspirin").
      whole_question: n-grams from which a whole question is no chance: in 47,506 real documents and dialogues none with 5 to 11
        occurs, three with 4 do ("特发性血小板减少性紫癜").
    """

    zh_characters: int = 8
    en_words: int = 6
    share: float = 0.6
    long_question: int = 12
    whole_question: int = 6

    def __post_init__(self) -> None:
        if self.zh_characters < 2 or self.en_words < 2:
            raise ConfigError("n-grams to find exam questions by need at least 2 characters or words")
        if not 0 < self.share <= 1:
            raise ConfigError(f"--overlap is {self.share}; a share lies above 0 and at most at 1")


@dataclass(frozen=True)
class Item:
    """One exam question: `exam` is its file's name."""

    id: str
    exam: str
    question: str
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Hit:
    """A question found in a text: `share` of its n-grams occur there."""

    item: Item
    share: float


def read_exams(files: Sequence[Path]) -> list[Item]:
    """Reads questions: rows with `question` and perhaps `options` (an object or a list) and `id`.

    Raises:
      DataError: a row without a question; it is named.
    """
    items = []
    for path in files:
        for number, row in iterate_json(path):
            if isinstance(row, Fault) or not isinstance(row, dict) or not isinstance(row.get("question"), str):
                raise DataError(f"{path}, line {number}: no exam question (an object with `question`)")
            items.append(Item(str(row.get("id", number)), plain_stem(path), row["question"], _options(row.get("options"))))
    if not items:
        raise DataError(f"no exam questions in {', '.join(map(str, files))}")
    return items


def _options(value: Any) -> tuple[str, ...]:
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return tuple(option for option in values if isinstance(option, str))


class ExamIndex:
    """Finds exam questions in texts.

    Attributes:
      items: the questions. unusable: how many have no letters at all.
    """

    def __init__(self, items: Sequence[Item], overlap: Overlap = Overlap()) -> None:
        self.items = tuple(items)
        self._overlap = overlap
        options = [(option, i) for i, item in enumerate(items) for option in item.options]
        languages = [language_of(item.question + " ".join(item.options)) for item in items]
        self._questions = _GramTables([(item.question, i) for i, item in enumerate(items)], languages, overlap)
        self._options = _GramTables(options, languages, overlap)
        self.unusable = int((self._questions.sizes == 0).sum())

    def find(self, texts: Sequence[str]) -> list[list[Hit]]:
        """The questions that each text holds, the best first."""
        return self._hits(texts, self._questions.count(texts))

    def find_with_cut(self, texts: Sequence[str], follows: Sequence[bool]) -> tuple[list[list[Hit]], list[list[Hit]]]:
        """The questions that each text holds, and those that it holds only together with the text before it.

        Args:
          follows: for each text whether it is to be looked at together with the one before; the first's counts as False.
        """
        counts = self._questions.count(texts)
        alone, cut = self._hits(texts, counts), [list[Hit]() for _ in texts]
        seconds = [row for row in range(1, len(texts)) if follows[row]]
        # Two texts have no more of a question's n-grams than each and their seam: mostly too few to look at both together.
        seam = SEAM_CHARS_PER_UNIT * max(self._overlap.zh_characters, self._overlap.en_words)
        across = self._questions.count([f"{texts[row - 1][-seam:]}\n{texts[row][:seam]}" for row in seconds])
        most = {(seconds[pair], i): seen for (pair, i), seen in across.items()}
        for (row, i), seen in counts.items():
            for second in (row, row + 1):
                if 0 < second < len(texts) and follows[second]:
                    most[second, i] = most.get((second, i), 0) + seen
        found_alone = [{hit.item for hit in hits} for hits in alone]
        enough = [place for place, seen in most.items() if seen >= self._overlap.share * self._questions.sizes[place[1]]]
        likely = sorted({row for row, i in enough if self.items[i] not in found_alone[row - 1] | found_alone[row]})
        for row, hits in zip(likely, self.find([f"{texts[row - 1]}\n{texts[row]}" for row in likely]), strict=True):
            cut[row] = [hit for hit in hits if hit.item not in found_alone[row - 1] | found_alone[row]]
        return alone, cut

    def _hits(self, texts: Sequence[str], counts: dict[tuple[int, int], int]) -> list[list[Hit]]:
        """The questions that each text holds by how many of their n-grams it has, the best first."""
        least = self._overlap.share
        shares = {place: seen / self._questions.sizes[place[1]] for place, seen in counts.items()}
        shares = {place: share for place, share in shares.items() if share >= least}
        out: list[list[Hit]] = [[] for _ in texts]
        # Options are often common words: they are looked for only where a question is.
        rows = sorted({row for row, _ in shares})
        options = {(rows[row], i): seen for (row, i), seen in self._options.count([texts[row] for row in rows]).items()}
        for (row, i), share in shares.items():
            needed = self._overlap.whole_question if share == 1 else self._overlap.long_question
            if self._questions.sizes[i] < needed:
                of_options = options.get((row, i), 0) / max(self._options.sizes[i], 1)
                some = of_options > 0 or not self._options.sizes[i]
                if not (some and _is_a_line(self.items[i].question, texts[row])):
                    share = min(share, of_options)
            if share >= least:
                out[row].append(Hit(self.items[i], float(share)))
        for hits in out:
            hits.sort(key=lambda hit: (-hit.share, hit.item.exam, hit.item.id))
        return out


class _GramTables:
    """N-grams of pieces of items; a piece shorter than n is one n-gram of its own length, so there is a table per length.

    Attributes:
      sizes: distinct n-grams per item, int64 [items].
    """

    def __init__(self, pieces: Sequence[tuple[str, int]], languages: Sequence[str], overlap: Overlap) -> None:
        self.sizes = np.zeros(len(languages), np.int64)
        self._tables: dict[tuple[str, int], tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
        for language, n in (("zh", overlap.zh_characters), ("en", overlap.en_words)):
            chosen = [(text, i) for text, i in pieces if languages[i] == language]
            owners = np.array([i for _, i in chosen], np.int64)
            units = _units(language, [text for text, _ in chosen])
            lengths = np.diff(units.offsets)
            for size in sorted({min(n, length) for length in lengths.tolist() if length}):
                found = ngrams(units, size)
                rows = np.repeat(np.arange(len(units)), np.diff(found.offsets))
                own = lengths[rows] >= n if size == n else lengths[rows] == size
                pairs = np.unique(np.stack([found.hashes[own], owners[rows[own]].astype(np.uint64)]), axis=1)
                members = pairs[1].astype(np.int64)
                np.add.at(self.sizes, members, 1)
                keys, starts = np.unique(pairs[0], return_index=True)
                self._tables[language, size] = keys, np.append(starts, len(members)), members

    def count(self, texts: Sequence[str]) -> dict[tuple[int, int], int]:
        """(text, item) → how many of the item's distinct n-grams the text holds; pairs without any are absent."""
        counts: dict[tuple[int, int], int] = {}
        for language in sorted({language for language, _ in self._tables}):
            units = _units(language, texts)
            for (spoken, n), (keys, starts, members) in self._tables.items():
                if spoken != language:
                    continue
                found = ngrams(units, n)
                at = np.minimum(np.searchsorted(keys, found.hashes), len(keys) - 1)
                hit = np.flatnonzero(keys[at] == found.hashes)
                rows = np.searchsorted(found.offsets, hit, side="right") - 1
                for row, key in sorted(set(zip(rows.tolist(), at[hit].tolist(), strict=True))):
                    for i in members[starts[key] : starts[key + 1]].tolist():
                        counts[row, i] = counts.get((row, i), 0) + 1
        return counts


def _is_a_line(question: str, text: str) -> bool:
    """Whether a line of the text is the question, perhaps numbered."""
    wanted = _letters(question)
    return any(_letters(line) == wanted for line in text.split("\n") if len(line) >= len(wanted))


def _letters(text: str) -> str:
    """Letters and digits in normal form, without digits in front."""
    return "".join(filter(str.isalnum, normalise(text))).lstrip("0123456789")


def _units(language: str, texts: Sequence[str]) -> HashedRows:
    return characters(texts) if language == "zh" else words(texts)
