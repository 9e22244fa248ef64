"""`huatuo-data plan`: a token dataset and a mixture in, a row plan and a table of what it holds out."""

import argparse

from huatuo_jax.cli.arguments import CONFIG_HELP

HELP = """Draw the order of all records and pack them into rows.

Mixture, sequence length, packing and seed come from --config (RunConfig.data); each flag overrides it. Nothing is
tokenised again: changing a priority or the sequence length costs seconds."""
EXAMPLE = """
huatuo-data plan data/tokens --config huatuo2_7b --out data/plan
huatuo-data plan data/tokens --mixture paper --sequence-length 2048 --packing faithful --out data/plan_2048
"""


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
    parser.add_argument("--batch-size", type=int, metavar="ROWS", help="to count steps (default: the config's, else 128)")


def run(args: argparse.Namespace) -> int:
    """Runs the command and returns its exit code."""
    from data_tools.planning.planner import data_config, load_mixture, make_plan, source_table, warnings
    from huatuo_jax.cli.console import make_console, print_table, write_report
    from huatuo_jax.config import require
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
    replaced = Plan.hash_at(data.plan)
    if replaced not in ("", plan.hash):
        console.print(f"replaces plan {replaced[:12]} in {data.plan}: a run that was trained on that one will refuse this one")
    plan.with_tokens_at(data.tokens, data.plan).save(data.plan)
    print_table(console, source_table(plan))
    steps = len(plan) // batch_size
    console.print(
        f"{len(plan.row_docs):,} records in {len(plan):,} rows of {data.sequence_length:,} ({data.packing}, seed {data.seed}), "
        f"fill {plan.manifest['statistics']['fill']:.4f}\n"
        f"{steps:,} steps of {batch_size:,} rows; {len(plan) % batch_size:,} rows at the end fill no step"
    )
    for warning in warnings(plan, steps):
        console.print(f"[yellow]warning:[/] {warning}")
    console.print(f"plan {plan.hash[:12]} in {data.plan}")
    write_report(args.json, {**plan.manifest, "hash": plan.hash, "steps": steps, "batch_size": batch_size})
    return 0
