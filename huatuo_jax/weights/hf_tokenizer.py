"""The tokenizer files of an exported folder: the same ids in transformers as in training, without remote code.

From a SentencePiece model: `tokenizer.model` as it is, and a `tokenizer.json` that gives the same ids (second half of this file).
From a `tokenizer.json`: a copy of it and of what stands beside it. Either way `tokenizer_config.json` with the chat template of
the dialogue format (`huatuo_jax.data.formats`), and `special_tokens_map.json`.

`tokenizer_class` is PreTrainedTokenizerFast, which both transformers read as it stands; transformers 5 would rebuild a
LlamaTokenizer from its vocabulary. `split_special_tokens` is on wherever the format writes no control token: then `</s>` in a
user's text stays plain characters, as in SentencePiece. The llama2 format writes `<s>` and `</s>`, so there a text can spell
them.

`hf_write.py` calls `export_tokenizer` while the folder is still hidden. What must hold: the folder gives the ids of training or
does not appear, unless a user asks for one that is not exact. Next to read: `data/formats.py` (chat templates), `card.py`.
"""

import base64
import json
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huatuo_jax.config import require
from huatuo_jax.data.formats import DialogueFormat, get_format
from huatuo_jax.data.tokenizers import SentencePieceTokenizer, Tokenizer
from huatuo_jax.errors import ConfigError, DataError
from huatuo_jax.io.files import PathLike, read_json, write_bytes, write_json
from huatuo_jax.weights.hf_names import Layout

FORMAT_FIELD = "huatuo_template"
"""Field of tokenizer_config.json that holds the name of the dialogue format; transformers keeps it and takes no notice."""

QWEN2_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
"""How Qwen's tokenizer cuts text into words, as its tokenizer.json writes it and transformers' Qwen2Tokenizer repeats it."""


@dataclass(frozen=True)
class SpecialIds:
    """Ids that config.json and generation_config.json name; `eos` ends an answer, the first one a text."""

    bos: int | None
    eos: tuple[int, ...]
    pad: int

    @property
    def eos_token_id(self) -> int | list[int]:
        """As the two files write it."""
        return self.eos[0] if len(self.eos) == 1 else list(self.eos)


def recorded_format(folder: PathLike) -> str:
    """The dialogue format that an exported folder records; "" where none is recorded.

    Raises:
      DataError: tokenizer_config.json is not readable. ConfigError: no format of ours has the recorded name.
    """
    path = Path(folder) / "tokenizer_config.json"
    if not path.is_file():
        return ""
    try:
        config = read_json(path)
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error}); fetch it again") from error
    name = config.get(FORMAT_FIELD) if isinstance(config, dict) else None
    if name is None:
        return ""
    require(isinstance(name, str), f"{path} has {FORMAT_FIELD} {name!r}, not the name of a dialogue format; correct or remove it")
    return get_format(name).name


def check_reader(tokenizer: Tokenizer, layout: Layout) -> None:
    """Refuses what transformers would not read as it stands: for model_type qwen2 it rebuilds the tokenizer as Qwen's own.

    Raises:
      ConfigError: a Qwen2 model with a tokenizer that does not cut text into words as Qwen's does.
    """
    if layout != "qwen2":
        return
    rules = {} if isinstance(tokenizer, SentencePieceTokenizer) else read_json(tokenizer.path)
    splits = [step.get("pattern") for step in (rules.get("pre_tokenizer") or {}).get("pretokenizers", [])]
    require(
        {"Regex": QWEN2_WORDS} in splits and (rules.get("normalizer") or {}).get("type") == "NFC",
        f"transformers 5 takes every tokenizer of a Qwen2 model for Qwen's own, so {tokenizer.path} would give other ids there; "
        "train with the tokenizer.json of the base model",
    )


def export_tokenizer(
    tokenizer: Tokenizer, format_name: str | None, folder: Path, max_length: int, inexact: bool = False
) -> SpecialIds:
    """Writes the tokenizer files into `folder`; the vocabulary's size is never changed.

    Args:
      tokenizer: that the run was trained with.
      format_name: its dialogue format; None = a base model without one, so there is no chat template.
      max_length: longest sequence of the model (`model_max_length`).
      inexact: also where `tokenizer.json` gives some texts other ids.

    Raises:
      DataError: `tokenizer.json` cannot be exactly the SentencePiece model.
      ConfigError: the tokenizer cannot carry the format.
    """
    dialogue_format = None if format_name is None else get_format(format_name)
    if dialogue_format is not None:
        dialogue_format.check(tokenizer)
    if isinstance(tokenizer, SentencePieceTokenizer):
        config = _from_sentencepiece(tokenizer, dialogue_format, folder, inexact)
    else:
        config = _from_json(tokenizer, dialogue_format, folder)
    config |= {"model_max_length": max_length, "clean_up_tokenization_spaces": False}
    write_json(folder / "tokenizer_config.json", config)
    named = {name: _content(config[name]) for name in ("bos_token", "eos_token", "unk_token", "pad_token") if config.get(name)}
    write_json(folder / "special_tokens_map.json", named)
    pad = tokenizer.token_to_id(named["pad_token"])
    if pad is None:
        raise DataError(f"{tokenizer.path} has no token {named['pad_token']!r}, which the files beside it name as the pad token")
    ends = (tokenizer.eos_id,) if dialogue_format is None else dialogue_format.end_ids(tokenizer)
    return SpecialIds(tokenizer.bos_id, ends, pad)


