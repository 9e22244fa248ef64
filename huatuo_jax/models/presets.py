"""Named architectures: the released models, and tiny ones of every family that run anywhere.

Read by recipes (`configs/`), tests and planning tools. What must hold: it imports no jax, and a released model has the numbers of
its own config.json. Next to read: `config.ModelConfig`. Sources: HuatuoGPT-II's three bases (arXiv 2311.09774), and the
`config.json` of each released base model.

To add a model whose architecture `decoder.py` has (RoPE or ALiBi, grouped heads, q/k/v biases, q/k norms, tied embeddings,
NormHead):

1. a line in `_RELEASED`, and one in `_TINY`: tests of names, configs, export and shardings run on every preset, and a line in
   `tests/models/test_parity.py` compares logits and gradients with transformers;
2. if its Hugging Face `model_type` is new: a line in `FAMILIES` of `weights/hf_config.py`, which says whose layout it has.
   Mistral's, for example, is Llama's. What transformers takes where its config.json is silent may still differ (kv heads,
   sliding window): compare the defaults of its `…Config` with those of `LlamaConfig`;
3. only if its tensors have names of their own: a family in `config.py` and its rows in the table of `weights/hf_names.py`.
"""

import dataclasses
from typing import Any

from huatuo_jax.config import Family, ModelConfig, RopeScaling, require

LLAMA_3_1_SCALING = RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_length=8192)
LLAMA_3_2_SCALING = dataclasses.replace(LLAMA_3_1_SCALING, factor=32.0)


