"""Exported folders opened by transformers 5: the logits and greedy answers are ours."""

import jax
import numpy as np
import pytest

from huatuo_jax.data.tokenizers import load_tokenizer
from huatuo_jax.weights.hf_write import ExportRequest, export
from tests.support.export_checkpoint import (
    BAICHUAN,
    LLAMA_LIKE,
    TEXTS,
    byte_level_tokenizer,
    greedy_of,
    random_model,
    tiny_tokenizer,
    write_run,
)
from tests.support.random_models import logits_of

pytestmark = pytest.mark.usefixtures("compiled_fast")

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

RELATIVE = 1e-4

ANSWERED = ("tiny-baichuan2-7b", "tiny-baichuan2-13b", "tiny-yi")
"""Presets whose greedy answers are compared too: NormHead, ALiBi, grouped kv heads."""


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def exported(tmp_path, name, tokenizer, format="auto", dtype="auto", **changes):
    """(model, params, folder) of a random model."""
    model, params = random_model(name, tokenizer, **changes)
    run = write_run(tmp_path / "run", model, params, tokenizer)
    export(run, tmp_path / "hf", ExportRequest(layout=format, dtype=dtype))
    return model, params, tmp_path / "hf"


def opened(folder, **options):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).eval()


def assert_same_logits(model, params, theirs):
    tokens = np.random.default_rng(0).integers(3, model.vocab_size, (2, 50)).astype(np.int32)
    ours = logits_of(model, params, tokens)
    with torch.no_grad():
        found = theirs(torch.from_numpy(tokens).long()).logits.float().numpy()
    error = np.abs(found - ours).max() / np.abs(ours).max()
    print(f"{model.name}: relative logit error {error:.1e}")
    assert error < RELATIVE


def assert_same_answers(model, params, theirs):
    """Rows of unequal length, padded on the left; 24 new tokens by both."""
    draw = np.random.default_rng(1)
    prompts = [draw.integers(3, model.vocab_size, length).tolist() for length in (9, 4, 13)]
    ours = greedy_of(model, params, prompts, 24, eos_id=2)
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    with torch.no_grad():
        out = theirs.generate(
            ids, attention_mask=mask, do_sample=False, repetition_penalty=1.0, max_new_tokens=24, eos_token_id=2, pad_token_id=2
        )
    assert [row[: row.index(2)] if 2 in row else row for row in out[:, width:].tolist()] == ours


@pytest.mark.parametrize("name", LLAMA_LIKE)
def test_plain_automodel_gives_our_logits_and_answers(name, tokenizer, tmp_path):
    model, params, folder = exported(tmp_path, name, tokenizer)
    theirs = opened(folder)
    assert type(theirs).__module__.startswith("transformers.models.")
    assert_same_logits(model, params, theirs)
    if name in ANSWERED:
        assert_same_answers(model, params, theirs)


def test_qwen2_with_a_byte_level_tokenizer(tmp_path):
    tokenizer = byte_level_tokenizer(tmp_path)
    model, params = random_model("tiny-qwen2", tokenizer)
    export(write_run(tmp_path / "run", model, params, tokenizer, "chatml"), tmp_path / "hf", ExportRequest())
    assert_same_logits(model, params, opened(tmp_path / "hf"))
    ours, theirs = load_tokenizer(tokenizer), transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert all(theirs(text)["input_ids"] == ours.encode(text) for text in TEXTS)


@pytest.mark.parametrize("name", BAICHUAN)
def test_a_native_baichuan_gives_our_logits_and_answers(name, tokenizer, tmp_path):
    model, params, folder = exported(tmp_path, name, tokenizer, format="native")
    theirs = opened(folder, trust_remote_code=True)
    assert theirs.lm_head.weight.shape == (model.vocab_size, model.hidden_size)
    assert_same_logits(model, params, theirs)
    if name in ANSWERED:
        assert_same_answers(model, params, theirs)


def test_alibi_with_heads_that_are_no_power_of_two(tokenizer, tmp_path):
    changes = {"num_heads": 6, "num_kv_heads": 6, "hidden_size": 60, "head_dim": 10}
    model, params, folder = exported(tmp_path, "tiny-baichuan2-13b", tokenizer, **changes)
    assert_same_logits(model, params, opened(folder, trust_remote_code=True))


def test_transformers_samples_as_we_do_by_the_exported_defaults(tokenizer, tmp_path):
    """All tokens are nearly equally likely; of some 400, top-p 0.7 leaves some 280, transformers' own top-k would leave 50."""
    _, _, folder = exported(tmp_path, "tiny-llama2", tokenizer)
    theirs = opened(folder)
    theirs.model.norm.weight.data.mul_(1e-3)
    torch.manual_seed(0)
    drawn = theirs.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=1, num_return_sequences=400)[:, -1]
    assert len(drawn.unique()) > 150


@pytest.mark.parametrize("name, dtype", [("tiny-baichuan2-7b", "bfloat16"), ("tiny-baichuan2-13b", "float16")])
def test_a_narrow_export_is_ours_with_rounded_weights(name, dtype, tokenizer, tmp_path):
    model, params, folder = exported(tmp_path, name, tokenizer, format="native", dtype=dtype)
    rounded = jax.tree.map(lambda p: p.astype(dtype).astype("float32"), params)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto", trust_remote_code=True).eval()
    assert theirs.dtype == getattr(torch, dtype)
    assert_same_logits(model, rounded, theirs.float())


def test_the_native_loss_is_cross_entropy_of_shifted_labels(tokenizer, tmp_path):
    model, params, folder = exported(tmp_path, "tiny-baichuan2-13b", tokenizer)
    tokens = np.random.default_rng(2).integers(3, model.vocab_size, (1, 20)).astype(np.int32)
    logits = logits_of(model, params, tokens)[0, :-1]
    expected = np.mean(np.log(np.exp(logits).sum(-1)) - logits[np.arange(19), tokens[0, 1:]])
    labels = torch.from_numpy(tokens).long()
    loss = opened(folder, trust_remote_code=True)(labels, labels=labels).loss
    np.testing.assert_allclose(loss.item(), expected, rtol=1e-5)


def test_a_second_pass_with_the_cache_equals_one_whole_pass(tokenizer, tmp_path):
    _, _, folder = exported(tmp_path, "tiny-baichuan2-13b", tokenizer)
    theirs = opened(folder, trust_remote_code=True)
    ids = torch.randint(3, 300, (1, 30), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = theirs(ids).logits
        first = theirs(ids[:, :18], use_cache=True)
        second = theirs(ids[:, 18:], past_key_values=first.past_key_values).logits
    torch.testing.assert_close(torch.cat([first.logits, second], dim=1), whole, rtol=1e-4, atol=1e-4)
