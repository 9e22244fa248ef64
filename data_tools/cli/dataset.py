"""`huatuo-data import`, `tokenizer train`, `encode` and `build`: from files of records to a token dataset.

The first half of journey 1 in docs/architecture.md. What must hold: what is rejected is counted, listed and explained, and a
share above --max-rejected fails. Next to read: `data_tools/records` imports, `data_tools/tokens` trains tokenizers and builds,
`huatuo_jax/data/dialogue.py` encodes.
"""

import argparse
import dataclasses
import json
import os
from pathlib import Path

from rich import box
from rich.table import Table

from huatuo_jax.cli.arguments import Parser, add_format_argument, add_max_rejected, add_tokenizer_argument, local_path
from huatuo_jax.cli.console import Report, make_console, make_progress
from huatuo_jax.config import require
from huatuo_jax.errors import ConfigError


def import_records_arguments(parser: Parser) -> None:
    """Declares the arguments of `import`."""
    parser.add_argument("files", nargs="+", type=local_path, metavar="FILES", help="JSON or JSONL, plain or .gz .xz .zst")
    parser.add_argument("--out", required=True, type=local_path, metavar="DIR", help="folder of the new dataset")
    parser.add_argument("--source", metavar="NAME", help="source of all records; overrides their own")
    parser.add_argument(
        "--layout",
        default="auto",
        choices=["auto", "huatuo", "hub", "sharegpt", "openai", "alpaca", "turns", "text"],
        help="layout of the records (default: told apart by their keys)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a dataset that is in DIR, once the new one is whole")
    add_max_rejected(parser)


def import_records(args: argparse.Namespace) -> Report:
    """Import dialogues and passages of any known layout into one unified dataset.

    Reads HuatuoGPT-II's two JSON layouts, ShareGPT, OpenAI messages, Alpaca and JSONL with `turns` or `text`, plain or compressed
    (.gz, .xz, .zst). Lines that cannot be used are listed in OUT/rejected.jsonl with file, line and reason.
    A record's source is --source, else its own field `source`, else the file's name.

    Example:
    huatuo-data import sft.jsonl --source sft --out data/sft
    huatuo-data import HuatuoGPT2_Pretraining.json.gz books.jsonl.xz --out data/unified
    """
    from data_tools.records.importing import check_inputs, import_files

    check_inputs(args.files)
    console = make_console(args.quiet)
    # In bytes, because the number of records is known only at the end; of compressed files, compressed bytes.
    with make_progress(console, "bytes") as progress:
        task = progress.add_task("import", total=sum(path.stat().st_size for path in args.files))
        on_read = lambda count: progress.advance(task, count)
        report = import_files(
            args.files, args.out, args.source, args.layout, args.max_rejected, on_read=on_read, overwrite=args.overwrite
        )
    table = Table("source", "records", title=str(args.out))
    for source, records in report["sources"].items():
        table.add_row(source, f"{records:,}")
    console.print(table)
    console.print(f"records {report['records']:,}, rejected {report['rejected']:,}")
    if report["rejected"]:
        console.print(f"rejected lines are listed in {args.out}/rejected.jsonl")
    # Reported, not removed: what counts as a duplicate is decided by `collect`, and records are what the user gave.
    if report["duplicate_ids"]:
        console.print(f"warning: {report['duplicate_ids']:,} records share source and id with another record")
    if report["duplicate_texts"]:
        console.print(f"note: {report['duplicate_texts']:,} records repeat the text of another record")
    return report


