"""One decoder for every model of `presets.py`: token ids → hidden states → logits, chosen by `ModelConfig`.

Where it stands: `training/step.py`, scoring and comparison call the decoder on whole rows; generation appends tokens to a cache,
with the same `Block` in the same scan over the layers (`extend` in `cache.py`). From the bottom up this file holds rotary
positions, one pre-norm layer (RMSNorm, the projections of attention, SwiGLU), the decoder, and its parameters as a tree:
abstract, initialised, and converted where they lie. What must hold: attention goes through `attention.py` and products through
`numerics.py`, which fixes their dtypes, so a model family is a value of the config and never a branch of its own; and the
abstract tree has the names, shapes and dtypes of the initialised one, for one constructor makes both. Next to read:
`attention.py`, `weights/load.py`.

A `Block` holds the parameters of *all* layers, stacked on a leading axis "layers"; its methods see one layer's slice, as the scan
hands it to them. Between its two halves the caller computes attention: to the tokens of the same row, or to cached keys and
values. Parameters live outside the module, as a plain nested dict that jax, optax and Orbax see as any other tree.
Everything that depends on shapes alone (shardings, memory, what a checkpoint must hold) is derived from `abstract_params` before
anything is allocated; a `Decoder` meets its parameters inside a jitted function:

    graphdef, params = split_decoder(config), init_params(config, jax.random.key(seed))
    model = nnx.merge(graphdef, params)
    hidden = model(tokens, positions, segment_ids, dtype=jnp.bfloat16, attention=name, remat="full")

Parameter tree (letters as behind the names of arrays: B rows, S tokens, L layers, which are stacked and scanned, V vocabulary,
D hidden, N heads, K kv heads, H head size, F feed-forward, P = H / 2 rotated pairs):

    embedding [V, D]   final_norm [D]   head [V, D] (absent if tied)
    layers/attention_norm [L, D]   layers/ffn_norm [L, D]
    layers/attention/query [L, D, N, H]   key, value [L, D, K, H]   output [L, N, H, D]
    layers/attention/query_bias [L, N, H]   key_bias, value_bias [L, K, H]   (Qwen2)   query_norm, key_norm [L, H]   (Qwen3)
    layers/ffn/gate, up [L, D, F]   down [L, F, D]
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec, Sharding
from jax.typing import DTypeLike

from huatuo_jax.config import ModelConfig, RopeScaling
from huatuo_jax.models.attention import Visibility, alibi_slopes, attend
from huatuo_jax.models.numerics import PRODUCT, in_dtype, matmul, project, rms_norm, row_lengths
from huatuo_jax.sharding import ParamSpec, constrain

Initializer = Callable[..., jax.Array]
RopeTables = tuple[jax.Array, jax.Array]
"""Cosine and sine of each angle, fp32 [B, S, P]."""


# ---------------------------------------------------------------- rotary positions (ALiBi's slopes are in attention.py)


def rope_frequencies(config: ModelConfig) -> np.ndarray:
    """Angle per position of each rotated pair, fp32 [head_dim / 2] (arXiv 2104.09864, eq. 15), with Llama-3's scaling if set."""
    # In fp64 and on the host: a power in fp32 would be off by angles at far positions.
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float64) / config.head_dim
    frequencies = config.rope_theta**-exponents
    if config.rope_scaling is not None:
        frequencies = _scale_llama3(frequencies, config.rope_scaling)
    return frequencies.astype(np.float32)


