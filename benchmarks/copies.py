"""Near copies: how many planted ones are found, and how many documents of different facts are lost.

    python -m benchmarks.copies                  # the held-out half: odd rows of ../shared/data/corpus
    python -m benchmarks.copies --half dev       # the half on which `facts.STRETCH` was chosen

Planted into 60 documents of each of the eight corpora, as one passage each: words or characters replaced by others of the corpus,
sentences reordered, reformatted, titles changed, headers and footers of sites added, and pairs of these. Counted are those whose
Jaccard index with the original, over plain sets, is at least .8; *found* are those that the near step of `collect` removes.

Documents of different facts: MedQuAD and the Chinese drug monographs, each collected alone. A document is *lost* if all of its
passages are removed as copies of a document with another title; two pages with the same title are two copies of one fact.
"""

import argparse
import json
import lzma
import random
import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.corpora import REAL
from data_tools.collect.duplicates import (
    KEPT,
    band_keys,
    candidate_pairs,
    content_digests,
    exact_duplicates,
    keep_preferred,
    signatures,
    similar_pairs,
)
from data_tools.collect.facts import Passage, different_facts
from data_tools.collect.ngrams import HashedRows, jaccard, shingles
from data_tools.collect.passages import passages_of
from data_tools.collect.reading import Document
from data_tools.collect.report import Statistics
from data_tools.collect.settings import CollectConfig, NearDuplicates

CORPORA = [
    f"medical_{kind}_{language}" for kind in ("books", "encyclopedia", "literature", "web_corpus") for language in ("cn", "en")
]
FACTS = ("medical_encyclopedia_en", "medical_encyclopedia_cn")
SAMPLED, BATCH = 60, 512
HEADERS = {
    "zh": ("首页 > 疾病大全 > 正文\n", "来源：健康时报网 作者：李华 发布时间：2015-03-02\n"),
    "en": ("Home > Conditions A-Z > Article\n", "Posted by admin on March 3, 2015. Reviewed by our medical team.\n"),
}
FOOTERS = {
    "zh": ("\n本文仅供参考，不能代替医生的诊断，转载请注明出处。", "\n上一篇：感冒的预防 下一篇：秋季养生"),
    "en": (
        "\nThis information is no substitute for professional medical advice.",
        "\nLast updated: May 5, 2014. Subscribe to us.",
    ),
}


def texts_of(corpus: str) -> list[str]:
    """The texts of a corpus."""
    with lzma.open(REAL / "corpus" / f"{corpus}.jsonl.xz", "rt", encoding="utf-8") as file:
        return [json.loads(line)["text"] for line in file]


class Planter:
    """Makes copies of a text of one language, with words of `vocabulary`."""

    def __init__(self, language: str, vocabulary: Sequence[str], source: random.Random) -> None:
        self._zh, self._vocabulary, self._random, self._language = language == "zh", vocabulary, source, language

    def copies(self, text: str) -> dict[str, str]:
        """Kind of change → the copy."""
        header, footer = self._random.choice(HEADERS[self._language]), self._random.choice(FOOTERS[self._language])
        out = {f"{share:.0%} of words changed": self._changed(text, share) for share in (0.01, 0.02, 0.03, 0.05)}
        out |= {"sentences reordered": self._reordered(text), "header added": header + text, "footer added": text + footer}
        out["reformatted"] = re.sub("[，,]", lambda match: self._random.choice([" ", "，", ", ", "\n"]), text).upper()
        out["2% changed, footer"] = self._changed(text, 0.02) + footer
        first, _, rest = text.partition("\n")
        if rest:
            titles = {
                "title: prefix": ("【健康科普】" if self._zh else "Health A-Z: ") + first,
                "title: suffix": first + ("_百科_名医在线" if self._zh else " | Health Library | MediSite"),
                "title: another": "常见问题解答" if self._zh else "Frequently asked questions",
                "title: reworded": self._reworded(first),
            }
            out |= {kind: f"{title}\n{rest}" for kind, title in titles.items()} | {"title: dropped": rest}
            reworded = out["title: reworded"]
            out |= {"title reworded, footer": reworded + footer, "title reworded, 2% changed": self._changed(reworded, 0.02)}
        return out

    def _reworded(self, title: str) -> str:
        if self._zh:
            return f"关于{title[: max(2, len(title) // 2)]}您需要了解的知识"
        return "What you should know about " + " ".join(title.split()[-2:])

    def _changed(self, text: str, share: float) -> str:
        units = list(text) if self._zh else text.split(" ")
        for i, unit in enumerate(units):
            if unit.strip() and self._random.random() < share:
                units[i] = self._random.choice(self._vocabulary)
        return ("" if self._zh else " ").join(units)

    def _reordered(self, text: str) -> str:
        first, _, rest = text.partition("\n")
        sentences = re.findall(r"[^。.！？\n]+[。.！？\n]*", rest or text)
        self._random.shuffle(sentences)
        return (f"{first}\n" if rest else "") + "".join(sentences)


