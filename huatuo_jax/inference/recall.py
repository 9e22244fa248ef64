"""Trained records in, the share of each answer that the model still reproduces greedily out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from huatuo_jax.data.dialogue import IGNORED
from huatuo_jax.data.token_store import TokenDataset
from huatuo_jax.data.tokenizers import Tokenizer

CHARACTERS = 50
"""Recall looks at this many first characters of an answer."""

RECALL_TOKENS = 96
"""Tokens generated to see them: more than one a character, for byte pieces."""


@dataclass(frozen=True)
class Exercise:
    """A prompt (token ids, up to where the first answer begins) and the answer that the record holds."""

    source: str
    prompt: list[int]
    expected: str


def recall(answer: str, expected: str, characters: int = CHARACTERS) -> float:
    """Share of the first `characters` of `expected` that stand at the same place in `answer` (1.0 = all)."""
    wanted = expected.strip()[:characters]
    given = answer.strip()[:characters]
    return sum(a == b for a, b in zip(given, wanted, strict=False)) / max(len(wanted), 1)


def exercises(dataset: TokenDataset, tokenizer: Tokenizer, per_source: int) -> list[Exercise]:
    """The first `per_source` training dialogues of every source as exercises on their first answer."""
    made = []
    for index, source in enumerate(dataset.sources):
        count = min(per_source, dataset.count(source))
        documents = dataset.read(dataset.offsets("train")[index] + np.arange(count))
        for tokens, targets in documents:
            exercise = exercise_of(source, tokens, targets, tokenizer)
            if exercise is not None:
                made.append(exercise)
    return made


def exercise_of(source: str, tokens: np.ndarray, targets: np.ndarray, tokenizer: Tokenizer) -> Exercise | None:
    """The exercise on a document's first answer; None if it has none, or no prompt."""
    answered = np.flatnonzero((targets != IGNORED) & (np.arange(len(targets)) > 0))
    if not answered.size or answered[0] == 1:
        return None
    start = int(answered[0])
    ends = np.flatnonzero(targets[start:] == tokenizer.eos_id)
    end = start + int(ends[0]) if ends.size else len(tokens)
    return Exercise(source, tokens[:start].tolist(), tokenizer.decode(tokens[start:end].tolist()))


def recall_per_source(
    work: Sequence[Exercise], answer_all: Callable[[list[list[int]]], list[str]]
) -> dict[str, dict[str, float | int]]:
    """Answers every exercise and averages recall per source: source → {"recall", "records"}."""
    answers = answer_all([exercise.prompt for exercise in work])
    shares: dict[str, list[float]] = {}
    for exercise, answer in zip(work, answers, strict=True):
        shares.setdefault(exercise.source, []).append(recall(answer, exercise.expected))
    return {source: {"recall": sum(values) / len(values), "records": len(values)} for source, values in shares.items()}
