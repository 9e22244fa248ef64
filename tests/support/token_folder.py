"""A token dataset on disk from arrays in memory: what `huatuo-data build` writes, without text or tokenizer."""

import zlib
from pathlib import Path

import numpy as np

from huatuo_jax.data.dialogue import Examples
from huatuo_jax.data.packing import Packing
from huatuo_jax.data.rows import RowArrays, assemble
from huatuo_jax.data.token_store import SCHEMA, shard_name, write_shard
from huatuo_jax.io.files import write_json, write_npy

IGNORED = -100

Example = tuple[np.ndarray, np.ndarray]


def dialogue(question: int, answer: int, first: int = 1) -> Example:
    """An example of `question` ignored tokens and `answer` targets; tokens count up from `first`."""
    tokens = np.arange(first, first + question + answer, dtype=np.int32)
    targets = tokens.copy()
    targets[:question] = IGNORED
    return tokens, targets


def assembled(examples: list[Example], sources: list[int], sequence_length: int, packing: Packing) -> RowArrays:
    """One row of these examples, each cut to the row's length."""
    joined = Examples.join(examples).cut(sequence_length)
    rows = assemble(joined, sources, [len(examples)], sequence_length, packing)
    return {name: array[0] for name, array in rows.items()}


def write_tokens(
    path: Path, train: dict[str, list[Example]], holdout: dict[str, list[Example]] | None = None, tokenizer: dict | None = None
) -> Path:
    """Writes the folder and returns it; one shard a source and split."""
    facts = tokenizer or {"path": "none", "fingerprint": "none", "vocab_size": 10_000, "eos_id": 2}
    sources: dict[str, dict] = {}
    for source in train:
        sources[source] = {"rejected": 0, "shards": []}
        for split, examples in (("train", train[source]), ("holdout", (holdout or {}).get(source, []))):
            _write_split(path / source, split, examples, sources[source], facts["eos_id"])
    write_json(
        path / "manifest.json",
        {"schema": SCHEMA, "tokenizer": facts, "template": "huatuo", "template_version": 1, "max_len": 10**6, "sources": sources},
    )
    return path


def _write_split(folder: Path, split: str, examples: list[Example], facts: dict, eos_id: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / shard_name(split, 0, 1)
    statistics = write_shard(file, [Examples.join(examples)] if examples else [], eos_id)
    for name, array in statistics.items():
        write_npy(folder / f"{split}.{name}.npy", array)
    learned = [np.flatnonzero(targets[1:] != IGNORED) + 1 for _, targets in examples]
    assert statistics["target_counts"].tolist() == [len(places) for places in learned]
    tokens = sum(len(tokens) for tokens, _ in examples)
    facts[split] = {
        "records": len(examples),
        "tokens": tokens,
        "target_tokens": sum(map(len, learned)),
        "crc32": {name: zlib.crc32(array) for name, array in statistics.items()},
    }
    if examples:
        facts["shards"].append({"split": split, "file": file.name, "records": len(examples), "tokens": tokens})
