"""The frame of both programs: finds and runs a command, turns errors into one line and an exit code, and prints.

A program is a table from a command's words ("convert to-hf") to its module. A command module has `HELP` (first line = summary),
`EXAMPLE`, `add_arguments(parser)` and `run(args) -> int`, which makes one library call and reports. Where it sets
`CONFIG_FIRST = True`, its first argument is a config whose fields become flags, and `run` finds it as `args.config`. Its module
imports nothing heavy at its top, so that `--help` is instant; `arguments.py` holds the parser and what commands share.
"""

import contextlib
import importlib
import os
import signal
import sys
import textwrap
from argparse import RawDescriptionHelpFormatter
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from huatuo_jax import __version__
from huatuo_jax.cli.arguments import CONFIG_HELP, Parser, add_config_fields, did_you_mean
from huatuo_jax.errors import EXIT_FAILED, EXIT_USAGE, HuatuoError

err_console = Console(stderr=True, highlight=False)


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


def print_error(error: HuatuoError) -> None:
    """One line on stderr."""
    err_console.print(f"[bold red]error[/]: {escape(str(error))}", soft_wrap=True)


def main(program: str, description: str, package: str, commands: Mapping[str, str], argv: Sequence[str] | None) -> int:
    """Runs one command of a program, whose modules are in `package`, and returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    # "collect calibrate" before "collect", of which it is no argument.
    name = next((c for c in sorted(commands, key=len, reverse=True) if words[: len(c.split())] == c.split()), None)
    try:
        try:
            if name is None:
                return _program_help(program, description, package, commands, words)
            module = importlib.import_module(f"{package}.{commands[name]}")
            return _run(module, f"{program} {name}", words[len(name.split()) :])
        except HuatuoError as error:
            print_error(error)
            return error.exit_code
        except SystemExit as end:  # argparse has printed the help
            return int(end.code or 0)
        except KeyboardInterrupt:
            err_console.print("interrupted; no file is half-written, and the same command continues where it can")
            return EXIT_FAILED
        finally:
            sys.stdout.flush()  # here a closed pipe raises an error that can be caught; at the interpreter's end it cannot
    except BrokenPipeError:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except OSError as error:
        where = error.filename or error.filename2
        if where is None:
            raise
        err_console.print(f"[bold red]error[/]: {escape(f'{where}: {error.strerror}')}; choose another path, or correct this one")
        return EXIT_FAILED


def _run(module: ModuleType, command: str, words: Sequence[str]) -> int:
    parser = Parser(
        prog=command,
        description=module.HELP,
        epilog="example:\n" + textwrap.indent(textwrap.dedent(module.EXAMPLE).strip(), "  "),
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    config = None
    if getattr(module, "CONFIG_FIRST", False):
        parser.add_argument("config", metavar="CONFIG", help=f"{CONFIG_HELP}; comes first")
        if words and not words[0].startswith("-"):
            from huatuo_jax.config_files import load_config

            config = load_config(words[0])
    module.add_arguments(parser)
    parser.add_argument("--json", metavar="FILE", help="also write the report to FILE as JSON")
    parser.add_argument("--quiet", action="store_true", help="print errors only")
    if config is not None:
        parser.usage = parser.format_usage().removeprefix("usage: ").strip() + " [--FIELD VALUE …]"  # not a hundred fields
        add_config_fields(parser, config)
    args = parser.read(words)
    if config is not None:
        args.config = config
    _check_writable(args.json)
    return module.run(args)


def _check_writable(report: str | None) -> None:
    """Raises before the work if `--json` cannot be written after it."""
    folder = os.path.dirname(os.path.abspath(report)) if report else "."
    if report and os.path.isdir(folder) and not os.access(folder, os.W_OK):
        raise HuatuoError(f"--json {report}: {folder} cannot be written to; choose another folder")


def _program_help(program: str, description: str, package: str, commands: Mapping[str, str], words: list[str]) -> int:
    if words and words[0] in ("--version", "-V"):
        print(f"{program} {__version__}")
        return 0
    asked = bool(words) and words[-1] in ("-h", "--help")
    group = {name: module for name, module in commands.items() if words and name.split()[0] == words[0]}
    wrong = bool(words) and words[0] not in ("-h", "--help") and not (group and asked)
    out = sys.stderr if wrong else sys.stdout
    if wrong:
        given = " ".join(words[: 2 if group else 1])
        print(f"{program}: no command {given!r}{did_you_mean(given, commands)}\n", file=out)
    print(f"usage: {program} COMMAND [options]\n\n{description}\n\ncommands:", file=out)
    width = max(map(len, group or commands)) + 2
    for command, module in (group or commands).items():
        summary = importlib.import_module(f"{package}.{module}").HELP.strip().splitlines()[0]
        print(f"  {command:<{width}}{summary}", file=out)
    print(f"\n`{program} COMMAND --help` explains a command and gives an example.", file=out)
    return EXIT_USAGE if wrong or not words else 0
