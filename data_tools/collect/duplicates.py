"""Copies: which passages are the same as, or nearly the same as, one that stays. Second stage of a run, over all shards at once.

Between `passages.py`, which stores hashes of every passage as it makes them (`PassageHashes`), and `pipeline.py`, which writes
what stays. Passages have global numbers, shard after shard and row after row, and a *place* in the order of preference: of
copies, the one with the first place stays. The stage writes into its folder

  codes.npy        int8 [n]   why passage n is removed; `STAYS` if it is not
  kept_copies.npy  int64 [n]  global number of the passage that it is a copy of
  kept_ids.npy     bytes [n]  with `keep_dropped`: that passage's id
  done.json                   the marker, written last

A near copy is removed only if its *exact* Jaccard index with a passage that stays reaches the threshold, and the two do not state
different facts (`facts.py`); so no chain of small changes removes a text that is like none of those kept. Candidates come from
MinHash and LSH: rensa hashes; bands are compared by sorting, one after the other, which needs the memory of one column for all
passages instead of an index of all of them.
"""

import functools
import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.collect.facts import Passage, different_facts
from data_tools.collect.ngrams import GOLDEN, HashedRows, characters, shingles
from data_tools.collect.reading import read_rows
from data_tools.collect.settings import CollectConfig, NearDuplicates
from huatuo_jax.errors import ConfigError
from huatuo_jax.io.files import read_json, read_npy, write_json, write_npy
from huatuo_jax.io.tasks import run_tasks

STAYS, EXACT, NEAR, SEMANTIC = range(4)
REASONS = {EXACT: "exact duplicate", NEAR: "near duplicate", SEMANTIC: "same meaning"}
KEPT = -1
BATCH = 512
PAIRS_PER_TASK = 100_000
PAIRS_AT_ONCE = 10_000
FEW_PASSAGES = 50_000
"""Up to so many, comparing bands takes less time than starting workers for it."""


# Hashes of passages, stored by the first stage


class PassageHashes:
    """Collects the hashes of a shard's passages, batch by batch, and writes them as one row per passage of

      digests.npy   uint64 [n, 2]       of the letters and digits
      sources.npy   int32 [n]           number of its source in `sources`
      bands.npy     uint64 [bands, n]   MinHash bands
      shingles.npy  uint32 [total], offsets.npy int64 [n + 1]: the set of hashed 3-grams of each

    `near` None leaves out bands and shingles.
    """

    def __init__(self, near: NearDuplicates | None) -> None:
        self._near = near
        self.sources: list[str] = []
        self._batch: list[str] = []
        self._source_numbers: list[int] = []
        self._digests: list[np.ndarray] = [np.zeros((0, 2), np.uint64)]
        self._bands: list[np.ndarray] = [] if near is None else [np.zeros((near.bands, 0), np.uint64)]
        self._shingles: list[np.ndarray] = [np.zeros(0, np.uint32)]
        self._sizes: list[np.ndarray] = [np.zeros(1, np.int64)]

    @property
    def rows(self) -> int:
        """Passages so far."""
        return len(self._source_numbers)

    def add(self, source: str, text: str) -> None:
        """Takes the next passage."""
        if source not in self.sources:
            self.sources.append(source)
        self._source_numbers.append(self.sources.index(source))
        self._batch.append(text)
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
            write_npy(folder / "bands.npy", np.ascontiguousarray(np.concatenate(self._bands, axis=1)))
            write_npy(folder / "shingles.npy", np.concatenate(self._shingles))
            write_npy(folder / "offsets.npy", np.cumsum(np.concatenate(self._sizes)))


def content_digests(texts: Sequence[str]) -> np.ndarray:
    """128-bit digest of the letters and digits of each text (see `ngrams.normalise`): uint64 [n, 2]."""
    units = characters(texts)
    content = HashedRows(units.hashes.astype("<u4"), units.offsets)
    digests = b"".join(hashlib.blake2b(content.row(i).tobytes(), digest_size=16).digest() for i in range(len(content)))
    return np.frombuffer(digests, "<u8").reshape(len(texts), 2)


def signatures(sets: HashedRows, settings: NearDuplicates) -> np.ndarray:
    """MinHash signature of each set: uint32 [n, bands·rows].

    Raises:
      ConfigError: rensa is not installed.
    """
    try:
        from rensa import RMinHash
    except ImportError as error:
        raise ConfigError("near de-duplication needs rensa; pip install 'huatuo-jax[collect]'") from error
    permutations = settings.bands * settings.rows
    if not len(sets):
        return np.zeros((0, permutations), np.uint32)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(
        sets.hashes, sets.offsets.astype(np.uint64), permutations, settings.seed
    )
    return np.array(matrix.to_rows(), np.uint32)


