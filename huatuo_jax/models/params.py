"""The model's parameters as a tree: abstract (shapes, dtypes, logical axes), before anything is allocated."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from huatuo_jax.config import ModelConfig
from huatuo_jax.models.decoder import abstract_decoder
from huatuo_jax.sharding import ParamSpec

Params = dict[str, Any]
"""A tree of parameters: nested dicts by name, whose leaves are arrays (or what stands for them: shapes, shardings, sums)."""


def abstract_params(config: ModelConfig, param_dtype: Any = jnp.float32) -> dict[str, Any]:
    """The model's parameters as a nested dict of `ParamSpec`; nothing is allocated."""
    model = abstract_decoder(config, param_dtype)
    return _describe(model)


def _describe(node: Any) -> dict[str, Any]:
    def leaf(param: Any) -> ParamSpec:
        value = param.get_value()
        return ParamSpec(value.shape, value.dtype, param.get_metadata()["axes"])

    state = nnx.state(node, nnx.Param)
    specs = jax.tree.map(leaf, state, is_leaf=lambda x: isinstance(x, nnx.Variable))
    return nnx.to_pure_dict(specs)
