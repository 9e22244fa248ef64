"""Loads a folder; prints as JSON what the process held beyond mapped file and parameters: load_memory FOLDER DTYPE.

Only anonymous memory counts: pages of the mapped file belong to the system, which takes them back when it needs them.
"""

import json
import math
import sys

import jax
import jax.numpy as jnp

from benchmarks.hf_files import Watch
from huatuo_jax.config import MeshConfig
from huatuo_jax.sharding import make_mesh
from huatuo_jax.weights.hf_config import read_config
from huatuo_jax.weights.hf_read import open_weights
from huatuo_jax.weights.load import load_params


def main(folder: str, dtype: str) -> dict[str, float]:
    """The figures."""
    weights = open_weights(folder, read_config(folder))
    mesh = make_mesh(MeshConfig())
    jax.jit(lambda: jnp.zeros(8))().block_until_ready()
    with Watch() as watch:
        params = load_params(weights, mesh, jnp.dtype(dtype))
    target = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    largest = max(math.prod(tensor.shape) * tensor.dtype.itemsize for tensor in weights.tensors.values())
    return {"seconds": watch.seconds, "target": target, "largest": largest, "above": watch.peak - target}


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
