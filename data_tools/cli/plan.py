"""`huatuo-data plan`: a token dataset and a mixture in, a row plan and a table of what it holds out."""

import argparse
from typing import TYPE_CHECKING, Any

from huatuo_jax.cli.arguments import CONFIG_HELP

if TYPE_CHECKING:
    from rich.table import Table

    from huatuo_jax.config import DataConfig
    from huatuo_jax.data.plan import Plan

HELP = """Draw the order of all records and pack them into rows.

Mixture, sequence length, packing and seed come from --config (RunConfig.data); each flag overrides it. Nothing is
tokenised again: changing a priority or the sequence length costs seconds."""
EXAMPLE = """
huatuo-data plan data/tokens --config huatuo2_7b --out data/plan
huatuo-data plan data/tokens --mixture paper --sequence-length 2048 --packing faithful --out data/plan_2048
"""

DEFAULT_BATCH_SIZE = 128


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("tokens", nargs="?", metavar="TOKENS", help="token dataset (default: data.tokens of the config)")
    parser.add_argument("--out", metavar="PLAN", help="folder of the plan (default: data.plan of the config)")
    parser.add_argument("--config", metavar="CONFIG", help=f"run whose `data` the plan shall serve: {CONFIG_HELP}")
    mixture = parser.add_mutually_exclusive_group()
    mixture.add_argument("--mixture", metavar="NAME", help="a mixture of huatuo_jax/mixtures.py, e.g. paper")
    mixture.add_argument("--mixture-file", metavar="JSON", help='file of {"SOURCE": {"priority": 8, "epochs": 1}, …}')
    parser.add_argument(
        "--equal-priorities", action="store_true", help="plain random mixing: every priority 1, epochs as they are"
    )
    parser.add_argument("--sequence-length", type=int, metavar="L", help="tokens a row (default 4096)")
    parser.add_argument("--packing", choices=["first_fit", "faithful"], help="default first_fit")
    parser.add_argument("--seed", type=int, help="of the order (default 42)")
    parser.add_argument("--batch-size", type=int, metavar="ROWS", help=f"to count steps (default {DEFAULT_BATCH_SIZE})")


def run(args: argparse.Namespace) -> int:
    """Runs the command and returns its exit code."""
    from data_tools.planning.planner import make_plan
    from huatuo_jax.cli.console import make_console, print_table, write_report
    from huatuo_jax.config import require
    from huatuo_jax.data.token_store import TokenDataset

    data, batch_size = requested(args)
    require(bool(data.tokens), "no token dataset: give TOKENS, or data.tokens in the config")
    require(bool(data.plan), "no folder for the plan: give --out, or data.plan in the config")
    console = make_console(args.quiet)
    with console.status("drawing and packing"):
        plan = make_plan(TokenDataset.open(data.tokens), data)
    replaced = _hash_of(data.plan)
    if replaced not in ("", plan.hash):
        console.print(f"replaces plan {replaced[:12]} in {data.plan}: a run that was trained on that one will refuse this one")
    plan.with_tokens_at(data.tokens, data.plan).save(data.plan)
    table = source_table(plan)
    print_table(console, table)
    steps = len(plan) // batch_size
    statistics = plan.manifest["statistics"]
    console.print(
        f"{len(plan.row_docs):,} records in {len(plan):,} rows of {data.sequence_length:,} ({data.packing}, seed {data.seed}), "
        f"fill {statistics['fill']:.4f}\n"
        f"{steps:,} steps of {batch_size:,} rows; {len(plan) % batch_size:,} rows at the end fill no step"
    )
    for warning in warnings(plan, steps):
        console.print(f"[yellow]warning:[/] {warning}")
    console.print(f"plan {plan.hash[:12]} in {data.plan}")
    write_report(args.json, {**plan.manifest, "hash": plan.hash, "steps": steps, "batch_size": batch_size})
    return 0


