"""A document in, the density of domain terms in it out: the share of its text that vocabulary terms cover, each by its weight.

Terms are matched by Aho–Corasick automata, the longest first, without overlaps: over characters in Chinese; over words in
English, so that "rash" is not found in "crash".
"""

import re
from collections.abc import Iterable
from typing import Protocol

from data_tools.collect.domain import Vocabulary
from data_tools.records.language import fold
from huatuo_jax.errors import ConfigError

_WORD = re.compile(r"[a-z0-9]+")
_LATIN = re.compile(r"[a-z]")
_UNCOUNTED = re.compile(r"[\W_]+")


class Scorer(Protocol):
    """What `extract` asks of a model of the domain."""

    def score(self, text: str, language: str) -> float:
        """How much the text is of the domain; larger is more."""
        ...


class TermDensity:
    """Density of the terms of a vocabulary.

    Raises:
      ConfigError: pyahocorasick is not installed.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        try:
            import ahocorasick
        except ImportError as error:
            raise ConfigError("matching terms needs pyahocorasick; pip install 'huatuo-jax[collect]'") from error
        self._characters = ahocorasick.Automaton()
        self._words = ahocorasick.Automaton(ahocorasick.STORE_ANY, ahocorasick.KEY_SEQUENCE)
        self._word_ids: dict[str, int] = {}
        for term, weight in vocabulary.weights.items():
            if weight <= 0:
                continue
            words = _WORD.findall(term)
            if _LATIN.search(term) and words and term.isascii():
                self._words.add_word(tuple(self._word_id(word) for word in words), (len(words), weight))
            self._characters.add_word(
                term, (len(term), weight, term[0].isascii() and term[0].isalnum(), term[-1].isascii() and term[-1].isalnum())
            )
        for automaton in (self._characters, self._words):
            if len(automaton):
                automaton.make_automaton()

    def score(self, text: str, language: str) -> float:
        """Covered share of the text, from 0 to 1: of its letters and digits in Chinese, of its words in English."""
        return self._chinese(text) if language == "zh" else self._english(text)

    def terms(self, text: str) -> list[str]:
        """The terms found in a text as Chinese matching finds them, in order: to see why it was kept."""
        normal = fold(text)
        return [normal[end - length + 1 : end + 1] for end, (length, *_) in self._found(normal)]

    def _chinese(self, text: str) -> float:
        normal = fold(text)
        total = len(_UNCOUNTED.sub("", normal))
        covered = sum(length * weight for _, (length, weight, _, _) in self._found(normal))
        return covered / total if total else 0.0

    def _found(self, normal: str) -> Iterable[tuple[int, tuple[int, float, bool, bool]]]:
        if not len(self._characters):
            return
        for end, value in self._characters.iter_long(normal):
            length, _, latin_start, latin_end = value
            start = end - length + 1
            inside = (latin_start and start > 0 and _is_latin(normal[start - 1])) or (
                latin_end and end + 1 < len(normal) and _is_latin(normal[end + 1])
            )
            if not inside:
                yield end, value

    def _english(self, text: str) -> float:
        words = _WORD.findall(fold(text))
        if not words or not len(self._words):
            return 0.0
        get = self._word_ids.get
        ids = tuple([get(word, 0) for word in words])
        return sum(count * weight for _, (count, weight) in self._words.iter_long(ids)) / len(words)

    def _word_id(self, word: str) -> int:
        """Number of a word from 1; its regular plural has the same, unless that is a word of its own."""
        number = self._word_ids.setdefault(word, len(self._word_ids) + 1)
        if len(word) > 3 and not word.endswith("s"):
            plural = word[:-1] + "ies" if word.endswith("y") else word + "s"
            self._word_ids.setdefault(plural, number)
        return number


def _is_latin(character: str) -> bool:
    return character.isascii() and character.isalnum()
