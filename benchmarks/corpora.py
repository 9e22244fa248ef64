"""Dialogues to measure on: real ones beside the repository, else the quickstart's.

Shared by the other benchmarks. What must hold: nothing is downloaded, and both sides of a comparison get the same texts.
"""

import json
import lzma
import tempfile
from pathlib import Path

import numpy as np

from data_tools.cli import main as huatuo_data
from data_tools.tokens.tokenizer_training import train_tokenizer
from huatuo_jax.data.dialogue import Record, encode_record
from huatuo_jax.data.formats import get_format
from huatuo_jax.data.tokenizers import load_tokenizer

REPOSITORY = Path(__file__).parents[1]
REAL = REPOSITORY.parent / "shared" / "data"


def dialogues(count: int) -> list[list[str]]:
    """The first `count` dialogues as lists of turns."""
    real = REAL / "sft" / "sft_zh.jsonl.xz"
    if real.is_file():
        with lzma.open(real, "rt", encoding="utf-8") as file:
            return [json.loads(line)["turns"] for line, _ in zip(file, range(count), strict=False)]
    lines = (REPOSITORY / "examples" / "quickstart" / "sft.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["turns"] for line in lines][:count]


def encoded_dialogues(vocab_size: int, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """(tokens, targets) of the first `count` dialogues, with a tokenizer of `vocab_size` trained on them."""
    turns = dialogues(count)
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "tokenizer.model"
        lines = (line for t in turns for turn in t for line in turn.splitlines())
        # A vocabulary of the measured model's size: a released one would make most of a small model an embedding.
        train_tokenizer(lines, vocab_size, model)
        tokenizer, dialogue_format = load_tokenizer(model), get_format("huatuo")
        records = [Record(id=str(i), source="sft", turns=tuple(t)) for i, t in enumerate(turns)]
        return [encode_record(record, tokenizer, dialogue_format) for record in records]


def planned_dialogues(folder: Path, sequence_length: int = 4096) -> tuple[Path, Path]:
    """A plan and a token dataset of dialogues, three epochs; real ones with the real Baichuan2 tokenizer where they are there."""
    real = (REAL / "sft" / "sft_zh.jsonl.xz").is_file()
    text = REAL / "sft" / "sft_zh.jsonl.xz" if real else REPOSITORY / "examples" / "quickstart" / "sft.jsonl"
    tokenizer = REAL / "tokenizers" / "baichuan2.model" if real else folder / "tokenizer.model"
    # The quickstart has few dialogues: so many epochs of them make enough rows to measure on.
    mixture, epochs = folder / "mixture.json", 3 if real else 2_000
    mixture.write_text(json.dumps({"sft": {"priority": 1, "epochs": epochs}}), encoding="utf-8")
    train = ["tokenizer", "train", text, "--vocab-size", "3000", "--out", tokenizer]
    for command in (
        *([] if real else [train]),
        ["import", text, "--source", "sft", "--out", folder / "unified"],
        ["build", folder / "unified", "--tokenizer", tokenizer, "--out", folder / "tokens"],
        ["plan", folder / "tokens", "--mixture-file", mixture, "--sequence-length", sequence_length, "--out", folder / "plan"],
    ):
        if huatuo_data([*map(str, command), "--quiet"]):
            raise RuntimeError(f"huatuo-data {command[0]} failed")
    return folder / "plan", folder / "tokens"
