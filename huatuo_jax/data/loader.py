"""The loader: reads rows ahead and puts them on the devices as global batches, so that no training step waits for data.

The last room of the data's way: after `rows.py`, before the training step. What must hold: batch s holds rows s·batch_size …
(s + 1)·batch_size − 1 for any mesh and any number of processes, so the number of the step is the only state, and to resume is to
start at it. Each process reads only the rows that its devices hold. Of a batch of 8 on a mesh of data 2 × fsdp 2, two processes:

    process 0    devices 0 (rows 0 1), 1 (rows 2 3)    reads rows 8s … 8s + 3
    process 1    devices 2 (rows 4 5), 3 (rows 6 7)    reads rows 8s + 4 … 8s + 7

Grain's threads each read one batch at a time; one more thread moves finished batches to the devices.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import grain
import jax
import numpy as np
from grain.experimental import ThreadPrefetchDatasetIterator, ThreadPrefetchIterDataset
from jax.sharding import NamedSharding

from huatuo_jax.config import require
from huatuo_jax.errors import ConfigError

BATCHES_ON_DEVICE = 2
"""Batches that wait on the devices: one would do if reading never stuttered."""

Index = tuple[slice, ...]


class RowReader(Protocol):
    """What the loader reads: `huatuo_jax.data.rows`."""

    @property
    def sequence_length(self) -> int: ...  # noqa: D102

    def __len__(self) -> int: ...

    def read_rows(self, indices: Sequence[int]) -> dict[str, np.ndarray]:
        """The rows at `indices`, in that order: int32 [len(indices), sequence_length] each."""


def make_loader(
    rows: RowReader,
    batch_size: int,
    sharding: NamedSharding,
    start_step: int = 0,
    num_steps: int | None = None,
    threads: int = 8,
    prefetch: int = 4,
) -> "Loader":
    """Batches from `start_step` on. Reading starts at once, so the first batch is ready when compilation ends.

    Args:
      rows: by number.
      batch_size: rows a batch, over all processes. Rows that fill no batch at the end are dropped.
      sharding: of a [batch, sequence_length] array.
      start_step: batches already consumed.
      num_steps: how many batches to give; None = all that are left.
      threads: reader threads of this process; each reads one batch, so no more than `prefetch` are used.
      prefetch: batches read ahead.

    Returns:
      An iterator of dicts of int32 `jax.Array` [batch_size, sequence_length], global over the mesh. `close()` it, or use it
      as a context manager, to stop its threads early.

    Raises:
      ConfigError: steps that the rows do not have; a batch that does not divide among the devices.
    """
    # All of this is checked before anything is read or compiled.
    total = len(rows) // batch_size
    require(
        0 <= start_step <= total,
        f"start_step is {start_step}, but {len(rows)} rows hold {total} batches of {batch_size}; plan more data or start earlier",
    )
    stop = total if num_steps is None else start_step + num_steps
    require(
        start_step <= stop <= total,
        f"{num_steps} steps from step {start_step} end at step {stop}, but {len(rows)} rows hold {total} batches of "
        f"{batch_size}; lower the number of steps or plan more data",
    )
    steps = range(start_step, stop)
    if not steps:
        return Loader(None)
    shape = batch_size, rows.sequence_length
    mine = rows_of_devices(indices_of_devices(sharding, *shape), batch_size)
    # Row of the batch → row among those that this process reads: with rows 2, 3, 6, 7 of 8 it is - - 0 1 - - 2 3.
    place = np.full(batch_size, -1)
    place[mine] = np.arange(len(mine))
    options = grain.ReadOptions(num_threads=min(threads, prefetch), prefetch_buffer_size=prefetch)
    batches = grain.MapDataset.source(_RowsOfProcess(rows, batch_size, mine, steps)).to_iter_dataset(options)
    return Loader(batches.map(lambda batch: {name: _to_devices(batch[name], place, sharding, shape) for name in batch}))


def indices_of_devices(sharding: NamedSharding, batch_size: int, length: int) -> Mapping[jax.Device, Index]:
    """What each device of this process holds of a [batch_size, length] array."""
    try:
        sharding.shard_shape((batch_size, length))
    except ValueError as error:
        raise ConfigError(
            f"a batch of {batch_size} rows of {length} tokens does not divide among the devices of {sharding.spec} on mesh "
            f"{dict(sharding.mesh.shape)}; make the batch size a multiple of the devices that share rows"
        ) from error
    indices = sharding.addressable_devices_indices_map((batch_size, length))
    return {device: index for device, index in indices.items() if device is not None and index is not None}  # type: ignore[misc]


def rows_of_devices(indices: Mapping[Any, Index], batch_size: int) -> np.ndarray:
    """The rows of a batch that these devices hold, ascending and once each: int64 [rows]."""
    held = np.zeros(batch_size, bool)
    for index in indices.values():
        held[index[0]] = True
    return np.flatnonzero(held)


class _RowsOfProcess:
    """This process's rows of each batch, by the number of the step: what one thread of Grain reads at a time."""

    def __init__(self, rows: RowReader, batch_size: int, mine: np.ndarray, steps: range) -> None:
        self.rows, self.batch_size, self.mine, self.steps = rows, batch_size, mine, steps

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return self.rows.read_rows((self.steps[index] * self.batch_size + self.mine).tolist())


def _to_devices(local: np.ndarray, place: np.ndarray, sharding: NamedSharding, shape: tuple[int, int]) -> jax.Array:
    """A global array of which this process gives its rows; `place` maps a row of the batch to its row in `local`."""

    def held(index: Index | None) -> np.ndarray:
        rows, columns = index or (slice(None), slice(None))
        # The rows of a device follow one another, and this process has read all of them: a slice holds them.
        mine = place[rows]
        return local[mine[0] : mine[-1] + 1, columns]

    return jax.make_array_from_callback(shape, sharding, held)


class Loader(Iterator[dict[str, jax.Array]]):
    """An iterator that runs in a background thread, a few items ahead; an error there is raised here, once."""

    def __init__(self, batches: grain.IterDataset | None) -> None:
        self._batches: ThreadPrefetchDatasetIterator | None = None
        if batches is not None:
            self._batches = iter(ThreadPrefetchIterDataset(batches, prefetch_buffer_size=BATCHES_ON_DEVICE))
            self._batches.start_prefetch()

    def __next__(self) -> dict[str, jax.Array]:
        if self._batches is None:
            raise StopIteration
        try:
            return next(self._batches)
        except BaseException:
            # Without this, Grain would go on behind the batch that failed.
            self.close()
            raise

    def close(self) -> None:
        """Stops reading; batches that wait are dropped."""
        if self._batches is not None:
            self._batches.close()
        self._batches = None

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        # The thread does not end by itself: it holds what it reads, not this object.
        self.close()
