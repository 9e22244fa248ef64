"""MB/s per core of each step of `huatuo-data collect`; its MinHash step beside datasketch's plain loop; two workers beside one.

    python -m benchmarks.collect                              # all three
    python -m benchmarks.collect --only steps --json rates.json
    python -m benchmarks.collect --only minhash
    python -m benchmarks.collect --only workers               # 2 workers against 1, and the ratio; needs an idle machine

Steps are measured one after the other on the same texts in one process, in CPU seconds, so that other work on the machine blurs
them less; MB are of UTF-8 text before the step. `workers` runs the whole command with one worker and with two, by the clock. What
must hold: each step works on exactly what `collect` gives it. Next to read: `benchmarks.scale --rates rates.json`, which works
out core-hours from the steps.
"""

import argparse
import itertools
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.corpora import REAL, REPOSITORY
from data_tools.cli import main as huatuo_data
from data_tools.collect.clean import CleanRules, dropping_rule, remove_control_characters
from data_tools.collect.decontaminate import ExamIndex, with_questions
from data_tools.collect.domain import DEFAULT_THRESHOLDS, DomainModel, load_classical, load_vocabularies
from data_tools.collect.duplicates import band_keys, candidate_pairs, content_digests, signatures
from data_tools.collect.exams import read_exams
from data_tools.collect.masks import mask_personal_data
from data_tools.collect.ngrams import shingles
from data_tools.collect.passages import passages_of, segment
from data_tools.collect.reading import Document, InputFile, list_shards, read_documents
from data_tools.collect.report import Statistics
from data_tools.collect.settings import CollectConfig, NearDuplicates, ReadingConfig
from data_tools.records.language import language_of
from huatuo_jax.io.files import write_json
from huatuo_jax.io.jsonl import write_lines

BATCH = 512


def take(file: InputFile, megabytes: float) -> list[Document]:
    """Documents of a file until they have so many megabytes of text."""
    taken, size = [], 0
    for document in read_documents(file, ReadingConfig()):
        if isinstance(document, Document):
            taken.append(document)
            size += len(document.text.encode())
        if size >= megabytes * 1e6:
            break
    return taken