def train_tokenizer_arguments(parser: Parser) -> None:
    """Declares the arguments of `tokenizer train`."""
    parser.add_argument("files", nargs="+", metavar="FILES", help="files or globs ('corpus/**/*.jsonl.xz')")
    parser.add_argument("--vocab-size", type=int, required=True, metavar="N", help="number of tokens, bytes and symbols included")
    parser.add_argument("--out", required=True, metavar="T.model", help="where the model goes")
    parser.add_argument("--model-type", choices=("bpe", "unigram"), default="bpe", help="(default: bpe, as in Baichuan2)")
    parser.add_argument("--at-most", action="store_true", help="take fewer tokens than N where the text has no more")
    parser.add_argument("--sentences", type=int, default=0, metavar="K", help="learn from a random sample of K lines (0 = all)")
    parser.add_argument(
        "--symbol", action="append", default=[], metavar="S", help="a further symbol, e.g. '<|im_start|>' (repeatable)"
    )


def train_tokenizer(args: argparse.Namespace) -> Report:
    """Train a SentencePiece tokenizer that keeps the dialogue format.

    Reads .txt (lines) and .jsonl (fields text, title, turns), plain or as .gz, .xz or .zst. The model has unk 0, bos 1, eos 2,
    bytes for rare characters, no normalisation, and the symbols "\\n", "<问>：" and "<答>：", which users' text cannot yield. It
    is written only after it has passed the check of the huatuo format. The same text gives the same file.

    Example:
    huatuo-data tokenizer train 'examples/quickstart/corpus/*.jsonl' examples/quickstart/sft.jsonl --vocab-size 4000 --out t.model
    """
    from data_tools.tokens.tokenizer_training import find_texts, read_sentences, train_tokenizer

    out = Path(args.out)
    require(out.suffix == ".model", f"--out is {args.out!r}; the name of a SentencePiece model ends in .model")
    sample = args.sentences == 0 or args.sentences > 100
    require(sample, f"--sentences is {args.sentences}; SentencePiece samples more than 100 lines (0 = all)")
    require(args.vocab_size >= 1, f"--vocab-size is {args.vocab_size}; it must be at least 1")
    paths = find_texts(args.files)  # before the console draws anything: a glob that matches nothing is refused
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
    return dataclasses.asdict(trained) | {"files": len(paths)}


def encode_arguments(parser: Parser) -> None:
    """Declares the arguments of `encode`."""
    add_tokenizer_argument(parser)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--turns", metavar="JSON", help="a JSON list of strings: question, answer, question, …")
    what.add_argument("--text", metavar="S", help="a passage for plain next-token training instead")
    add_format_argument(parser, "huatuo")
    parser.add_argument("--max-length", type=int, default=4096, metavar="N", help="tokens at which it is cut (default: 4096)")
    parser.add_argument("--system", default="", metavar="S", help="system prompt, where the format has one")


def encode(args: argparse.Namespace) -> Report:
    """Show the tokens and targets of one dialogue.

    Prints one JSON line {"tokens": […], "targets": […]} and nothing else; it is the command's result, so --quiet keeps it.
    Targets are not shifted; -100 = not learned. An odd last question and no turns at all are encoded too, although a dataset
    would refuse them.

    Example:
    huatuo-data encode --tokenizer tokenizer.model --turns '["头疼怎么办？", "多休息。"]'
    """
    from huatuo_jax.data.dialogue import Record, encode_record
    from huatuo_jax.data.formats import get_format
    from huatuo_jax.data.tokenizers import load_tokenizer

    dialogue_format = get_format(args.format)
    turns = _parse_turns(args.turns) if args.turns is not None else ()
    require(args.text != "", "--text is empty; give a passage")
    require(not (args.text and args.system), "--system belongs to a dialogue (--turns), not to a passage (--text)")
    require(args.max_length >= 1, f"--max-length is {args.max_length}; it must be at least 1")
    # Loading takes a second: after everything that can be refused without it.
    tokenizer = load_tokenizer(args.tokenizer)
    # A passage has no prefixes, so any tokenizer will do for it.
    if args.turns is not None:
        dialogue_format.check(tokenizer)
    record = Record(id="", source="", turns=turns, system=args.system, text=args.text or "")
    encoded = encode_record(record, tokenizer, dialogue_format, args.max_length)
    # Bare JSON and no console: other programs read it.
    out = {"tokens": encoded.tokens.tolist(), "targets": encoded.targets.tolist()}
    print(json.dumps(out))
    return out


