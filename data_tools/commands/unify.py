"""`huatuo-data unify`: passages in, instruction pairs (JSONL, ready for `import`) out."""

import argparse

from huatuo_jax.console import local_path

HELP = """Turn passages into question-and-answer pairs, ready for `huatuo-data import`.

--template asks about a passage's title (or first words) and answers with its text, without a language model. Rows that are not
passages are listed beside --out, in a file that ends in .rejected.jsonl."""
EXAMPLE = """
huatuo-data unify --template corpus/*.jsonl --out pairs.jsonl
huatuo-data import pairs.jsonl sft.jsonl --out data/unified
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    from data_tools.commands.import_records import add_max_rejected

    parser.add_argument(
        "files", nargs="+", type=local_path, metavar="FILES", help="JSON or JSONL with `text`, plain or .gz .xz .zst"
    )
    method = parser.add_mutually_exclusive_group(required=True)
    method.add_argument("--template", action="store_true", help="make questions from titles, without a language model")
    parser.add_argument("--out", required=True, type=local_path, metavar="FILE.jsonl", help="file of pairs")
    parser.add_argument("--source", metavar="NAME", help="source of all pairs, whatever the rows say themselves")
    add_max_rejected(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the command and returns its exit code."""
    from data_tools.commands.import_records import check_max_rejected, print_sources
    from data_tools.importing import check_inputs
    from data_tools.unify.files import unify_files
    from data_tools.unify.template import to_pair
    from huatuo_jax.console import make_console, make_progress, write_report

    check_max_rejected(args.max_rejected)
    check_inputs(args.files)
    console = make_console(args.quiet)
    with make_progress(console, "bytes") as progress:
        task = progress.add_task("unify", total=sum(path.stat().st_size for path in args.files))
        report = unify_files(
            args.files, args.out, to_pair, args.source, args.max_rejected, on_read=lambda count: progress.advance(task, count)
        )
    print_sources(console, str(args.out), report)
    write_report(args.json, report)
    return 0