def _from_sentencepiece(
    tokenizer: SentencePieceTokenizer, dialogue_format: DialogueFormat | None, folder: Path, inexact: bool
) -> dict[str, Any]:
    """Writes both tokenizer files; returns the content of tokenizer_config.json."""
    content = tokenizer_json(tokenizer.path)
    if not inexact:
        check_exact(tokenizer.path, content)
    write_bytes(folder / "tokenizer.model", Path(tokenizer.path).read_bytes())
    write_bytes(folder / "tokenizer.json", json.dumps(content, ensure_ascii=False).encode("utf-8"))
    named: dict[str, Any] = {"eos_token": tokenizer.id_to_piece(tokenizer.eos_id)}
    if tokenizer.bos_id is not None:
        named["bos_token"] = tokenizer.id_to_piece(tokenizer.bos_id)
    # The unknown token pads: byte fallback never yields it, while EOS is learned and must not be taken for padding.
    named["unk_token"] = named["pad_token"] = unknown_piece(content)
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **named,
        # Else transformers 4 adds token_type_ids, which `generate` refuses.
        "model_input_names": ["input_ids", "attention_mask"],
        "add_bos_token": False,
        "add_eos_token": False,
        "split_special_tokens": dialogue_format is None or not _writes_special(dialogue_format, tokenizer, content),
        **_chat_template(dialogue_format, has_dummy_prefix(content)),
    }


def _writes_special(dialogue_format: DialogueFormat, tokenizer: Tokenizer, content: dict[str, Any]) -> bool:
    """Whether the chat template spells a special token, which transformers must then read as one."""
    special = {token["id"] for token in content["added_tokens"] if token["special"]}
    return any(dialogue_format.token_id(name, tokenizer) in special for name in dialogue_format.tokens)


def _from_json(tokenizer: Tokenizer, dialogue_format: DialogueFormat | None, folder: Path) -> dict[str, Any]:
    """Copies tokenizer.json; returns the content of tokenizer_config.json, which begins with the one beside the original."""
    source = Path(tokenizer.path)
    write_bytes(folder / "tokenizer.json", source.read_bytes())
    beside = source.parent / "tokenizer_config.json"
    config = read_json(beside) if beside.exists() else {}
    require(isinstance(config, dict), f"{beside} holds no object; correct or remove it")
    for stale in ("auto_map", FORMAT_FIELD):
        config.pop(stale, None)
    # By many another name transformers 5 builds a tokenizer of that kind's own rules, whatever tokenizer.json says.
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    config.setdefault("model_input_names", ["input_ids", "attention_mask"])
    config["eos_token"] = config.get("eos_token") or tokenizer.id_to_piece(tokenizer.eos_id)
    if not config.get("bos_token") and tokenizer.bos_id is not None:
        config["bos_token"] = tokenizer.id_to_piece(tokenizer.bos_id)
    config["pad_token"] = config.get("pad_token") or _content(config["eos_token"])
    if dialogue_format is not None and dialogue_format.name == "huatuo":
        space_at_seams = _has_space_at_seams(tokenizer, dialogue_format)
    else:
        space_at_seams = has_dummy_prefix(read_json(source))
    return {**config, **_chat_template(dialogue_format, space_at_seams)}


def _has_space_at_seams(tokenizer: Tokenizer, huatuo: DialogueFormat) -> bool:
    """Whether the huatuo format, rendered as one string, gives our tokens with a space before the line breaks or without.

    Asked of the tokenizer itself, because the rules of a tokenizer.json do not tell: some put a "▁" in front of a text, and none
    behind a line break.

    Raises:
      ConfigError: it does in neither way.
    """
    # Imported here, as only this kind of tokenizer has to be asked.
    from huatuo_jax.data.dialogue import prompt_tokens

    questions = ("头痛怎么办？", "What is a cold?", "一 1。")
    for space in ("", " "):
        rendered = [list(tokenizer.encode("", trusted_prefix=f"<问>：{question}{space}\n<答>：")) for question in questions]
        if rendered == [list(prompt_tokens([question], tokenizer, huatuo, "")) for question in questions]:
            return bool(space)
    raise ConfigError(
        f"with {tokenizer.path} no chat template renders the huatuo format to the tokens of training; train in the format of the "
        "base model (--format chatml, llama3, …)"
    )


