"""The tokenizer files of an exported folder: the same ids in transformers as in training, without remote code.

From a SentencePiece model: `tokenizer.model` as it is, and a `tokenizer.json` that gives the same ids (`sentencepiece_json.py`).
From a `tokenizer.json`: a copy of it and of what stands beside it. Either way `tokenizer_config.json` with the chat template of
the dialogue format (`huatuo_jax.data.formats`), and `special_tokens_map.json`.

`tokenizer_class` is PreTrainedTokenizerFast, which both transformers read as it stands; transformers 5 would rebuild a
LlamaTokenizer from its vocabulary. `split_special_tokens` is on wherever the format writes no control token: then `</s>` in a
user's text stays plain characters, as in SentencePiece. The llama2 format writes `<s>` and `</s>`, so there a text can spell
them.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huatuo_jax.config import require
from huatuo_jax.data.formats import BOS, DialogueFormat, get_format
from huatuo_jax.data.tokenizers import SentencePieceTokenizer, Tokenizer
from huatuo_jax.errors import ConfigError, DataError
from huatuo_jax.io.files import PathLike, read_json, write_bytes, write_json
from huatuo_jax.weights.hf_names import Layout
from huatuo_jax.weights.sentencepiece_json import check_exact, has_dummy_prefix, tokenizer_json, unknown_piece

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
        "split_special_tokens": dialogue_format is None or BOS not in dialogue_format.tokens,
        **_chat_template(dialogue_format, has_dummy_prefix(content)),
    }


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
