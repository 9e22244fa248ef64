"""`huatuo logits`: token ids in, logits out, for checks by other programs."""

import argparse

from huatuo_jax.cli.arguments import local_path

HELP = """Write the logits of given token ids, for checks by other programs

FILE.json holds a list of lists of token ids, each a row of its own. FILE.npy gets the fp32 logits of all rows, concatenated:
[total tokens, vocabulary]; np.load(FILE.npy, mmap_mode="r") reads it. Logits that are NaN or infinite are
refused with row and position, and nothing is written."""
EXAMPLE = """
echo '[[5, 60, 93, 1200], [1, 2]]' > ids.json
huatuo logits runs/quickstart --token-ids ids.json --out logits.npy
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    from huatuo_jax.cli.arguments import MODEL_HELP, add_dtype_argument, add_folder_arguments

    parser.add_argument("model", metavar="MODEL", type=local_path, help=MODEL_HELP)
    parser.add_argument("--token-ids", metavar="FILE.json", required=True, type=local_path, help="a list of lists of token ids")
    parser.add_argument("--out", metavar="FILE.npy", required=True, type=local_path, help="file to write")
    add_dtype_argument(parser, "of the computation", "float32", ("float32", "bfloat16"))
    add_folder_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    import json

    import jax.numpy as jnp
    import numpy as np

    from huatuo_jax.cli.arguments import answers
    from huatuo_jax.cli.console import make_console, make_progress, write_report
    from huatuo_jax.errors import DataError
    from huatuo_jax.io.files import read_json, written_aside
    from huatuo_jax.weights.forward import check_rows, load_any, row_logits

    try:
        rows = read_json(args.token_ids)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{args.token_ids} is not JSON ({error}); write a list of lists of token ids") from error
    if not isinstance(rows, list):
        raise DataError(f"{args.token_ids} holds {type(rows).__name__}; write a list of lists of token ids")
    config, params = load_any(args.model, dtype=jnp.dtype(args.dtype), **answers(args))
    check_rows(config, rows)
    console = make_console(args.quiet)
    shape = (sum(map(len, rows)), config.vocab_size)
    with written_aside(args.out) as aside, make_progress(console, "rows") as progress:
        out = np.lib.format.open_memmap(aside, mode="w+", dtype=np.float32, shape=shape)
        start = 0
        for logits in progress.track(
            row_logits(config, params, rows, jnp.dtype(args.dtype)), total=len(rows), description="logits"
        ):
            out[start : start + len(logits)] = logits
            start += len(logits)
        out.flush()
    console.print(f"{args.out}: fp32 logits {list(shape)} of {config.name}")
    write_report(args.json, {"model": str(args.model), "rows": len(rows), "tokens": shape[0], "vocabulary": shape[1]})
    return 0
