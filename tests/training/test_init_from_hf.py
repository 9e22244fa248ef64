"""A run that starts from other weights: from an imported base, and straight from a Hugging Face folder."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from huatuo_jax import cli
from huatuo_jax.cli.console import make_console
from huatuo_jax.config import RunConfig
from huatuo_jax.errors import ConfigError
from huatuo_jax.sharding import make_mesh
from huatuo_jax.training.startup import open_init, open_run_data
from huatuo_jax.training.trainer import train
from huatuo_jax.weights.hf_config import write_config
from huatuo_jax.weights.open import open_stored_model
from tests.support.random_models import hf_tensors

save_file = pytest.importorskip("safetensors.numpy").save_file


@pytest.fixture(scope="module")
def hf_folder(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished run's weights as a Llama folder with its tokenizer."""
    folder = tmp_path_factory.mktemp("hf") / "llama"
    folder.mkdir()
    model = open_stored_model(finished_run)
    config, params = model.config, model.params()
    save_file(hf_tensors(config, params, "llama"), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(write_config(config, "llama", "float32")))
    shutil.copyfile(finished_run / "tokenizer.model", folder / "tokenizer.model")
    return folder


@pytest.fixture(scope="module")
def base(hf_folder: Path) -> Path:
    """The same, imported."""
    out = hf_folder.parent / "base"
    assert cli.main(["convert", "from-hf", str(hf_folder), str(out), "--quiet"]) == 0
    return out


def weights_for(config: RunConfig, init: Path) -> dict[str, jax.Array]:
    config = dataclasses.replace(config, init=str(init))
    return open_init(config, open_run_data(config, make_console(quiet=True)).facts).params(make_mesh(config.mesh))


@pytest.mark.parametrize("kind", ["base", "hf_folder"])
def test_a_run_starts_from_the_very_weights(tiny_config, finished_run, kind, request) -> None:
    loaded = weights_for(tiny_config, request.getfixturevalue(kind))
    trained = open_stored_model(finished_run).params(make_mesh(tiny_config.mesh))
    assert jax.tree.map(lambda a: a.sharding, loaded) == jax.tree.map(lambda a: a.sharding, trained)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), loaded, trained)


@pytest.mark.parametrize("kind", ["base", "hf_folder"])
def test_training_goes_on_from_a_trained_model(tiny_config, finished_run, tmp_path, kind, request) -> None:
    config = dataclasses.replace(tiny_config, init=str(request.getfixturevalue(kind)), steps=3)
    report = train(config, tmp_path / "run", make_console(quiet=True))
    lines = [json.loads(line) for line in (finished_run / "metrics.jsonl").read_text().splitlines()]
    first = next(line["loss"] for line in lines if "loss" in line)
    assert report["case"] == "weights" and report["loss"] < first


def test_names_and_limits_may_differ_but_not_what_is_computed(tiny_config, hf_folder) -> None:
    model = dataclasses.replace(tiny_config.model, name="another", max_length=128, initializer_range=0.01)
    weights_for(dataclasses.replace(tiny_config, model=model), hf_folder)
    model = dataclasses.replace(tiny_config.model, norm_eps=1e-3, rope_theta=5e5)
    with pytest.raises(ConfigError, match=r"(?s)model.norm_eps: 1e-05 → 0.001.*model.rope_theta: 10000.0 → 500000.0"):
        weights_for(dataclasses.replace(tiny_config, model=model), hf_folder)


def test_a_folder_with_another_tokenizer_is_refused(tiny_config, hf_folder, tmp_path) -> None:
    folder = shutil.copytree(hf_folder, tmp_path / "llama")
    with open(folder / "tokenizer.model", "ab") as file:
        file.write(b"\0")
    with pytest.raises(ConfigError, match=r"tokenizer: \w+… → \w+… of the token dataset"):
        weights_for(tiny_config, folder)
    (folder / "tokenizer.model").unlink()
    with pytest.raises(ConfigError, match="holds no tokenizer"):
        weights_for(tiny_config, folder)


def test_a_base_is_no_run_to_go_on_with(tiny_config, base, tmp_path) -> None:
    run = shutil.copytree(base, tmp_path / "run")
    with pytest.raises(ConfigError, match="holds another run"):
        train(tiny_config, run, make_console(quiet=True))
