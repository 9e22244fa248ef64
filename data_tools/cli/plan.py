"""`huatuo-data plan`, `mix` and `inspect`: the row plan of a run, its mixing curve, and any of its rows as text.

The last step before training (journey 1 in docs/architecture.md), and two ways to look at it before hours are spent on it. What
must hold: what the plan leaves out or cuts is printed, with the remedy. Next to read: `data_tools/planning`, where `planner.py`
draws and packs, `mixing.py` makes curves and `row_text.py` renders a row.
"""

import argparse
from typing import Any

from rich.markup import escape
from rich.table import Table

from huatuo_jax.cli.arguments import CONFIG_HELP, Parser, add_tokenizer_argument
from huatuo_jax.cli.console import Report, make_console, print_table
from huatuo_jax.config import require


def plan_arguments(parser: Parser) -> None:
    """Declares the arguments of `plan`."""
    parser.add_argument("tokens", nargs="?", metavar="TOKENS", help="token dataset (default: data.tokens of the config)")
    parser.add_argument("--out", metavar="PLAN", help="folder of the plan (default: data.plan of the config)")
    parser.add_argument("--config", metavar="CONFIG", help=f"run whose `data` the plan shall serve: {CONFIG_HELP}")
    add_mixture_arguments(parser, parser.add_mutually_exclusive_group())
    parser.add_argument("--sequence-length", type=int, metavar="L", help="tokens a row (default 4096)")
    parser.add_argument("--packing", choices=["first_fit", "faithful"], help="default first_fit")
    parser.add_argument("--seed", type=int, help="of the order (default 42)")
    parser.add_argument("--batch-size", type=int, metavar="ROWS", help="to count steps (default: the config's, else 128)")


def add_mixture_arguments(parser: Parser, group: "argparse._MutuallyExclusiveGroup") -> None:
    """Declares the mixture, its name or its file."""
    group.add_argument("--mixture", metavar="NAME", help="a mixture of huatuo_jax/mixtures.py, e.g. paper")
    group.add_argument("--mixture-file", metavar="JSON", help='file of {"SOURCE": {"priority": 8, "epochs": 1}, …}')
    parser.add_argument(
        "--equal-priorities", action="store_true", help="plain random mixing: every priority 1, epochs as they are"
    )


def plan(args: argparse.Namespace) -> Report:
    """Draw the order of all records and pack them into rows.

    Mixture, sequence length, packing and seed come from --config (RunConfig.data); each flag overrides it. Nothing is
    tokenised again: changing a priority or the sequence length costs seconds.

    Example:
    huatuo-data plan data/tokens --config huatuo2_7b --out data/plan
    huatuo-data plan data/tokens --mixture paper --sequence-length 2048 --packing faithful --out data/plan_2048
    """
    from data_tools.planning.planner import data_config, load_mixture, make_plan, source_table, warnings
    from huatuo_jax.data.plan import Plan
    from huatuo_jax.data.token_store import TokenDataset

    data, batch_size = data_config(
        args.config,
        args.batch_size,
        load_mixture(args.mixture, args.mixture_file),
        args.equal_priorities,
        tokens=args.tokens,
        plan=args.out,
        sequence_length=args.sequence_length,
        packing=args.packing,
        seed=args.seed,
    )
    require(bool(data.tokens), "no token dataset: give TOKENS, or data.tokens in the config")
    require(bool(data.plan), "no folder for the plan: give --out, or data.plan in the config")
    console = make_console(args.quiet)
    with console.status("drawing and packing"):
        plan = make_plan(TokenDataset.open(data.tokens), data)
    # A run keeps its plan's hash and refuses another: the user should learn it now and not when the run is resumed.
    replaced = Plan.hash_at(data.plan)
    if replaced not in ("", plan.hash):
        console.print(f"replaces plan {replaced[:12]} in {data.plan}: a run that was trained on that one will refuse this one")
    plan.with_tokens_at(data.tokens, data.plan).save(data.plan)
    print_table(console, source_table(plan))
    steps = len(plan) // batch_size  # whole batches only, as in the original
    console.print(
        f"{len(plan.row_docs):,} records in {len(plan):,} rows of {data.sequence_length:,} ({data.packing}, seed {data.seed}), "
        f"fill {plan.manifest['statistics']['fill']:.4f}\n"
        f"{steps:,} steps of {batch_size:,} rows; {len(plan) % batch_size:,} rows at the end fill no step"
    )
    for warning in warnings(plan, steps):
        console.print(f"[yellow]warning:[/] {warning}")
    console.print(f"plan {plan.hash[:12]} in {data.plan}")
    return {**plan.manifest, "hash": plan.hash, "steps": steps, "batch_size": batch_size}


def mix_arguments(parser: Parser) -> None:
    """Declares the arguments of `mix`."""
    what = parser.add_mutually_exclusive_group(required=True)
    add_mixture_arguments(parser, what)
    what.add_argument("--plan", metavar="PLAN", help="a plan folder: the curve of its draws")
    parser.add_argument("--records", metavar="JSON", help='file of {"SOURCE": records, …} (default: NAME\'s sizes)')
    parser.add_argument("--windows", type=int, default=33, help="equal parts of the run (default 33)")
    parser.add_argument("--seed", type=int, default=42, help="of the drawn order; a plan has its own (default 42)")
    parser.add_argument("--csv", metavar="FILE", help="also write the curve as CSV")
    parser.add_argument("--plot", metavar="FILE", help="also draw it as a stacked area chart (.png, .svg or .pdf)")


