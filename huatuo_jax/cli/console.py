"""How both programs talk: a rich console that honours `--quiet` and plain pipes, progress bars, `--json` reports, exit codes."""

import argparse
import contextlib
import importlib
import os
import signal
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from huatuo_jax import __version__
from huatuo_jax.errors import EXIT_FAILED, EXIT_USAGE, HuatuoError

err_console = Console(stderr=True, highlight=False)


def local_path(text: str) -> Path:
    """An argument that must be a local path: refuses `gs://…`, which would silently become a folder of that name."""
    if "://" in text:
        raise argparse.ArgumentTypeError(f"{text}: this command works on local (or mounted) paths; copy it here first")
    return Path(text)


def make_console(quiet: bool = False) -> Console:
    """The console for reports: no colour when not a terminal (rich detects it), nothing at all when quiet."""
    return Console(quiet=quiet, highlight=False, soft_wrap=True)


def print_table(console: Console, table: Table) -> None:
    """Prints a table; into a pipe or file as wide as it needs to be, for no terminal is there to fit."""
    if not console.is_terminal:
        needed = Measurement.get(console, console.options.update(width=1_000), table).maximum
        console.width = max(console.width, needed)
    console.print(table)


def make_progress(console: Console, unit: str = "") -> Progress:
    """A progress bar with count, elapsed and remaining time; use as a context manager."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=not console.is_terminal,
        disable=console.quiet,
    )


@contextlib.contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Within the context SIGTERM ends the work as Ctrl-C does, by KeyboardInterrupt, so that every file is closed whole."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def write_report(path: str | None, report: dict[str, Any]) -> None:
    """Writes a command's figures to the file given by `--json`, if one was given."""
    if path:
        from huatuo_jax.io.files import write_json

        write_json(path, report)


def main(program: str, description: str, package: str, commands: dict[str, str], argv: Sequence[str] | None) -> int:
    """Runs one command of a program and returns its exit code.

    `commands` maps a command's words ("tokenizer train") to its module in `package`, imported only when that command (or its
    help) is asked for, so that `--help` of the program stays instant. A command module has `HELP` (first line = summary),
    `EXAMPLE`, `add_arguments(parser)` and `run(args) -> int`; it may set `PASS_UNKNOWN = True` to get `args.unknown`.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    name = next((c for c in sorted(commands, key=len, reverse=True) if argv[: len(c.split())] == c.split()), None)
    if name is None:
        return _program_help(program, description, package, commands, argv)
    module = importlib.import_module(f"{package}.{commands[name]}")
    parser = argparse.ArgumentParser(
        prog=f"{program} {name}",
        description=module.HELP,
        epilog="example:\n" + textwrap.indent(textwrap.dedent(module.EXAMPLE).strip(), "  "),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    module.add_arguments(parser)
    parser.add_argument("--json", metavar="FILE", help="also write the report to FILE as JSON")
    parser.add_argument("--quiet", action="store_true", help="print errors only")
    rest = argv[len(name.split()) :]
    if getattr(module, "PASS_UNKNOWN", False):
        args, unknown = parser.parse_known_args(rest)
        args.unknown = unknown
    else:
        args = parser.parse_intermixed_args(rest)
    try:
        _check_writable(args.json)
        return module.run(args)
    except HuatuoError as error:
        err_console.print(f"[bold red]error[/]: {_escape(str(error))}", soft_wrap=True)
        return error.exit_code
    except KeyboardInterrupt:
        err_console.print("interrupted; no file is half-written, and the same command continues where it can")
        return EXIT_FAILED
    except BrokenPipeError:
        return EXIT_FAILED
    except OSError as error:
        where = error.filename or error.filename2
        if where is None:
            raise
        err_console.print(f"[bold red]error[/]: {_escape(f'{where}: {error.strerror}')}; choose another path or mend this one")
        return EXIT_FAILED


def _check_writable(report: str | None) -> None:
    """Raises before the work if `--json` cannot be written after it."""
    folder = os.path.dirname(os.path.abspath(report)) if report else "."
    if report and os.path.isdir(folder) and not os.access(folder, os.W_OK):
        raise HuatuoError(f"--json {report}: {folder} cannot be written to; choose another folder")


def _program_help(program: str, description: str, package: str, commands: dict[str, str], argv: list[str]) -> int:
    if argv and argv[0] in ("--version", "-V"):
        print(f"{program} {__version__}")
        return 0
    group = argv[:1] if len(argv) > 1 and argv[1] in ("-h", "--help") else []
    commands = {name: module for name, module in commands.items() if name.split()[:1] == group} or commands
    wrong = argv and argv[0] not in ("-h", "--help") and not any(name.split()[:1] == group for name in commands)
    out = sys.stderr if wrong else sys.stdout
    if wrong:
        in_group = any(name.startswith(f"{argv[0]} ") for name in commands)
        print(f"{program}: no command {' '.join(argv[: 1 + in_group])!r}\n", file=out)
    print(f"usage: {program} COMMAND [options]\n\n{description}\n\ncommands:", file=out)
    width = max(map(len, commands)) + 2
    for command, module in commands.items():
        summary = importlib.import_module(f"{package}.{module}").HELP.strip().splitlines()[0]
        print(f"  {command:<{width}}{summary}", file=out)
    print(f"\n`{program} COMMAND --help` explains a command and gives an example.", file=out)
    return EXIT_USAGE if wrong or not argv else 0


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)
