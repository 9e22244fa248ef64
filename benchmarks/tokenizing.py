"""Tokens a second of `huatuo-data build`, beside bare SentencePiece on as many threads: one pair after the other, same texts.

    python -m benchmarks.tokenizing [--files F.jsonl] [--tokenizer T.model] [--workers 2] [--pairs 7] [--repeat 10]

"bare" encodes a list of all turns with their prefixes in one call, after loading. "build" starts from the imported dataset and
ends with the finished folder: loading and checking the tokenizer, worker processes, reading, targets, writing; only importing the
libraries is not in it. --repeat measures once more with every record so many times over, where starting hardly counts. What must
hold: both sides encode the same texts on as many threads as the other has processes. Next to read: `data_tools/tokens/build.py`.
"""

import argparse
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import sentencepiece
from rich.console import Console
from rich.table import Table

from benchmarks.corpora import REAL
from data_tools.records.importing import import_files
from data_tools.records.unified import UnifiedDataset, UnifiedWriter
from data_tools.tokens.build import BuildRequest, build
from huatuo_jax.data.formats import get_format


def prepare(files: list[Path], times: int, out: Path) -> list[str]:
    """Imports the files into a dataset that has every record `times` over; returns its turns, each behind its prefix."""
    once = out.with_name("imported")
    import_files(files, once)
    records = list(UnifiedDataset(once)) * times
    with UnifiedWriter(out) as writer:
        for record in records:
            writer.write(record)
        writer.finish()
    dialogue_format = get_format("huatuo")
    return [piece.prefix + piece.text for record in records for piece in dialogue_format.render(record.turns, record.system)]


def measure(texts: list[str], unified: Path, tokenizer: Path, workers: int, pairs: int) -> dict[str, Any]:
    """Tokens of the texts, seconds of each bare run and of each build."""
    bare = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer))
    out: dict[str, Any] = {"bare": [], "build": []}
    for number in range(pairs):
        folder = unified.with_name(f"tokens-{number}")
        started = time.perf_counter()
        build(BuildRequest((unified,), tokenizer, folder, workers=workers))
        out["build"].append(time.perf_counter() - started)
        shutil.rmtree(folder)  # outside the clock; a finished folder would leave the next build nothing to do
        started = time.perf_counter()
        # One call with all texts: the best that the library can do, and so the fairest measure of what we add.
        ids = bare.encode(texts, num_threads=workers)
        out["bare"].append(time.perf_counter() - started)
        out["tokens"] = sum(map(len, ids))
        del ids
    return out


def in_new_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls the function in a process without threads, as the one of `huatuo-data` is: only there does the build fork."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def main() -> None:
    """Prints medians, their ratio, and the range of the single pairs' ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=Path, nargs="+", default=[REAL / "sft" / "sft_zh.jsonl.xz"])
    parser.add_argument("--tokenizer", type=Path, default=REAL / "tokenizers" / "baichuan2.model")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--repeat", type=int, default=10, help="1: only the records as they are")
    args = parser.parse_args()
    if missing := [str(path) for path in (*args.files, args.tokenizer) if not path.exists()]:
        parser.exit(2, f"{', '.join(missing)} not there; give --files (dialogues) and --tokenizer (a SentencePiece .model)\n")
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    table = Table("times", "tokens", "bare tokens/s", "build tokens/s", "ratio", "of pairs", title=f"{args.workers} workers")
    # As they are, where starting the workers counts, and so many times over, where it hardly does.
    for times in sorted({1, args.repeat}):
        with tempfile.TemporaryDirectory() as folder:
            unified = Path(folder) / "unified"
            texts = in_new_process(prepare, args.files, times, unified)
            r = in_new_process(measure, texts, unified, args.tokenizer, args.workers, args.pairs)
        ratios = [bare / ours for bare, ours in zip(r["bare"], r["build"], strict=True)]
        speeds = [f"{r['tokens'] / statistics.median(r[program]):,.0f}" for program in ("bare", "build")]
        spread = f"{min(ratios):.2f} … {max(ratios):.2f}"
        table.add_row(f"{times}", f"{r['tokens']:,}", *speeds, f"{statistics.median(ratios):.2f}", spread)
    Console().print(table)


if __name__ == "__main__":
    main()
