"""`huatuo convert compare`: do two models predict the same?"""

import argparse

HELP = """Compare two models: largest error, mean KL, top-1 agreement; fails above the gate

Our code computes both; transformers:FOLDER computes a Hugging Face folder by transformers instead (needs the torch extra). Both
read the same text: the built-in one (Chinese, English, code) or --text FILE, one text a line. The gate is a mean KL of 1e-6 nats
in float32 and 0.015 in bfloat16; above it the exit code is 1."""
EXAMPLE = """
huatuo convert compare runs/quickstart runs/quickstart/hf                # the export against the checkpoint
huatuo convert compare Baichuan2-7B-Base transformers:Baichuan2-7B-Llama --dtype bfloat16
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    from huatuo_jax.cli.arguments import MODEL_HELP, add_dtype_argument, add_folder_arguments

    parser.add_argument("a", metavar="MODEL", help=f"the reference: {MODEL_HELP}; or transformers:FOLDER")
    parser.add_argument("b", metavar="OTHER", help="the other, named in the same way")
    parser.add_argument("--text", metavar="FILE", help="UTF-8 text, one a line (default: built in)")
    add_dtype_argument(parser, "of the computation", "float32", ("float32", "bfloat16"))
    parser.add_argument("--trust-remote-code", action="store_true", help="let transformers run a folder's own modelling file")
    add_folder_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    import dataclasses
    from pathlib import Path

    from huatuo_jax.cli.arguments import answers
    from huatuo_jax.cli.console import make_console, write_report
    from huatuo_jax.errors import DataError
    from huatuo_jax.weights.compare import BUILT_IN_TEXTS, compare

    texts = list(BUILT_IN_TEXTS)
    if args.text:
        try:
            texts = [line for line in Path(args.text).read_text(encoding="utf-8").splitlines() if line.strip()]
        except UnicodeDecodeError as error:
            raise DataError(f"{args.text} is not UTF-8 ({error}); convert it") from error
        if not texts:
            raise DataError(f"{args.text} holds no text; give at least one line")
    found = compare(args.a, args.b, texts, args.dtype, args.trust_remote_code, **answers(args))
    console = make_console(args.quiet)
    console.print(
        f"{found.tokens} positions in {args.dtype}: largest logit error {found.max_error:.3g} ({found.relative_error:.3g} of the "
        f"largest logit), mean KL {found.mean_kl:.3g} (largest {found.max_kl:.3g}), "
        f"top-1 agreement {100 * found.top1_agreement:.2f} %"
    )
    verdict = "[green]passed[/]" if found.passed else "[bold red]failed[/]"
    console.print(f"{verdict}: the gate is a mean KL of {found.gate:g} nats in {args.dtype}")
    write_report(args.json, {"a": args.a, "b": args.b, "dtype": args.dtype, **dataclasses.asdict(found), "passed": found.passed})
    return 0 if found.passed else 1
