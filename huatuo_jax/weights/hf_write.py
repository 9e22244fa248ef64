"""Writing a Hugging Face folder from a checkpoint: weights, config, tokenizer, generation defaults and model card.

    report = export("runs/quickstart", Path("runs/quickstart/hf"), ExportRequest(license="apache-2.0"))

Journey 2 of docs/architecture.md: `export` tells the whole way, and the rest of the module follows its order. What must hold: the
folder is written aside and renamed when it is whole, so there is none whose weights, tokenizer and config do not belong together.

Layouts: "native" keeps the family's own layout and every number; "llama" writes a Baichuan with RoPE as `LlamaForCausalLM`, its
W_pack taken apart and its NormHead baked into lm_head.weight; "auto" is llama where that is possible for a Baichuan, else native.

Weights pass array by array: host memory holds one parameter of ours (all its layers), and one of its layers in the folder's dtype
and order. Next on the way: `hf_names.py` (which tensor a parameter belongs to), `hf_config.py`, `hf_tokenizer.py`, `card.py`.
"""

import contextlib
import functools
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import jax
import jax.numpy as jnp
import numpy as np

from huatuo_jax.config import ModelConfig, require
from huatuo_jax.errors import DataError
from huatuo_jax.io.files import PathLike, check_room, directory_aside, write_json, write_text
from huatuo_jax.models.numerics import row_lengths
from huatuo_jax.weights.card import CardFacts, model_card
from huatuo_jax.weights.hf_config import write_config
from huatuo_jax.weights.hf_names import DTYPE_NAMES, DTypeName, Layout, NameRow, check_layout, native_layout, tensors
from huatuo_jax.weights.hf_tokenizer import SpecialIds, check_reader, export_tokenizer
from huatuo_jax.weights.open import StoredModel, open_stored_model

INDEX = "model.safetensors.index.json"

CHOICES = ("auto", "native", "llama")
"""What `ExportRequest.layout` may be; see the module's docstring."""

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
      layout, dtype: see `choose_layout` and `export_dtype`.
      license: identifier on the card, or "other". name: of the model, on the card. base_model: what it was adapted from.
      max_shard_size: bytes. overwrite: an export that is there is replaced.
      inexact_tokenizer: also where `tokenizer.json` cannot give every text the same ids as the SentencePiece model.
    """

    layout: str = "auto"
    dtype: str = "auto"
    license: str = "other"
    name: str = ""
    base_model: str = ""
    max_shard_size: int = 5_000_000_000
    overwrite: bool = False
    inexact_tokenizer: bool = False


def choose_layout(model: ModelConfig, wanted: str) -> Layout:
    """How the folder names and packs its tensors, for one of `CHOICES`.

    Raises:
      ConfigError: the model cannot be written in this layout; the reason is named.
    """
    require(wanted in CHOICES, f"--layout {wanted}: choose one of {', '.join(CHOICES)}")
    if wanted == "native" or (wanted == "auto" and (model.family != "baichuan" or model.positions == "alibi")):
        return native_layout(model)
    require(
        model.positions != "alibi",
        f"{model.name} has ALiBi positions, which LlamaForCausalLM does not compute; use --layout native, which brings its own "
        "modelling file",
    )
    check_layout(model, "llama")
    return "llama"


def export_dtype(source: StoredModel, wanted: str) -> DTypeName:
    """ "auto" is the dtype in which a run computed, and that of the folder from which a base was imported."""
    require(wanted in (*DTYPE_NAMES, "auto"), f"--dtype {wanted}: choose one of {', '.join(DTYPE_NAMES)}, auto")
    if wanted != "auto":
        return cast(DTypeName, wanted)
    # A base records what its folder's files called the dtypes: "BF16" in safetensors, "torch.bfloat16" in a .bin.
    imported = source.meta.get("origin", {}).get("dtypes", [])
    for dtype, names in DTYPE_NAMES.items():
        if len(imported) == 1 and imported[0] in names:
            return dtype
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
      ConfigError: the folder exists, or the model, layout and tokenizer do not go together.
      DataError: the checkpoint is torn, or holds NaN or infinite weights; no folder is left.
    """
    # Whatever can be refused is, before the folder is begun; tokenizer and config, which may fail too, before the large weights.
    started = time.perf_counter()
    _check_target(folder, request.overwrite)
    require(bool(request.license.strip()), "--license is empty; give an identifier, or other")
    source = open_stored_model(checkpoint)
    require(source.kind != "hf", f"{checkpoint} is a Hugging Face folder already; import it with `huatuo convert from-hf` first")
    layout, dtype = choose_layout(source.config, request.layout), export_dtype(source, request.dtype)
    tokenizer = source.tokenizer()
    check_reader(tokenizer, layout)
    with directory_aside(folder, request.overwrite) as aside:
        ids = export_tokenizer(tokenizer, source.meta["template"], aside, source.config.max_length, request.inexact_tokenizer)
        _write_configs(source.config, layout, dtype, ids, aside)
        written = write_weights(source, layout, dtype, aside, request.max_shard_size, advance)
        facts = CardFacts(source, layout, dtype, request.license, request.name or folder.name, request.base_model)
        write_text(aside / "README.md", model_card(facts))
    return {
        "checkpoint": str(source.checkpoint),
        "step": source.meta["step"],
        "folder": str(folder),
        "layout": layout,
        "dtype": dtype,
        **written,
        "seconds": round(time.perf_counter() - started, 3),
    }


