"""`huatuo convert compare` and `huatuo logits`: the same numbers through our code and through transformers."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from huatuo_jax.cli import main
from huatuo_jax.data.tokenizers import load_tokenizer
from huatuo_jax.errors import DataError
from huatuo_jax.weights.compare import check_finite, measure
from tests.support.export_checkpoint import random_model, tiny_tokenizer, write_run

pytestmark = pytest.mark.usefixtures("compiled_fast")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A run with a random model (ALiBi would need remote code; this one is a Baichuan with NormHead) and its export."""
    folder = tmp_path_factory.mktemp("compare")
    tokenizer = tiny_tokenizer(folder)
    run = write_run(folder / "run", *random_model("tiny-baichuan2-7b", tokenizer), tokenizer)
    assert main(["convert", "to-hf", str(run), str(folder / "hf"), "--dtype", "float32", "--quiet"]) == 0
    return run, folder / "hf"


def compared(folder, a, b, *options):
    code = main(["convert", "compare", str(a), str(b), *options, "--quiet", "--json", str(folder / "report.json")])
    return code, json.loads((folder / "report.json").read_text())


@pytest.mark.parametrize("reader", ["", "transformers:"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_export_predicts_what_the_checkpoint_predicts(exported, tmp_path, reader, dtype):
    run, folder = exported
    code, report = compared(tmp_path, run, f"{reader}{folder}", "--dtype", dtype)
    assert code == 0 and report["passed"] and report["tokens"] > 50
    assert report["mean_kl"] <= {"float32": 1e-6, "bfloat16": 0.015}[dtype]
    if dtype == "float32":
        assert report["top1_agreement"] == 1.0 and report["relative_error"] <= 1e-4


def test_another_model_fails_the_gate(exported, tmp_path, capsys):
    run, _ = exported
    tokenizer = run / "tokenizer.model"
    model, params = random_model("tiny-baichuan2-7b", tokenizer)
    params["layers"]["ffn"]["down"] = params["layers"]["ffn"]["down"] * 1.5
    other = write_run(tmp_path / "other", model, params, tokenizer)
    code, report = compared(tmp_path, run, other)
    assert code == 1 and not report["passed"] and report["mean_kl"] > 1e-6


def test_a_text_of_ones_own(exported, tmp_path):
    (tmp_path / "text.txt").write_text("甘草第1味有什么功效？\n\n归经第2。\n", encoding="utf-8")
    code, report = compared(tmp_path, exported[0], exported[1], "--text", str(tmp_path / "text.txt"))
    assert code == 0 and 0 < report["tokens"] < 40


def test_divergence_by_hand():
    """p = (½, ½) against q = (¼, ¾): KL = ½ ln 2 + ½ ln ⅔; the second position agrees."""
    a = np.log(np.array([[0.5, 0.5], [0.1, 0.9]], np.float32))
    b = np.log(np.array([[0.25, 0.75], [0.1, 0.9]], np.float32))
    found = measure([a], iter([b]), gate=0.1)
    expected = 0.5 * np.log(2) + 0.5 * np.log(2 / 3)
    assert found.max_kl == pytest.approx(expected, rel=1e-5) and found.mean_kl == pytest.approx(expected / 2, rel=1e-5)
    assert found.max_error == pytest.approx(np.log(2), rel=1e-5)
    assert found.top1_agreement == 0.5 and found.passed


def test_logits_that_are_not_numbers_never_pass():
    a = np.zeros((1, 3), np.float32)
    found = measure([a], iter([np.full((1, 3), np.nan, np.float32)]), gate=1.0)
    assert not found.passed and np.isnan(found.max_error)


@pytest.fixture
def broken(exported, tmp_path):
    """A run whose embedding of token 9 is NaN."""
    tokenizer = exported[0] / "tokenizer.model"
    model, params = random_model("tiny-baichuan2-7b", tokenizer)
    params["embedding"] = params["embedding"].at[9, 3].set(np.nan)
    return write_run(tmp_path / "broken", model, params, tokenizer)


def test_logits_that_are_not_finite_are_not_written(broken, tmp_path, capsys):
    (tmp_path / "tokens.json").write_text("[[5, 6, 7], [8, 8, 9, 9]]")
    words = ["logits", broken, "--token-ids", tmp_path / "tokens.json", "--out", tmp_path / "out" / "logits.npy"]
    assert main([str(word) for word in words]) == 1
    assert "row 1, position 0: " in " ".join(capsys.readouterr().err.split())
    assert list((tmp_path / "out").iterdir()) == []


def test_the_first_position_that_is_not_finite_is_named():
    logits = np.zeros((4, 3), np.float32)
    logits[2, 1], logits[3] = np.inf, np.nan
    with pytest.raises(DataError, match="row 5, position 2: 1 of the 3 logits of m"):
        check_finite(logits, 5, "m")


def test_models_that_do_not_answer_in_numbers_are_not_compared(exported, broken, tmp_path, capsys):
    tokenizer = load_tokenizer(broken)
    (tmp_path / "text.txt").write_text(tokenizer.decode([300, 9, 301]), encoding="utf-8")
    assert 9 in tokenizer.encode((tmp_path / "text.txt").read_text(encoding="utf-8"))
    for sides in ([exported[0], broken], [broken, exported[0]]):
        words = ["convert", "compare", *sides, "--text", tmp_path / "text.txt", "--json", tmp_path / "report.json"]
        assert main([str(word) for word in words]) == 1
        assert "are NaN or infinite" in " ".join(capsys.readouterr().err.split())
        assert not (tmp_path / "report.json").exists()


def test_sides_that_cannot_be_compared(exported, tmp_path, capsys):
    run, folder = exported
    assert main(["convert", "compare", f"transformers:{run}", str(folder)]) == 2
    assert "export it first" in capsys.readouterr().err
    tokenizer = run / "tokenizer.model"
    smaller = write_run(tmp_path / "smaller", *random_model("tiny-baichuan2-7b", tokenizer, vocab_size=500), tokenizer)
    assert main(["convert", "compare", str(run), str(smaller)]) == 2
    assert "500" in capsys.readouterr().err


def test_logits_of_all_rows_stand_one_after_the_other(exported, tmp_path):
    run, folder = exported
    rows = [[5, 6, 7, 8, 9], [3], list(range(10, 80))]
    (tmp_path / "tokens.json").write_text(json.dumps(rows))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        theirs = np.concatenate([model(input_ids=torch.tensor([row])).logits[0].numpy() for row in rows])
    for directory in (run, run / "checkpoints" / "7", folder):
        out = tmp_path / "logits.npy"
        words = ["logits", str(directory), "--token-ids", str(tmp_path / "tokens.json"), "--out", str(out), "--quiet"]
        assert main(words) == 0
        ours = np.load(out)
        assert ours.dtype == np.float32 and ours.shape == theirs.shape == (76, model.config.vocab_size)
        assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("[[1, 2], []]", "row 1"),
        ("[[1, 100000]]", "row 0 has a token id outside"),
        ("[1, 2]", "row 0 is not a list"),
        ('{"tokens": 1}', "list of lists"),
        ("[[1, 2", "not JSON"),
        ("[]", "no rows"),
    ],
)
def test_bad_token_files(exported, tmp_path, capsys, content, reason):
    (tmp_path / "tokens.json").write_text(content)
    out = tmp_path / "logits.npy"
    code = main(["logits", str(exported[0]), "--token-ids", str(tmp_path / "tokens.json"), "--out", str(out)])
    assert code in (1, 2) and reason in capsys.readouterr().err
    assert not out.exists()
