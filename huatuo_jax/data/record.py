"""The record: one training example as text, which importers make and `dialogue.py` turns into tokens and targets.

Either a dialogue (`turns`, user first, alternating, with an optional `system`) or a raw passage (`text`, for plain next-token
training: every token a target, no prefix). An answer of weight 0 is context that the model reads and does not learn.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from huatuo_jax.errors import RecordError


@dataclass(frozen=True, slots=True)
class Record:
    """One training example before tokenisation.

    Attributes:
      id: unique within its source.
      source: the source's canonical name, e.g. "medical_books_cn" or "sft".
      turns: user, assistant, user, assistant, …; empty for a passage.
      system: optional system prompt of a dialogue.
      text: a raw passage; empty for a dialogue.
      weights: 0 or 1 for each answer of a dialogue, 0 = it is no target; empty = all 1.
    """

    id: str
    source: str
    turns: tuple[str, ...] = ()
    system: str = ""
    text: str = ""
    weights: tuple[int, ...] = ()


def check_record(record: Record) -> Record:
    """Returns `record`, or raises `RecordError` with the reason why it cannot be trained on."""
    if not isinstance(record.source, str) or not record.source:
        raise RecordError("record has no source")
    if bool(record.turns) == bool(record.text):
        both = "both `turns` and `text`" if record.turns else "neither `turns` nor `text`"
        raise RecordError(f"record has {both}; it needs exactly one of them")
    if record.text:
        if not isinstance(record.text, str) or not record.text.strip():
            raise RecordError("`text` is not a non-blank string")
        if record.weights:
            raise RecordError("`weights` belong to the answers of a dialogue; a passage has none")
        return record
    for i, turn in enumerate(record.turns):
        if not isinstance(turn, str):
            raise RecordError(f"turn {i} is {type(turn).__name__}, not a string")
        if not turn.strip():
            raise RecordError(f"turn {i} is blank")
    if len(record.turns) % 2:
        raise RecordError(f"dialogue has an odd number of turns ({len(record.turns)}): it must end with an answer")
    check_weights(record.weights, len(record.turns) // 2)
    return record


def check_weights(weights: Sequence[object], answers: int) -> None:
    """Raises `RecordError` unless `weights` is empty or holds 0 or 1 for each of so many answers, and one of them is 1."""
    if not weights:
        return
    for weight in weights:
        # bool is an int to Python, but a list of true and false may be a mask of anything.
        if isinstance(weight, bool) or weight not in (0, 1):
            raise RecordError(f"`weights` holds {weight!r}; each weight is 0 or 1")
    if len(weights) != answers:
        raise RecordError(f"`weights` has {len(weights)} entries for {answers} answers; give one per answer")
    if not any(weights):
        raise RecordError("every answer has weight 0: there is nothing to learn")
