"""`huatuo-data build`: unified datasets in, token dataset and a table of its sources out."""

import argparse
import os

from huatuo_jax.cli.arguments import add_format_argument, add_tokenizer_argument, local_path

HELP = """Tokenise unified datasets into a token dataset.

Records are stored uncut, so that plans of any sequence length share one token dataset. An interrupted build continues with the
same command; a finished one has nothing to do. Records that the dialogue format cannot express are listed in
TOKENS/rejected.jsonl."""
EXAMPLE = """
huatuo-data build data/unified --tokenizer baichuan2.model --out data/tokens --holdout 64 --workers 8
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser.add_argument("unified", nargs="+", type=local_path, metavar="UNIFIED", help="unified dataset(s), from `import`")
    add_tokenizer_argument(parser)
    parser.add_argument("--out", required=True, type=local_path, metavar="TOKENS", help="folder of the token dataset")
    add_format_argument(parser, "huatuo")
    parser.add_argument(
        "--holdout", type=int, default=0, metavar="N", help="hold N records of every source out for evaluation (default 0)"
    )
    parser.add_argument("--workers", type=int, default=available, metavar="K", help=f"processes (default {available})")
    parser.add_argument(
        "--max-length", type=int, default=1_000_000, metavar="N", help="tokens at which records are cut (default: 1,000,000)"
    )


def run(args: argparse.Namespace) -> int:
    """Runs the command and returns its exit code."""
    from rich import box
    from rich.table import Table

    from data_tools.tokens.build import BuildRequest, build
    from huatuo_jax.cli.console import make_console, make_progress, write_report

    console = make_console(args.quiet)
    request = BuildRequest(
        tuple(args.unified), args.tokenizer, args.out, args.format, args.holdout, args.max_length, args.workers
    )
    progress = make_progress(console, "records")
    task = progress.add_task("tokenise", total=None)

    def begin(total: int) -> None:
        progress.update(task, total=total)
        progress.start()  # Only now: before, its thread would keep the workers from being forked.

    try:
        report = build(request, on_start=begin, on_done=lambda done: progress.update(task, completed=done))
    finally:
        progress.stop()
    if report["nothing_to_do"]:
        console.print(f"nothing to do: {args.out} is finished with these settings")
    rows = {
        source: [
            *(entry["train"][key] for key in ("records", "tokens", "target_tokens")),
            entry["holdout"]["records"],
            entry["rejected"],
        ]
        for source, entry in report["sources"].items()
    }
    table = Table(title=str(args.out), box=box.SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("source", no_wrap=True, min_width=max(map(len, rows)))
    for column in ("records", "tokens", "targets", "held out", "rejected"):
        table.add_column(column, justify="right", no_wrap=True)
    for source, row in rows.items():
        table.add_row(source, *(f"{value:,}" for value in row))
    table.add_section()
    table.add_row("all", *(f"{sum(column):,}" for column in zip(*rows.values(), strict=True)))
    console.print(table)
    if short := [source for source, row in rows.items() if row[3] < args.holdout]:
        console.print(f"note: fewer than {args.holdout} records held out of {', '.join(short)} (duplicates or rejected records)")
    if cut := sum(entry["cut"] for entry in report["sources"].values()):
        console.print(f"note: {cut:,} records are longer than {args.max_length:,} tokens and were cut")
    if any(row[4] for row in rows.values()):
        console.print(f"rejected records are listed in {args.out}/rejected.jsonl")
    if report["new_records"]:
        console.print(f"{report['new_records']:,} records in {report['seconds']:.1f} s")
    write_report(args.json, report)
    return 0
