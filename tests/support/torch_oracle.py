"""An independent torch model for every family, with our parameters under the released checkpoints' names."""

import jax
import numpy as np
import transformers

from huatuo_jax.config import ModelConfig
from tests.support.torch_baichuan import Baichuan


def named(params, config: ModelConfig) -> dict[str, np.ndarray]:
    """Our tree (parameters or gradients) under the released checkpoints' names."""
    as_rows = lambda x, inputs: np.asarray(x).reshape(inputs, -1).T
    out = {"model.embed_tokens.weight": np.asarray(params["embedding"]), "model.norm.weight": np.asarray(params["final_norm"])}
    if "head" in params:
        out["lm_head.weight"] = np.asarray(params["head"])
    for index in range(config.num_layers):
        layer = jax.tree.map(lambda x, i=index: np.asarray(x[i]), params["layers"])
        attention, ffn, prefix = layer["attention"], layer["ffn"], f"model.layers.{index}."
        out[prefix + "input_layernorm.weight"] = layer["attention_norm"]
        out[prefix + "post_attention_layernorm.weight"] = layer["ffn_norm"]
        for name in ("gate", "up", "down"):
            out[f"{prefix}mlp.{name}_proj.weight"] = ffn[name].T
        projections = [as_rows(attention[name], config.hidden_size) for name in ("query", "key", "value")]
        if config.family == "baichuan":
            out[prefix + "self_attn.W_pack.weight"] = np.concatenate(projections)
        else:
            for letter, projection in zip("qkv", projections, strict=True):
                out[f"{prefix}self_attn.{letter}_proj.weight"] = projection
        out[prefix + "self_attn.o_proj.weight"] = as_rows(attention["output"], config.num_heads * config.head_dim)
        for letter, name in (("q", "query"), ("k", "key"), ("v", "value")):
            if name + "_bias" in attention:
                out[f"{prefix}self_attn.{letter}_proj.bias"] = attention[name + "_bias"].ravel()
            if name + "_norm" in attention:
                out[f"{prefix}self_attn.{letter}_norm.weight"] = attention[name + "_norm"]
    return out


def oracle(config: ModelConfig):
    """A torch module of the same architecture, called as (tokens, positions) → logits."""
    if config.family == "baichuan":
        return Baichuan(config)
    rope = {"rope_type": "default", "rope_theta": config.rope_theta}
    if config.rope_scaling is not None:
        rope = {
            "rope_type": "llama3",
            "rope_theta": config.rope_theta,
            "factor": config.rope_scaling.factor,
            "low_freq_factor": config.rope_scaling.low_freq_factor,
            "high_freq_factor": config.rope_scaling.high_freq_factor,
            "original_max_position_embeddings": config.rope_scaling.original_max_length,
        }
    name = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}[config.family]
    no_window = {}
    if config.name == "tiny-mistral":  # of our family llama, but transformers has a class of its own, with a window unless told
        name, no_window = "Mistral", {"sliding_window": None}
    hf_config = getattr(transformers, name + "Config")(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.ffn_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        rms_norm_eps=config.norm_eps,
        rope_parameters=rope,
        max_position_embeddings=config.max_length,
        tie_word_embeddings=config.tied_embeddings,
        attn_implementation="eager",
        **no_window,
    )
    return getattr(transformers, name + "ForCausalLM")(hf_config)
