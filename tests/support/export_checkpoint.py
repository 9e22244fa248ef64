"""Checkpoints to export: a random model of any preset, stored as a run stores it, beside a tokenizer that fits."""

import os
from pathlib import Path

import numpy as np

from data_tools.tokens.tokenizer_training import train_tokenizer
from huatuo_jax.config import ModelConfig, config_to_dict
from huatuo_jax.data.tokenizers import copy_tokenizer, load_tokenizer
from huatuo_jax.models.decoder import Params
from huatuo_jax.models.presets import preset
from huatuo_jax.training.saving import Checkpoints
from tests.support.random_models import logits_of, random_params

# transformers asks the hub about local folders too, and waits for it where there is no network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

HERBS = ["甘草", "黄芪", "当归", "人参", "茯苓", "白术", "川芎", "陈皮", "麦冬", "枸杞"]
TEXTS = [f"{herb}第{i}味有什么功效？性味{'甘苦辛酸咸'[i % 5]}，归经第{i}。 <p> & [x]" for i, herb in enumerate(HERBS * 12)]

LLAMA_LIKE = ["tiny-baichuan2-7b", "tiny-baichuan-7b", "tiny-yi", "tiny-llama2", "tiny-llama3", "tiny-mistral", "tiny-qwen3"]
"""Presets that open in transformers without remote code and take a SentencePiece tokenizer."""
BAICHUAN = ["tiny-baichuan2-7b", "tiny-baichuan2-13b", "tiny-baichuan-7b", "tiny-baichuan-13b"]


def tiny_tokenizer(folder: Path) -> Path:
    """A SentencePiece model made for the dialogue format, of some 400 pieces."""
    train_tokenizer(TEXTS, 400, folder / "tiny.model", at_most=True)
    return folder / "tiny.model"


def random_model(name: str, tokenizer: Path, **changes) -> tuple[ModelConfig, Params]:
    """A preset with the tokenizer's vocabulary, and parameters large enough that its logits differ."""
    size = load_tokenizer(tokenizer).vocab_size
    model = preset(name, **{"vocab_size": size, **changes})
    return model, random_params(model, spread=0.1)


def write_run(
    folder: Path, model: ModelConfig, params, tokenizer: Path, template: str | None = "huatuo", step: int = 7, **meta
) -> Path:
    """A run directory with one checkpoint; `meta` overrides its facts."""
    facts = {
        "config": {"model": config_to_dict(model)},
        "tokenizer": {
            "path": copy_tokenizer(tokenizer, folder),
            "fingerprint": load_tokenizer(tokenizer).fingerprint,
        },
        "template": template,
        **meta,
    }
    checkpoints = Checkpoints(folder / "checkpoints")
    checkpoints.save(step, params, {"count": np.zeros(1)}, facts)
    checkpoints.wait()
    checkpoints.close()
    return folder


def greedy_of(model: ModelConfig, params, prompts: list[list[int]], new_tokens: int, eos_id: int) -> list[list[int]]:
    """The most likely continuations, up to and without EOS, by whole passes without a cache."""
    width = max(map(len, prompts)) + new_tokens
    rows, lengths, answers = np.zeros((len(prompts), width), np.int32), [len(p) for p in prompts], [[] for _ in prompts]
    for row, prompt in enumerate(prompts):
        rows[row, : len(prompt)] = prompt
    open_rows = set(range(len(prompts)))
    for _ in range(new_tokens):
        logits = logits_of(model, params, rows)
        for row in sorted(open_rows):
            token = int(logits[row, lengths[row] - 1].argmax())
            if token == eos_id:
                open_rows.discard(row)
                continue
            rows[row, lengths[row]] = token
            lengths[row] += 1
            answers[row].append(token)
    return answers


def byte_level_tokenizer(folder: Path) -> Path:
    """A small tokenizer.json of Qwen's kind: its rules, byte-level BPE, ChatML's marks."""
    import tokenizers
    from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers

    from huatuo_jax.weights.hf_tokenizer import QWEN2_WORDS

    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(QWEN2_WORDS), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet))
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>", "tokenizer_class": "Qwen2Tokenizer"}')
    return folder / "tokenizer.json"
