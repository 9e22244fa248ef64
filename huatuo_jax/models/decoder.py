"""One decoder for every model of `presets.py`: token ids → hidden states → logits, chosen by `ModelConfig`.

Training and scoring call the decoder on whole rows; generation appends tokens to a cache, with the same `Block` (`block.py`) in
the same scan over the layers (`extend` in `cache.py`). Parameters live outside the module, as a plain nested dict that jax, optax
and Orbax see as any other tree (`params.py`):

    graphdef, params = split_decoder(config), init_params(config, jax.random.key(seed))
    model = nnx.merge(graphdef, params)                   # inside a jitted function
    hidden = model(tokens, positions, segment_ids, dtype=jnp.bfloat16, attention=name, remat="full")

Parameter tree (L layers are stacked and scanned; V vocabulary, D hidden, N heads, K kv heads, H head_dim, F FFN):

    embedding [V, D]   final_norm [D]   head [V, D] (absent if tied)
    layers/attention_norm [L, D]   layers/ffn_norm [L, D]
    layers/attention/query [L, D, N, H]   key, value [L, D, K, H]   output [L, N, H, D]
    layers/attention/query_bias [L, N, H]   key_bias, value_bias [L, K, H]   (Qwen2)   query_norm, key_norm [L, H]   (Qwen3)
    layers/ffn/gate, up [L, D, F]   down [L, F, D]
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from huatuo_jax.config import ModelConfig
from huatuo_jax.models.attention import Visibility, alibi_slopes, attend
from huatuo_jax.models.block import Block, ParamFactory, RopeTables, rope_tables
from huatuo_jax.models.numerics import PRODUCT, in_dtype, matmul, rms_norm, row_lengths
from huatuo_jax.sharding import constrain

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
