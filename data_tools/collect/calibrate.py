"""Chooses thresholds, and with `learn` weights of short features too, on a labelled sample; and says how good they are.

Beside the way from a document to a passage: it makes the model file with which `domain.py` decides there. Its figures are of
texts that neither weights nor threshold have seen (10-fold cross-validation, five times), and the order of the rows must not
change them.

What is learned is naive Bayes over the presence of features: a feature's weight is the smoothed logarithm of how much likelier
it is in a text of the domain. A logistic regression combines the mean weight of a text with the root of its term density, so
that the vocabulary's knowledge and the sample's are used together. scikit-learn does both; `domain.py` scores without it.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.collect.domain import DEFAULT_THRESHOLDS, DomainModel, LearnedWeights, Vocabulary
from data_tools.collect.ngrams import HAN_BLOCKS, normalise
from data_tools.records.language import LANGUAGES, language_of
from huatuo_jax.errors import ConfigError, DataError
from huatuo_jax.io.files import PathLike
from huatuo_jax.io.jsonl import Fault, iterate_json
from huatuo_jax.report.style import PALETTE, new_figure, save_figure

try:
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import precision_recall_curve
    from sklearn.naive_bayes import MultinomialNB
except ImportError as error:
    raise ConfigError("calibrating needs scikit-learn; pip install 'huatuo-jax[collect]'") from error

FOLDS, INNER_FOLDS, REPEATS = 10, 5, 5
MIN_PER_LABEL = 20
SMOOTHING = 0.5
MIN_TEXTS = 2
"""Features of fewer texts of the sample are left out."""
RIDGE = 1.0

_HAN = "".join(f"{chr(first)}-{chr(end - 1)}" for first, end in HAN_BLOCKS)
_EN_FEATURE = re.compile(rf"[{_HAN}]|[^\W_{_HAN}]+")


@dataclass(frozen=True)
class Labelled:
    """A labelled text; `group` says what kind of text it is (a discipline, say), for the list of confusions."""

    text: str
    label: bool
    group: str = ""


@dataclass(frozen=True)
class LanguageResult:
    """Cross-validation of one language.

    Attributes:
      texts, positives: of the sample. threshold: chosen on the whole sample.
      precision, recall, f1: means over repeats; of texts that neither weights nor threshold had seen. f1_spread: standard
        deviation of F1 over repeats.
      curve: [(threshold, precision, recall)] over the scores of unseen texts (the first repeat).
      wrongly_kept, wrongly_dropped: group → texts (the first repeat).
    """

    texts: int
    positives: int
    threshold: float
    precision: float
    recall: float
    f1: float
    f1_spread: float
    curve: tuple[tuple[float, float, float], ...]
    wrongly_kept: dict[str, int]
    wrongly_dropped: dict[str, int]


def read_labelled(files: Sequence[Path], text_field: str, label_field: str, group_field: str | None) -> list[Labelled]:
    """Reads rows with a text and a label (true or false, 1 or 0).

    Raises:
      DataError: a row without them; it is named.
    """
    labelled = []
    for path in files:
        for number, row in iterate_json(path):
            if isinstance(row, Fault) or not isinstance(row, dict):
                raise DataError(f"{path}, line {number}: not an object")
            text, label = row.get(text_field), row.get(label_field)
            if not isinstance(text, str) or label not in (True, False):
                raise DataError(
                    f"{path}, line {number}: `{text_field}` must be a string and `{label_field}` true or false; "
                    f"its keys are {', '.join(row)}; give --text-field and --label-field"
                )
            labelled.append(Labelled(text, bool(label), str(row.get(group_field, "")) if group_field else ""))
    return labelled


def calibrate(labelled: Sequence[Labelled], vocabulary: Vocabulary, learn: bool) -> tuple[DomainModel, dict[str, LanguageResult]]:
    """Chooses a threshold, and with `learn` weights too, for each language with enough labelled texts.

    The threshold is the one of the best F1. A language without enough texts keeps its default threshold and is absent from the
    results.

    Raises:
      DataError: no language has enough texts.
    """
    thresholds, learned, results = dict(DEFAULT_THRESHOLDS), {}, {}
    plain = DomainModel(vocabulary, DEFAULT_THRESHOLDS)
    for language in LANGUAGES:
        of_language = [one for one in labelled if language_of(one.text) == language]
        texts, labels = [one.text for one in of_language], np.array([one.label for one in of_language], bool)
        if min(labels.sum(), (~labels).sum()) < MIN_PER_LABEL:
            continue
        # The model that is saved learns from all texts; its figures come from models that had not seen the text in question.
        sample = Sample(texts, labels, np.array([plain.score(text, language) for text in texts]), language, learn)
        fit = sample.fit(np.ones(len(texts), bool), _folds(texts, labels, INNER_FOLDS, 0))
        if learn:
            weights = {name: round(float(weight), 4) for name, weight in zip(sample.names, fit.weights, strict=True)}
            learned[language] = LearnedWeights(language, weights, fit.coefficients)
        thresholds[language] = fit.threshold
        results[language] = _cross_validate(of_language, sample, fit.threshold)
    if not results:
        raise DataError(
            f"the sample has {len(labelled):,} texts; a language needs at least {MIN_PER_LABEL} of each label to be calibrated"
        )
    return DomainModel(vocabulary, thresholds, learned), results


# One fit


@dataclass(frozen=True)
class Fit:
    """What one set of texts teaches: a threshold, the scores of *all* texts, float64 [n], and with `learn` what makes them."""

    threshold: float
    scores: np.ndarray
    weights: np.ndarray
    coefficients: tuple[float, float, float]


class Sample:
    """The labelled texts of a language; their features are counted once for all folds of a cross-validation.

    Args:
      densities: float64 [n], term density of each text. labels: bool [n].
      learn: False: scores are densities, and only the threshold is fitted.
    """

    def __init__(
        self, texts: Sequence[str], labels: np.ndarray, densities: np.ndarray, language: str, learn: bool = True
    ) -> None:
        self.texts, self.labels, self._densities, self._roots, self._learn = texts, labels, densities, np.sqrt(densities), learn
        if learn:
            vectorizer = CountVectorizer(
                analyzer=lambda text: features(text, language), binary=True, min_df=MIN_TEXTS, dtype=np.float64
            )
            self._presence = vectorizer.fit_transform(texts)  # sparse [texts, features], 0 or 1
            self.names: list[str] = vectorizer.get_feature_names_out().tolist()

    def fit(self, chosen: np.ndarray, folds: np.ndarray) -> Fit:
        """Learns from the texts of the mask `chosen`, bool [n].

        The combination is fitted to mean weights that have not seen the text (`folds`, int [n], within `chosen`): of the texts
        that weights were learned from they know too much, and the regression would trust them more than they deserve.
        """
        labels = self.labels[chosen]
        if not self._learn:
            return Fit(best_threshold(self._densities[chosen], labels), self._densities, np.zeros(0), (0.0, 0.0, 0.0))
        unseen_means = np.zeros(len(self.labels))
        for fold in np.unique(folds[chosen]):
            inside = chosen & (folds == fold)
            unseen_means[inside] = self._means(self.weights(chosen & ~inside))[inside]
        coefficients = _logistic(unseen_means[chosen], self._roots[chosen], labels)
        threshold = best_threshold(self._combine(coefficients, unseen_means)[chosen], labels)
        weights = self.weights(chosen)
        return Fit(threshold, self._combine(coefficients, self._means(weights)), weights, coefficients)

    def weights(self, chosen: np.ndarray) -> np.ndarray:
        """Weights learned from the texts of the mask `chosen`, float64 [features].

        NaN for a feature of fewer than `MIN_TEXTS` of them, so that texts left out do not choose features.
        """
        presence = self._presence[chosen]
        # A feature of one text only would say "of the domain" as firmly as one of half of the sample.
        common = np.asarray(presence.sum(axis=0)).ravel() >= MIN_TEXTS
        bayes = MultinomialNB(alpha=SMOOTHING).fit(presence[:, common], self.labels[chosen])
        weights = np.full(len(self.names), np.nan)
        weights[common] = bayes.feature_log_prob_[1] - bayes.feature_log_prob_[0]
        return weights

    def _means(self, weights: np.ndarray) -> np.ndarray:
        """Mean weight of the features of each text, float64 [n]; those whose weight is NaN are unknown and do not count."""
        known = ~np.isnan(weights)
        return self._presence @ np.where(known, weights, 0.0) / np.maximum(self._presence @ known.astype(np.float64), 1)

    def _combine(self, coefficients: tuple[float, float, float], means: np.ndarray) -> np.ndarray:
        """Log odds of each text, float64 [n]."""
        return coefficients[0] + coefficients[1] * means + coefficients[2] * self._roots


def features(text: str, language: str) -> set[str]:
    """The distinct features of a text: pairs of letters and digits in Chinese, words in English."""
    normal = normalise(text)
    if language == "en":
        # As `ngrams.words` cuts a text, by which a model scores: each Chinese character is a word.
        return set(filter(str.isalnum, _EN_FEATURE.findall(normal)))
    letters = "".join(filter(str.isalnum, normal))
    return {letters[i : i + 2] for i in range(len(letters) - 1)}


def _logistic(means: np.ndarray, roots: np.ndarray, labels: np.ndarray) -> tuple[float, float, float]:
    """Ridge logistic regression on the two columns, standardised so that the penalty treats them alike: 1, means, roots."""
    # The model file holds coefficients of the columns as they are, so that scoring needs neither their mean nor their spread.
    columns = np.column_stack([means, roots])
    centre, scale = columns.mean(axis=0), columns.std(axis=0) + 1e-12
    solver = LogisticRegression(C=1 / RIDGE, solver="newton-cholesky", tol=1e-8)
    regression = solver.fit((columns - centre) / scale, labels)
    slopes = regression.coef_[0] / scale
    return float(regression.intercept_[0] - slopes @ centre), float(slopes[0]), float(slopes[1])


def best_threshold(scores: np.ndarray, labels: np.ndarray) -> float:
    """The threshold of the best F1: half way between the last score kept and the first one dropped."""
    # Scores .9 .8 | .3 .1 of two texts of the domain and two others: F1 is best at .8, the threshold is (.8 + .3) / 2 = .55.
    curve = _curve(scores, labels)
    best = max(range(len(curve)), key=lambda i: _f1(curve[i][1], curve[i][2]))
    last_kept = curve[best][0]
    first_dropped = curve[best + 1][0] if best + 1 < len(curve) else last_kept
    return (last_kept + first_dropped) / 2


# How good it is


def _cross_validate(labelled: Sequence[Labelled], sample: Sample, threshold: float) -> LanguageResult:
    texts, labels = sample.texts, sample.labels
    figures, kept, scores = [], np.zeros(0, bool), np.zeros(0)
    # Five times over with other folds: F1 depends on the division (by .006, a standard deviation, on 999 Chinese abstracts).
    for repeat in range(REPEATS):
        folds, inner = _folds(texts, labels, FOLDS, repeat + 1), _folds(texts, labels, INNER_FOLDS, -repeat - 1)
        kept_now, scores_now = np.zeros(len(texts), bool), np.zeros(len(texts))
        for fold in range(FOLDS):
            unseen = folds == fold
            fit = sample.fit(~unseen, inner)
            scores_now[unseen] = fit.scores[unseen]
            kept_now[unseen] = fit.scores[unseen] >= fit.threshold
        right = float((kept_now & labels).sum())
        precision, recall = right / max(kept_now.sum(), 1), right / max(labels.sum(), 1)
        figures.append((precision, recall, _f1(precision, recall)))
        if repeat == 0:
            kept, scores = kept_now, scores_now
    precision, recall, f1 = np.mean(figures, axis=0).tolist()
    return LanguageResult(
        len(texts),
        int(labels.sum()),
        threshold,
        precision=precision,
        recall=recall,
        f1=f1,
        f1_spread=float(np.std(figures, axis=0)[2]),
        curve=tuple(_curve(scores, labels)),
        wrongly_kept=_groups(labelled, kept & ~labels),
        wrongly_dropped=_groups(labelled, ~kept & labels),
    )


def _curve(scores: np.ndarray, labels: np.ndarray) -> list[tuple[float, float, float]]:
    """(threshold, precision, recall) of every threshold that is a score, the highest first."""
    precision, recall, thresholds = precision_recall_curve(labels, scores)
    # The last point is the curve's end at recall 0, which no score gives.
    return list(zip(thresholds[::-1].tolist(), precision[-2::-1].tolist(), recall[-2::-1].tolist(), strict=True))


def _f1(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _folds(texts: Sequence[str], labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Fold of each text, int64 [n]: by the hash of the text, evenly within each label."""
    # Not scikit-learn's folds: those follow the order of the rows, and the same sample in another order would score otherwise.
    keys = [hashlib.blake2b(f"{seed}\0{text}".encode("utf-8", "surrogatepass"), digest_size=8).digest() for text in texts]
    folds = np.zeros(len(texts), np.int64)
    for label in (False, True):
        of_label = sorted(np.flatnonzero(labels == label).tolist(), key=lambda i: keys[i])
        folds[of_label] = np.arange(len(of_label)) % count
    return folds


