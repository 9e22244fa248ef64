"""What domain extraction keeps and drops, by genre; and the weights for classical Chinese, which are learned here.

    python -m benchmarks.extraction                       # the tables, from ../shared/data
    python -m benchmarks.extraction --write               # also fit the shipped weights on all books and write their file
    python -m benchmarks.extraction --others FOLDER       # false keeps among other English texts (.txt, .md, .rst, .html, .gz)

Classical books are measured *leaving one book out*: weights, choice of features and threshold come from the other books, the
threshold from a cross-validation among those. A book's name stands in its text (`书名：`); pieces without follow the last name.
Only texts in the public domain are learned from: classical ones, told by `is_classical`; a modern book among medical_books_cn
(2003) is not.

Which half chose what: terms were added to the vocabularies after reading documents of the *dev* half that were lost (csl_dev:
first byte of the SHA-256 of the text even; English corpora: even rows). The threshold of "zh" was chosen on the dev half of
csl_dev; that of "en" with the shares of both halves in view. The other half is *held out*.
"""

import argparse
import gzip
import hashlib
import json
import lzma
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from sklearn.feature_extraction.text import CountVectorizer

from benchmarks.corpora import REAL
from data_tools.collect.calibrate import features
from data_tools.collect.domain import (
    CLASSICAL,
    DEFAULT_THRESHOLDS,
    FOLDER,
    DomainModel,
    is_classical,
    load_classical,
    load_vocabularies,
)
from data_tools.records.language import language_of

PAIRS, MIN_TEXTS, SMOOTHING = 20_000, 3, 0.5
FALSE_KEEPS = 0.015
"""Bytes of other classical texts that the threshold may let through, in the cross-validation that chooses it."""
INNER_FOLDS = 5
_BOOK = re.compile(r"(?m)^书名：(.*)$")
ORIGIN = """\
# Pairs of characters of classical Chinese and how much each speaks for medicine, less the threshold (see domain.py).
# Learned by `python -m benchmarks.extraction --write` from texts in the public domain: chapters of Chinese medicine's classics
# (collection TCM-Ancient-Books) and of 24 classical books of all kinds (the originals in NiuTrans/Classical-Modern).
"""


@dataclass(frozen=True)
class Text:
    """A classical text: its book or books (a piece may hold the end of one and the beginning of the next)."""

    text: str
    books: tuple[str, ...]
    medical: bool
    corpus: str


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file."""
    with lzma.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def classical_texts() -> list[Text]:
    """medical_books_cn by book, then classical_dev."""
    texts, current = [], "?"
    for row in rows_of(REAL / "corpus" / "medical_books_cn.jsonl.xz"):
        names = [match[1].strip() for match in _BOOK.finditer(row["text"])]
        books = tuple(dict.fromkeys([current, *names]))
        current = names[-1] if names else current
        texts.append(Text(row["text"], books, True, "medical_books_cn"))
    for row in rows_of(REAL / "extraction" / "classical_dev.jsonl.xz"):
        texts.append(Text(row["text"], (row["book"],), row["medical"], "classical_dev"))
    return texts


class Fit:
    """Naive Bayes over the presence of character pairs, and the threshold of the mean weight.

    Args:
      presence: sparse [texts, pairs]. labels: bool [texts]. chosen: bool [texts], what is learned from.
    """

    def __init__(self, presence: Any, labels: np.ndarray, chosen: np.ndarray) -> None:
        with_label = [np.asarray(presence.T @ (chosen & (labels == label)).astype(np.float32)) for label in (False, True)]
        shares = [(count + SMOOTHING) / (count.sum() + SMOOTHING * len(count)) for count in with_label]
        weights = np.log(shares[1] / shares[0])
        # The pairs that move the mean most: weight times how often they are met.
        moved = np.where(with_label[0] + with_label[1] >= MIN_TEXTS, np.abs(weights) * (shares[0] + shares[1]), -1.0)
        self.pairs = np.sort(np.argsort(-moved, kind="stable")[:PAIRS])
        self.weights = np.zeros(presence.shape[1])
        self.weights[self.pairs] = weights[self.pairs]
        known = np.zeros(presence.shape[1])
        known[self.pairs] = 1
        self.scores = presence @ self.weights / np.maximum(presence @ known, 1)


def fit_with_threshold(presence: Any, texts: Sequence[Text], chosen: np.ndarray) -> tuple[Fit, float]:
    """The fit to the chosen texts, and the threshold that lets FALSE_KEEPS of unseen other books' bytes through."""
    labels = np.array([text.medical for text in texts])
    sizes = np.array([len(text.text.encode()) for text in texts])
    names = sorted({text.books[-1] for text in texts})
    fold = np.array([names.index(text.books[-1]) % INNER_FOLDS for text in texts])
    unseen = np.zeros(len(texts))
    for number in range(INNER_FOLDS):
        unseen[fold == number] = Fit(presence, labels, chosen & (fold != number)).scores[fold == number]
    others = np.flatnonzero(chosen & ~labels)
    others = others[np.argsort(-unseen[others], kind="stable")]
    kept = np.cumsum(sizes[others]) / sizes[others].sum()
    return Fit(presence, labels, chosen), float(unseen[others[np.searchsorted(kept, FALSE_KEEPS)]])