def _model(name: str, family: Family, shape: tuple[int, int, int, int, int], vocab_size: int, **fields: Any) -> ModelConfig:
    """`shape` = layers, hidden size, heads, kv heads, FFN size; the head size is hidden / heads unless given."""
    num_layers, hidden_size, num_heads, num_kv_heads, ffn_size = shape
    fields.setdefault("head_dim", hidden_size // num_heads)
    return ModelConfig(
        name=name,
        family=family,
        vocab_size=vocab_size,
        num_layers=num_layers,
        hidden_size=hidden_size,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        ffn_size=ffn_size,
        **fields,
    )


def _llama3(name: str, shape: tuple[int, int, int, int, int], **fields: Any) -> ModelConfig:
    return _model(name, "llama", shape, 128_256, rope_theta=5e5, norm_eps=1e-5, **fields)


def _qwen2(name: str, shape: tuple[int, int, int, int, int], vocab_size: int = 151_936, **fields: Any) -> ModelConfig:
    return _model(name, "qwen2", shape, vocab_size, rope_theta=1e6, qkv_bias=True, **fields)


def _qwen3(name: str, shape: tuple[int, int, int, int, int], **fields: Any) -> ModelConfig:
    return _model(name, "qwen3", shape, 151_936, rope_theta=1e6, qk_norm=True, head_dim=128, max_length=32_768, **fields)


_SEVEN_B, _THIRTEEN_B = (32, 4096, 32, 32, 11008), (40, 5120, 40, 40, 13696)

# Vocabularies are those of the released matrices, padding included: weights must fit them row by row.
_RELEASED = (
    _model("baichuan2-7b", "baichuan", _SEVEN_B, 125_696, head="norm"),
    _model("baichuan2-13b", "baichuan", _THIRTEEN_B, 125_696, head="norm", positions="alibi"),
    _model("baichuan-7b", "baichuan", _SEVEN_B, 64_000),
    _model("baichuan-13b", "baichuan", _THIRTEEN_B, 64_000, positions="alibi"),
    _model("yi-34b", "llama", (60, 7168, 56, 8, 20480), 64_000, rope_theta=5e6, norm_eps=1e-5),
    _model("llama2-7b", "llama", _SEVEN_B, 32_000, norm_eps=1e-5),
    _model("llama2-13b", "llama", (40, 5120, 40, 40, 13824), 32_000, norm_eps=1e-5),
    _llama3("llama3-8b", (32, 4096, 32, 8, 14336), max_length=8192),
    _llama3("llama3.1-8b", (32, 4096, 32, 8, 14336), max_length=131_072, rope_scaling=LLAMA_3_1_SCALING),
    _llama3("llama3.2-1b", (16, 2048, 32, 8, 8192), max_length=131_072, rope_scaling=LLAMA_3_2_SCALING, tied_embeddings=True),
    _llama3("llama3.2-3b", (28, 3072, 24, 8, 8192), max_length=131_072, rope_scaling=LLAMA_3_2_SCALING, tied_embeddings=True),
    _model("mistral-7b-v0.3", "llama", (32, 4096, 32, 8, 14336), 32_768, rope_theta=1e6, norm_eps=1e-5, max_length=32_768),
    _qwen2("qwen2-7b", (28, 3584, 28, 4, 18944), 152_064, max_length=131_072),
    _qwen2("qwen2.5-0.5b", (24, 896, 14, 2, 4864), max_length=32_768, tied_embeddings=True),
    _qwen2("qwen2.5-1.5b", (28, 1536, 12, 2, 8960), max_length=131_072, tied_embeddings=True),
    _qwen2("qwen2.5-7b", (28, 3584, 28, 4, 18944), 152_064, max_length=131_072),
    _qwen3("qwen3-0.6b", (28, 1024, 16, 8, 3072), tied_embeddings=True),
    _qwen3("qwen3-1.7b", (28, 2048, 16, 8, 6144), tied_embeddings=True),
    _qwen3("qwen3-4b", (36, 2560, 32, 8, 9728), tied_embeddings=True),
    _qwen3("qwen3-8b", (36, 4096, 32, 8, 12288)),
)

_QUICKSTART = _model("quickstart", "baichuan", (4, 256, 4, 4, 704), 4_000, head="norm", max_length=1024)

_TINY_LAYERS, _TINY_WIDTH, _TINY_HEADS, _TINY_FFN, _TINY_VOCAB = 3, 64, 4, 160, 256


def _tiny(name: str, like: str, **fields: Any) -> ModelConfig:
    """The architecture of a released model at test size; grouped-query attention keeps two kv heads."""
    released = next(model for model in _RELEASED if model.name == like)
    # Two kv heads for four heads, or a mistake in the grouping would not show; a context of 512, for tests that fill it.
    grouped = released.num_kv_heads < released.num_heads
    return dataclasses.replace(
        released,
        name=name,
        vocab_size=_TINY_VOCAB,
        num_layers=_TINY_LAYERS,
        hidden_size=_TINY_WIDTH,
        num_heads=_TINY_HEADS,
        num_kv_heads=2 if grouped else _TINY_HEADS,
        head_dim=fields.pop("head_dim", _TINY_WIDTH // _TINY_HEADS),
        ffn_size=_TINY_FFN,
        max_length=512,
        **fields,
    )


_TINY = (
    _tiny("tiny-baichuan2-7b", "baichuan2-7b"),
    _tiny("tiny-baichuan2-13b", "baichuan2-13b"),
    _tiny("tiny-baichuan-7b", "baichuan-7b"),
    _tiny("tiny-baichuan-13b", "baichuan-13b"),
    _tiny("tiny-yi", "yi-34b"),
    _tiny("tiny-llama2", "llama2-7b"),
    # The original length far below the context, so that scaled and unscaled frequencies both occur.
    _tiny("tiny-llama3", "llama3.1-8b", rope_scaling=dataclasses.replace(LLAMA_3_1_SCALING, original_max_length=128)),
    _tiny("tiny-mistral", "mistral-7b-v0.3"),
    _tiny("tiny-qwen2", "qwen2.5-0.5b"),
    _tiny("tiny-qwen3", "qwen3-0.6b", head_dim=32),  # as in Qwen3, heads that do not make up the hidden size
)

PRESETS: dict[str, ModelConfig] = {model.name: model for model in (*_RELEASED, _QUICKSTART, *_TINY)}
"""Every named architecture. "tiny-*" have random weights only and run in seconds on a CPU."""


def preset(name: str, **changes: Any) -> ModelConfig:
    """The preset `name`, with fields replaced by `changes` (checked again). Raises ConfigError on an unknown name."""
    require(name in PRESETS, f"no model preset named {name!r}; there are: {', '.join(PRESETS)}")
    return dataclasses.replace(PRESETS[name], **changes)
