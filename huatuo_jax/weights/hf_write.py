"""A checkpoint in, a Hugging Face folder out: weights, config, tokenizer, generation defaults and model card.

The folder is written aside and renamed when it is whole. Formats: "native" keeps the family's own layout and every number;
"llama" writes a Baichuan with RoPE as `LlamaForCausalLM`, W_pack taken apart and a NormHead baked into lm_head.weight; "auto" is
llama where that is possible for a Baichuan, else native.
"""

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from huatuo_jax.config import ModelConfig, require
from huatuo_jax.errors import ConfigError
from huatuo_jax.io.files import PathLike, directory_aside, write_json, write_text
from huatuo_jax.weights.card import CardFacts, model_card
from huatuo_jax.weights.checkpoint_source import CheckpointSource
from huatuo_jax.weights.hf_config import write_config
from huatuo_jax.weights.hf_names import Layout, check_layout, native_layout
from huatuo_jax.weights.hf_tokenizer import SpecialIds, check_reader, export_tokenizer
from huatuo_jax.weights.save_weights import DTYPES, DTypeName, write_weights

IMPORTED_NAMES: dict[str, DTypeName] = {
    "F32": "float32",
    "BF16": "bfloat16",
    "F16": "float16",
    "torch.float32": "float32",
    "torch.bfloat16": "bfloat16",
    "torch.float16": "float16",
}
"""What safetensors and torch call the dtypes of a folder that a base was converted from."""

FORMATS = ("auto", "native", "llama")

MODELING = Path(__file__).parent / "modeling"
MODELING_FILES = ("configuration_huatuo_baichuan.py", "modeling_huatuo_baichuan.py")
AUTO_MAP = {
    "AutoConfig": "configuration_huatuo_baichuan.BaichuanConfig",
    "AutoModel": "modeling_huatuo_baichuan.BaichuanModel",
    "AutoModelForCausalLM": "modeling_huatuo_baichuan.BaichuanForCausalLM",
}

SAMPLING = {
    "do_sample": True,
    "temperature": 0.3,
    "top_k": 0,  # all tokens, as here; transformers would take 50
    "top_p": 0.7,
    "repetition_penalty": 1.1,
    "max_new_tokens": 1024,
}
"""As HuatuoGPT-II was released."""


@dataclass(frozen=True)
class ExportRequest:
    """What to write and how.

    Attributes:
      format, dtype: see `choose_layout` and `choose_dtype`.
      license: identifier on the card, or "other". name: of the model, on the card. base_model: what it was adapted from.
      max_shard_size: bytes. overwrite: an export that is there is replaced.
      inexact_tokenizer: also where `tokenizer.json` cannot give every text the same ids as the SentencePiece model.
    """

    format: str = "auto"
    dtype: str = "auto"
    license: str = "other"
    name: str = ""
    base_model: str = ""
    max_shard_size: int = 5_000_000_000
    overwrite: bool = False
    inexact_tokenizer: bool = False


def choose_layout(model: ModelConfig, format: str) -> Layout:
    """The tensor layout of a format for this model.

    Raises:
      ConfigError: the model cannot be written in this format; the reason is said.
    """
    require(format in FORMATS, f"--layout {format}: choose one of {', '.join(FORMATS)}")
    native = native_layout(model)
    if format == "native" or (format == "auto" and (model.family != "baichuan" or model.positions == "alibi")):
        return native
    if model.positions == "alibi":
        raise ConfigError(
            f"{model.name} has ALiBi positions, which LlamaForCausalLM does not compute; use --layout native, which brings its "
            "own modelling file"
        )
    check_layout(model, "llama")
    return "llama"


def choose_dtype(source: CheckpointSource, dtype: str) -> DTypeName:
    """ "auto" is the dtype in which a run computed, and that of the folder from which a base was converted."""
    require(dtype in (*DTYPES, "auto"), f"--dtype {dtype}: choose one of {', '.join(DTYPES)}, auto")
    if dtype != "auto":
        return cast(DTypeName, dtype)
    imported = source.meta.get("origin", {}).get("dtypes", [])
    if len(imported) == 1 and imported[0] in IMPORTED_NAMES:
        return IMPORTED_NAMES[imported[0]]
    return source.meta["config"].get("compute", {}).get("dtype", "float32")


def export(
    checkpoint: PathLike, folder: Path, request: ExportRequest, advance: Callable[[int, int], None] = lambda written, total: None
) -> dict[str, Any]:
    """Writes the folder; returns the report (bytes, tensors, seconds, …).

    Args:
      checkpoint: a run directory, a step folder or a converted base.
      folder: what to write; it appears when it is whole.
      advance: called as (bytes written, bytes in all).

    Raises:
      ConfigError: the folder is there, or the model, format and tokenizer do not go together.
      DataError: the checkpoint is torn, or holds NaN or infinite weights; no folder is left.
    """
    started = time.perf_counter()
    _check_target(folder, request.overwrite)
    require(bool(request.license.strip()), "--license is empty; give an identifier, or other")
    source = CheckpointSource.open(checkpoint)
    layout, dtype = choose_layout(source.model, request.format), choose_dtype(source, request.dtype)
    tokenizer = source.tokenizer()
    _check_vocabulary(source.model, tokenizer.vocab_size, tokenizer.path)
    check_reader(tokenizer, layout)
    with directory_aside(folder, request.overwrite) as aside:
        ids = export_tokenizer(tokenizer, source.meta["template"], aside, source.model.max_length, request.inexact_tokenizer)
        _write_configs(source.model, layout, dtype, ids, aside)
        written = write_weights(source, layout, dtype, aside, request.max_shard_size, advance)
        facts = CardFacts(source, layout, dtype, request.license, request.name or folder.name, request.base_model)
        write_text(aside / "README.md", model_card(facts))
    return {
        "checkpoint": str(source.folder),
        "step": source.meta["step"],
        "folder": str(folder),
        "layout": layout,
        "dtype": dtype,
        **written._asdict(),
        "seconds": round(time.perf_counter() - started, 3),
    }


def _check_target(folder: Path, overwrite: bool) -> None:
    if not folder.exists():
        return
    require(overwrite, f"{folder} is there; choose another folder, or replace it with --overwrite")
    ours = folder.is_dir() and ((folder / "config.json").is_file() or not any(folder.iterdir()))
    require(
        ours, f"{folder} is no exported model (it has no config.json), so --overwrite does not replace it; choose another folder"
    )


def _check_vocabulary(model: ModelConfig, size: int, path: str) -> None:
    require(
        size <= model.vocab_size,
        f"{path} has {size} tokens and {model.name} only {model.vocab_size}; this is not the tokenizer of this model",
    )


def _write_configs(model: ModelConfig, layout: Layout, dtype: DTypeName, ids: SpecialIds, folder: Path) -> None:
    named = {"bos_token_id": ids.bos, "eos_token_id": ids.eos_token_id, "pad_token_id": ids.pad}
    if layout == "baichuan":
        for name in MODELING_FILES:
            shutil.copyfile(MODELING / name, folder / name)
    config = write_config(
        model,
        layout,
        dtype,
        bos_token_id=ids.bos,
        eos_token_id=ids.eos_token_id,
        pad_token_id=ids.pad,
        auto_map=AUTO_MAP if layout == "baichuan" else None,
    )
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", {**{k: v for k, v in named.items() if v is not None}, **SAMPLING})
