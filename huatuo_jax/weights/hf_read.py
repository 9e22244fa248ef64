"""Reading a Hugging Face folder: its weight files, whichever they are, as tensors by name; and those under our names, checked.

    weights = open_weights(folder, read_config(folder))      # names, shapes and dtypes are checked; no weight is read yet
    params = load_params(weights, mesh, jnp.bfloat16)        # `load.py`: onto devices, tensor by tensor

Tensors are views of mapped files: no copy is made until a device asks for its part. Looked for, in this order:
model.safetensors, model.safetensors.index.json, pytorch_model.bin, pytorch_model.bin.index.json.
"""

import json
import math
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax.numpy as jnp
import numpy as np
import safetensors
from jax.typing import DTypeLike

from huatuo_jax.config import ModelConfig, require
from huatuo_jax.errors import ConfigError, DataError
from huatuo_jax.io.files import PathLike, is_local
from huatuo_jax.weights.hf_names import Layout, Row, native_layout, table, tensors

SAFETENSORS_DTYPES = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(jnp.bfloat16)}

COMPUTED = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.(inv_freq|cos_cached|sin_cached)")
"""Tables of RoPE that old folders hold beside the weights; they are computed here."""

LISTED = 10
"""Tensors named in an error, of each kind."""


class TensorInfo(NamedTuple):
    """Shape and dtype of one tensor of a folder; `dtype` is None where it is not one of float32, float16 and bfloat16."""

    shape: tuple[int, ...]
    dtype: np.dtype | None
    dtype_name: str


class TensorFile(Protocol):
    """One file with tensors."""

    path: Path
    tensors: dict[str, TensorInfo]

    def view(self, name: str) -> np.ndarray:
        """One tensor of a dtype that is read here: a view of the mapped file."""


class SafetensorsFile:
    """A mapped `.safetensors` file. Raises DataError if it is truncated or its header cannot be.

    The library checks the header and the size of the file. The bytes are mapped here, because the library's own `get_tensor`
    copies: an embedding of 125,696 × 4096 in bfloat16 would take another GB of host memory.
    """

    def __init__(self, path: Path) -> None:
        try:
            with safetensors.safe_open(path, "numpy"):
                pass
        except (safetensors.SafetensorError, OSError) as error:
            raise DataError(f"{path} is not a whole safetensors file ({error}); fetch it again") from error
        self.path = path
        self._bytes = np.memmap(path, np.uint8, mode="r")
        # Eight bytes of header length, the header (name → dtype, shape, bytes from and to), and the tensors.
        self._start = 8 + int.from_bytes(self._bytes[:8].tobytes(), "little")
        self._header = json.loads(self._bytes[8 : self._start].tobytes())
        self._header.pop("__metadata__", None)
        self.tensors = {
            name: TensorInfo(tuple(entry["shape"]), SAFETENSORS_DTYPES.get(entry["dtype"]), entry["dtype"])
            for name, entry in self._header.items()
        }

    def view(self, name: str) -> np.ndarray:  # noqa: D102
        entry = self._header[name]
        begin, end = entry["data_offsets"]
        stored = self._bytes[self._start + begin : self._start + end]
        return stored.view(SAFETENSORS_DTYPES[entry["dtype"]]).reshape(entry["shape"])


class TorchFile:
    """A mapped `pytorch_model*.bin`; needs the `torch` extra.

    Such a file is a pickle, which can run any code when it is loaded. It is loaded with `weights_only`, which knows tensors and
    nothing else; a file that asks for more is refused and none of it runs.

    Raises:
      ConfigError: torch is not installed.
      DataError: truncated, not tensors by name, or a pickle that asks for code.
    """

    def __init__(self, path: Path) -> None:
        try:
            import torch
        except ImportError as error:
            raise ConfigError(
                f"{path} is read through torch, which is not installed: pip install 'huatuo-jax[torch]', or give .safetensors"
            ) from error
        self.path = path
        self._torch: Any = torch
        self._tensors: dict[str, Any] = self._load()
        dtypes = {
            torch.float32: np.dtype(np.float32),
            torch.float16: np.dtype(np.float16),
            torch.bfloat16: np.dtype(jnp.bfloat16),
        }
        self.tensors = {
            name: TensorInfo(tuple(tensor.shape), dtypes.get(tensor.dtype), str(tensor.dtype))
            for name, tensor in self._tensors.items()
        }

    def _load(self) -> dict[str, Any]:
        # A file without zip layout is refused here: it cannot be mapped.
        with open(self.path, "rb") as file:
            if file.read(4) != b"PK\x03\x04":
                raise DataError(
                    f"{self.path} is no zip file as torch.save writes them since version 1.6, and was not unpickled; "
                    "save it again with a newer torch, or as .safetensors"
                )
        try:
            loaded = self._torch.load(self.path, map_location="cpu", weights_only=True, mmap=True)
        except pickle.UnpicklingError as error:
            asked = re.search(r"GLOBAL ([\w.]+)", str(error))
            what = f"its pickle asks for {asked[1]}" if asked else "its pickle is not readable as tensors"
            raise DataError(
                f"{self.path} holds more than tensors: {what}. Nothing of it was run; take the folder's .safetensors files, or "
                "another copy"
            ) from error
        except (RuntimeError, EOFError, OSError, ValueError) as error:
            line = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise DataError(f"{self.path} is truncated or no file of torch.save ({line}); fetch it again") from error
        names = list(loaded) if isinstance(loaded, dict) else []
        others = [str(name) for name in names if not isinstance(loaded[name], self._torch.Tensor)]
        if not names or others:
            what = f"{', '.join(others[:5])} in it is no tensor" if others else f"it holds a {type(loaded).__name__}"
            raise DataError(f"{self.path} is not a dictionary of tensors by name: {what}; give the model's own state dict")
        return loaded

    def view(self, name: str) -> np.ndarray:  # noqa: D102
        info, tensor = self.tensors[name], self._tensors[name]
        # numpy does not know torch's bfloat16: the same bits pass as integers.
        if tensor.dtype == self._torch.bfloat16:
            return tensor.view(self._torch.int16).numpy().view(info.dtype)
        return tensor.numpy()


