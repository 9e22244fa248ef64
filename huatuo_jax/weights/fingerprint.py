"""A short fingerprint of every array of a pytree, computed where the array lies: in goes a tree, out come hex sums by name.

Orbax notices missing and truncated files, not altered bytes. A sum modulo 2³² of the mixed bits of all elements notices every
single altered element, and swapped ones too, because the mixing depends on the position. It depends neither on the sharding nor
on the number of devices, so a checkpoint verifies on any mesh.
"""

import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

_BIT_TYPES = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}


def named_leaves(tree: Any) -> dict[str, Any]:
    """The leaves of a pytree by their dotted path, e.g. "layers.attention.query"; independent of the container classes."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def fingerprints(arrays: Mapping[str, jax.Array]) -> dict[str, str]:
    """Name → "dtype[shape]:sum", the sum as 8 hex digits. One pass over the arrays, on their devices.

    All processes call it together; all get the same answer.
    """
    if not arrays:
        return {}
    # One after the other: a compiler that does not fuse the sum, as on CPU, holds the bits of one array, not of all.
    mixed_sum = _compiled(_replicated(arrays))
    return {name: f"{describe(array)}:{int(np.asarray(mixed_sum(array))):08x}" for name, array in arrays.items()}


def describe(array: Any) -> str:
    """ "dtype[shape]" of an array or of its abstract form."""
    return f"{jnp.dtype(array.dtype).name}[{','.join(map(str, array.shape))}]"


def _replicated(arrays: Mapping[str, jax.Array]) -> NamedSharding | None:
    for array in arrays.values():
        if isinstance(sharding := getattr(array, "sharding", None), NamedSharding):
            return NamedSharding(sharding.mesh, PartitionSpec())
    return None


@functools.lru_cache(maxsize=8)
def _compiled(out_sharding: NamedSharding | None) -> Any:
    return jax.jit(_mixed_sum, out_shardings=out_sharding)


def _mixed_sum(array: jax.Array) -> jax.Array:
    if array.dtype == jnp.bool_:
        array = array.astype(jnp.uint8)
    bits = jax.lax.bitcast_convert_type(array, _BIT_TYPES[array.dtype.itemsize]).astype(jnp.uint32)
    index = jnp.zeros(bits.shape, jnp.uint32)
    for axis in range(bits.ndim):
        stride = math.prod(bits.shape[axis + 1 :]) % 2**32
        index += jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis) * jnp.uint32(stride)
    return jnp.sum(_mix(bits + index * jnp.uint32(0x9E3779B9)), dtype=jnp.uint32)


def _mix(x: jax.Array) -> jax.Array:
    """The finaliser of MurmurHash3: a bijection of 32-bit words, so one altered element always alters the sum."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
