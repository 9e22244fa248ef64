"""One table between our parameters and the tensors of a folder: everything once, both ways, against the names that others use."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from huatuo_jax.errors import ConfigError
from huatuo_jax.models.decoder import abstract_params
from huatuo_jax.models.presets import PRESETS, preset
from huatuo_jax.weights.checkpoint import named_leaves
from huatuo_jax.weights.hf_names import LAYOUTS, check_layout, native_layout, parameter_shapes, table, tensors
from tests.support.hf_folders import FAMILIES, oracle

MODELS = {name: model for name, model in PRESETS.items() if name.startswith("tiny") or model.num_layers >= 16}


def layouts_of(config) -> list[str]:
    """All layouts that have a place for the model."""
    found = []
    for layout in LAYOUTS:
        try:
            check_layout(config, layout)
        except ConfigError:
            continue
        found.append(layout)
    return found


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_has_one_row_and_its_shape(name):
    config = MODELS[name]
    for layout in layouts_of(config):
        rows = {row.ours: row for row in table(config, layout)}
        assert len(rows) == len(table(config, layout))
        shapes = {ours: ((config.num_layers, *row.shape) if row.per_layer else row.shape) for ours, row in rows.items()}
        assert shapes == {ours: leaf.shape for ours, leaf in named_leaves(abstract_params(config)).items()}
        assert shapes == parameter_shapes(config)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_of_the_original_is_made_once_and_no_other(family):
    config = FAMILIES[family]
    theirs = {name: tuple(parameter.shape) for name, parameter in oracle(config).named_parameters()}
    ours = tensors(config, native_layout(config))
    assert {name: parts[0][0].their_shape for name, parts in ours.items()} == theirs
    for parts in ours.values():
        rows = [row for row, _ in parts]
        ends = [row.start + int(np.prod(row.view)) // int(np.prod(row.their_shape[1:])) for row in rows]
        assert [row.start for row in rows] == [0, *ends[:-1]] and ends[-1] == rows[0].their_shape[0]


@pytest.mark.parametrize(
    ("family", "layout"), [(name, layout) for name, model in FAMILIES.items() for layout in layouts_of(model)]
)
def test_there_and_back_is_the_same_tensor(family, layout):
    config = FAMILIES[family]
    for name, parts in tensors(config, layout).items():
        tensor = np.arange(np.prod(parts[0][0].their_shape)).reshape(parts[0][0].their_shape)
        back = [row.to_theirs(row.to_ours(row.part_of(tensor))) for row, _ in parts]
        np.testing.assert_array_equal(np.concatenate(back), tensor, name)


def test_a_linear_is_transposed_and_its_heads_split():
    row = next(row for row in table(preset("tiny-llama2"), "llama") if row.ours == "layers.attention.query")
    tensor = np.random.default_rng(0).normal(size=row.their_shape)
    ours = row.to_ours(row.part_of(tensor))
    assert ours.shape == (64, 4, 16) and ours[5, 2, 3] == tensor[2 * 16 + 3, 5]


def test_w_pack_is_query_then_key_then_value():
    parts = tensors(preset("tiny-baichuan2-7b"), "baichuan")["model.layers.1.self_attn.W_pack.weight"]
    rows = [row for row, layer in parts if layer == 1]
    assert [row.ours.split(".")[-1] for row in rows] == ["query", "key", "value"]
    assert [row.start for row in rows] == [0, 64, 128]


@pytest.mark.parametrize(
    ("model", "layout", "reason"),
    [
        ("tiny-baichuan2-13b", "llama", "ALiBi"),
        ("tiny-qwen2", "llama", "biases"),
        ("tiny-qwen3", "llama", "q and k norms"),
        ("tiny-llama2", "qwen2", "has none"),
        ("tiny-yi", "baichuan", "grouped kv heads"),
        ("tiny-llama2", "gpt2", "llama, baichuan, qwen2, qwen3, yi"),
    ],
)
def test_a_layout_without_a_place_for_the_model_is_refused(model, layout, reason):
    with pytest.raises(ConfigError, match=reason):
        table(preset(model), layout)
