"""Whether a document belongs to the domain: a vocabulary, the share of a text that its terms cover, perhaps learned weights.

The first question that `passages.py` asks of a document; what is not of the domain goes no further. Nothing in the code knows
which domain it is: that stands in vocabulary files and in the model files that `calibrate.py` writes.

A score is the *term density* of a text (how much of it vocabulary terms cover), or, where weights were learned from labelled
texts, a log odds made of the density and of the weights of short features. A document stays if its score reaches the threshold
of its language.

Classical Chinese gets a second look. Its medicine shares few terms with that of today, and how densely terms stand depends on the
genre: a vocabulary that finds 97 % of the modern abstracts finds a third of the chapters of the medical classics. So a domain may
ship weights of character pairs for classical texts too (`DOMAIN.lzh.weights.txt`), which decide where the density did not.

Scores must be the same on every machine and for any number of workers: they are written into the passages. Next to read:
`passages.py`; how the weights were learned and what they reach stands in `benchmarks/extraction.py`.
"""

import functools
import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.collect.ngrams import Beginnings, characters, ngrams, words
from data_tools.records.language import LANGUAGES, fold, sample
from huatuo_jax.errors import ConfigError, DataError
from huatuo_jax.io.files import read_json, sha256_json, write_json

FOLDER = Path(__file__).parent / "vocabularies"
MODEL_SCHEMA = 1
CLASSICAL = "lzh"
"""Classical Chinese, by its ISO 639-3 code: a kind of "zh" with learned weights and a threshold of its own."""
DEFAULT_THRESHOLDS = {"zh": 0.03, "en": 0.025, CLASSICAL: 0.0}
"""Scores from which a document counts as of the domain, unless a calibration says better: term densities, chosen for the medical
vocabulary on half of the documents of `benchmarks/extraction.py`; for classical texts a log odds."""
MODERN_PARTICLE, CLASSICAL_SHARE = "的", 0.005
"""A Chinese text with a smaller share of this character than that may be classical. Of 24 classical books, the vernacular novels
apart, 99 % of the chapters are below it, and 1 % of modern abstracts. Lists (drugs, doses) may be of either time."""
CLASSICAL_ASCII = 0.05
"""A larger share of ASCII letters and digits than that is modern, whatever else."""

_WORD = re.compile(r"[a-z0-9]+")
_LATIN = re.compile(r"[a-z]")
_ASCII = re.compile(r"[A-Za-z0-9]")
_UNCOUNTED = re.compile(r"[\W_]+")


# Vocabularies


@dataclass(frozen=True)
class Vocabulary:
    """Terms of a domain.

    Attributes:
      weights: term (NFKC, lower case) → weight from -1 to 1; a negative one speaks for another domain (饲料, animal feed).
      left_out: terms of a single character, which would match inside other words.
    """

    weights: dict[str, float]
    left_out: tuple[str, ...] = ()


def load_vocabularies(domain: str | None, files: Sequence[Path]) -> Vocabulary:
    """The project's vocabulary of a domain in both languages (None: without) and those of the files as one.

    A term of several vocabularies has the largest of its weights.

    Raises:
      ConfigError: no vocabulary at all, an unknown domain, or a file that cannot be used.
    """
    paths = list(files)
    if domain is not None:
        shipped = [path for language in LANGUAGES if (path := FOLDER / f"{domain}.{language}.txt").is_file()]
        if not shipped:
            known = ", ".join(sorted({path.name.split(".")[0] for path in FOLDER.glob("*.txt")}))
            raise ConfigError(f"no vocabulary of the domain {domain!r}; known: {known}. Give --vocabulary FILE instead")
        paths = shipped + paths
    if not paths:
        raise ConfigError("no vocabulary: give --domain NAME or --vocabulary FILE")
    weights: dict[str, float] = {}
    left_out: tuple[str, ...] = ()
    for vocabulary in map(read_vocabulary, paths):
        left_out += vocabulary.left_out
        for term, weight in vocabulary.weights.items():
            weights[term] = max(weight, weights.get(term, weight))
    return Vocabulary(weights, left_out)


