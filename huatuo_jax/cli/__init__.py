"""Console script `huatuo`: its commands, by module, and its entry point.

The way in for everything that trains, asks or converts a model. What must hold: it starts at once, so nothing is imported here
but the frame, and a command's module only when the command is run. Next to read: `console.py`, which says what a command is.
"""

import functools

from huatuo_jax.cli.console import main as run_program

COMMANDS = {
    "train": "huatuo_jax.cli.train:train",
    "report": "huatuo_jax.cli.train:report",
    "ask": "huatuo_jax.cli.answer:ask",
    "generate": "huatuo_jax.cli.answer:generate",
    "chat": "huatuo_jax.cli.answer:chat",
    "logits": "huatuo_jax.cli.answer:logits",
    "convert from-hf": "huatuo_jax.cli.convert:from_hf",
    "convert to-hf": "huatuo_jax.cli.convert:to_hf",
    "convert compare": "huatuo_jax.cli.convert:compare",
}


main = functools.partial(run_program, "huatuo", "Train a model from a plan, look at the run, ask the model.", COMMANDS)
"""Entry point of `huatuo`: arguments (None = the command line's) → exit code."""
