"""Reader of the token dataset that `huatuo-data build` wrote: uncut token records by number, and their sizes on their own.

TOKENS/manifest.json                    written last; its hash is the dataset's identity
TOKENS/SOURCE/{split}.lengths.npy       and target_counts, first_targets: int32 [records]
TOKENS/SOURCE/huatuo_tokens-{split}.array_record-…   also readable through TensorFlow Datasets
"""

from typing import Any

import numpy as np
from etils import epath

from huatuo_jax.data.shards import Shards
from huatuo_jax.data.token_codec import decode_examples
from huatuo_jax.errors import DataError
from huatuo_jax.io.files import PathLike, read_json, read_npy, sha256_json

SCHEMA = 1
DATASET = "huatuo_tokens"
SPLITS = ("train", "holdout")
REMEDY = "build the token dataset again (`huatuo-data build` into a new folder)"


class TokenDataset:
    """Records of all sources under one numbering: document id = `offsets(split)[source index] + record index`.

    Attributes:
      path: the folder.
      manifest: as written by the build; manifest_hash: its SHA-256, which plans carry.
      sources: names, in the order of the manifest.
    """

    def __init__(self, path: PathLike, manifest: dict[str, Any]) -> None:
        self.path = epath.Path(path)
        self.manifest = manifest
        self.manifest_hash = sha256_json(manifest)
        self.sources: tuple[str, ...] = tuple(manifest["sources"])
        self._statistics: dict[tuple[str, str, str], np.ndarray] = {}
        self._shards = {split: self._open_shards(split) for split in SPLITS}

    @property
    def tokenizer_path(self) -> epath.Path:
        """The tokenizer file that the dataset was built with; it lies in the folder."""
        return self.path / self.manifest["tokenizer"]["path"]

    @classmethod
    def open(cls, path: PathLike) -> "TokenDataset":
        """Opens a finished token dataset.

        Raises:
          DataError: if there is none, or a file of it is missing or torn.
        """
        found = epath.Path(path) / "manifest.json"
        if not found.exists():
            if (epath.Path(path) / "build.json").exists():
                remedy = "its build was interrupted; the same `huatuo-data build` command continues it"
            elif epath.Path(path).exists():
                remedy = "give the folder that `huatuo-data build` wrote"
            else:
                remedy = "there is no such folder; give the one that `huatuo-data build` wrote"
            raise DataError(f"{path} holds no finished token dataset (no manifest.json): {remedy}")
        try:
            manifest = read_json(found)
            schema, _ = manifest["schema"], manifest["tokenizer"]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{found} is not the manifest of a token dataset ({error!r}); {REMEDY}") from error
        if schema != SCHEMA:
            raise DataError(f"{path} has schema {schema}, this version reads schema {SCHEMA}; {REMEDY}")
        return cls(path, manifest)

    def count(self, source: str, split: str = "train") -> int:
        """Number of records."""
        return int(self.manifest["sources"][source][split]["records"])

    def lengths(self, source: str, split: str = "train") -> np.ndarray:
        """int32 [records]: tokens of each record."""
        return self._statistic(source, split, "lengths")

    def target_counts(self, source: str, split: str = "train") -> np.ndarray:
        """int32 [records]: targets of each record that are not ignored, from position 1 on."""
        return self._statistic(source, split, "target_counts")

    def first_targets(self, source: str, split: str = "train") -> np.ndarray:
        """int32 [records]: first position ≥ 1 whose target is not ignored; the record's length if there is none."""
        return self._statistic(source, split, "first_targets")

    def offsets(self, split: str = "train") -> np.ndarray:
        """int64 [sources + 1]: document ids at which each source begins."""
        return np.cumsum([0, *(self.count(source, split) for source in self.sources)], dtype=np.int64)

    def read(self, doc_ids: np.ndarray, split: str = "train") -> list[tuple[np.ndarray, np.ndarray]]:
        """(tokens, targets) of each document, int32 [length] each, targets not shifted; safe to call from several threads.

        Args:
          doc_ids: int64 [n], in any order.

        Raises:
          DataError: if an id is out of range or a file cannot be read.
        """
        contents = self._shards[split].read(doc_ids)
        if not contents:
            return []
        try:
            return decode_examples(contents)
        except ValueError as error:
            raise DataError(f"{self.path}: documents {doc_ids[0]} … {doc_ids[-1]} are damaged ({error}); {REMEDY}") from error

    def _open_shards(self, split: str) -> Shards:
        shards = [
            (self.path / source / shard["file"], shard["records"], shard["bytes"])
            for source in self.sources
            for shard in self.manifest["sources"][source]["shards"]
            if shard["split"] == split
        ]
        return Shards([s[0] for s in shards], [s[1] for s in shards], [s[2] for s in shards], REMEDY)

    def _statistic(self, source: str, split: str, name: str) -> np.ndarray:
        key = (source, split, name)
        if key not in self._statistics:
            path = self.path / source / f"{split}.{name}.npy"
            try:
                found = read_npy(path)
            except (OSError, ValueError) as error:
                raise DataError(f"{path} is missing or torn ({error}); {REMEDY}") from error
            if found.shape != (self.count(source, split),):
                expected = f"({self.count(source, split)},) as the manifest says"
                raise DataError(f"{path} has shape {found.shape}, not {expected}; {REMEDY}")
            self._statistics[key] = found
        return self._statistics[key]
