"""`huatuo-data decontaminate`: takes rows that hold exam questions out of any files (`data_tools/collect/exams.py`)."""

import argparse

from data_tools.cli.collect import add_overlap, to_overlap
from huatuo_jax.cli.arguments import local_path

HELP = """Find and remove rows that hold exam questions.

Takes passages, dialogues of every layout that `import` reads, or other exams. A row is removed if so much of a question's n-grams
(of characters in Chinese, of words in English) occurs in it; short questions count only whole, the shortest only together with
their options. What is removed is listed with the question in DIR/contaminated.jsonl."""
EXAMPLE = """
huatuo-data decontaminate sft.jsonl pairs.jsonl --exams exams/*.jsonl.xz --out clean
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("files", nargs="+", type=local_path, metavar="FILES", help="JSON or JSONL, plain or .gz .xz .zst")
    rows = "rows with `question` and perhaps `options`"
    parser.add_argument("--exams", nargs="+", required=True, type=local_path, metavar="EXAMS", help=rows)
    parser.add_argument("--out", required=True, type=local_path, metavar="DIR", help="folder of the cleaned files")
    add_overlap(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the command and returns its exit code."""
    from rich.table import Table

    from data_tools.collect.exams import ExamIndex, decontaminate_files, read_exams
    from data_tools.records.importing import check_inputs
    from huatuo_jax.cli.console import make_console, make_progress, print_table, write_report
    from huatuo_jax.io.files import full_disk_named

    check_inputs(args.files)
    check_inputs(args.exams)
    console = make_console(args.quiet)
    index = ExamIndex(read_exams(args.exams), to_overlap(args))
    with full_disk_named(args.out), make_progress(console, "bytes") as progress:
        task = progress.add_task("decontaminate", total=sum(path.stat().st_size for path in args.files))
        report = decontaminate_files(args.files, args.out, index, lambda count: progress.advance(task, count))
    table = Table("file", "rows", "with exam questions")
    for name, counts in report["files"].items():
        table.add_row(name, f"{counts['rows']:,}", f"{counts['contaminated']:,}")
    print_table(console, table)
    if report["unusable_questions"]:
        console.print(f"{report['unusable_questions']:,} questions have no letters and were not looked for")
    console.print(
        f"{len(report['items']):,} of {report['questions']:,} questions found; listed in {args.out / 'contaminated.jsonl'}"
    )
    write_report(args.json, report)
    return 0
