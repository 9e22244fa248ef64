"""`huatuo-data inspect`: a plan and a row number in, the row as readable text out: what is read, what is learned, from where."""

import argparse
from typing import TYPE_CHECKING, Any

from huatuo_jax.cli.arguments import add_tokenizer_argument

if TYPE_CHECKING:
    import numpy as np
    from rich.text import Text

    from huatuo_jax.data.rows import RowArrays
    from huatuo_jax.data.tokenizers import Tokenizer

HELP = """Show one row of a plan as text: its examples, their sources, and which tokens are targets.

Without colour, targets stand between « and ». ⟨EOS⟩ is the end token; ⟨→EOS⟩ stands before a token in whose place the model
shall say EOS instead (the token that opens the next question of a dialogue)."""
EXAMPLE = """
huatuo-data inspect data/plan --row 0
"""

COLORS = ("cyan", "green", "yellow", "magenta", "blue", "red")


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

    from huatuo_jax.cli.console import make_console, write_report
    from huatuo_jax.config import require
    from huatuo_jax.data.plan import Plan
    from huatuo_jax.data.rows import PlannedRows
    from huatuo_jax.data.token_store import TokenDataset

    plan = Plan.load(args.plan)
    require(
        bool(args.tokens or plan.manifest.get("tokens")), f"{args.plan} does not say where its token dataset is; give --tokens"
    )
    dataset = TokenDataset.open(args.tokens or epath.Path(args.plan) / plan.manifest["tokens"])
    rows = PlannedRows(plan, dataset)
    require(0 <= args.row < len(rows), f"--row is {args.row}; the plan has rows 0 to {len(rows) - 1}")
    tokenizer = _tokenizer(args.tokenizer or str(dataset.tokenizer_path), dataset.manifest["tokenizer"])
    row, segments = rows[args.row], segments_of(rows, args.row)
    console = make_console(args.quiet)
    if args.no_color:
        console = Console(quiet=args.quiet, highlight=False, soft_wrap=True, no_color=True, color_system=None)
    colored = console.color_system is not None
    filled = sum(segment["tokens"] for segment in segments)
    console.print(
        f"row {args.row} of {len(rows):,}: {len(segments)} examples, {filled:,} of {rows.sequence_length:,} tokens "
        f"(fill {filled / rows.sequence_length:.3f}), {int((row['targets'] != -100).sum()):,} targets, {rows.packing} packing"
    )
    start = 0
    for number, segment in enumerate(segments, start=1):
        stop = start + segment["tokens"]
        cut = f", cut from {segment['uncut']:,}" if segment["uncut"] > segment["tokens"] else ""
        segment["targets"] = int((row["targets"][max(start - 1, 0) : stop - 1] != -100).sum())
        console.rule(
            f"{number} · {escape(segment['source'])} · record {segment['record']:,} · {segment['tokens']:,} tokens{cut}, "
            f"{segment['targets']:,} targets",
            align="left",
        )
        console.print(render(row, start, stop, tokenizer, COLORS[(number - 1) % len(COLORS)] if colored else ""))
        start = stop
    write_report(args.json, {"row": args.row, "fill": filled / rows.sequence_length, "segments": segments})
    return 0


def segments_of(rows: Any, index: int) -> list[dict[str, Any]]:
    """Source, record number, tokens in the row and tokens uncut of each example of a row, in order."""
    import numpy as np

    dataset, out = rows.dataset, []
    offsets = dataset.offsets("train")
    for doc in rows.plan.docs(index).tolist():
        source_id = int(np.searchsorted(offsets, doc, side="right")) - 1
        source, record = dataset.sources[source_id], doc - int(offsets[source_id])
        uncut = int(dataset.lengths(source)[record])
        out.append({"source": source, "record": record, "tokens": min(uncut, rows.sequence_length), "uncut": uncut})
    return out


def render(row: "RowArrays", start: int, stop: int, tokenizer: "Tokenizer", color: str) -> "Text":
    """The text of row[start:stop]; targets in `color`, or between « and » if it is ""."""
    from rich.text import Text

    text = Text()
    tokens, asked = row["tokens"], _asked(row)
    for a, b, kind in _runs(tokens[start:stop], asked[start:stop], tokenizer.eos_id):
        piece = _decoded(tokens, start, start + a, start + b, tokenizer)
        if kind == "replaced":
            instead = int(asked[start + a])
            name = "EOS" if instead == tokenizer.eos_id else tokenizer.id_to_piece(instead)
            text.append(f"⟨→{name}⟩", style=f"bold reverse {color}" if color else "")
            text.append(piece, style="dim" if color else "")
        elif kind == "target":
            text.append(piece if color else f"«{piece}»", style=f"bold {color}" if color else "")
        else:
            text.append(piece, style="dim" if color else "")
    return text


def _asked(row: "RowArrays") -> "np.ndarray":
    """What the model shall say in place of each token: the targets unshifted again; -100 where nothing is learned."""
    import numpy as np

    return np.concatenate([[-100], row["targets"][:-1]])


def _runs(tokens: "np.ndarray", asked: "np.ndarray", eos: int) -> list[tuple[int, int, str]]:
    """Stretches (start, stop, kind) of tokens of one kind: "read", "target", or "replaced" (another token is asked for)."""
    runs: list[tuple[int, int, str]] = []
    for i, (token, target) in enumerate(zip(tokens.tolist(), asked.tolist(), strict=True)):
        kind = "read" if target == -100 else "target" if target == token else "replaced"
        if runs and runs[-1][2] == kind and kind != "replaced":
            runs[-1] = (runs[-1][0], i + 1, kind)
        else:
            runs.append((i, i + 1, kind))
    return runs


def _decoded(tokens: "np.ndarray", start: int, a: int, b: int, tokenizer: "Tokenizer") -> str:
    """Text of tokens[a:b] as it reads within the example that begins at `start`; end tokens are written out.

    Decoding the stretch alone would lose its leading space.
    """
    out, first = "", a
    for i in range(a, b + 1):
        if i == b or tokens[i] == tokenizer.eos_id:
            before, whole = tokenizer.decode(tokens[start:first].tolist()), tokenizer.decode(tokens[start:i].tolist())
            out += whole[len(before) :] if whole.startswith(before) else tokenizer.decode(tokens[first:i].tolist())
            out += "⟨EOS⟩" if i < b else ""
            first = i + 1
    return out


def _tokenizer(path: str, named: dict[str, Any]) -> "Tokenizer":
    from huatuo_jax.config import require
    from huatuo_jax.data.tokenizers import load_tokenizer

    tokenizer = load_tokenizer(path)
    require(
        tokenizer.fingerprint == named["fingerprint"],
        f"{tokenizer.path} is not the tokenizer that made the tokens (SHA-256 {named['fingerprint'][:12]}…); "
        "name a copy of that file by --tokenizer",
    )
    return tokenizer
