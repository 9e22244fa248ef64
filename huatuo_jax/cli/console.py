"""The frame of both programs: finds and runs a command, turns errors into one line and an exit code, and prints.

A program is a table from a command's words to a function, "convert to-hf" → "huatuo_jax.cli.convert:to_hf", and beside the
function stands another that declares its arguments:

    def to_hf_arguments(parser: Parser) -> None: ...
    def to_hf(args: argparse.Namespace) -> Report:
        \"""Summary, in one line.

        The rest of the help.

        Example:
        huatuo convert to-hf …
        \"""

The function makes one library call, prints, and returns its report, which `--json FILE` saves. What must hold: its module imports
nothing heavy at its top, so that `--help` is instant, and every error that a user can correct ends in one line and its exit code.
Next to read: `arguments.py`, which holds the parser and what commands share.
"""

import argparse
import contextlib
import importlib
import inspect
import os
import signal
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from huatuo_jax import __version__
from huatuo_jax.cli.arguments import Parser, did_you_mean
from huatuo_jax.errors import EXIT_FAILED, EXIT_USAGE, HuatuoError

if TYPE_CHECKING:
    from rich.progress import Progress
    from rich.table import Table

Report = dict[str, Any]
"""What a command found, as JSON values; a `passed` that is false makes the command fail."""

err_console = Console(stderr=True, highlight=False)


def make_console(quiet: bool = False) -> Console:
    """The console for reports: no colour when not a terminal (rich detects it), nothing at all when quiet."""
    return Console(quiet=quiet, highlight=False, soft_wrap=True)


def print_table(console: Console, table: "Table") -> None:
    """Prints a table; into a pipe or file as wide as it needs to be, for no terminal is there to fit."""
    if not console.is_terminal:
        from rich.measure import Measurement

        needed = Measurement.get(console, console.options.update(width=1_000), table).maximum
        console.width = max(console.width, needed)
    console.print(table)


def make_progress(console: Console, unit: str = "") -> "Progress":
    """A progress bar with count, elapsed and remaining time; use as a context manager."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        # Into a file or pipe rich would write the last state of each bar, which is no part of the report.
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


def print_error(error: HuatuoError) -> None:
    """One line on stderr."""
    err_console.print(f"[bold red]error[/]: {escape(str(error))}", soft_wrap=True)


def main(program: str, description: str, commands: Mapping[str, str], argv: Sequence[str] | None = None) -> int:
    """Runs one command of a program and returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    # "collect calibrate" before "collect", of which it is no argument.
    name = next((c for c in sorted(commands, key=len, reverse=True) if words[: len(c.split())] == c.split()), None)
    try:
        try:
            if name is None:
                return _program_help(program, description, commands, words)
            return _run(commands[name], f"{program} {name}", words[len(name.split()) :])
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
        # The reader has gone (`… | head`). What is still in the buffer goes nowhere, so that the interpreter's own flush at its
        # end does not complain.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except OSError as error:
        # A path that cannot be read or written is the user's matter; an OSError without one (a socket's, a library's) is a bug.
        where = error.filename or error.filename2
        if where is None:
            raise
        reason = escape(f"{where}: {error.strerror}")
        err_console.print(f"[bold red]error[/]: {reason}; choose another path, or correct this one")
        return EXIT_FAILED


def _run(target: str, command: str, words: Sequence[str]) -> int:
    """Reads the arguments of one command, runs it and saves its report; returns its exit code."""
    run, declare = _command(target)
    text, _, example = (inspect.getdoc(run) or "").partition("\nExample:\n")
    # The function's docstring is the help: summary, text, example.
    parser = Parser(
        prog=command,
        description=text,
        epilog="example:\n" + textwrap.indent(textwrap.dedent(example), "  "),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # an abbreviation in a script would break when a flag is added that begins like it
    )
    declare(parser)
    parser.add_argument("--json", metavar="FILE", help="also write the report to FILE as JSON")
    parser.add_argument("--quiet", action="store_true", help="print errors only")
    args = parser.read(words)
    _check_writable(args.json)
    report = run(args)
    if args.json and report:
        from huatuo_jax.io.files import write_json  # with numpy and epath: a tenth of a second that `--help` does not need

        write_json(args.json, report)
    return 0 if report.get("passed", True) else EXIT_FAILED


def _command(target: str) -> tuple[Callable[[argparse.Namespace], Report], Callable[[Parser], None]]:
    """The function of a command, and the one that declares its arguments."""
    module, _, name = target.partition(":")
    loaded = importlib.import_module(module)
    return getattr(loaded, name), getattr(loaded, f"{name}_arguments")


def _check_writable(report: str | None) -> None:
    """Raises before the work if `--json` cannot be written after it."""
    folder = os.path.dirname(os.path.abspath(report)) if report else "."
    if report and os.path.isdir(folder) and not os.access(folder, os.W_OK):
        raise HuatuoError(f"--json {report}: {folder} cannot be written to; choose another folder")


def _program_help(program: str, description: str, commands: Mapping[str, str], words: list[str]) -> int:
    """Lists the commands, or those of a group (`convert --help`); the exit code tells whether that was asked for."""
    if words and words[0] in ("--version", "-V"):
        print(f"{program} {__version__}")
        return 0
    group = {name: target for name, target in commands.items() if words and name.split()[0] == words[0]}
    asked = not words or (words[-1] in ("-h", "--help") and (bool(group) or len(words) == 1))
    out = sys.stdout if asked else sys.stderr
    if not asked:
        given = " ".join(words[: 2 if group else 1])
        print(f"{program}: no command {given!r}{did_you_mean(given, commands)}\n", file=out)
    print(f"usage: {program} COMMAND [options]\n\n{description}\n\ncommands:", file=out)
    width = max(map(len, group or commands)) + 2
    for command, target in (group or commands).items():
        summary = (inspect.getdoc(_command(target)[0]) or "").splitlines()[0]
        print(f"  {command:<{width}}{summary}", file=out)
    print(f"\n`{program} COMMAND --help` explains a command and gives an example.", file=out)
    return 0 if words and asked else EXIT_USAGE
