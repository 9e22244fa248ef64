"""Random models whose likeliest token changes from step to step, and their greedy answers without any cache."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from huatuo_jax.config import ModelConfig
from huatuo_jax.models.params import abstract_params, init_params, split_decoder
from huatuo_jax.models.presets import preset
from huatuo_jax.sharding import param_shardings

MARGIN = 1e-4
"""Two logits nearer than this may swap by rounding alone."""


def random_model(name: str, **changes: Any) -> tuple[ModelConfig, dict[str, Any]]:
    """A preset with two layers and wide weights."""
    config = preset(name, **{"initializer_range": 0.2, "num_layers": 2, **changes})
    return config, jax.jit(lambda key: init_params(config, key))(jax.random.key(3))


def sharded_params(config: ModelConfig, seed: int, mesh: jax.sharding.Mesh) -> tuple[Any, dict[str, Any]]:
    """(graphdef, params) of a random model as `build_step` makes them: every device makes only its own part."""
    make = jax.jit(lambda key: init_params(config, key), out_shardings=param_shardings(abstract_params(config), mesh))
    return split_decoder(config), make(jax.random.key(seed))


class Uncached:
    """One whole forward pass per token, of the row alone."""

    def __init__(self, config: ModelConfig, params: Any, length: int = 128) -> None:
        model = nnx.merge(split_decoder(config), params)
        index = jnp.arange(length)[None]
        self._length = length
        self._logits = jax.jit(lambda tokens, n: model.logits(model(tokens[None], index, (index < n).astype(jnp.int32)))[0])

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        """fp32 [len(tokens), V]."""
        padded = np.zeros(self._length, np.int32)
        padded[: len(tokens)] = tokens
        return np.asarray(self._logits(padded, len(tokens)))[: len(tokens)]

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
