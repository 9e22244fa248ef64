"""Asking a finished run: it needs nothing but its own directory."""

import json
import shutil

import pytest

from data_tools.tokens.tokenizer_training import train_tokenizer
from huatuo_jax.cli import main as huatuo
from huatuo_jax.data.dialogue import Record, encode_record
from huatuo_jax.data.formats import get_format
from huatuo_jax.data.tokenizers import load_tokenizer
from huatuo_jax.errors import DataError
from huatuo_jax.inference.model import open_model
from huatuo_jax.inference.recall import Asker, exercise_of, recall


@pytest.fixture
def moved_run(finished_run, tmp_path):
    return shutil.copytree(finished_run, tmp_path / "elsewhere")


def test_a_moved_run_answers_with_the_tokenizer_it_carries(moved_run):
    (moved_run / "tokenizer.model").stat()
    model = open_model(moved_run)
    asker = Asker(model, model.engine(2), max_new_tokens=8)
    assert model.step == 14
    both = asker.answer([["甘草第0味有什么功效？"], ["黄芪第1味有什么功效？"]])
    assert both[0] == asker.answer([["甘草第0味有什么功效？"]])[0]


def test_another_tokenizer_in_its_place_is_refused(moved_run, tmp_path):
    train_tokenizer(["甘草性味甘", "黄芪归经"], 300, moved_run / "tokenizer.model", at_most=True)
    with pytest.raises(DataError, match="is not the tokenizer that"):
        open_model(moved_run)


def test_the_command_prints_answers_and_saves_recall_for_the_report(moved_run, tmp_path, capsys):
    assert huatuo(["ask", str(moved_run), "甘草有什么功效？", "--max-new-tokens", "4"]) == 0
    assert "甘草有什么功效？" in capsys.readouterr().out
    assert huatuo(["ask", str(moved_run), "--recall", "2", "--max-new-tokens", "4", "--json", str(tmp_path / "out.json")]) == 0
    saved = json.loads((moved_run / "recall.json").read_text())
    assert saved == json.loads((tmp_path / "out.json").read_text())["recall"]
    assert {name: entry["records"] for name, entry in saved["sources"].items()} == {"medical_books_cn": 2, "sft": 2}


def test_a_folder_that_is_no_run_and_a_run_without_questions_are_refused(moved_run, tmp_path, capsys):
    assert huatuo(["ask", str(tmp_path)]) == 2
    assert "config.json" in capsys.readouterr().err
    assert huatuo(["ask", str(moved_run), " "]) == 2
    assert "is empty" in capsys.readouterr().err
    assert huatuo(["ask", str(moved_run)]) == 2
    assert "has no questions" in capsys.readouterr().err


def test_recall_compares_the_first_characters_place_by_place():
    assert recall("食盐每天不超过五克", "食盐每天不超过六克") == pytest.approx(8 / 9)
    assert recall("", "食盐") == 0
    assert recall("a" * 50 + "x" * 9, "a" * 60) == 1


def test_an_exercise_ends_where_the_first_answer_ends(moved_run):
    tokenizer, template = load_tokenizer(moved_run / "tokenizer.model"), get_format("huatuo")
    record = Record("1", "sft", ("甘草有什么功效？", "性味甘。", "黄芪呢？", "归经。"))
    exercise = exercise_of("sft", *encode_record(record, tokenizer, template), tokenizer)
    assert tokenizer.decode(exercise.prompt) == "<问>：甘草有什么功效？\n<答>："
    assert exercise.expected == "性味甘。"
