"""How a build is cut into shards: unified datasets in, one `ShardTask` per output file out, the same at every run."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_tools.records.unified import UnifiedDataset
from data_tools.tokens.holdout import choose_holdout
from huatuo_jax.data.token_store import SPLITS, shard_name

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
        """The file whose presence says that the shard is done; holds its statistics."""
        return out / self.source / ".done" / f"{self.split}-{self.index:05d}.npz"


def plan_shards(datasets: Sequence[UnifiedDataset], holdout: int) -> list[ShardTask]:
    """The shards of every source, sorted by its name, train before holdout; records keep their order.

    Shards hold equally much text, so that parallel workers finish together. On average a shard has at most
    max(10,000, 1/1,000 of its source's records) records, and none has more than twice as many: reads slow down with them.

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
    bytes_before = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
    cuts = [0]
    for part in range(1, count):
        equal = int(np.searchsorted(bytes_before, part * bytes_before[-1] // count))
        least = max(cuts[-1] + 1, len(sizes) - (count - part) * limit)
        most = min(cuts[-1] + limit, len(sizes) - (count - part))
        cuts.append(min(max(equal, least), most))
    return cuts[1:]
