"""Random models whose likeliest token changes from step to step: greedy answers without a cache, and tensors by HF name."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from huatuo_jax.config import ModelConfig
from huatuo_jax.models.decoder import Params, abstract_params, init_params, split_decoder
from huatuo_jax.models.presets import preset
from huatuo_jax.sharding import param_shardings
from huatuo_jax.weights.checkpoint import named_leaves
from huatuo_jax.weights.hf_names import Layout, NameRow, tensors

MARGIN = 1e-4
"""Two logits nearer than this may swap by rounding alone."""


def random_params(config: ModelConfig, spread: float = 0.15, seed: int = 0) -> Params:
    """Parameters far from their initialisation, so that no norm is 1 and no bias 0; drawn by numpy, which compiles nothing."""
    draw = np.random.default_rng(seed)
    around = lambda path: 1.0 if path[-1].key.endswith("norm") else 0.0
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.asarray(draw.normal(around(path), spread, leaf.shape).astype(np.float32)), abstract_params(config)
    )


def random_model(name: str, **changes: Any) -> tuple[ModelConfig, Params]:
    """A preset with two layers and wide weights."""
    config = preset(name, **{"num_layers": 2, **changes})
    return config, random_params(config, spread=0.2)


def sharded_params(config: ModelConfig, seed: int, mesh: jax.sharding.Mesh) -> tuple[Any, Params]:
    """(graphdef, params) of a random model as `build_step` makes them: every device makes only its own part."""
    make = jax.jit(lambda key: init_params(config, key), out_shardings=param_shardings(abstract_params(config), mesh))
    return split_decoder(config), make(jax.random.key(seed))


@functools.partial(jax.jit, static_argnums=0)
def _logits(config: ModelConfig, params: Params, tokens: jax.Array, segment_ids: jax.Array) -> jax.Array:
    model = nnx.merge(split_decoder(config), params)
    return model.logits(model(tokens, jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape), segment_ids))


def logits_of(config: ModelConfig, params: Params, tokens: np.ndarray) -> np.ndarray:
    """fp32 [B, S, V], of int [B, S]: one plain forward pass, compiled once for all tests of a config and shape."""
    return np.asarray(_logits(config, params, tokens, np.ones_like(tokens)))


class Uncached:
    """One whole forward pass per token, of the row alone."""

    def __init__(self, config: ModelConfig, params: Params, length: int = 128) -> None:
        self._config, self._params, self._length = config, params, length

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        """fp32 [len(tokens), V]."""
        padded, segments = np.zeros((2, 1, self._length), np.int32)
        padded[0, : len(tokens)], segments[0, : len(tokens)] = tokens, 1
        return np.asarray(_logits(self._config, self._params, padded, segments))[0, : len(tokens)]

    def greedy(self, prompt: Sequence[int], new_tokens: int) -> list[int]:
        """The likeliest next tokens."""
        tokens = list(prompt)
        for _ in range(new_tokens):
            tokens.append(int(self.logits(tokens)[-1].argmax()))
        return tokens[len(prompt) :]

    def assert_greedy(self, prompt: Sequence[int], answer: Sequence[int], margin: float = MARGIN) -> None:
        """Every token of the answer is the likeliest after those before it, or nearer than `margin` to it."""
        logits = self.logits([*prompt, *answer])[len(prompt) - 1 : -1]
        behind = logits.max(axis=1) - np.take_along_axis(logits, np.array(answer)[:, None], axis=1)[:, 0]
        assert behind.max() <= margin, f"token {int(behind.argmax())} is {behind.max()} behind the likeliest"


def hf_tensors(config: ModelConfig, params: Any, layout: Layout) -> dict[str, np.ndarray]:
    """The tensors of a Hugging Face folder that holds these parameters."""
    arrays = {name: np.asarray(array) for name, array in named_leaves(params).items()}

    def part(row: NameRow, layer: int) -> np.ndarray:
        return row.to_theirs(arrays[row.ours][layer] if row.per_layer else arrays[row.ours])

    return {
        name: np.ascontiguousarray(np.concatenate([part(row, layer) for row, layer in parts]))
        for name, parts in tensors(config, layout).items()
    }
