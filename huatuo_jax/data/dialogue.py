"""Records, and how they become tokens and targets: the same for every dialogue format, after HuatuoGPT-II's training code.

A `Record` is one training example as text: what the layouts of `data_tools/records` make, what a unified dataset holds and what
`huatuo-data build` encodes. On the way from it to tokens `formats.py` cuts a dialogue into pieces, `tokenizers.py` encodes them,
and here they are joined; next is `token_store.py`, which stores the result. Generation prompts with the same pieces
(`prompt_tokens`). What must hold: a prompt has the same tokens as the dialogue in training, up to where the answer begins.

Two turns in the huatuo format, each piece tokenised on its own ("-" is IGNORED; a letter stands for a token):

    piece     "<问>：" + question    "\\n<答>：" + answer    "\\n<问>：" + question    "\\n<答>：" + answer
    tokens     p p q q q              r r a a                s s q q                r r a      EOS
    targets    - - - - -              - - a a                EOS - - -              - - a      EOS

Targets are not shifted here: target i belongs to token i. The first token of the second question has EOS as its target, so that
the model learns to end the answer there. `rows.py` shifts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from huatuo_jax.data.formats import DialogueFormat, Piece
from huatuo_jax.data.tokenizers import Tokenizer
from huatuo_jax.errors import RecordError

IGNORED = -100
"""Target of a position that is not learned: the value that torch's and the original's losses skip by default."""


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


class Encoded(NamedTuple):
    """One training example: `tokens` and `targets`, int32 of the same length; `targets` is IGNORED where nothing is learned."""

    tokens: np.ndarray
    targets: np.ndarray


class Examples(NamedTuple):
    """Training examples end to end: `tokens` and `targets` int32 [sum of lengths], `lengths` int64 [n]."""

    tokens: np.ndarray
    targets: np.ndarray
    lengths: np.ndarray

    def cut(self, max_len: int) -> "Examples":
        """The same examples without what lies beyond `max_len` tokens."""
        if not np.any(self.lengths > max_len):
            return self
        places = np.arange(len(self.tokens)) - np.repeat(np.cumsum(self.lengths) - self.lengths, self.lengths)
        kept = places < max_len
        return Examples(self.tokens[kept], self.targets[kept], np.minimum(self.lengths, max_len))

    def split(self) -> list[Encoded]:
        """Each example alone."""
        ends = np.cumsum(self.lengths)[:-1]
        return list(map(Encoded, np.split(self.tokens, ends), np.split(self.targets, ends))) if len(self.lengths) else []

    @classmethod
    def join(cls, examples: Sequence[tuple[np.ndarray, np.ndarray]]) -> "Examples":
        """Examples given as (tokens, targets), int32 [length] each, end to end."""
        tokens, targets = ([np.zeros(0, np.int32), *(example[i] for example in examples)] for i in (0, 1))
        return cls(np.concatenate(tokens), np.concatenate(targets), np.array([len(t) for t in tokens[1:]], np.int64))


def encode_record(record: Record, tokenizer: Tokenizer, dialogue_format: DialogueFormat, max_len: int | None = None) -> Encoded:
    """Tokens and unshifted targets of one record.

    Every piece (prefix and turn) is tokenised on its own; the pieces are joined, EOS appended where the format closes with it,
    and the whole is cut to `max_len`, so an over-long example loses its end. The tokens of a prefix and of questions are
    ignored; the first token of a later question may carry EOS as its target (see `Piece`). A passage is its text and EOS, all
    of it targets. A dialogue without turns is the closing EOS alone.

    Raises:
      RecordError: the format cannot express the record, or its text is not valid Unicode.
    """
    examples, rejected = encode_records([record], tokenizer, dialogue_format)
    for error in rejected.values():
        raise error
    return Encoded(examples.tokens[:max_len], examples.targets[:max_len])


def encode_records(
    records: Sequence[Record], tokenizer: Tokenizer, dialogue_format: DialogueFormat
) -> tuple[Examples, dict[int, RecordError]]:
    """`encode_record` of many records in one call to the tokenizer and few to numpy; the examples are not cut.

    Returns:
      The examples of the records that the format can express, and for each other one: its place in `records` → the reason.
    """
    pieces: list[Piece] = []
    ends, closed = [0], [False]
    rejected: dict[int, RecordError] = {}
    for place, record in enumerate(records):
        try:
            pieces += _pieces(record, dialogue_format)
        except RecordError as error:
            rejected[place] = error.with_traceback(None)
        else:
            ends.append(len(pieces))
            closed.append(dialogue_format.closing_eos or bool(record.text))
    try:
        encoded = _encode_pieces(pieces, tokenizer, dialogue_format)
    except RecordError as error:
        # The tokenizer refused one text and does not say which record's: halve until it stands alone.
        if len(records) == 1:
            return Examples.join([]), {0: error.with_traceback(None)}
        middle = len(records) // 2
        first, second = (encode_records(half, tokenizer, dialogue_format) for half in (records[:middle], records[middle:]))
        both = Examples(*map(np.concatenate, zip(first[0], second[0], strict=True)))
        return both, first[1] | {middle + place: error for place, error in second[1].items()}
    # From here on with numpy: piece_ends[ends] are the ends of records, and each record that closes with EOS gets one there.
    tokens, targets, piece_ends = _join(pieces, encoded, tokenizer)
    record_ends = piece_ends[ends]
    closing = record_ends[closed]
    tokens, targets = (np.insert(array, closing, tokenizer.eos_id) for array in (tokens, targets))
    return Examples(tokens, targets, np.diff(record_ends) + np.array(closed[1:], np.int64)), rejected


def prompt_tokens(turns: Sequence[str], tokenizer: Tokenizer, dialogue_format: DialogueFormat, system: str = "") -> list[int]:
    """Ids of a conversation that awaits an answer: the same tokens as in training, up to where the next answer begins.

    Raises:
      RecordError: the number of `turns` is even (the last one must be a question), or the format cannot express them.
    """
    if len(turns) % 2 == 0:
        raise RecordError(f"a prompt of {len(turns)} turns does not end with a question; give an odd number of turns")
    pieces = list(dialogue_format.render((*turns, ""), system))
    # The empty answer marks where the real one begins: what the format writes before it stays, what comes behind it goes.
    last = max(i for i, piece in enumerate(pieces) if piece.learned)
    pieces = [*pieces[:last], Piece(before=pieces[last].before, prefix=pieces[last].prefix)]
    return np.concatenate(_encode_pieces(pieces, tokenizer, dialogue_format)).tolist()


def _pieces(record: Record, dialogue_format: DialogueFormat) -> list[Piece]:
    return [Piece(text=record.text, learned=True)] if record.text else list(dialogue_format.render(record.turns, record.system))


def _join(
    pieces: Sequence[Piece], encoded: Sequence[np.ndarray], tokenizer: Tokenizer
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens and targets of pieces end to end, and the piece boundaries (int64 [pieces + 1])."""
    lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    tokens = np.concatenate([np.zeros(0, np.int32), *encoded])
    # A piece is a run of ignored tokens, then a run of targets, either of which may be empty: a question of 5 tokens is (5, 0),
    # an answer of 4 whose prefix has 2 is (2, 2). So all targets are one `repeat` of False, True, False, True, … by these runs.
    unlearned = [len(p.before) + tokenizer.prefix_length(p.prefix) if p.learned else len(tokens) for p in pieces]
    ignored = np.minimum(np.array(unlearned, np.int64), lengths)
    runs = np.stack([ignored, lengths - ignored], axis=1).ravel()
    targets = np.where(np.repeat(np.tile([False, True], len(pieces)), runs), tokens, np.int32(IGNORED))
    # An empty piece has no first token to carry EOS.
    ends_previous = np.array([piece.ends_previous for piece in pieces], bool) & (lengths > 0)
    targets[bounds[:-1][ends_previous]] = tokenizer.eos_id
    return tokens, targets, bounds


def _encode_pieces(pieces: Sequence[Piece], tokenizer: Tokenizer, dialogue_format: DialogueFormat) -> list[np.ndarray]:
    encoded = tokenizer.encode_batch([(piece.prefix, piece.text) for piece in pieces])
    for i, piece in enumerate(pieces):
        if piece.before or piece.after:
            before, after = (
                [dialogue_format.token_id(name, tokenizer) for name in names] for names in (piece.before, piece.after)
            )
            encoded[i] = np.array([*before, *encoded[i], *after], np.int32)
    return encoded
