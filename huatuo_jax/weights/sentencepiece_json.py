"""A SentencePiece `.model` in, the same tokenizer as a `tokenizer.json` of the `tokenizers` library out, or a refusal.

The two libraries agree id for id because the file says only what SentencePiece does:

- text is normalised (spaces become "▁") and never cut into words, so merges see all of it, as SentencePiece's do;
- user-defined symbols are non-special added tokens: leftmost-longest matches that nothing merges into, as there;
- a piece is merged from every pair of parts that spell it, in the order of the pieces' scores; control and byte pieces from none;
- control pieces (`<s>`, `</s>`) are special added tokens. SentencePiece never reads them in a text; `tokenizers` does, unless
  `encode_special_tokens` is set, which transformers does for `"split_special_tokens": true` in tokenizer_config.json.

Decoding agrees too, but for byte pieces that are no valid UTF-8 together: `tokenizers` writes "�" for each byte of the run,
SentencePiece only for those that belong to no character.

What has no equal at all is refused (`tokenizer_json`), and what was made is compared with the original (`differing_texts`).
Known to differ: unigram models (ties between equally good ways to cut a text, and `</s>` in a text where a character of it is no
piece), and models with both a dummy prefix and user-defined symbols (the prefix is put behind each symbol).
"""

import base64
import json
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from huatuo_jax.errors import DataError
from huatuo_jax.io.files import PathLike

NEVER = -1e6
"""Score of control and byte pieces in a unigram vocabulary, where `tokenizers` would read them in a text."""

SAMPLE = (
    "感冒了可以喝酒吗？",
    "<问>：头痛怎么办\n<答>：多休息。\n<问>：谢谢",
    "Aspirin 100mg, p<0.05; β-受体阻滞剂",
    "a  b   c\t d\r\n e",
    " leading and trailing ",
    "１２３４５６７ ℃ ㎎ ﬁ Å é e\u0301",
    "𠮷野家 👩‍⚕️🩺 🇨🇳",
    "………………——————。。。。。。,,,,,,aaaaaaaaaaa",
    "</s><s><unk><0x41>▁▁",
    "",
)

Pair = tuple[str, str]


class Difference(NamedTuple):
    """A text with the ids of tokenizer.json and of the SentencePiece model."""

    text: str
    theirs: list[int]
    ours: list[int]


def tokenizer_json(path: PathLike) -> dict[str, Any]:
    """The content of a tokenizer.json that encodes and decodes as the SentencePiece model `path` (BPE or unigram) does.

    Raises:
      DataError: the model has something for which `tokenizers` has no equal; it is named.
    """
    model, kinds = _read(path)
    if reason := _refusal(model, kinds):
        raise DataError(f"{path} cannot be written as an exact tokenizer.json: {reason}")
    trainer, rules = model.trainer_spec, model.normalizer_spec
    vocabulary = {piece.piece: i for i, piece in enumerate(model.pieces)}
    if trainer.model_type == trainer.BPE:
        body = {
            "type": "BPE",
            "dropout": None,
            "unk_token": model.pieces[trainer.unk_id].piece,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": trainer.byte_fallback,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": _merges(model, kinds),
        }
    else:
        unreadable = (kinds.CONTROL, kinds.BYTE, kinds.UNKNOWN)
        body = {
            "type": "Unigram",
            "unk_id": trainer.unk_id,
            "vocab": [[p.piece, NEVER if p.type in unreadable else p.score] for p in model.pieces],
            "byte_fallback": trainer.byte_fallback,
        }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(model, kinds),
        "normalizer": {"type": "Sequence", "normalizers": list(_normalizers(rules))},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": _decoder(rules.add_dummy_prefix or rules.remove_extra_whitespaces),
        "model": body,
    }


def unknown_piece(content: dict[str, Any]) -> str:
    """The piece that stands for characters outside the vocabulary, of a tokenizer.json that `tokenizer_json` made."""
    model = content["model"]
    return model["unk_token"] if model["type"] == "BPE" else model["vocab"][model["unk_id"]][0]


def has_dummy_prefix(content: dict[str, Any]) -> bool:
    """Whether a tokenizer.json, of `tokenizer_json` or of a base model, puts a "▁" in front of every text."""
    steps = [step for name in ("normalizer", "pre_tokenizer") for step in _steps(content.get(name))]
    return any(
        step["type"] == "Prepend" or (step["type"] == "Metaspace" and step.get("prepend_scheme", "always") != "never")
        for step in steps
    )


