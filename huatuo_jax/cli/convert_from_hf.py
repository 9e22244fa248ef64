"""`huatuo convert from-hf`: a Hugging Face folder becomes a base to train from, ask or export."""

import argparse

from huatuo_jax.cli.arguments import local_path

HELP = """Import a Hugging Face model: Baichuan, Llama, Yi, Qwen2, Qwen3

Reads config.json, the weights (safetensors; or pytorch_model.bin with the torch extra) and the tokenizer of FOLDER and writes
BASE, which `huatuo train --init BASE`, `huatuo ask BASE "…"` and the exports read like a run. Weights go to the devices tensor
by tensor. Whatever could change the model and is not understood is refused by name."""
EXAMPLE = """
huatuo convert from-hf Baichuan2-7B-Base bases/baichuan2-7b
huatuo train huatuo2_7b --run runs/7b --init bases/baichuan2-7b
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    from huatuo_jax.cli.arguments import (
        add_config_fields,
        add_dtype_argument,
        add_folder_arguments,
        add_format_argument,
        add_tokenizer_argument,
    )
    from huatuo_jax.config import MeshConfig

    parser.add_argument("folder", metavar="FOLDER", type=local_path, help="Hugging Face folder of a model")
    parser.add_argument("out", metavar="BASE", type=local_path, help="base directory to write; must not exist")
    add_dtype_argument(parser, "of the stored weights; auto = bfloat16 where the folder has it, else float32: no number changes")
    add_tokenizer_argument(parser, "the one in FOLDER")
    add_format_argument(parser, None, "what FOLDER says, else huatuo")
    parser.add_argument("--name", default="", help="of the model (default: name of FOLDER)")
    add_folder_arguments(parser)
    add_config_fields(parser, MeshConfig(), "mesh.")


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    import time

    from huatuo_jax.cli.arguments import answers, with_config_fields
    from huatuo_jax.cli.console import make_console, make_progress, write_report
    from huatuo_jax.config import MeshConfig
    from huatuo_jax.sharding import make_mesh
    from huatuo_jax.weights.base import import_folder

    began = time.time()
    console = make_console(args.quiet)
    mesh = make_mesh(with_config_fields(MeshConfig(), args, "mesh."))
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
            **answers(args),
        )
    config = base.config
    console.print(
        f"{args.out}: {config.name}, {config.family} with {config.positions} and a {config.head} head, "
        f"{base.size / 1e9:.2f} GB in {' and '.join(base.dtypes)}"
    )
    if base.remark:
        console.print(f"without a dialogue format, so `huatuo ask` will refuse it: {base.remark}", markup=False)
    write_report(args.json, {"out": str(args.out), "seconds": time.time() - began, **base.facts})
    return 0