FILE_KINDS: tuple[tuple[str, str, type[SafetensorsFile] | type[TorchFile]], ...] = (
    ("model", "safetensors", SafetensorsFile),
    ("pytorch_model", "bin", TorchFile),
)


class TensorFiles:
    """The tensors of a folder: `tensors[name]` describes one, `read(name)` returns it."""

    def __init__(self, folder: PathLike, files: Mapping[str, TensorFile]) -> None:
        """`files`: tensor name → the file that holds it."""
        self.folder = Path(folder)
        self._files = files
        self.tensors = {name: file.tensors[name] for name, file in files.items()}

    def read(self, name: str) -> np.ndarray:
        """One tensor, [out, in] as stored; a view of the mapped file, not to be written to.

        Raises:
          DataError: its dtype is not float32, float16 or bfloat16.
        """
        file, info = self._files[name], self.tensors[name]
        if info.dtype is None:
            raise DataError(f"{file.path}: {name} is {info.dtype_name}; huatuo-jax reads float32, float16 and bfloat16")
        return file.view(name)


def open_tensors(folder: PathLike) -> TensorFiles:
    """Opens the weight files of a folder and checks that they are whole and that the index, if there is one, is right.

    Raises:
      ConfigError: the folder is not local, or holds no weights, or the `torch` extra is missing.
      DataError: a file is truncated or missing, or the index and the files disagree.
    """
    require(is_local(folder), f"{folder}: weights are read from mapped local files; copy the folder to a local disk first")
    root = Path(folder)
    for stem, suffix, open_file in FILE_KINDS:
        single, index = root / f"{stem}.{suffix}", root / f"{stem}.{suffix}.index.json"
        if single.is_file():
            file = open_file(single)
            return TensorFiles(root, dict.fromkeys(file.tensors, file))
        if index.is_file():
            return TensorFiles(root, _sharded(index, f"{stem}-*-of-*.{suffix}", open_file))
        if shards := sorted(root.glob(f"{stem}-*-of-*.{suffix}")):
            raise DataError(f"{root} has {len(shards)} shards and no {index.name}; fetch it from where the shards are from")
    names = ", ".join(f"{stem}.{suffix}[.index.json]" for stem, suffix, _ in FILE_KINDS)
    raise ConfigError(f"{root} holds no weights; looked for {names}")


