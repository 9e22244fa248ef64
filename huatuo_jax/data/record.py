"""The record: one training example as text, which importers make and `dialogue.py` turns into tokens and targets.

Either a dialogue (`turns`, user first, alternating, with an optional `system`) or a raw passage (`text`, for plain next-token
training: every token a target, no prefix).
"""

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
    """

    id: str
    source: str
    turns: tuple[str, ...] = ()
    system: str = ""
    text: str = ""


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
        return record
    for i, turn in enumerate(record.turns):
        if not isinstance(turn, str):
            raise RecordError(f"turn {i} is {type(turn).__name__}, not a string")
        if not turn.strip():
            raise RecordError(f"turn {i} is blank")
    if len(record.turns) % 2:
        raise RecordError(f"dialogue has an odd number of turns ({len(record.turns)}): it must end with an answer")
    return record
