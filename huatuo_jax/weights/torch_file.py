"""One `pytorch_model*.bin` in, its tensors out as views of the mapped file; needs the `torch` extra.

Such a file is a pickle, which can run any code when it is read. It is read with `weights_only`, which knows tensors and nothing
else; a file that asks for more is refused unread.
"""

import pickle
import re
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from huatuo_jax.errors import ConfigError, DataError
from huatuo_jax.weights.tensor_info import TensorInfo


class TorchFile:
    """A mapped file; `tensors` by name.

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

    def read(self, name: str) -> np.ndarray:
        """One tensor; a view of the mapped file. Do not write to it."""
        info, tensor = self.tensors[name], self._tensors[name]
        if info.dtype is None:
            raise DataError(f"{self.path}: {name} is {info.dtype_name}; huatuo-jax reads float32, float16 and bfloat16")
        # numpy knows no bfloat16 of torch's: the same bits pass as integers.
        if tensor.dtype == self._torch.bfloat16:
            return tensor.view(self._torch.int16).numpy().view(info.dtype)
        return tensor.numpy()
