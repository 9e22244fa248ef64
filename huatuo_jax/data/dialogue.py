"""Records in, tokens and targets out: the same assembly for every template (HuatuoGPT-II, dialogue format of the training code).

Targets are not shifted: target i belongs to token i. `IGNORED` marks what is not learned.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from huatuo_jax.data.record import Record
from huatuo_jax.data.templates import Piece, Template
from huatuo_jax.data.tokenizer import Tokenizer
from huatuo_jax.errors import RecordError

IGNORED = -100


class Encoded(NamedTuple):
    """One training example: `tokens` and `targets`, int32 of the same length; `targets` is IGNORED where nothing is learned."""

    tokens: np.ndarray
    targets: np.ndarray


def encode_record(record: Record, tokenizer: Tokenizer, template: Template, max_len: int | None = None) -> Encoded:
    """Tokens and unshifted targets of one record.

    Every piece (prefix and turn) is tokenised on its own and cut to `max_len`; the pieces are joined, EOS appended where the
    template closes with it, and the whole is cut to `max_len`, so an over-long example loses its end. The tokens of a prefix
    and of questions are ignored; the first token of a later question may carry EOS as its target (see `Piece`). A passage is
    its text and EOS, all of it targets. A dialogue without turns is the closing EOS alone.

    Raises:
      RecordError: the template cannot express the record, or its text is not valid Unicode.
    """
    pieces = _pieces(record, template)
    return _assemble(pieces, _encode_pieces(pieces, tokenizer, template), record, tokenizer, template, max_len)


def encode_records(
    records: Sequence[Record], tokenizer: Tokenizer, template: Template, max_len: int | None = None
) -> list[Encoded | RecordError]:
    """`encode_record` of many records in one call to the tokenizer, which is faster; a record's error stands in its place."""
    rendered: list[list[Piece] | RecordError] = []
    for record in records:
        try:
            rendered.append(_pieces(record, template))
        except RecordError as error:
            rendered.append(error)
    try:
        flat = [piece for pieces in rendered if isinstance(pieces, list) for piece in pieces]
        encoded = iter(_encode_pieces(flat, tokenizer, template))
    except RecordError:
        return [_encode_or_error(record, tokenizer, template, max_len) for record in records]
    return [
        pieces
        if isinstance(pieces, RecordError)
        else _assemble(pieces, list(itertools.islice(encoded, len(pieces))), record, tokenizer, template, max_len)
        for record, pieces in zip(records, rendered, strict=True)
    ]


def prompt_tokens(turns: Sequence[str], tokenizer: Tokenizer, template: Template, system: str = "") -> list[int]:
    """Ids of a conversation that awaits an answer: the same tokens as in training, up to where the next answer begins.

    Raises:
      RecordError: the number of `turns` is even (the last one must be a question), or the template cannot express them.
    """
    if len(turns) % 2 == 0:
        raise RecordError(f"a prompt of {len(turns)} turns does not end with a question; give an odd number of turns")
    pieces = list(template.render((*turns, ""), system))
    last = max(i for i, piece in enumerate(pieces) if piece.learned)
    pieces = [*pieces[:last], Piece(before=pieces[last].before, prefix=pieces[last].prefix)]
    return np.concatenate(_encode_pieces(pieces, tokenizer, template)).tolist()


def _encode_or_error(record: Record, tokenizer: Tokenizer, template: Template, max_len: int | None) -> Encoded | RecordError:
    try:
        return encode_record(record, tokenizer, template, max_len)
    except RecordError as error:
        return error


def _pieces(record: Record, template: Template) -> list[Piece]:
    return [Piece(text=record.text, learned=True)] if record.text else list(template.render(record.turns, record.system))


def _assemble(
    pieces: list[Piece], encoded: list[np.ndarray], record: Record, tokenizer: Tokenizer, template: Template, max_len: int | None
) -> Encoded:
    closing = [tokenizer.eos_id] if template.closing_eos or record.text else []
    if max_len is not None:
        encoded = [ids[:max_len] for ids in encoded]
    tokens = np.concatenate([*encoded, closing], dtype=np.int32, casting="unsafe")
    targets = np.full(len(tokens), IGNORED, np.int32)
    start = 0
    for piece, ids in zip(pieces, encoded, strict=True):
        stop = start + len(ids)
        if piece.learned:
            first = start + len(piece.before) + tokenizer.prefix_length(piece.prefix)
            targets[first:stop] = tokens[first:stop]
        if piece.ends_previous and stop > start:
            targets[start] = tokenizer.eos_id
        start = stop
    targets[start:] = tokens[start:]
    return Encoded(tokens[:max_len], targets[:max_len])


def _encode_pieces(pieces: Sequence[Piece], tokenizer: Tokenizer, template: Template) -> list[np.ndarray]:
    encoded = tokenizer.encode_batch([(piece.prefix, piece.text) for piece in pieces])
    for i, piece in enumerate(pieces):
        if piece.before or piece.after:
            before, after = ([template.token_id(name, tokenizer) for name in names] for names in (piece.before, piece.after))
            encoded[i] = np.array([*before, *encoded[i], *after], np.int32)
    return encoded
