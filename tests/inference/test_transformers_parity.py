"""Greedy answers in fp32 against transformers' `generate`, from the same Hugging Face folder."""

import json
import shutil

import numpy as np
import pytest

from huatuo_jax.cli import main as huatuo
from huatuo_jax.data.tokenizers import load_tokenizer
from huatuo_jax.inference.device import LARGEST_PIECE
from huatuo_jax.inference.engine import Engine
from huatuo_jax.inference.requests import Request
from huatuo_jax.inference.sampling import Sampling
from huatuo_jax.weights.hf_config import read_config
from huatuo_jax.weights.hf_read import open_weights
from huatuo_jax.weights.load import load_params

pytestmark = pytest.mark.usefixtures("compiled_fast")

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SHAPE = {
    "vocab_size": 384,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": 7,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
NEW_TOKENS, MARGIN = 48, 1e-4

PROMPTS = [np.random.default_rng(i).integers(8, 320, length).tolist() for i, length in enumerate([3, 40, 17, 1, 29, 700])]
"""The last is prefilled in two pieces, of 512 tokens and of the rest."""


@pytest.fixture(scope="module", params=["Llama", "Mistral", "Qwen2", "Qwen3"])
def folder_and_model(request, tmp_path_factory):
    """A folder that transformers wrote, grouped kv heads and RoPE inside, and the model that it holds."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{request.param}Config")(**SHAPE, head_dim=16)
    model = getattr(transformers, f"{request.param}ForCausalLM")(config).eval()
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    return folder, model


def engine_of(folder, num_rows):
    config = read_config(folder)
    return Engine(config, load_params(open_weights(folder, config)), (7,), num_rows=num_rows, steps_per_call=5)


def by_transformers(model, prompt, **settings):
    out = model.generate(
        torch.tensor([prompt]), max_new_tokens=NEW_TOKENS, do_sample=False, use_cache=True, output_logits=True,
        return_dict_in_generate=True, **settings,
    )  # fmt: skip
    tokens = out.sequences[0, len(prompt) :].tolist()
    return tokens, torch.cat(out.logits).numpy()


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_greedy_answers_are_those_of_transformers(folder_and_model, penalty):
    folder, model = folder_and_model
    requests = [Request(prompt, NEW_TOKENS, Sampling(repetition_penalty=penalty)) for prompt in PROMPTS]
    # Two rows for six prompts: rows are refilled in mid-flight.
    answers = engine_of(folder, num_rows=2).complete(requests)
    compared = 0
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        expected, logits = by_transformers(model, prompt, repetition_penalty=penalty)
        ours = answer.tokens + [7] * (answer.finish_reason == "end")
        differing = next((i for i, (a, b) in enumerate(zip(ours, expected, strict=False)) if a != b), None)
        if differing is None:
            assert ours == expected
            compared += len(ours)
        else:
            best, second = np.sort(logits[differing])[:-3:-1]
            assert best - second <= MARGIN, f"token {differing} differs with a margin of {best - second}"
            compared += differing
    assert compared > 100


def test_a_prompt_is_longer_than_the_largest_piece():
    assert LARGEST_PIECE < max(map(len, PROMPTS)) < SHAPE["max_position_embeddings"] - NEW_TOKENS


def test_the_command_answers_from_a_hugging_face_folder(folder_and_model, model_directory, tmp_path, capsys):
    folder = shutil.copytree(folder_and_model[0], tmp_path / "folder")
    shutil.copyfile(model_directory / "tokenizer.model", folder / "tokenizer.model")
    assert load_tokenizer(folder).vocab_size <= SHAPE["vocab_size"]
    (tmp_path / "q.txt").write_text("甘草？\n", encoding="utf-8")
    line = ["generate", folder, "--prompts", tmp_path / "q.txt", "--out", tmp_path / "a.jsonl", "--max-new-tokens", 4]
    assert huatuo([str(word) for word in line]) == 2
    assert "does not say its dialogue format; give it with --format" in " ".join(capsys.readouterr().err.split())
    assert huatuo([str(word) for word in [*line, "--format", "huatuo"]]) == 0
    assert json.loads((tmp_path / "a.jsonl").read_text(encoding="utf-8"))["prompt"] == "甘草？"
