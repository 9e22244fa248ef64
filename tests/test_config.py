"""Configs: impossible values are refused before anything is loaded; saved configs come back as they were."""

import dataclasses
import os
import random
import subprocess
import sys
import zipfile
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
    with pytest.raises(ConfigError, match=r"empty.py: it has no function"):
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


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


NAMED = """
import dataclasses
from huatuo_jax.config_files import load_config
{imports}

def config():
    return dataclasses.replace(load_config("quickstart"), name={name})
"""


def named(path: Path, imports: str = "", name: str = "NAME") -> Path:
    """A config file that is called what `name`, an expression, says."""
    return write(path, NAMED.format(imports=imports, name=name))


LOAD = "import sys; from huatuo_jax.config_files import load_config; print(*(load_config(n).name for n in sys.argv[1:]))"


def load_elsewhere(cwd: Path, *names: str | Path, path: str = str(REPOSITORY)) -> list[str]:
    """The names of configs that another process loads in the working directory `cwd`, which it has on its path."""
    words = [sys.executable, "-c", LOAD, *map(str, names)]
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, check=True).stdout.split()


def test_recipes_are_found_by_name_from_anywhere(tmp_path):
    assert load_elsewhere(tmp_path, "huatuo2_7b", "quickstart_random") == ["huatuo2_7b", "quickstart_random"]


def test_an_unknown_name_lists_the_recipes():
    with pytest.raises(ConfigError, match=r"no config file huatuo2_7c and no recipe of that name; .*huatuo2_7b, "):
        load_config("huatuo2_7c")


@pytest.mark.parametrize(
    "imports", ["from configs.mine import NAME", "from mine import NAME", "import configs.mine\nNAME = configs.mine.NAME"]
)
def test_a_config_imports_its_neighbour(tmp_path, imports):
    write(tmp_path / "configs" / "mine.py", "NAME = 'law'\n")
    law = named(tmp_path / "configs" / "law.py", imports)
    assert load_config(law).name == "law"
    assert load_elsewhere(tmp_path, "configs/law.py") == ["law"]
    assert "mine" not in sys.modules and "configs" not in sys.modules


@pytest.mark.parametrize("imports", ["from configs.mine import NAME", "from mine import NAME", "from shared.names import NAME"])
def test_two_folders_of_one_name_do_not_mix(tmp_path, imports):
    files = []
    for name in ("law", "finance"):
        for neighbour in ("configs/mine.py", "shared/names.py"):
            write(tmp_path / name / neighbour, f"NAME = {name!r}\n")
        files.append(named(tmp_path / name / "configs" / "run.py", imports))
    assert [load_config(file).name for file in (*files, *files)] == ["law", "finance"] * 2
    # In a working directory that has such a folder, and such a file, too.
    write(tmp_path / "configs" / "mine.py", "NAME = 'wrong'\n")
    write(tmp_path / "mine.py", "NAME = 'wrong'\n")
    assert load_elsewhere(tmp_path, *files) == ["law", "finance"]


def test_an_edited_neighbour_is_read_again(tmp_path):
    law = named(tmp_path / "configs" / "law.py", "from mine import NAME")
    for name in ("first", "the second"):
        write(tmp_path / "configs" / "mine.py", f"NAME = {name!r}\n")
        assert load_config(law).name == name


def test_a_neighbour_hides_no_library(tmp_path):
    for name in ("random", "json", "time", "numpy", "tomllib"):
        write(tmp_path / "configs" / f"{name}.py", "raise RuntimeError('not the library')\n")
    imports = "import json, random, time, tomllib\nimport numpy\nNAME = numpy.__name__ + str(random.Random(0).randrange(10))"
    law = named(tmp_path / "configs" / "law.py", imports)
    assert load_config(law).name == "numpy6"
    assert load_elsewhere(tmp_path, law) == ["numpy6"]
    assert sys.modules["random"] is random


@pytest.mark.parametrize("folder", ["jax", "numpy", "huatuo_jax", "data_tools", "json"])
def test_a_folder_called_like_a_library_hides_it_no_more(tmp_path, folder):
    imports = "import jax, numpy, json\nimport data_tools.records.layouts\nfrom mine import NAME\nassert jax.jit"
    write(tmp_path / folder / "mine.py", "NAME = 'law'\n")
    law = named(tmp_path / folder / "law.py", imports)
    assert load_config(law).name == "law"
    assert load_elsewhere(tmp_path / folder, law) == ["law"]


@pytest.mark.parametrize("folder", ["v2.0", ".hidden", "exp v1.2", "my-configs", "run.d"])
def test_a_folder_may_have_a_name_that_no_module_could_have(tmp_path, folder):
    write(tmp_path / folder / "mine.py", "NAME = 'law'\n")
    assert load_config(named(tmp_path / folder / "law.py", "from mine import NAME")).name == "law"


def test_a_config_may_define_dataclasses(tmp_path):
    text = (
        "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass Names:\n    name: str = 'law'\n"
    )
    law = write(tmp_path / "law.py", text + NAMED.format(imports="", name="Names().name"))
    assert load_config(law).name == "law"


def test_the_line_at_fault_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "division.py", "def config():\n    x = 1\n    return x / 0\n")
    write(tmp_path / "syntax.py", "x = 1\ndef config(:\n")
    write(tmp_path / "neighbour.py", "\nimport syntax\n")
    write(tmp_path / "value.py", "from huatuo_jax.config import SourceMix\nx = SourceMix(priority=0)\n")
    for name, message in (
        ("division.py", "division.py, line 3: ZeroDivisionError"),
        ("syntax.py", "syntax.py, line 2: SyntaxError"),
        ("neighbour.py", "neighbour.py, line 2: SyntaxError"),
        ("value.py", "value.py: .*priority is 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_config(name)
        with pytest.raises(ConfigError, match=message):
            load_config(tmp_path / name)


@pytest.mark.slow
def test_an_installed_wheel_brings_its_recipes_and_no_package_called_configs(tmp_path):
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, REPOSITORY], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"huatuo_jax", "data_tools"}
    subprocess.run([*pip, "install", "--no-deps", "--target", tmp_path / "installed", wheel], check=True)
    shipped = [path.stem for path in SHIPPED]
    (tmp_path / "empty").mkdir()
    assert load_elsewhere(tmp_path / "empty", *shipped, path=str(tmp_path / "installed")) == shipped
    write(tmp_path / "configs" / "mine.py", "NAME = 'law'\n")
    law = named(tmp_path / "configs" / "law.py", "from configs.mine import NAME")
    assert load_elsewhere(tmp_path, "configs/law.py", law, path=str(tmp_path / "installed")) == ["law", "law"]
