"""A labelled sample in, weights of short features out: character pairs in Chinese, words in English.

A feature's weight is the smoothed logarithm of how much likelier it is in a text of the domain (naive Bayes over presence). The
score of a text is a logistic combination of the mean weight of its distinct known features and the root of its term density, so
that the vocabulary's knowledge and the sample's are used together.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from data_tools.collect.ngrams import characters, ngrams, normalise, words

SMOOTHING = 0.5
MIN_TEXTS = 2
"""Features of fewer texts of the sample are left out."""
RIDGE = 1.0

_EN_FEATURE = re.compile(r"[^\W_]+")


@dataclass(frozen=True)
class LearnedLanguage:
    """What is learned of one language.

    Attributes:
      weights: feature → weight.
      coefficients: of 1, of the mean weight, and of the root of the density.
    """

    weights: dict[str, float]
    coefficients: tuple[float, float, float]
    _hashes: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64), repr=False, compare=False)
    _values: np.ndarray = field(default_factory=lambda: np.zeros(0), repr=False, compare=False)

    def score(self, text: str, density: float, language: str) -> float:
        """Log odds that the text is of the domain."""
        if not len(self._hashes):
            self._index(language)
        mean = 0.0
        found = np.unique(_hashes([text], language))
        at = np.minimum(np.searchsorted(self._hashes, found), len(self._hashes) - 1)
        known = self._hashes[at] == found
        if known.any():
            mean = float(self._values[at[known]].mean())
        return _combined(self.coefficients, mean, density)

    def _index(self, language: str) -> None:
        names = list(self.weights)
        hashes = _hashes(names, language)
        order = np.argsort(hashes)
        object.__setattr__(self, "_hashes", hashes[order])
        object.__setattr__(self, "_values", np.array([self.weights[name] for name in names])[order])


def features(text: str, language: str) -> set[str]:
    """The distinct features of a text: pairs of letters and digits in Chinese, words in English."""
    normal = normalise(text)
    if language == "en":
        return set(_EN_FEATURE.findall(normal))
    letters = "".join(filter(str.isalnum, normal))
    return {letters[i : i + 2] for i in range(len(letters) - 1)}


class Sample:
    """Features of a labelled sample, counted once for all folds of a cross-validation.

    Args:
      densities: float64 [n], term density of each text. labels: bool [n].
    """

    def __init__(self, texts: Sequence[str], labels: np.ndarray, densities: np.ndarray, language: str) -> None:
        found = [sorted(features(text, language)) for text in texts]
        counts = Counter(feature for own in found for feature in own)
        self.names = sorted(name for name, count in counts.items() if count >= MIN_TEXTS)
        number = {name: i for i, name in enumerate(self.names)}
        known = [[number[name] for name in own if name in number] for own in found]
        self._rows = np.repeat(np.arange(len(texts)), [len(own) for own in known])
        self._columns = np.array([i for own in known for i in own], np.int64)
        self.labels, self.roots = labels, np.sqrt(densities)

    def means(self, weights: np.ndarray) -> np.ndarray:
        """Mean weight of the features of each text, float64 [n]; those whose weight is NaN are unknown."""
        own = weights[self._columns]
        known = ~np.isnan(own)
        rows = self._rows[known]
        return np.bincount(rows, own[known], len(self.labels)) / np.maximum(np.bincount(rows, minlength=len(self.labels)), 1)

    def weights(self, chosen: np.ndarray) -> np.ndarray:
        """Weights learned from the texts of the mask `chosen`, float64 [features].

        NaN for a feature of fewer than `MIN_TEXTS` of them, so that texts left out do not choose features.
        """
        rare = np.bincount(self._columns[chosen[self._rows]], minlength=len(self.names)) < MIN_TEXTS
        counts = []
        for side in (self.labels, ~self.labels):
            own = (chosen & side)[self._rows]
            count = np.bincount(self._columns[own], minlength=len(self.names)) + SMOOTHING
            counts.append(np.log(np.where(rare, np.nan, count) / count[~rare].sum()))
        return counts[0] - counts[1]

    def fit(self, chosen: np.ndarray, folds: np.ndarray) -> tuple[np.ndarray, tuple[float, float, float], np.ndarray]:
        """Learns from the texts of the mask `chosen`.

        The combination is fitted to weights that have not seen the text (`folds`, int [n], within `chosen`), for of the texts
        they were learned from weights know too much.

        Returns:
          weights; coefficients; and the scores of the chosen texts that the combination was fitted to, float64 [n].
        """
        means = np.zeros(len(self.labels))
        for fold in np.unique(folds[chosen]):
            inside = chosen & (folds == fold)
            means[inside] = self.means(self.weights(chosen & ~inside))[inside]
        coefficients = _logistic(means[chosen], self.roots[chosen], self.labels[chosen])
        return self.weights(chosen), coefficients, self.combine(coefficients, means)

    def combine(self, coefficients: tuple[float, float, float], means: np.ndarray) -> np.ndarray:
        """Log odds of each text, float64 [n]."""
        return coefficients[0] + coefficients[1] * means + coefficients[2] * self.roots


def _combined(coefficients: tuple[float, float, float], mean: float, density: float) -> float:
    return coefficients[0] + coefficients[1] * mean + coefficients[2] * density**0.5


def _logistic(means: np.ndarray, roots: np.ndarray, labels: np.ndarray) -> tuple[float, float, float]:
    """Ridge logistic regression on the two standardised columns (Newton's method)."""
    columns = np.column_stack([means, roots])
    centre, scale = columns.mean(axis=0), columns.std(axis=0) + 1e-12
    design = np.column_stack([np.ones(len(columns)), (columns - centre) / scale])
    penalty = np.array([0.0, RIDGE, RIDGE])
    solution = np.zeros(3)
    for _ in range(50):
        odds = 1 / (1 + np.exp(-np.clip(design @ solution, -30, 30)))
        gradient = design.T @ (odds - labels) + penalty * solution
        hessian = (design * (odds * (1 - odds))[:, None]).T @ design + np.diag(penalty)
        step = np.linalg.solve(hessian, gradient)
        solution -= step
        if np.abs(step).max() < 1e-10:
            break
    slopes = solution[1:] / scale
    return float(solution[0] - slopes @ centre), float(slopes[0]), float(slopes[1])


def _hashes(texts: Sequence[str], language: str) -> np.ndarray:
    return words(texts).hashes if language == "en" else ngrams(characters(texts), 2).hashes
