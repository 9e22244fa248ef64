"""Quantisation to 8 or 4 bits while a model is loaded, one array or one layer at a time, so that it is never whole in both forms.

    quantizer = Quantizer(config, parse_quantization("int4"), jnp.bfloat16)
    quantizer.check(mesh)                                        # before anything is read
    params = load_params(weights, mesh, convert=quantizer)       # or StoredModel.params(…, convert=quantizer)
    engine = Engine(quantizer.quantized_config, params, …)

On the way from the disk to an engine (`--quantize`). What must hold: what does not divide is refused before anything is read, and
a broken weight stays visible. Next to read: `models/numerics.py`, which multiplies by the result. Weights alone are quantised,
symmetrically, to the nearest integer: w ≈ q · s. The arithmetic is qwix's, and so is the array type `QArray`: q = `qvalue` int8
or int4, s = `scale` fp32, of q's rank. An error is at most s / 2.

    int8       a scale per output of a projection: s = max |w| / 127.5 over all that the output sums
    int4:G     a scale per output and G consecutive summands (default 64): s = max |w| / 7.5 over them
    both       embedding and head int8, a scale per token (s = max |w| / 127.5 over its row)
    untouched  norms and biases

The summands of the attention's output are heads × head_dim, so a group may be part of a head or several heads. A NormHead becomes
a linear head of normalised rows. Quantised models are not trained: integers have no gradient.
"""

import dataclasses
import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import qwix
from jax.sharding import Mesh

from huatuo_jax.config import ModelConfig, require
from huatuo_jax.models.decoder import abstract_params
from huatuo_jax.models.numerics import row_lengths
from huatuo_jax.sharding import param_shardings
from huatuo_jax.weights.checkpoint import named_leaves

DEFAULT_GROUP = 64
FORMS = "int8, int4 or int4:GROUP, such as int4:128"

SUMMED_AXES: dict[str, tuple[int, ...]] = {
    "embedding": (-1,),
    "head": (-1,),
    "layers.attention.query": (-3,),
    "layers.attention.key": (-3,),
    "layers.attention.value": (-3,),
    "layers.attention.output": (-3, -2),
    "layers.ffn.gate": (-2,),
    "layers.ffn.up": (-2,),
    "layers.ffn.down": (-2,),
}
"""The parameters that are quantised, and their axes that share scales: those that a product sums over (of a looked-up embedding:
its row). They count from the end, so that a layer axis may stand in front."""


@dataclass(frozen=True)
class Quantization:
    """What the projections become.

    Attributes:
      bits: 8 or 4.
      group: consecutive summands that share a scale; None = all of them.
    """

    bits: int
    group: int | None = None


def parse_quantization(text: str) -> Quantization:
    """`--quantize`: "int8", "int4" or "int4:GROUP". Raises ConfigError for anything else."""
    kind, colon, group = text.partition(":")
    if kind == "int8" and not colon:
        return Quantization(8)
    require(kind == "int4", f"no quantization {text!r}; there are {FORMS}")
    if not colon:
        return Quantization(4, DEFAULT_GROUP)
    require(group.isdecimal() and int(group) >= 2, f"the group of {text!r} is not a whole number from 2 on; write {FORMS}")
    return Quantization(4, int(group))


