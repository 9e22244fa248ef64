"""`huatuo chat` through a pipe, and the conversation behind it."""

import io
import json
import sys

import jax.numpy as jnp
import pytest

from huatuo_jax.cli import main as huatuo
from huatuo_jax.data.dialogue import prompt_tokens
from huatuo_jax.inference.chat import Conversation
from huatuo_jax.inference.engine import Engine
from huatuo_jax.inference.model import Model, open_model
from huatuo_jax.inference.sampling import GREEDY

pytestmark = pytest.mark.usefixtures("compiled_fast")


@pytest.fixture
def chat(model_directory, monkeypatch, tmp_path):
    """Runs the command on lines of input; returns the report. What it printed is left to capsys."""

    def run(*lines: str | bytes, options=("--greedy", "--max-new-tokens", "6")):
        content = b"".join(line if isinstance(line, bytes) else f"{line}\n".encode() for line in lines)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        assert huatuo(["chat", str(model_directory), *options, "--json", str(tmp_path / "chat.json")]) == 0
        return json.loads((tmp_path / "chat.json").read_text(encoding="utf-8"))

    return run


@pytest.fixture(scope="module")
def opened(model_directory):
    model = open_model(model_directory)
    return model, model.engine(1)


def test_answers_stream_and_history_is_kept(chat, capsys, opened):
    report = chat("甘草有什么功效？", "黄芪呢？")
    model, engine = opened
    first, second = report["turns"][1], report["turns"][3]
    out = capsys.readouterr().out
    assert first in out and second in out
    assert report["turns"] == ["甘草有什么功效？", first, "黄芪呢？", second]
    with_history = Conversation(model, engine, GREEDY, 6)
    with_history.turns = ["甘草有什么功效？", first]
    assert "".join(with_history.ask("黄芪呢？")) == second
    assert "".join(Conversation(model, engine, GREEDY, 6).ask("黄芪呢？")) != second


def test_commands_clear_help_and_exit(chat, capsys):
    report = chat("甘草？", "/help", "/clear", "/what", "黄芪？", "/exit", "当归？")
    assert report["questions"] == 2
    assert report["turns"][0] == "黄芪？"
    out = capsys.readouterr().out
    assert "the conversation is forgotten" in out
    assert "/exit" in out
    assert "no command /what" in out


def test_a_line_that_is_not_text_is_left_out(chat, capsys):
    report = chat(b"\xff\xfe\n", "甘草？")
    assert "not valid UTF-8" in capsys.readouterr().out
    assert report["questions"] == 1


def test_the_oldest_turns_are_dropped_and_said_when_the_context_is_full(chat, capsys, opened):
    model, _ = opened
    question, asked = "".join(map(chr, range(0x4E00, 0x4E30))), 5  # three bytes each
    report = chat(*[question] * asked)
    assert len(prompt_tokens([question] * (2 * asked - 1), model.tokenizer, model.dialogue_format)) > model.config.max_length
    assert report["questions"] == asked
    assert len(report["turns"]) < 2 * asked
    assert len(prompt_tokens(report["turns"][:-1], model.tokenizer, model.dialogue_format)) <= model.config.max_length - 6
    assert "the context is full: the 2 oldest turns are dropped" in capsys.readouterr().out


def test_a_question_that_does_not_fit_is_refused_and_the_chat_goes_on(chat, capsys):
    report = chat("甘草有什么功效？" * 200, "黄芪？")
    assert "error: the question has" in capsys.readouterr().out
    assert report["turns"][0] == "黄芪？"


def test_ctrl_c_stops_the_answer_and_not_the_program(chat, capsys, monkeypatch):
    stream = Engine.stream

    def interrupted(self, request):
        for count, piece in enumerate(stream(self, request)):
            if count == 2 and not interrupted.done:
                interrupted.done = True
                raise KeyboardInterrupt
            yield piece

    interrupted.done = False
    monkeypatch.setattr(Engine, "stream", interrupted)
    report = chat("甘草？", "黄芪？", options=("--greedy", "--max-new-tokens", "12"))
    assert "… stopped" in capsys.readouterr().out
    assert report["questions"] == 2
    assert [len(report["turns"]), report["turns"][2]] == [4, "黄芪？"]
    assert len(report["turns"][1]) < len(report["turns"][3])


def test_a_quantised_model_chats(chat, opened, monkeypatch):
    loaded = []
    params = Model.params
    monkeypatch.setattr(Model, "params", lambda *words: loaded.append(params(*words)) or loaded[-1])
    report = chat("甘草有什么功效？", options=("--greedy", "--max-new-tokens", "6", "--quantize", "int8"))
    assert loaded[0]["layers"]["ffn"]["up"].qvalue.dtype == jnp.int8
    model, _ = opened
    engine = model.engine(1, quantizer=model.quantizer("int8"))
    assert report["turns"][1] == "".join(Conversation(model, engine, GREEDY, 6).ask("甘草有什么功效？"))


def test_defaults_are_those_of_the_release(chat, opened, monkeypatch):
    asked = []
    stream = Engine.stream
    monkeypatch.setattr(Engine, "stream", lambda self, request: asked.append(request) or stream(self, request))
    monkeypatch.setattr("huatuo_jax.cli.arguments.MAX_NEW_TOKENS", 6)
    chat("甘草？", options=())
    (request,) = asked
    assert (request.sampling.temperature, request.sampling.top_p, request.sampling.repetition_penalty) == (0.3, 0.7, 1.1)
    assert request.max_new_tokens == 6
