"""Both programs: what a user's mistake looks like."""

import json
import subprocess
import sys
from argparse import Namespace
from dataclasses import replace

import pytest

from data_tools.cli import main as huatuo_data
from huatuo_jax.cli import main as huatuo
from huatuo_jax.cli.arguments import Parser, add_config_fields, with_config_fields
from huatuo_jax.config_files import load_config
from huatuo_jax.errors import ConfigError


@pytest.fixture
def dialogue_file(tmp_path):
    path = tmp_path / "sft.jsonl"
    path.write_text(json.dumps({"turns": ["q", "a"], "source": "sft"}) + "\n")
    return path


def test_an_output_that_cannot_be_written_is_one_clear_line(dialogue_file, tmp_path, capsys):
    assert huatuo_data(["import", str(dialogue_file), "--out", str(dialogue_file / "inside")]) == 1
    error = capsys.readouterr().err
    assert "Not a directory" in " ".join(error.split()) and "Traceback" not in error


def test_import_replaces_a_dataset_only_when_told_to(dialogue_file, tmp_path, capsys):
    command = ["import", str(dialogue_file), "--out", str(tmp_path / "unified")]
    assert huatuo_data(command) == 0
    assert huatuo_data(command) == 2
    assert "--overwrite" in capsys.readouterr().err
    dialogue_file.write_text(dialogue_file.read_text() * 2)
    assert huatuo_data([*command, "--overwrite", "--json", str(tmp_path / "report.json")]) == 0
    assert json.loads((tmp_path / "report.json").read_text())["records"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.json", "sft.jsonl", "unified"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def config(:\n", "line 1: SyntaxError"),
        ("import nothing_of_that_name\n", "line 1: ModuleNotFoundError"),
        ("def config():\n    return 1 / 0\n", "line 2: ZeroDivisionError"),
        (
            "from huatuo_jax.config import SourceMix\n\n\ndef config():\n    return SourceMix(priority=0)\n",
            "wrong.py: priority is 0",
        ),
    ],
)
def test_a_broken_config_names_file_line_and_reason(tmp_path, text, message):
    (tmp_path / "wrong.py").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(tmp_path / "wrong.py")


def test_a_config_that_is_no_python_file_is_refused(repository, capsys):
    assert huatuo(["train", str(repository / "README.md"), "--run", "x"]) == 2
    assert "a config is a .py file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("program", "words", "code"),
    [(huatuo, [], 2), (huatuo, ["--help"], 0), (huatuo, ["tain"], 2), (huatuo_data, ["tokenizer", "--help"], 0)],
)
def test_help_and_unknown_commands(program, words, code, capsys):
    assert program(words) == code
    out = capsys.readouterr()
    assert ("tokenizer train" if words[:1] == ["tokenizer"] else "train") in out.out + out.err


def test_reports_have_no_colour_when_piped_and_none_at_all_when_quiet(repository):
    words = ["mix", "--mixture", "paper", "--windows", "3"]
    run = lambda *more: (
        subprocess.run(
            [sys.executable, "-c", "import sys; from data_tools.cli import main; sys.exit(main())", *words, *more],
            cwd=repository,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    )
    shown = run()
    assert "web_cn" in shown and "\x1b" not in shown
    assert run("--quiet") == ""


def test_a_bucket_is_not_mistaken_for_a_folder(dialogue_file, capsys):
    assert huatuo_data(["import", str(dialogue_file), "--out", "gs://bucket/unified"]) == 2
    assert "local" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "named"),
    [(["trian", "c.py"], "'trian'"), (["convert", "form-hf"], "'convert form-hf'"), (["convert"], "'convert'")],
)
def test_a_mistyped_command_is_named_alone(words, named, capsys):
    assert huatuo(words) == 2
    assert f"no command {named}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("program", "words", "meant"),
    [
        (huatuo, ["trian"], "train"),
        (huatuo, ["convert", "form-hf"], "convert from-hf"),
        (huatuo_data, ["tokeniser", "train"], "tokenizer train"),
        (huatuo_data, ["build", "x", "--tokeniser", "t"], "--tokenizer"),
        (huatuo, ["generate", "x", "--promts", "q.txt"], "--prompts"),
        (huatuo, ["train", "quickstart", "--run", "x", "--optimizer.learning_rat", "1"], "--optimizer.learning-rate"),
        (huatuo, ["train", "quickstart", "--run", "x", "--learning_rate=1"], "--optimizer.learning-rate"),
        (huatuo, ["train", "quickstart", "--run", "x", "--lr", "1"], "--optimizer.learning-rate"),
        (huatuo, ["train", "quickstart", "--rnu", "x"], "--run"),
    ],
)
def test_a_misspelt_command_or_flag_gets_a_suggestion(program, words, meant, capsys):
    assert program(words) == 2
    assert f"(did you mean {meant}" in " ".join(capsys.readouterr().err.split())


def test_a_flag_that_resembles_none_gets_no_suggestion(capsys):
    assert huatuo(["chat", "x", "--zzzz"]) == 2
    assert "no flag --zzzz;" in capsys.readouterr().err


def test_a_text_that_begins_with_dashes_is_no_flag():
    parser = Parser()
    parser.add_argument("text")
    parser.add_argument("--max-length", type=int)
    assert parser.read(["--a_text with spaces", "--max_length=3"]) == Namespace(text="--a_text with spaces", max_length=3)


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["train", "quickstart", "--help"]], ids=" ".join)
def test_a_reader_that_closes_the_pipe_gives_no_traceback(words, repository):
    program = [sys.executable, "-c", "import sys; from huatuo_jax.cli import main; sys.exit(main())", *words]
    with subprocess.Popen(program, cwd=repository, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert process.stderr.read() == ""


class TestFieldsOfAConfig:
    """`--data.mixture.sft.priority 8`: every field of a config can be set by its dotted path."""

    @pytest.fixture
    def config(self):
        return load_config("quickstart")

    @pytest.fixture
    def changed(self, config):
        def read(*words):
            parser = Parser()
            add_config_fields(parser, config)
            return with_config_fields(config, parser.read(words))

        return read

    def test_without_flags_nothing_changes(self, config, changed):
        assert changed() == config

    def test_fields_of_every_kind_are_set(self, config, changed):
        words = ["--name", "other", "--optimizer.learning-rate", "1", "--mesh.fsdp=2", "--compute.remat", "none"]
        words += ["--no-logging.tensorboard", "--data.mixture.sft.priority", "3", "--questions.1.expected", "?"]
        found = changed(*words)
        assert (found.name, found.optimizer.learning_rate, found.mesh.fsdp, found.compute.remat) == ("other", 1.0, 2, "none")
        assert isinstance(found.optimizer.learning_rate, float)
        assert not found.logging.tensorboard
        assert dict(found.data.mixture) == dict(config.data.mixture) | {"sft": replace(config.data.mixture["sft"], priority=3.0)}
        assert [q.expected for q in found.questions] == [config.questions[0].expected, "?", config.questions[2].expected]

    def test_impossible_values_are_refused(self, changed):
        with pytest.raises(ConfigError, match=r"must be above 0"):
            changed("--optimizer.learning-rate", "0")
        with pytest.raises(ConfigError, match=r"invalid int value: 'many'"):
            changed("--batch-size", "many")
        with pytest.raises(ConfigError, match=r"invalid choice: 'zip'"):
            changed("--data.packing", "zip")
