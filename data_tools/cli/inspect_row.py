"""`huatuo-data inspect`: a plan and a row number in, the row as readable text out: what is read, what is learned, from where."""

import argparse

from huatuo_jax.cli.arguments import add_tokenizer_argument

HELP = """Show one row of a plan as text: its examples, their sources, and which tokens are targets.

Without colour, targets stand between « and ». ⟨EOS⟩ is the end token; ⟨→EOS⟩ stands before a token in whose place the model
shall say EOS instead (the token that opens the next question of a dialogue)."""
EXAMPLE = """
huatuo-data inspect data/plan --row 0
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("plan", metavar="PLAN", help="plan folder")
    parser.add_argument("--tokens", metavar="TOKENS", help="its token dataset (default: where it was when the plan was made)")
    parser.add_argument("--row", type=int, default=0, help="number of the row, from 0 (default 0)")
    add_tokenizer_argument(parser, "the one in TOKENS")
    parser.add_argument("--no-color", action="store_true", help="mark targets by « » even on a terminal")


def run(args: argparse.Namespace) -> int:
    """Runs the command and returns its exit code."""
    from etils import epath
    from rich.console import Console
    from rich.markup import escape

    from data_tools.planning.row_text import COLORS, render, segments_of
    from huatuo_jax.cli.console import make_console, write_report
    from huatuo_jax.config import require
    from huatuo_jax.data.plan import Plan
    from huatuo_jax.data.rows import PlannedRows
    from huatuo_jax.data.token_store import TokenDataset

    plan = Plan.load(args.plan)
    known = bool(args.tokens or plan.manifest.get("tokens"))
    require(known, f"{args.plan} does not say where its token dataset is; give --tokens")
    dataset = TokenDataset.open(args.tokens or epath.Path(args.plan) / plan.manifest["tokens"])
    rows = PlannedRows(plan, dataset)
    require(0 <= args.row < len(rows), f"--row is {args.row}; the plan has rows 0 to {len(rows) - 1}")
    tokenizer = dataset.load_tokenizer(args.tokenizer)
    row = rows[args.row]
    segments = segments_of(rows, args.row, row)
    console = make_console(args.quiet)
    if args.no_color:
        console = Console(quiet=args.quiet, highlight=False, soft_wrap=True, no_color=True, color_system=None)
    filled, targets = sum(segment.tokens for segment in segments), int((row["targets"] != -100).sum())
    fill = filled / rows.sequence_length
    console.print(
        f"row {args.row} of {len(rows):,}: {len(segments)} examples, {filled:,} of {rows.sequence_length:,} tokens "
        f"(fill {fill:.3f}), {targets:,} targets, {rows.packing} packing"
    )
    for number, segment in enumerate(segments, start=1):
        color = COLORS[(number - 1) % len(COLORS)] if console.color_system is not None else ""
        console.rule(escape(segment.title(number)), align="left")
        console.print(render(row, segment.start, segment.start + segment.tokens, tokenizer, color))
    write_report(args.json, {"row": args.row, "fill": fill, "segments": [segment.to_json() for segment in segments]})
    return 0
