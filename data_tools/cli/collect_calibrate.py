"""`huatuo-data collect calibrate`: makes a domain model from a labelled sample (`data_tools/collect/calibrate.py`)."""

import argparse
from typing import TYPE_CHECKING

from data_tools.cli.collect import add_vocabulary, print_left_out
from huatuo_jax.cli.arguments import local_path

if TYPE_CHECKING:
    from rich.console import Console

    from data_tools.collect.calibrate import LanguageResult

HELP = """Choose the extraction threshold on a labelled sample, perhaps learn term weights from it.

Prints precision, recall and F1 of texts that neither weights nor threshold have seen (10-fold cross-validation, repeated),
draws the precision-recall curve beside the model, and says which groups of texts are confused."""
EXAMPLE = """
huatuo-data collect calibrate labelled.jsonl --label-field medical --domain medicine --learn --out medicine.json
huatuo-data collect raw/ --domain-model medicine.json --out passages
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("files", nargs="+", type=local_path, metavar="FILES", help="JSONL: a text and a label (true or false)")
    add_vocabulary(parser)
    parser.add_argument("--learn", action="store_true", help="learn weights of words and character pairs from the sample")
    parser.add_argument("--out", required=True, type=local_path, metavar="MODEL.json", help="model for `collect --domain-model`")
    parser.add_argument("--text-field", default="text", metavar="KEY", help="key of the text (default text)")
    parser.add_argument("--label-field", default="label", metavar="KEY", help="key of the label (default label)")
    parser.add_argument("--group-field", metavar="KEY", help="key of a group, to list what is confused")


def run(args: argparse.Namespace) -> int:
    """Runs the command and returns its exit code."""
    from data_tools.collect.calibrate import calibrate, draw_curve, read_labelled, to_report
    from data_tools.collect.domain import load_vocabularies, save_model
    from data_tools.records.importing import check_inputs
    from huatuo_jax.cli.console import make_console, write_report

    check_inputs(args.files)
    console = make_console(args.quiet)
    vocabulary = load_vocabularies(args.domain, args.vocabulary)
    print_left_out(console, vocabulary.left_out)
    sample = read_labelled(args.files, args.text_field, args.label_field, args.group_field)
    model, results = calibrate(sample, vocabulary, args.learn)
    save_model(model, args.out)
    _print_results(console, results)
    for language, result in results.items():
        picture = args.out.with_suffix(f".{language}.png")
        draw_curve(picture, language, result)
        console.print(f"precision-recall curve: {picture}")
    console.print(f"model: {args.out}")
    write_report(args.json, {"model": str(args.out), "terms": len(vocabulary.weights), "languages": to_report(results)})
    return 0


def _print_results(console: "Console", results: "dict[str, LanguageResult]") -> None:
    from rich.table import Table

    from huatuo_jax.cli.console import print_table

    table = Table("language", "texts", "of the domain", "precision", "recall", "F1", "± over repeats", "threshold")
    for language, result in results.items():
        figures = [f"{value:.3f}" for value in (result.precision, result.recall, result.f1, result.f1_spread, result.threshold)]
        table.add_row(language, f"{result.texts:,}", f"{result.positives:,}", *figures)
    print_table(console, table)
    for result in results.values():
        for title, groups in (("wrongly kept", result.wrongly_kept), ("wrongly dropped", result.wrongly_dropped)):
            named = ", ".join(f"{group or 'texts'} {count}" for group, count in list(groups.items())[:12])
            console.print(f"{title}: {named or 'none'}")
