"""`huatuo train`, `huatuo report`, `huatuo checkpoints`: a run from a config, its pictures, and what it saved.

The last step of journey 1 in docs/architecture.md. What must hold: the same command line starts a run, resumes it, and says that
it is finished; with several processes, each ends with the same exit code. Next to read: `training/trainer.py`,
`report/run_page.py`, `training/saving.py`.
"""

import argparse
import contextlib
import hashlib
import os
import platform
import sys
import time
from typing import TYPE_CHECKING

from huatuo_jax.cli.arguments import Parser, local_path
from huatuo_jax.cli.console import Report, make_console, make_progress, print_error, print_table
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

    _use_compilation_cache()

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


def _use_compilation_cache() -> None:
    """Keeps compiled programs in the user's cache folder, so that a resumed run starts without compiling again.

    jax looks a program up by its whole text, the compiler's options and version, and the kind of device. What that leaves out is
    the processor that a program for CPU was compiled for: a home folder may be shared by machines that differ, so the folder is
    named after it.
    """
    import jax
    import jaxlib

    from huatuo_jax.io.files import cache_folder

    if "JAX_COMPILATION_CACHE_DIR" in os.environ:  # jax uses that one; empty = none
        return
    processor = f"{platform.machine()} {platform.processor()}"
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        processor += "".join(sorted({line for line in file if line.startswith(("flags", "Features", "model name"))}))
    name = hashlib.sha256(processor.encode()).hexdigest()[:12]
    jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "compiled" / f"jaxlib-{jaxlib.__version__}-{name}"))


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


def checkpoints_arguments(parser: Parser) -> None:
    """Declares the arguments of `checkpoints`."""
    parser.add_argument("run", metavar="RUN", type=local_path, help="run directory of `huatuo train`")
    parser.add_argument("--verify", action="store_true", help="read every array and compare its fingerprint")
    parser.add_argument(
        "--prune", metavar="N", type=int, help="verify, then remove all but the newest N whole checkpoints, and what is set aside"
    )


def checkpoints(args: argparse.Namespace) -> Report:
    """List the checkpoints of a run; verify them; remove old ones

    A checkpoint is whole if its facts and every array have the SHA-256 and the fingerprints with which they were saved. Ends with
    1 if one is damaged. Training sets a damaged one aside as corrupt-STEP and continues from the one before.

    Example:
    huatuo checkpoints runs/quickstart             # step, time, size, held-out loss
    huatuo checkpoints runs/quickstart --verify    # reads all of them
    huatuo checkpoints runs/quickstart --prune 1   # keeps the newest whole one
    """
    from rich.table import Table

    from huatuo_jax.training.saving import examine, prune

    require(args.prune is None or args.prune >= 1, f"--prune is {args.prune}; at least 1 checkpoint must stay")
    console = make_console(args.quiet)
    with make_progress(console, "bytes") as progress:
        task = progress.add_task("verify", total=None)
        found = examine(
            args.run,
            args.verify or args.prune is not None,
            lambda done, total: progress.update(task, completed=done, total=total),
        )
    table = Table("checkpoint", "saved", "GB", "held-out loss", "state")
    for one in found:
        saved = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(one.time)) if one.time else ""
        loss = "" if one.held_out_loss is None else f"{one.held_out_loss:.4f}"
        table.add_row(one.path.name, saved, f"{one.bytes / 1e9:.3f}", loss, one.state)
    print_table(console, table)
    removed = [] if args.prune is None else prune(args.run, found, args.prune)
    for path in removed:
        console.print(f"removed {path}")
    return {
        "checkpoints": [{"name": one.path.name, "step": one.step, "bytes": one.bytes, "state": one.state} for one in found],
        "removed": [path.name for path in removed],
        "passed": not any(one.damaged for one in found if one.path not in removed),
    }
