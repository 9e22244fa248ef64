"""`huatuo-data tokenizer train`: text files in, a SentencePiece model out that carries the dialogue format."""

import argparse
import dataclasses
from pathlib import Path

from huatuo_jax.cli.console import make_console, make_progress, write_report
from huatuo_jax.errors import ConfigError

HELP = """Train a SentencePiece tokenizer that keeps the dialogue format.

Reads .txt (lines) and .jsonl (fields text, title, turns), plain or as .gz, .xz or .zst. The model has unk 0, bos 1, eos 2, bytes
for rare characters, no normalisation, and the symbols "\\n", "<问>：" and "<答>：", which users' text cannot yield. It is written
only after it has passed the check of the huatuo format. The same text gives the same file."""

EXAMPLE = """
huatuo-data tokenizer train 'examples/quickstart/corpus/*.jsonl' examples/quickstart/sft.jsonl --vocab-size 4000 --out t.model
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument("files", nargs="+", metavar="FILES", help="files or globs ('corpus/**/*.jsonl.xz')")
    parser.add_argument("--vocab-size", type=int, required=True, metavar="N", help="number of tokens, bytes and symbols included")
    parser.add_argument("--out", required=True, metavar="T.model", help="where the model goes")
    parser.add_argument("--model-type", choices=("bpe", "unigram"), default="bpe", help="(default: bpe, as in Baichuan2)")
    parser.add_argument("--at-most", action="store_true", help="take fewer tokens than N where the text has no more")
    parser.add_argument("--sentences", type=int, default=0, metavar="K", help="learn from a random sample of K lines (0 = all)")
    parser.add_argument(
        "--symbol", action="append", default=[], metavar="S", help="a further symbol, e.g. '<|im_start|>' (repeatable)"
    )


def run(args: argparse.Namespace) -> int:
    """Trains, verifies and writes the model; prints its size and characters per token."""
    from data_tools.tokens.tokenizer_training import find_texts, read_sentences, train_tokenizer

    out = Path(args.out)
    if out.suffix != ".model":
        raise ConfigError(f"--out is {args.out!r}; the name of a SentencePiece model ends in .model")
    if args.sentences != 0 and args.sentences <= 100:
        raise ConfigError(f"--sentences is {args.sentences}; SentencePiece samples more than 100 lines (0 = all)")
    if args.vocab_size < 1:
        raise ConfigError(f"--vocab-size is {args.vocab_size}; it must be at least 1")
    paths = find_texts(args.files)
    console = make_console(args.quiet)
    with make_progress(console, "bytes") as progress:
        task = progress.add_task("reading", total=sum(path.stat().st_size for path in paths))
        trained = train_tokenizer(
            read_sentences(paths, lambda count: progress.advance(task, count)),
            args.vocab_size,
            out,
            model_type=args.model_type,
            at_most=args.at_most,
            limit=args.sentences,
            symbols=args.symbol,
        )
    console.print(
        f"{trained.path}: {trained.vocab_size} tokens from {trained.characters:,} characters in {len(paths)} files, "
        f"{trained.characters_per_token:.2f} characters a token; the huatuo format works with it"
    )
    write_report(args.json, dataclasses.asdict(trained) | {"files": len(paths)})
    return 0
