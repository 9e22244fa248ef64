"""Console script `huatuo-data`: its commands, by module, and its entry point.

The way in for everything that prepares data, from raw documents to the row plan. What must hold: it starts at once, without jax
or grain, so nothing is imported here but the frame, and a command's module only when the command is run. Next to read:
`huatuo_jax/cli/console.py`, which says what a command is.
"""

import functools
import os

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


# Before numpy is imported, which reads it then: numpy multiplies no matrices here, and with the threads that it would start for
# that a build could not fork its workers (`io/tasks.py`).
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

main = functools.partial(run_program, "huatuo-data", "From corpora to unified pairs, token dataset and row plan.", COMMANDS)
"""Entry point of `huatuo-data`: arguments (None = the command line's) → exit code."""