def read_vocabulary(path: Path) -> Vocabulary:
    """Reads one file: a term a line, perhaps with a weight (-1 to 1) or a document frequency (a count) after a tab.

    `#` begins a comment. A file whose numbers are all at most 1 holds weights, else frequencies: they weigh a term by how rare
    it is, ln(highest / its own) / ln(highest), so that general words hardly count.

    Raises:
      ConfigError: missing, not UTF-8, a malformed line, or without a usable term; file and line are named.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"vocabulary {path} cannot be read ({error})") from error
    numbers: dict[str, float | None] = {}
    left_out = []
    for i, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        written, *rest = line.rstrip("\r").split("\t")
        # As texts are normalised before they are searched, with single blanks.
        term = " ".join(unicodedata.normalize("NFKC", written).lower().split())
        if len(term) < 2:
            left_out.append(term)
            continue
        try:
            number = float(rest[0]) if rest and rest[0].strip() else None
        except ValueError:
            number = math.nan
        if number is not None and not -1 <= number < math.inf:
            raise ConfigError(
                f"{path}, line {i}: {rest[0]!r} is no weight (-1 to 1) and no document frequency (a count); correct the line"
            )
        numbers[term] = number
    if not numbers:
        raise ConfigError(f"vocabulary {path} holds no term of two or more characters")
    return Vocabulary(_weights(numbers), tuple(left_out))


def _weights(numbers: dict[str, float | None]) -> dict[str, float]:
    # Three terms of a newspaper corpus: 医院 in 600,000 articles weighs ln(1) / ln(600,000) = 0, 高血压 in 60,000 weighs
    # ln(10) / ln(600,000) = 0.17, 嗜铬细胞瘤 in 6 weighs ln(100,000) / ln(600,000) = 0.87.
    highest = max((number for number in numbers.values() if number is not None), default=1.0)
    if highest <= 1:
        return {term: 1.0 if number is None else number for term, number in numbers.items()}
    scale = math.log(highest)
    return {term: 1.0 if number is None else math.log(highest / max(number, 1.0)) / scale for term, number in numbers.items()}


# Term density


class TermDensity:
    """Covered share of a text, from 0 to 1: of its letters and digits in Chinese, of its words in English.

    What terms of negative weight cover is taken off, down to 0. Terms are matched from left to right, the longest first, without
    overlaps: over characters in Chinese; over words in English, so that "rash" is not found in "crash".
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        # Chinese: the first two characters of a term → (term, its length, weighted letters, whether a Latin letter begins or ends
        # it) of those that begin so, the longest first.
        self._by_beginning: dict[str, list[tuple[str, int, float, bool]]] = {}
        # English: the first word of a term → (the other words, weighted words), the longest first. A word and its regular plural
        # are one: a vocabulary need not list plurals.
        by_word: dict[str, dict[tuple[str, ...], float]] = {}
        self._singulars: dict[str, str] = {}
        for term, weight in vocabulary.weights.items():
            if weight == 0:
                continue
            latin = _is_latin(term[0]) or _is_latin(term[-1])
            self._by_beginning.setdefault(term[:2], []).append((term, len(term), len(term) * weight, latin))
            # An English term such as "heart failure" is a sequence of words; it is a sequence of characters too, for Chinese
            # texts use English terms.
            words_of_term = tuple(_WORD.findall(term))
            if _LATIN.search(term) and words_of_term and term.isascii():
                singulars = tuple(map(self._singular, words_of_term))
                by_word.setdefault(singulars[0], {})[singulars[1:]] = len(singulars) * weight
        self._beginnings = Beginnings(self._by_beginning)
        for of_beginning in self._by_beginning.values():
            of_beginning.sort(key=lambda entry: -entry[1])
        self._by_word = {word: sorted(others.items(), key=lambda entry: -len(entry[0])) for word, others in by_word.items()}

    def score(self, text: str, language: str) -> float:
        """The density: of 我有高血压。 with the one term 高血压, 3 letters of 5."""
        folded = fold(text)
        if language == "zh":
            total = len(_UNCOUNTED.sub("", folded))
            return max(0.0, self._covered_characters(folded) / total) if total else 0.0
        words_of_text = _WORD.findall(folded)
        return max(0.0, self._covered_words(words_of_text) / len(words_of_text)) if words_of_text else 0.0

    def _covered_characters(self, text: str) -> float:
        """Weighted letters that terms cover. A term that begins or ends with a Latin letter needs a word boundary there."""
        covered, free, terms_of = 0.0, 0, self._by_beginning.get
        for start in self._beginnings.places(text):
            if start < free:
                continue
            for term, length, letters, latin in terms_of(text[start : start + 2], ()):
                end = start + length
                if text.startswith(term, start) and not (latin and (_joined(text, start) or _joined(text, end))):
                    covered += letters
                    free = end
                    break
        return covered

    def _covered_words(self, words_of_text: Sequence[str]) -> float:
        """Weighted words that terms cover."""
        singular = self._singulars.get
        # "two rashes" with the term rash is [None, "rash"]: words of no term are None.
        known = [singular(word) for word in words_of_text]
        covered, free = 0.0, 0
        for start, word in [(i, word) for i, word in enumerate(known) if word is not None]:
            if start < free:
                continue
            for others, count in self._by_word.get(word, ()):
                end = start + 1 + len(others)
                if tuple(known[start + 1 : end]) == others:
                    covered += count
                    free = end
                    break
        return covered

    def _singular(self, word: str) -> str:
        """The word itself; its regular plural counts as it from now on, unless that is a word of its own."""
        # allergy and allergies are one, and so are drug and drugs.
        singular = self._singulars.setdefault(word, word)
        if len(word) > 3 and not word.endswith("s"):
            self._singulars.setdefault(word[:-1] + "ies" if word.endswith("y") else word + "s", singular)
        return singular


