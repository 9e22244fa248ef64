"""Weights of 8 and 4 bits: rounding worked out by hand, the same answers as plain weights of those values, and memory."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from qwix import QArray
from safetensors.numpy import save_file

from huatuo_jax.cli import main as huatuo
from huatuo_jax.config import MeshConfig, config_to_dict
from huatuo_jax.errors import ConfigError
from huatuo_jax.inference.engine import Engine
from huatuo_jax.inference.model import Model
from huatuo_jax.inference.quantize import SUMMED_AXES, Quantization, Quantizer, dequantize, parse_quantization, stored_bytes
from huatuo_jax.inference.requests import Request
from huatuo_jax.models.decoder import abstract_params, split_decoder
from huatuo_jax.models.numerics import matmul
from huatuo_jax.models.presets import preset
from huatuo_jax.sharding import make_mesh, param_shardings
from huatuo_jax.weights import checkpoint, hf_read, load
from huatuo_jax.weights.checkpoint import named_leaves
from huatuo_jax.weights.compare import KL_GATE
from huatuo_jax.weights.hf_names import native_layout
from huatuo_jax.weights.open import open_stored_model
from tests.support.random_models import Uncached, hf_tensors, random_model

pytestmark = pytest.mark.usefixtures("compiled_fast")

KINDS = ["int8", "int4:8", "int4:32"]
"""With heads of 16: a group within a head, and one of two heads."""

values = jax.jit(dequantize)

PROMPTS = [[5, 9, 200, 31], [7], list(range(40, 55))]


def quantizer_of(config, kind, dtype=jnp.float32):
    return Quantizer(config, parse_quantization(kind), dtype)


@functools.cache
def model(name):
    return random_model(name)


@functools.cache
def quantized(name, kind):
    """(the quantised model's config, its parameters), from parameters in memory."""
    config, params = model(name)
    quantizer = quantizer_of(config, kind)
    kept = jax.jit(lambda leaves: {name: quantizer(name, array) for name, array in leaves.items()})(named_leaves(params))
    return quantizer.quantized_config, jax.tree.unflatten(jax.tree.structure(params), [kept[n] for n in named_leaves(params)])


def quantized_leaves(params):
    leaves = jax.tree_util.tree_leaves_with_path(params, is_leaf=lambda leaf: isinstance(leaf, QArray))
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def write_hf_folder(folder, config, params):
    """The weights as others would write them."""
    folder.mkdir()
    save_file(hf_tensors(config, params, native_layout(config)), folder / "model.safetensors")
    return hf_read.open_weights(folder, config)


def write_run(folder, config, params):
    checkpoint.write_checkpoint(
        folder / "checkpoints" / "1", 1, {"params": params}, {"config": {"model": config_to_dict(config)}}
    )
    return folder


# Rounding.


def test_int8_rounds_each_output_by_its_own_scale():
    # Two outputs (columns). The first's largest weight is 127.5/128, so its scale is 1/128; the second's scale is 1/4.
    weights = np.array([[-127.5 / 128, 31.875], [0.4 / 128, 0.0], [1.6 / 128, 0.3], [-3 / 128, -31.8]], np.float32)
    quantizer = Quantizer(preset("tiny-yi"), Quantization(8))
    kept = quantizer("layers.ffn.gate", jnp.asarray(weights))
    np.testing.assert_array_equal(kept.scale, [[1 / 128, 1 / 4]])
    np.testing.assert_array_equal(kept.qvalue, [[-128, 127], [0, 0], [2, 1], [-3, -127]])
    assert kept.qvalue.dtype == jnp.int8
    np.testing.assert_array_equal(values(kept), [[-1.0, 31.75], [0.0, 0.0], [2 / 128, 0.25], [-3 / 128, -31.75]])


def test_int4_rounds_each_group_of_an_output_by_its_own_scale():
    # One output, groups of two: scales 7.5/7.5 = 1 and 0.75/7.5 = 0.1.
    kept = Quantizer(preset("tiny-yi"), Quantization(4, 2))("layers.ffn.down", jnp.asarray([[7.5], [-2.4], [0.75], [-0.31]]))
    np.testing.assert_allclose(kept.scale, [[1], [0.1]], rtol=1e-6)
    np.testing.assert_array_equal(kept.qvalue, [[7], [-2], [7], [-3]])
    assert kept.qvalue.dtype == jnp.int4


def test_the_embedding_has_a_scale_per_token_and_zeros_stay_zero():
    kept = Quantizer(preset("tiny-yi"), Quantization(4, 2))("embedding", jnp.asarray([[255.0, 3.1], [0.0, 0.0]]))
    np.testing.assert_array_equal(kept.qvalue, [[127, 2], [0, 0]])
    np.testing.assert_array_equal(kept.scale[0], [2])
    assert kept.qvalue.dtype == jnp.int8


@pytest.mark.parametrize("kind", KINDS)
def test_no_weight_is_off_by_more_than_half_a_step(kind):
    params, kept = model("tiny-qwen2")[1], quantized("tiny-qwen2", kind)[1]
    decoded = named_leaves(values(kept))
    for name, leaf in quantized_leaves(kept).items():
        original = np.asarray(named_leaves(params)[name])
        assert isinstance(leaf, QArray) == (name in SUMMED_AXES), name
        if isinstance(leaf, QArray):
            step = np.asarray(leaf.scale)
            for axis, (size, scales) in enumerate(zip(original.shape, step.shape, strict=True)):
                step = np.repeat(step, size // scales, axis)
            assert (np.abs(np.asarray(decoded[name]) - original) <= step / 2 * (1 + 1e-4)).all(), name
        else:
            np.testing.assert_array_equal(leaf, original)


@pytest.mark.parametrize("group", [8, 16, 32, 64])
def test_groups_of_the_attention_output_run_over_the_joined_heads(group):
    config, params = model("tiny-yi")
    weights = params["layers"]["attention"]["output"]  # [2 layers, 4 heads, 16, 64]
    kept = jax.jit(lambda array: quantizer_of(config, f"int4:{group}")("layers.attention.output", array))(weights)
    largest = np.abs(np.asarray(weights).reshape(2, 64 // group, group, 64)).max(axis=2)
    np.testing.assert_allclose(kept.scale.reshape(2, 64 // group, 64), largest / 7.5, rtol=1e-6)


def test_a_norm_head_becomes_a_linear_head_of_normalised_rows():
    quantizer = Quantizer(preset("tiny-baichuan2-7b"), Quantization(8))
    rows = np.random.default_rng(0).normal(size=(5, 64)).astype(np.float32)
    found = values(quantizer("head", jnp.asarray(rows)))
    wanted = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    assert np.abs(found - wanted).max() <= np.abs(wanted).max() / 127.5 / 2 * (1 + 1e-4)
    assert quantizer.quantized_config == dataclasses.replace(quantizer.config, head="linear")


# Products and answers.


@pytest.mark.parametrize("kind", ["int8", "int4:8"])
@pytest.mark.parametrize("dtype,tolerance", [("float32", 1e-5), ("bfloat16", 2e-2)])
def test_a_product_with_quantised_weights_is_one_with_their_values(kind, dtype, tolerance):
    kept = jax.tree.map(lambda array: array[0], quantized("tiny-yi", kind)[1]["layers"]["attention"]["output"])
    x = jax.random.normal(jax.random.key(0), (2, 3, 4, 16), dtype)
    found = jax.jit(lambda x, kept: matmul("BSNH,NHD->BSD", x, kept, jnp.float32))(x, kept)
    wanted = np.einsum("bsnh,nhd->bsd", np.asarray(x, np.float64), np.asarray(values(kept), np.float64))
    np.testing.assert_allclose(found, wanted, atol=tolerance * np.abs(wanted).max())


@pytest.mark.parametrize(
    "name,kind",
    [("tiny-baichuan2-7b", "int8"), ("tiny-baichuan2-13b", "int4:32"), ("tiny-qwen3", "int4:8")],
)
def test_the_engine_answers_as_plain_weights_of_the_quantised_values_do(name, kind):
    """NormHead with RoPE; NormHead with ALiBi; grouped kv heads with tied embeddings."""
    config, params = quantized(name, kind)
    plain = Uncached(config, values(params))
    answers = Engine(config, params, (), num_rows=2).complete([Request(prompt, 12) for prompt in PROMPTS])
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        assert len(answer.tokens) == 12
        plain.assert_greedy(prompt, answer.tokens)


def mean_kl(a, b):
    a, b = (jax.nn.log_softmax(jnp.asarray(x)) for x in (a, b))
    return float((jnp.exp(a) * (a - b)).sum(axis=-1).mean())


def test_fewer_bits_move_the_predictions_further():
    config, params = model("tiny-baichuan2-7b")
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, 100)
    exact = Uncached(config, params).logits(tokens)
    divergence = {kind: mean_kl(exact, Uncached(*quantized("tiny-baichuan2-7b", kind)).logits(tokens)) for kind in KINDS}
    assert 0 < divergence["int8"] < KL_GATE["bfloat16"]
    assert 10 * divergence["int8"] < divergence["int4:8"] < divergence["int4:32"]


def test_bfloat16_answers_stay_close():
    config, params = quantized("tiny-yi", "int4:16")
    plain = Uncached(config, values(params))
    answers = Engine(config, params, (), num_rows=4, dtype="bfloat16").complete([Request(prompt, 8) for prompt in PROMPTS])
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        plain.assert_greedy(prompt, answer.tokens, margin=0.5)


# Loading.


def assert_same_and_sharded(found, wanted, config, mesh):
    shardings = named_leaves(param_shardings(abstract_params(config), mesh))
    for name, leaf in quantized_leaves(wanted).items():
        kept = quantized_leaves(found)[name]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-6), kept, leaf)
        if isinstance(leaf, QArray):
            assert kept.qvalue.sharding == shardings[name]
            parts = np.divide(leaf.shape, kept.qvalue.sharding.shard_shape(leaf.shape))
            held = kept.scale.sharding.shard_shape(leaf.scale.shape)
            assert held == tuple(np.where(np.equal(leaf.scale.shape, 1), 1, leaf.scale.shape / parts))


def test_a_folder_read_onto_a_mesh_holds_and_answers_the_same(tmp_path):
    config, params = model("tiny-baichuan2-7b")
    weights, mesh = write_hf_folder(tmp_path / "hf", config, params), make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    quantizer = quantizer_of(config, "int4:8")
    quantizer.check(mesh)
    sharded = load.load_params(weights, mesh, convert=quantizer)
    linear_config, single = quantized("tiny-baichuan2-7b", "int4:8")
    assert_same_and_sharded(sharded, single, config, mesh)
    plain = Uncached(linear_config, values(single))
    answers = Engine(linear_config, sharded, (), num_rows=3, mesh=mesh).complete([Request(prompt, 8) for prompt in PROMPTS])
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        plain.assert_greedy(prompt, answer.tokens)


def test_a_checkpoint_read_onto_a_mesh_holds_the_same(tmp_path):
    config, params = model("tiny-baichuan2-7b")
    run, mesh = write_run(tmp_path / "run", config, params), make_mesh(MeshConfig(fsdp=2, tensor=2))
    found = open_stored_model(run).params(mesh, convert=quantizer_of(config, "int8"))
    assert_same_and_sharded(found, quantized("tiny-baichuan2-7b", "int8")[1], config, mesh)


WIDE = {"num_layers": 12, "hidden_size": 256, "num_heads": 4, "head_dim": 64, "num_kv_heads": 4, "ffn_size": 512}


def alive():
    return stored_bytes(jax.live_arrays())


def test_an_hf_folder_is_never_in_memory_unquantised(tmp_path, monkeypatch):
    config, params = random_model("tiny-llama2", **WIDE)
    whole = stored_bytes(params)
    weights = write_hf_folder(tmp_path / "hf", config, params)
    del params
    before, peak = alive(), []
    read_part = hf_read.HFWeights.part

    def watched(*arguments):
        part = read_part(*arguments)
        peak.append(alive() - before + part.nbytes)  # what was kept so far, and the tensor that comes next
        return part

    monkeypatch.setattr(hf_read.HFWeights, "part", watched)
    kept = load.load_params(weights, convert=quantizer_of(config, "int4"))
    largest = max(tensor.dtype.itemsize * np.prod(tensor.shape) for tensor in weights.tensors.values())
    assert len(peak) == weights.count_parts()
    assert max(peak) <= stored_bytes(kept) + largest
    assert max(peak) < whole / 4


def test_a_checkpoint_is_quantised_array_by_array(tmp_path, monkeypatch):
    config, params = random_model("tiny-llama2", **WIDE)
    whole, largest = stored_bytes(params), max(leaf.nbytes for leaf in jax.tree.leaves(params))
    run = write_run(tmp_path / "run", config, params)
    del params
    before, peak = alive(), []
    converted = load.converted

    def watched(*arguments):
        peak.append(alive() - before)  # what was kept so far, and the array that comes next
        return converted(*arguments)

    monkeypatch.setattr(load, "converted", watched)
    kept = open_stored_model(run).params(convert=quantizer_of(config, "int4"))
    assert max(peak) <= stored_bytes(kept) + largest
    assert max(peak) < whole / 2
    assert alive() - before == stored_bytes(kept)


def test_reported_bytes_are_those_that_a_compiled_program_takes():
    for kind in ("int8", "int4:8"):
        _, kept = quantized("tiny-yi", kind)
        compiled = jax.jit(lambda tree: sum(leaf.sum() for leaf in jax.tree.leaves(dequantize(tree)))).lower(kept).compile()
        assert compiled.memory_analysis().argument_size_in_bytes == stored_bytes(kept)


def test_a_7b_takes_a_byte_or_half_a_byte_a_weight():
    config = preset("baichuan2-7b")
    linear = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008)
    outputs = 32 * (4 * 4096 + 2 * 11008 + 4096)
    rest = 4 * (2 * 32 + 1) * 4096 + 2 * 125_696 * (4096 + 4)  # norms; embedding and head with a scale a token
    for kind, projections in (("int8", linear + 4 * outputs), ("int4:128", linear // 2 + 4 * linear // 128)):
        quantizer = quantizer_of(config, kind)
        leaves = named_leaves(abstract_params(config))
        kept = {name: jax.eval_shape(lambda x, n=name, q=quantizer: q(n, x), leaf) for name, leaf in leaves.items()}
        assert stored_bytes(kept) == projections + rest


# What is refused.


@pytest.mark.parametrize("kind", ["int3", "int8:64", "int4:", "int4:0", "int4:1", "int4:x", "fp8", ""])
def test_unknown_kinds_are_refused(kind):
    with pytest.raises(ConfigError, match=r"(write|there are) int8, int4 or int4:GROUP"):
        parse_quantization(kind)


@pytest.mark.parametrize(
    "changes,group,message",
    [
        ({"ffn_size": 176}, 64, r"layers.ffn.down: a group of 64 does not divide the 176 weights of an output \(axes ffn\)"),
        ({}, 24, r"a group of 24 does not divide"),
        (
            {"num_heads": 6, "num_kv_heads": 6, "ffn_size": 128},
            64,
            r"output: a group of 64 .* 6 × 16 .*heads × head_dim",
        ),
        ({}, 128, r"a group of 128 does not divide"),
    ],
)
def test_a_group_that_does_not_divide_names_parameter_axes_and_sizes(changes, group, message):
    config = preset("tiny-yi", **changes)
    with pytest.raises(ConfigError, match=message):
        Quantizer(config, Quantization(4, group)).check()


def test_scales_that_do_not_divide_over_the_mesh_are_refused():
    quantizer = quantizer_of(preset("tiny-yi"), "int4:32")
    quantizer.check(make_mesh(MeshConfig(fsdp=2)))
    with pytest.raises(ConfigError, match=r"layers.ffn.down: groups of 32 make 5 scales along ffn, .* 2 devices .*axis tensor"):
        quantizer.check(make_mesh(MeshConfig(fsdp=1, tensor=2)))


def test_a_quantised_model_is_not_trained():
    config, params = quantized("tiny-yi", "int8")
    abstract = jax.eval_shape(lambda: params)
    loss = lambda params: nnx.merge(split_decoder(config), params).output_weights().scale.sum()
    with pytest.raises(TypeError, match="int8"):
        jax.eval_shape(jax.grad(loss), abstract)


# The commands.


def test_generate_and_ask_take_the_kind(model_directory, tmp_path, capsys):
    (tmp_path / "questions.txt").write_text("甘草有什么功效？\n", encoding="utf-8")
    words = ["generate", model_directory, "--prompts", tmp_path / "questions.txt", "--out", tmp_path / "answers.jsonl"]
    words += ["--max-new-tokens", "4", "--greedy", "--quantize"]
    assert huatuo([str(word) for word in [*words, "int4:16"]]) == 0
    assert len((tmp_path / "answers.jsonl").read_text(encoding="utf-8").splitlines()) == 1
    # Answers of another kind do not go into the same file.
    assert huatuo([str(word) for word in [*words, "int8"]]) == 2
    assert huatuo(["ask", str(model_directory), "甘草？", "--max-new-tokens", "4", "--quantize", "int8"]) == 0


def test_an_impossible_kind_is_refused_before_the_weights_are_read(model_directory, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Model, "params", lambda *_: pytest.fail("the weights were loaded"))
    (tmp_path / "questions.txt").write_text("甘草？\n", encoding="utf-8")
    for kind, message in (("int5", "no quantization 'int5'"), ("int4:48", "a group of 48 does not divide")):
        words = ["generate", model_directory, "--prompts", tmp_path / "questions.txt", "--out", tmp_path / "a.jsonl"]
        assert huatuo([str(word) for word in [*words, "--quantize", kind]]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "a.jsonl").exists()
