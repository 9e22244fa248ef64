"""Checkpoints to export: a random model of any preset, stored as a run stores it, beside a tokenizer that fits."""

import os
from pathlib import Path

import jax
import numpy as np

from data_tools.tokenizer_training import train_tokenizer
from huatuo_jax.config import ModelConfig
from huatuo_jax.config_files import config_to_dict
from huatuo_jax.data.tokenizer import SentencePieceTokenizer, copy_tokenizer
from huatuo_jax.models.presets import preset
from huatuo_jax.sharding import abstract_params
from huatuo_jax.training.saving import Checkpoints

# transformers asks the hub about local folders too, and waits for it where there is no network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

HERBS = ["甘草", "黄芪", "当归", "人参", "茯苓", "白术", "川芎", "陈皮", "麦冬", "枸杞"]
TEXTS = [f"{herb}第{i}味有什么功效？性味{'甘苦辛酸咸'[i % 5]}，归经第{i}。 <p> & [x]" for i, herb in enumerate(HERBS * 12)]

LLAMA_LIKE = ["tiny-baichuan2-7b", "tiny-baichuan-7b", "tiny-yi", "tiny-llama2", "tiny-llama3", "tiny-qwen3"]
"""Presets that open in transformers without remote code and take a SentencePiece tokenizer."""
BAICHUAN = ["tiny-baichuan2-7b", "tiny-baichuan2-13b", "tiny-baichuan-7b", "tiny-baichuan-13b"]


def tiny_tokenizer(folder: Path) -> Path:
    """A SentencePiece model made for the dialogue format, of some 400 pieces."""
    train_tokenizer(TEXTS, 400, folder / "tiny.model", at_most=True)
    return folder / "tiny.model"


def random_model(name: str, tokenizer: Path, **changes) -> tuple[ModelConfig, dict]:
    """A preset with the tokenizer's vocabulary, and parameters large enough that its logits differ."""
    size = SentencePieceTokenizer(str(tokenizer)).vocab_size
    model = preset(name, **{"vocab_size": size, **changes})
    draw = np.random.default_rng(0)
    scales = ("attention_norm", "ffn_norm", "final_norm", "query_norm", "key_norm")
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: jax.numpy.asarray(draw.normal(path[-1].key in scales, 0.1, leaf.shape).astype(np.float32)),
        abstract_params(model),
    )
    return model, params


def write_run(
    folder: Path, model: ModelConfig, params, tokenizer: Path, template: str | None = "huatuo", step: int = 7, **meta
) -> Path:
    """A run directory with one checkpoint; `meta` overrides its facts."""
    facts = {
        "config": {"model": config_to_dict(model)},
        "tokenizer": {
            "path": copy_tokenizer(tokenizer, folder),
            "fingerprint": SentencePieceTokenizer(str(tokenizer)).fingerprint,
        },
        "template": template,
        **meta,
    }
    checkpoints = Checkpoints(folder / "checkpoints")
    checkpoints.save(step, params, {"count": np.zeros(1)}, facts)
    checkpoints.wait()
    checkpoints.close()
    return folder


def logits_of(model: ModelConfig, params, tokens: np.ndarray) -> np.ndarray:
    """Ours in fp32, [B, S, V], of int [B, S]."""
    from flax import nnx

    from huatuo_jax.models.decoder import split_decoder

    decoder = nnx.merge(split_decoder(model), params)
    positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    return np.asarray(decoder.logits(decoder(tokens, positions, np.ones_like(tokens))))
