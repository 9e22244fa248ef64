"""Baichuan2's output matrix in a folder: rows raw or divided by their length, with or without `z_loss_weight`, in any dtype."""

import json

import numpy as np
import pytest

from tests.support.export_checkpoint import tiny_tokenizer

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors.torch import load_file

from huatuo_jax import cli
from huatuo_jax.models.presets import preset
from huatuo_jax.weights.open import open_stored_model
from tests.support.hf_folders import (
    TOKENS,
    as_bits,
    assert_close,
    baichuan_json,
    our_logits,
    random_model,
    tensors_of,
    their_logits,
    write_by_hand,
)

ROUNDING = {torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}
"""Relative: of one number. A sum of many is off by no more than twice that."""


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def huatuo(*words) -> None:
    assert cli.main([*map(str, words), "--quiet"]) == 0


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("weight", [None, 0, 2e-4])
@pytest.mark.parametrize("rows", ["raw", "normalised"])
def test_it_loads_and_leaves_as_the_same_function(rows, weight, dtype, tokenizer, tmp_path):
    config = preset("tiny-baichuan2-7b", vocab_size=512)
    module = random_model(config)
    if rows == "normalised":
        with torch.no_grad():
            module.lm_head.weight.copy_(torch.nn.functional.normalize(module.lm_head.weight))
    module = module.to(dtype)
    values = baichuan_json(config) | ({} if weight is None else {"z_loss_weight": weight})
    stored = write_by_hand(tmp_path / "in", values, tensors_of(module))
    bits = {name: as_bits(tensor) for name, tensor in stored.items()}
    expected = their_logits(module.float(), config)

    # Without z_loss_weight nothing in the file says what the head of so small a vocabulary is.
    options = ["--head", "norm"] if weight is None else []
    huatuo("convert", "from-hf", tmp_path / "in", tmp_path / "base", "--tokenizer", tokenizer, "--mesh.fsdp", 1, *options)
    stored = open_stored_model(tmp_path / "base")
    found, params = stored.config, stored.params()
    assert (found.head, found.z_loss_weight) == ("norm", weight or 0)
    assert_close(our_logits(found, params), expected)

    huatuo("convert", "to-hf", tmp_path / "base", tmp_path / "native", "--layout", "native")
    assert {name: as_bits(t) for name, t in load_file(tmp_path / "native" / "model.safetensors").items()} == bits
    assert json.loads((tmp_path / "native" / "config.json").read_text())["z_loss_weight"] == (weight or 0)

    huatuo("convert", "to-hf", tmp_path / "base", tmp_path / "llama")
    head = load_file(tmp_path / "llama" / "model.safetensors")["lm_head.weight"]
    assert head.dtype == dtype
    np.testing.assert_allclose(head.float().norm(dim=-1).numpy(), 1, rtol=ROUNDING[dtype])
    for folder, tolerance in (("native", 1e-4), ("llama", 1e-4 + 2 * ROUNDING[dtype])):
        theirs = transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path / folder, dtype=torch.float32, trust_remote_code=folder == "native"
        ).eval()
        with torch.no_grad():
            assert_close(theirs(torch.tensor(TOKENS)).logits.numpy(), expected, tolerance)
