"""Names, shapes and a dtype in, `.safetensors` shards out, whose tensors are written in any order and in parts.

The layout is laid down before the first byte, so nothing is gathered in memory: each part goes to its place in its file.
"""

import contextlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from huatuo_jax.errors import HuatuoError
from huatuo_jax.io.files import write_json
from huatuo_jax.weights.safetensors_file import DTYPES

INDEX = "model.safetensors.index.json"


class Place(NamedTuple):
    """Where a tensor lies: its shard, and its first byte there."""

    shard: int
    start: int
    shape: tuple[int, ...]


class SafetensorsWriter:
    """Shards of at most `max_shard_size` bytes (one tensor may be larger), named as transformers names them.

    Use as a context manager; `finish` at its end checks that every byte was written, and writes the index if there are several.
    """

    def __init__(self, folder: Path, shapes: Mapping[str, tuple[int, ...]], dtype: Any, max_shard_size: int) -> None:
        """Lays down the files. `shapes`: every tensor, in the order in which they are to lie."""
        self.folder, self.dtype = folder, np.dtype(dtype)
        self._sizes = {name: math.prod(shape) * self.dtype.itemsize for name, shape in shapes.items()}
        shards = _divide(self._sizes, max_shard_size)
        self.bytes = sum(self._sizes.values())
        self._places: dict[str, Place] = {}
        self._written = dict.fromkeys(shapes, 0)
        self._open = contextlib.ExitStack()
        self._files: list[BinaryIO] = []
        self.names = (
            ["model.safetensors"]
            if len(shards) == 1
            else [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
        )
        with contextlib.ExitStack() as on_error:
            on_error.callback(self._open.close)
            for number, (file_name, names) in enumerate(zip(self.names, shards, strict=True)):
                file = self._open.enter_context(open(folder / file_name, "wb"))
                self._files.append(file)
                self._lay_down(file, number, {name: shapes[name] for name in names})
            on_error.pop_all()

    def __enter__(self) -> "SafetensorsWriter":
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def write(self, name: str, part: np.ndarray, first_row: int = 0) -> None:
        """Writes rows of a tensor, from index `first_row` of its first axis on; `part` has the writer's dtype."""
        place = self._places[name]
        row = math.prod(place.shape[1:]) * self.dtype.itemsize
        content = np.ascontiguousarray(part).view(np.uint8).reshape(-1).data
        file = self._files[place.shard]
        file.seek(place.start + first_row * row)
        file.write(content)
        self._written[name] += len(content)

    def finish(self) -> None:
        """Closes the files, whole on disk, and writes the index.

        Raises:
          HuatuoError: a tensor was not written, or not all of it.
        """
        torn = [name for name, size in self._sizes.items() if self._written[name] != size]
        if torn:
            raise HuatuoError(f"{len(torn)} tensors of {self.folder} were not written whole, such as {torn[0]}")
        for file in self._files:
            file.flush()
            os.fsync(file.fileno())
        self._open.close()
        if len(self.names) > 1:
            weight_map = {name: self.names[place.shard] for name, place in self._places.items()}
            write_json(self.folder / INDEX, {"metadata": {"total_size": self.bytes}, "weight_map": weight_map})

    def _lay_down(self, file: BinaryIO, number: int, shapes: Mapping[str, tuple[int, ...]]) -> None:
        kind = next(name for name, dtype in DTYPES.items() if dtype == self.dtype)
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name, shape in shapes.items():
            start, end = end, end + self._sizes[name]
            header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [start, end]}
        text = json.dumps(header, separators=(",", ":")).encode("utf-8")
        # Padded, so that tensors are aligned in the mapped file.
        text += b" " * (-len(text) % 8)
        file.write(len(text).to_bytes(8, "little") + text)
        begin = 8 + len(text)
        file.truncate(begin + end)
        self._places |= {n: Place(number, begin + header[n]["data_offsets"][0], shape) for n, shape in shapes.items()}


def _divide(sizes: Mapping[str, int], max_shard_size: int) -> list[list[str]]:
    """Names in order, as many a shard as fit."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > max_shard_size:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards
