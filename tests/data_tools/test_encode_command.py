"""`huatuo-data encode` prints one JSON line on stdout and nothing else there."""

import json
import subprocess
import sys

import pytest

from data_tools.cli import main


@pytest.fixture(scope="module")
def baichuan(shared_data):
    return str(shared_data / "tokenizers" / "baichuan2.model")


def printed(capsys, *options):
    assert main(["encode", *options]) == 0
    out = capsys.readouterr().out
    assert out.endswith("\n") and out.count("\n") == 1
    return json.loads(out)


def test_a_dialogue(baichuan, capsys):
    out = printed(capsys, "--tokenizer", baichuan, "--turns", '["你好", "好的"]')
    assert out == {
        "tokens": [92655, 92614, 92574, 70, 16829, 5, 92655, 93140, 92574, 70, 2015, 2],
        "targets": [-100] * 10 + [2015, 2],
    }


def test_no_turns_and_an_odd_question_are_encoded(baichuan, capsys):
    assert printed(capsys, "--tokenizer", baichuan, "--turns", "[]") == {"tokens": [2], "targets": [2]}
    assert printed(capsys, "--tokenizer", baichuan, "--turns", '["你好"]')["targets"] == [-100] * 5 + [2]


def test_the_length_is_cut(baichuan, capsys):
    assert len(printed(capsys, "--tokenizer", baichuan, "--turns", '["你好", "好的"]', "--max-len", "7")["tokens"]) == 7


def test_a_system_prompt_goes_where_the_format_has_one(baichuan, capsys):
    options = ("--tokenizer", baichuan, "--turns", '["你好", "好的"]', "--system", "谢谢")
    assert printed(capsys, *options, "--template", "baichuan2-chat")["tokens"] == [6137, 195, 16829, 196, 2015, 2]
    assert main(["encode", *options]) == 1
    assert "no place for a system prompt" in capsys.readouterr().err


def test_a_passage(baichuan, capsys):
    assert printed(capsys, "--tokenizer", baichuan, "--text", "你好") == {"tokens": [16829, 2], "targets": [16829, 2]}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--turns", "no json"), "is not JSON"),
        (("--turns", '["a", 1]'), "not a list of strings"),
        (("--turns", '["a"]', "--max-len", "0"), "must be at least 1"),
        (("--turns", '["a"]', "--template", "alpaca"), "no dialogue format 'alpaca'"),
        (("--turns", '["a"]', "--template", "chatml"), "lacks '<|im_start|>'"),
    ],
)
def test_wrong_usage_is_refused_with_the_reason(baichuan, capsys, options, reason):
    assert main(["encode", "--tokenizer", baichuan, *options]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and reason in captured.err


def test_encoding_needs_neither_jax_nor_grain(baichuan):
    code = (
        "import sys; from data_tools.cli import main; "
        f"main(['encode', '--tokenizer', {baichuan!r}, '--turns', '[]']); "
        "sys.exit('jax' in sys.modules or 'grain' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60).returncode == 0