def _chat_template(dialogue_format: DialogueFormat | None, space_at_seams: bool) -> dict[str, str]:
    """The fields of tokenizer_config.json that say how a prompt is written."""
    if dialogue_format is None:
        return {}
    return {"chat_template": dialogue_format.chat_template(space_at_seams), FORMAT_FIELD: dialogue_format.name}


def _content(token: Any) -> str:
    """The text of a special token, which tokenizer_config.json may write as an object with its properties."""
    return token["content"] if isinstance(token, dict) else token


# ---------------------------------------------------------------- tokenizer.json of a SentencePiece model
#
# The two libraries agree id for id because the file says only what SentencePiece does:
#
# - Text is normalised (spaces become "▁") and never cut into words, so merges see all of it, as SentencePiece's do.
# - User-defined symbols are non-special added tokens: leftmost-longest matches that nothing merges into, as there.
# - A piece is merged from every pair of parts that spell it, in the order of the pieces' scores; control and byte pieces from
#   none.
# - Control pieces (`<s>`, `</s>`) are special added tokens. SentencePiece never reads them in a text; `tokenizers` does, unless
#   `encode_special_tokens` is set, which transformers does for `"split_special_tokens": true` in tokenizer_config.json.
#
# Decoding agrees too, but for byte pieces that are no valid UTF-8 together: `tokenizers` writes "�" for each byte of the run,
# SentencePiece only for those that belong to no character.
#
# What has no equal at all is refused (`tokenizer_json`), and what was made is compared with the original (`differing_texts`).
# Known to differ: unigram models (ties between equally good ways to cut a text, and `</s>` in a text where a character of it is
# no piece), and models with both a dummy prefix and user-defined symbols (the prefix is put behind each symbol).

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

Parts = tuple[str, str]
"""The two pieces that a merge joins."""


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


def differing_texts(path: PathLike, content: dict[str, Any], seed: int = 0) -> list[tuple[str, list[int], list[int]]]:
    """(text, ids of tokenizer.json, ids of the model) where they differ.

    The texts are every piece, runs of marks, random strings of pieces and a few hard ones.
    """
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
    pairs = zip(texts, theirs.encode_batch_fast(texts, add_special_tokens=False), ours.encode(texts), strict=True)
    return [(text, encoding.ids, ids) for text, encoding, ids in pairs if encoding.ids != ids]


def check_exact(path: PathLike, content: dict[str, Any]) -> None:
    """Raises DataError, which shows a text, if `differing_texts` finds one."""
    differing = differing_texts(path, content)
    if differing:
        text, theirs, ours = differing[0]
        raise DataError(
            f"{path} cannot be written as an exact tokenizer.json: of some thousand texts {len(differing)} get other ids, such "
            f"as {text[:60]!r}: {theirs[:12]}, not {ours[:12]}. Export it all the same with --inexact-tokenizer; bpe models "
            "without dummy prefix (`huatuo-data tokenizer train`) are always exact"
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
    pairs: dict[float, list[Parts]] = {}
    for whole, score in scores.items():
        for cut in range(1, len(whole)):
            if whole[:cut] in scores and whole[cut:] in scores:
                pairs.setdefault(score, []).append((whole[:cut], whole[cut:]))
    return [f"{left} {right}" for score in sorted(pairs, reverse=True) for left, right in _leftmost_first(pairs[score])]


def _leftmost_first(pairs: list[Parts]) -> list[Parts]:
    """Pairs of one score in an order that merges the leftmost of two that overlap, as SentencePiece does.

    Where (a, b) and (b, c) compete for one b, (a, b) stands further left, so it goes first. Runs of one character compete both
    ways: there doubling goes first, which leaves the largest piece as often as it fits, as merging from the left does.

    Example: with pieces "ab" and "bc" of one score, "abc" is cut "ab c", so (a, b) precedes (b, c). With "aa" and "aaa", whose
    parts are (a, a), (a, aa) and (aa, a), doubling goes first, and "aaaa" is cut "aa aa".
    """
    waiting = sorted(pairs, key=lambda pair: pair[0] != pair[1])
    ordered: list[Parts] = []
    while waiting:
        rights = Counter(right for left, right in waiting if left != right)
        free = (pair for pair in waiting if pair[0] == pair[1] or rights[pair[0]] == 0)
        ordered.append(next(free, waiting[0]))
        waiting.remove(ordered[-1])
    return ordered


def _added_tokens(model: Any, kinds: Any) -> list[dict[str, Any]]:
    """What `tokenizers` finds in a text before it merges anything.

    Example: `<问>：`, a user-defined symbol, is an added token that is not special. `</s>` is special, so that transformers can
    be told not to read it in a user's text.
    """
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
