"""A Hugging Face folder in, our parameters out: each tensor goes from the mapped file to where it will live, one at a time.

    weights = open_weights(folder, read_config(folder))      # names and shapes are checked; nothing is read yet
    params = load_params(weights, mesh, jnp.bfloat16)        # the tree of `huatuo_jax.models.decoder`, sharded
    weights.layer(row, 3)                                    # or layer by layer, in numpy

Host memory above the mapped file and the parameters themselves stays under two tensors: a device gets its own slice of the mapped
bytes, turns its axes, and writes it into the stacked parameter in place.
"""

import functools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from huatuo_jax.config import ModelConfig
from huatuo_jax.errors import DataError
from huatuo_jax.io.files import PathLike
from huatuo_jax.models.params import Convert, abstract_params, cast, converted, converted_shardings
from huatuo_jax.sharding import shardings_of, with_shardings
from huatuo_jax.weights.fingerprint import named_leaves
from huatuo_jax.weights.hf_names import Layout, Row, native_layout, table, tensors
from huatuo_jax.weights.tensor_files import TensorFiles, open_tensors

WITHOUT_USE = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.(inv_freq|cos_cached|sin_cached)")
"""Tables of RoPE that old folders hold beside the weights; they are computed here."""

LISTED = 10
"""Tensors named in an error, of each kind."""


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

    def dtype(self, row: Row) -> np.dtype:
        """The narrower of float32 and bfloat16 that holds all layers of a parameter exactly; float16 needs float32."""
        found = {self.files.tensors[name].dtype for name in self._names(row)}
        return np.dtype(jnp.bfloat16) if found == {np.dtype(jnp.bfloat16)} else np.dtype(np.float32)

    def size(self, dtype: Any = None) -> int:
        """Bytes of all parameters in `dtype`; None = each in `self.dtype`."""
        layers = self.config.num_layers
        return sum(
            math.prod(row.shape) * (layers if row.per_layer else 1) * np.dtype(dtype or self.dtype(row)).itemsize
            for row in self.rows
        )

    def part(self, row: Row, layer: int = 0) -> np.ndarray:
        """One layer of a parameter in their order of axes, shaped `row.view`; a view of the mapped file."""
        return row.part(self.files.read(row.theirs.format(layer=layer)))

    def layer(self, row: Row, layer: int = 0) -> np.ndarray:
        """One layer of a parameter as ours, shaped `row.shape`, in the file's dtype; a view of the mapped file."""
        return self.part(row, layer).transpose(row.axes)

    def _names(self, row: Row) -> list[str]:
        return [row.theirs.format(layer=layer) for layer in range(self.config.num_layers if row.per_layer else 1)]


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


def load_params(
    weights: HFWeights,
    placement: Mesh | Sharding | None = None,
    dtype: Any = jnp.float32,
    advance: Callable[[], None] = lambda: None,
    convert: Convert | None = None,
) -> dict[str, Any]:
    """Reads all parameters to where `placement` puts them.

    Args:
      placement: a mesh (sharded by the rules of `huatuo_jax.sharding`), one sharding for all arrays, or None = the first device.
      dtype: of the parameters; None = each as `HFWeights.dtype` says, which changes no number.
      advance: called after each tensor part, `count_parts(weights)` times.
      convert: what is kept of each part instead, made as it arrives; hashable. Quantises a model that would not fit whole.

    Returns:
      Nested dictionaries, the tree of `huatuo_jax.models.decoder`. Every process of several calls it and reads only its own part.
    """
    abstract = abstract_params(weights.config)
    leaves = named_leaves(with_shardings(abstract, shardings_of(abstract, placement)))
    loaded: dict[str, Any] = {}
    for row in weights.rows:
        leaf = leaves[row.ours]
        wanted = jnp.dtype(weights.dtype(row) if dtype is None else dtype)
        if row.per_layer:
            kept = _zeros(row.ours, leaf, wanted, convert)()
            write = _write_layer(row.ours, row.axes, leaf, wanted, convert)
            for layer in range(weights.config.num_layers):
                part = _on_devices(weights.part(row, layer), row, leaf.sharding)
                kept = jax.block_until_ready(write(kept, np.int32(layer), part))
                del part
                advance()
        else:
            # Embedding, head and final norm: the order of axes is the same.
            array = _on_devices(weights.part(row), row, leaf.sharding)
            kept = cast(array, wanted) if convert is None else converted(convert, row.ours, array)
            advance()
        loaded[row.ours] = kept
    return jax.tree.unflatten(jax.tree.structure(abstract), [loaded[name] for name in named_leaves(abstract)])


def count_parts(weights: HFWeights) -> int:
    """How many parts of tensors `load_params` reads."""
    return sum(weights.config.num_layers if row.per_layer else 1 for row in weights.rows)


def _on_devices(part: np.ndarray, row: Row, sharding: Sharding) -> jax.Array:
    """A part of a mapped tensor, [view], each device with the slice that it needs; the host holds one slice at a time."""
    theirs = _sharding_of_view(sharding, row)
    slices = [
        jax.device_put(np.ascontiguousarray(part[index]), device).block_until_ready()
        for device, index in theirs.addressable_devices_indices_map(part.shape).items()
    ]
    return jax.make_array_from_single_device_arrays(part.shape, theirs, slices)


def _sharding_of_view(sharding: Sharding, row: Row) -> Sharding:
    """The sharding of a parameter's layer with its axes in their order."""
    if not isinstance(sharding, NamedSharding):
        return sharding
    ours = (*sharding.spec, *[None] * (len(row.axes) + row.per_layer - len(sharding.spec)))[int(row.per_layer) :]
    theirs = [ours[row.axes.index(axis)] for axis in range(len(row.axes))]
    return NamedSharding(sharding.mesh, PartitionSpec(*theirs))


@functools.lru_cache(maxsize=64)
def _zeros(name: str, leaf: jax.ShapeDtypeStruct, dtype: Any, convert: Convert | None) -> Any:
    """() → what is kept of a stacked parameter, all zeros."""
    keep = convert or _cast_to(dtype)
    shapes = jax.eval_shape(functools.partial(keep, name), leaf)
    make = lambda: jax.tree.map(lambda kept: jnp.zeros(kept.shape, kept.dtype), shapes)
    return jax.jit(make, out_shardings=converted_shardings(keep, name, leaf))


@functools.lru_cache(maxsize=64)
def _write_layer(name: str, axes: tuple[int, ...], leaf: jax.ShapeDtypeStruct, dtype: Any, convert: Convert | None) -> Any:
    """(what is kept of a stacked parameter, layer, part [view]) → the same, in place, with that layer set."""
    keep = convert or _cast_to(dtype)

    def write(stacked: Any, layer: jax.Array, part: jax.Array) -> Any:
        fresh = keep(name, part.transpose(axes))
        return jax.tree.map(lambda all, one: jax.lax.dynamic_update_index_in_dim(all, one, layer, 0), stacked, fresh)

    return jax.jit(write, donate_argnums=0, out_shardings=converted_shardings(keep, name, leaf))


def _cast_to(dtype: Any) -> Convert:
    return lambda name, array: array.astype(dtype)


def _check(config: ModelConfig, layout: Layout, files: TensorFiles) -> None:
    """All that is wrong with the names, shapes and dtypes of a folder, in one error."""
    wanted = {name: rows[0].their_shape for name, rows in tensors(config, layout).items()}
    found = {name: info for name, info in files.tensors.items() if not WITHOUT_USE.fullmatch(name)}
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