def band_keys(signature: np.ndarray, settings: NearDuplicates) -> np.ndarray:
    """A hash per band: uint64 [n, bands]."""
    # With 2 bands of 3 rows, a signature [a b c d e f] has the keys hash(a b c) and hash(d e f): two passages become
    # candidates if they agree in all of a, b, c, or in all of d, e, f.
    # Not `ngrams.runs`: keys are stored, and those of an earlier version must still meet the new ones.
    parts = signature.reshape(len(signature), settings.bands, settings.rows).astype(np.uint64)
    keys = np.zeros(parts.shape[:2], np.uint64)
    for i in range(settings.rows):
        keys = (keys ^ parts[:, :, i]) * GOLDEN
        keys ^= keys >> np.uint64(29)
    return keys


# The choice


@dataclass(frozen=True)
class DuplicatesTask:
    """`shards`: folders of the first stage, in order. `folder`: the stage's own. `key`: what its marker must say."""

    shards: tuple[Path, ...]
    config: CollectConfig
    folder: Path
    key: str

    @property
    def marker(self) -> Path:
        """The last file that the stage writes."""
        return self.folder / "done.json"


def find_duplicates(task: DuplicatesTask, workers: int, engine: str) -> None:
    """Runs the stage: exact copies first, then near ones among the rest, then those of the same meaning among that rest."""
    task.marker.unlink(missing_ok=True)
    task.folder.mkdir(parents=True, exist_ok=True)
    dones = [read_json(folder / "done.json") for folder in task.shards]
    preferred = preference_order(task.shards, dones, task.config.source_priority)
    codes, copies = np.zeros(len(preferred), np.int8), np.full(len(preferred), KEPT, np.int64)
    candidates = saved = 0

    def remove(leaders: np.ndarray, code: int) -> None:
        """Notes the copies among `preferred` and takes them out of it; `leaders` holds places in it."""
        nonlocal preferred
        removed = leaders != KEPT
        codes[preferred[removed]] = code
        copies[preferred[removed]] = preferred[leaders[removed]]
        preferred = preferred[~removed]

    if len(preferred):
        digests = np.concatenate([read_npy(folder / "digests.npy") for folder in task.shards])
        remove(exact_duplicates(digests[preferred]), EXACT)
    if task.config.near is not None and len(preferred):
        write_npy(task.folder / "order.npy", preferred)
        pairs, saved = _near_pairs(task, task.config.near, len(preferred), workers, engine)
        candidates = len(pairs)
        similar = _verified(task, pairs, task.config.near.threshold, workers, engine)
        remove(keep_preferred(similar, len(preferred)), NEAR)
    if task.config.semantic is not None and len(preferred):
        from data_tools.collect.semantic import passage_vectors, similar_meanings

        vectors = passage_vectors(task.shards, dones, codes == STAYS, task.config.semantic)
        remove(keep_preferred(similar_meanings(vectors[preferred], task.config.semantic), len(preferred)), SEMANTIC)
    write_npy(task.folder / "codes.npy", codes)
    write_npy(task.folder / "kept_copies.npy", copies)
    if task.config.keep_dropped:
        write_npy(task.folder / "kept_ids.npy", _ids_of(task.shards, copies))
    for scrap in (*task.folder.glob("band-*.npy"), *task.folder.glob("block-*.npy"), *task.folder.glob("order.npy")):
        scrap.unlink()
    write_json(
        task.marker,
        {"key": task.key, "passages": len(codes), "candidate_pairs": candidates, "comparisons_saved": saved},
    )


def preference_order(shards: Sequence[Path], dones: Sequence[dict[str, Any]], priority: Sequence[str]) -> np.ndarray:
    """Global numbers of all passages, int64 [n], the preferred first: by the source's place in `priority`, then by number."""
    rank = {source: i for i, source in enumerate(priority)}
    parts = [np.zeros(0, np.int64)]
    for folder, done in zip(shards, dones, strict=True):
        rank_of_source = np.array([rank.get(source, len(rank)) for source in done["sources"]] or [0], np.int64)
        parts.append(rank_of_source[read_npy(folder / "sources.npy")])
    return np.argsort(np.concatenate(parts), kind="stable")


