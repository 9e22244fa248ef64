"""`huatuo-data mix`: a mixture or a plan in, its mixing curve as table, CSV and plot out."""

import argparse
from typing import Any

HELP = """Show which sources each part of a run draws from, before any data is tokenised.

From a mixture with record counts (of the paper, or --records), or from a finished plan. The `duration` of the CSV is the
start of the window, from 0 to 1; the other columns are shares of the window's draws."""
EXAMPLE = """
huatuo-data mix --mixture paper --windows 33 --csv curve.csv --plot curve.png
huatuo-data mix --plan data/plan --plot plan.svg
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--mixture", metavar="NAME", help="a mixture of huatuo_jax/mixtures.py, e.g. paper")
    what.add_argument("--mixture-file", metavar="JSON", help="a mixture in a file; needs --records")
    what.add_argument("--plan", metavar="PLAN", help="a plan folder: the curve of its draws")
    parser.add_argument("--records", metavar="JSON", help='file of {"SOURCE": records, …} (default: the paper\'s sizes)')
    parser.add_argument("--windows", type=int, default=33, help="equal parts of the run (default 33)")
    parser.add_argument("--seed", type=int, default=42, help="of the drawn order; a plan has its own (default 42)")
    parser.add_argument("--equal-priorities", action="store_true", help="plain random mixing: every priority 1")
    parser.add_argument("--csv", metavar="FILE", help="also write the curve as CSV")
    parser.add_argument("--plot", metavar="FILE", help="also draw it as a stacked area chart (.png, .svg or .pdf)")


def run(args: argparse.Namespace) -> int:
    """Runs the command and returns its exit code."""
    from rich.table import Table

    from data_tools.planning import mixing
    from data_tools.planning.planner import load_mixture
    from huatuo_jax.cli.console import make_console, print_table, write_report
    from huatuo_jax.config import require
    from huatuo_jax.data.plan import Plan
    from huatuo_jax.io.files import read_json
    from huatuo_jax.mixtures import MIXTURES, equal_priorities
    from huatuo_jax.report.style import image_format

    require(args.windows >= 1, f"--windows is {args.windows}; it must be at least 1")
    if args.plot:
        image_format(args.plot)
    if args.plan:
        require(not (args.records or args.equal_priorities), "--records and --equal-priorities do not apply to a finished --plan")
        title = f"Mixing curve of {args.plan}"
        curve = mixing.planned_curve(Plan.load(args.plan), args.windows)
    else:
        title = f"Mixing curve of the mixture {args.mixture or args.mixture_file}, seed {args.seed}"
        require(bool(args.mixture or args.records), "--mixture-file says nothing about sizes; give --records too")
        mixture = load_mixture(args.mixture, args.mixture_file) or {}
        counts = read_json(args.records) if args.records else MIXTURES[args.mixture][1]
        mixture = equal_priorities(mixture) if args.equal_priorities else mixture
        curve = mixing.drawn_curve(counts, mixture, args.windows, args.seed)
        expected = mixing.closed_form(counts, {source: mixture[source] for source in curve}, args.windows)
    console = make_console(args.quiet)
    table = Table("starts at", title=title)
    for source in curve:
        table.add_column(source.replace("medical_", "").replace("_corpus", ""), justify="right")
    starts = mixing.starts(args.windows)
    for i, start in enumerate(starts):
        table.add_row(f"{start:.3f}", *(f"{shares[i]:.3f}" for shares in curve.values()))
    print_table(console, table)
    report: dict[str, Any] = {"duration": starts.tolist(), "shares": {name: shares.tolist() for name, shares in curve.items()}}
    if not args.plan:
        difference = max(float(abs(shares - expected[source]).max()) for source, shares in curve.items())
        console.print(f"largest difference from the closed form of large sources: {difference:.4f}")
        report["difference_from_closed_form"] = difference
    if args.csv:
        mixing.write_csv(args.csv, curve)
        console.print(f"curve in {args.csv}")
    if args.plot:
        mixing.plot(args.plot, curve, title)
        console.print(f"plot in {args.plot}")
    write_report(args.json, report)
    return 0
