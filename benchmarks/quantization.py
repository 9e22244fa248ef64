"""Quantised weights against fp32 of the same trained model: bytes, divergence, perplexity; and bytes of released architectures.

    make quickstart                                             # or any run of `huatuo train`
    python -m benchmarks.quantization [--run runs/quickstart] [--dialogues 20]

Every form is read from the run's checkpoint as `huatuo generate --quantize` reads it, and computes in fp32 (bf16: in bf16)
without a cache. Texts: records that the run trained on, records that it held out, and real dialogues beside the repository (where
they are there; the model has not seen them). Divergence is KL(fp32 ‖ form) and KL(bf16 ‖ form) of the next-token distributions at
target tokens. What must hold: all forms read the same checkpoint and the same ids. Next to read:
`huatuo_jax/inference/quantize.py`.
"""

import argparse
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.corpora import REAL, dialogues
from huatuo_jax.config import ModelConfig, RunConfig, config_from_dict
from huatuo_jax.data.dialogue import IGNORED, Record, encode_record
from huatuo_jax.data.token_store import TokenDataset
from huatuo_jax.errors import ConfigError
from huatuo_jax.inference.model import Model, open_model
from huatuo_jax.inference.quantize import Quantizer, parse_quantization, stored_bytes
from huatuo_jax.io.files import read_json
from huatuo_jax.models.decoder import abstract_params
from huatuo_jax.models.presets import preset
from huatuo_jax.weights.checkpoint import named_leaves
from huatuo_jax.weights.compare import row_logits

KINDS = ("int8", "int4:32", "int4:64", "int4:128")
RELEASED = ("baichuan2-7b", "baichuan2-13b", "yi-34b")
Rows = Sequence[tuple[np.ndarray, np.ndarray]]


def texts_of(run: Path, model: Model, count: int) -> dict[str, Rows]:
    """Name → (tokens, targets) of every record, cut at the model's context."""
    dataset = TokenDataset.open(config_from_dict(RunConfig, read_json(run / "config.json")).data.tokens)
    texts: dict[str, Rows] = {}
    for name, split in (("trained", "train"), ("held out", "holdout")):
        texts[name] = dataset.read(np.arange(sum(dataset.count(source, split) for source in dataset.sources)), split)
    if REAL.is_dir():
        records = [Record(id=str(i), source="sft", turns=tuple(turns)) for i, turns in enumerate(dialogues(count))]
        texts["unseen dialogues"] = [encode_record(record, model.tokenizer, model.dialogue_format) for record in records]
    longest = model.config.max_length
    return {name: [(tokens[:longest], targets[:longest]) for tokens, targets in rows] for name, rows in texts.items()}


def log_probabilities(model: Model, kind: str, rows: Rows) -> tuple[list[np.ndarray], int]:
    """Of the next token at every target, fp32 [targets, V] a row; and the bytes of the weights."""
    dtype = jnp.bfloat16 if kind == "bf16" else jnp.float32
    quantizer = model.quantizer(kind, dtype) if kind in KINDS else None
    params = model.params(None, dtype, quantizer)
    config = quantizer.quantized_config if quantizer else model.config
    logits = row_logits(config, params, [tokens.tolist() for tokens, _ in rows], dtype)
    # Logits at i predict token i + 1, whose target is not shifted here.
    kept = [row[:-1][targets[1:] != IGNORED] for row, (_, targets) in zip(logits, rows, strict=True)]
    return [np.asarray(jax.nn.log_softmax(row)) for row in kept], stored_bytes(params)


def figures(exact: Sequence[np.ndarray], other: Sequence[np.ndarray], rows: Rows) -> tuple[float, float, float]:
    """Mean KL(exact ‖ other), perplexity of `other`, share of targets with the same likeliest token."""
    a, b = np.concatenate(exact), np.concatenate(other)
    labels = np.concatenate([targets[1:][targets[1:] != IGNORED] for _, targets in rows])
    # Summed in fp64: over a vocabulary, fp32 would round divergences of 1e-6 away.
    divergence = float((np.exp(a) * (a - b)).sum(axis=1, dtype=np.float64).mean())
    perplexity = float(np.exp(-b[np.arange(len(labels)), labels].mean(dtype=np.float64)))
    return divergence, perplexity, float((a.argmax(axis=1) == b.argmax(axis=1)).mean())


def trained_model(run: Path, count: int) -> None:
    """Prints a table for each text."""
    model = open_model(run)
    kinds = [kind for kind in KINDS if fits(model.config, kind)]
    for name, rows in texts_of(run, model, count).items():
        exact, whole = log_probabilities(model, "fp32", rows)
        title = f"{model.config.name}, {len(rows)} {name}, {sum(map(len, exact)):,} target tokens"
        columns = ("weights", "MB", "of fp32", "KL from fp32, nats", "from bf16", "perplexity", "same top token as fp32")
        table = Table(*columns, title=title)
        # Against bf16 too: a model that is served in bf16 has rounded already, and what int8 adds to that is the price.
        rounded, _ = log_probabilities(model, "bf16", rows)
        for kind in ("fp32", "bf16", *kinds):
            other, size = log_probabilities(model, kind, rows)
            kl, perplexity, agreement = figures(exact, other, rows)
            from_bf16, _, _ = figures(rounded, other, rows)
            share, same = f"{size / whole:.3f}", f"{100 * agreement:.2f} %"
            table.add_row(kind, f"{size / 1e6:.2f}", share, f"{kl:.2e}", f"{from_bf16:.2e}", f"{perplexity:.4f}", same)
        Console().print(table)


def fits(config: ModelConfig, kind: str) -> bool:
    """Whether the kind's groups divide the model's sizes."""
    try:
        Quantizer(config, parse_quantization(kind)).check()
    except ConfigError as error:
        print(f"{kind} is left out: {error}")
        return False
    return True


def released_sizes() -> None:
    """Prints the bytes of released architectures; nothing is allocated."""
    table = Table("GB of weights", "bf16", *KINDS)
    for name in RELEASED:
        config = preset(name)
        leaves = named_leaves(abstract_params(config, jnp.bfloat16))
        # From shapes: the released models are too large to be made here, and their bytes do not depend on the numbers.
        sizes = [stored_bytes(leaves)]
        for kind in KINDS:
            quantizer = Quantizer(config, parse_quantization(kind), jnp.bfloat16)
            quantizer.check()
            sizes.append(stored_bytes({n: jax.eval_shape(partial(quantizer, n), leaf) for n, leaf in leaves.items()}))
        table.add_row(name, *(f"{size / 1e9:.2f}" for size in sizes))
    Console().print(table)


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/quickstart"))
    parser.add_argument("--dialogues", type=int, default=20, help="of real data, where it is there")
    args = parser.parse_args()
    released_sizes()
    if args.run.is_dir():
        trained_model(args.run, args.dialogues)
    else:
        print(f"{args.run} is absent: `make quickstart` makes it")


if __name__ == "__main__":
    main()
