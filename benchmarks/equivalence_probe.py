"""Reads a token dataset through the API of whichever commit is on PYTHONPATH; `benchmarks.equivalence` runs it in each.

    python equivalence_probe.py TOKENS OUT.npz

What must hold: it imports nothing of the project at its top, for it must run with every commit. OUT holds, as
`SOURCE/SPLIT/lengths`, `…/tokens` and `…/targets`, every record in the order of its ids. A commit whose dataset has another name
or other methods gets a reader of its own in `READERS`.
"""

import importlib
import sys
from typing import Any

import numpy as np

SPLITS = ("train", "holdout")

Documents = list[tuple[np.ndarray, np.ndarray]]


def by_offsets(module: str, path: str) -> dict[tuple[str, str], Documents]:
    """A `TokenDataset` with `open`, `sources`, `offsets(split)` and `read(ids, split)`."""
    dataset: Any = importlib.import_module(module).TokenDataset.open(path)
    documents: dict[tuple[str, str], Documents] = {}
    for split in SPLITS:
        offsets = dataset.offsets(split)
        for source, first, end in zip(dataset.sources, offsets[:-1], offsets[1:], strict=True):
            documents[source, split] = dataset.read(np.arange(first, end), split)
    return documents


READERS = ((by_offsets, "huatuo_jax.data.token_store"), (by_offsets, "huatuo_jax.data.token_dataset"))
"""(reader, module), tried in turn: the first whose module is there reads."""


def main() -> int:
    """Writes the records; returns the exit code."""
    tokens, out = sys.argv[1:]
    for reader, module in READERS:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            # A module that is there but misses another one is a fault of that commit, not another layout.
            if not module.startswith(str(error.name)):
                raise
            continue
        arrays: dict[str, np.ndarray] = {}
        for (source, split), documents in reader(module, tokens).items():
            for number, name in enumerate(("tokens", "targets")):
                parts = [document[number] for document in documents]
                arrays[f"{source}/{split}/{name}"] = np.concatenate([np.zeros(0, np.int32), *parts])
                arrays[f"{source}/{split}/{name} lengths"] = np.array([len(part) for part in parts], np.int64)
        np.savez(out, **arrays)  # type: ignore[arg-type]
        return 0
    print(f"none of {[module for _, module in READERS]} is there; add a reader of this commit", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
