"""`huatuo generate` on files: what goes in and out, what a rerun does, and what is refused before the model is loaded."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from huatuo_jax.cli import main as huatuo
from huatuo_jax.errors import ConfigError
from huatuo_jax.inference.batch import AnswerFile
from huatuo_jax.inference.model import Model
from huatuo_jax.weights.checkpoint import write_checkpoint
from huatuo_jax.weights.open import open_stored_model

QUESTIONS = ["甘草有什么功效？", "黄芪归经？", "当归性味？", "人参有什么功效？", "甘"]


@pytest.fixture
def work(tmp_path):
    (tmp_path / "questions.txt").write_text("\n".join(QUESTIONS) + "\n\n", encoding="utf-8")
    return tmp_path


@pytest.fixture
def no_weights(monkeypatch):
    """Fails the test if weights are loaded."""
    monkeypatch.setattr(Model, "params", lambda *_: pytest.fail("the weights were loaded"))


def generate(model, work, *options, prompts="questions.txt"):
    source = prompts if prompts == "-" else work / prompts
    words = [
        "generate",
        model,
        "--prompts",
        source,
        "--out",
        work / "answers.jsonl",
        "--max-new-tokens",
        "8",
        *options,
    ]
    return huatuo([str(word) for word in words])


def answers(work) -> dict[str, dict]:
    lines = (work / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == len({json.loads(line)["id"] for line in lines})
    return {line["id"]: line for line in map(json.loads, lines)}


def test_lines_of_text_become_lines_of_json(model_directory, work, capsys):
    assert generate(model_directory, work, "--batch-size", "2", "--json", work / "report.json") == 0
    found = answers(work)
    assert [found[str(i + 1)]["prompt"] for i in range(5)] == QUESTIONS
    for line in found.values():
        assert set(line) == {"id", "prompt", "answer", "finish_reason", "prompt_tokens", "answer_tokens"}
        assert line["answer_tokens"] == 8 or line["finish_reason"] == "end"
    report = json.loads((work / "report.json").read_text())
    assert report["answered"] == 5
    assert report["answer_tokens"] == sum(line["answer_tokens"] for line in found.values())
    assert report["settings"]["temperature"] == 0.3
    assert "5 prompts" in capsys.readouterr().out


def test_dialogues_keep_their_id_and_fields(model_directory, work):
    lines = [{"id": "a", "turns": ["甘草？", "性味甘。", "黄芪呢？"], "gold": ["B"]}, {"id": 7, "prompt": "当归？"}]
    (work / "exam.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    assert generate(model_directory, work, prompts="exam.jsonl") == 0
    found = answers(work)
    assert found["a"]["turns"] == lines[0]["turns"]
    assert found["a"]["gold"] == ["B"]
    assert found["7"]["prompt"] == "当归？"
    assert found["a"]["prompt_tokens"] > found["7"]["prompt_tokens"]


def test_an_answer_depends_on_its_id_and_seed_alone(model_directory, work):
    generate(model_directory, work, "--temperature", "1", "--batch-size", "4")
    together = answers(work)
    (work / "answers.jsonl").unlink()
    (work / "one.jsonl").write_text(json.dumps({"id": "3", "prompt": QUESTIONS[2]}), encoding="utf-8")
    generate(model_directory, work, "--temperature", "1", "--batch-size", "1", prompts="one.jsonl")
    assert answers(work)["3"] == together["3"]


def test_a_rerun_after_a_kill_redoes_only_what_is_missing(model_directory, work, capsys):
    generate(model_directory, work)
    whole = (work / "answers.jsonl").read_bytes()
    lines = whole.splitlines(keepends=True)
    (work / "answers.jsonl").write_bytes(b"".join(lines[:3]) + lines[3][:11])
    capsys.readouterr()
    assert generate(model_directory, work) == 0
    assert "3 of them answered already" in capsys.readouterr().out
    assert sorted((work / "answers.jsonl").read_bytes().splitlines(keepends=True)) == sorted(lines)


def test_a_finished_file_needs_no_weights(model_directory, work, monkeypatch, capsys):
    generate(model_directory, work)
    monkeypatch.setattr(Model, "params", lambda *_: pytest.fail("the weights were loaded"))
    assert generate(model_directory, work) == 0
    assert "5 of them answered already" in capsys.readouterr().out


def test_a_rerun_with_other_settings_or_prompts_is_refused(model_directory, work, capsys):
    generate(model_directory, work)
    before = (work / "answers.jsonl").read_bytes()
    assert generate(model_directory, work, "--temperature", "0.9", "--seed", "1") == 2
    assert "(seed: 42 → 1; temperature: 0.3 → 0.9)" in capsys.readouterr().err
    (work / "questions.txt").write_text("\n".join(["别的", *QUESTIONS[1:]]), encoding="utf-8")
    assert generate(model_directory, work) == 2
    assert "has an answer for id '1', but to another prompt" in capsys.readouterr().err
    assert (work / "answers.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("name", "content", "message", "code"),
    [
        ("bad.txt", "甘草？\n".encode() + b"abc\xe7\x94", "bad.txt, line 2: not valid UTF-8 at byte 4 (e7 94)", 1),
        ("bad.jsonl", b'{"prompt": "a"}\n{"prompt": \n', "bad.jsonl, line 2: not valid JSON", 1),
        ("bad.jsonl", b'{"prompt": "a", "turns": ["b"]}', 'line 1: a prompt is an object with either "prompt" or "turns"', 1),
        ("bad.jsonl", b'{"turns": ["a", "b"]}', "line 1: 2 turns do not end with a question", 1),
        ("bad.jsonl", b'{"prompt": 3}', "are strings", 1),
        ("bad.jsonl", b'{"id": "x", "prompt": "a"}\n{"id": "x", "prompt": "b"}', "line 2: id 'x' is also that of", 1),
        ("bad.jsonl", b'{"prompt": "a", "answer": "b"}', "the field 'answer' is one of the output's own", 1),
        ("bad.jsonl", b'{"prompt": "a", "system": "b"}', "line 1: the huatuo format has no place for a system prompt", 1),
        ("bad.jsonl", b'{"prompt": "\\ud800"}', "line 1: text is not valid Unicode", 1),
        ("bad.jsonl", b'{"prompt": ' + b"[" * 100_000, "line 1: not usable JSON (nested too deeply)", 1),
        ("bad.jsonl", b'{"prompt": "a", "id": ' + b"1" * 5_000 + b"}", "line 1: not valid JSON", 1),
        ("bad.jsonl", b'{"prompt": "a", "weight": NaN}', "line 1: not valid JSON (NaN and infinity are no JSON)", 1),
        ("bad.jsonl", b'{"turns": ["a", "b", " "]}', "line 1: the question is empty", 1),
        ("bad.jsonl", b'{"prompt": "a", "id": true}', '"id" is a bool', 1),
        ("bad.txt", b"\n \n", "holds no prompt", 1),
        ("bad.csv", b"a", "a .txt (one a line) or a .jsonl file", 2),
        ("bad.txt", "甘草，".encode() * 400, "line 1 has", 2),
    ],
)
def test_bad_prompts_are_named_before_the_weights_are_loaded(
    model_directory, work, no_weights, capsys, name, content, message, code
):
    (work / name).write_bytes(content)
    assert generate(model_directory, work, prompts=name) == code
    error = " ".join(capsys.readouterr().err.split())
    assert message in error
    assert not (work / "answers.jsonl").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max-new-tokens", "0"], "--max-new-tokens is 0; it must be at least 1"),
        (["--max-new-tokens", "512"], "below the context of tiny-baichuan2-7b, 512"),
        (["--temperature", "-1"], "temperature is -1"),
        (["--stop", ""], "--stop is empty"),
        (["--batch-size", "0"], "--batch-size is 0"),
        (["--format", "chatml"], "dialogue format chatml does not work"),
    ],
)
def test_impossible_options_are_refused_before_the_weights_are_loaded(
    model_directory, work, no_weights, capsys, options, message
):
    assert generate(model_directory, work, *options) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_broken_directory_is_refused(model_directory, work, capsys):
    assert generate(work / "nothing", work) == 2
    assert "no directory" in capsys.readouterr().err
    assert generate(work, work) == 2
    assert "neither a run or base directory" in " ".join(capsys.readouterr().err.split())
    copy = shutil.copytree(model_directory, work / "copy")
    (copy / "tokenizer.model").write_bytes(b"no model")
    assert generate(copy, work) == 1


def test_a_stop_string_is_not_in_the_answer(model_directory, work):
    generate(model_directory, work, "--greedy")
    line = max(answers(work).values(), key=lambda line: len(line["answer"]))
    stop = line["answer"][2:4]
    (work / "answers.jsonl").unlink()
    generate(model_directory, work, "--greedy", "--stop", stop)
    stopped = answers(work)[line["id"]]
    assert (stopped["answer"], stopped["finish_reason"]) == (line["answer"][: line["answer"].index(stop)], "stop")


def test_answers_say_which_weights_gave_them_even_if_the_newest_checkpoint_is_damaged(model_directory, work, capsys):
    run = shutil.copytree(model_directory, work / "run")
    stored = open_stored_model(run)
    params, meta = stored.params(), stored.meta
    write_checkpoint(run / "checkpoints" / "4", 4, {"params": params}, meta | {"step": 4})
    for file in (run / "checkpoints" / "4" / "params").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert generate(run, work) == 2
    assert f"name the one to use: {run}/checkpoints/3" in " ".join(capsys.readouterr().err.split())
    assert not answers(work)
    assert generate(run / "checkpoints" / "3", work) == 0
    assert len(answers(work)) == 5


def test_two_processes_do_not_write_the_same_answers(work):
    first, second = (AnswerFile(work / "answers.jsonl", {"seed": 1}) for _ in range(2))
    with first.appending() as append:
        with pytest.raises(ConfigError, match="another process writes to"), second.appending():
            pass
        append({"id": "1"})
    with pytest.raises(ConfigError, match="another process writes to"), second.appending():
        pass
    third = AnswerFile(work / "answers.jsonl", {"seed": 1})
    with third.appending():
        assert list(third.done) == ["1"]


@pytest.mark.slow
def test_stopped_in_mid_run_by_a_signal_it_keeps_its_answers_and_goes_on(model_directory, work):
    (work / "questions.txt").write_text("\n".join(f"甘草第{i}味有什么功效？" for i in range(200)), encoding="utf-8")
    words = [model_directory, "--prompts", work / "questions.txt", "--out", work / "answers.jsonl", "--quiet"]
    command = [
        Path(sys.executable).with_name("huatuo"),
        "generate",
        *map(str, words),
        "--max-new-tokens",
        "8",
        "--batch-size",
        "1",
    ]

    def kept() -> bytes:
        whole, newline, _ = (
            (work / "answers.jsonl").read_bytes().rpartition(b"\n") if (work / "answers.jsonl").exists() else [b""] * 3
        )
        return whole + newline

    for how in (signal.SIGTERM, signal.SIGKILL):
        before = kept()
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        while kept().count(b"\n") < before.count(b"\n") + 3:
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        process.send_signal(how)
        _, error = process.communicate(timeout=60)
        if how == signal.SIGTERM:
            assert process.returncode == 4
            assert "of 200 answers are in" in error
        assert kept().startswith(before)
        assert kept().count(b"\n") < 200
    before = kept()
    assert subprocess.run(command, check=False).returncode == 0
    assert kept().startswith(before)
    assert len(answers(work)) == 200
