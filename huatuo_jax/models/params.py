"""The model's parameters as a tree: abstract, initialised, and converted where they lie.

Training, inference, quantisation and export share one tree of nested dicts (its names and shapes: `decoder.py`). Everything that
depends on shapes alone (shardings, memory, what a checkpoint must hold) is derived from `abstract_params` before anything is
allocated. What must hold: the abstract tree and the initialised one have the same names, shapes and dtypes, for both come from
one constructor. Next to read: `sharding.py`, `weights/load.py`. A `Decoder` meets its parameters inside a jitted function:
`nnx.merge(split_decoder(config), params)`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec, Sharding
from jax.typing import DTypeLike

from huatuo_jax.config import ModelConfig
from huatuo_jax.models.decoder import Decoder
from huatuo_jax.sharding import ParamSpec

Params = dict[str, Any]
"""A tree of parameters: nested dicts by name, whose leaves are arrays (or what stands for them: shapes, shardings, sums)."""


def init_params(config: ModelConfig, key: jax.Array, param_dtype: DTypeLike = jnp.float32) -> Params:
    """Random parameters from a `jax.random.key`; jit it with out_shardings, so that every device makes its own part only."""
    return nnx.to_pure_dict(nnx.state(Decoder(config, nnx.Rngs(key), param_dtype), nnx.Param))


def abstract_params(config: ModelConfig, param_dtype: DTypeLike = jnp.float32) -> Params:
    """The parameters as a tree of `ParamSpec`; nothing is allocated."""

    def spec(param: Any) -> ParamSpec:
        value = param.get_value()
        return ParamSpec(value.shape, value.dtype, param.get_metadata()["axes"])

    state = nnx.state(_abstract_decoder(config, param_dtype), nnx.Param)
    return nnx.to_pure_dict(jax.tree.map(spec, state, is_leaf=lambda x: isinstance(x, nnx.Variable)))


def split_decoder(config: ModelConfig) -> nnx.GraphDef[Decoder]:
    """The decoder without its arrays: hashable, static under jit."""
    return nnx.split(_abstract_decoder(config, jnp.float32))[0]


def _abstract_decoder(config: ModelConfig, param_dtype: DTypeLike) -> Decoder:
    """With shapes instead of arrays: costs no memory."""
    return nnx.eval_shape(lambda: Decoder(config, nnx.Rngs(0), param_dtype))


# ---------------------------------------------------------------- other dtypes and formats, one parameter at a time


def cast(array: jax.Array, dtype: DTypeLike) -> jax.Array:
    """The array in `dtype`, placed as it was. The original is deleted, so that a model never exists twice."""
    if array.dtype == dtype:
        return array
    wanted = jax.jit(lambda x: x.astype(dtype), out_shardings=array.sharding)(array).block_until_ready()
    array.delete()
    return wanted


Convert = Callable[[str, jax.Array], Any]
"""(dotted name, parameter or one layer of it) → what is kept of it: an array or several, each of the parameter's rank."""


def converted_shardings(convert: Convert, name: str, leaf: jax.ShapeDtypeStruct) -> Any:
    """Where the arrays that `convert` makes of a parameter live: sharded as it is, on axes of size 1 whole."""

    def sharding(kept: jax.ShapeDtypeStruct) -> Sharding:
        if not isinstance(leaf.sharding, NamedSharding):
            return leaf.sharding
        spec = [None if size == 1 else entry for size, entry in zip(kept.shape, leaf.sharding.spec, strict=False)]
        return NamedSharding(leaf.sharding.mesh, PartitionSpec(*spec))

    return jax.tree.map(sharding, jax.eval_shape(partial(convert, name), leaf))


def converted(convert: Convert, name: str, array: jax.Array) -> Any:
    """What `convert` keeps of a parameter, placed as it was. The original is deleted."""
    shardings = converted_shardings(convert, name, jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding))
    if name.startswith("layers."):
        # One layer after another, so that intermediate values of `convert` exist for one layer only: before a loop inside jit,
        # XLA may widen all layers.
        make, take = jax.jit(partial(convert, name)), jax.jit(partial(jax.lax.dynamic_index_in_dim, keepdims=False))
        layers = [jax.block_until_ready(make(take(array, layer))) for layer in range(len(array))]
        array.delete()
        return jax.jit(lambda layers: jax.tree.map(lambda *parts: jnp.stack(parts), *layers), out_shardings=shardings)(layers)
    kept = jax.block_until_ready(jax.jit(partial(convert, name), out_shardings=shardings)(array))
    array.delete()
    return kept