def _steps(part: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The steps of a normalizer or pre-tokenizer, whether it is a sequence or a single one."""
    return (part.get("normalizers") or part.get("pretokenizers") or [part]) if part else []


def differing_texts(path: PathLike, content: dict[str, Any], seed: int = 0) -> list[Difference]:
    """Texts that the two encode differently, of every piece, runs of marks, random strings of pieces and a few hard texts."""
    import sentencepiece
    import tokenizers

    theirs = tokenizers.Tokenizer.from_str(json.dumps(content))
    theirs.encode_special_tokens = True
    ours = sentencepiece.SentencePieceProcessor(model_file=str(path))
    model, kinds = _read(path)
    pieces = [p.piece.replace("▁", " ") for p in model.pieces if p.type in (kinds.NORMAL, kinds.USER_DEFINED)]
    draw = random.Random(seed)
    runs = [character * n for character in pieces if len(character) == 1 and not character.isalnum() for n in (2, 3, 5, 17, 47)]
    texts = [*SAMPLE, *pieces, *runs, *("".join(draw.choices(pieces, k=12)) for _ in range(5_000))]
    found = theirs.encode_batch_fast(texts, add_special_tokens=False)
    pairs = zip(texts, found, ours.encode(texts), strict=True)
    return [Difference(text, encoding.ids, ids) for text, encoding, ids in pairs if encoding.ids != ids]


def check_exact(path: PathLike, content: dict[str, Any]) -> None:
    """Raises DataError, which shows a text, if `differing_texts` finds one."""
    found = differing_texts(path, content)
    if found:
        text, theirs, ours = found[0].text[:60], found[0].theirs[:12], found[0].ours[:12]
        raise DataError(
            f"{path} cannot be written as an exact tokenizer.json: of some thousand texts {len(found)} get other ids, such as "
            f"{text!r}: {theirs}, not {ours}. Export it all the same with --inexact-tokenizer; bpe models without dummy prefix "
            "(`huatuo-data tokenizer train`) are always exact"
        )


def _read(path: PathLike) -> tuple[Any, Any]:
    from sentencepiece import sentencepiece_model_pb2

    schema: Any = sentencepiece_model_pb2
    model = schema.ModelProto()
    model.ParseFromString(Path(path).read_bytes())
    return model, schema.ModelProto.SentencePiece


def _refusal(model: Any, kinds: Any) -> str:
    """Why there is no exact equal, "" if nothing speaks against one."""
    trainer, rules = model.trainer_spec, model.normalizer_spec
    count = Counter(piece.type for piece in model.pieces)
    if trainer.model_type not in (trainer.BPE, trainer.UNIGRAM):
        return f"it is a {trainer.ModelType.Name(trainer.model_type).lower()} model; bpe and unigram models can"
    if not rules.escape_whitespaces or trainer.treat_whitespace_as_suffix:
        return "it treats spaces in a way that `tokenizers` does not know"
    if count[kinds.UNUSED]:
        return f"it has {count[kinds.UNUSED]} unused pieces, which SentencePiece takes apart again"
    if trainer.model_type == trainer.BPE:
        normal = [piece for piece in model.pieces if piece.type == kinds.NORMAL]
        # A character that is a symbol of the user's never reaches the merges, so pieces that hold one are never made.
        letters = {piece.piece for piece in model.pieces if piece.type in (kinds.NORMAL, kinds.USER_DEFINED)}
        lost = sorted(set("".join(piece.piece for piece in normal)) - letters)
        if lost:
            return f"pieces are made of characters that are no piece ({''.join(lost[:5])!r})"
    return ""


def _merges(model: Any, kinds: Any) -> list[str]:
    """Every pair of parts that spells a piece; pieces of the best score first, as SentencePiece merges them."""
    scores = {piece.piece: piece.score for piece in model.pieces if piece.type == kinds.NORMAL}
    pairs: dict[float, list[Pair]] = {}
    for whole, score in scores.items():
        for cut in range(1, len(whole)):
            if whole[:cut] in scores and whole[cut:] in scores:
                pairs.setdefault(score, []).append((whole[:cut], whole[cut:]))
    return [f"{left} {right}" for score in sorted(pairs, reverse=True) for left, right in _leftmost_first(pairs[score])]


def _leftmost_first(pairs: list[Pair]) -> list[Pair]:
    """Pairs of one score in an order that merges the leftmost of two that overlap, as SentencePiece does.

    Where (a, b) and (b, c) compete for one b, (a, b) stands further left, so it goes first. Runs of one character compete both
    ways: there doubling goes first, which leaves the largest piece as often as it fits, as merging from the left does.
    """
    waiting = sorted(pairs, key=lambda pair: pair[0] != pair[1])
    ordered: list[Pair] = []
    while waiting:
        rights = Counter(right for left, right in waiting if left != right)
        free = (pair for pair in waiting if pair[0] == pair[1] or rights[pair[0]] == 0)
        ordered.append(next(free, waiting[0]))
        waiting.remove(ordered[-1])
    return ordered


def _added_tokens(model: Any, kinds: Any) -> list[dict[str, Any]]:
    # Matched in the normalised text where one holds a space, for there "▁" and the space are the same.
    normalized = any(piece.type == kinds.USER_DEFINED and "▁" in piece.piece for piece in model.pieces)
    return [
        {
            "id": i,
            "content": piece.piece.replace("▁", " ") if piece.type == kinds.USER_DEFINED else piece.piece,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": normalized and piece.type == kinds.USER_DEFINED,
            "special": piece.type != kinds.USER_DEFINED,
        }
        for i, piece in enumerate(model.pieces)
        if piece.type in (kinds.CONTROL, kinds.UNKNOWN, kinds.USER_DEFINED)
    ]


def _normalizers(rules: Any) -> Iterator[dict[str, Any]]:
    if rules.precompiled_charsmap:
        yield {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(rules.precompiled_charsmap).decode()}
    if rules.remove_extra_whitespaces:
        yield {"type": "Strip", "strip_left": True, "strip_right": True}
        yield {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}
    if rules.add_dummy_prefix:
        yield {"type": "Prepend", "prepend": "▁"}
    yield {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}


def _decoder(drops_first_space: bool) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if drops_first_space:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": steps}
