"""Weights of Hugging Face folders: the same function as the original, every number as stored, wherever the parameters live."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from huatuo_jax.config import MeshConfig
from huatuo_jax.errors import DataError
from huatuo_jax.models.decoder import abstract_params
from huatuo_jax.sharding import make_mesh, param_shardings
from huatuo_jax.weights.checkpoint import named_leaves
from huatuo_jax.weights.hf_config import read_config, write_config
from huatuo_jax.weights.hf_read import open_weights
from huatuo_jax.weights.load import load_params
from tests.support.hf_folders import (
    FAMILIES,
    as_bits,
    assert_close,
    our_logits,
    random_model,
    tensors_of,
    their_logits,
    write_by_hand,
    write_folder,
)
from tests.support.random_models import hf_tensors

MESHES = [MeshConfig(fsdp=8), MeshConfig(data=2, fsdp=2, tensor=2), MeshConfig(fsdp=1, tensor=2)]
NARROW = [(name, dtype) for name in ("baichuan2-7b", "qwen2.5, tied") for dtype in (torch.bfloat16, torch.float16)]


def open_family(folder, family):
    """Config as read from the folder, tiny Baichuans with the answers that their size leaves open; and the weights."""
    config = FAMILIES[family]
    answers = {"positions": config.positions, "head": config.head} if config.family == "baichuan" else {}
    return open_weights(folder, read_config(folder, **answers))


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_the_original(tmp_path, family):
    module = random_model(FAMILIES[family])
    write_folder(tmp_path, family, module)
    weights = open_family(tmp_path, family)
    same = {"name": FAMILIES[family].name, "initializer_range": 0.02}
    assert dataclasses.replace(weights.config, **same) == FAMILIES[family]
    assert_close(our_logits(weights.config, load_params(weights)), their_logits(module, weights.config))


@pytest.mark.parametrize(("family", "dtype"), [*((name, torch.float32) for name in FAMILIES), *NARROW], ids=str)
def test_every_tensor_comes_back_bit_for_bit(tmp_path, family, dtype):
    stored = write_folder(tmp_path, family, random_model(FAMILIES[family]), dtype)
    weights = open_family(tmp_path, family)
    params = load_params(weights, make_mesh(MeshConfig(fsdp=4, tensor=2)), dtype=None)
    numpy_dtype = jnp.dtype(str(dtype).removeprefix("torch."))
    rebuilt = {name: t.astype(numpy_dtype) for name, t in hf_tensors(weights.config, params, weights.layout).items()}
    assert {name: as_bits(tensor) for name, tensor in rebuilt.items()} == {n: as_bits(t) for n, t in stored.items()}


@pytest.mark.parametrize(
    ("dtype", "kept"), [(torch.float32, "float32"), (torch.bfloat16, "bfloat16"), (torch.float16, "float32")], ids=str
)
def test_the_stored_dtype_holds_every_number(tmp_path, dtype, kept):
    write_folder(tmp_path, "llama2", random_model(FAMILIES["llama2"]), dtype)
    params = load_params(open_family(tmp_path, "llama2"), dtype=None)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(params)} == {kept}


def test_parameters_of_mixed_dtypes_keep_theirs(tmp_path):
    tensors = {n: t if "norm" in n else t.bfloat16() for n, t in tensors_of(random_model(FAMILIES["llama2"])).items()}
    config_json = write_config(FAMILIES["llama2"], "llama", "bfloat16")
    write_by_hand(tmp_path, config_json, tensors)
    params = named_leaves(load_params(open_family(tmp_path, "llama2"), dtype=None))
    assert params["layers.attention_norm"].dtype == jnp.float32 and params["layers.ffn.up"].dtype == jnp.bfloat16


def test_float32_can_be_rounded_while_it_is_read(tmp_path):
    write_folder(tmp_path, "llama2", random_model(FAMILIES["llama2"]))
    weights = open_family(tmp_path, "llama2")
    wide, narrow = load_params(weights), load_params(weights, dtype=jnp.bfloat16)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a.astype(jnp.bfloat16)), np.asarray(b)), wide, narrow)


@pytest.mark.parametrize("mesh", MESHES, ids=str)
@pytest.mark.parametrize("family", ["baichuan2-7b", "qwen2.5, tied"])
def test_parameters_are_sharded_as_the_rules_say(tmp_path, family, mesh):
    write_folder(tmp_path, family, random_model(FAMILIES[family]))
    weights, devices = open_family(tmp_path, family), make_mesh(mesh)
    params = load_params(weights, devices)
    whole = load_params(weights)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), params, whole)
    assert jax.tree.map(lambda a: a.sharding, params) == param_shardings(abstract_params(weights.config), devices)


def test_tables_of_rope_in_old_folders_are_ignored(tmp_path):
    tensors = tensors_of(random_model(FAMILIES["llama2"]))
    tables = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(8) for i in range(3)}
    write_by_hand(tmp_path, write_config(FAMILIES["llama2"], "llama", "float32"), tensors | tables)
    assert open_family(tmp_path, "llama2").layout == "llama"


def test_all_that_is_wrong_is_listed_at_once(tmp_path):
    tensors = tensors_of(random_model(FAMILIES["llama2"]))
    del tensors["model.layers.1.mlp.up_proj.weight"]
    tensors["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(64)
    tensors["model.norm.weight"] = torch.ones(65)
    tensors["model.layers.2.mlp.gate_proj.weight"] = torch.zeros((160, 64), dtype=torch.int8)
    write_by_hand(tmp_path, write_config(FAMILIES["llama2"], "llama", "float32"), tensors)
    with pytest.raises(DataError) as caught:
        open_family(tmp_path, "llama2")
    lines = str(caught.value).splitlines()
    assert "1 missing: model.layers.1.mlp.up_proj.weight" in lines[1]
    assert "1 surplus: model.layers.0.self_attn.q_proj.bias" in lines[2]
    assert "1 of another shape: model.norm.weight: [65], the config says [64]" in lines[3]
    assert "model.layers.2.mlp.gate_proj.weight: I8" in lines[4]


def test_tensors_of_another_width_are_named_with_both_shapes(tmp_path):
    config = dataclasses.replace(FAMILIES["llama2"], ffn_size=176)
    write_by_hand(tmp_path, write_config(config, "llama", "float32"), tensors_of(random_model(FAMILIES["llama2"])))
    with pytest.raises(DataError, match=r"9 of another shape: .*gate_proj.weight: \[160, 64\], the config says \[176, 64\]"):
        open_family(tmp_path, "llama2")


def test_untied_in_the_config_and_tied_in_the_files(tmp_path):
    tensors = tensors_of(random_model(FAMILIES["llama2"]))
    del tensors["lm_head.weight"]
    write_by_hand(tmp_path, write_config(FAMILIES["llama2"], "llama", "float32"), tensors)
    with pytest.raises(DataError, match="does not tie the embeddings"):
        open_family(tmp_path, "llama2")


def test_tied_in_the_config_and_another_head_in_the_files(tmp_path):
    tensors = tensors_of(random_model(FAMILIES["llama2"]))
    config = dataclasses.replace(FAMILIES["llama2"], tied_embeddings=True)
    write_by_hand(tmp_path, write_config(config, "llama", "float32"), tensors)
    with pytest.raises(DataError, match=r"ties the embeddings .*lm_head.weight is another matrix"):
        open_family(tmp_path, "llama2")


def test_tied_in_the_config_and_a_copy_of_the_embedding_in_the_files(tmp_path):
    tensors = tensors_of(random_model(FAMILIES["llama2"]))
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    config = dataclasses.replace(FAMILIES["llama2"], tied_embeddings=True)
    write_by_hand(tmp_path, write_config(config, "llama", "float32"), tensors)
    assert "head" not in load_params(open_family(tmp_path, "llama2"))
