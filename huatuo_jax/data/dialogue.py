"""Records in, tokens and targets out: the same assembly for every template (HuatuoGPT-II, dialogue format of the training code).

Targets are not shifted: target i belongs to token i. `IGNORED` marks what is not learned.
"""

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
    eos = np.array([tokenizer.eos_id], np.int32)
    if record.text:
        (ids,) = tokenizer.encode_batch([("", record.text)])
        tokens = np.concatenate([ids, eos])[:max_len]
        return Encoded(tokens, tokens.copy())
    pieces = list(template.render(record.turns, record.system))
    encoded = [ids[:max_len] for ids in _encode_pieces(pieces, tokenizer, template)]
    closing = [eos] if template.closing_eos else []
    tokens = np.concatenate([*encoded, *closing], dtype=np.int32)
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


def _encode_pieces(pieces: Sequence[Piece], tokenizer: Tokenizer, template: Template) -> list[np.ndarray]:
    encoded = tokenizer.encode_batch([(piece.prefix, piece.text) for piece in pieces])
    for i, piece in enumerate(pieces):
        if piece.before or piece.after:
            before, after = ([template.token_id(name, tokenizer) for name in names] for names in (piece.before, piece.after))
            encoded[i] = np.array([*before, *encoded[i], *after], np.int32)
    return encoded