def exact_duplicates(digests: np.ndarray) -> np.ndarray:
    """For each passage the place of the preferred one with the same digest, or KEPT. int64 [n]."""
    order = np.lexsort((np.arange(len(digests)), digests[:, 1], digests[:, 0]))
    ordered = digests[order]
    new = np.ones(len(digests), bool)
    new[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    leaders = order[np.flatnonzero(new)[np.cumsum(new) - 1]] if len(order) else order
    out = np.empty(len(digests), np.int64)
    out[order] = np.where(new, KEPT, leaders)
    return out


def candidate_pairs(keys: np.ndarray, bucket: int) -> tuple[np.ndarray, int]:
    """Pairs (preferred, other) of passages with the same key of one band: int64 [m, 2]; and how many comparisons `bucket` saved.

    Args:
      keys: uint64 [n], one band of all passages, in order of preference.
    """
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1])) if len(order) else np.zeros(0, np.int64)
    sizes = np.diff(np.append(starts, len(order)))
    saved = 0
    pairs = [np.zeros((0, 2), np.int64)]
    for start, size in zip(starts[sizes > 1], sizes[sizes > 1], strict=True):
        # A bucket of 4 with the limit 2: its passages a b c d give a-b a-c a-d b-c b-d, and c-d is saved.
        members = order[start : start + size]
        firsts, others = np.triu_indices(min(size, bucket), 1, size)
        saved += math.comb(max(int(size) - bucket, 0), 2)
        pairs.append(np.stack([members[firsts], members[others]], axis=1))
    return np.concatenate(pairs), saved


def similar_pairs(pairs: np.ndarray, sets: HashedRows, threshold: float) -> np.ndarray:
    """The pairs whose exact Jaccard index reaches the threshold, int64 [m, 2]; `sets` has every hash once per row, ascending."""
    from scipy import sparse  # of scikit-learn's, which `collect` installs

    # A matrix [passages, hashes] of zeros and ones: the products of the rows of a pair, summed, are what both hold. Two sets of
    # 5 and 4 with 3 in common have the index 3 / (5 + 4 - 3) = .5.
    _, columns = np.unique(sets.hashes, return_inverse=True)
    presence = sparse.csr_matrix((np.ones(len(columns), np.int32), columns.astype(np.int32), sets.offsets.astype(np.int32)))
    sizes = np.diff(sets.offsets)
    firsts, others = sizes[pairs[:, 0]], sizes[pairs[:, 1]]
    # Sets of 5 and 10 have at most the index 5 / 10; these pairs need not be looked at.
    pairs = pairs[np.minimum(firsts, others) >= threshold * np.maximum(firsts, others)]
    similar = [np.zeros((0, 2), np.int64)]
    for start in range(0, len(pairs), PAIRS_AT_ONCE):
        block = pairs[start : start + PAIRS_AT_ONCE]
        both = np.asarray(presence[block[:, 0]].multiply(presence[block[:, 1]]).sum(axis=1)).ravel()
        either = sizes[block[:, 0]] + sizes[block[:, 1]] - both
        similar.append(block[both >= threshold * either])
    return np.concatenate(similar)


def keep_preferred(pairs: np.ndarray, count: int) -> np.ndarray:
    """Of similar pairs (preferred, other), which passage each removed one is a copy of; KEPT for those that stay. int64 [count].

    In order of preference a passage stays unless it is similar to one that stays.
    """
    out = np.full(count, KEPT, np.int64)
    # By the second of the pair, so that when a passage is decided on, all that are preferred to it have been.
    for first, other in pairs[np.lexsort((pairs[:, 0], pairs[:, 1]))].tolist():
        if out[other] == KEPT and out[first] == KEPT:
            out[other] = first
    return out


# Near copies of a whole corpus: one task per MinHash band, then one per block of candidate pairs. Places and pairs travel in
# files (`order.npy` has the global number of each place), so that a task is small wherever it runs.


def _near_pairs(task: DuplicatesTask, near: NearDuplicates, count: int, workers: int, engine: str) -> tuple[np.ndarray, int]:
    """Candidate pairs of all bands as places, int64 [m, 2], and how many comparisons large buckets were spared."""
    find = functools.partial(_pairs_of_band, task, near.bucket)
    run_tasks(find, range(near.bands), workers if count > FEW_PASSAGES else 1, engine)
    encoded = np.zeros(0, np.int64)
    saved = 0
    for band in range(near.bands):
        of_band = np.load(task.folder / f"band-{band}.npy")
        saved = max(saved, int(of_band[0]))
        # Most pairs of copies agree in several bands.
        encoded = np.union1d(encoded, of_band[1:])
    return np.stack(np.divmod(encoded, count), axis=1), saved


