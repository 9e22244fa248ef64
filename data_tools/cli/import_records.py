"""`huatuo-data import`: files with dialogues or passages in, a unified dataset and a table of sources out."""

import argparse
from typing import Any

from huatuo_jax.cli.arguments import local_path

HELP = """Import dialogues and passages of any known layout into one unified dataset.

Reads HuatuoGPT-II's two JSON layouts, ShareGPT, OpenAI messages, Alpaca and JSONL with `turns` or `text`, plain or compressed
(.gz, .xz, .zst). Lines that cannot be used are listed in OUT/rejected.jsonl with file, line and reason.
A record's source is --source, else its own field `source`, else the file's name."""
EXAMPLE = """
huatuo-data import sft.jsonl --source sft --out data/sft
huatuo-data import HuatuoGPT2_Pretraining.json.gz books.jsonl.xz --out data/unified
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("files", nargs="+", type=local_path, metavar="FILES", help="JSON or JSONL, plain or .gz .xz .zst")
    parser.add_argument("--out", required=True, type=local_path, metavar="DIR", help="folder of the new dataset")
    parser.add_argument("--source", metavar="NAME", help="source of all records, whatever they say themselves")
    parser.add_argument(
        "--layout",
        default="auto",
        choices=["auto", "huatuo", "hub", "sharegpt", "openai", "alpaca", "turns", "text"],
        help="layout of the records (default: told apart by their keys)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a dataset that is in DIR, once the new one is whole")
    add_max_rejected(parser)


def add_max_rejected(parser: argparse.ArgumentParser) -> None:
    """Declares `--max-rejected`, which unify has too."""
    parser.add_argument(
        "--max-rejected",
        type=float,
        default=0.01,
        metavar="SHARE",
        help="fail (exit code 1) if more than this share of lines is rejected (default 0.01)",
    )


def check_max_rejected(share: float) -> None:
    """Raises ConfigError unless the share lies between 0 and 1."""
    from huatuo_jax.config import require

    require(0 <= share <= 1, f"--max-rejected is {share}; it is a share between 0 and 1")


def print_sources(console: Any, title: str, report: dict[str, Any]) -> None:
    """Prints the table of records per source."""
    from rich.table import Table

    table = Table("source", "records", title=title)
    for source, records in report["sources"].items():
        table.add_row(source, f"{records:,}")
    console.print(table)
    console.print(f"records {report['records']:,}, rejected {report['rejected']:,}")


def run(args: argparse.Namespace) -> int:
    """Runs the command and returns its exit code."""
    from data_tools.records.importing import check_inputs, import_files
    from huatuo_jax.cli.console import make_console, make_progress, write_report

    check_max_rejected(args.max_rejected)
    check_inputs(args.files)
    console = make_console(args.quiet)
    with make_progress(console, "bytes") as progress:
        task = progress.add_task("import", total=sum(path.stat().st_size for path in args.files))
        report = import_files(
            args.files,
            args.out,
            args.source,
            args.layout,
            args.max_rejected,
            on_read=lambda count: progress.advance(task, count),
            overwrite=args.overwrite,
        )
    print_sources(console, str(args.out), report)
    if report["rejected"]:
        console.print(f"rejected lines are listed in {args.out}/rejected.jsonl")
    if report["duplicate_ids"]:
        console.print(f"warning: {report['duplicate_ids']:,} records share source and id with another record")
    if report["duplicate_texts"]:
        console.print(f"note: {report['duplicate_texts']:,} records repeat the text of another record")
    write_report(args.json, report)
    return 0
