"""What a folder leaves open (`--positions`, `--head`, `--ignore`) and what it records (its dialogue format), in every command."""

import io
import json
import shutil
import sys

import pytest

from huatuo_jax.cli import main
from huatuo_jax.data.formats import FORMATS
from huatuo_jax.errors import ConfigError, DataError
from huatuo_jax.inference.model import open_model
from huatuo_jax.weights.hf_tokenizer import FORMAT_FIELD
from huatuo_jax.weights.hf_write import ExportRequest, export
from tests.support.export_checkpoint import byte_level_tokenizer, random_model, tiny_tokenizer, write_run

OPTIONS = ("--positions", "alibi", "--head", "norm", "--ignore", "unsloth_fixed")


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """runs and exports of a Baichuan with ALiBi (`alibi`) and one with RoPE (`rope`), and token ids and prompts."""
    folder = tmp_path_factory.mktemp("options")
    tokenizer = tiny_tokenizer(folder)
    for name, preset in (("alibi", "tiny-baichuan2-13b"), ("rope", "tiny-baichuan2-7b")):
        write_run(folder / name, *random_model(preset, tokenizer), tokenizer)
        export(folder / name, folder / f"{name}-native", ExportRequest(layout="native"))
    export(folder / "rope", folder / "rope-llama", ExportRequest(layout="llama"))
    (folder / "tokens.json").write_text("[[5, 6, 7]]")
    (folder / "questions.txt").write_text("甘草？\n", encoding="utf-8")
    return folder


@pytest.fixture
def odd(desk, tmp_path):
    """The native exports as others might have written them: nothing says positions and head, and there is an unknown field."""
    for name in ("alibi", "rope"):
        folder = shutil.copytree(desk / f"{name}-native", tmp_path / f"odd-{name}")
        values = json.loads((folder / "config.json").read_text())
        for field in ("positions", "head", "z_loss_weight", "max_position_embeddings"):
            values.pop(field, None)
        (folder / "config.json").write_text(json.dumps(values | {"unsloth_fixed": True}))
    return tmp_path


def huatuo(*words) -> int:
    return main([*map(str, words), "--quiet"])


@pytest.mark.parametrize("command", ["compare", "logits", "generate", "chat", "from-hf"])
def test_what_a_folder_leaves_open_can_be_said_to_every_command(command, desk, odd, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    folder = odd / "odd-alibi"
    words = {
        "compare": ["convert", "compare", desk / "alibi", folder],
        "logits": ["logits", folder, "--token-ids", desk / "tokens.json", "--out", tmp_path / "logits.npy"],
        "generate": ["generate", folder, "--prompts", desk / "questions.txt", "--out", tmp_path / "a.jsonl"],
        "chat": ["chat", folder],
        "from-hf": ["convert", "from-hf", folder, tmp_path / "base", "--mesh.fsdp", 1],
    }[command]
    words += ["--max-new-tokens", 2] if command in ("generate", "chat") else []
    for count, missing in ((4, "--ignore unsloth_fixed"), (2, "--head linear or norm"), (0, "--positions rope or alibi")):
        options = OPTIONS[:count] if count == 4 else (*OPTIONS[:count], *OPTIONS[4:])
        assert huatuo(*words, *options) == 2
        assert missing in " ".join(capsys.readouterr().err.split())
    assert huatuo(*words, *OPTIONS) == 0


def test_the_answers_are_for_the_side_that_leaves_it_open(desk, odd):
    """The llama export has a plain head: there, --head norm would contradict."""
    assert huatuo("convert", "compare", desk / "rope-llama", odd / "odd-rope", "--positions", "rope", *OPTIONS[2:]) == 0


@pytest.mark.parametrize("command", ["logits", "generate"])
def test_a_checkpoint_leaves_nothing_open(command, desk, tmp_path, capsys):
    given = {"logits": ["--token-ids", desk / "tokens.json"], "generate": ["--prompts", desk / "questions.txt"]}[command]
    assert huatuo(command, desk / "rope", *given, "--out", tmp_path / "out.jsonl", "--head", "linear") == 2
    assert "leave out --head" in capsys.readouterr().err


def test_two_checkpoints_leave_nothing_open(desk, capsys):
    assert huatuo("convert", "compare", desk / "rope", desk / "rope", "--head", "norm") == 2
    assert "leave out --head" in capsys.readouterr().err


def test_answers_of_a_file_are_continued_with_the_same_options_only(desk, odd, tmp_path, capsys):
    words = ["generate", odd / "odd-rope", "--prompts", desk / "questions.txt", "--out", tmp_path / "a.jsonl"]
    words += ["--max-new-tokens", 2, "--positions", "rope", *OPTIONS[4:]]
    assert huatuo(*words, "--head", "norm") == 0
    assert huatuo(*words, "--head", "linear") == 2
    assert 'head: "norm" → "linear"' in " ".join(capsys.readouterr().err.split())


def test_an_export_records_its_dialogue_format(desk, tmp_path):
    assert open_model(desk / "rope-llama").dialogue_format.name == "huatuo"
    tokenizer = byte_level_tokenizer(tmp_path)
    export(
        write_run(tmp_path / "run", *random_model("tiny-qwen2", tokenizer), tokenizer, "chatml"), tmp_path / "hf", ExportRequest()
    )
    assert open_model(tmp_path / "hf").dialogue_format.name == "chatml"
    assert open_model(tmp_path / "hf", "huatuo").dialogue_format.name == "huatuo"
    assert huatuo("convert", "from-hf", tmp_path / "hf", tmp_path / "base", "--mesh.fsdp", 1) == 0
    assert open_model(tmp_path / "base").dialogue_format.name == "chatml"


def test_a_model_without_dialogue_format_records_none(desk, tmp_path):
    tokenizer = desk / "tiny.model"
    export(
        write_run(tmp_path / "run", *random_model("tiny-llama2", tokenizer), tokenizer, None), tmp_path / "hf", ExportRequest()
    )
    with pytest.raises(ConfigError, match=f"does not say its dialogue format; give it with --format: {', '.join(FORMATS)}"):
        open_model(tmp_path / "hf")


@pytest.mark.parametrize(
    ("content", "error", "reason"),
    [
        (json.dumps({FORMAT_FIELD: "alpaca"}), ConfigError, "no dialogue format 'alpaca'; there are huatuo"),
        (json.dumps({FORMAT_FIELD: 5}), ConfigError, f"{FORMAT_FIELD} 5, not the name of a dialogue format"),
        ("{", DataError, "tokenizer_config.json is not JSON"),
    ],
)
def test_a_record_that_cannot_be_is_refused(content, error, reason, desk, tmp_path):
    folder = shutil.copytree(desk / "rope-llama", tmp_path / "hf")
    (folder / "tokenizer_config.json").write_text(content)
    with pytest.raises(error, match=reason):
        open_model(folder)
    assert open_model(folder, "huatuo").dialogue_format.name == "huatuo"


def test_transformers_keeps_the_record_and_says_nothing(desk, tmp_path, caplog, recwarn):
    transformers = pytest.importorskip("transformers")
    transformers.utils.logging.enable_propagation()
    tokenizer = transformers.AutoTokenizer.from_pretrained(desk / "rope-llama")
    transformers.utils.logging.disable_propagation()
    assert (caplog.messages, list(recwarn)) == ([], [])
    tokenizer.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())[FORMAT_FIELD] == "huatuo"
