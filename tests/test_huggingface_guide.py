"""docs/huggingface.md, command by command, on a tiny model: what a reader would type."""

import json
import re
import shlex

import jax
import pytest

import data_tools.cli
import huatuo_jax.cli
from tests.support.export_checkpoint import random_model, tiny_tokenizer, write_run

pytestmark = pytest.mark.usefixtures("compiled_fast")

TINY = {"sequence_length=4096": "sequence_length=128", "batch_size=128": "batch_size=8", '"bfloat16"': '"float32"'}
"""What the guide says, and what a test can afford."""


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A folder with what the guide asks for: a base model, passages, dialogues, questions."""
    tokenizer = tiny_tokenizer(tmp_path)
    model, params = random_model("tiny-llama2", tokenizer, max_length=256)
    base = write_run(tmp_path / "made", model, scaled(params), tokenizer)
    assert huatuo_jax.cli.main(["convert", "to-hf", str(base), str(tmp_path / "base-model"), "--quiet"]) == 0
    passages = [
        {"title": f"第{i}条", "text": f"第{i}条规定甘草的用量：每日不超过{i}克。", "source": "statutes"} for i in range(20)
    ]
    dialogues = [{"turns": [f"第{i}味有什么功效？", f"归经第{i}。"], "source": "sft"} for i in range(20)]
    for name, lines in (("passages.jsonl", passages), ("sft.jsonl", dialogues)):
        (tmp_path / name).write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    (tmp_path / "questions.txt").write_text("甘草有什么功效？\n归经？\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def scaled(params):
    """Small weights, so that two steps of training do not overflow."""
    return jax.tree.map(lambda x: x * 0.2, params)


def test_every_command_of_the_guide_runs(desk, repository, capsys):
    text = (repository / "docs" / "huggingface.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```(\w+)\n(.*?)```", text, flags=re.DOTALL)
    config, outside = (body for kind, body in blocks if kind == "python")
    for line, tiny in TINY.items():
        assert line in config
        config = config.replace(line, tiny)
    (desk / "domain.py").write_text(config, encoding="utf-8")
    commands = [line for kind, body in blocks if kind == "bash" for line in body.splitlines()]
    assert len(commands) == 11
    programs = {"huatuo": huatuo_jax.cli.main, "huatuo-data": data_tools.cli.main}
    for command in commands:
        program, *words = shlex.split(command)
        assert programs[program](words) == 0, command
    answers = [json.loads(line) for line in (desk / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(answers) == 2 and all("answer" in answer for answer in answers)
    capsys.readouterr()
    exec(compile(outside, "docs/huggingface.md", "exec"), {})
    assert capsys.readouterr().out.endswith("\n")
