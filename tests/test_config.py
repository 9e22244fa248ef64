"""Configs: impossible values are refused before anything is loaded; saved configs come back as they were."""

import dataclasses
from pathlib import Path

import pytest

from huatuo_jax.config import (
    ComputeConfig,
    DataConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    Question,
    RunConfig,
    SourceMix,
    config_from_dict,
    config_to_dict,
)
from huatuo_jax.config_files import MAY_DIFFER_ON_RESUME, differences, load_config
from huatuo_jax.errors import ConfigError
from huatuo_jax.mixtures import PAPER
from huatuo_jax.models.presets import preset

REPOSITORY = Path(__file__).parents[1]
SHIPPED = sorted(p for p in (REPOSITORY / "configs").glob("*.py") if p.stem not in ("__init__", "mixtures", "baselines"))


def a_config(**changes) -> RunConfig:
    return dataclasses.replace(RunConfig("run", preset("tiny-llama3"), data=DataConfig(sequence_length=128)), **changes)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_every_shipped_config_loads_and_survives_being_saved(path):
    config = load_config(path)
    assert config.name == path.stem
    assert config_from_dict(RunConfig, config_to_dict(config)) == config


def test_a_config_with_nested_optional_and_tuple_fields_survives_being_saved():
    config = a_config(questions=(Question("q", "a", "sft"),))
    assert config.model.rope_scaling is not None
    assert config_from_dict(RunConfig, config_to_dict(config)) == config


def test_an_unknown_field_of_a_saved_config_is_refused_by_name():
    with pytest.raises(ConfigError, match="unknown fields of RunConfig: bach_size"):
        config_from_dict(RunConfig, config_to_dict(a_config()) | {"bach_size": 4})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: a_config(batch_size=6, accumulation=4), r"batch_size \(6\) is not a multiple of accumulation \(4\)"),
        (lambda: a_config(batch_size=6, loss="mean_of_means"), r"not a multiple of rows_per_mean \(4\)"),
        (lambda: a_config(data=DataConfig(sequence_length=4096)), r"sequence_length \(4096\) is above model.max_length \(512\)"),
        (lambda: a_config(steps=-1), "steps is -1"),
        (lambda: SourceMix(priority=0), "priority is 0"),
        (lambda: SourceMix(epochs=-1), "epochs is -1"),
        (lambda: MeshConfig(data=-1, fsdp=-1), "only one may be -1"),
        (lambda: MeshConfig(tensor=0), "each is at least 1"),
        (lambda: OptimizerConfig(learning_rate=0), "learning_rate is 0"),
        (lambda: OptimizerConfig(warmup=1.0), "warmup is 1.0"),
        (lambda: OptimizerConfig(beta2=1.5), "beta2 is 1.5"),
        (lambda: OptimizerConfig(weight_decay=-1), "weight_decay is -1"),
        (lambda: SourceMix(epochs=float("inf")), "epochs is inf"),
        (lambda: a_config(compute=ComputeConfig(loss_chunks=5)), r"sequence_length \(128\) is not a multiple of .*\(5\)"),
        (lambda: ComputeConfig(loss_chunks=0), "loss_chunks is 0"),
        (lambda: DataConfig(sequence_length=1), "sequence_length is 1"),
        (lambda: preset("tiny-llama3", num_kv_heads=3), r"num_heads \(4\) is not a multiple of model.num_kv_heads \(3\)"),
        (lambda: preset("tiny-llama2", head_dim=15), "head_dim is 15"),
        (lambda: preset("tiny-baichuan2-7b", tied_embeddings=True), "NormHead|head 'norm' with tied"),
    ],
)
def test_impossible_values_are_refused_with_value_and_limit(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_only_fields_that_change_what_is_learned_count_as_differences():
    old = config_to_dict(a_config())
    new = config_to_dict(a_config(accumulation=2, mesh=MeshConfig(fsdp=4), seed=3, optimizer=OptimizerConfig(learning_rate=5e-5)))
    assert differences(old, new, MAY_DIFFER_ON_RESUME) == [("optimizer.learning_rate", 1e-4, 5e-5), ("seed", 0, 3)]


def test_a_file_without_config_and_one_that_returns_something_else_are_refused(tmp_path):
    (tmp_path / "empty.py").write_text("x = 1\n")
    (tmp_path / "wrong.py").write_text("def config():\n    return {}\n")
    with pytest.raises(ConfigError, match="no config file"):
        load_config(tmp_path / "absent.py")
    with pytest.raises(ConfigError, match="has no function"):
        load_config(tmp_path / "empty.py")
    with pytest.raises(ConfigError, match="returned dict, not RunConfig"):
        load_config(tmp_path / "wrong.py")


def test_the_paper_s_mixture_is_the_published_one():
    priorities = {name: (mix.priority, mix.epochs) for name, mix in PAPER.items()}
    assert priorities["medical_web_corpus_cn"] == priorities["medical_web_corpus_en"] == (32, 1)
    assert priorities["medical_literature_cn"] == priorities["medical_literature_en"] == (16, 1)
    assert priorities["medical_encyclopedia_cn"] == priorities["medical_encyclopedia_en"] == (8, 1)
    assert priorities["medical_books_cn"] == priorities["medical_books_en"] == (4, 1)
    assert priorities["sft"] == (1, 3)


def test_the_one_stage_recipe_is_the_published_one():
    config = load_config(REPOSITORY / "configs" / "huatuo2_7b.py")
    optimizer = config.optimizer
    assert (config.batch_size, config.data.sequence_length) == (128, 4096)
    assert (optimizer.learning_rate, optimizer.weight_decay, optimizer.clip_norm) == (1e-4, 0.1, 1.0)
    assert (optimizer.beta1, optimizer.beta2, optimizer.epsilon) == (0.9, 0.999, 1e-8)
    assert (optimizer.schedule, optimizer.schedule_epochs, optimizer.warmup) == ("huatuo", 1.0, 0.01)
    assert isinstance(config.model, ModelConfig) and config.model.head == "norm"


def test_the_baselines_differ_from_one_stage_in_data_only():
    one_stage = load_config(REPOSITORY / "configs" / "huatuo2_7b.py")
    random = load_config(REPOSITORY / "configs" / "huatuo2_7b_random.py")
    assert {mix.priority for mix in random.data.mixture.values()} == {1}
    assert {n: m.epochs for n, m in random.data.mixture.items()} == {n: m.epochs for n, m in one_stage.data.mixture.items()}
    first = load_config(REPOSITORY / "configs" / "huatuo2_7b_stage1.py")
    second = load_config(REPOSITORY / "configs" / "huatuo2_7b_stage2.py")
    assert set(first.data.mixture) | set(second.data.mixture) == set(one_stage.data.mixture)
    assert set(second.data.mixture) == {"sft"} and second.init == "runs/huatuo2_7b_stage1"
    for baseline in (random, first, second):
        assert baseline.model == one_stage.model and baseline.optimizer == one_stage.optimizer
