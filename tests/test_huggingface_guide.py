"""docs/huggingface.md and the README's own data, command by command, on a tiny model: what a reader would type."""

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


def own_data(readme: str) -> tuple[list[str], str]:
    """The commands, without their comments, and the config of "your own data" in a README."""
    blocks = re.findall(r"```(\w+)\n(.*?)```", readme[readme.index("```bash\nhuatuo convert from-hf") :], flags=re.DOTALL)
    commands = [line.partition("  #")[0].strip() for line in blocks[0][1].splitlines()]
    return commands, blocks[1][1]


def test_the_readme_takes_your_own_data_to_an_export(desk, repository):
    (commands, config), chinese = (
        own_data((repository / name).read_text(encoding="utf-8")) for name in ("README.md", "README.zh-CN.md")
    )
    assert chinese == (commands, config) and len(commands) == 9
    (desk / "raw").mkdir()
    corpus = repository / "examples" / "quickstart" / "corpus" / "medical_books_cn.jsonl"
    (desk / "raw" / "books.jsonl").write_text(
        "".join(
            json.dumps({"text": json.loads(line)["text"]}, ensure_ascii=False) + "\n" for line in corpus.open(encoding="utf-8")
        ),
        encoding="utf-8",
    )
    dialogues = [
        {"conversations": [{"from": "human", "value": f"第{i}味有什么功效？"}, {"from": "gpt", "value": f"归经第{i}。"}]}
        for i in range(20)
    ]
    (desk / "sft.json").write_text(json.dumps(dialogues, ensure_ascii=False), encoding="utf-8")
    tiny = config.replace("Baichuan2-7B-Base", "base-model").replace("mixture=mixture)", "mixture=mixture, sequence_length=128)")
    tiny = tiny.replace("data=data)", "data=data, batch_size=8, steps=1)")
    assert tiny.count("base-model") == tiny.count("sequence_length=128") == tiny.count("steps=1") == 1
    (desk / "mine.py").write_text(tiny, encoding="utf-8")
    programs = {"huatuo": huatuo_jax.cli.main, "huatuo-data": data_tools.cli.main}
    for command in commands:
        command = command.replace("Baichuan2-7B-Base", "base-model").replace("--holdout 20", "--holdout 2")
        program, *words = shlex.split(command)
        words = [str(path) for word in words for path in (sorted(desk.glob(word)) if "*" in word else [word])]
        if words[0] != "chat":  # it asks for questions
            assert programs[program](words) == 0, command
    assert (desk / "exports" / "mine" / "config.json").exists()