def measure_classical(console: Console, write: bool) -> dict[str, np.ndarray]:
    """Leaves out one book after the other; prints what is kept of each, returns per corpus whether each text is kept."""
    texts = classical_texts()
    vectorizer = CountVectorizer(analyzer=lambda text: features(text, "zh"), binary=True, min_df=MIN_TEXTS, dtype=np.float32)
    presence = vectorizer.fit_transform([text.text for text in texts])
    classical = np.array([is_classical(text.text) for text in texts])
    if write:
        names = vectorizer.get_feature_names_out()
        fit, threshold = fit_with_threshold(presence, texts, classical)
        lines = [f"{names[pair]}\t{fit.weights[pair] - threshold:.2f}\n" for pair in fit.pairs]
        (FOLDER / f"medicine.{CLASSICAL}.weights.txt").write_text(ORIGIN + "".join(lines), encoding="utf-8")
        console.print(f"{len(lines):,} pairs written; threshold {threshold:.3f}")
    terms = DomainModel(load_vocabularies("medicine", []), DEFAULT_THRESHOLDS)
    by_terms = np.array([terms.keeps(text.text, "zh")[0] for text in texts])
    by_weights = np.zeros(len(texts), bool)
    books = sorted({(text.corpus, book) for text in texts for book in text.books})
    for corpus, book in books:
        held_out = np.array([text.corpus == corpus and book in text.books for text in texts])
        fit, threshold = fit_with_threshold(presence, texts, classical & ~held_out)
        by_weights[held_out] = (fit.scores[held_out] >= threshold) & classical[held_out]
    kept = by_terms | by_weights
    sizes = np.array([len(text.text.encode()) for text in texts])
    table = Table("corpus", "book", "medical", "MB", "kept", "by terms alone", "by weights alone", title="one book left out")

    def add_row(corpus: str, book: str, medical: str, chosen: np.ndarray) -> None:
        shares = [f"{sizes[chosen & those].sum() / sizes[chosen].sum():.3f}" for those in (kept, by_terms, by_weights)]
        table.add_row(corpus, book, medical, f"{sizes[chosen].sum() / 1e6:.2f}", *shares)

    of_corpus = {name: np.array([text.corpus == name for text in texts]) for name in ("medical_books_cn", "classical_dev")}
    medical = np.array([text.medical for text in texts])
    for corpus, book in books:
        chosen = of_corpus[corpus] & np.array([book in text.books for text in texts])
        if corpus == "classical_dev" or not kept[chosen].all():
            add_row(corpus, book, "yes" if medical[chosen].any() else "no", chosen)
    add_row("classical_dev", "all medical", "yes", of_corpus["classical_dev"] & medical)
    add_row("classical_dev", "all others", "no", ~medical)
    add_row("medical_books_cn", "all", "yes", of_corpus["medical_books_cn"])
    console.print(table)
    return {name: kept[chosen] for name, chosen in of_corpus.items()}


