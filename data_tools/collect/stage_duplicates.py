"""Second stage, over all shards: the hashes of all passages in, which of them are copies of which out.

Passages have global numbers: shard after shard, row after row. `codes.npy` (int8 [n]) says why a passage is removed,
`kept_copies.npy` (int64 [n]) the global number of the one that stays. One task per MinHash band, then one per block of pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.collect.duplicates import KEPT, NearDuplicates, candidate_pairs, exact_duplicates, keep_preferred, similar_pairs
from data_tools.collect.ngrams import HashedRows
from data_tools.collect.passage_files import read_rows
from data_tools.collect.semantic import open_embedder, similar_meanings
from data_tools.collect.settings import CollectConfig
from huatuo_jax.io.files import read_json, read_npy, write_json, write_npy
from huatuo_jax.io.tasks import run_tasks

STAYS, EXACT, NEAR, SEMANTIC = range(4)
REASONS = {EXACT: "exact duplicate", NEAR: "near duplicate", SEMANTIC: "same meaning"}
PAIRS_PER_TASK = 100_000


@dataclass(frozen=True)
class DuplicatesTask:
    """`shards`: folders of the first stage, in order. `folder`: the stage's own. `key`: what done.json must say."""

    shards: tuple[Path, ...]
    config: CollectConfig
    folder: Path
    key: str


def find_duplicates(task: DuplicatesTask, workers: int, engine: str) -> None:
    """Runs the stage; done when done.json is there with the task's key."""
    (task.folder / "done.json").unlink(missing_ok=True)
    task.folder.mkdir(parents=True, exist_ok=True)
    dones = [read_json(folder / "done.json") for folder in task.shards]
    preferred = preference_order(task.shards, dones, task.config.source_priority)
    codes, copies = np.zeros(len(preferred), np.int8), np.full(len(preferred), KEPT, np.int64)
    figures: dict[str, Any] = {"candidate_pairs": 0, "comparisons_saved": 0}
    if task.config.exact and len(preferred):
        digests = np.concatenate([read_npy(folder / "digests.npy") for folder in task.shards])
        _remove(exact_duplicates(digests[preferred]), preferred, EXACT, codes, copies)
        preferred = preferred[codes[preferred] == STAYS]
    if task.config.near is not None and len(preferred):
        pairs, figures["comparisons_saved"] = _near_pairs(task, preferred, workers, engine)
        figures["candidate_pairs"] = len(pairs)
        _remove(keep_preferred(_verified(task, pairs, workers, engine), len(preferred)), preferred, NEAR, codes, copies)
        preferred = preferred[codes[preferred] == STAYS]
    if task.config.semantic is not None and len(preferred):
        vectors = _vectors(task, codes, dones)[preferred]
        pairs = similar_meanings(vectors, task.config.semantic)
        _remove(keep_preferred(pairs, len(preferred)), preferred, SEMANTIC, codes, copies)
    write_npy(task.folder / "codes.npy", codes)
    write_npy(task.folder / "kept_copies.npy", copies)
    for scrap in (*task.folder.glob("band-*.npy"), *task.folder.glob("block-*.npy"), *task.folder.glob("order.npy")):
        scrap.unlink()
    write_json(task.folder / "done.json", {"key": task.key, "passages": len(codes), **figures})


def preference_order(shards: Sequence[Path], dones: Sequence[dict[str, Any]], priority: Sequence[str]) -> np.ndarray:
    """Global numbers of all passages, int64 [n], the preferred first: by the source's place in `priority`, then by number."""
    rank = {source: i for i, source in enumerate(priority)}
    parts = [np.zeros(0, np.int64)]
    for folder, done in zip(shards, dones, strict=True):
        of_source = np.array([rank.get(source, len(rank)) for source in done["sources"]] or [0], np.int64)
        parts.append(of_source[read_npy(folder / "sources.npy")])
    return np.argsort(np.concatenate(parts), kind="stable")


def _remove(leaders: np.ndarray, preferred: np.ndarray, code: int, codes: np.ndarray, copies: np.ndarray) -> None:
    """Notes removed passages; `leaders` speaks in places of `preferred`."""
    removed = leaders != KEPT
    codes[preferred[removed]] = code
    copies[preferred[removed]] = preferred[leaders[removed]]


@dataclass(frozen=True)
class _BandTask:
    shards: tuple[Path, ...]
    folder: Path
    band: int
    bucket: int


