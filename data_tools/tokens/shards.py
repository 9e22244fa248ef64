"""How a build is cut up: which records are held out, and which records each shard file holds.

`build.py`, next to read, calls `plan_shards` once, before anything is tokenised; the unified dataset keeps hashes and sizes of
its texts beside them, so no text is read. What must hold: the same unified datasets give the same shards at every run and with
any number of workers, and records with the same text are never on both sides of the hold-out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_tools.records.unified import UnifiedDataset
from huatuo_jax.data.token_store import SPLITS, shard_name
from huatuo_jax.errors import ConfigError

# A shard is what one worker does at a time and what is lost when a build is killed; too many files are slow on network disks.
# Smaller shards were slower (benchmarks/RESULTS.md).
SHARD_RECORDS = 10_000
MAX_SHARDS = 1_000


@dataclass(frozen=True)
class ShardTask:
    """One output file.

    Attributes:
      records: int64 [n], indices into the concatenation of the build's unified datasets.
      size: of their text, in bytes.
    """

    source: str
    split: str
    index: int
    count: int
    records: np.ndarray
    size: int

    def path(self, out: Path) -> Path:
        """The shard's file."""
        return out / self.source / shard_name(self.split, self.index, self.count)

    def marker(self, out: Path) -> Path:
        """The file whose presence says that the shard is done; holds the sizes of its records."""
        return out / self.source / ".done" / f"{self.split}-{self.index:05d}.npz"


def plan_shards(datasets: Sequence[UnifiedDataset], holdout: int) -> list[ShardTask]:
    """The shards of every source, sorted by its name, train before holdout; records keep their order.

    Shards hold equally much text, so that parallel workers finish together. On average a shard has at most
    max(10,000, 1/1,000 of its source's records) records, and none has more than twice as many.

    Raises:
      ConfigError: see `choose_holdout`.
    """
    sources = sorted({name for dataset in datasets for name in dataset.sources})
    numbers = [np.array([sources.index(name) for name in dataset.sources], np.int32) for dataset in datasets]
    source_ids = np.concatenate([number[dataset.source_ids] for number, dataset in zip(numbers, datasets, strict=True)])
    held_out = choose_holdout(source_ids, np.concatenate([d.text_hashes for d in datasets]), sources, holdout)
    sizes = np.concatenate([dataset.sizes for dataset in datasets])
    tasks = []
    for number, source in enumerate(sources):
        of_source = source_ids == number
        for split, chosen in zip(SPLITS, (of_source & ~held_out, of_source & held_out), strict=True):
            records = np.flatnonzero(chosen)
            average = max(SHARD_RECORDS, -(-len(records) // MAX_SHARDS))
            count = -(-len(records) // average)
            parts = np.split(records, _cuts(sizes[records], count, 2 * average)) if count else []
            tasks += [
                ShardTask(source, split, i, count, part, int(sizes[part].sum(dtype=np.int64))) for i, part in enumerate(parts)
            ]
    return tasks


def _cuts(sizes: np.ndarray, count: int, limit: int) -> list[int]:
    """Where to cut records into `count` parts of about equal bytes and at most `limit` records each."""
    # Sizes 9 1 1 1 1 1 1 1 1 1 (18 bytes) in 2 parts: half of the bytes are reached after 1 record (`equal`). With limit 8 the
    # first part must take 2 (`least`), or 9 records would be left for the second; it may take 8 (`most`).
    bytes_before = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
    cuts = [0]
    for part in range(1, count):
        equal = int(np.searchsorted(bytes_before, part * bytes_before[-1] // count))
        least = max(cuts[-1] + 1, len(sizes) - (count - part) * limit)
        most = min(cuts[-1] + limit, len(sizes) - (count - part))
        cuts.append(min(max(equal, least), most))
    return cuts[1:]


def choose_holdout(source_ids: np.ndarray, text_hashes: np.ndarray, sources: Sequence[str], count: int) -> np.ndarray:
    """Picks `count` records of every source.

    Texts are taken in the order of their hashes; all records with the same text are taken together, in whichever source they
    are, and only if no source then has more than `count`. A source made of long runs of duplicates may thus get fewer.

    Args:
      source_ids: int [n], indices into `sources`. text_hashes: uint64 [n].

    Returns:
      bool [n], true for held-out records.

    Raises:
      ConfigError: if a source would keep no record to train on.
    """
    held_out = np.zeros(len(source_ids), bool)
    if count == 0:
        return held_out
    records = np.bincount(source_ids, minlength=len(sources))
    if too_small := [f"{name} ({n:,})" for name, n in zip(sources, records.tolist(), strict=True) if n <= count]:
        raise ConfigError(
            f"--holdout {count} would leave nothing to train on in {', '.join(too_small)}; "
            f"give at most {records.min() - 1}, or leave these sources out"
        )
    # Two records of each source, from
    #
    #     source    a  a  a  a  b  b      a takes the text with hash 3, so one more is left to take; hash 5 would need two
    #     hash      5  3  5  7  7  1      records of a, so it stays; hash 7 fills a, and takes its copy in b along;
    #     held out  -  +  -  +  +  +      then b takes hash 1.
    by_hash = np.argsort(text_hashes, kind="stable")
    hashes = text_hashes[by_hash]
    left = np.full(len(sources), count)
    for source in range(len(sources)):
        for value in np.unique(text_hashes[source_ids == source]):
            if left[source] == 0:
                break
            same = by_hash[np.searchsorted(hashes, value) : np.searchsorted(hashes, value, side="right")]
            needed = np.bincount(source_ids[same], minlength=len(sources))
            if not held_out[same[0]] and np.all(needed <= left):
                held_out[same] = True
                left -= needed
    return held_out