def _check_target(folder: Path, overwrite: bool) -> None:
    """Raises ConfigError if something is at `folder` that must not be replaced."""
    if not folder.exists():
        return
    require(overwrite, f"{folder} exists; choose another folder, or replace it with --overwrite")
    # A flag must not be able to delete a folder of something else.
    is_export = folder.is_dir() and ((folder / "config.json").is_file() or not any(folder.iterdir()))
    reason = f"{folder} is no exported model (it has no config.json), so --overwrite does not replace it"
    require(is_export, f"{reason}; choose another folder")


def _write_configs(model: ModelConfig, layout: Layout, dtype: DTypeName, ids: SpecialIds, folder: Path) -> None:
    """config.json and generation_config.json; a native Baichuan's modelling files beside them."""
    if layout == "baichuan":
        for name in MODELING_FILES:
            shutil.copyfile(MODELING / name, folder / name)
    # In both files, as transformers reads them: `generate` takes the second, other programs know the first alone.
    named: dict[str, Any] = {"bos_token_id": ids.bos, "eos_token_id": ids.eos_token_id, "pad_token_id": ids.pad}
    config = write_config(model, layout, dtype, **named, auto_map=AUTO_MAP if layout == "baichuan" else None)
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", {**{k: v for k, v in named.items() if v is not None}, **SAMPLING})


def write_weights(
    source: StoredModel,
    layout: Layout,
    dtype: DTypeName,
    folder: Path,
    max_shard_size: int,
    advance: Callable[[int, int], None],
) -> dict[str, int]:
    """Writes every tensor of the layout. A NormHead goes into any layout but its own with rows normalised in fp32, then cast.

    Args:
      max_shard_size: bytes of a file; one tensor may be larger.
      advance: called as (bytes written, bytes in all).

    Raises:
      DataError: a weight is NaN or infinite, or would be in `dtype`; the tensor is named.
      DoesNotFitError: the disk has no room for them.

    Returns:
      What was written: `bytes` of tensors, `tensors`, and `shards`, the files.
    """
    theirs = tensors(source.config, layout)
    shapes = {name: parts[0][0].their_shape for name, parts in theirs.items()}
    sizes = {name: math.prod(shape) * jnp.dtype(dtype).itemsize for name, shape in shapes.items()}
    total = sum(sizes.values())
    check_room(folder.parent, total)
    places: dict[str, list[tuple[NameRow, int]]] = {}
    for parts in theirs.values():
        for row, layer in parts:
            places.setdefault(row.ours, []).append((row, layer))

    shards = _divide(sizes, max_shard_size)
    written = 0
    with _laid_out(folder, shards, shapes, dtype) as write:
        for ours, array in source.arrays():
            normalise = ours == "head" and source.config.head == "norm" and layout != "baichuan"
            for row, layer in places[ours]:
                part, finite = _convert(row, dtype, normalise)(array, np.int32(layer))
                if not finite:
                    raise DataError(_why_not_finite(row, layer, array, dtype))
                write(row.name(layer), np.asarray(part), row.start)
                written += part.nbytes
                advance(written, total)
            array.delete()  # now, not when Python gets to it: the next parameter may be as large
    if len(shards) > 1:
        weight_map = {name: file for file, names in shards.items() for name in names}
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    return {"bytes": total, "tensors": len(shapes), "shards": len(shards)}


