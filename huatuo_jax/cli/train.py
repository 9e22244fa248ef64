"""`huatuo train`: one run, from a config and a run directory; the same line again continues it."""

import argparse

from huatuo_jax.cli.arguments import with_config_fields
from huatuo_jax.config import require

HELP = """Train a model: CONFIG and a run directory; the same line again resumes by itself

CONFIG is a config file or the name of a recipe that ships with this project. Every field of it can be set by its dotted name
(--optimizer.learning-rate 5e-5); `huatuo train CONFIG --help` lists them with their values. A rerun may change mesh, compute,
accumulation, checkpoint and logging settings; any other difference is refused and listed.

exit codes: 0 done · 1 failed · 2 wrong usage or config · 3 does not fit · 4 stopped by a signal, state saved"""
EXAMPLE = """
huatuo train configs/quickstart.py --run runs/quickstart        # a config file
huatuo train quickstart --run runs/quickstart --mesh.fsdp 4     # the same recipe by its name; goes on, on another mesh
huatuo train huatuo2_7b --help                                  # its fields and their values
"""
CONFIG_FIRST = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("--run", metavar="RUN", required=True, help="run directory: config, metrics and checkpoints go there")
    group = parser.add_argument_group("several processes")
    group.add_argument("--distributed", action="store_true", help="the cluster tells each process which one it is")
    group.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0, where no cluster tells")
    group.add_argument("--num-processes", metavar="N", type=int, help="with --coordinator: how many there are")
    group.add_argument("--process-id", metavar="I", type=int, help="with --coordinator: which one this is, from 0")


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    from huatuo_jax.cli.console import make_console, write_report

    config = with_config_fields(args.config, args)
    _start_processes(args)

    import jax

    from huatuo_jax.training.trainer import train

    report = train(config, args.run, make_console(args.quiet or jax.process_index() != 0))
    if jax.process_index() == 0:
        write_report(args.json, report)
    return 0


def _start_processes(args: argparse.Namespace) -> None:
    """Joins the other processes of the run, if there are any."""
    import jax

    given = [args.coordinator, args.num_processes, args.process_id]
    require(
        all(value is None for value in given) or all(value is not None for value in given),
        "--coordinator, --num-processes and --process-id belong together; give all three, or --distributed alone",
    )
    if args.coordinator is None:
        if args.distributed:
            jax.distributed.initialize()
        return
    require(args.num_processes >= 1, f"--num-processes is {args.num_processes}; it must be at least 1")
    require(
        0 <= args.process_id < args.num_processes,
        f"--process-id is {args.process_id}; it must be from 0 to {args.num_processes - 1}",
    )
    jax.distributed.initialize(*given)
