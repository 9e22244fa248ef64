"""Tokens a second of `huatuo-data build`, beside bare SentencePiece on as many threads: one pair after the other, same texts.

    python -m benchmarks.tokenizing [--files F.jsonl] [--tokenizer T.model] [--workers 2] [--pairs 7] [--repeat 10]

"bare" encodes a list of all turns with their prefixes in one call, after loading. "build" starts from the imported dataset and
ends with the finished folder: loading and checking the tokenizer, worker processes, reading, targets, writing. --repeat measures
once more with every record so many times over, where the time to start no longer counts.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import sentencepiece
from rich.console import Console
from rich.table import Table

from benchmarks.corpora import REAL
from data_tools.build import BuildRequest, build
from data_tools.importing import import_files
from data_tools.unified import UnifiedDataset, UnifiedWriter
from huatuo_jax.data.templates import get_template


def measure(unified: Path, tokenizer: Path, workers: int, pairs: int, scratch: Path) -> tuple[int, list[float], list[float]]:
    """Tokens, seconds of each bare run and seconds of each build."""
    bare = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer))
    template = get_template("huatuo")
    pieces = [piece for record in UnifiedDataset(unified) for piece in template.render(record.turns, record.system)]
    texts = [piece.prefix + piece.text for piece in pieces]
    tokens, bare_seconds, build_seconds = 0, [], []
    for _ in range(pairs):
        with tempfile.TemporaryDirectory(dir=scratch) as out:
            started = time.perf_counter()
            build(BuildRequest((unified,), tokenizer, Path(out), workers=workers))
            build_seconds.append(time.perf_counter() - started)
        started = time.perf_counter()
        ids = bare.encode(texts, num_threads=workers)
        bare_seconds.append(time.perf_counter() - started)
        tokens = tokens or sum(map(len, ids))
        del ids
    return tokens, bare_seconds, build_seconds


def repeated(unified: Path, times: int, out: Path) -> Path:
    """The dataset's records `times` over, as a dataset of its own."""
    records = list(UnifiedDataset(unified))
    with UnifiedWriter(out) as writer:
        for _ in range(times):
            for record in records:
                writer.write(record)
        writer.finish()
    return out


def main() -> None:
    """Prints medians, their ratio, and the ratios of the single pairs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=Path, nargs="+", default=[REAL / "sft" / "sft_zh.jsonl.xz"])
    parser.add_argument("--tokenizer", type=Path, default=REAL / "tokenizers" / "baichuan2.model")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--repeat", type=int, default=10, help="1: only the records as they are")
    args = parser.parse_args()
    if missing := [str(path) for path in (*args.files, args.tokenizer) if not path.exists()]:
        parser.exit(2, f"{', '.join(missing)} not there; give --files (dialogues) and --tokenizer (a SentencePiece .model)\n")
    table = Table(
        "records", "tokens", "bare tokens/s", "build tokens/s", "ratio", "pairs' ratios", title=f"{args.workers} workers"
    )
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        unified = scratch / "once"
        import_files(args.files, unified)
        datasets = [unified] if args.repeat == 1 else [unified, repeated(unified, args.repeat, scratch / "repeated")]
        for dataset in datasets:
            tokens, bare, ours = measure(dataset, args.tokenizer, args.workers, args.pairs, scratch)
            ratios = [b / o for b, o in zip(bare, ours, strict=True)]
            speeds = [f"{tokens / statistics.median(seconds):,.0f}" for seconds in (bare, ours)]
            spread = f"{min(ratios):.2f} … {max(ratios):.2f}"
            count = f"{len(UnifiedDataset(dataset)):,}"
            table.add_row(count, f"{tokens:,}", *speeds, f"{statistics.median(ratios):.2f}", spread)
    Console().print(table)


if __name__ == "__main__":
    main()
