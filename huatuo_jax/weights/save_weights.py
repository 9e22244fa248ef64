"""A checkpoint's parameters in, `.safetensors` shards of a Hugging Face layout out, array by array.

Host memory holds one parameter of ours at a time (all its layers), and one of its layers in the folder's dtype and order.
"""

import functools
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from huatuo_jax.errors import DataError, DoesNotFitError
from huatuo_jax.weights.hf_names import Layout, Row, tensors
from huatuo_jax.weights.open import StoredModel
from huatuo_jax.weights.safetensors_writer import SafetensorsWriter

DTypeName = Literal["float32", "bfloat16", "float16"]
DTYPES: dict[DTypeName, Any] = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}


class Written(NamedTuple):
    """What was written: bytes of tensors, tensors, files."""

    bytes: int
    tensors: int
    shards: int


def write_weights(
    source: StoredModel,
    layout: Layout,
    dtype: DTypeName,
    folder: Path,
    max_shard_size: int,
    advance: Callable[[int, int], None],
) -> Written:
    """Writes every tensor of the layout. A NormHead goes into any layout but its own with rows normalised in fp32, then cast.

    Args:
      advance: called as (bytes written, bytes in all).

    Raises:
      DataError: a weight is NaN or infinite, or would be in `dtype`; the tensor is named.
      DoesNotFitError: the disk has no room for them.
    """
    theirs = tensors(source.config, layout)
    parts: dict[str, list[Row]] = {}
    for rows in theirs.values():
        for row in rows:
            parts.setdefault(row.ours, []).append(row)
    shapes = {name: rows[0].their_shape for name, rows in theirs.items()}
    needed, free = sum(map(math.prod, shapes.values())) * np.dtype(DTYPES[dtype]).itemsize, shutil.disk_usage(folder).free
    if needed > free:
        raise DoesNotFitError(
            f"the weights take {needed / 1e9:.1f} GB and {folder.parent} has {free / 1e9:.1f} GB left; make room"
        )
    written = 0
    with SafetensorsWriter(folder, shapes, DTYPES[dtype], max_shard_size) as writer:
        for ours, array in source.arrays():
            bake = ours == "head" and source.config.head == "norm" and layout != "baichuan"
            for row in parts[ours]:
                convert = _convert(row.axes, row.their_shape[1:], row.per_layer, dtype, bake)
                part, sound = convert(array, np.int32(row.layer or 0))
                if not sound:
                    raise DataError(_unsound(row, array, dtype))
                writer.write(row.theirs, np.asarray(part), row.start)
                written += part.nbytes
                advance(written, writer.bytes)
            array.delete()
        writer.finish()
        return Written(writer.bytes, len(shapes), len(writer.names))


@functools.lru_cache(maxsize=64)
def _convert(axes: tuple[int, ...], inner: tuple[int, ...], per_layer: bool, dtype: DTypeName, bake: bool) -> Any:
    """(our parameter, layer) → (its part of their tensor in `dtype`, whether all of it is finite); compiled once per kind."""
    order = tuple(np.argsort(axes).tolist())

    def convert(array: jax.Array, layer: jax.Array) -> tuple[jax.Array, jax.Array]:
        if per_layer:
            array = jax.lax.dynamic_index_in_dim(array, layer, keepdims=False)
        if bake:
            wide = array.astype(jnp.float32)
            array = wide / jnp.sqrt(jnp.maximum(jnp.sum(jnp.square(wide), axis=-1, keepdims=True), 1e-24))
        part = array.transpose(order).reshape(-1, *inner).astype(DTYPES[dtype])
        return part, jnp.isfinite(part).all()

    return jax.jit(convert)


def _unsound(row: Row, array: jax.Array, dtype: DTypeName) -> str:
    """Why a tensor is refused: what the checkpoint holds, or what the narrower dtype would make of it."""
    held = np.asarray(array if row.layer is None else array[row.layer])
    bad = held.size - int(np.isfinite(held).sum())
    if bad:
        return f"{row.theirs} ({row.ours}) holds {bad} NaN or infinite weights; export an earlier checkpoint of the run"
    largest = float(np.abs(held).max())
    return f"{row.theirs} holds weights up to {largest:.3g}, beyond the range of {dtype}; use --dtype bfloat16 or float32"
