"""Hugging Face → ours → Hugging Face by the two commands: every tensor comes back bit for bit."""

import dataclasses
import json

import numpy as np
import pytest

from tests.support.export_checkpoint import byte_level_tokenizer, tiny_tokenizer

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors.torch import load_file

from huatuo_jax import cli
from huatuo_jax.data.tokenizers import load_tokenizer
from tests.support.hf_folders import FAMILIES, as_bits, baichuan_json, random_model, tensors_of, write_by_hand, yi_json

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(scope="module")
def sentencepiece_file(tmp_path_factory):
    return tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def byte_level_file(tmp_path_factory):
    return byte_level_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def huatuo(*words) -> None:
    assert cli.main([*map(str, words), "--quiet"]) == 0


def import_folder(folder, base, config, tokenizer):
    """`convert from-hf`, told what a Baichuan's config.json leaves open."""
    options = ["--positions", config.positions, "--head", config.head] if config.family == "baichuan" else []
    huatuo("convert", "from-hf", folder, base, "--tokenizer", tokenizer, "--mesh.fsdp", 1, *options)


def stored(folder) -> dict[str, tuple]:
    return {name: as_bits(tensor) for name, tensor in load_file(folder / "model.safetensors").items()}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_comes_back_bit_for_bit(name, tmp_path, sentencepiece_file, byte_level_file):
    tokenizer = byte_level_file if "qwen" in name else sentencepiece_file
    config = dataclasses.replace(FAMILIES[name], vocab_size=load_tokenizer(tokenizer).vocab_size + 3)
    dtype = DTYPES[list(FAMILIES).index(name) % len(DTYPES)]
    module = random_model(config).to(dtype)
    if name == "yi, spelt Yi":
        renamed = {"input_layernorm": "ln1", "post_attention_layernorm": "ln2"}
        spelt = {".".join(renamed.get(w, w) for w in key.split(".")): t for key, t in tensors_of(module).items()}
        write_by_hand(tmp_path / "in", yi_json(config), spelt)
    elif config.family == "baichuan":
        write_by_hand(tmp_path / "in", baichuan_json(config), tensors_of(module))
    else:
        module.save_pretrained(tmp_path / "in")
    import_folder(tmp_path / "in", tmp_path / "base", config, tokenizer)
    huatuo("convert", "to-hf", tmp_path / "base", tmp_path / "out", "--layout", "native")
    assert stored(tmp_path / "out") == {key: as_bits(tensor) for key, tensor in tensors_of(module).items()}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == config.vocab_size


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_torch_folder_keeps_its_dtype_and_every_bit(dtype, tmp_path, sentencepiece_file):
    config = dataclasses.replace(FAMILIES["llama2"], vocab_size=load_tokenizer(sentencepiece_file).vocab_size)
    module = random_model(config).to(dtype)
    module.config.save_pretrained(tmp_path / "in")
    torch.save(tensors_of(module), tmp_path / "in" / "pytorch_model.bin")
    import_folder(tmp_path / "in", tmp_path / "base", config, sentencepiece_file)
    huatuo("convert", "to-hf", tmp_path / "base", tmp_path / "out")
    assert stored(tmp_path / "out") == {key: as_bits(tensor) for key, tensor in tensors_of(module).items()}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == str(dtype).removeprefix("torch.")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["baichuan2-7b", "baichuan-7b"])
def test_a_baichuan_written_as_llama_comes_back_bit_for_bit(name, dtype, tmp_path, sentencepiece_file):
    config = dataclasses.replace(FAMILIES[name], vocab_size=load_tokenizer(sentencepiece_file).vocab_size)
    module = random_model(config).to(dtype)
    write_by_hand(tmp_path / "in", baichuan_json(config), tensors_of(module))
    import_folder(tmp_path / "in", tmp_path / "base", config, sentencepiece_file)
    huatuo("convert", "to-hf", tmp_path / "base", tmp_path / "llama")
    huatuo("convert", "from-hf", tmp_path / "llama", tmp_path / "again", "--mesh.fsdp", 1)
    huatuo("convert", "to-hf", tmp_path / "again", tmp_path / "out")
    found = load_file(tmp_path / "llama" / "model.safetensors")
    assert stored(tmp_path / "out") == {key: as_bits(tensor) for key, tensor in found.items()}

    packed = module.state_dict()["model.layers.1.self_attn.W_pack.weight"].chunk(3)
    for letter, part in zip("qkv", packed, strict=True):
        assert as_bits(found[f"model.layers.1.self_attn.{letter}_proj.weight"]) == as_bits(part)
    head = module.lm_head.weight.detach().float()
    if config.head == "norm":
        head = head / head.norm(dim=-1, keepdim=True)
    assert found["lm_head.weight"].dtype == dtype
    last_place = {torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}[dtype]
    np.testing.assert_allclose(found["lm_head.weight"].float().numpy(), head.numpy(), rtol=last_place, atol=2**-24)


def test_the_size_of_the_vocabulary_is_never_changed(tmp_path, baichuan_like):
    """The real one's neither, where the real data is."""
    size = baichuan_like.vocab_size
    config = dataclasses.replace(FAMILIES["baichuan2-7b"], vocab_size=size)
    module = random_model(config).to(torch.bfloat16)
    write_by_hand(tmp_path / "in", baichuan_json(config), tensors_of(module))
    import_folder(tmp_path / "in", tmp_path / "base", config, baichuan_like.path)
    huatuo("convert", "to-hf", tmp_path / "base", tmp_path / "native", "--layout", "native")
    huatuo("convert", "to-hf", tmp_path / "base", tmp_path / "llama")
    assert stored(tmp_path / "native") == {key: as_bits(tensor) for key, tensor in tensors_of(module).items()}
    for folder in ("native", "llama"):
        assert json.loads((tmp_path / folder / "config.json").read_text())["vocab_size"] == size
        assert len(transformers.AutoTokenizer.from_pretrained(tmp_path / folder)) == size
