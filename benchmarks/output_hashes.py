"""SHA-256 of what the commands write: what two versions of the code, or a version and a golden file, are compared by.

Used by `equivalence.py` and by the golden test. What must hold: it works on arrays and files alone and imports nothing of the
project, so that a refactoring cannot change the measure itself.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

CARD = "README.md"
"""The model card: it names paths and figures of the run, so no comparison of exports reads it."""


def file_hash(path: Path) -> str:
    """Of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def array_hash(array: np.ndarray) -> str:
    """Of dtype, shape and little-endian values."""
    # Dtype and shape go in, so that int32 and int64 of the same values differ, and so do a row and a column.
    plain = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return hashlib.sha256(f"{plain.dtype.str} {plain.shape} ".encode() + plain.tobytes()).hexdigest()


def documents_hash(documents: Iterable[tuple[np.ndarray, np.ndarray]]) -> str:
    """Of (tokens, targets) in their order; both lengths go in, so that no token can move from one document to the next."""
    digest = hashlib.sha256()
    for document in documents:
        for values in document:
            digest.update(np.int64(len(values)).astype("<i8").tobytes())
            digest.update(np.ascontiguousarray(values, "<i4").tobytes())
    return digest.hexdigest()


def tensor_hashes(path: Path) -> dict[str, str]:
    """Of each tensor of a safetensors file: dtype, shape and bytes, whatever the order in the file."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    # Tensor by tensor and without the header: two exports may order or shard the same tensors differently.
    hashes = {}
    for name, facts in sorted(header.items()):
        begin, end = facts["data_offsets"]
        kind = f"{facts['dtype']} {facts['shape']} ".encode()
        hashes[name] = hashlib.sha256(kind + data[start + begin : start + end]).hexdigest()
    return hashes


def export_hashes(folder: Path) -> dict[str, str]:
    """Of each tensor by its name, and of every other file but the card by its file name."""
    hashes: dict[str, str] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix == ".safetensors":
            hashes |= tensor_hashes(path)
        elif path.name != CARD:
            hashes[path.name] = file_hash(path)
    return hashes
