"""What a worker process does: records of one shard in, one ArrayRecord file and its done marker out.

The shard is written aside and renamed, the marker follows; so a marker always stands for a whole shard, whenever the build
was interrupted, and writing a shard twice gives the same bytes.
"""

import gc
import io
import json
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.records.unified import UnifiedDataset
from data_tools.tokens.build_tasks import ShardTask
from huatuo_jax.data.dialogue import Examples, encode_records
from huatuo_jax.data.formats import get_format
from huatuo_jax.data.record import Record
from huatuo_jax.data.token_store import STATISTICS, sizes_of, write_shard
from huatuo_jax.data.tokenizers import Tokenizer
from huatuo_jax.io.files import write_bytes, written_aside

BATCH_RECORDS = 1024
BATCH_BYTES = 4 << 20


class BuildStopped(Exception):
    """The build was told to stop; shards that are not done are left for the next run."""


@dataclass(frozen=True)
class WorkerSettings:
    """What a worker needs to know, besides its shard."""

    unified: tuple[str, ...]
    dialogue_format: str
    max_len: int
    out: str


class ShardBuilder:
    """Builds shards one after the other.

    Args:
      tokenizer: one that the dialogue format accepts.
      progress: shared counter of records done, or None.
      stop: shared event that ends the work, or None.
    """

    def __init__(self, settings: WorkerSettings, tokenizer: Tokenizer, progress: Any = None, stop: Any = None) -> None:
        self._out = Path(settings.out)
        self._max_len = settings.max_len
        self._tokenizer = tokenizer
        self._dialogue_format = get_format(settings.dialogue_format)
        self._datasets = [UnifiedDataset(folder) for folder in settings.unified]
        self._starts = np.cumsum([0, *(len(dataset) for dataset in self._datasets)])
        self._progress, self._stop = progress, stop

    def build(self, task: ShardTask) -> None:
        """Writes the shard and its marker.

        Raises:
          BuildStopped: if `stop` was set meanwhile.
        """
        rejected: list[dict[str, str]] = []
        statistics: list[np.ndarray] = [np.zeros((3, 0), np.int32)]
        cut = np.zeros(2, np.int64)
        with written_aside(task.path(self._out)) as aside:
            write_shard(aside, self._encoded(task.records, statistics, rejected, cut), self._tokenizer.eos_id)
            size = aside.stat().st_size
        summary = {"bytes": size, "rejected": rejected, "cut": int(cut[0]), "cut_tokens": int(cut[1])}
        buffer = io.BytesIO()
        sizes = dict(zip(STATISTICS, np.concatenate(statistics, axis=1), strict=True))
        np.savez(buffer, summary=np.array(json.dumps(summary)), **sizes)
        write_bytes(task.marker(self._out), buffer.getvalue())

    def _encoded(
        self, indices: np.ndarray, statistics: list[np.ndarray], rejected: list[dict[str, str]], cut: np.ndarray
    ) -> Iterator[Examples]:
        for records in self._records(indices):
            examples, errors = encode_records(records, self._tokenizer, self._dialogue_format)
            for place, error in errors.items():
                rejected.append({"source": records[place].source, "id": records[place].id, "reason": str(error)})
            beyond = examples.lengths - self._max_len
            cut += (np.count_nonzero(beyond > 0), beyond[beyond > 0].sum())
            examples = examples.cut(self._max_len)
            statistics.append(sizes_of(examples))
            yield examples

    def _records(self, indices: np.ndarray) -> Iterator[list[Record]]:
        """Batches of records, bounded in number and in bytes."""
        owners = np.searchsorted(self._starts, indices, side="right") - 1
        for owner in np.unique(owners).tolist():
            dataset = self._datasets[owner]
            own = indices[owners == owner] - self._starts[owner]
            filled = np.cumsum(dataset.sizes[own], dtype=np.int64)
            start = 0
            while start < len(own):
                if self._stop is not None and self._stop.is_set():
                    raise BuildStopped
                before = filled[start - 1] if start else 0
                fitting = int(np.searchsorted(filled, before + BATCH_BYTES, side="right"))
                part = own[start : min(start + BATCH_RECORDS, max(fitting, start + 1))]
                yield dataset.read(part)
                start += len(part)
                if self._progress is not None:
                    with self._progress.get_lock():
                        self._progress.value += len(part)


def read_marker(task: ShardTask, out: Path) -> dict[str, Any] | None:
    """The statistics of a finished shard, or None if the shard is not done (or not as the marker says)."""
    marker = task.marker(out)
    if not marker.exists():
        return None
    with np.load(marker, allow_pickle=False) as found:
        done = {**json.loads(str(found["summary"])), **{name: found[name] for name in STATISTICS}}
    path = task.path(out)
    return done if path.exists() and path.stat().st_size == done["bytes"] else None


_builder: ShardBuilder | None = None


def start_worker(settings: WorkerSettings, tokenizer: Tokenizer, progress: Any, stop: Any) -> None:
    """Initialises a worker process: it ignores Ctrl-C (the parent stops it) and ends when its parent dies."""
    global _builder
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Next to nothing here is garbage in cycles, but looking for it takes a tenth of the time.
    gc.freeze()
    gc.set_threshold(100_000)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    _builder = ShardBuilder(settings, tokenizer, progress, stop)


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


def build_in_worker(task: ShardTask) -> None:
    """Builds one shard in a process that `start_worker` initialised."""
    assert _builder is not None
    _builder.build(task)