def batches(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Batches as the stage makes them."""
    for start in range(0, len(texts), BATCH):
        yield texts[start : start + BATCH]


def cpu_seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of a call, and its result."""
    # Not the clock: on a shared machine it measures the neighbours too.
    began = time.process_time()
    result = work()
    return time.process_time() - began, result


def measure_steps(documents: Sequence[Document], model: DomainModel, index: ExamIndex | None) -> dict[str, float]:
    """MB/s of each step, and of the three together as `collect` runs them."""
    config, near = CollectConfig(), NearDuplicates()
    seconds, _ = cpu_seconds(lambda: _read_as_lines(documents))
    texts = [document.text for document in documents]
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    languages = [language_of(text) for text in texts]
    # Automata of terms are built at the first text; that happens once a run, so it belongs to no step's rate.
    model.score("warm up", "en")
    pieces = list(itertools.chain.from_iterable(cut(t, lang, config) for t, lang in zip(texts, languages, strict=True)))
    of_pieces = [language_of(piece) for piece in pieces]
    steps: dict[str, Callable[[], Any]] = {
        "language": lambda: [language_of(text) for text in texts],
        "extract": lambda: [model.keeps(text, lang) for text, lang in zip(texts, languages, strict=True)],
        "segment": lambda: [segment(t, config.windows[lang], lang) for t, lang in zip(texts, languages, strict=True)],
        "clean": lambda: [
            dropping_rule(remove_control_characters(p), lang, CleanRules()) for p, lang in zip(pieces, of_pieces, strict=True)
        ],
        "mask": lambda: [mask_personal_data(piece) for piece in pieces],
        "extract + segment + clean": lambda: [list(passages_of(d, config, model, Statistics())) for d in documents],
        "exact: digests": lambda: [content_digests(batch) for batch in batches(pieces)],
        "near: shingles": lambda: [shingles(batch) for batch in batches(pieces)],
        "near: MinHash": lambda: [band_keys(signatures(shingles(batch), near), near) for batch in batches(pieces)],
    }
    if index is not None:
        rows = [
            {"id": f"{number}-{i}", "text": piece}
            for number, (text, lang) in enumerate(zip(texts, languages, strict=True))
            for i, piece in enumerate(cut(text, lang, config))
        ]
        steps["decontaminate"] = lambda: list(with_questions(iter(rows), index))
    # All rates are over the raw megabytes, so that they add up to the rate of the stage.
    rates = {"read .jsonl.zst": megabytes / max(seconds, 1e-9)}
    return rates | {name: megabytes / max(cpu_seconds(work)[0], 1e-9) for name, work in steps.items()}


def _read_as_lines(documents: Sequence[Document]) -> None:
    """Reads the documents from a file as `collect` does."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "raw.jsonl.zst"
        with write_lines(path, compact=True) as file:
            for document in documents:
                file.write({"text": document.text, "source": document.source})
        take(list_shards([path]).shards[0].files[0], float("inf"))


def cut(text: str, language: str, config: CollectConfig) -> Iterator[str]:
    """The passages of a text."""
    for start, end in segment(text, config.windows[language], language):
        yield text[start:end]


def measure_minhash(texts: Sequence[str]) -> tuple[float, float]:
    """CPU seconds to find candidate pairs: ours from text, and datasketch's loop over sets of the same 3-grams, LSH included."""
    from datasketch import MinHash, MinHashLSH

    near = NearDuplicates()

    def ours() -> None:
        keys = [band_keys(signatures(shingles(batch), near), near) for batch in batches(texts)]
        for band in range(near.bands):
            candidate_pairs(_column(keys, band), near.bucket)

    # As datasketch's own examples do it: one set of n-grams, one sketch and one query a text.
    def plain() -> None:
        lsh = MinHashLSH(num_perm=near.bands * near.rows, params=(near.bands, near.rows))
        for number, text in enumerate(texts):
            units = text.lower().split() if language_of(text) == "en" else text
            minhash = MinHash(num_perm=near.bands * near.rows)
            for gram in {
                units[i : i + 3] if isinstance(units, str) else " ".join(units[i : i + 3]) for i in range(len(units) - 2)
            }:
                minhash.update(gram.encode())
            lsh.query(minhash)
            lsh.insert(number, minhash)

    return cpu_seconds(ours)[0], cpu_seconds(plain)[0]


def _column(keys: Sequence[Any], band: int) -> Any:
    import numpy as np

    return np.concatenate([of_batch[:, band] for of_batch in keys])


def measure_workers(files: Sequence[Path]) -> dict[int, float]:
    """Seconds of the first stage with one worker and with two, after a run that fills the file cache."""
    seconds = {}
    with tempfile.TemporaryDirectory() as folder:
        # Twice with two: the first run fills the file cache and is overwritten by the third.
        for workers in (2, 1, 2):
            out, report = Path(folder) / f"out{workers}", Path(folder) / "report.json"
            words = ["collect", *files, "--domain", "medicine", "--workers", workers, "--out", out, "--json", report, "--quiet"]
            if out.exists():
                words[words.index(out)] = Path(folder) / "again"
            if huatuo_data([*map(str, words)]):
                raise RuntimeError("collect failed")
            seconds[workers] = json.loads(report.read_text())["seconds"]["passages"]
    return seconds


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    real = sorted((REAL / "corpus").glob("*.jsonl.xz"))
    parser.add_argument("--corpus", type=Path, nargs="+", default=real or [REPOSITORY / "examples" / "quickstart" / "corpus"])
    parser.add_argument("--megabytes", type=float, default=4.0, help="of text taken from each file")
    parser.add_argument("--only", choices=["steps", "minhash", "workers"], help="one of the three measurements")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the steps' rates, for benchmarks.scale")
    args = parser.parse_args()
    console = Console()
    if args.only != "workers":
        measure_texts(args, console)
    if args.only in (None, "workers"):
        seconds = measure_workers(args.corpus)
        console.print(
            f"passages stage: 1 worker {seconds[1]:.1f} s, 2 workers {seconds[2]:.1f} s, {seconds[1] / seconds[2]:.2f}×"
        )


def measure_texts(args: argparse.Namespace, console: Console) -> None:
    """Prints the tables of steps and of MinHash."""
    model = DomainModel(load_vocabularies("medicine", []), DEFAULT_THRESHOLDS, load_classical("medicine"))
    exams = sorted((REAL / "exams").glob("*.jsonl.xz"))
    index = ExamIndex(read_exams(exams)) if exams else None
    by_language: dict[str, list[Document]] = {"zh": [], "en": []}
    for shard in list_shards(args.corpus).shards:
        for file in shard.files:
            documents = take(file, args.megabytes)
            by_language[language_of(documents[0].text)] += documents
    if args.only != "minhash":
        steps = {language: measure_steps(documents, model, index) for language, documents in by_language.items() if documents}
        table = Table("step", *(f"{language}, MB/s" for language in steps), title="one core")
        for name in next(iter(steps.values())):
            table.add_row(name, *(f"{rates[name]:,.1f}" for rates in steps.values()))
        console.print(table)
        if args.json:
            write_json(args.json, steps)
    if args.only == "steps":
        return
    ratios = Table("language", "texts", "ours, s", "datasketch, s", "ratio", title="MinHash and LSH")
    for language, documents in by_language.items():
        if documents:
            # Of the length of passages: sketches are made of them, not of whole documents.
            texts = [document.text[:600] for document in documents][:1_500]
            ours, plain = measure_minhash(texts)
            ratios.add_row(language, f"{len(texts):,}", f"{ours:.2f}", f"{plain:.2f}", f"{plain / ours:.1f}")
    console.print(ratios)


if __name__ == "__main__":
    main()
