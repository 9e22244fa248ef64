"""`huatuo convert from-hf`: a folder becomes a base that is read like a run; whole or not at all."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")


from huatuo_jax import cli
from huatuo_jax.data.tokenizers import load_tokenizer
from huatuo_jax.models.presets import preset
from huatuo_jax.weights import base as base_module
from huatuo_jax.weights import open as open_module
from huatuo_jax.weights.hf_config import read_config, write_config
from huatuo_jax.weights.hf_read import open_weights
from huatuo_jax.weights.load import load_params
from huatuo_jax.weights.open import open_stored_model
from tests.support.hf_folders import (
    assert_close,
    baichuan_json,
    oracle,
    our_logits,
    random_model,
    tensors_of,
    their_logits,
    write_by_hand,
)

TEXTS = ["<问>：感冒了可以喝酒吗？\n<答>：感冒期间最好不要喝酒。", "甘草、黄芪、当归、人参、茯苓、白术、川芎、陈皮、麦冬。"]


@pytest.fixture(scope="module")
def tiny_file(tmp_path_factory) -> Path:
    from data_tools.tokens.tokenizer_training import train_tokenizer

    path = tmp_path_factory.mktemp("tokenizer") / "tiny.model"
    train_tokenizer(TEXTS * 20, 400, path, at_most=True)
    return path


@pytest.fixture
def folder(tmp_path, tiny_file) -> Path:
    """A Llama in bfloat16 with a tokenizer, a generation config and a Python file."""
    config = preset("tiny-llama2", vocab_size=load_tokenizer(tiny_file).vocab_size)
    tensors = {name: tensor.bfloat16() for name, tensor in tensors_of(random_model(config)).items()}
    write_by_hand(tmp_path / "llama", write_config(config, "llama", "bfloat16"), tensors)
    (tmp_path / "llama" / "tokenizer.model").write_bytes(tiny_file.read_bytes())
    (tmp_path / "llama" / "generation_config.json").write_text('{"top_p": 0.7}')
    (tmp_path / "llama" / "modeling_llama.py").write_text("raise SystemExit")
    return tmp_path / "llama"


def convert(*words: object) -> int:
    return cli.main(["convert", "from-hf", *map(str, words), "--mesh.fsdp", "1", "--quiet"])


def refusal(capsys, *words: object) -> str:
    """What the command says, as one line, where it refuses."""
    assert convert(*words) != 0
    return " ".join(capsys.readouterr().err.split())


def test_a_base_is_read_like_a_run(tmp_path, folder):
    assert convert(folder, tmp_path / "base", "--json", tmp_path / "report.json") == 0
    stored = open_stored_model(tmp_path / "base")
    model, params, meta = stored.config, stored.params(), stored.meta
    weights = open_weights(folder, read_config(folder))
    assert model == weights.config and meta["step"] == 0 and meta["template"] == "huatuo"
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), params, load_params(weights))
    assert load_tokenizer(tmp_path / "base").fingerprint == meta["tokenizer"]["fingerprint"]
    assert sorted(path.name for path in (tmp_path / "base" / "hf").iterdir()) == [
        "config.json",
        "generation_config.json",
        "tokenizer.model",
    ]
    assert json.loads((tmp_path / "report.json").read_text())["origin"]["layout"] == "llama"


@pytest.mark.parametrize(("flag", "stored"), [("auto", "bfloat16"), ("float32", "float32")])
def test_weights_are_stored_in_the_dtype_asked_for_and_restored_in_float32(tmp_path, folder, flag, stored):
    assert convert(folder, tmp_path / "base", "--dtype", flag) == 0
    as_stored = open_stored_model(tmp_path / "base").params(dtype=None)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(as_stored)} == {stored}
    wide = open_stored_model(tmp_path / "base").params()
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(wide)} == {"float32"}
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a.astype(jnp.float32)), np.asarray(b)), as_stored, wide)


def test_a_base_answers(tmp_path, folder, capsys):
    assert convert(folder, tmp_path / "base") == 0
    assert cli.main(["ask", str(tmp_path / "base"), "感冒了怎么办？", "--max-new-tokens", "4"]) == 0
    assert "感冒了怎么办？" in capsys.readouterr().out
    assert cli.main(["ask", str(tmp_path / "base")]) == 2
    assert "has no questions in a config" in capsys.readouterr().err


def test_a_folder_that_was_not_imported_answers_in_the_format_that_is_named(folder, capsys):
    assert cli.main(["ask", str(folder), "感冒了怎么办？", "--max-new-tokens", "4"]) == 2
    assert "give it with --format" in " ".join(capsys.readouterr().err.split())
    assert cli.main(["ask", str(folder), "感冒了怎么办？", "--max-new-tokens", "4", "--format", "huatuo"]) == 0
    assert "感冒了怎么办？" in capsys.readouterr().out
    assert cli.main(["ask", str(folder), "感冒了怎么办？", "--format", "huatuo", "--recall", "1"]) == 2
    assert "is no run" in " ".join(capsys.readouterr().err.split())


def test_a_vocabulary_with_its_own_tokenizer(tmp_path, baichuan_like):
    config = preset("tiny-baichuan2-7b", vocab_size=baichuan_like.vocab_size)
    module = random_model(config)
    write_by_hand(tmp_path / "baichuan2", baichuan_json(config), tensors_of(module))
    # The released Baichuan2 is known by its vocabulary, another one has to be told.
    options = [] if baichuan_like.vocab_size == 125_696 else ["--positions", "rope", "--head", "norm"]
    assert convert(tmp_path / "baichuan2", tmp_path / "base", "--tokenizer", baichuan_like.path, *options) == 0
    stored = open_stored_model(tmp_path / "base")
    model, params, meta = stored.config, stored.params(), stored.meta
    assert (model.positions, model.head, meta["tokenizer"]["vocab_size"]) == ("rope", "norm", baichuan_like.vocab_size)
    assert_close(our_logits(model, params), their_logits(module, config))


def test_what_config_json_leaves_open_is_answered_by_flags(tmp_path, tiny_file, capsys):
    config = preset("tiny-baichuan2-13b", vocab_size=512)
    module = random_model(config)
    write_by_hand(tmp_path / "baichuan", baichuan_json(config), tensors_of(module))
    words = [tmp_path / "baichuan", tmp_path / "base", "--tokenizer", tiny_file]
    assert "--positions rope or alibi" in refusal(capsys, *words)
    assert "--head linear or norm" in refusal(capsys, *words, "--positions", "alibi")
    assert convert(*words, "--positions", "alibi", "--head", "norm", "--name", config.name) == 0
    stored = open_stored_model(tmp_path / "base")
    model, params = stored.config, stored.params()
    assert model == config
    assert_close(our_logits(model, params), their_logits(module, config))


def test_a_tokenizer_larger_than_the_vocabulary_is_refused(tmp_path, folder, capsys):
    config = preset("tiny-llama2", vocab_size=40)
    write_by_hand(folder, write_config(config, "llama", "float32"), tensors_of(oracle(config)))
    message = refusal(capsys, folder, tmp_path / "base")
    assert "tokens and the model's vocabulary 40" in message and "--tokenizer" in message


@pytest.mark.parametrize(("share", "warned"), [(0.88, True), (0.92, False), (1.0, False)])
def test_a_tokenizer_smaller_than_padding_explains_is_warned_of(tmp_path, folder, capsys, share, warned):
    size = load_tokenizer(folder).vocab_size
    config = preset("tiny-llama2", vocab_size=round(size / share))
    write_by_hand(folder, write_config(config, "llama", "float32"), tensors_of(oracle(config)))
    assert convert(folder, tmp_path / "base") == 0
    message = f"has {size} tokens and the model's vocabulary {config.vocab_size}, more than padding explains"
    assert (message in capsys.readouterr().err) == warned


def test_the_vocabulary_of_qwen_is_padded_and_not_warned_of():
    assert open_module.PADDED_SHARE * 151_936 < 151_643


def test_a_folder_without_tokenizer_is_refused(tmp_path, folder, capsys):
    (folder / "tokenizer.model").unlink()
    assert "neither a SentencePiece .model nor a tokenizer.json" in refusal(capsys, folder, tmp_path / "base")


def test_a_template_that_the_tokenizer_cannot_carry_is_refused(tmp_path, folder, capsys):
    assert "llama3" in refusal(capsys, folder, tmp_path / "base", "--format", "llama3")
    assert not (tmp_path / "base").exists()


def test_a_target_that_exists_is_left_alone(tmp_path, folder, capsys):
    (tmp_path / "base").mkdir()
    assert "exists; choose another directory" in refusal(capsys, folder, tmp_path / "base")
    assert list((tmp_path / "base").iterdir()) == []


def test_a_disk_too_small_is_noticed_before_the_work(tmp_path, folder, capsys, monkeypatch):
    usage = dataclasses.make_dataclass("Usage", ["free"])(1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert "make room" in refusal(capsys, folder, tmp_path / "base")


def test_an_interrupted_import_leaves_nothing(tmp_path, folder, monkeypatch):
    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(base_module, "write_checkpoint", interrupted)
    assert convert(folder, tmp_path / "base") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["llama"]


def test_an_altered_base_is_found(tmp_path, folder, capsys):
    assert convert(folder, tmp_path / "base") == 0
    file = max((tmp_path / "base" / "checkpoints" / "0" / "params").rglob("d/*"), key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)
    assert cli.main(["ask", str(tmp_path / "base"), "感冒了怎么办？"]) == 1
    assert "altered" in capsys.readouterr().err
