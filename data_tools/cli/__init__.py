"""Console script `huatuo-data`: its commands, by module, and its entry point. It starts without jax or grain.

`huatuo_jax/cli/console.py` says what a command is.
"""

import os
from collections.abc import Sequence

from huatuo_jax.cli.console import main as run_program

COMMANDS = {
    "collect": "data_tools.cli.collect:collect",
    "collect calibrate": "data_tools.cli.collect:calibrate",
    "decontaminate": "data_tools.cli.collect:decontaminate",
    "unify": "data_tools.cli.unify:unify",
    "import": "data_tools.cli.dataset:import_records",
    "tokenizer train": "data_tools.cli.dataset:train_tokenizer",
    "encode": "data_tools.cli.dataset:encode",
    "build": "data_tools.cli.dataset:build",
    "plan": "data_tools.cli.plan:plan",
    "mix": "data_tools.cli.plan:mix",
    "inspect": "data_tools.cli.plan:inspect",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `huatuo-data`; returns the exit code."""
    # numpy multiplies no matrices here, and the threads that it starts for that forbid a build to fork its workers.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    return run_program("huatuo-data", "From corpora to unified pairs, token dataset and row plan.", COMMANDS, argv)
