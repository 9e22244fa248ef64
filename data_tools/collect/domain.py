"""Vocabulary files in, terms with weights from 0 to 1 out. Which domain it is stands in the files only.

A line is `term`, `term<TAB>weight` (0 to 1) or `term<TAB>document frequency` (a count); `#` begins a comment. A file whose
numbers are all at most 1 holds weights, else frequencies: they weigh a term by how rare it is, ln(highest / own) / ln(highest),
so that general words hardly count.
"""

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data_tools.records.language import LANGUAGES
from huatuo_jax.errors import ConfigError

FOLDER = Path(__file__).parent / "vocabularies"


@dataclass(frozen=True)
class Vocabulary:
    """Terms of a domain.

    Attributes:
      weights: term (NFKC, lower case) → weight.
      left_out: terms of a single character, which would match inside other words.
    """

    weights: dict[str, float]
    left_out: tuple[str, ...] = field(default=())

    def merged(self, other: "Vocabulary") -> "Vocabulary":
        """Both; a term of both has the larger weight."""
        weights = dict(self.weights)
        for term, weight in other.weights.items():
            weights[term] = max(weight, weights.get(term, 0.0))
        return Vocabulary(weights, self.left_out + other.left_out)


def load_vocabularies(domain: str | None, files: Sequence[Path]) -> Vocabulary:
    """The project's vocabulary of a domain in both languages (None: without), and those of the files.

    Raises:
      ConfigError: no vocabulary at all, an unknown domain, or a file that cannot be used.
    """
    vocabulary = Vocabulary({})
    paths = list(files)
    if domain is not None:
        own = [FOLDER / f"{domain}.{language}.txt" for language in LANGUAGES]
        if not any(path.is_file() for path in own):
            known = sorted({path.name.split(".")[0] for path in FOLDER.glob("*.txt")})
            raise ConfigError(
                f"no vocabulary of the domain {domain!r}; known: {', '.join(known)}. Give --vocabulary FILE instead"
            )
        paths = [path for path in own if path.is_file()] + paths
    if not paths:
        raise ConfigError("no vocabulary: give --domain NAME or --vocabulary FILE")
    for path in paths:
        vocabulary = vocabulary.merged(read_vocabulary(path))
    return vocabulary


def read_vocabulary(path: Path) -> Vocabulary:
    """Reads one file.

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
        term = normalise_term(written)
        if len(term) < 2:
            left_out.append(term)
            continue
        try:
            number = float(rest[0]) if rest and rest[0].strip() else None
        except ValueError:
            number = math.nan
        if number is not None and not 0 <= number < math.inf:
            raise ConfigError(
                f"{path}, line {i}: {rest[0]!r} is no weight (0 to 1) and no document frequency (a count); mend the line"
            )
        numbers[term] = number
    if not numbers:
        raise ConfigError(f"vocabulary {path} holds no term of two or more characters")
    return Vocabulary(_weights(numbers), tuple(left_out))


def normalise_term(term: str) -> str:
    """As texts are normalised before they are searched: NFKC, lower case, single blanks."""
    return " ".join(unicodedata.normalize("NFKC", term).lower().split())


def _weights(numbers: dict[str, float | None]) -> dict[str, float]:
    highest = max((number for number in numbers.values() if number is not None), default=1.0)
    if highest <= 1:
        return {term: 1.0 if number is None else number for term, number in numbers.items()}
    scale = math.log(highest)
    return {term: 1.0 if number is None else math.log(highest / max(number, 1.0)) / scale for term, number in numbers.items()}
