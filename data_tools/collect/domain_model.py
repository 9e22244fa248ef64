"""A vocabulary, thresholds and perhaps learned weights as one JSON file: what decides whether a document is of the domain."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_tools.collect.domain import Vocabulary
from data_tools.collect.extract import TermDensity
from data_tools.collect.learned import LearnedLanguage
from huatuo_jax.errors import ConfigError, DataError
from huatuo_jax.io.files import read_json, sha256_json, write_json

SCHEMA = 1
DEFAULT_THRESHOLDS = {"zh": 0.06, "en": 0.03}
"""Term densities from which a document counts as of the domain, unless a calibration says better. The Chinese one is near what
calibrating the medical vocabulary on abstracts gave; the English one is a guess above what technical prose reaches (0.013)."""


@dataclass(frozen=True)
class DomainModel:
    """Decides whether a document is of the domain.

    Attributes:
      vocabulary: terms and weights.
      thresholds: language → least score; of a language without one, no document is kept.
      learned: language → learned weights; a language without uses the term density as its score.
    """

    vocabulary: Vocabulary
    thresholds: Mapping[str, float]
    learned: Mapping[str, LearnedLanguage] = field(default_factory=dict)
    _density: list[TermDensity] = field(default_factory=list, repr=False, compare=False)

    def score(self, text: str, language: str) -> float:
        """Term density, or the log odds of the learned model."""
        if not self._density:
            self._density.append(TermDensity(self.vocabulary))
        density = self._density[0].score(text, language)
        own = self.learned.get(language)
        return density if own is None else own.score(text, density, language)

    def keeps(self, text: str, language: str) -> tuple[bool, float]:
        """Whether a document is of the domain, and its score."""
        score = self.score(text, language)
        return score >= self.thresholds.get(language, float("inf")), score

    def to_json(self) -> dict[str, Any]:
        """The content of a model file."""
        return {
            "schema": SCHEMA,
            "thresholds": dict(self.thresholds),
            "learned": {
                language: {"coefficients": list(own.coefficients), "weights": own.weights}
                for language, own in self.learned.items()
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
        if content["schema"] != SCHEMA:
            raise ValueError(f"schema {content['schema']}")
        learned = {
            language: LearnedLanguage(dict(own["weights"]), tuple(own["coefficients"]))
            for language, own in content["learned"].items()
        }
        return DomainModel(Vocabulary(dict(content["vocabulary"])), dict(content["thresholds"]), learned)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is no domain model of schema {SCHEMA} ({error}); calibrate again") from error
