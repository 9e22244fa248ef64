"""`huatuo convert from-hf`, `to-hf` and `compare`: from Hugging Face folders to bases, from runs to folders, and the gate.

The first and the last step of a model's way (journey 2 of docs/architecture.md). What must hold: a conversion that may change a
number or the function says so or is refused. Next to read: `huatuo_jax/weights`, which does the work.
"""

import argparse
import dataclasses
import time

from huatuo_jax.cli.arguments import (
    MODEL_HELP,
    Parser,
    add_config_fields,
    add_dtype_argument,
    add_folder_arguments,
    add_format_argument,
    add_tokenizer_argument,
    folder_options,
    local_path,
    with_config_fields,
)
from huatuo_jax.cli.console import Report, make_console, make_progress
from huatuo_jax.config import MeshConfig

UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def from_hf_arguments(parser: Parser) -> None:
    """Declares the arguments of `convert from-hf`."""
    parser.add_argument("folder", metavar="FOLDER", type=local_path, help="Hugging Face folder of a model")
    parser.add_argument("out", metavar="BASE", type=local_path, help="base directory to write; must not exist")
    add_dtype_argument(parser, "of the stored weights; auto = bfloat16 where the folder has it, else float32: no number changes")
    add_tokenizer_argument(parser, "the one in FOLDER")
    add_format_argument(parser, None, "what FOLDER says, else huatuo")
    parser.add_argument("--name", default="", help="of the model (default: name of FOLDER)")
    add_folder_arguments(parser)
    add_config_fields(parser, MeshConfig(), "mesh.")


def from_hf(args: argparse.Namespace) -> Report:
    """Import a Hugging Face model: Baichuan, Llama, Yi, Mistral, Qwen2, Qwen3

    Reads config.json, the weights (safetensors; or pytorch_model.bin with the torch extra) and the tokenizer of FOLDER and writes
    BASE, which `huatuo train --init BASE`, `huatuo ask BASE "…"` and the exports read like a run. Weights go to the devices
    tensor by tensor. Whatever could change the model and is not understood is refused by name.

    Example:
    huatuo convert from-hf Baichuan2-7B-Base bases/baichuan2-7b
    huatuo train huatuo2_7b --run runs/7b --init bases/baichuan2-7b
    """
    from huatuo_jax.sharding import make_mesh
    from huatuo_jax.weights.base import import_folder

    # Before the folder is read: a mesh that does not fit is refused at once.
    began = time.time()
    mesh = make_mesh(with_config_fields(MeshConfig(), args, "mesh."))
    console = make_console(args.quiet)
    with make_progress(console, "tensors") as progress:
        task = progress.add_task(f"reading {args.folder.name}", total=None)
        base = import_folder(
            args.folder,
            args.out,
            mesh,
            None if args.dtype == "auto" else args.dtype,
            tokenizer_path=args.tokenizer,
            format_name=args.format,
            name=args.name,
            advance=lambda done, total: progress.update(task, completed=done, total=total),
            **folder_options(args),
        )
    config = base.config
    console.print(
        f"{args.out}: {config.name}, {config.family} with {config.positions} and a {config.head} head, "
        f"{base.size / 1e9:.2f} GB in {' and '.join(base.dtypes)}"
    )
    if base.remark:
        console.print(f"without a dialogue format, so `huatuo ask` needs --format: {base.remark}", markup=False)
    return {"out": str(args.out), "seconds": time.time() - began, **base.facts}


def to_hf_arguments(parser: Parser) -> None:
    """Declares the arguments of `convert to-hf`."""
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


