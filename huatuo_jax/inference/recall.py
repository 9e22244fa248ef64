"""Questions to a model, answered greedily, and how much of its training data it still recalls: what `huatuo ask` does.

`Asker` answers any list of prompts with an engine. Recall asks for trained records: the first question of a record is the prompt,
and its answer is compared with the record's, character by character, over the first 50:

    record   食盐每天不超过五克        recall 8 / 9: the eighth character differs, all others stand at the same place
    answer   食盐每天不超过六克

After training: shows what a curriculum has kept and what it has forgotten. What must hold: answers are greedy, so the figure is
the model's and not the draw's. Next to read: `model.py` opens the model, `engine.py` answers; `huatuo report` draws what is
saved.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from huatuo_jax.config import Question
from huatuo_jax.data.dialogue import IGNORED, prompt_tokens
from huatuo_jax.data.token_store import TokenDataset
from huatuo_jax.data.tokenizers import Tokenizer
from huatuo_jax.inference.engine import Engine
from huatuo_jax.inference.model import Model
from huatuo_jax.inference.requests import Request

ROWS_AT_ONCE = 64
"""Prompts decoded side by side: bounds the cache's memory."""

CHARACTERS = 50
"""Recall looks at this many first characters of an answer."""

RECALL_TOKENS = 96
"""Tokens generated to see them: more than one a character, for byte pieces."""


class Asker:
    """Answers greedily, with the tokenizer and the dialogue format that the model was trained with."""

    def __init__(self, model: Model, engine: Engine, max_new_tokens: int = 256) -> None:
        self._model, self._engine, self._max_new_tokens = model, engine, max_new_tokens

    def answer(self, conversations: Sequence[Sequence[str]]) -> list[str]:
        """The next assistant turn of each conversation (user, assistant, …, user)."""
        model = self._model
        return self.complete([prompt_tokens(turns, model.tokenizer, model.dialogue_format) for turns in conversations])

    def complete(self, prompts: Sequence[list[int]], max_new_tokens: int = 0) -> list[str]:
        """The greedy continuation of each prompt of token ids, as text."""
        longest = max_new_tokens or self._max_new_tokens
        completions = self._engine.complete([Request(prompt, longest) for prompt in prompts])
        return [completion.text.strip() for completion in completions]

    def ask(self, questions: Sequence[Question]) -> list[dict[str, Any]]:
        """Prompt, answer, source and recall of each question; recall is None where no answer is expected."""
        answers = self.answer([[question.prompt] for question in questions])
        return [
            {
                "prompt": question.prompt,
                "answer": answer,
                "source": question.source,
                "recall": recall(answer, question.expected) if question.expected else None,
            }
            for question, answer in zip(questions, answers, strict=True)
        ]

    def recall_per_source(self, dataset: TokenDataset, per_source: int) -> dict[str, Any]:
        """Mean recall of the first `per_source` training records of every source: {"characters", "sources": {name: …}}."""
        exercises = make_exercises(dataset, self._model.tokenizer, per_source)
        answers = self.complete([exercise.prompt for exercise in exercises], RECALL_TOKENS)
        shares: dict[str, list[float]] = {}
        for exercise, answer in zip(exercises, answers, strict=True):
            shares.setdefault(exercise.source, []).append(recall(answer, exercise.expected))
        means = {source: {"recall": sum(values) / len(values), "records": len(values)} for source, values in shares.items()}
        return {"characters": CHARACTERS, "sources": means}


def recall(answer: str, expected: str, characters: int = CHARACTERS) -> float:
    """Share of the first `characters` of `expected` that stand at the same place in `answer` (1.0 = all)."""
    wanted = expected.strip()[:characters]
    given = answer.strip()[:characters]
    return sum(a == b for a, b in zip(given, wanted, strict=False)) / max(len(wanted), 1)


@dataclass(frozen=True)
class Exercise:
    """A prompt (token ids, up to where the first answer begins) and the answer that the record holds."""

    source: str
    prompt: list[int]
    expected: str


def make_exercises(dataset: TokenDataset, tokenizer: Tokenizer, per_source: int) -> list[Exercise]:
    """The first `per_source` training dialogues of every source as exercises on their first answer."""
    # From the token dataset and not from text: the prompt is then what training saw, token by token.
    exercises = []
    for index, source in enumerate(dataset.sources):
        count = min(per_source, dataset.count(source))
        records = dataset.read(dataset.offsets("train")[index] + np.arange(count))
        of_source = (exercise_of(source, tokens, targets, tokenizer) for tokens, targets in records)
        exercises += [exercise for exercise in of_source if exercise is not None]
    return exercises


def exercise_of(source: str, tokens: np.ndarray, targets: np.ndarray, tokenizer: Tokenizer) -> Exercise | None:
    """The exercise on the first answer of a record, int32 [length] tokens and targets; None if it has no answer or no prompt."""
    # A passage has no prompt: everything in it is a target. Tokens p p q q r r a a EOS with targets - - - - - - a a EOS: the
    # first target at 6, so the prompt is p p q q r r and the answer a a. The target of token 0 counts nowhere (the shift drops
    # it), and one at 1 leaves a prompt of one token.
    answered = np.flatnonzero((targets != IGNORED) & (np.arange(len(targets)) > 0))
    if not answered.size or answered[0] == 1:
        return None
    start = int(answered[0])
    ends = np.flatnonzero(targets[start:] == tokenizer.eos_id)
    end = start + int(ends[0]) if ends.size else len(tokens)
    return Exercise(source, tokens[:start].tolist(), tokenizer.decode(tokens[start:end].tolist()))
