"""What an exported folder holds, and what is refused before anything is written."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from huatuo_jax import cli
from huatuo_jax.models.presets import PRESETS
from huatuo_jax.weights.hf_write import ExportRequest, choose_layout, export
from tests.support.export_checkpoint import byte_level_tokenizer, random_model, tiny_tokenizer, write_run


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def run(tmp_path_factory, tokenizer):
    """A run of Baichuan2-7B's shape, with the facts of a training run."""
    model, params = random_model("tiny-baichuan2-7b", tokenizer)
    folder = tmp_path_factory.mktemp("run")
    config = {
        "model": {**vars(model)},
        "optimizer": {
            "learning_rate": 1e-4,
            "beta1": 0.9,
            "beta2": 0.999,
            "weight_decay": 0.1,
            "clip_norm": 1.0,
            "schedule": "huatuo",
            "warmup": 0.01,
        },
        "data": {
            "sequence_length": 4096,
            "packing": "first_fit",
            "mixture": {"medical_books_cn": {"priority": 4.0, "epochs": 1.0}, "sft": {"priority": 1.0, "epochs": 3.0}},
        },
        "compute": {"dtype": "float32"},
        "batch_size": 128,
        "loss": "global",
        "init": "",
    }
    write_run(folder, model, params, tokenizer, config=config, total_steps=9)
    lines = [
        {"step": 5, "loss": 1.9, "tokens": 1000, "target_tokens": 600},
        {"step": 7, "eval_loss": 2.25},
        {"step": 7, "loss": 1.5, "tokens": 1400, "target_tokens": 850},
        {"step": 9, "loss": 1.1, "tokens": 1800, "target_tokens": 1100},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 10, "lo')
    return folder


def refusal(capsys, *words) -> str:
    """What the command says, as one line, where it refuses."""
    assert cli.main(["convert", "to-hf", *map(str, words), "--quiet"]) != 0
    return " ".join(capsys.readouterr().err.split())


def test_the_folder_is_whole_and_the_report_counts(run, tmp_path):
    report_file = tmp_path / "report.json"
    assert cli.main(["convert", "to-hf", str(run), str(tmp_path / "hf"), "--json", str(report_file), "--quiet"]) == 0
    report = json.loads(report_file.read_text())
    tensors = load_file(tmp_path / "hf" / "model.safetensors")
    assert (report["tensors"], report["bytes"]) == (len(tensors), sum(t.nbytes for t in tensors.values()))
    assert (report["layout"], report["dtype"], report["step"], report["shards"]) == ("llama", "float32", 7, 1)
    assert {p.name for p in (tmp_path / "hf").iterdir()} == {
        *("config.json", "generation_config.json", "model.safetensors", "README.md"),
        *("tokenizer.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    }
    assert {p.name for p in tmp_path.iterdir()} == {"hf", "report.json"}


def test_generation_defaults_are_those_of_the_release(run, tmp_path):
    export(run, tmp_path / "hf", ExportRequest())
    assert json.loads((tmp_path / "hf" / "generation_config.json").read_text()) == {
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "do_sample": True,
        "temperature": 0.3,
        "top_k": 0,
        "top_p": 0.7,
        "repetition_penalty": 1.1,
        "max_new_tokens": 1024,
    }


def test_the_card_tells_recipe_mixture_and_figures_of_that_step(run, tmp_path):
    export(run, tmp_path / "hf", ExportRequest(license="apache-2.0", name="湿疹: a test", base_model="org/base"))
    card = (tmp_path / "hf" / "README.md").read_text(encoding="utf-8")
    yaml = pytest.importorskip("yaml")
    front = yaml.safe_load(card.split("---")[1])
    assert front["license"] == "apache-2.0" and front["base_model"] == "org/base" and front["language"] == ["zh", "en"]
    assert "# 湿疹: a test" in card
    assert "research artefact" in card and "<问>：first question" in card
    assert "| medical_books_cn | 4 | 1 |" in card and "| sft | 1 | 3 |" in card
    assert "| learning rate | 0.0001, schedule huatuo, warm-up 0.01 |" in card
    assert "| steps | 7 of 9 |" in card and "| tokens | 1,400 |" in card
    assert "| training loss, last logged | 1.5000 |" in card and "| held-out loss, last | 2.2500 |" in card
    assert "trust_remote_code" not in card


def test_shards_stay_below_the_limit_and_the_index_names_every_tensor(run, tmp_path):
    export(run, tmp_path / "one", ExportRequest())
    report = export(run, tmp_path / "many", ExportRequest(max_shard_size=200_000))
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    whole = load_file(tmp_path / "one" / "model.safetensors")
    assert report["shards"] == len(set(index["weight_map"].values())) > 2
    assert index["metadata"]["total_size"] == report["bytes"]
    found = {}
    for name in set(index["weight_map"].values()):
        part = load_file(tmp_path / "many" / name)
        assert all(index["weight_map"][key] == name for key in part)
        assert sum(t.nbytes for t in part.values()) <= 200_000 or len(part) == 1
        found |= part
    assert found.keys() == whole.keys()
    assert all(np.array_equal(found[key], whole[key]) for key in whole)


def test_a_step_of_a_run_can_be_named(run, tmp_path):
    assert export(run / "checkpoints" / "7", tmp_path / "hf", ExportRequest())["step"] == 7


def test_auto_is_llama_for_baichuan_with_rope_and_native_for_the_rest():
    chosen = {name: choose_layout(model, "auto") for name, model in PRESETS.items() if not name.startswith("tiny")}
    assert chosen["baichuan2-7b"] == chosen["baichuan-7b"] == chosen["yi-34b"] == chosen["llama2-13b"] == "llama"
    assert chosen["mistral-7b-v0.3"] == "llama"
    assert chosen["baichuan2-13b"] == chosen["baichuan-13b"] == "baichuan"
    assert (chosen["qwen2.5-7b"], chosen["qwen3-8b"]) == ("qwen2", "qwen3")


def test_alibi_as_llama_is_refused_with_the_reason(tokenizer, tmp_path, capsys):
    model, params = random_model("tiny-baichuan2-13b", tokenizer)
    write_run(tmp_path / "run", model, params, tokenizer)
    message = refusal(capsys, tmp_path / "run", tmp_path / "hf", "--layout", "llama")
    assert "ALiBi" in message and "--layout native" in message
    assert not (tmp_path / "hf").exists()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_weight_that_is_not_finite_is_refused_by_name(value, tokenizer, tmp_path, capsys):
    model, params = random_model("tiny-llama2", tokenizer)
    params["layers"]["ffn"]["up"] = params["layers"]["ffn"]["up"].at[1, 3, 4].set(value)
    write_run(tmp_path / "run", model, params, tokenizer)
    assert "model.layers.1.mlp.up_proj.weight (layers.ffn.up) holds 1 NaN" in refusal(capsys, tmp_path / "run", tmp_path / "hf")
    assert {p.name for p in tmp_path.iterdir()} == {"run"}


def test_a_weight_beyond_float16_is_refused_by_name(tokenizer, tmp_path, capsys):
    model, params = random_model("tiny-llama2", tokenizer)
    params["final_norm"] = params["final_norm"].at[5].set(7e4)
    write_run(tmp_path / "run", model, params, tokenizer)
    message = refusal(capsys, tmp_path / "run", tmp_path / "hf", "--dtype", "float16")
    assert "model.norm.weight holds weights up to 7e+04" in message and "bfloat16" in message


def test_a_folder_that_is_there_stays_unless_told(run, tmp_path, capsys):
    export(run, tmp_path / "hf", ExportRequest())
    assert "--overwrite" in refusal(capsys, run, tmp_path / "hf")
    export(run, tmp_path / "hf", ExportRequest(layout="native", overwrite=True))
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["model_type"] == "baichuan"
    assert {p.name for p in tmp_path.iterdir()} == {"hf"}


def test_a_folder_that_is_no_export_is_never_replaced(run, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    assert "is no exported model" in refusal(capsys, run, tmp_path / "mine", "--overwrite")
    assert (tmp_path / "mine" / "thesis.tex").exists()


def test_a_tokenizer_larger_than_the_vocabulary_is_refused(tokenizer, tmp_path, capsys):
    model, params = random_model("tiny-llama2", tokenizer, vocab_size=100)
    write_run(tmp_path / "run", model, params, tokenizer)
    assert "vocabulary 100" in refusal(capsys, tmp_path / "run", tmp_path / "hf")


def test_an_exchanged_tokenizer_is_refused(tokenizer, tmp_path, capsys):
    model, params = random_model("tiny-llama2", tokenizer)
    run = write_run(tmp_path / "run", model, params, tokenizer)
    other = byte_level_tokenizer(tmp_path)
    (run / "tokenizer.model").unlink()
    assert "no tokenizer" in refusal(capsys, run, tmp_path / "hf")
    assert other.exists()


def test_an_altered_checkpoint_is_refused(run, tmp_path, tokenizer, capsys):
    model, params = random_model("tiny-llama2", tokenizer)
    folder = write_run(tmp_path / "run", model, params, tokenizer)
    data = max((p for p in (folder / "checkpoints" / "7" / "params").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(data.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 64] = bytes(64)
    data.write_bytes(content)
    message = refusal(capsys, folder, tmp_path / "hf")
    assert "altered" in message or "torn" in message
    assert not (tmp_path / "hf").exists()


def test_what_is_no_run_is_refused(tmp_path, capsys):
    assert "no checkpoints/" in refusal(capsys, tmp_path, tmp_path / "hf")


def test_a_qwen2_with_a_sentencepiece_tokenizer_is_refused(tokenizer, tmp_path, capsys):
    model, params = random_model("tiny-qwen2", tokenizer)
    write_run(tmp_path / "run", model, params, tokenizer)
    assert "Qwen's own" in refusal(capsys, tmp_path / "run", tmp_path / "hf")


def test_impossible_shard_sizes_are_refused(run, tmp_path, capsys):
    for size in ("5XB", "0GB", "GB"):
        assert cli.main(["convert", "to-hf", str(run), str(tmp_path / "hf"), "--max-shard-size", size]) == 2
