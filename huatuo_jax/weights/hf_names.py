"""The names table: our parameters ↔ the tensors of a Hugging Face folder, one table that reading and writing share.

A layout is how a folder names and packs its tensors. A Baichuan model with RoPE may be written as "baichuan" or as "llama":

    llama      q_proj, k_proj, v_proj                                  Llama, Yi; Baichuan with RoPE
    baichuan   W_pack = q, k, v stacked in one tensor
    qwen2      as llama, with q, k, v biases
    qwen3      as llama, with q and k norms
    yi         as llama, the norms named ln1 and ln2 (first Yi release): read only

`table(config, layout)` has one `NameRow` for each of our parameters, which says where one layer of it lies in the folder and how
its axes are ordered there. The keys of a Baichuan with hidden size 64 and 4 heads of 16, for example:

    ours          layers.attention.key, one layer [64, 4, 16]
    theirs        model.layers.{layer}.self_attn.W_pack.weight [192, 64], from index 64 on: `start`
    view          (4, 16, 64), that part of the tensor with its heads split (a reshape that copies nothing)
    axes          (2, 0, 1): ours = view.transpose(axes)

    reading (`load.py`)       ours[layer] = row.to_ours(row.part_of(tensor))
    writing (`hf_write.py`)   tensor[row.start : …] = row.to_theirs(ours[layer])

What must hold: the table moves numbers and never changes them, and what a layout has no place for is refused. The rows of a
NormHead pass as they are. `hf_write.py` normalises them where the layout has no NormHead. To read another family, add its layout
here and its fields in `hf_config.py`, which is next to read.
"""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

import jax
import numpy as np

from huatuo_jax.config import ModelConfig, require

DTypeName = Literal["float32", "bfloat16", "float16"]
DTYPE_NAMES: dict[DTypeName, tuple[str, str]] = {
    "float32": ("F32", "torch.float32"),
    "bfloat16": ("BF16", "torch.bfloat16"),
    "float16": ("F16", "torch.float16"),
}
"""The dtypes that are read and written, and what safetensors and torch call them."""

Layout = Literal["llama", "baichuan", "qwen2", "qwen3", "yi"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)

Array = TypeVar("Array", np.ndarray, jax.Array)


@dataclass(frozen=True)
class NameRow:
    """Where one layer of one of our parameters lies in a folder.

    Attributes:
      ours: dotted path in the tree of `huatuo_jax.models.decoder`; "layers.…" are stacked over layers.
      theirs: the tensor's name, with `{layer}` where each layer has a tensor of its own.
      their_shape: of the whole tensor.
      start: index on the tensor's first axis where our part begins.
      view: shape of that part with its heads split.
      axes: the order of the view's axes in our parameter.
    """

    ours: str
    theirs: str
    their_shape: tuple[int, ...]
    start: int
    view: tuple[int, ...]
    axes: tuple[int, ...]

    @property
    def per_layer(self) -> bool:
        """Whether each layer has a tensor of its own."""
        return self.ours.startswith("layers.")

    @property
    def shape(self) -> tuple[int, ...]:
        """Of our parameter, one layer of it."""
        return tuple(self.view[axis] for axis in self.axes)

    def name(self, layer: int = 0) -> str:
        """Of the tensor that holds a layer."""
        return self.theirs.format(layer=layer)

    def part_of(self, tensor: Array) -> Array:
        """This row's part of their tensor, shaped `view`; of a numpy array it is a view."""
        # Rows of their matrix: of W_pack [192, 64] a part of 4 × 16 × 64 numbers takes 64.
        length = math.prod(self.view) // math.prod(self.their_shape[1:])
        return tensor[self.start : self.start + length].reshape(self.view)

    def to_ours(self, part: Array) -> Array:
        """A part shaped `view` → one layer of our parameter; of a numpy array it is a view."""
        return part.transpose(self.axes)

    def to_theirs(self, array: Array) -> Array:
        """One layer of our parameter → the part of their tensor, [part of the first axis, …]."""
        # Sorting a permutation's places gives its inverse.
        return array.transpose(tuple(np.argsort(self.axes))).reshape(-1, *self.their_shape[1:])


# Asked before a folder is written or read: what a layout cannot say would be lost without a trace.
_FEATURES: dict[str, tuple[Callable[[ModelConfig], bool], tuple[Layout, ...]]] = {
    "ALiBi positions": (lambda c: c.positions == "alibi", ("baichuan",)),
    "a NormHead": (lambda c: c.head == "norm", ("baichuan", "llama")),
    "q, k and v biases": (lambda c: c.qkv_bias, ("qwen2",)),
    "q and k norms": (lambda c: c.qk_norm, ("qwen3",)),
    "grouped kv heads": (lambda c: c.num_kv_heads != c.num_heads, ("llama", "yi", "qwen2", "qwen3")),
    "scaled RoPE": (lambda c: c.rope_scaling is not None, ("llama", "yi", "qwen2", "qwen3")),
    "heads that do not make up the hidden size": (
        lambda c: c.num_heads * c.head_dim != c.hidden_size,
        ("llama", "yi", "qwen3"),
    ),
}
"""What a model may have, and the layouts with a place for it."""

# transformers gives every Qwen2 its biases and every Qwen3 its norms, whether the folder holds them or not.
_DEMANDED: dict[str, str] = {"qwen2": "q, k and v biases", "qwen3": "q and k norms"}


