"""A labelled sample in, a threshold (and learned weights) per language and its cross-validated precision and recall out."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.collect.domain import Vocabulary
from data_tools.collect.domain_model import DEFAULT_THRESHOLDS, DomainModel
from data_tools.collect.learned import LearnedLanguage, Sample
from data_tools.records.language import LANGUAGES, language_of
from huatuo_jax.errors import DataError
from huatuo_jax.io.jsonl import Fault, iterate_json

FOLDS, INNER_FOLDS, REPEATS = 10, 5, 5
MIN_PER_LABEL = 20


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
    out = []
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
            out.append(Labelled(text, bool(label), str(row.get(group_field, "")) if group_field else ""))
    return out


def calibrate(sample: Sequence[Labelled], vocabulary: Vocabulary, learn: bool) -> tuple[DomainModel, dict[str, LanguageResult]]:
    """Chooses a threshold, and with `learn` weights too, for each language with enough labelled texts.

    The threshold is the one of the best F1. A language without enough texts keeps its default threshold and is absent from the
    results.

    Raises:
      DataError: no language has enough texts.
    """
    thresholds, learned, results = dict(DEFAULT_THRESHOLDS), {}, {}
    plain = DomainModel(vocabulary, DEFAULT_THRESHOLDS)
    for language in LANGUAGES:
        own = [one for one in sample if language_of(one.text) == language]
        labels = np.array([one.label for one in own], bool)
        if min(labels.sum(), (~labels).sum()) < MIN_PER_LABEL:
            continue
        texts = [one.text for one in own]
        densities = np.array([plain.score(text, language) for text in texts])
        features = Sample(texts, labels, densities, language) if learn else None
        everything = np.ones(len(own), bool)
        threshold, weights, coefficients = _fit(features, densities, labels, everything, _folds(texts, labels, INNER_FOLDS, 0))
        if features is not None:
            learned[language] = LearnedLanguage(
                {name: round(float(w), 4) for name, w in zip(features.names, weights, strict=True)}, coefficients
            )
        thresholds[language] = threshold
        results[language] = _cross_validate(own, texts, labels, densities, features, threshold)
    if not results:
        raise DataError(
            f"the sample has {len(sample):,} texts; a language needs at least {MIN_PER_LABEL} of each label to be calibrated"
        )
    return DomainModel(vocabulary, thresholds, learned), results


def _fit(
    features: Sample | None, densities: np.ndarray, labels: np.ndarray, chosen: np.ndarray, folds: np.ndarray
) -> tuple[float, np.ndarray, tuple[float, float, float]]:
    """Threshold, weights and coefficients from the texts of the mask `chosen`."""
    if features is None:
        return best_threshold(densities[chosen], labels[chosen]), np.zeros(0), (0.0, 0.0, 0.0)
    weights, coefficients, scores = features.fit(chosen, folds)
    return best_threshold(scores[chosen], labels[chosen]), weights, coefficients


def _cross_validate(
    own: Sequence[Labelled],
    texts: Sequence[str],
    labels: np.ndarray,
    densities: np.ndarray,
    features: Sample | None,
    threshold: float,
) -> LanguageResult:
    figures, kept, scores = [], np.zeros(0, bool), np.zeros(0)
    for repeat in range(REPEATS):
        folds = _folds(texts, labels, FOLDS, repeat + 1)
        inner = _folds(texts, labels, INNER_FOLDS, -repeat - 1)
        kept_now, scores_now = np.zeros(len(own), bool), np.zeros(len(own))
        for fold in range(FOLDS):
            unseen = folds == fold
            limit, weights, coefficients = _fit(features, densities, labels, ~unseen, inner)
            fold_scores = densities if features is None else features.combine(coefficients, features.means(weights))
            scores_now[unseen] = fold_scores[unseen]
            kept_now[unseen] = fold_scores[unseen] >= limit
        figures.append(_precision_recall(kept_now, labels))
        if repeat == 0:
            kept, scores = kept_now, scores_now
    precision, recall, f1 = np.mean(figures, axis=0)
    return LanguageResult(
        texts=len(own),
        positives=int(labels.sum()),
        threshold=threshold,
        precision=float(precision),
        recall=float(recall),
        f1=float(f1),
        f1_spread=float(np.std(figures, axis=0)[2]),
        curve=tuple(_curve(scores, labels)),
        wrongly_kept=_groups(own, kept & ~labels),
        wrongly_dropped=_groups(own, ~kept & labels),
    )


def best_threshold(scores: np.ndarray, labels: np.ndarray) -> float:
    """The threshold of the best F1: half way between the last score kept and the first one dropped."""
    curve = list(_curve(scores, labels))
    best = max(range(len(curve)), key=lambda i: _f1(curve[i][1], curve[i][2]))
    here = curve[best][0]
    below = curve[best + 1][0] if best + 1 < len(curve) else here
    return (here + below) / 2


def _curve(scores: np.ndarray, labels: np.ndarray) -> list[tuple[float, float, float]]:
    """(threshold, precision, recall) of every threshold that is a score, the highest first."""
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    last_of_equals = np.append(ordered[1:] != ordered[:-1], True)
    right, kept = np.cumsum(labels[order]), np.arange(1, len(scores) + 1)
    rows = np.stack([ordered, right / kept, right / max(labels.sum(), 1)], axis=1)[last_of_equals]
    return [(float(t), float(p), float(r)) for t, p, r in rows]


def _precision_recall(kept: np.ndarray, labels: np.ndarray) -> tuple[float, float, float]:
    right = float((kept & labels).sum())
    precision, recall = right / max(kept.sum(), 1), right / max(labels.sum(), 1)
    return precision, recall, _f1(precision, recall)


def _f1(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _folds(texts: Sequence[str], labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Fold of each text, int64 [n]: by the hash of the text, evenly within each label, so that the order of rows is no matter."""
    keys = [hashlib.blake2b(f"{seed}\0{text}".encode("utf-8", "surrogatepass"), digest_size=8).digest() for text in texts]
    out = np.zeros(len(texts), np.int64)
    for label in (False, True):
        own = sorted(np.flatnonzero(labels == label).tolist(), key=lambda i: keys[i])
        out[own] = np.arange(len(own)) % count
    return out


def _groups(own: Sequence[Labelled], chosen: np.ndarray) -> dict[str, int]:
    return dict(Counter(own[i].group for i in np.flatnonzero(chosen).tolist()).most_common())


def to_report(results: dict[str, LanguageResult]) -> dict[str, Any]:
    """The results as JSON, without the curves' every point: at most 200 of each."""
    out = {}
    for language, result in results.items():
        entry = dict(vars(result))
        step = max(1, len(result.curve) // 200)
        out[language] = entry | {"curve": [list(point) for point in result.curve[::step]]}
    return out