def _sharded(index: Path, pattern: str, open_file: type[SafetensorsFile] | type[TorchFile]) -> dict[str, TensorFile]:
    try:
        weight_map = {str(name): str(file) for name, file in json.loads(index.read_text(encoding="utf-8"))["weight_map"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{index} has no readable weight_map ({error!r}); fetch it again") from error
    root, names = index.parent, sorted(set(weight_map.values()))
    outside = [name for name in names if Path(name).name != name]
    if outside:
        raise DataError(f"{index} names files outside its folder: {', '.join(outside)}; fetch it again")
    absent = [name for name in names if not (root / name).is_file()]
    if absent:
        raise DataError(f"{root} lacks {len(absent)} of the {len(names)} files that {index.name} names: {', '.join(absent)}")
    forgotten = sorted({path.name for path in root.glob(pattern)} - set(names))
    if forgotten:
        raise DataError(f"{index} does not name {', '.join(forgotten)}, which lies beside it; fetch the index again")
    files: dict[str, TensorFile] = {name: open_file(root / name) for name in names}
    wrong = [f"{file} lacks {tensor}" for tensor, file in weight_map.items() if tensor not in files[file].tensors]
    wrong += [
        f"{tensor} of {name} is not in the index"
        for name, file in files.items()
        for tensor in file.tensors
        if weight_map.get(tensor) != name
    ]
    if wrong:
        raise DataError(f"{index} and the files disagree in {len(wrong)} places: {'; '.join(wrong[:5])}; fetch both again")
    return {tensor: files[file] for tensor, file in weight_map.items()}


@dataclass(frozen=True)
class HFWeights:
    """The weights of one folder under our names, unread.

    Attributes:
      config: of the model; layout: how the folder spells its tensors.
      rows: the table between the two.
      files: the folder's tensors.
    """

    config: ModelConfig
    layout: Layout
    rows: tuple[Row, ...]
    files: TensorFiles

    def layers(self, row: Row) -> int:
        """How many tensors hold the parameter: one, or one a layer."""
        return self.config.num_layers if row.per_layer else 1

    def count_parts(self) -> int:
        """How many parts of tensors there are to read."""
        return sum(map(self.layers, self.rows))

    def dtype(self, row: Row) -> np.dtype:
        """The narrower of float32 and bfloat16 that holds all layers of a parameter exactly; float16 needs float32."""
        dtypes = {self.files.tensors[row.name(layer)].dtype for layer in range(self.layers(row))}
        return np.dtype(jnp.bfloat16) if dtypes == {np.dtype(jnp.bfloat16)} else np.dtype(np.float32)

    def size(self, dtype: DTypeLike | None = None) -> int:
        """Bytes of all parameters in `dtype`; None = each in `self.dtype`."""
        return sum(
            math.prod(row.shape) * self.layers(row) * jnp.dtype(self.dtype(row) if dtype is None else dtype).itemsize
            for row in self.rows
        )

    def part(self, row: Row, layer: int = 0) -> np.ndarray:
        """One layer of a parameter in their order of axes, shaped `row.view`; a view of the mapped file."""
        return row.part_of(self.files.read(row.name(layer)))


def open_weights(folder: PathLike, config: ModelConfig) -> HFWeights:
    """Opens the weights of a folder and checks every name, shape and dtype against the model.

    Raises:
      ConfigError: no weights; a layout that the model cannot have.
      DataError: truncated files, a wrong index; or tensors missing, surplus, of another shape or dtype, all in one error.
    """
    files = open_tensors(folder)
    yi = any(name.endswith(".ln1.weight") for name in files.tensors)
    layout: Layout = "yi" if yi and config.family == "llama" else native_layout(config)
    _check(config, layout, files)
    return HFWeights(config, layout, table(config, layout), files)


def _check(config: ModelConfig, layout: Layout, files: TensorFiles) -> None:
    """All that is wrong with the names, shapes and dtypes of a folder, in one error."""
    wanted = {name: parts[0][0].their_shape for name, parts in tensors(config, layout).items()}
    found = {name: info for name, info in files.tensors.items() if not COMPUTED.fullmatch(name)}
    missing = [name for name in wanted if name not in found]
    surplus = [name for name in found if name not in wanted]
    hints = []
    if config.tied_embeddings and "lm_head.weight" in surplus:
        if _same_bytes(files, "lm_head.weight", "model.embed_tokens.weight"):
            surplus.remove("lm_head.weight")
        else:
            hints.append("config.json ties the embeddings (tie_word_embeddings), but lm_head.weight is another matrix")
    if not config.tied_embeddings and missing == ["lm_head.weight"]:
        hints.append("config.json does not tie the embeddings; if the model does, set tie_word_embeddings to true there")
    shapes = [
        f"{name}: {list(found[name].shape)}, the config says {list(shape)}"
        for name, shape in wanted.items()
        if name in found and found[name].shape != shape
    ]
    dtypes = [f"{name}: {found[name].dtype_name}" for name in wanted if name in found and found[name].dtype is None]
    kinds = {
        "missing": missing,
        "surplus": surplus,
        "of another shape": shapes,
        "of a dtype other than float32, bfloat16 and float16": dtypes,
    }
    lines = [f"{len(names)} {kind}: {_some(names)}" for kind, names in kinds.items() if names]
    if lines:
        raise DataError(f"the tensors of {files.folder} are not those of its config ({layout}):\n  " + "\n  ".join(lines + hints))


def _same_bytes(files: TensorFiles, name: str, other: str) -> bool:
    if other not in files.tensors or files.tensors[name] != files.tensors[other]:
        return False
    a, b = files.read(name), files.read(other)
    rows = max(1, (1 << 24) // max(1, a[:1].nbytes))
    return all(np.array_equal(a[i : i + rows], b[i : i + rows]) for i in range(0, len(a), rows))


def _some(names: list[str]) -> str:
    return ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")
