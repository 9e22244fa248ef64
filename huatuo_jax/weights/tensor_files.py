"""A Hugging Face folder in, all its tensors out by name, whichever files they lie in; nothing is read before it is asked for.

Looked for, in this order: model.safetensors, model.safetensors.index.json, pytorch_model.bin, pytorch_model.bin.index.json.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np

from huatuo_jax.config import require
from huatuo_jax.errors import ConfigError, DataError
from huatuo_jax.io.files import PathLike, is_local
from huatuo_jax.weights.safetensors_file import SafetensorsFile
from huatuo_jax.weights.tensor_info import TensorInfo
from huatuo_jax.weights.torch_file import TorchFile

KINDS = (("model", "safetensors"), ("pytorch_model", "bin"))


class TensorFile(Protocol):
    """One file with tensors."""

    path: Path
    tensors: dict[str, TensorInfo]

    def read(self, name: str) -> np.ndarray:
        """One tensor, a view where the file allows it."""


class TensorFiles:
    """The tensors of a folder: `tensors[name]` says what it is, `read(name)` gives it."""

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
        return self._files[name].read(name)


def open_tensors(folder: PathLike) -> TensorFiles:
    """Opens the weight files of a folder and checks that they are whole and that the index, if there is one, is right.

    Raises:
      ConfigError: the folder is not local, or holds no weights, or the `torch` extra is missing.
      DataError: a file is truncated or missing, or the index and the files disagree.
    """
    require(is_local(folder), f"{folder}: weights are read from mapped local files; copy the folder to a local disk first")
    root = Path(folder)
    for stem, suffix in KINDS:
        open_file = SafetensorsFile if suffix == "safetensors" else TorchFile
        single, index = root / f"{stem}.{suffix}", root / f"{stem}.{suffix}.index.json"
        if single.is_file():
            file = open_file(single)
            return TensorFiles(root, dict.fromkeys(file.tensors, file))
        if index.is_file():
            return TensorFiles(root, _sharded(index, f"{stem}-*-of-*.{suffix}", open_file))
        if shards := sorted(root.glob(f"{stem}-*-of-*.{suffix}")):
            raise DataError(f"{root} has {len(shards)} shards and no {index.name}; fetch it from where the shards are from")
    raise ConfigError(
        f"{root} holds no weights; looked for " + ", ".join(f"{stem}.{suffix}[.index.json]" for stem, suffix in KINDS)
    )


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
