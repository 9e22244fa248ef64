"""Passages of a shard as .jsonl.zst files: written aside and renamed, the same bytes for the same rows."""

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import zstandard

from huatuo_jax.io.files import written_aside
from huatuo_jax.io.jsonl import open_bytes

LEVEL = 3


class RowWriter:
    """Writes objects, one a line; `rows` counts them."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.rows = 0

    def write(self, row: dict[str, Any]) -> None:
        """Appends a row."""
        self._file.write(json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode("utf-8") + b"\n")
        self.rows += 1


@contextmanager
def write_rows(path: Path) -> Iterator[RowWriter]:
    """Opens a new file for rows; it appears when the context ends without an error."""
    compressor = zstandard.ZstdCompressor(level=LEVEL)
    with written_aside(path) as aside, open(aside, "wb") as raw, compressor.stream_writer(raw, closefd=False) as compressed:
        yield RowWriter(compressed)


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file in order.

    Raises:
      TornFileError: the file is damaged.
    """
    with open_bytes(path) as opened:
        for line in io.BufferedReader(opened, 1 << 20):  # type: ignore[type-var]
            yield json.loads(line)
