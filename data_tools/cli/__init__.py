"""Console script `huatuo-data`: From corpora to unified pairs, token dataset and row plan. Starts without jax or grain."""

import os
from collections.abc import Sequence

from huatuo_jax.cli.console import main as run_program

COMMANDS = {
    "collect": "collect",
    "collect calibrate": "collect_calibrate",
    "decontaminate": "decontaminate",
    "import": "import_records",
    "unify": "unify",
    "tokenizer train": "tokenizer_train",
    "encode": "encode",
    "build": "build",
    "plan": "plan",
    "mix": "mix",
    "inspect": "inspect_row",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `huatuo-data`; returns the exit code."""
    # numpy multiplies no matrices here, and the threads that it starts for that forbid a build to fork its workers.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    commands = {name: f"data_tools.cli.{module}" for name, module in COMMANDS.items()}
    return run_program("huatuo-data", __doc__.split(": ", 1)[1].strip(), commands, argv)
