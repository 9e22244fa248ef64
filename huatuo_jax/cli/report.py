"""`huatuo report`: a run as pictures and one HTML page."""

import argparse

from huatuo_jax.cli.arguments import local_path

HELP = """Draw a run: PNGs and one self-contained HTML page

Reads config.json, metrics.jsonl and, where they are there, the plan, answers.json and recall.json of a run directory.
Writes plots/{loss,loss_per_source,mixing,learning_rate,throughput,recall}.png and report.html. A run in progress can be
drawn too."""
EXAMPLE = "huatuo report runs/quickstart   # then open runs/quickstart/report.html"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("run", metavar="RUN", type=local_path, help="run directory of `huatuo train`")


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    from huatuo_jax.cli.console import make_console, write_report
    from huatuo_jax.report.run_page import write_run_report

    written = write_run_report(args.run)
    console = make_console(args.quiet)
    for name, path in written.items():
        console.print(f"{name:<16} {path}")
    write_report(args.json, written)
    return 0