def _groups(labelled: Sequence[Labelled], chosen: np.ndarray) -> dict[str, int]:
    return dict(Counter(labelled[i].group for i in np.flatnonzero(chosen).tolist()).most_common())


def to_report(results: dict[str, LanguageResult]) -> dict[str, Any]:
    """The results as JSON, without the curves' every point: at most 200 of each."""
    report = {}
    for language, result in results.items():
        step = max(1, len(result.curve) // 200)
        report[language] = dict(vars(result)) | {"curve": [list(point) for point in result.curve[::step]]}
    return report


def draw_curve(path: PathLike, language: str, result: LanguageResult) -> None:
    """Draws precision over recall, with a dot where the chosen threshold lies."""
    figure = new_figure(5.2, 4.4, grid="both")
    [axes] = figure.axes
    axes.plot([point[2] for point in result.curve], [point[1] for point in result.curve], color=PALETTE[0], linewidth=2)
    axes.plot([result.recall], [result.precision], "o", color=PALETTE[6], markersize=8, label=f"F1 {result.f1:.3f}")
    title = f"Extraction, {language}: {result.texts:,} texts, unseen"
    axes.set(title=title, xlabel="recall", ylabel="precision", xlim=(0, 1.02), ylim=(0, 1.02))
    axes.legend(frameon=False, loc="lower left")
    save_figure(path, figure)
