"""`huatuo-data encode` prints one JSON line on stdout and nothing else there."""

import json
import subprocess
import sys

import pytest

from data_tools.cli import main


@pytest.fixture(scope="module")
def baichuan(baichuan_like):
    return baichuan_like.path


@pytest.fixture(scope="module")
def ids(known_ids):
    return known_ids


def printed(capsys, *options):
    assert main(["encode", *options]) == 0
    out = capsys.readouterr().out
    assert out.endswith("\n") and out.count("\n") == 1
    return json.loads(out)


def test_a_dialogue(baichuan, ids, capsys):
    out = printed(capsys, "--tokenizer", baichuan, "--turns", '["你好", "好的"]')
    assert out == {
        "tokens": [*ids.ask, ids.hello, *ids.answer, ids.good, 2],
        "targets": [-100] * (len(ids.ask) + 1 + len(ids.answer)) + [ids.good, 2],
    }


def test_no_turns_and_an_odd_question_are_encoded(baichuan, ids, capsys):
    assert printed(capsys, "--tokenizer", baichuan, "--turns", "[]") == {"tokens": [2], "targets": [2]}
    assert printed(capsys, "--tokenizer", baichuan, "--turns", '["你好"]')["targets"] == [-100] * (len(ids.ask) + 1) + [2]


def test_the_length_is_cut(baichuan, capsys):
    assert len(printed(capsys, "--tokenizer", baichuan, "--turns", '["你好", "好的"]', "--max-length", "4")["tokens"]) == 4


def test_a_system_prompt_goes_where_the_format_has_one(baichuan, ids, capsys):
    options = ("--tokenizer", baichuan, "--turns", '["你好", "好的"]', "--system", "谢谢")
    assert printed(capsys, *options, "--format", "baichuan2-chat")["tokens"] == [
        ids.thanks,
        ids.user,
        ids.hello,
        ids.assistant,
        ids.good,
        2,
    ]
    assert main(["encode", *options]) == 1
    assert "no place for a system prompt" in capsys.readouterr().err


def test_a_passage(baichuan, ids, capsys):
    assert printed(capsys, "--tokenizer", baichuan, "--text", "你好") == {"tokens": [ids.hello, 2], "targets": [ids.hello, 2]}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--turns", "no json"), "is not JSON"),
        (("--turns", '["a", 1]'), "not a list of strings"),
        (("--turns", '["a"]', "--max-length", "0"), "must be at least 1"),
        (("--turns", '["a"]', "--format", "alpaca"), "no dialogue format 'alpaca'"),
        (("--turns", '["a"]', "--format", "chatml"), "lacks '<|im_start|>'"),
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