@functools.lru_cache(maxsize=64)
def _convert(row: NameRow, dtype: DTypeName, normalise: bool) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """(our parameter, layer) → (its part of their tensor in `dtype`, whether all of it is finite); compiled once a row."""

    def convert(array: jax.Array, layer: jax.Array) -> tuple[jax.Array, jax.Array]:
        if row.per_layer:
            array = jax.lax.dynamic_index_in_dim(array, layer, keepdims=False)
        if normalise:
            array = array.astype(jnp.float32) / row_lengths(array)
        # Finite after the cast: 1e5 is a number in bfloat16 and infinite in float16.
        part = row.to_theirs(array).astype(dtype)
        return part, jnp.isfinite(part).all()

    return jax.jit(convert)


def _why_not_finite(row: NameRow, layer: int, array: jax.Array, dtype: DTypeName) -> str:
    """Why a tensor is refused: what the checkpoint holds, or what the narrower dtype would make of it."""
    name, held = row.name(layer), np.asarray(array[layer] if row.per_layer else array)
    bad = held.size - int(np.isfinite(held).sum())
    if bad:
        return f"{name} ({row.ours}) holds {bad} NaN or infinite weights; export an earlier checkpoint of the run"
    largest = float(np.abs(held).max())
    return f"{name} holds weights up to {largest:.3g}, beyond the range of {dtype}; use --dtype bfloat16 or float32"


def _divide(sizes: Mapping[str, int], max_shard_size: int) -> dict[str, list[str]]:
    """File → its tensors in order, as many a file as fit; named as transformers names them."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > max_shard_size:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    if len(shards) == 1:
        return {"model.safetensors": shards[0]}
    return {f"model-{i:05}-of-{len(shards):05}.safetensors": names for i, names in enumerate(shards, 1)}


@contextlib.contextmanager
def _laid_out(
    folder: Path, shards: Mapping[str, list[str]], shapes: Mapping[str, tuple[int, ...]], dtype: DTypeName
) -> Iterator[Callable[[str, np.ndarray, int], None]]:
    """Creates `.safetensors` files for tensors that come in any order and in parts; yields `write(name, part, first_row)`.

    The library's `save_file` wants all tensors of a file in memory at once, and ours come as the checkpoint stores them: all
    layers of one projection, which belong to as many shards. So every header is written first, and each part goes to its place.
    """
    wide = jnp.dtype(dtype)
    places: dict[str, tuple[BinaryIO, int]] = {}
    with contextlib.ExitStack() as open_files:
        files = [open_files.enter_context(open(folder / name, "wb")) for name in shards]
        for file, names in zip(files, shards.values(), strict=True):
            header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
            end = 0
            for name in names:
                start, end = end, end + math.prod(shapes[name]) * wide.itemsize
                header[name] = {"dtype": DTYPE_NAMES[dtype][0], "shape": list(shapes[name]), "data_offsets": [start, end]}
            text = json.dumps(header, separators=(",", ":")).encode("utf-8")
            text += b" " * (-len(text) % 8)  # so that tensors are aligned in the mapped file
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + end)
            places |= {name: (file, 8 + len(text) + header[name]["data_offsets"][0]) for name in names}

        def write(name: str, part: np.ndarray, first_row: int) -> None:
            file, start = places[name]
            file.seek(start + first_row * math.prod(shapes[name][1:]) * wide.itemsize)
            file.write(np.ascontiguousarray(part).view(np.uint8).reshape(-1).data)

        yield write
        for file in files:
            file.flush()
            os.fsync(file.fileno())
