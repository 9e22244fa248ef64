"""Console script `huatuo`: Train a model from a plan, look at the run, ask the model."""

import functools

from huatuo_jax.cli.console import main as run_program

COMMANDS = {
    "train": "train",
    "report": "report",
    "ask": "ask",
    "generate": "generate",
    "chat": "chat",
    "convert from-hf": "convert_from_hf",
    "convert to-hf": "convert_to_hf",
    "convert compare": "convert_compare",
    "logits": "logits",
}

main = functools.partial(run_program, "huatuo", __doc__.split(": ", 1)[1].strip(), "huatuo_jax.cli", COMMANDS)
"""Entry point of `huatuo`: arguments (None = the command line's) → exit code."""
