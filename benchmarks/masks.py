"""Precision and recall of the masks for personal data, by kind, on marked lines; and what is masked in real passages.

    python -m benchmarks.masks                                   # tests/support/personal_data.tsv
    python -m benchmarks.masks --lines other.tsv                 # another set: {kind:what must be masked}
    python -m benchmarks.masks --passages 1000                   # every mask in that many real passages, to be read

A mark counts as found if the masked stretch covers it and is at most 12 characters longer; every other masked stretch is a wrong
one, whatever its kind.
"""

import argparse
import json
import lzma
import random
import re
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.corpora import REAL, REPOSITORY
from data_tools.collect.masks import mask_personal_data

LINES = REPOSITORY / "tests" / "support" / "personal_data.tsv"
MARK = re.compile(r"\{(\w+):([^}]*)\}")
KINDS = {
    "phone": "phone",
    "chat": "chat account",
    "email": "email",
    "card": "identity card",
    "name": "name",
    "record": "record number",
    "date": "date",
    "address": "address",
}
MASK = re.compile(r"\[(phone|chat account|email|identity card|name|record number|date|address)\]")
SLACK = 12


def masked_stretches(text: str, masked: str) -> list[tuple[int, int, str]]:
    """(start, end, kind) of the stretches of a text that masks replaced."""
    stretches, place, end = [], 0, 0
    for match in MASK.finditer(masked):
        start = place + match.start() - end
        rest = masked[match.end() :]
        following = MASK.split(rest)[0]
        stop = text.find(following, start + 1) if following else len(text)
        stretches.append((start, stop, match[1]))
        place, end = stop, match.end()
    return stretches


def measure(lines: list[str]) -> tuple[dict[str, list[int]], list[str]]:
    """Kind → [found, marked, wrong], and the lines with a miss or a wrong mask."""
    counts: dict[str, list[int]] = {name: [0, 0, 0] for name in KINDS.values()}
    faults = []
    for line in lines:
        marks, text, place = [], "", 0
        for match in MARK.finditer(line):
            text += line[place : match.start()]
            marks.append((len(text), len(text) + len(match[2]), KINDS[match[1]]))
            text, place = text + match[2], match.end()
        text += line[place:]
        masked, _ = mask_personal_data(text, clinical=True)
        stretches = masked_stretches(text, masked)
        fault = False
        for start, end, kind in marks:
            found = [
                s for s in stretches if s[2] == kind and s[0] <= start and s[1] >= end and s[1] - s[0] <= end - start + SLACK
            ]
            counts[kind][0] += bool(found)
            counts[kind][1] += 1
            fault |= not found
            stretches = [stretch for stretch in stretches if stretch not in found]
        for _, _, kind in stretches:
            counts[kind][2] += 1
        if fault or stretches:
            faults.append(f"{line}  →  {masked}")
    return counts, faults


def main() -> None:
    """Prints the table and the faults, or the masks in real passages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=Path, default=LINES)
    parser.add_argument("--passages", type=int, default=0)
    args = parser.parse_args()
    console = Console(width=160, highlight=False)
    if args.passages:
        return show_real(console, args.passages)
    lines = [line for line in args.lines.read_text("utf-8").splitlines() if line and not line.startswith("#")]
    counts, faults = measure(lines)
    table = Table("kind", "marked", "recall", "precision")
    for kind, (found, marked, wrong) in counts.items():
        table.add_row(kind, str(marked), f"{found / max(marked, 1):.2f}", f"{found / max(found + wrong, 1):.2f}")
    console.print(table)
    for fault in faults:
        console.print(fault, markup=False)


def show_real(console: Console, count: int) -> None:
    """Prints every mask in a sample of real passages, with what was masked."""
    source, totals = random.Random(0), Counter[str]()
    paths = sorted((REAL / "corpus").glob("*.jsonl.xz"))
    for path in paths:
        with lzma.open(path, "rt", encoding="utf-8") as file:
            texts = [json.loads(line)["text"] for line in file]
        for text in source.sample(texts, min(count // len(paths), len(texts))):
            start = source.randrange(max(1, len(text) - 600))
            passage = text[start : start + 600]
            masked, counts = mask_personal_data(passage, clinical=True)
            totals += counts
            for first, last, kind in masked_stretches(passage, masked):
                around = passage[max(0, first - 20) : last + 12].replace("\n", "|")
                console.print(f"{path.name.split('.')[0]}: {kind}: {passage[first:last]!r} in …{around}…", markup=False)
    console.print(dict(totals))


if __name__ == "__main__":
    main()
