"""Rows whose content is their number, and shardings of a batch of them: for the loader's tests and their child processes."""

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from huatuo_jax.errors import DataError

LENGTH = 6


class CountedRows:
    """Row i holds i·10 … i·10 + 5; remembers which rows were read."""

    sequence_length = LENGTH

    def __init__(self, count: int = 50, fails_at: int = -1):
        self.count, self.fails_at, self.read = count, fails_at, set()

    def __len__(self):
        return self.count

    def read_rows(self, indices):
        if self.fails_at in indices:
            raise DataError("shard 3 is torn")
        self.read.update(indices)
        index = np.array(indices, np.int32)[:, None]
        return {"tokens": index * 10 + np.arange(LENGTH, dtype=np.int32), "targets": np.repeat(index, LENGTH, axis=1)}


def sharding(data: int = 2, fsdp: int = 2, tensor: int = 2) -> NamedSharding:
    """Of a batch, on a mesh of these sizes."""
    mesh = jax.make_mesh((data, fsdp, tensor), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
