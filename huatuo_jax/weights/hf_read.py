"""A Hugging Face folder in, our parameters out: each tensor goes from the mapped file to where it will live, one at a time.

    weights = open_weights(folder, read_config(folder))      # names and shapes are checked; nothing is read yet
    params = load_params(weights, mesh, jnp.bfloat16)        # the tree of `huatuo_jax.models.decoder`, sharded
    weights.layer(row, 3)                                    # or layer by layer, in numpy

Host memory above the mapped file and the parameters themselves stays under two tensors: a device gets its own slice of the mapped
bytes, turns its axes, and writes it into the stacked parameter in place.
"""

import math
import re
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from huatuo_jax.config import ModelConfig
from huatuo_jax.errors import DataError
from huatuo_jax.io.files import PathLike
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


def count_parts(weights: HFWeights) -> int:
    """How many parts of tensors `load_params` reads."""
    return sum(weights.config.num_layers if row.per_layer else 1 for row in weights.rows)


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