def check_layout(config: ModelConfig, layout: str) -> None:
    """Raises ConfigError, with the reason, if `layout` has no place for what the model has, or demands what it lacks."""
    require(layout in LAYOUTS, f"no Hugging Face layout {layout!r}; there are {', '.join(LAYOUTS)}")
    for feature, (has, layouts) in _FEATURES.items():
        require(
            not has(config) or layout in layouts,
            f"{config.name} has {feature}, for which layout {layout!r} has no place; layouts that do: {', '.join(layouts)}",
        )
    demanded = _DEMANDED.get(layout)
    require(
        demanded is None or _FEATURES[demanded][0](config),
        f"layout {layout!r} is for models with {demanded}; {config.name} ({config.family}) has none",
    )


def native_layout(config: ModelConfig) -> Layout:
    """The layout of the model's own family."""
    return config.family


def table(config: ModelConfig, layout: str) -> tuple[NameRow, ...]:
    """Every parameter that the model has, once, in the order of the tensors in a folder; per-layer rows once for all layers.

    Raises:
      ConfigError: as `check_layout`.
    """
    check_layout(config, layout)
    # The tensors' names are a contract with every released folder; the order is that in which transformers lists them.
    D, F, V = config.hidden_size, config.ffn_size, config.vocab_size
    query, keys = (config.num_heads, config.head_dim), (config.num_kv_heads, config.head_dim)
    block = "model.layers.{layer}."
    norms = ("ln1", "ln2") if layout == "yi" else ("input_layernorm", "post_attention_layernorm")
    rows = [
        _same("embedding", "model.embed_tokens.weight", (V, D)),
        _same("layers.attention_norm", f"{block}{norms[0]}.weight", (D,)),
    ]
    if layout == "baichuan":
        rows += _stacked_linears(
            f"{block}self_attn.W_pack.weight",
            {"layers.attention.query": query, "layers.attention.key": keys, "layers.attention.value": keys},
            D,
        )
    for ours, letter, heads in (("query", "q", query), ("key", "k", keys), ("value", "v", keys)):
        theirs = f"{block}self_attn.{letter}_"
        if layout != "baichuan":
            rows.append(_linear(f"layers.attention.{ours}", f"{theirs}proj.weight", outputs=heads, inputs=(D,)))
        # Theirs has one axis, since it is added to a product that has not been split into heads yet.
        if config.qkv_bias:
            rows.append(_same(f"layers.attention.{ours}_bias", f"{theirs}proj.bias", heads, flat=True))
        if config.qk_norm and ours != "value":
            rows.append(_same(f"layers.attention.{ours}_norm", f"{theirs}norm.weight", (config.head_dim,)))
    rows += [
        _linear("layers.attention.output", f"{block}self_attn.o_proj.weight", outputs=(D,), inputs=query),
        _same("layers.ffn_norm", f"{block}{norms[1]}.weight", (D,)),
        _linear("layers.ffn.gate", f"{block}mlp.gate_proj.weight", outputs=(F,), inputs=(D,)),
        _linear("layers.ffn.up", f"{block}mlp.up_proj.weight", outputs=(F,), inputs=(D,)),
        _linear("layers.ffn.down", f"{block}mlp.down_proj.weight", outputs=(D,), inputs=(F,)),
        _same("final_norm", "model.norm.weight", (D,)),
    ]
    # A tied head is the embedding, which transformers' folders hold once.
    if not config.tied_embeddings:
        rows.append(_same("head", "lm_head.weight", (V, D)))
    return tuple(rows)


def tensors(config: ModelConfig, layout: str) -> dict[str, list[tuple[NameRow, int]]]:
    """Every tensor of a folder by its name, in the folder's order, with the (row, layer) pairs that make it up: W_pack has three.

    Raises:
      ConfigError: as `check_layout`.
    """
    rows = table(config, layout)
    pairs = [(row, 0) for row in rows if row.ours == "embedding"]
    pairs += [(row, layer) for layer in range(config.num_layers) for row in rows if row.per_layer]
    pairs += [(row, 0) for row in rows if not row.per_layer and row.ours != "embedding"]
    parts: dict[str, list[tuple[NameRow, int]]] = {}
    for row, layer in pairs:
        parts.setdefault(row.name(layer), []).append((row, layer))
    return parts


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Dotted name → shape of every parameter of the model, layers stacked; what `abstract_params` says, without the decoder."""
    rows = table(config, native_layout(config))
    return {row.ours: ((config.num_layers,) if row.per_layer else ()) + row.shape for row in rows}


def _same(ours: str, theirs: str, shape: tuple[int, ...], flat: bool = False) -> NameRow:
    """The same order of numbers; `flat`: theirs has one axis."""
    return NameRow(ours, theirs, (math.prod(shape),) if flat else shape, 0, shape, tuple(range(len(shape))))


def _linear(ours: str, theirs: str, outputs: tuple[int, ...], inputs: tuple[int, ...]) -> NameRow:
    """`nn.Linear`: theirs [out, in], ours [in…, out…]."""
    order = (*range(len(outputs), len(outputs) + len(inputs)), *range(len(outputs)))
    return NameRow(ours, theirs, (math.prod(outputs), math.prod(inputs)), 0, (*outputs, *inputs), order)


def _stacked_linears(theirs: str, outputs: dict[str, tuple[int, int]], inputs: int) -> list[NameRow]:
    """Several linears in one tensor, stacked on its first axis in this order."""
    whole = (sum(map(math.prod, outputs.values())), inputs)
    rows, start = [], 0
    for ours, heads in outputs.items():
        single = _linear(ours, theirs, heads, (inputs,))
        rows.append(dataclasses.replace(single, their_shape=whole, start=start))
        start += math.prod(heads)
    return rows
