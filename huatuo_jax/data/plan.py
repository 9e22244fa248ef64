"""The row plan: which documents share each row, in the order of training, and of what data and how it was made.

    PLAN/row_starts.npy   int64 [rows + 1]
    PLAN/row_docs.npy     int64 [kept draws]: document ids of the train split
    PLAN/manifest.json    written last: without it there is no plan

Row i holds the documents `row_docs[row_starts[i] : row_starts[i + 1]]`. Row starts 0 2 5 and documents 7 3 9 7 1 are two rows:
documents 7 and 3, then 9, 7 (drawn a second time) and 1.

`data_tools/planning/planner.py` makes a plan; training, reports and `huatuo-data inspect` read it. Next to read: `rows.py`. What
must hold: everything random about the data is decided here, so step s of a run depends on the plan alone, and a plan never serves
other data or settings than it was made for.
"""

import dataclasses
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from etils import epath

from huatuo_jax.config import DataConfig
from huatuo_jax.config_files import differences
from huatuo_jax.errors import ConfigError, DataError
from huatuo_jax.io.files import PathLike, cached_copy, is_local, read_json, read_npy, sha256_json, write_json, write_npy

SCHEMA = 1
REMEDY = "make it with `huatuo-data plan --config CONFIG.py` (seconds)"


class HasManifestHash(Protocol):
    """What a plan checks of a token dataset: the identity of the data."""

    @property
    def manifest_hash(self) -> str: ...  # noqa: D102


