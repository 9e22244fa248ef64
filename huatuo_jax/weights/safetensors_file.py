"""One `.safetensors` file in, its tensors out as views of the mapped file: no copy, no torch, bfloat16 as numpy's `bfloat16`.

Format (github.com/huggingface/safetensors): 8 bytes of header length, little-endian; a JSON header, name → dtype, shape and the
range of bytes behind the header; then the bytes, little-endian, row-major, without gaps.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from huatuo_jax.errors import DataError
from huatuo_jax.weights.tensor_info import TensorInfo

DTYPES = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(jnp.bfloat16)}
LONGEST_HEADER = 100_000_000
"""As in the format's reference reader: a longer one is no header."""


class SafetensorsFile:
    """A mapped file; `tensors` by name.

    Raises:
      DataError: truncated, or not a safetensors file. A tensor of a dtype that is none of float32, float16, bfloat16 is found in
        `tensors` with that dtype's name, and refused only when it is read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        size = path.stat().st_size
        if size < 8:
            raise DataError(f"{path} has {size} bytes, which is no safetensors file; fetch it again")
        self._bytes = np.memmap(path, np.uint8, mode="r")
        length = int.from_bytes(self._bytes[:8].tobytes(), "little")
        if length > min(LONGEST_HEADER, size - 8):
            raise DataError(f"{path} is truncated or no safetensors file: a header of {length} bytes in {size}; fetch it again")
        self._start = 8 + length
        try:
            header = json.loads(self._bytes[8 : self._start].tobytes())
            entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
            self._ranges = {name: _range(entry) for name, entry in entries.items()}
            self.tensors = {name: _info(entry) for name, entry in entries.items()}
            _check_apart(self._ranges)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(f"{path} has no readable safetensors header ({error!r}); fetch it again") from error
        end = self._start + max((end for _, end in self._ranges.values()), default=0)
        if end != size:
            what = "truncated" if end > size else "longer than its header says"
            raise DataError(f"{path} is {what}: {size} bytes, {end} expected; fetch it again")

    def read(self, name: str) -> np.ndarray:
        """One tensor: a read-only view of the mapped file."""
        info, (begin, end) = self.tensors[name], self._ranges[name]
        if info.dtype is None:
            raise DataError(f"{self.path}: {name} is {info.dtype_name}; huatuo-jax reads {', '.join(DTYPES)}")
        return self._bytes[self._start + begin : self._start + end].view(info.dtype).reshape(info.shape)


def _range(entry: dict[str, Any]) -> tuple[int, int]:
    begin, end = entry["data_offsets"]
    if not (isinstance(begin, int) and isinstance(end, int)):
        raise ValueError(f"data_offsets {begin}, {end} are not whole numbers")
    dtype = DTYPES.get(entry["dtype"])
    if not 0 <= begin <= end or (dtype and end - begin != math.prod(entry["shape"]) * dtype.itemsize):
        raise ValueError(f"bytes {begin} to {end} for {entry['dtype']} {entry['shape']}")
    return begin, end


def _check_apart(ranges: Mapping[str, tuple[int, int]]) -> None:
    last, reached = "", 0
    for name, (begin, end) in sorted(ranges.items(), key=lambda item: item[1]):
        if begin < reached:
            raise ValueError(f"{last} and {name} lie over the same bytes")
        last, reached = name, end


def _info(entry: dict[str, Any]) -> TensorInfo:
    return TensorInfo(tuple(map(int, entry["shape"])), DTYPES.get(entry["dtype"]), entry["dtype"])