def _parse_turns(text: str) -> tuple[str, ...]:
    example = 'e.g. \'["question", "answer"]\''
    try:
        turns = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"--turns is not JSON ({error}); give a list of strings, {example}") from error
    strings = isinstance(turns, list) and all(isinstance(turn, str) for turn in turns)
    require(strings, f"--turns is not a list of strings; give {example}")
    return tuple(turns)


def build_arguments(parser: Parser) -> None:
    """Declares the arguments of `build`."""
    # The cores that this process may use: a container sees all of its machine's in os.cpu_count.
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser.add_argument("unified", nargs="+", type=local_path, metavar="UNIFIED", help="unified dataset(s), from `import`")
    add_tokenizer_argument(parser)
    parser.add_argument("--out", required=True, type=local_path, metavar="TOKENS", help="folder of the token dataset")
    add_format_argument(parser, "huatuo")
    parser.add_argument(
        "--holdout", type=int, default=0, metavar="N", help="hold N records of every source out for evaluation (default 0)"
    )
    parser.add_argument("--workers", type=int, default=available, metavar="K", help=f"processes (default {available})")
    parser.add_argument(
        "--max-length", type=int, default=1_000_000, metavar="N", help="tokens at which records are cut (default: 1,000,000)"
    )


def build(args: argparse.Namespace) -> Report:
    """Tokenise unified datasets into a token dataset.

    Records are stored uncut, so that plans of any sequence length share one token dataset. An interrupted build continues with
    the same command; a finished one has nothing to do. Records that the dialogue format cannot express are listed in
    TOKENS/rejected.jsonl.

    Example:
    huatuo-data build data/unified --tokenizer baichuan2.model --out data/tokens --holdout 64 --workers 8
    """
    from data_tools.tokens.build import BuildRequest, build

    console = make_console(args.quiet)
    request = BuildRequest(
        tuple(args.unified), args.tokenizer, args.out, args.format, args.holdout, args.max_length, args.workers
    )
    # Not as a context manager, which would start it here; see `begin`.
    progress = make_progress(console, "records")
    task = progress.add_task("tokenise", total=None)

    def begin(total: int) -> None:
        progress.update(task, total=total)
        progress.start()  # Only now: before, its thread would keep the workers from being forked.

    try:
        report = build(request, on_start=begin, on_done=lambda done: progress.update(task, completed=done))
    finally:
        progress.stop()
    if report["nothing_to_do"]:
        console.print(f"nothing to do: {args.out} is finished with these settings")
    # By source, because a source that loses its records is not seen in the sum.
    rows = {
        source: [
            *(entry["train"][key] for key in ("records", "tokens", "target_tokens")),
            entry["holdout"]["records"],
            entry["rejected"],
        ]
        for source, entry in report["sources"].items()
    }
    table = Table(title=str(args.out), box=box.SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("source", no_wrap=True, min_width=max(map(len, rows)))
    for column in ("records", "tokens", "targets", "held out", "rejected"):
        table.add_column(column, justify="right", no_wrap=True)
    for source, row in rows.items():
        table.add_row(source, *(f"{value:,}" for value in row))
    table.add_section()
    table.add_row("all", *(f"{sum(column):,}" for column in zip(*rows.values(), strict=True)))
    console.print(table)
    if short := [source for source, row in rows.items() if row[3] < args.holdout]:
        console.print(f"note: fewer than {args.holdout} records held out of {', '.join(short)} (duplicates or rejected records)")
    if cut := sum(entry["cut"] for entry in report["sources"].values()):
        console.print(f"note: {cut:,} records are longer than {args.max_length:,} tokens and were cut")
    if any(row[4] for row in rows.values()):
        console.print(f"rejected records are listed in {args.out}/rejected.jsonl")
    if report["new_records"]:
        console.print(f"{report['new_records']:,} records in {report['seconds']:.1f} s")
    return report