def _scale_llama3(frequencies: np.ndarray, scaling: RopeScaling) -> np.ndarray:
    """Slow rotations are slowed by `factor`, fast ones kept, those between blended linearly in the rotations per context."""
    rotations = scaling.original_max_length * frequencies / (2 * math.pi)
    kept = (rotations - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    kept = np.clip(kept, 0.0, 1.0)
    return frequencies * (kept + (1 - kept) / scaling.factor)


def rope_tables(config: ModelConfig, positions_BS: jax.Array) -> RopeTables:
    """Cosine and sine of the angles at int32 positions [B, S]; both fp32 [B, S, head_dim / 2]."""
    angles_BSP = positions_BS.astype(jnp.float32)[..., None] * rope_frequencies(config)
    return jnp.cos(angles_BSP), jnp.sin(angles_BSP)


def apply_rope(x_BSNH: jax.Array, tables: RopeTables) -> jax.Array:
    """Rotates [B, S, N, H] by the half-split layout (pair i is dims i and i + H/2); computed in fp32, returned in x's dtype."""
    cos_BS1P, sin_BS1P = (table[:, :, None, :] for table in tables)
    first, second = jnp.split(x_BSNH.astype(jnp.float32), 2, axis=-1)
    rotated = (first * cos_BS1P - second * sin_BS1P, second * cos_BS1P + first * sin_BS1P)
    return jnp.concatenate(rotated, axis=-1).astype(x_BSNH.dtype)


# ---------------------------------------------------------------- parameters and the layer


class ParamFactory:
    """Makes parameters with their logical axes as metadata `axes`, ignored by flax (which shards `out_sharding` eagerly)."""

    def __init__(self, rngs: nnx.Rngs, dtype: DTypeLike, deviation: float, stack: int | None = None) -> None:
        self._rngs, self._dtype, self._stack = rngs, dtype, stack
        self._normal = nnx.initializers.normal(deviation)

    def _make(self, initializer: Initializer, axes: dict[str, int]) -> nnx.Param:
        # All layers of a parameter are one array: one scan runs them, one entry of a checkpoint holds them.
        sizes = axes if self._stack is None else {"layers": self._stack, **axes}
        value = initializer(self._rngs.params(), tuple(sizes.values()), self._dtype)
        return nnx.Param(value, axes=tuple(sizes))

    def weight(self, **axes: int) -> nnx.Param:
        """Normal with the model's deviation; logical axis → size, in order."""
        return self._make(self._normal, axes)

    def scale(self, **axes: int) -> nnx.Param:
        """Ones."""
        return self._make(nnx.initializers.ones, axes)

    def bias(self, **axes: int) -> nnx.Param:
        """Zeros."""
        return self._make(nnx.initializers.zeros, axes)


class Attention(nnx.Module):
    """Projections of self-attention; biases and q/k norms where the model has them."""

    def __init__(self, config: ModelConfig, make: ParamFactory) -> None:
        embed, heads = {"embed": config.hidden_size}, {"heads": config.num_heads, "head_dim": config.head_dim}
        kv_heads = {"kv_heads": config.num_kv_heads, "head_dim": config.head_dim}
        self.query = make.weight(**embed, **heads)
        self.key = make.weight(**embed, **kv_heads)
        self.value = make.weight(**embed, **kv_heads)
        self.output = make.weight(**heads, **embed)
        if config.qkv_bias:
            self.query_bias, self.key_bias, self.value_bias = make.bias(**heads), make.bias(**kv_heads), make.bias(**kv_heads)
        if config.qk_norm:
            self.query_norm, self.key_norm = make.scale(head_dim=config.head_dim), make.scale(head_dim=config.head_dim)


class FeedForward(nnx.Module):
    """SwiGLU (arXiv 2002.05202): down(silu(gate(x)) · up(x))."""

    def __init__(self, config: ModelConfig, make: ParamFactory) -> None:
        self.gate = make.weight(embed=config.hidden_size, ffn=config.ffn_size)
        self.up = make.weight(embed=config.hidden_size, ffn=config.ffn_size)
        self.down = make.weight(ffn=config.ffn_size, embed=config.hidden_size)

    def __call__(self, x_BSD: jax.Array) -> jax.Array:
        """[B, S, D] → [B, S, D]."""
        gate_BSF = project("BSD,DF->BSF", x_BSD, self.gate[...])
        up_BSF = project("BSD,DF->BSF", x_BSD, self.up[...])
        hidden_BSF = constrain(jax.nn.silu(gate_BSF) * up_BSF, "batch", None, "ffn")
        return project("BSF,FD->BSD", hidden_BSF, self.down[...])


class Block(nnx.Module):
    """One layer in two halves, so that the caller decides what the queries attend to (this row, or a cache)."""

    def __init__(self, config: ModelConfig, make: ParamFactory) -> None:
        self.config = config
        self.attention_norm = make.scale(norm=config.hidden_size)
        self.attention = Attention(config, make)
        self.ffn_norm = make.scale(norm=config.hidden_size)
        self.ffn = FeedForward(config, make)

    def queries_keys_values(self, x_BSD: jax.Array, rope: RopeTables | None) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Normed queries [B, S, N, H], keys and values [B, S, K, H]; queries and keys rotated if the model has RoPE."""
        weights, epsilon = self.attention, self.config.norm_eps
        normed_BSD = rms_norm(x_BSD, self.attention_norm[...], epsilon)
        q = project("BSD,DNH->BSNH", normed_BSD, weights.query[...])
        k = project("BSD,DKH->BSKH", normed_BSD, weights.key[...])
        v = project("BSD,DKH->BSKH", normed_BSD, weights.value[...])
        if self.config.qkv_bias:
            q, k, v = (
                x + bias[...].astype(x.dtype)
                for x, bias in ((q, weights.query_bias), (k, weights.key_bias), (v, weights.value_bias))
            )
        if self.config.qk_norm:
            q, k = rms_norm(q, weights.query_norm[...], epsilon), rms_norm(k, weights.key_norm[...], epsilon)
        # Keys are rotated before they are cached, so that a cached key never needs its position again.
        if rope is not None:
            q, k = apply_rope(q, rope), apply_rope(k, rope)
        q = constrain(q, "batch", None, "heads", None)
        k, v = (constrain(x, "batch", None, "kv_heads", None) for x in (k, v))
        return q, k, v

    def finish(self, x_BSD: jax.Array, attended_BSNH: jax.Array) -> jax.Array:
        """Adds the attention's output [B, S, N, H], then the feed-forward's, to the residual stream [B, S, D]."""
        x_BSD = x_BSD + project("BSNH,NHD->BSD", attended_BSNH, self.attention.output[...])
        x_BSD = constrain(x_BSD, "batch", None, None)
        x_BSD = x_BSD + self.ffn(rms_norm(x_BSD, self.ffn_norm[...], self.config.norm_eps))
        return constrain(x_BSD, "batch", None, None)


# ---------------------------------------------------------------- the decoder

# What is kept of each layer for the backward pass; its input always is.
_REMAT_POLICIES = {
    "dots": jax.checkpoint_policies.save_only_these_names(PRODUCT),
    "full": jax.checkpoint_policies.nothing_saveable,
}


class Decoder(nnx.Module):
    """A decoder-only transformer.

    Every `nnx.Param` carries `axes`, the logical name of each dimension; `huatuo_jax.sharding` maps them to the mesh.
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, param_dtype: DTypeLike = jnp.float32) -> None:
        self.config = config
        make = ParamFactory(rngs, param_dtype, config.initializer_range)
        self.embedding = make.weight(vocab=config.vocab_size, embed=config.hidden_size)
        self.layers = Block(config, ParamFactory(rngs, param_dtype, config.initializer_range, stack=config.num_layers))
        self.final_norm = make.scale(norm=config.hidden_size)
        if not config.tied_embeddings:
            self.head = make.weight(vocab=config.vocab_size, embed=config.hidden_size)

    def __call__(
        self,
        tokens_BS: jax.Array,
        positions_BS: jax.Array,
        segment_ids_BS: jax.Array,
        *,
        dtype: DTypeLike = jnp.float32,
        attention: str = "einsum",
        remat: str = "none",
        unroll: int = 1,
    ) -> jax.Array:
        """Hidden states after the final norm, [B, S, D] in `dtype`.

        Args:
          tokens_BS: int32 [B, S]; an id beyond the vocabulary gives NaN, never another token's embedding.
          positions_BS: int32 [B, S], used by RoPE. ALiBi takes distances from indices in the row, the same within a segment.
          segment_ids_BS: int32 [B, S]; tokens see only their own segment; 0 = padding.
          dtype: of activations and matrix products. Norm statistics, angles, softmax and sums stay fp32.
          attention: a backend's name, from `resolve_attention`.
          remat: what the backward pass recomputes: "none", "dots" (keeps matrix products) or "full" (keeps layer inputs).
          unroll: layers that one iteration of the scan runs; the whole number of layers leaves no loop.
        """
        rope, visibility = self.rope(positions_BS), Visibility(segment_ids_BS, self.slopes())
        graphdef, stacked = nnx.split(self.layers)

        def layer(x_BSD: jax.Array, state: nnx.State) -> tuple[jax.Array, None]:
            block = nnx.merge(graphdef, state)
            q, k, v = block.queries_keys_values(x_BSD, rope)
            return block.finish(x_BSD, attend(attention, q, k, v, visibility)), None

        if remat != "none":
            # A scan already keeps the two passes apart; the barriers of prevent_cse would only cost.
            layer = jax.checkpoint(layer, policy=_REMAT_POLICIES[remat], prevent_cse=False)
        # One layer is compiled, whatever their number; its parameters are slices of the stacked ones.
        x_BSD, _ = jax.lax.scan(layer, self.embed(tokens_BS, dtype), stacked, unroll=unroll)
        return self.finish(x_BSD)

    def rope(self, positions_BS: jax.Array) -> RopeTables | None:
        """Rotations at int32 positions [B, S], once for all layers; None for a model with ALiBi."""
        return rope_tables(self.config, positions_BS) if self.config.positions == "rope" else None

    def slopes(self) -> jax.Array | None:
        """ALiBi's slopes, fp32 [heads]; None for a model with RoPE."""
        return jnp.asarray(alibi_slopes(self.config.num_heads)) if self.config.positions == "alibi" else None

    def embed(self, tokens_BS: jax.Array, dtype: DTypeLike) -> jax.Array:
        """Token ids [B, S] → what the first layer reads, [B, S, D] in `dtype`."""
        # Rows are looked up in the parameters' dtype, so that the gradient of a frequent token is summed in it too. A quantised
        # table is two of them: integers, and each row's scale.
        rows_BSD = jax.tree.map(lambda x_VD: jnp.take(constrain(x_VD, "vocab", None), tokens_BS, axis=0), self.embedding[...])
        return constrain(in_dtype(rows_BSD, dtype), "batch", None, None)

    def finish(self, x_BSD: jax.Array) -> jax.Array:
        """What the last layer leaves → hidden states, [B, S, D]."""
        return rms_norm(x_BSD, self.final_norm[...], self.config.norm_eps)

    def output_weights(self) -> jax.Array:
        """The output matrix as used, fp32 [V, D] or quantised: head or tied embedding; a NormHead's rows are normalised, gradient
        included. A quantised head is linear."""
        weights_VD = (self.embedding if self.config.tied_embeddings else self.head)[...].astype(jnp.float32)
        if self.config.head == "norm":
            weights_VD = weights_VD / row_lengths(weights_VD)
        return weights_VD

    def logits(self, hidden_BSD: jax.Array) -> jax.Array:
        """Logits fp32 [B, S, V] of hidden states [B, S, D]; operands in the hidden states' dtype, sums in fp32."""
        return logits(hidden_BSD, self.output_weights())


def logits(hidden_BSD: jax.Array, weights_VD: jax.Array) -> jax.Array:
    """Logits fp32 [B, S, V] for `weights = decoder.output_weights()`, computed once and used for many pieces of the sequence."""
    return constrain(matmul("BSD,VD->BSV", hidden_BSD, weights_VD, jnp.float32), "batch", None, "vocab")


# ---------------------------------------------------------------- the parameters as a tree

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
