"""Console script `huatuo`: Train a model from a plan, look at the run, ask the model."""

from collections.abc import Sequence

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


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `huatuo`; returns the exit code."""
    return run_program("huatuo", __doc__.split(": ", 1)[1].strip(), "huatuo_jax.cli", COMMANDS, argv)
