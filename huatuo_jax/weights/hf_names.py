"""Our parameter names ↔ Hugging Face tensor names: a `ModelConfig` and a layout in, one table out, read both ways.

A layout is how a folder spells its tensors. A Baichuan model with RoPE may be written as "baichuan" or as "llama":

    llama      q_proj, k_proj, v_proj                                  Llama, Yi; Baichuan with RoPE
    baichuan   W_pack = q, k, v stacked in one tensor
    qwen2      as llama, with q, k, v biases
    qwen3      as llama, with q and k norms
    yi         as llama, the norms spelt ln1 and ln2 (first Yi release): read only

A row says which part of which tensor one layer of one parameter is, and how its axes are ordered:

    for row in table(config, "llama"):
        tensor = read(row.theirs.format(layer=3))                # HF: [out, in]
        params[row.ours][3] = row.to_ours(tensor)                # ours: [in, out], heads split; a view, no copy
    for name, rows in tensors(config, "llama").items():          # every tensor of the folder, its parts in order
        write(name, their_tensor(rows, lambda row: layer_of(params[row.ours], row.layer)))

The table moves numbers and never changes them: a NormHead's rows pass as they are. Whoever writes a NormHead model as "llama"
bakes the normalisation into `lm_head.weight` first.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from huatuo_jax.config import ModelConfig, require

Layout = Literal["llama", "baichuan", "qwen2", "qwen3", "yi"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)


@dataclass(frozen=True)
class Row:
    """One layer of one of our parameters as a part of one Hugging Face tensor.

    Attributes:
      ours: dotted path in the tree of `huatuo_jax.models.decoder`; "layers.…" are stacked over layers.
      theirs: the tensor's name, with `{layer}` where it has one tensor a layer.
      their_shape: of the whole tensor.
      start: first index, on the tensor's first axis, of the part that belongs to this row.
      view: shape of that part with its heads split: a free reshape.
      axes: the order of the view's axes in our parameter.
      layer: which layer, where `tensors` has filled it in; None in `table`.
    """

    ours: str
    theirs: str
    their_shape: tuple[int, ...]
    start: int
    view: tuple[int, ...]
    axes: tuple[int, ...]
    layer: int | None = None

    @property
    def per_layer(self) -> bool:
        """Whether each layer has a tensor of its own."""
        return self.ours.startswith("layers.")

    @property
    def shape(self) -> tuple[int, ...]:
        """Of our parameter, one layer of it."""
        return tuple(self.view[axis] for axis in self.axes)

    def part(self, tensor: Any) -> Any:
        """This row's part of their tensor, shaped `view`; a view."""
        length = math.prod(self.view) // math.prod(self.their_shape[1:])
        return tensor[self.start : self.start + length].reshape(self.view)

    def to_ours(self, tensor: Any) -> Any:
        """Their whole tensor (numpy or jax, any dtype) → one layer of our parameter; for numpy a view."""
        return self.part(tensor).transpose(self.axes)

    def to_theirs(self, array: Any) -> Any:
        """One layer of our parameter → this row's part of their tensor, [part of the first axis, …]."""
        return array.transpose(tuple(np.argsort(self.axes))).reshape(-1, *self.their_shape[1:])


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


def table(config: ModelConfig, layout: str) -> tuple[Row, ...]:
    """Every parameter that the model has, once, in the order of the tensors in a folder; per-layer rows once for all layers.

    Raises:
      ConfigError: as `check_layout`.
    """
    check_layout(config, layout)
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
    if not config.tied_embeddings:
        rows.append(_same("head", "lm_head.weight", (V, D)))
    return tuple(rows)


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Dotted name → shape of every parameter of the model, layers stacked; what `abstract_params` says, without the decoder."""
    rows = table(config, native_layout(config))
    return {row.ours: ((config.num_layers,) if row.per_layer else ()) + row.shape for row in rows}


def tensors(config: ModelConfig, layout: str) -> dict[str, tuple[Row, ...]]:
    """Every tensor of a folder by its full name, in order, with the rows that make it up (three for W_pack), in order."""
    rows = table(config, layout)
    before = [row for row in rows if row.ours == "embedding"]
    after = [row for row in rows if not row.per_layer and row.ours != "embedding"]
    layers = [
        dataclasses.replace(row, theirs=row.theirs.format(layer=layer), layer=layer)
        for layer in range(config.num_layers)
        for row in rows
        if row.per_layer
    ]
    out: dict[str, tuple[Row, ...]] = {}
    for row in (*before, *layers, *after):
        out[row.theirs] = (*out.get(row.theirs, ()), row)
    return out


def their_tensor(rows: Sequence[Row], array_of: Callable[[Row], Any]) -> np.ndarray:
    """One tensor of a folder from its rows; `array_of(row)` is one layer of our parameter, in numpy and of the final dtype."""
    parts = [row.to_theirs(array_of(row)) for row in rows]
    return np.ascontiguousarray(parts[0] if len(parts) == 1 else np.concatenate(parts))


def _same(ours: str, theirs: str, shape: tuple[int, ...], flat: bool = False) -> Row:
    """The same order of numbers; `flat`: theirs has one axis."""
    return Row(ours, theirs, (math.prod(shape),) if flat else shape, 0, shape, tuple(range(len(shape))))


def _linear(ours: str, theirs: str, outputs: tuple[int, ...], inputs: tuple[int, ...]) -> Row:
    """`nn.Linear`: theirs [out, in], ours [in…, out…]."""
    order = (*range(len(outputs), len(outputs) + len(inputs)), *range(len(outputs)))
    return Row(ours, theirs, (math.prod(outputs), math.prod(inputs)), 0, (*outputs, *inputs), order)


def _stacked_linears(theirs: str, outputs: dict[str, tuple[int, int]], inputs: int) -> list[Row]:
    """Several linears in one tensor, stacked on its first axis in this order."""
    whole = (sum(map(math.prod, outputs.values())), inputs)
    rows, start = [], 0
    for ours, heads in outputs.items():
        single = _linear(ours, theirs, heads, (inputs,))
        rows.append(dataclasses.replace(single, their_shape=whole, start=start))
        start += math.prod(heads)
    return rows