@dataclass(frozen=True)
class Quantizer:
    """Quantises the parameters of one model, each as it arrives.

    Attributes:
      config: of the model as stored.
      quantization: what its projections become.
      dtype: of the parameters that are not quantised.
    """

    config: ModelConfig
    quantization: Quantization
    dtype: Any = jnp.float32

    @property
    def quantized_config(self) -> ModelConfig:
        """Of the quantised model: its head is linear."""
        return dataclasses.replace(self.config, head="linear")

    def check(self, mesh: Mesh | None = None) -> None:
        """Raises ConfigError for a group that does not divide its axes, or whose scales do not divide over the mesh."""
        # On shapes alone: nothing is read, so a wrong group costs no minutes.
        abstract = abstract_params(self.config)
        leaves = {name: leaf for name, leaf in named_leaves(abstract).items() if name in SUMMED_AXES}
        for name, leaf in leaves.items():
            self._tiles(name, leaf.shape)
        if mesh is None:
            return
        shardings = named_leaves(param_shardings(abstract, mesh))
        for name, leaf in leaves.items():
            scales = jax.eval_shape(partial(self, name), leaf).scale.shape
            for size, axis, entry in zip(scales, leaf.axes, shardings[name].spec, strict=True):
                parts = math.prod(mesh.shape[part] for part in (entry if isinstance(entry, tuple) else (entry,)) if part)
                require(
                    size == 1 or size % parts == 0,
                    f"{name}: groups of {self.quantization.group} make {size} scales along {axis}, which do not divide over the "
                    f"{parts} devices of mesh axis {entry}; choose a smaller group or another mesh",
                )

    def __call__(self, name: str, array: jax.Array) -> jax.Array | qwix.QArray:
        """A parameter, or one layer of it, as it is kept."""
        if name not in SUMMED_AXES:
            return array.astype(self.dtype)
        wide, tiles = array.astype(jnp.float32), self._tiles(name, array.shape)
        dtype = jnp.int4 if self.quantization.bits == 4 and name.startswith("layers.") else jnp.int8
        others = [axis for axis in range(array.ndim) if axis not in tiles]
        # The axes that are summed over share scales, in tiles; every other axis has scales of its own, so that a large output
        # does not coarsen its neighbours.
        kept = qwix.quantize(wide, dtype, channelwise_axes=others, tiled_axes=tiles)
        if name == "head" and self.config.head == "norm":
            # A row divided by its length has the same integers.
            kept = dataclasses.replace(kept, scale=kept.scale / row_lengths(wide))
        # Rounding to integers would hide a broken weight; a broken scale shows in the logits, which the engine refuses.
        return dataclasses.replace(kept, scale=jnp.where(jnp.isfinite(wide).all(), kept.scale, jnp.nan))

    def _tiles(self, name: str, shape: tuple[int, ...]) -> dict[int, int]:
        """Axis → how many of its places share a scale, for the axes that are summed over; a group fills the last one first."""
        summed = [axis % len(shape) for axis in SUMMED_AXES[name]]
        sizes = [shape[axis] for axis in summed]
        group = self.quantization.group if name.startswith("layers.") else None
        # Output projection [heads 8, head_dim 16, …] with groups of 64: 16 fill head_dim, and 64 / 16 = 4 heads share a scale.
        left, tiles = group or math.prod(sizes), {}
        for axis in reversed(summed):
            tiles[axis] = min(left, shape[axis])
            require(
                shape[axis] % tiles[axis] == 0 == left % tiles[axis] and (axis != summed[0] or left == tiles[axis]),
                f"{name}: a group of {group} does not divide the {' × '.join(map(str, sizes))} weights of an output (axes "
                f"{' × '.join(self._axis_names(name))}); choose a group that divides {sizes[-1]}",
            )
            left //= tiles[axis]
        return tiles

    def _axis_names(self, name: str) -> list[str]:
        axes = named_leaves(abstract_params(self.config))[name].axes
        return [axes[axis] for axis in SUMMED_AXES[name]]


def dequantize(params: Any) -> Any:
    """The parameters as plain arrays, fp32 where they were quantised."""
    return jax.tree.map(
        lambda leaf: qwix.dequantize(leaf) if isinstance(leaf, qwix.QArray) else leaf,
        params,
        is_leaf=lambda leaf: isinstance(leaf, qwix.QArray),
    )


def stored_bytes(tree: Any) -> int:
    """Bytes that the arrays of a tree take, counted once however they are sharded; two int4 share a byte."""

    def bits(leaf: jax.Array) -> int:
        return jnp.iinfo(leaf.dtype).bits if jnp.issubdtype(leaf.dtype, jnp.integer) else 8 * leaf.dtype.itemsize

    return sum(leaf.size * bits(leaf) // 8 for leaf in jax.tree.leaves(tree))