def _hash_of(path: str) -> str:
    """Identity of the plan that is in the folder, "" if there is no whole one."""
    from huatuo_jax.data.plan import Plan
    from huatuo_jax.errors import DataError

    try:
        return Plan.load(path, cache=False).hash
    except DataError:
        return ""


def requested(args: argparse.Namespace) -> "tuple[DataConfig, int]":
    """The data config and batch size that config file and flags ask for; flags win."""
    import dataclasses

    from data_tools.planning.mixing import load_mixture
    from huatuo_jax.config import DataConfig, require
    from huatuo_jax.config_files import load_config
    from huatuo_jax.mixtures import equal_priorities

    config = load_config(args.config) if args.config else None
    data = config.data if config else DataConfig()
    batch_size = args.batch_size if args.batch_size is not None else config.batch_size if config else DEFAULT_BATCH_SIZE
    require(batch_size >= 1, f"--batch-size is {batch_size}; it must be at least 1")
    flags: dict[str, Any] = {"tokens": args.tokens, "plan": args.out}
    flags |= {"sequence_length": args.sequence_length, "packing": args.packing, "seed": args.seed}
    if args.mixture or args.mixture_file:
        flags["mixture"] = load_mixture(args.mixture, args.mixture_file)
    data = dataclasses.replace(data, **{name: value for name, value in flags.items() if value is not None})
    require(bool(data.mixture), "no mixture: give --config, --mixture or --mixture-file")
    if args.equal_priorities:
        data = dataclasses.replace(data, mixture=equal_priorities(dict(data.mixture)))
    return data, batch_size


def source_table(plan: "Plan") -> "Table":
    """One line per drawn source, and the total."""
    from rich.table import Table

    columns = ("records", "priority", "epochs", "draws", "dropped", "cut", "tokens cut", "tokens", "targets")
    table = Table("source")
    for column in columns:
        table.add_column(column, justify="right")
    statistics, mixture = plan.manifest["statistics"], plan.manifest["mixture"]
    for source, facts in statistics["sources"].items():
        mix = mixture[source]
        table.add_row(source, *_counts(facts, f"{mix['priority']:g}", f"{mix['epochs']:g}"))
    names = ("records", "draws", "dropped", "cut", "cut_tokens", "tokens", "target_tokens")
    total = {name: sum(facts[name] for facts in statistics["sources"].values()) for name in names}
    total["cut_share"] = total["cut_tokens"] / max(total["tokens"] + total["cut_tokens"], 1)
    table.add_section()
    table.add_row("all", *_counts(total, "", ""))
    return table


def _counts(facts: dict[str, Any], priority: str, epochs: str) -> list[str]:
    records, draws, dropped, cut = (f"{facts[name]:,}" for name in ("records", "draws", "dropped", "cut"))
    cut_tokens = f"{facts['cut_tokens']:,} ({facts['cut_share']:.1%})"
    return [records, priority, epochs, draws, dropped, cut, cut_tokens, f"{facts['tokens']:,}", f"{facts['target_tokens']:,}"]


def warnings(plan: "Plan", steps: int) -> list[str]:
    """What the user should know before training on the plan."""
    from data_tools.planning.planner import CUT_WARNING

    length, statistics = plan.manifest["sequence_length"], plan.manifest["statistics"]
    found = []
    if statistics["left_out_sources"]:
        found.append(f"in the data but not in the mixture, so not drawn: {', '.join(statistics['left_out_sources'])}")
    for source, facts in statistics["sources"].items():
        if facts["draws"] == 0:
            found.append(f"{source} is in the mixture but gives no draw ({facts['records']:,} records)")
        if facts["cut_share"] > CUT_WARNING:
            share = f"{facts['cut_share']:.1%} of the tokens of {source} lie beyond {length:,}"
            found.append(f"{share} and are cut; segment its documents into shorter passages, or plan longer rows")
        if facts["without_target"]:
            fate = "dropped" if facts["dropped"] else "kept, as the original does"
            found.append(f"{facts['without_target']:,} draws of {source} have no target before {length:,} ({fate})")
    if not steps:
        found.append("there are too few rows for one step; lower the batch size")
    return found
