"""Folders exported by huatuo-jax, opened by transformers 4.46 in an environment of its own: `make test-hf4`."""

import json
import os
from pathlib import Path

import pytest

EXPORTS = os.environ.get("HUATUO_EXPORTS", "")

pytestmark = [
    pytest.mark.hf4,
    pytest.mark.skipif(not EXPORTS, reason="`make test-hf4` exports the folders and runs this under transformers 4.46"),
]


def exported(kind: str) -> list:
    return sorted(Path(EXPORTS, kind).iterdir()) if EXPORTS else []


@pytest.fixture(scope="module", autouse=True)
def transformers_4():
    transformers = pytest.importorskip("transformers")
    assert transformers.__version__.startswith("4.46.")
    return transformers


def test_there_are_folders_to_open():
    assert len(exported("models")) >= 10 and exported("tokenizers")


@pytest.mark.parametrize("folder", exported("models"), ids=lambda p: p.name)
def test_logits_and_greedy_answers_are_ours(folder, transformers_4):
    import numpy as np
    import torch

    native = folder.name.endswith("native")
    model = transformers_4.AutoModelForCausalLM.from_pretrained(
        folder, torch_dtype=torch.float32, trust_remote_code=native
    ).eval()
    expected = np.load(folder / "expected.npz")
    answers = json.loads((folder / "expected.json").read_text())
    with torch.no_grad():
        logits = model(torch.from_numpy(expected["tokens"]).long()).logits.numpy()
        prompts = torch.tensor(answers["prompts"])
        out = model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            do_sample=False,
            repetition_penalty=1.0,
            max_new_tokens=16,
            eos_token_id=2,
            pad_token_id=2,
        )[:, prompts.shape[1] :].tolist()
    error = np.abs(logits - expected["logits"]).max() / np.abs(expected["logits"]).max()
    print(f"{folder.name}: relative logit error {error:.1e}")
    assert error < 1e-4
    assert [row[: row.index(2)] if 2 in row else row for row in out] == answers["answers"]


@pytest.mark.parametrize("folder", exported("models"), ids=lambda p: p.name)
def test_sampling_is_ours_and_the_tokenizer_opens_without_a_warning(folder, transformers_4, caplog, recwarn):
    """Where all tokens are nearly equally likely, top-p 0.7 leaves more than the 50 of transformers' own top-k."""
    import torch

    native = folder.name.endswith("native")
    transformers_4.utils.logging.enable_propagation()
    tokenizer = transformers_4.AutoTokenizer.from_pretrained(folder)
    transformers_4.utils.logging.disable_propagation()
    assert (caplog.messages, list(recwarn)) == ([], [])
    assert tokenizer.init_kwargs["huatuo_template"] in ("huatuo", "chatml")
    model = transformers_4.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=native).eval()
    model.model.norm.weight.data.mul_(1e-3)
    prompt = torch.tensor([[5, 6, 7]])
    drawn = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=1, num_return_sequences=400)[:, -1]
    assert len(drawn.unique()) > 150


@pytest.mark.parametrize("folder", exported("tokenizers"), ids=lambda p: p.name)
def test_ids_and_prompts_are_ours(folder, transformers_4):
    tokenizer = transformers_4.AutoTokenizer.from_pretrained(folder)
    expected = json.loads((folder / "expected.json").read_text(encoding="utf-8"))
    found = tokenizer(expected["texts"])["input_ids"]
    equal = sum(a == b for a, b in zip(found, expected["ids"], strict=True))
    print(f"{folder.name}: {equal} of {len(found)} texts equal")
    assert found == expected["ids"]
    for turns, prompt in zip(expected["asked"], expected["prompts"], strict=True):
        messages = [{"role": "assistant" if i % 2 else "user", "content": turn} for i, turn in enumerate(turns)]
        assert tokenizer.apply_chat_template(messages, add_generation_prompt=True) == prompt
    assert set(tokenizer(expected["texts"][:1])) == {"input_ids", "attention_mask"}
    assert tokenizer.decode(found[0]) == expected["texts"][0]