def is_dev(text: str) -> bool:
    """Whether an abstract of csl_dev is of the half by which terms and thresholds were chosen."""
    return hashlib.sha256(text.encode()).digest()[0] % 2 == 0


def measure_abstracts(console: Console, model: DomainModel) -> None:
    """Precision, recall and F1 on csl_dev, of each half and of both."""
    rows = rows_of(REAL / "extraction" / "csl_dev.jsonl.xz")
    table = Table("csl_dev", "texts", "medical", "precision", "recall", "F1", title="modern abstracts of 67 disciplines")
    kept = np.array([model.keeps(row["text"], language_of(row["text"]))[0] for row in rows])
    labels, dev = np.array([row["medical"] for row in rows]), np.array([is_dev(row["text"]) for row in rows])
    for name, chosen in (("dev", dev), ("held out", ~dev), ("both", dev | True)):
        right = (kept & labels & chosen).sum()
        precision, recall = right / (kept & chosen).sum(), right / (labels & chosen).sum()
        f1 = 2 * precision * recall / (precision + recall)
        counts = f"{chosen.sum():,}", f"{(labels & chosen).sum():,}"
        table.add_row(name, *counts, *(f"{value:.3f}" for value in (precision, recall, f1)))
    console.print(table)


def measure_corpora(console: Console, model: DomainModel, of_books: np.ndarray) -> None:
    """Share of bytes kept of the eight corpora; of medical_books_cn with each book left out."""
    table = Table("corpus", "MB", "kept", "dev half", "held-out half", title="bytes kept, out of the box")
    for path in sorted((REAL / "corpus").glob("*.jsonl.xz")):
        texts = [row["text"] for row in rows_of(path)]
        sizes, dev = np.array([len(text.encode()) for text in texts]), np.arange(len(texts)) % 2 == 0
        kept = np.array([model.keeps(text, language_of(text))[0] for text in texts])
        if path.name.startswith("medical_books_cn"):
            kept = of_books
        if path.name.startswith("medical_literature_cn"):
            dev = np.array([is_dev(text) for text in texts])  # these are the medical abstracts of csl_dev
        shares = [f"{sizes[kept & chosen].sum() / sizes[chosen].sum():.3f}" for chosen in (dev | True, dev, ~dev)]
        table.add_row(path.name.split(".")[0], f"{sizes.sum() / 1e6:.1f}", *shares)
    console.print(table)


def measure_others(console: Console, model: DomainModel, folder: Path) -> None:
    """False keeps among other English texts, in pieces of 3,000 characters, by sub-folder."""
    table = Table("texts", "pieces", "MB", "bytes kept", title="other English texts")
    for part in sorted(path for path in folder.iterdir() if path.is_dir()):
        sizes, kept = [], []
        for path in sorted(part.rglob("*")):
            if not path.is_file() or path.stat().st_size < 2_000:
                continue
            content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            text = content.decode("utf-8", "ignore")
            text = re.sub(r"<[^>]+>", " ", text) if "htm" in path.suffix else text
            beginning = text[:20_000]
            if "\0" in text or sum(map(str.isalpha, beginning)) < 0.6 * len(beginning):
                continue
            for start in range(0, len(text), 3_000):
                piece = text[start : start + 3_000]
                sizes.append(len(piece.encode()))
                kept.append(model.keeps(piece, "en")[0])
        if sizes:
            share = np.array(sizes)[np.array(kept)].sum() / sum(sizes)
            table.add_row(part.name, f"{len(sizes):,}", f"{sum(sizes) / 1e6:.1f}", f"{share:.4f}")
    console.print(table)


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="fit the shipped weights on all classical texts and write them")
    parser.add_argument("--others", type=Path, metavar="FOLDER", help="a folder of folders of other English texts")
    args = parser.parse_args()
    console = Console(width=130)
    kept = measure_classical(console, args.write)
    model = DomainModel(load_vocabularies("medicine", []), DEFAULT_THRESHOLDS, load_classical("medicine"))
    measure_abstracts(console, model)
    measure_corpora(console, model, kept["medical_books_cn"])
    if args.others is not None:
        measure_others(console, model, args.others)


if __name__ == "__main__":
    main()