def _joined(text: str, place: int) -> bool:
    """Whether two Latin letters or digits meet before this place: "hiv" ends in the middle of "shiver"."""
    return 0 < place < len(text) and _is_latin(text[place - 1]) and _is_latin(text[place])


def _is_latin(character: str) -> bool:
    return character.isascii() and character.isalnum()


# The model: what decides


@dataclass(frozen=True)
class LearnedWeights:
    """What was learned of one language (or of `CLASSICAL`) from labelled texts.

    Attributes:
      weights: feature (a pair of characters in Chinese, a word in English) → weight.
      coefficients: of 1, of the mean weight of a text's distinct features, and of the square root of its density.
    """

    language: str
    weights: dict[str, float]
    coefficients: tuple[float, float, float]

    def score(self, text: str, density: float) -> float:
        """Log odds that the text is of the domain."""
        hashes, values = self._table
        # Distinct features: the same word ten times says no more about the domain than once.
        of_text = np.unique(_feature_hashes([text], self.language))
        at = np.minimum(np.searchsorted(hashes, of_text), len(hashes) - 1)
        known = hashes[at] == of_text
        mean = float(values[at[known]].mean()) if known.any() else 0.0
        return self.coefficients[0] + self.coefficients[1] * mean + self.coefficients[2] * density**0.5

    @functools.cached_property
    def _table(self) -> tuple[np.ndarray, np.ndarray]:
        """Hashes of the features, ascending, uint64 [features], and their weights, float64 [features]."""
        # By hash, because cutting a text into strings of two characters takes longer than everything else here.
        hashes = _feature_hashes(list(self.weights), self.language)
        order = np.argsort(hashes)
        return hashes[order], np.array(list(self.weights.values()))[order]


