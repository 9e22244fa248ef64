"""`huatuo train`: one run, from a config file and a run directory; the same line again continues it."""

import argparse
from typing import Any

HELP = """Train a model: CONFIG.py and a run directory; the same line again resumes by itself

Every field of the config can be set by its dotted name behind the config file (--optimizer.learning-rate 5e-5); --fields lists
them. A rerun may change mesh, compute, accumulation, checkpoint and logging settings; any other difference is refused and listed.

exit codes: 0 done · 1 failed · 2 wrong usage or config · 3 does not fit · 4 stopped by a signal, state saved"""
EXAMPLE = """
huatuo train configs/quickstart.py --run runs/quickstart
huatuo train configs/quickstart.py --run runs/quickstart --mesh.fsdp 4      # goes on, on another mesh
huatuo train configs/quickstart.py --fields                                # the fields and their values
"""
PASS_UNKNOWN = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.allow_abbrev = False
    parser.add_argument("config", metavar="CONFIG.py", help="Python file with `def config() -> RunConfig`; comes first")
    parser.add_argument("--run", metavar="DIR", help="run directory: config, metrics and checkpoints go there")
    parser.add_argument("--fields", action="store_true", help="list the fields that can be set, with their values, and end")
    parser.add_argument("--distributed", action="store_true", help="several processes; the cluster tells who they are")
    parser.add_argument("--coordinator", metavar="HOST:PORT", help="several processes: address of process 0")
    parser.add_argument("--num-processes", metavar="N", type=int, help="with --coordinator: how many there are")
    parser.add_argument("--process-id", metavar="I", type=int, help="with --coordinator: which one this is, from 0")


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    from huatuo_jax.cli.console import make_console, write_report
    from huatuo_jax.config import require
    from huatuo_jax.config_files import load_config

    base = load_config(args.config)
    if args.fields:
        return _overridden(base, ["--help"])
    config = _overridden(base, args.unknown)
    if isinstance(config, int):
        return config
    require(args.run is not None, "--run DIR is missing: the directory of this run")
    _check_processes(args)
    _start_processes(args)

    import jax

    from huatuo_jax.training.trainer import train

    console = make_console(args.quiet or jax.process_index() != 0)
    report = train(config, args.run, console)
    if jax.process_index() == 0:
        write_report(args.json, report)
    return 0


def _overridden(config: Any, words: list[str]) -> Any:
    """The config with the command line's fields set, or an exit code where tyro explained a wrong one or printed the help."""
    import tyro

    try:
        flat = (tyro.conf.AvoidSubcommands,)
        return tyro.cli(type(config), default=config, args=words, prog="huatuo train CONFIG.py", config=flat)
    except SystemExit as end:
        return int(end.code or 0)


def _check_processes(args: argparse.Namespace) -> None:
    from huatuo_jax.config import require

    given = [args.coordinator, args.num_processes, args.process_id]
    require(
        all(v is None for v in given) or all(v is not None for v in given),
        "--coordinator, --num-processes and --process-id belong together; give all three, or --distributed alone",
    )
    if args.coordinator is not None:
        require(args.num_processes >= 1, f"--num-processes is {args.num_processes}; it must be at least 1")
        inside = 0 <= args.process_id < args.num_processes
        require(inside, f"--process-id is {args.process_id}; it must be from 0 to {args.num_processes - 1}")


def _start_processes(args: argparse.Namespace) -> None:
    import jax

    if args.coordinator is not None:
        jax.distributed.initialize(args.coordinator, args.num_processes, args.process_id)
    elif args.distributed:
        jax.distributed.initialize()
