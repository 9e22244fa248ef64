"""`huatuo train` and `huatuo report`: a run from a config, and its pictures.

The last step of journey 1 in docs/architecture.md. What must hold: the same command line starts a run, resumes it, and says that
it is finished; with several processes, each ends with the same exit code. Next to read: `training/trainer.py`,
`report/run_page.py`.
"""

import argparse
import os
import sys
import time
from typing import TYPE_CHECKING

from huatuo_jax.cli.arguments import Parser, local_path
from huatuo_jax.cli.console import Report, make_console, print_error
from huatuo_jax.config import require
from huatuo_jax.errors import HuatuoError

if TYPE_CHECKING:
    from huatuo_jax.training.hosts import Peers


def train_arguments(parser: Parser) -> None:
    """Declares the arguments of `train`."""
    parser.add_config_argument()
    parser.add_argument("--run", metavar="RUN", required=True, help="run directory: config, metrics and checkpoints go there")
    group = parser.add_argument_group("several processes")
    group.add_argument("--distributed", action="store_true", help="the cluster tells each process which one it is")
    group.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0, where no cluster tells")
    group.add_argument("--num-processes", metavar="N", type=int, help="with --coordinator: how many there are")
    group.add_argument("--process-id", metavar="I", type=int, help="with --coordinator: which one this is, from 0")
    group.add_argument(
        "--peer-timeout", metavar="SECONDS", type=float, default=45, help="a host that is silent for so long is lost (default 45)"
    )


def train(args: argparse.Namespace) -> Report:
    """Train a model: CONFIG and a run directory; the same line again resumes by itself

    CONFIG is a config file or the name of a recipe that ships with this project. Every field of it can be set by its dotted name
    (--optimizer.learning-rate 5e-5); `huatuo train CONFIG --help` lists them with their values. A rerun may change mesh, compute,
    accumulation, checkpoint and logging settings; any other difference is refused and listed.

    exit codes: 0 done · 1 failed · 2 wrong usage or config · 3 does not fit · 4 stopped by a signal, state saved
    5 another host of the run is lost; the run directory is whole

    Example:
    huatuo train configs/quickstart.py --run runs/quickstart        # a config file
    huatuo train quickstart --run runs/quickstart --mesh.fsdp 4     # the same recipe by its name; goes on, on another mesh
    huatuo train huatuo2_7b --help                                  # its fields and their values
    """
    # Before anything touches a device: jax must know the other processes when it sets up its backend.
    peers = _start_processes(args)

    import jax

    from huatuo_jax.training.trainer import train

    is_first = jax.process_index() == 0
    try:
        report = train(args.config, args.run, make_console(args.quiet or not is_first), peers)
    except HuatuoError as error:
        if jax.process_count() == 1:
            raise
        # Not by returning: at exit jax waits for the other processes, and aborts in C++ when one of them has left already.
        print_error(error)
        sys.stdout.flush()
        if is_first:
            time.sleep(3)  # the others' last calls to the coordination service, which lives in this process, are still answered
        os._exit(error.exit_code)
    return report if is_first else {}  # one report, where every process may have been given the same --json


def _start_processes(args: argparse.Namespace) -> "Peers | None":
    """Joins the other processes of the run, if there are any."""
    given = [args.coordinator, args.num_processes, args.process_id]
    if not args.distributed and all(value is None for value in given):
        return None
    from huatuo_jax.training import hosts

    require(args.peer_timeout >= 5, f"--peer-timeout is {args.peer_timeout:g}; it must be at least 5 seconds")
    cluster = hosts.find_cluster(*given)
    hosts.start(cluster)
    return hosts.Peers(cluster.coordinator, args.peer_timeout)


def report_arguments(parser: Parser) -> None:
    """Declares the arguments of `report`."""
    parser.add_argument("run", metavar="RUN", type=local_path, help="run directory of `huatuo train`")


def report(args: argparse.Namespace) -> Report:
    """Draw a run: PNGs and one self-contained HTML page

    Reads config.json, metrics.jsonl and, where they are there, the plan, answers.json and recall.json of a run directory.
    Writes plots/{loss,loss_per_source,mixing,learning_rate,throughput,recall}.png and report.html. A run in progress can be
    drawn too.

    Example:
    huatuo report runs/quickstart   # then open runs/quickstart/report.html
    """
    from huatuo_jax.report.run_page import write_run_report

    written = write_run_report(args.run)
    console = make_console(args.quiet)
    for name, path in written.items():
        console.print(f"{name:<16} {path}")
    return dict(written)
