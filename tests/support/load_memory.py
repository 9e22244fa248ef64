"""Loads a folder; prints as JSON what the process held beyond mapped file and parameters: load_memory.py FOLDER DTYPE.

Only anonymous memory counts: pages of the mapped file belong to the system, which takes them back when it needs them.
"""

import json
import math
import sys
import threading
import time

import jax
import jax.numpy as jnp

from huatuo_jax.config import MeshConfig
from huatuo_jax.sharding import make_mesh
from huatuo_jax.weights.hf_config import read_config
from huatuo_jax.weights.hf_read import open_weights
from huatuo_jax.weights.load import load_params


def anonymous() -> int:
    """Bytes of this process that are no file's."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("RssAnon"))


class Peak(threading.Thread):
    """The largest value of `anonymous`, sampled a thousand times a second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.bytes, self.running = 0, True

    def run(self) -> None:
        """Until `running` is false."""
        while self.running:
            self.bytes = max(self.bytes, anonymous())
            time.sleep(0.001)


def main(folder: str, dtype: str) -> dict[str, float]:
    """The figures."""
    weights = open_weights(folder, read_config(folder))
    mesh = make_mesh(MeshConfig())
    jax.jit(lambda: jnp.zeros(8))().block_until_ready()
    before, peak, began = anonymous(), Peak(), time.perf_counter()
    peak.start()
    params = load_params(weights, mesh, jnp.dtype(dtype))
    seconds = time.perf_counter() - began
    peak.running = False
    peak.join()
    target = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    largest = max(math.prod(tensor.shape) * tensor.dtype.itemsize for tensor in weights.tensors.values())
    return {"seconds": seconds, "target": target, "largest": largest, "above": peak.bytes - before - target}


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