@dataclass(frozen=True)
class Plan:
    """Rows as CSR arrays (see the module's docstring). `len(plan)` is the number of rows."""

    row_starts: np.ndarray
    row_docs: np.ndarray
    manifest: Mapping[str, Any]

    @classmethod
    def of(cls, row_starts: np.ndarray, row_docs: np.ndarray, facts: Mapping[str, Any]) -> "Plan":
        """A new plan of int64 arrays [rows + 1] and [kept draws].

        `facts` are the manifest's entries but for the identity of the arrays, which is added here.
        """
        arrays = {"row_starts": _sha256(row_starts), "row_docs": _sha256(row_docs)}
        counts = {"rows": len(row_starts) - 1, "records": len(row_docs)}
        return cls(row_starts, row_docs, {"schema": SCHEMA, **facts, **counts, "arrays": arrays})

    @classmethod
    def load(cls, path: PathLike, cache: bool = True) -> "Plan":
        """Opens a plan folder. Local arrays are memory-mapped; remote ones are first copied to local disk.

        Args:
          path: the folder, local or remote (`gs://`).
          cache: keep the copy of a remote plan, found again by its hash, in `$XDG_CACHE_HOME/huatuo-jax` (or `~/.cache`).

        Raises:
          DataError: no plan there, another schema, or arrays that are torn or altered (each is checked against its hash).
        """
        folder = epath.Path(path)
        if not (folder / "manifest.json").exists():
            raise DataError(f"no plan at {folder} (it has no manifest.json); {REMEDY}")
        try:
            manifest = read_json(folder / "manifest.json")
            schema, arrays = manifest["schema"], manifest["arrays"]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{folder}/manifest.json is not a plan's manifest ({error}); {REMEDY}") from error
        if schema != SCHEMA:
            raise DataError(f"{folder} has plan schema {schema}, this version reads {SCHEMA}; {REMEDY}")
        # Object stores cannot be memory-mapped, so the arrays are copied to local disk, once for each plan.
        cached = cache and not is_local(path)
        source = folder
        if cached:
            copies = [cached_copy(folder / f"{name}.npy", f"plans/{sha256_json(manifest)}") for name in arrays]
            source = epath.Path(copies[0].parent)
        remedy = f"remove that copy of {folder}" if cached else REMEDY
        row_starts = _read(source, "row_starts", manifest["rows"] + 1, remedy)
        plan = cls(row_starts, _read(source, "row_docs", manifest["records"], remedy), manifest)
        # At every start: an altered order would train, and only the curves would be another run's.
        for name, digest in arrays.items():
            if _sha256(getattr(plan, name)) != digest:
                raise DataError(f"{source}/{name}.npy was altered after the plan was made; {remedy}")
        if plan.row_starts[0] != 0 or plan.row_starts[-1] != len(plan.row_docs) or np.any(np.diff(plan.row_starts) < 1):
            raise DataError(f"{folder}/row_starts.npy does not rise from 0 to {len(plan.row_docs)}; {REMEDY}")
        return plan

    def save(self, path: PathLike) -> None:
        """Writes the folder; a plan that is already there disappears first, so that no reader sees a mixture of two."""
        folder = epath.Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "manifest.json").unlink(missing_ok=True)  # from here on there is no plan, until the new manifest is there
        write_npy(folder / "row_starts.npy", self.row_starts)
        write_npy(folder / "row_docs.npy", self.row_docs)
        write_json(folder / "manifest.json", self.manifest)

    def with_tokens_at(self, tokens: PathLike, path: PathLike) -> "Plan":
        """The plan that remembers where its token dataset lies, seen from its own folder `path` if both are local.

        A convenience for readers such as `huatuo-data inspect`; the plan's identity does not depend on it.
        """
        seen = os.path.relpath(tokens, path) if is_local(tokens) and is_local(path) else os.fspath(tokens)
        return dataclasses.replace(self, manifest={**self.manifest, "tokens": seen})

    @staticmethod
    def hash_at(path: PathLike) -> str:
        """Identity of the plan in a folder, "" if there is no whole one."""
        try:
            return Plan.load(path, cache=False).hash
        except DataError:
            return ""

    @property
    def hash(self) -> str:
        """Identity of the plan: of its manifest, which holds the hashes of data and arrays."""
        # Where the token dataset lies is no part of it: a plan may move.
        return sha256_json({name: value for name, value in self.manifest.items() if name != "tokens"})

    def __len__(self) -> int:
        return len(self.row_starts) - 1

    def docs(self, row: int) -> np.ndarray:
        """Document ids of one row, in drawn order: int64 [examples]."""
        return self.row_docs[self.row_starts[row] : self.row_starts[row + 1]]

    def check_data(self, dataset: HasManifestHash) -> None:
        """Raises DataError if the plan was made of other data."""
        planned, given = self.manifest["token_manifest_hash"], dataset.manifest_hash
        if planned != given:
            raise DataError(
                f"the plan was made of other data: its token dataset has hash {planned[:12]}…, this one {given[:12]}…; "
                "point data.tokens at the planned dataset, or " + REMEDY
            )

    def check_matches(self, dataset: HasManifestHash, data: DataConfig) -> None:
        """Raises DataError on other data, ConfigError on other settings (listing each with both values)."""
        self.check_data(dataset)
        wanted = settings(data)
        if changed := differences({name: self.manifest[name] for name in wanted}, wanted):
            planned = [(name, *("absent" if value is None else value for value in values)) for name, *values in changed]
            lines = [f"{name}: {old} planned, {new} configured" for name, old, new in planned]
            raise ConfigError(
                "the plan was made with other settings; change the config's `data`, or plan with --config:\n  "
                + "\n  ".join(lines)
            )


def settings(data: DataConfig) -> dict[str, Any]:
    """What of a data config decides the plan, as the manifest holds it."""
    return {
        "sequence_length": data.sequence_length,
        "packing": data.packing,
        "seed": data.seed,
        "mixture": {
            source: {"priority": float(mix.priority), "epochs": float(mix.epochs)} for source, mix in sorted(data.mixture.items())
        },
    }


def _sha256(array: np.ndarray) -> str:
    # Of the numbers and not of the file, whose header numpy may write otherwise; little-endian on every machine.
    return hashlib.sha256(np.ascontiguousarray(array, "<i8").view(np.uint8).data).hexdigest()


def _read(folder: PathLike, name: str, size: int, remedy: str) -> np.ndarray:
    path = f"{os.fspath(folder)}/{name}.npy"
    try:
        array = read_npy(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is missing or torn ({error}); {remedy}") from error
    if array.shape != (size,) or array.dtype != np.int64:
        raise DataError(f"{path} is {array.dtype} {list(array.shape)}, the manifest says int64 [{size}]; {remedy}")
    return array
