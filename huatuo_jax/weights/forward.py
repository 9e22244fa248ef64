"""A directory and lists of token ids in, logits out: our checkpoints and Hugging Face folders alike, row by row.

The plain forward pass of training, without cache or engine: what other programs' logits are held against.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from huatuo_jax.config import ModelConfig, require
from huatuo_jax.errors import DataError
from huatuo_jax.io.files import PathLike
from huatuo_jax.models.attention import resolve_attention
from huatuo_jax.models.params import split_decoder
from huatuo_jax.weights.checkpoint import is_checkpoint, restore_params
from huatuo_jax.weights.hf_config import Answers, read_config, refuse_answers
from huatuo_jax.weights.hf_read import load_params, open_weights

ROW_BUCKET = 64
"""Rows are padded to a multiple of it, so that few lengths are compiled."""


def load_any(
    path: PathLike, placement: Mesh | None = None, dtype: Any = jnp.float32, **answers: Unpack[Answers]
) -> tuple[ModelConfig, dict[str, Any]]:
    """The model and parameters of a run or base directory, one of its checkpoints, or a Hugging Face folder.

    Args:
      answers: of `read_config`, for a Hugging Face folder.

    Raises:
      ConfigError: nothing of that kind is there, or `answers` are given of a checkpoint.
      DataError: it is torn, altered or incomplete.
    """
    folder = Path(path)
    if is_checkpoint(folder):
        refuse_answers(path, answers)
        return restore_params(path, placement, dtype)[:2]
    config = read_config(folder, **answers)
    return config, load_params(open_weights(folder, config), placement, dtype)


def check_rows(config: ModelConfig, rows: Sequence[Sequence[int]]) -> None:
    """Raises ConfigError unless every row is a list of at least one id of the vocabulary and fits the context."""
    require(len(rows) > 0, "there are no rows of tokens; give at least one")
    for index, row in enumerate(rows):
        whole = isinstance(row, list | tuple) and all(isinstance(i, int) and not isinstance(i, bool) for i in row)
        require(whole and len(row) > 0, f"row {index} is not a list of token ids with at least one of them")
        require(
            min(row) >= 0 and max(row) < config.vocab_size,
            f"row {index} has a token id outside 0…{config.vocab_size - 1}, the vocabulary of {config.name}",
        )
        require(
            len(row) <= config.max_length,
            f"row {index} has {len(row)} tokens, above the context of {config.name}, {config.max_length}; cut it",
        )


def row_logits(config: ModelConfig, params: Any, rows: Sequence[Sequence[int]], dtype: Any = jnp.float32) -> Iterator[np.ndarray]:
    """fp32 logits [tokens, vocabulary] of each row alone.

    Args:
      rows: token ids; checked as `check_rows` does.
      dtype: of activations and matrix products.

    Raises:
      DataError: as `check_finite`.
    """
    check_rows(config, rows)
    attention = resolve_attention("auto", config, jax.default_backend())
    forward = _compiled(split_decoder(config), jnp.dtype(dtype), attention)
    for index, row in enumerate(rows):
        length = -(-len(row) // ROW_BUCKET) * ROW_BUCKET
        tokens, segments = np.zeros((2, 1, length), np.int32)
        tokens[0, : len(row)], segments[0, : len(row)] = row, 1
        logits = np.asarray(forward(params, tokens, segments))[0, : len(row)]
        check_finite(logits, index, config.name)
        yield logits


def check_finite(logits: np.ndarray, row: int, model: str) -> None:
    """Raises DataError, which names the first such position, if a logit [tokens, vocabulary] is NaN or infinite."""
    finite = np.isfinite(logits).all(axis=-1)
    if finite.all():
        return
    position = int(finite.argmin())
    bad = int((~np.isfinite(logits[position])).sum())
    raise DataError(
        f"row {row}, position {position}: {bad} of the {logits.shape[-1]} logits of {model} are NaN or infinite; its weights are "
        "broken or too large: take an earlier checkpoint, or fetch the folder again"
    )


def _compiled(graphdef: nnx.GraphDef[Any], dtype: Any, attention: str) -> Any:
    def forward(params: Any, tokens: jax.Array, segments: jax.Array) -> jax.Array:
        decoder = nnx.merge(graphdef, params)
        positions = jnp.arange(tokens.shape[1])[None]
        return decoder.logits(decoder(tokens, positions, segments, dtype=dtype, attention=attention))

    return jax.jit(forward)