def load_classical(domain: str | None) -> dict[str, LearnedWeights]:
    """The weights for classical Chinese that a domain of this project ships, as `DomainModel.learned` takes them; perhaps none.

    The file has a pair of characters and its weight a line, after a tab; the threshold is subtracted from each already, so that
    a mean weight of 0 is the border.
    """
    path = FOLDER / f"{domain}.{CLASSICAL}.weights.txt"
    if domain is None or not path.is_file():
        return {}
    rows = [line.split("\t") for line in path.read_text("utf-8").splitlines() if line and not line.startswith("#")]
    return {CLASSICAL: LearnedWeights(CLASSICAL, {pair: float(weight) for pair, weight in rows}, (0.0, 1.0, 0.0))}


def is_classical(text: str) -> bool:
    """Whether a Chinese text may be classical: hardly any 的, the commonest word of the modern language, and hardly any ASCII."""
    looked_at = sample(text)
    modern = looked_at.count(MODERN_PARTICLE) >= CLASSICAL_SHARE * len(looked_at)
    return not modern and len(_ASCII.findall(looked_at)) <= CLASSICAL_ASCII * len(looked_at)


def _feature_hashes(texts: Sequence[str], language: str) -> np.ndarray:
    return words(texts).hashes if language == "en" else ngrams(characters(texts), 2).hashes


@dataclass(frozen=True)
class DomainModel:
    """Decides whether a document is of the domain.

    Attributes:
      vocabulary: terms and weights.
      thresholds: language → least score; of a language without one, no document is kept.
      learned: language → learned weights; a language without uses the term density as its score. Those of `CLASSICAL` decide on
        a classical text that its score as "zh" has not kept.
    """

    vocabulary: Vocabulary
    thresholds: Mapping[str, float]
    learned: Mapping[str, LearnedWeights] = field(default_factory=dict)

    def score(self, text: str, language: str) -> float:
        """Term density, or the log odds of the learned weights."""
        density = self._density.score(text, language)
        learned = self.learned.get(language)
        return density if learned is None else learned.score(text, density)

    def keeps(self, text: str, language: str) -> tuple[bool, float]:
        """Whether a document is of the domain, and the score that decided."""
        score = self.score(text, language)
        kept = score >= self.thresholds.get(language, math.inf)
        if not kept and language == "zh" and CLASSICAL in self.learned and is_classical(text):
            score = self.learned[CLASSICAL].score(text, 0.0)
            kept = score >= self.thresholds.get(CLASSICAL, 0.0)
        return kept, score

    # The tables are built when the first text is scored: a model is also loaded only to be named.
    @functools.cached_property
    def _density(self) -> TermDensity:
        return TermDensity(self.vocabulary)

    def to_json(self) -> dict[str, Any]:
        """The content of a model file."""
        return {
            "schema": MODEL_SCHEMA,
            "thresholds": dict(self.thresholds),
            "learned": {
                language: {"coefficients": list(learned.coefficients), "weights": learned.weights}
                for language, learned in self.learned.items()
            },
            "vocabulary": self.vocabulary.weights,
        }

    @property
    def fingerprint(self) -> str:
        """Changes with anything that changes a score."""
        return sha256_json(self.to_json())


def save_model(model: DomainModel, path: Path) -> None:
    """Writes a model file."""
    write_json(path, model.to_json())


def load_model(path: Path) -> DomainModel:
    """Reads a model file.

    Raises:
      ConfigError: missing. DataError: not a model file of this schema.
    """
    if not path.is_file():
        raise ConfigError(f"{path} is not there; `huatuo-data collect calibrate` writes such a file")
    try:
        content = read_json(path)
        if content["schema"] != MODEL_SCHEMA:
            raise ValueError(f"schema {content['schema']}")
        learned = {
            language: LearnedWeights(language, dict(values["weights"]), tuple(values["coefficients"]))
            for language, values in content["learned"].items()
        }
        return DomainModel(Vocabulary(dict(content["vocabulary"])), dict(content["thresholds"]), learned)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is no domain model of schema {MODEL_SCHEMA} ({error}); calibrate again") from error
