"""Weights onto devices: from one of our checkpoints (`restore_params`) or from a Hugging Face folder (`load_params`).

The last stop before training, inference or a comparison; `huatuo_jax.weights.open` calls both. Either way a model that does not
fit whole can be quantised as it arrives: `convert` replaces each parameter before the next one is read.

What must hold: host memory above the mapped file and the parameters themselves stays under two tensors. A device gets its own
slice of the mapped bytes, turns its axes, and writes it into the stacked parameter in place.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding
from jax.typing import DTypeLike

from huatuo_jax.config import ModelConfig
from huatuo_jax.models.decoder import Convert, Params, abstract_params, cast, converted, converted_shardings
from huatuo_jax.sharding import shardings_of, with_shardings
from huatuo_jax.weights.checkpoint import as_stored, check_same_arrays, named_leaves, read_array, read_item
from huatuo_jax.weights.hf_names import NameRow
from huatuo_jax.weights.hf_read import HFWeights


def restore_params(
    folder: epath.Path,
    config: ModelConfig,
    meta: Mapping[str, Any],
    placement: Mesh | Sharding | None = None,
    dtype: DTypeLike | None = jnp.float32,
    convert: Convert | None = None,
) -> Params:
    """The verified parameters of one checkpoint; arguments as of `StoredModel.params`.

    What is stored in another dtype is verified as stored, then cast.

    Raises:
      ConfigError: the checkpoint holds other arrays than the model has. DataError: it is torn or altered.
    """
    abstract = abstract_params(config)
    leaves = as_stored(named_leaves(with_shardings(abstract, shardings_of(abstract, placement))), meta)
    if convert is None:
        arrays = read_item(folder, "params", leaves, meta)
        params = arrays if dtype is None else {name: cast(array, dtype) for name, array in arrays.items()}
    else:
        check_same_arrays(folder, leaves, meta["fingerprints"]["params"])
        # One by one: the largest parameter (all layers of one projection) exists once as stored, the others as converted.
        params = {n: converted(convert, n, read_array(folder, "params", n, leaf, meta)) for n, leaf in leaves.items()}
    return jax.tree.unflatten(jax.tree.structure(abstract), [params[name] for name in leaves])


def load_params(
    weights: HFWeights,
    placement: Mesh | Sharding | None = None,
    dtype: DTypeLike | None = jnp.float32,
    advance: Callable[[int, int], None] = lambda done, total: None,
    convert: Convert | None = None,
) -> Params:
    """The parameters of a Hugging Face folder; arguments as of `StoredModel.params`. Each of several processes reads its part.

    Args:
      dtype: None = each parameter as `HFWeights.dtype` says, which changes no number.
      advance: called after each part of a tensor as (parts read, parts in all).
      convert: called with each part as it arrives; hashable.
    """
    abstract = abstract_params(weights.config)
    leaves = named_leaves(with_shardings(abstract, shardings_of(abstract, placement)))
    params: Params = {}
    done, total = 0, weights.count_parts()
    for row in weights.rows:
        leaf = leaves[row.ours]
        wanted = jnp.dtype(weights.dtype(row) if dtype is None else dtype)
        if row.per_layer:
            params[row.ours] = _zeros(row.ours, leaf, wanted, convert)()
            write = _write_layer(row, leaf, wanted, convert)
        for layer in range(weights.layers(row)):
            part = _on_devices(weights.part(row, layer), row, leaf.sharding)
            if row.per_layer:
                params[row.ours] = jax.block_until_ready(write(params[row.ours], np.int32(layer), part))
            elif convert is None:  # embedding, head and final norm: the axes stand in our order
                params[row.ours] = cast(part, wanted)
            else:
                params[row.ours] = converted(convert, row.ours, part)
            del part  # before the next one is read
            done += 1
            advance(done, total)
    return jax.tree.unflatten(jax.tree.structure(abstract), [params[name] for name in leaves])


def _on_devices(part: np.ndarray, row: NameRow, sharding: Sharding) -> jax.Array:
    """A part of a mapped tensor, [view], each device with the slice that it needs; the host holds one slice at a time."""
    theirs = _sharding_of_view(sharding, row)
    slices = [
        jax.device_put(np.ascontiguousarray(part[index]), device).block_until_ready()
        for device, index in theirs.addressable_devices_indices_map(part.shape).items()
    ]
    return jax.make_array_from_single_device_arrays(part.shape, theirs, slices)


def _sharding_of_view(sharding: Sharding, row: NameRow) -> Sharding:
    """The sharding of a parameter's layer with its axes in their order."""
    if not isinstance(sharding, NamedSharding):
        return sharding
    # Example: layers.attention.query [L, D, N, H] is sharded (None, fsdp, tensor, None). In the file one layer of it is a view
    # [N, H, D] (axes (2, 0, 1)), so its sharding there is (tensor, None, fsdp): a device reads its own heads and columns alone.
    ours = (*sharding.spec, *[None] * (len(row.axes) + row.per_layer - len(sharding.spec)))[int(row.per_layer) :]
    theirs = [ours[row.axes.index(axis)] for axis in range(len(row.axes))]
    return NamedSharding(sharding.mesh, PartitionSpec(*theirs))


@functools.lru_cache(maxsize=64)
def _zeros(name: str, leaf: jax.ShapeDtypeStruct, dtype: DTypeLike, convert: Convert | None) -> Callable[[], Any]:
    """() → what is kept of a stacked parameter, all zeros."""
    keep = convert or _cast_to(dtype)
    shapes = jax.eval_shape(functools.partial(keep, name), leaf)
    make = lambda: jax.tree.map(lambda kept: jnp.zeros(kept.shape, kept.dtype), shapes)
    return jax.jit(make, out_shardings=converted_shardings(keep, name, leaf))


@functools.lru_cache(maxsize=64)
def _write_layer(row: NameRow, leaf: jax.ShapeDtypeStruct, dtype: DTypeLike, convert: Convert | None) -> Callable[..., Any]:
    """(what is kept of a stacked parameter, layer, part [view]) → the same, in place, with that layer set."""
    # Compiled once a parameter, not once a layer: `layer` is an argument. The old stack is donated, so that it never exists
    # twice.
    keep = convert or _cast_to(dtype)

    def write(stacked: Any, layer: jax.Array, part: jax.Array) -> Any:
        fresh = keep(row.ours, row.to_ours(part))
        return jax.tree.map(lambda all, one: jax.lax.dynamic_update_index_in_dim(all, one, layer, 0), stacked, fresh)

    return jax.jit(write, donate_argnums=0, out_shardings=converted_shardings(keep, row.ours, leaf))


def _cast_to(dtype: DTypeLike) -> Convert:
    return lambda name, array: array.astype(dtype)
