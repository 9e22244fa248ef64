"""How much of a passage's content survives in its answer: n-gram recall, and its distribution per source.

The units of a text are its distinct pairs of neighbouring Chinese characters, its words in Latin letters (three letters or
more, without stop words, lower-cased) and its numbers. Recall = units of the passage that the answer has / units of the passage.
"""

import json
import re
from array import array
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.records.language import language_of_passage

PHRASES: dict[str, list[str]] = json.loads((Path(__file__).parent / "phrases.json").read_text(encoding="utf-8"))
_STOP_WORDS = frozenset(PHRASES["stop_words"])
_CHINESE_RUN = re.compile(r"[㐀-鿿]{2,}")
_WORD_OR_NUMBER = re.compile(r"[a-z]{3,}|\d+(?:\.\d+)?")


def units(text: str) -> set[str]:
    """The content units of a text."""
    text = text.lower()
    found = set(_WORD_OR_NUMBER.findall(text)) - _STOP_WORDS
    for run in _CHINESE_RUN.findall(text):
        found.update(map(str.__add__, run, run[1:]))
    return found


def recall(passage: str, answer: str) -> float | None:
    """Share of the passage's units that its answer has; None if it has none or the two are in different languages."""
    wanted = units(passage)
    if not wanted or language_of_passage(passage) != language_of_passage(answer):
        return None
    return len(wanted & units(answer)) / len(wanted)


class CoverageStatistics:
    """Collects recall and length of answers per source; four bytes a pair each."""

    def __init__(self) -> None:
        self._recalls: dict[str, array[float]] = {}
        self._lengths: dict[str, list[int]] = {}

    def add(self, source: str, passage: str, answer: str) -> None:
        """Takes one pair into account."""
        value = recall(passage, answer)
        self._recalls.setdefault(source, array("f")).append(np.nan if value is None else value)
        lengths = self._lengths.setdefault(source, [0, 0])
        lengths[0] += len(passage)
        lengths[1] += len(answer)

    def values(self) -> dict[str, np.ndarray]:
        """The measured recalls per source, in the order of the sources' names."""
        return {source: (found := np.array(self._recalls[source]))[~np.isnan(found)] for source in sorted(self._recalls)}

    def report(self) -> dict[str, dict[str, Any]]:
        """Per source: pairs measured, mean, median and 10th percentile of recall, and characters of answers per passage's."""
        result = {}
        for source, values in self.values().items():
            passages, answers = self._lengths[source]
            row: dict[str, Any] = {"measured": int(values.size), "length_ratio": round(answers / max(1, passages), 4)}
            for name, percentile in (("median", 50), ("p10", 10)):
                row[name] = round(float(np.percentile(values, percentile)), 4) if values.size else None
            row["mean"] = round(float(values.mean()), 4) if values.size else None
            result[source] = row
        return result


def plot(values: dict[str, np.ndarray], path: Path) -> None:
    """Draws the distribution of recall per source to a PNG file: one row a source, worst at the top."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    from huatuo_jax.io.files import written_aside
    from huatuo_jax.report.style import PALETTE

    rows = sorted(((s, v) for s, v in values.items() if v.size), key=lambda row: float(np.median(row[1])), reverse=True)
    figure = Figure(figsize=(8, 1.6 + 0.55 * max(1, len(rows))), layout="constrained")
    axes = figure.subplots()
    if rows:
        _draw_rows(axes, [v for _, v in rows], [f"{s}  (n = {v.size:,})" for s, v in rows], PALETTE[0])
    axes.set(xlim=(0, 1), xlabel="share of a passage's n-grams that its answer has (box: half of them, line: nine tenths)")
    axes.set_title("What survives of each passage in its answer", loc="left")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(axis="x", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    with written_aside(path) as aside:
        figure.savefig(aside, dpi=120, format="png")


def _draw_rows(axes: Any, values: Iterable[np.ndarray], labels: list[str], color: str) -> None:
    """Box from the 25th to the 75th percentile, whiskers from the 5th to the 95th, the median written beside it."""
    for place, row in enumerate(values):
        low, first, median, third, high = np.percentile(row, [5, 25, 50, 75, 95])
        axes.plot([low, high], [place, place], color=color, linewidth=1.2)
        axes.barh(place, third - first, left=first, height=0.5, color=color, alpha=0.35)
        axes.plot([median, median], [place - 0.25, place + 0.25], color=color, linewidth=2.5)
        axes.text(median, place + 0.3, f"{median:.0%}", ha="center", va="bottom", fontsize=8)
    axes.set_yticks(range(len(labels)), labels)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(-0.6, len(labels) - 0.2)
