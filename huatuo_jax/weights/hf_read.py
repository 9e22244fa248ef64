"""Reading a Hugging Face folder: its weight files, whichever they are, as tensors by name; and those under our names, checked.

    weights = open_weights(folder, read_config(folder))      # names, shapes and dtypes are checked; no weight is read yet
    params = load_params(weights, mesh, jnp.bfloat16)        # `load.py`, next to read: onto devices, tensor by tensor

What must hold: a folder whose tensors are not exactly those of its config is refused before any is read. Tensors are views of
mapped files: no copy is made until a device asks for its part. Looked for, in this order: model.safetensors,
model.safetensors.index.json, pytorch_model.bin, pytorch_model.bin.index.json.
"""

import json
import math
import pickle
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors
from jax.typing import DTypeLike

from huatuo_jax.config import ModelConfig, require
from huatuo_jax.errors import ConfigError, DataError
from huatuo_jax.io.files import PathLike, is_local, read_json
from huatuo_jax.weights.hf_names import DTYPE_NAMES, Layout, NameRow, native_layout, table, tensors

DTYPES = {name: np.dtype(jnp.dtype(dtype)) for dtype, names in DTYPE_NAMES.items() for name in names}

COMPUTED = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.(inv_freq|cos_cached|sin_cached)")
"""Tables of RoPE that old folders hold beside the weights; they are computed here."""

