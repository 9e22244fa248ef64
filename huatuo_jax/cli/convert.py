"""`huatuo convert to-hf`: a checkpoint of ours as a folder that transformers opens."""

import argparse

from huatuo_jax.cli.arguments import add_dtype_argument, local_path

HELP = """Export a run or checkpoint as a Hugging Face folder: weights, config, tokenizer, chat template, card

Layouts: llama writes a Baichuan with RoPE as LlamaForCausalLM, which opens anywhere (a NormHead is baked into lm_head.weight);
native keeps the family's own layout and every number; a native Baichuan brings its own modelling file (trust_remote_code).
auto is llama where that is possible for a Baichuan, native for all others.

dtype auto is what the run computed in. The folder appears when it is whole."""
EXAMPLE = """
huatuo convert to-hf runs/quickstart runs/quickstart/hf --license apache-2.0
huatuo convert to-hf runs/huatuo2_13b/checkpoints/10000 exports/13b --layout native --dtype bfloat16
"""

UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def byte_size(text: str) -> int:
    """ "5GB" → 5,000,000,000."""
    number = text.upper().rstrip("KMGB ")
    unit = text.upper()[len(number) :].strip()
    if not number.strip().isdecimal() or unit not in UNITS or int(number) == 0:
        raise argparse.ArgumentTypeError(f"{text}: give a size such as 5GB or 500MB")
    return int(number) * UNITS[unit]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("model", metavar="MODEL", help="run directory, RUN/checkpoints/STEP or base directory")
    parser.add_argument("folder", metavar="FOLDER", type=local_path, help="Hugging Face folder to write")
    parser.add_argument("--layout", choices=("auto", "native", "llama"), default="auto", help="(default: auto)")
    add_dtype_argument(parser, "of the weights", choices=("auto", "bfloat16", "float32", "float16"))
    parser.add_argument("--license", default="other", metavar="ID", help="licence on the card, e.g. apache-2.0 (default: other)")
    parser.add_argument("--name", default="", help="name on the card (default: FOLDER's)")
    parser.add_argument("--base-model", default="", metavar="ID", help="what it was adapted from, for the card")
    parser.add_argument("--max-shard-size", type=byte_size, default="5GB", metavar="SIZE", help="of a file (default: 5GB)")
    parser.add_argument(
        "--inexact-tokenizer", action="store_true", help="export even where tokenizer.json gives some texts other ids"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an exported folder")


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    from huatuo_jax.cli.console import make_console, make_progress, write_report
    from huatuo_jax.weights.hf_write import ExportRequest, export

    console = make_console(args.quiet)
    request = ExportRequest(
        layout=args.layout,
        dtype=args.dtype,
        license=args.license,
        name=args.name,
        base_model=args.base_model,
        max_shard_size=args.max_shard_size,
        overwrite=args.overwrite,
        inexact_tokenizer=args.inexact_tokenizer,
    )
    with make_progress(console, "MB") as progress:
        task = progress.add_task("weights", total=None)

        def advance(written: int, total: int) -> None:
            progress.update(task, completed=written // 10**6, total=total // 10**6)

        report = export(args.model, args.folder, request, advance)
    console.print(
        f"{args.folder}: step {report['step']} as {report['layout']}, {report['dtype']}, {report['tensors']} tensors, "
        f"{report['bytes'] / 1e6:,.1f} MB in {report['shards']} file(s), {report['seconds']:.1f} s"
    )
    if report["layout"] == "baichuan":
        console.print("it opens with trust_remote_code=True; the modelling file is in the folder")
    write_report(args.json, report)
    return 0