def to_hf(args: argparse.Namespace) -> Report:
    """Export a run or checkpoint as a Hugging Face folder: weights, config, tokenizer, chat template, card

    Layouts: llama writes a Baichuan with RoPE as LlamaForCausalLM, which opens anywhere (a NormHead is baked into
    lm_head.weight); native keeps the family's own layout and every number; a native Baichuan brings its own modelling file
    (trust_remote_code). auto is llama where that is possible for a Baichuan, native for all others.

    dtype auto is what the run computed in. The folder appears when it is whole.

    Example:
    huatuo convert to-hf runs/quickstart runs/quickstart/hf --license apache-2.0
    huatuo convert to-hf runs/huatuo2_13b/checkpoints/10000 exports/13b --layout native --dtype bfloat16
    """
    from huatuo_jax.weights.hf_write import ExportRequest, export

    console = make_console(args.quiet)
    # The flags are named as the request's fields.
    fields = (field.name for field in dataclasses.fields(ExportRequest))
    with make_progress(console, "MB") as progress:
        task = progress.add_task("weights", total=None)

        def advance(written: int, total: int) -> None:
            # Whole megabytes, as the bar shows counts and no units.
            progress.update(task, completed=written // 10**6, total=total // 10**6)

        report = export(args.model, args.folder, ExportRequest(**{name: getattr(args, name) for name in fields}), advance)
    console.print(
        f"{args.folder}: step {report['step']} as {report['layout']}, {report['dtype']}, {report['tensors']} tensors, "
        f"{report['bytes'] / 1e6:,.1f} MB in {report['shards']} file(s), {report['seconds']:.1f} s"
    )
    if report["layout"] == "baichuan":
        console.print("it opens with trust_remote_code=True; the modelling file is in the folder")
    return report


def byte_size(text: str) -> int:
    """ "5GB" → 5,000,000,000."""
    # Powers of ten, as Hugging Face's own tools count shard sizes.
    number = text.upper().rstrip("KMGB ")
    unit = text.upper()[len(number) :].strip()
    if not number.strip().isdecimal() or unit not in UNITS or int(number) == 0:
        raise argparse.ArgumentTypeError(f"{text}: give a size such as 5GB or 500MB")
    return int(number) * UNITS[unit]


def compare_arguments(parser: Parser) -> None:
    """Declares the arguments of `convert compare`."""
    parser.add_argument("model", metavar="MODEL", help=f"the reference: {MODEL_HELP}; or transformers:FOLDER")
    parser.add_argument("other", metavar="OTHER", help="the other, named in the same way")
    parser.add_argument("--text", metavar="FILE", help="UTF-8 text, one a line (default: built in)")
    add_dtype_argument(parser, "of the computation", "float32", ("float32", "bfloat16"))
    parser.add_argument("--trust-remote-code", action="store_true", help="let transformers run a folder's own modelling file")
    add_folder_arguments(parser)


def compare(args: argparse.Namespace) -> Report:
    """Compare two models: largest error, mean KL, top-1 agreement; fails above the gate

    Our code computes both; transformers:FOLDER computes a Hugging Face folder by transformers instead (needs the torch extra).
    Both read the same text: the built-in one (Chinese, English, code) or --text FILE, one text a line. The gate is a mean KL of
    1e-6 nats in float32 and 0.015 in bfloat16; above it the exit code is 1.

    Example:
    huatuo convert compare runs/quickstart runs/quickstart/hf                # the export against the checkpoint
    huatuo convert compare Baichuan2-7B-Base transformers:Baichuan2-7B-Llama --dtype bfloat16
    """
    from huatuo_jax.weights.compare import compare, read_texts

    texts = read_texts(args.text)  # before any model is opened
    result = compare(args.model, args.other, texts, args.dtype, args.trust_remote_code, **folder_options(args))
    console = make_console(args.quiet)
    console.print(
        f"{result.tokens} positions in {args.dtype}: largest logit error {result.max_error:.3g} ({result.relative_error:.3g} of "
        f"the largest logit), mean KL {result.mean_kl:.3g} (largest {result.max_kl:.3g}), "
        f"top-1 agreement {100 * result.top1_agreement:.2f} %"
    )
    verdict = "[green]passed[/]" if result.passed else "[bold red]failed[/]"
    console.print(f"{verdict}: the gate is a mean KL of {result.gate:g} nats in {args.dtype}")
    # `passed` false makes the exit code 1 (`console.py`), so that a script stops at a bad conversion.
    return {"a": args.model, "b": args.other, "dtype": args.dtype, **dataclasses.asdict(result), "passed": result.passed}
