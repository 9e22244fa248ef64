"""Passages for the tests: real ones beside the repository."""

import json
import lzma
from pathlib import Path


def texts(shared: Path, name: str, count: int, shortest: int) -> list[str]:
    """The first `count` texts of a corpus with at least `shortest` characters, cut to 600."""
    found = []
    with lzma.open(shared / "corpus" / f"{name}.jsonl.xz", "rt", encoding="utf-8") as file:
        for line in file:
            text = json.loads(line)["text"]
            if len(text) >= shortest:
                found.append(text[:600])
            if len(found) == count:
                break
    return found
