"""First stage, shard by shard: documents in, clean passages of the domain out, with the hashes by which copies are found.

Writes into its folder `passages.jsonl.zst`, `dropped.jsonl.zst` (if asked for), `unreadable.jsonl`, and per passage a row of
  digests.npy   uint64 [n, 2]       of the letters and digits
  sources.npy   int32 [n]           number of its source in done.json
  bands.npy     uint64 [bands, n]   MinHash bands
  shingles.npy  uint32 [total], offsets.npy int64 [n + 1]: the set of hashed 3-grams of each
and `done.json`, the last: its statistics, and what it was made from.
"""

import contextlib
import functools
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.collect.clean import dropping_rule, remove_control_characters
from data_tools.collect.domain_model import DomainModel, load_model
from data_tools.collect.duplicates import band_keys, content_digests, signatures
from data_tools.collect.ngrams import shingles
from data_tools.collect.passage_files import RowWriter, write_rows
from data_tools.collect.personal_data import mask_personal_data
from data_tools.collect.reading import Document, Unreadable, read_documents
from data_tools.collect.segment import is_heading, segment
from data_tools.collect.settings import CollectConfig
from data_tools.collect.shards import Shard
from data_tools.collect.statistics import Statistics
from data_tools.records.language import language_of
from huatuo_jax.io.files import sha256_file, write_json, write_npy, write_text

BATCH = 512
TITLE_CHARS = {"zh": 40, "en": 200}
OUT_OF_DOMAIN = "out of domain"


@dataclass(frozen=True)
class PassagesTask:
    """One shard; `folder` is its own, `model` the file of the domain model (None: any domain), `key` what done.json must say."""

    shard: Shard
    config: CollectConfig
    model: Path | None
    folder: Path
    key: str


def make_passages(task: PassagesTask) -> None:
    """Runs the stage on a shard; the folder counts as done when done.json is there with the task's key."""
    (task.folder / "done.json").unlink(missing_ok=True)
    statistics, unreadable, hashes = Statistics(), [], _Hashes(task.config)
    with contextlib.ExitStack() as stack:
        passages = stack.enter_context(write_rows(task.folder / "passages.jsonl.zst"))
        dropped = None
        if task.config.keep_dropped:
            dropped = stack.enter_context(write_rows(task.folder / "dropped.jsonl.zst"))
        model = None if task.model is None else _loaded_model(task.model, task.key)
        for file in task.shard.files:
            for found in read_documents(file, task.config.reading):
                if isinstance(found, Unreadable):
                    unreadable.append(json.dumps(asdict(found), ensure_ascii=False))
                    continue
                for row in passages_of(found, task.config, model, statistics, dropped):
                    passages.write(row)
                    hashes.add(row["source"], row["text"])
    statistics.unreadable = len(unreadable)
    write_text(task.folder / "unreadable.jsonl", "".join(line + "\n" for line in unreadable))
    hashes.save(task.folder)
    inputs = [
        {"name": file.name, "size": file.size, "modified": file.modified, "sha256": sha256_file(file.path)}
        for file in task.shard.files
    ]
    done = {"key": task.key, "inputs": inputs, "rows": hashes.rows, "sources": hashes.sources, "statistics": statistics.to_json()}
    write_json(task.folder / "done.json", done)


def passages_of(
    document: Document,
    config: CollectConfig,
    model: DomainModel | None,
    statistics: Statistics,
    dropped: RowWriter | None = None,
) -> Iterator[dict[str, Any]]:
    """The clean passages of one document as rows; counts what is kept and dropped."""
    text, source = document.text, document.source
    statistics.count(source, "raw", text)
    text = remove_control_characters(text)
    language = language_of(text)

    def mask(piece: str) -> str:
        return mask_personal_data(piece)[0] if config.mask else piece

    def mask_and_count(piece: str) -> str:
        if config.mask:
            piece, masks = mask_personal_data(piece)
            statistics.mask(masks)
        return piece

    def drop(reason: str, piece: str, id: str) -> None:
        statistics.drop(source, reason, piece, mask)
        if dropped is not None:
            dropped.write({"id": id, "source": source, "dropped": reason, "text": mask(piece)})

    score = None
    if model is not None:
        kept, score = model.keeps(text, language)
        if not kept and source not in config.in_domain:
            drop(OUT_OF_DOMAIN, text, document.id)
            return
    statistics.count(source, "extracted", text)
    bounds = segment(text, config.windows[language], language)
    own_title = remove_control_characters(document.title).strip()
    title = own_title or (_first_heading(text, language) if len(bounds) > 1 else "")
    for number, (start, end) in enumerate(bounds):
        piece, id = text[start:end].strip(), f"{document.id}-{number}"
        if rule := dropping_rule(piece, language_of(piece) if len(bounds) > 1 else language, config.clean):
            drop(rule, piece, id)
            continue
        piece = mask_and_count(piece)
        statistics.count(source, "cleaned", piece)
        row: dict[str, Any] = {"id": id, "source": source, "text": piece}
        if title and (number or own_title):
            row["title"] = mask_and_count(title)
        yield row | {"language": language} | ({} if score is None else {"score": round(score, 4)})


def _first_heading(text: str, language: str) -> str:
    """The first line of a document if it reads like its title."""
    first = text[: 4 * TITLE_CHARS[language]].strip().split("\n", 1)[0].strip()
    return first if len(first) > 1 and is_heading(first, TITLE_CHARS[language]) else ""


@functools.lru_cache(maxsize=1)
def _loaded_model(path: Path, key: str) -> DomainModel:
    """The model, read once a process; `key` changes with its content."""
    return load_model(path)


class _Hashes:
    """Collects the hashes of a shard's passages batch by batch."""

    def __init__(self, config: CollectConfig) -> None:
        self._near = config.near
        self.rows = 0
        self.sources: list[str] = []
        self._batch: list[str] = []
        self._source_numbers: list[int] = []
        self._digests: list[np.ndarray] = [np.zeros((0, 2), np.uint64)]
        self._bands: list[np.ndarray] = []
        self._shingles: list[np.ndarray] = [np.zeros(0, np.uint32)]
        self._sizes: list[np.ndarray] = [np.zeros(0, np.int64)]

    def add(self, source: str, text: str) -> None:
        """Takes the next passage."""
        if source not in self.sources:
            self.sources.append(source)
        self._source_numbers.append(self.sources.index(source))
        self._batch.append(text)
        self.rows += 1
        if len(self._batch) == BATCH:
            self._flush()

    def _flush(self) -> None:
        if not self._batch:
            return
        self._digests.append(content_digests(self._batch))
        if self._near is not None:
            sets = shingles(self._batch)
            self._bands.append(band_keys(signatures(sets, self._near), self._near).T)
            self._shingles.append(sets.hashes.astype(np.uint32))
            self._sizes.append(np.diff(sets.offsets))
        self._batch.clear()

    def save(self, folder: Path) -> None:
        """Writes the arrays."""
        self._flush()
        write_npy(folder / "digests.npy", np.concatenate(self._digests))
        write_npy(folder / "sources.npy", np.array(self._source_numbers, np.int32))
        if self._near is not None:
            empty = np.zeros((self._near.bands, 0), np.uint64)
            write_npy(folder / "bands.npy", np.ascontiguousarray(np.concatenate([empty, *self._bands], axis=1)))
            write_npy(folder / "shingles.npy", np.concatenate(self._shingles))
            write_npy(folder / "offsets.npy", np.concatenate([[0], np.cumsum(np.concatenate(self._sizes))]).astype(np.int64))
