"""Hugging Face folders as others write them: by transformers, or by hand from a torch module's state dict and a config.json."""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from huatuo_jax.config import ModelConfig
from huatuo_jax.models.decoder import Params
from huatuo_jax.models.presets import preset
from tests.support.random_models import logits_of
from tests.support.torch_oracle import oracle

FAMILIES = {
    "baichuan2-7b": preset("tiny-baichuan2-7b"),
    "baichuan2-13b": preset("tiny-baichuan2-13b"),
    "baichuan2-13b, 6 heads": preset("tiny-baichuan2-13b", hidden_size=96, num_heads=6, num_kv_heads=6),
    "baichuan-7b": preset("tiny-baichuan-7b"),
    "baichuan-13b": preset("tiny-baichuan-13b"),
    "yi, spelt Yi": preset("tiny-yi"),
    "yi, spelt Llama": preset("tiny-yi"),
    "llama2": preset("tiny-llama2"),
    "llama3.1, scaled RoPE": preset("tiny-llama3", rope_theta=100.0),
    "llama3.2, tied": preset("tiny-llama3", tied_embeddings=True),
    "qwen2.5, tied": preset("tiny-qwen2"),
    "qwen2.5, untied": preset("tiny-qwen2", tied_embeddings=False),
    "qwen3, tied": preset("tiny-qwen3"),
    "qwen3, untied": preset("tiny-qwen3", tied_embeddings=False),
    "mistral": preset("tiny-mistral"),
}
"""Every row of the table of models (docs/differences.md), and today's bases, in shape."""


TOKENS = np.random.default_rng(1).integers(0, 256, (2, 24))
"""What the two implementations of a model are compared on."""


def random_model(config: ModelConfig, seed: int = 0) -> torch.nn.Module:
    """The independent torch implementation with weights far from their initialisation: no norm is 1, no bias 0."""
    module = oracle(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            around = 1.0 if "norm" in name else 0.0
            parameter.copy_(around + 0.15 * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def baichuan_json(config: ModelConfig) -> dict:
    """A config.json with the fields of the released Baichuans; neither width nor vocabulary of a tiny model tell which one."""
    values = {
        "architectures": ["BaichuanForCausalLM"],
        "auto_map": {"AutoModelForCausalLM": "modeling_baichuan.BaichuanForCausalLM"},
        "tokenizer_class": "BaichuanTokenizer",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": config.ffn_size,
        "model_max_length": config.max_length,
        "model_type": "baichuan",
        "num_attention_heads": config.num_heads,
        "num_hidden_layers": config.num_layers,
        "pad_token_id": 0,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.29.2",
        "use_cache": True,
        "vocab_size": config.vocab_size,
    }
    if config.positions == "rope":
        values["max_position_embeddings"] = config.max_length
    return values


def yi_json(config: ModelConfig) -> dict:
    """A config.json of the first Yi release."""
    values = baichuan_json(config)
    for name in ("auto_map", "tokenizer_class", "model_max_length"):
        del values[name]
    return values | {
        "architectures": ["YiForCausalLM"],
        "model_type": "Yi",
        "num_key_value_heads": config.num_kv_heads,
        "rope_theta": config.rope_theta,
        "max_position_embeddings": config.max_length,
    }


def tensors_of(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The module's tensors by name, each once."""
    return {name: parameter.detach() for name, parameter in module.named_parameters()}


def write_folder(folder: Path, name: str, module: torch.nn.Module, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Writes the folder of `FAMILIES[name]`; returns its tensors as stored."""
    config = FAMILIES[name]
    folder.mkdir(parents=True, exist_ok=True)
    module = module.to(dtype)
    if name == "yi, spelt Yi":
        renamed = {"input_layernorm": "ln1", "post_attention_layernorm": "ln2"}
        tensors = {}
        for key, tensor in tensors_of(module).items():
            words = [renamed.get(word, word) for word in key.split(".")]
            tensors[".".join(words)] = tensor
        return write_by_hand(folder, yi_json(config), tensors)
    if config.family == "baichuan":
        return write_by_hand(folder, baichuan_json(config), tensors_of(module))
    module.save_pretrained(folder)
    return tensors_of(module)


def write_by_hand(folder: Path, config_json: dict, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """config.json and one model.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config_json), encoding="utf-8")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return tensors


def as_bits(tensor) -> tuple[str, tuple[int, ...], bytes]:
    """Dtype, shape and bytes of a torch tensor or a numpy array: equal only if every bit is."""
    if isinstance(tensor, torch.Tensor):
        plain = tensor.detach().contiguous()
        bits = plain.view(torch.int16) if plain.element_size() == 2 else plain
        return str(plain.dtype).removeprefix("torch."), tuple(plain.shape), bits.numpy().tobytes()
    array = np.ascontiguousarray(tensor)
    return str(array.dtype), array.shape, array.tobytes()


def our_logits(config: ModelConfig, params: Params) -> np.ndarray:
    """Of TOKENS, by our decoder."""
    return logits_of(config, params, TOKENS)


def their_logits(module: torch.nn.Module, config: ModelConfig) -> np.ndarray:
    """Of TOKENS, by the independent torch implementation."""
    tokens = torch.tensor(TOKENS)
    with torch.no_grad():
        if config.family == "baichuan":
            return module(tokens, torch.arange(TOKENS.shape[1]).expand(TOKENS.shape)).numpy()
        return module(input_ids=tokens, use_cache=False).logits.numpy()


def assert_close(ours: np.ndarray, theirs: np.ndarray, tolerance: float = 1e-4) -> None:
    """The largest difference is within `tolerance` of the largest logit."""
    assert ours.shape == theirs.shape
    difference = np.abs(ours - theirs).max() / np.abs(theirs).max()
    assert difference <= tolerance, f"{difference:.1e}"