def near_copies(passages: Sequence[Passage]) -> np.ndarray:
    """The near step on one list, in order of preference: which passage each removed one is a copy of, int64 [n]; else KEPT."""
    near = NearDuplicates()
    parts = [shingles([passage.text for passage in passages[i : i + BATCH]]) for i in range(0, len(passages), BATCH)]
    offsets = np.cumsum(np.concatenate([[0], *(np.diff(part.offsets) for part in parts)]))
    sets = HashedRows(np.concatenate([part.hashes for part in parts]), offsets)
    keys = np.concatenate([band_keys(signatures(part, near), near) for part in parts])
    pairs = np.unique(np.concatenate([candidate_pairs(keys[:, band], near.bucket)[0] for band in range(near.bands)]), axis=0)
    pairs = similar_pairs(pairs, sets, near.threshold)
    return keep_preferred(pairs[~different_facts(pairs, passages)], len(passages))


def measure_recall(console: Console, half: int) -> None:
    """Plants copies and prints which are found, by kind and by corpus."""
    source = random.Random(half)
    found: dict[str, list[bool]] = defaultdict(list)
    for corpus in CORPORA:
        language = "zh" if corpus.endswith("cn") else "en"
        rows = [text for i, text in enumerate(texts_of(corpus)) if i % 2 == half]
        rows = [text[:600] if language == "zh" else text[:1_700] for text in source.sample(rows, min(SAMPLED, len(rows)))]
        vocabulary = [unit for text in rows for unit in (text if language == "zh" else text.split())]
        planter = Planter(language, vocabulary, source)
        # Each copy meets its original alone: copies of one another would not show whether the original finds them.
        for text in rows:
            copies = planter.copies(text)
            sets = shingles([text, *copies.values()])
            for i, (kind, copy) in enumerate(copies.items(), 1):
                if jaccard(sets.row(0), sets.row(i)) >= 0.8:
                    removed = bool(near_copies([Passage(text), Passage(copy)])[1] == 0) or digest_equal(text, copy)
                    found[kind].append(removed)
                    found[corpus].append(removed)
    table = Table("planted", "copies with J ≥ .8", "found")
    for name, results in sorted(found.items(), key=lambda entry: entry[0] in CORPORA):
        table.add_row(name, f"{len(results):,}", f"{np.mean(results):.3f}")
    of_all = [result for kind, results in found.items() if kind not in CORPORA for result in results]
    table.add_row("all", f"{len(of_all):,}", f"{np.mean(of_all):.3f}")
    console.print(table)


def digest_equal(text: str, copy: str) -> bool:
    """Whether the copy is an exact one."""
    first, second = content_digests([text, copy])
    return bool((first == second).all())


def measure_loss(console: Console, half: int) -> None:
    """Prints how many documents lose every passage to a document with another title, and lists those of the half."""
    table = Table("corpus", "documents", "lost", "same title (copies)")
    config, listed = CollectConfig(mask=False), []
    for corpus in FACTS:
        rows: list[tuple[int, dict[str, Any]]] = []
        texts = texts_of(corpus)
        for i, text in enumerate(texts):
            rows += [(i, row) for row in passages_of(Document(str(i), corpus, text), config, None, Statistics())]
        passages = [Passage(row["text"], row.get("title", "")) for _, row in rows]
        copy_of = exact_duplicates(content_digests([passage.text for passage in passages]))
        rest = np.flatnonzero(copy_of == KEPT)
        near = near_copies([passages[i] for i in rest])
        copy_of[rest[near != KEPT]] = rest[near[near != KEPT]]
        kept = {document for (document, _), copy in zip(rows, copy_of, strict=True) if copy == KEPT}
        first = {document: int(copy) for (document, _), copy in reversed(list(zip(rows, copy_of, strict=True)))}
        lost = [i for i in range(half, len(texts), 2) if i in first and i not in kept]
        titles = [text.split("\n", 1)[0] for text in texts]
        others = [(i, rows[first[i]][0]) for i in lost if titles[i] != titles[rows[first[i]][0]]]
        listed += [f"{titles[i]} as a copy of {titles[other]}" for i, other in others]
        count = len(range(half, len(texts), 2))
        shares = f"{len(others)} ({len(others) / count:.2%})", f"{len(lost) - len(others)}"
        table.add_row(corpus, f"{count:,}", *shares)
    console.print(table)
    for line in listed:
        console.print(line, markup=False)


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--half", choices=("dev", "held-out"), default="held-out")
    half, console = int(parser.parse_args().half == "held-out"), Console(width=130)
    measure_recall(console, half)
    measure_loss(console, half)


if __name__ == "__main__":
    main()
