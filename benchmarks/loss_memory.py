"""Memory of the loss layer, chunked against plain, at a vocabulary of 125,696: what the compiler says, nothing is run.

    python -m benchmarks.loss_memory [--rows 4] [--sequence-length 4096] [--chunks 1 4 8 16]

Temporary memory of the loss and its gradients to hidden states and output weights on one device, without arguments and results.
What must hold: nothing is allocated, so it runs where the logits (7.7 GiB in fp32) would not fit. Next to read:
`huatuo_jax/training/loss.py`. The chunked loss keeps 1.92 GiB of it to sum the weights' gradient over chunks; the plain one
writes that gradient to its result.
"""

import argparse
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
from jax import Array
from rich.console import Console
from rich.table import Table

from huatuo_jax.training.loss import token_weights, weighted_loss

VOCABULARY, FEATURES = 125_696, 4096


def plain_loss(hidden: Array, weights: Array, targets: Array) -> Array:
    """The loss written down as its formula: all logits at once, in fp32."""
    logits = jnp.einsum("bsd,vd->bsv", hidden, weights.astype(hidden.dtype), preferred_element_type=jnp.float32)
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.maximum(targets, 0)[..., None], -1)[..., 0]
    return -(picked * token_weights(targets, "global", 1)).sum()


def temporary_bytes(loss: object, rows: int, length: int, dtype: str) -> int:
    """Bytes of temporary memory of the loss with both gradients, by the compiler's account."""
    shapes = (
        jax.ShapeDtypeStruct((rows, length, FEATURES), jnp.dtype(dtype)),
        jax.ShapeDtypeStruct((VOCABULARY, FEATURES), jnp.float32),
        jax.ShapeDtypeStruct((rows, length), jnp.int32),
    )
    # Both gradients: the backward pass is where logits are made again, or kept.
    compiled = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*shapes).compile()  # type: ignore[arg-type]
    memory = compiled.memory_analysis()
    assert memory is not None
    return memory.temp_size_in_bytes


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--sequence-length", type=int, default=4096)
    parser.add_argument("--chunks", type=int, nargs="+", default=[1, 4, 8, 16])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    args = parser.parse_args()
    table = Table(title=f"{args.rows} × {args.sequence_length} tokens, vocabulary {VOCABULARY:,}, width {FEATURES}, {args.dtype}")
    for column in ("loss", "temporary GiB"):
        table.add_column(column, justify="right")
    rows, length = args.rows, args.sequence_length
    table.add_row("plain", f"{temporary_bytes(plain_loss, rows, length, args.dtype) / 2**30:.2f}")
    for chunks in args.chunks:

        def chunked(hidden: Array, weights: Array, targets: Array, chunks: int = chunks) -> Array:
            return weighted_loss(hidden, weights, targets, token_weights(targets, "global", 1), chunks=chunks)[0]

        table.add_row(f"{chunks} chunks", f"{temporary_bytes(chunked, rows, length, args.dtype) / 2**30:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