def mix(args: argparse.Namespace) -> Report:
    """Show which sources each part of a run draws from, before any data is tokenised.

    From a mixture with record counts (of the paper, or --records), or from a finished plan. The `duration` of the CSV is the
    start of the window, from 0 to 1; the other columns are shares of the window's draws.

    Example:
    huatuo-data mix --mixture paper --windows 33 --csv curve.csv --plot curve.png
    huatuo-data mix --plan data/plan --plot plan.svg
    """
    from data_tools.planning import mixing
    from data_tools.planning.planner import load_mixture
    from huatuo_jax.data.plan import Plan
    from huatuo_jax.io.files import read_json
    from huatuo_jax.mixtures import MIXTURES, equal_priorities
    from huatuo_jax.report.style import image_format

    require(args.windows >= 1, f"--windows is {args.windows}; it must be at least 1")
    # Before the curve is computed: a name that no picture can have is refused.
    if args.plot:
        image_format(args.plot)
    if args.plan:
        require(not (args.records or args.equal_priorities), "--records and --equal-priorities do not apply to a finished --plan")
        title = f"Mixing curve of {args.plan}"
        curve = mixing.planned_curve(Plan.load(args.plan), args.windows)
    else:
        title = f"Mixing curve of the mixture {args.mixture or args.mixture_file}, seed {args.seed}"
        require(bool(args.mixture or args.records), "--mixture-file has no record counts; give --records too")
        mixture = load_mixture(args.mixture, args.mixture_file) or {}
        counts = read_json(args.records) if args.records else MIXTURES[args.mixture][1]
        mixture = equal_priorities(mixture) if args.equal_priorities else mixture
        curve = mixing.drawn_curve(counts, mixture, args.windows, args.seed)
        # Only for a drawn curve: a plan also cuts, drops and packs, which the closed form knows nothing about.
        expected = mixing.closed_form(counts, {source: mixture[source] for source in curve}, args.windows)
    console = make_console(args.quiet)
    table = Table("starts at", title=title)
    for source in curve:
        # The paper's names are longer than a column of a terminal.
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
    return report


def inspect_arguments(parser: Parser) -> None:
    """Declares the arguments of `inspect`."""
    parser.add_argument("plan", metavar="PLAN", help="plan folder")
    parser.add_argument("--tokens", metavar="TOKENS", help="its token dataset (default: where it was when the plan was made)")
    parser.add_argument("--row", type=int, default=0, help="number of the row, from 0 (default 0)")
    add_tokenizer_argument(parser, "the one in TOKENS")
    parser.add_argument("--no-color", action="store_true", help="mark targets by « » even on a terminal")


def inspect(args: argparse.Namespace) -> Report:
    """Show one row of a plan as text: its examples, their sources, and which tokens are targets.

    Without colour, targets stand between « and ». ⟨EOS⟩ is the end token; ⟨→EOS⟩ stands before a token in whose place the model
    shall say EOS instead (the token that opens the next question of a dialogue).

    Example:
    huatuo-data inspect data/plan --row 0
    """
    from etils import epath
    from rich.console import Console

    from data_tools.planning.row_text import COLORS, render, segments_of
    from huatuo_jax.data.plan import Plan
    from huatuo_jax.data.rows import PlannedRows
    from huatuo_jax.data.token_store import TokenDataset

    plan = Plan.load(args.plan)
    known = bool(args.tokens or plan.manifest.get("tokens"))
    require(known, f"{args.plan} does not say where its token dataset is; give --tokens")
    # Recorded relative to the plan, so that both may move together.
    dataset = TokenDataset.open(args.tokens or epath.Path(args.plan) / plan.manifest["tokens"])
    rows = PlannedRows(plan, dataset)
    require(0 <= args.row < len(rows), f"--row is {args.row}; the plan has rows 0 to {len(rows) - 1}")
    tokenizer = dataset.load_tokenizer(args.tokenizer)
    row = rows[args.row]
    segments = segments_of(rows, args.row, row)
    console = make_console(args.quiet)
    # rich would still write bold and reverse, which the marks are to replace.
    if args.no_color:
        console = Console(quiet=args.quiet, highlight=False, soft_wrap=True, no_color=True, color_system=None)
    filled, targets = sum(segment.tokens for segment in segments), int((row["targets"] != -100).sum())
    fill = filled / rows.sequence_length
    console.print(
        f"row {args.row} of {len(rows):,}: {len(segments)} examples, {filled:,} of {rows.sequence_length:,} tokens "
        f"(fill {fill:.3f}), {targets:,} targets, {rows.packing} packing"
    )
    for number, segment in enumerate(segments, start=1):
        # Without colours the marks « and » say what a target is: the output may be piped.
        color = COLORS[(number - 1) % len(COLORS)] if console.color_system is not None else ""
        console.rule(escape(segment.title(number)), align="left")
        console.print(render(row, segment.start, segment.start + segment.tokens, tokenizer, color))
    return {"row": args.row, "fill": fill, "segments": [segment.to_json() for segment in segments]}