def _pairs_of_band(task: DuplicatesTask, bucket: int, band: int) -> None:
    """Writes [comparisons saved, first·n + other, …]: a pair as one number, so that sets of pairs are quick to unite."""
    preferred = np.load(task.folder / "order.npy")
    keys = np.concatenate([read_npy(folder / "bands.npy")[band] for folder in task.shards])[preferred]
    pairs, saved = candidate_pairs(keys, bucket)
    encoded = np.unique(pairs[:, 0] * len(preferred) + pairs[:, 1])
    write_npy(task.folder / f"band-{band}.npy", np.concatenate([[saved], encoded]).astype(np.int64))


def _verified(task: DuplicatesTask, pairs: np.ndarray, threshold: float, workers: int, engine: str) -> np.ndarray:
    """The pairs whose exact Jaccard index reaches the threshold."""
    blocks = [task.folder / f"block-{start}.npy" for start in range(0, len(pairs), PAIRS_PER_TASK)]
    for number, block in enumerate(blocks):
        write_npy(block, pairs[number * PAIRS_PER_TASK : (number + 1) * PAIRS_PER_TASK])
    run_tasks(functools.partial(_verify_block, task, threshold), blocks, workers, engine)
    return np.concatenate([np.zeros((0, 2), np.int64), *map(np.load, blocks)])


def _verify_block(task: DuplicatesTask, threshold: float, block: Path) -> None:
    """Leaves in the block's file the pairs that are similar enough and state the same facts."""
    pairs, preferred = np.load(block), np.load(task.folder / "order.npy")
    # The sets of the block's passages are read once each: pairs become places in those that were read, and back.
    places, inverse = np.unique(pairs, return_inverse=True)
    similar = similar_pairs(inverse.reshape(-1, 2), _shingles_of(task.shards, preferred[places]), threshold)
    # And of those that are left, the texts.
    similar = places[similar].reshape(-1, 2)
    places, inverse = np.unique(similar, return_inverse=True)
    different = different_facts(inverse.reshape(-1, 2), _passages_of(task.shards, preferred[places]))
    write_npy(block, similar[~different])


def _shingles_of(shards: Sequence[Path], numbers: np.ndarray) -> HashedRows:
    """The shingle sets of the passages with these global numbers, in their order."""
    rows: list[np.ndarray] = [np.zeros(0, np.uint32)] * len(numbers)
    for folder, wanted in _by_shard(shards, numbers):
        offsets, hashes = read_npy(folder / "offsets.npy"), read_npy(folder / "shingles.npy")
        for row, places in wanted.items():
            # Cut to 32 bits, two hashes of a text may have become one.
            of_row = np.unique(hashes[offsets[row] : offsets[row + 1]])
            for i in places:
                rows[i] = of_row
    return HashedRows(np.concatenate([np.zeros(0, np.uint32), *rows]), np.cumsum([0, *map(len, rows)]))


def _passages_of(shards: Sequence[Path], numbers: np.ndarray) -> list[Passage]:
    """Text and title of the passages with these global numbers, in their order."""
    passages = [Passage("")] * len(numbers)
    for i, row in _rows_of(shards, numbers):
        passages[i] = Passage(row["text"], row.get("title", ""))
    return passages


def _ids_of(shards: Sequence[Path], numbers: np.ndarray) -> np.ndarray:
    """Ids (UTF-8) of the passages with these global numbers, in their order; empty for KEPT."""
    ids = [b""] * len(numbers)
    wanted = np.flatnonzero(numbers != KEPT)
    for i, row in _rows_of(shards, numbers[wanted]):
        ids[wanted[i]] = row["id"].encode()
    return np.array(ids, np.bytes_)


def _rows_of(shards: Sequence[Path], numbers: np.ndarray) -> Iterator[tuple[int, dict[str, Any]]]:
    """(place in `numbers`, row) of the passages with these global numbers, shard by shard."""
    for folder, wanted in _by_shard(shards, numbers):
        for row_number, row in enumerate(read_rows(folder / "passages.jsonl.zst")):
            for i in wanted.get(row_number, ()):
                yield i, row


def _by_shard(shards: Sequence[Path], numbers: np.ndarray) -> Iterator[tuple[Path, dict[int, list[int]]]]:
    """For each shard that has any of these passages: its folder, and row → places in `numbers`."""
    starts = np.cumsum([0, *(len(read_npy(folder / "sources.npy")) for folder in shards)])
    shard_of = np.searchsorted(starts, numbers, side="right") - 1
    for shard in np.unique(shard_of).tolist():
        wanted: dict[int, list[int]] = {}
        for i in np.flatnonzero(shard_of == shard).tolist():
            wanted.setdefault(int(numbers[i] - starts[shard]), []).append(i)
        yield shards[shard], wanted