def _near_pairs(task: DuplicatesTask, preferred: np.ndarray, workers: int, engine: str) -> tuple[np.ndarray, int]:
    """Candidate pairs (places in `preferred`) of all bands, int64 [m, 2], and how many comparisons large buckets were spared."""
    assert task.config.near is not None
    write_npy(task.folder / "order.npy", preferred)
    near: NearDuplicates = task.config.near
    bands = [_BandTask(task.shards, task.folder, band, near.bucket) for band in range(near.bands)]
    run_tasks(_pairs_of_band, bands, workers if len(preferred) > 50_000 else 1, engine)
    encoded = np.zeros(0, np.int64)
    saved = 0
    for band in bands:
        found = np.load(task.folder / f"band-{band.band}.npy")
        saved = max(saved, int(found[0]))
        encoded = np.union1d(encoded, found[1:])
    return np.stack(np.divmod(encoded, len(preferred)), axis=1), saved


def _pairs_of_band(task: _BandTask) -> None:
    """Writes [comparisons saved, first·n + other, …] of one band."""
    preferred = np.load(task.folder / "order.npy")
    keys = np.concatenate([read_npy(folder / "bands.npy")[task.band] for folder in task.shards])[preferred]
    pairs, saved = candidate_pairs(keys, task.bucket)
    encoded = np.unique(pairs[:, 0] * len(preferred) + pairs[:, 1])
    write_npy(task.folder / f"band-{task.band}.npy", np.concatenate([[saved], encoded]).astype(np.int64))


@dataclass(frozen=True)
class _BlockTask:
    shards: tuple[Path, ...]
    folder: Path
    block: int
    threshold: float


def _verified(task: DuplicatesTask, pairs: np.ndarray, workers: int, engine: str) -> np.ndarray:
    """The pairs whose exact Jaccard index reaches the threshold."""
    assert task.config.near is not None
    blocks: list[_BlockTask] = []
    for start in range(0, len(pairs), PAIRS_PER_TASK):
        block = _BlockTask(task.shards, task.folder, len(blocks), task.config.near.threshold)
        write_npy(task.folder / f"block-{block.block}.npy", pairs[start : start + PAIRS_PER_TASK])
        blocks.append(block)
    run_tasks(_verify_block, blocks, workers, engine)
    return np.concatenate([np.zeros((0, 2), np.int64), *(np.load(task.folder / f"block-{b.block}.npy") for b in blocks)])


def _verify_block(task: _BlockTask) -> None:
    path = task.folder / f"block-{task.block}.npy"
    pairs, preferred = np.load(path), np.load(task.folder / "order.npy")
    places, inverse = np.unique(pairs, return_inverse=True)
    rows = _shingles_of(task.shards, preferred[places])
    similar, _ = similar_pairs(inverse.reshape(-1, 2), rows, task.threshold)
    write_npy(path, places[similar].reshape(-1, 2))


def _shingles_of(shards: Sequence[Path], numbers: np.ndarray) -> HashedRows:
    """The shingle sets of the passages with these global numbers, in their order."""
    offsets = [read_npy(folder / "offsets.npy") for folder in shards]
    starts = np.cumsum([0, *(len(own) - 1 for own in offsets)])
    owners = np.searchsorted(starts, numbers, side="right") - 1
    rows: list[np.ndarray] = [np.zeros(0, np.uint32)] * len(numbers)
    for owner in np.unique(owners).tolist():
        hashes = read_npy(shards[owner] / "shingles.npy")
        for i in np.flatnonzero(owners == owner).tolist():
            row = int(numbers[i] - starts[owner])
            rows[i] = np.unique(hashes[offsets[owner][row] : offsets[owner][row + 1]])
    return HashedRows(np.concatenate([np.zeros(0, np.uint32), *rows]), np.cumsum([0, *map(len, rows)]))


def _vectors(task: DuplicatesTask, codes: np.ndarray, dones: Sequence[dict[str, Any]]) -> np.ndarray:
    """Embeddings by global number, float32 [n, d]; zero where a passage is removed already. Kept per shard: they are costly."""
    assert task.config.semantic is not None
    embedder, parts, first = None, [], 0
    for folder, done in zip(task.shards, dones, strict=True):
        stays = codes[first : first + done["rows"]] == STAYS
        first += done["rows"]
        settings = task.config.semantic
        path = folder / "vectors.npy"
        about = {
            "key": done["key"],
            "inputs": [entry["sha256"] for entry in done["inputs"]],
            "embedder": settings.embedder,
            "model": settings.model,
            "rows": np.flatnonzero(stays).tolist(),
        }
        if not path.exists() or not (folder / "vectors.json").exists() or read_json(folder / "vectors.json") != about:
            embedder = embedder or open_embedder(settings)
            texts = [row["text"] for row, stay in zip(read_rows(folder / "passages.jsonl.zst"), stays, strict=True) if stay]
            found = embedder.embed(texts)
            write_npy(path, found)
            write_json(folder / "vectors.json", about)
        parts.append((stays, np.load(path)))
    width = max(found.shape[1] for _, found in parts)
    out = np.zeros((first, width), np.float32)
    out[np.concatenate([stays for stays, _ in parts])] = np.concatenate([found for _, found in parts if len(found)])
    return out