LISTED = 10
"""Tensors named in an error, of each kind."""


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a weight file, unread.

    Attributes:
      name: of the tensor. path: of the file. shape: [out, in] as stored.
      dtype_name: as the file calls it, such as "BF16" or "torch.bfloat16".
      view: makes the array, a view of the mapped file.
    """

    name: str
    path: Path
    shape: tuple[int, ...]
    dtype_name: str
    view: Callable[[], np.ndarray]

    @property
    def dtype(self) -> np.dtype | None:
        """None where it is not one of float32, float16 and bfloat16."""
        return DTYPES.get(self.dtype_name)

    def read(self) -> np.ndarray:
        """The array, not to be written to. Raises DataError if its dtype is not one of those three."""
        if self.dtype is None:
            raise DataError(f"{self.path}: {self.name} is {self.dtype_name}; huatuo-jax reads float32, float16 and bfloat16")
        return self.view()


Tensors = dict[str, StoredTensor]


def open_tensors(folder: PathLike) -> Tensors:
    """Opens the weight files of a folder and checks that they are whole and that the index, if there is one, is right.

    Raises:
      ConfigError: the folder is not local, or holds no weights, or the `torch` extra is missing.
      DataError: a file is truncated or missing, or the index and the files disagree.
    """
    require(is_local(folder), f"{folder}: weights are read from mapped local files; copy the folder to a local disk first")
    root = Path(folder)
    # safetensors first: many folders hold both, and the other kind is a pickle.
    kinds = (("model", "safetensors", _open_safetensors), ("pytorch_model", "bin", _open_torch))
    for stem, suffix, open_file in kinds:
        single, index = root / f"{stem}.{suffix}", root / f"{stem}.{suffix}.index.json"
        if single.is_file():
            return open_file(single)
        shards = sorted(root.glob(f"{stem}-*-of-*.{suffix}"))
        if index.is_file():
            return _open_shards(index, {shard.name for shard in shards}, open_file)
        if shards:
            raise DataError(f"{root} has {len(shards)} shards and no {index.name}; fetch it from where the shards are from")
    names = ", ".join(f"{stem}.{suffix}[.index.json]" for stem, suffix, _ in kinds)
    raise ConfigError(f"{root} holds no weights; looked for {names}")


def _open_shards(index: Path, beside: set[str], open_file: Callable[[Path], Tensors]) -> Tensors:
    """The tensors of all shards that an index names; `beside` are the shards that lie beside it."""
    try:
        weight_map = {str(name): str(file) for name, file in read_json(index)["weight_map"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{index} has no readable weight_map ({error!r}); fetch it again") from error
    root, names = index.parent, sorted(set(weight_map.values()))
    # An index is fetched from elsewhere: it must not make us open files that are not the folder's.
    outside = [name for name in names if Path(name).name != name]
    if outside:
        raise DataError(f"{index} names files outside its folder: {', '.join(outside)}; fetch it again")
    absent = [name for name in names if not (root / name).is_file()]
    if absent:
        raise DataError(f"{root} lacks {len(absent)} of the {len(names)} files that {index.name} names: {', '.join(absent)}")
    # Shards that no index names are of another download, whose tensors may be among those that are read.
    if forgotten := sorted(beside - set(names)):
        raise DataError(f"{index} does not name {', '.join(forgotten)}, which lies beside it; fetch the index again")
    files = {name: open_file(root / name) for name in names}
    wrong = [f"{file} lacks {tensor}" for tensor, file in weight_map.items() if tensor not in files[file]]
    held = [(tensor, name) for name, file in files.items() for tensor in file]
    wrong += [f"{tensor} of {name} is not in the index" for tensor, name in held if weight_map.get(tensor) != name]
    if wrong:
        raise DataError(f"{index} and the files disagree in {len(wrong)} places: {'; '.join(wrong[:5])}; fetch both again")
    return {tensor: files[file][tensor] for tensor, file in weight_map.items()}


def _open_safetensors(path: Path) -> Tensors:
    """The tensors of a `.safetensors` file; DataError if it is truncated or its header cannot be.

    The library checks the header and the size of the file. The bytes are mapped here, because the library's own `get_tensor`
    copies: an embedding of 125,696 × 4096 in bfloat16 would take another GB of host memory.
    """
    try:
        with safetensors.safe_open(path, "numpy"):
            pass
    except (safetensors.SafetensorError, OSError) as error:
        raise DataError(f"{path} is not a whole safetensors file ({error}); fetch it again") from error
    # Mapped once a file, not once a tensor: a view is then an offset, and opening a folder of hundreds of tensors costs nothing.
    mapped = np.memmap(path, np.uint8, mode="r")
    # Eight bytes of header length, the header (name → dtype, shape, bytes from and to), and the tensors.
    start = 8 + int.from_bytes(mapped[:8].tobytes(), "little")
    header = json.loads(mapped[8:start].tobytes())
    header.pop("__metadata__", None)

    def view(entry: dict[str, Any]) -> np.ndarray:
        begin, end = entry["data_offsets"]
        return mapped[start + begin : start + end].view(DTYPES[entry["dtype"]]).reshape(entry["shape"])

    return {
        name: StoredTensor(name, path, tuple(entry["shape"]), entry["dtype"], partial(view, entry))
        for name, entry in header.items()
    }


def _open_torch(path: Path) -> Tensors:
    """The tensors of a `pytorch_model*.bin`; needs the `torch` extra.

    Such a file is a pickle, which can run any code when it is loaded. It is loaded with `weights_only`, which knows tensors and
    nothing else; a file that asks for more is refused and none of it runs.

    Raises:
      ConfigError: torch is not installed.
      DataError: truncated, not tensors by name, or a pickle that asks for code.
    """
    try:
        import torch
    except ImportError as error:
        raise ConfigError(
            f"{path} is read through torch, which is not installed: pip install 'huatuo-jax[torch]', or give .safetensors"
        ) from error
    # A file without zip layout is refused here: it cannot be mapped.
    with open(path, "rb") as file:
        if file.read(4) != b"PK\x03\x04":
            raise DataError(
                f"{path} is no zip file as torch.save writes them since version 1.6, and was not unpickled; save it again with a "
                "newer torch, or as .safetensors"
            )
    try:
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        code = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"its pickle asks for {code[1]}" if code else "its pickle is not readable as tensors"
        remedy = "take the folder's .safetensors files, or another copy"
        raise DataError(f"{path} holds more than tensors: {what}. Nothing of it was run; {remedy}") from error
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        line = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(f"{path} is truncated or no file of torch.save ({line}); fetch it again") from error
    by_name = loaded if isinstance(loaded, dict) else {}
    others = [str(name) for name, value in by_name.items() if not isinstance(value, torch.Tensor)]
    if not by_name or others:
        what = f"{', '.join(others[:5])} in it is no tensor" if others else f"it holds a {type(loaded).__name__}"
        raise DataError(f"{path} is not a dictionary of tensors by name: {what}; give the model's own state dict")

    def view(tensor: Any) -> np.ndarray:
        # numpy does not know torch's bfloat16: the same bits pass as integers.
        if tensor.dtype == torch.bfloat16:
            return tensor.view(torch.int16).numpy().view(jnp.bfloat16)
        return tensor.numpy()

    return {
        name: StoredTensor(name, path, tuple(tensor.shape), str(tensor.dtype), partial(view, tensor))
        for name, tensor in by_name.items()
    }


@dataclass(frozen=True)
class HFWeights:
    """The weights of one folder under our names, unread.

    Attributes:
      config: of the model. layout: how the folder names its tensors. rows: the table between the two.
      tensors: of the folder, by their names there.
    """

    config: ModelConfig
    layout: Layout
    rows: tuple[NameRow, ...]
    tensors: Tensors

    def layers(self, row: NameRow) -> int:
        """How many tensors hold the parameter: one, or one a layer."""
        return self.config.num_layers if row.per_layer else 1

    def count_parts(self) -> int:
        """How many parts of tensors there are to read."""
        return sum(map(self.layers, self.rows))

    def dtype(self, row: NameRow) -> np.dtype:
        """The narrower of float32 and bfloat16 that holds all layers of a parameter exactly; float16 needs float32."""
        dtypes = {self.tensors[row.name(layer)].dtype for layer in range(self.layers(row))}
        return np.dtype(jnp.bfloat16) if dtypes == {np.dtype(jnp.bfloat16)} else np.dtype(np.float32)

    def size(self, dtype: DTypeLike | None = None) -> int:
        """Bytes of all parameters in `dtype`; None = each in `self.dtype`."""
        return sum(
            math.prod(row.shape) * self.layers(row) * jnp.dtype(self.dtype(row) if dtype is None else dtype).itemsize
            for row in self.rows
        )

    def part(self, row: NameRow, layer: int = 0) -> np.ndarray:
        """One layer of a parameter in their order of axes, shaped `row.view`; a view of the mapped file."""
        return row.part_of(self.tensors[row.name(layer)].read())


def open_weights(folder: PathLike, config: ModelConfig) -> HFWeights:
    """Opens the weights of a folder and checks every name, shape and dtype against the model.

    Raises:
      ConfigError: no weights; a layout that the model cannot have.
      DataError: truncated files, a wrong index; or tensors missing, surplus, of another shape or dtype, all in one error.
    """
    stored = open_tensors(folder)
    yi = any(name.endswith(".ln1.weight") for name in stored)
    layout: Layout = "yi" if yi and config.family == "llama" else native_layout(config)
    _check(folder, config, layout, stored)
    return HFWeights(config, layout, table(config, layout), stored)


def _check(folder: PathLike, config: ModelConfig, layout: Layout, stored: Tensors) -> None:
    """Raises DataError with all that is wrong with the names, shapes and dtypes of a folder."""
    # Both ways: a surplus tensor, such as a bias, would mean that the folder's model computes something else.
    wanted = {name: parts[0][0].their_shape for name, parts in tensors(config, layout).items()}
    held = {name: tensor for name, tensor in stored.items() if not COMPUTED.fullmatch(name)}
    missing, surplus = [name for name in wanted if name not in held], [name for name in held if name not in wanted]
    both = [(name, shape, held[name]) for name, shape in wanted.items() if name in held]
    hints = []
    # Some exporters write a tied head as a copy of the embedding.
    if config.tied_embeddings and "lm_head.weight" in surplus:
        if _same_bytes(held["lm_head.weight"], held.get("model.embed_tokens.weight")):
            surplus.remove("lm_head.weight")
        else:
            hints.append("config.json ties the embeddings (tie_word_embeddings), but lm_head.weight is another matrix")
    if not config.tied_embeddings and missing == ["lm_head.weight"]:
        hints.append("config.json does not tie the embeddings; if the model does, set tie_word_embeddings to true there")
    kinds = {
        "missing": missing,
        "surplus": surplus,
        "of another shape": [f"{n}: {list(t.shape)}, the config says {list(shape)}" for n, shape, t in both if t.shape != shape],
        "of a dtype other than float32, bfloat16 and float16": [f"{n}: {t.dtype_name}" for n, _, t in both if t.dtype is None],
    }
    lines = [f"{len(names)} {kind}: {_some(names)}" for kind, names in kinds.items() if names]
    if lines:
        raise DataError(f"the tensors of {folder} are not those of its config ({layout}):\n  " + "\n  ".join(lines + hints))


def _same_bytes(one: StoredTensor, other: StoredTensor | None) -> bool:
    """Whether two tensors are equal; compared some rows at a time, so that neither is copied whole."""
    if other is None or (one.shape, one.dtype_name) != (other.shape, other.dtype_name):
        return False
    a, b = one.read(), other.read()
    rows = max(1, (1 << 24) // max(1, a[:1].nbytes))
    return all(np.array_equal(a[i : i + rows], b[i : i + rows]) for i in range(0, len(a), rows))


def _some(names: list[str]) -> str:
    return ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")
