"""What each step of a run left: counts that shards add up, the report as JSON, and the report as one HTML page.

Every stage counts what it sees into a `Statistics` of its shard; `pipeline.py` adds them up and writes both reports. Every byte
of the raw documents must be accounted for: it is in a passage, or in a drop with a reason. Bars are HTML, so that names of
sources are readable in any script that the browser has a font for.
"""

import html
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from huatuo_jax.report.style import PALETTE, html_image, html_page, html_table, image, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LABELS = {
    "raw": "raw documents",
    "extracted": "documents of the domain",
    "cleaned": "segmented and clean passages",
    "deduplicated": "without copies",
    "decontaminated": "without exam questions",
}
"""The steps in order; the last one only where there are exams."""
EXAMPLES = 3
EXAMPLE_CHARS = 160
MOSTLY_KEPT_LOSS = 0.1
LENGTH_BIN = 50
"""Width of a bin of the length histograms, in characters; texts of 3,000 and more share the last one."""
LAST_BIN = 60


@dataclass
class Statistics:
    """Counts of a shard or of a run.

    Attributes:
      steps: source → step → [texts, characters, bytes]; texts are documents in raw and extracted, then passages.
      drops: reason → source → [texts, characters, bytes].
      examples: reason → the first few of what was dropped.
      lengths: source → step → texts per bin.
      masks: kind of personal data → how often it was masked.
      unreadable: lines and files in quarantine.
    """

    steps: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    drops: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)
    lengths: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    masks: dict[str, int] = field(default_factory=dict)
    unreadable: int = 0

    def count(self, source: str, step: str, text: str) -> None:
        """Counts a text that is there after a step."""
        _add(self.steps.setdefault(source, {}).setdefault(step, [0, 0, 0]), _sizes(text))
        # A text of 120 characters goes into bin 2, for 100 to 149.
        bins = self.lengths.setdefault(source, {}).setdefault(step, [0] * (LAST_BIN + 1))
        bins[min(len(text) // LENGTH_BIN, LAST_BIN)] += 1

    def drop(self, source: str, reason: str, text: str, to_shown: Callable[[str], str] = str) -> None:
        """Counts a dropped text and, if there are few examples, keeps what `to_shown` makes of it as one."""
        _add(self.drops.setdefault(reason, {}).setdefault(source, [0, 0, 0]), _sizes(text))
        examples = self.examples.setdefault(reason, [])
        if len(examples) < EXAMPLES:
            # Masked before it is cut: half a phone number is no phone number any more.
            examples.append(" ".join(to_shown(text)[: 2 * EXAMPLE_CHARS].split())[:EXAMPLE_CHARS])

    def mask(self, counts: dict[str, int]) -> None:
        """Counts masked personal data."""
        for kind, count in counts.items():
            self.masks[kind] = self.masks.get(kind, 0) + count

    def add(self, other: "Statistics") -> None:
        """Adds the counts of another part of the run."""
        for mine, theirs in ((self.steps, other.steps), (self.drops, other.drops), (self.lengths, other.lengths)):
            for outer, entries in theirs.items():
                for inner, values in entries.items():
                    _add(mine.setdefault(outer, {}).setdefault(inner, [0] * len(values)), values)
        # The first shards' examples, so that the report is the same for any number of workers.
        for reason, examples in other.examples.items():
            kept = self.examples.setdefault(reason, [])
            kept.extend(examples[: EXAMPLES - len(kept)])
        self.mask(other.masks)
        self.unreadable += other.unreadable

    def total(self, step: str) -> list[int]:
        """[texts, characters, bytes] of all sources after a step."""
        return _sum([entry[step] for entry in self.steps.values() if step in entry])

    def to_json(self) -> dict[str, Any]:
        """The counts as JSON; `Statistics(**…)` gives them back."""
        return dict(vars(self))


def _sizes(text: str) -> list[int]:
    return [1, len(text), len(text.encode("utf-8"))]


def _add(into: list[int], values: list[int]) -> None:
    for i, value in enumerate(values):
        into[i] += value


def _sum(entries: list[list[int]]) -> list[int]:
    return [sum(values) for values in zip([0, 0, 0], *entries, strict=True)]


def to_report(statistics: Statistics) -> dict[str, Any]:
    """Texts, characters, bytes and share of the raw bytes after each step, in all and per source; drops; masks.

    `losing` has the sources that are mostly of the domain and yet lose more than a tenth of their bytes as out of it: extraction
    may have missed a genre there.
    """
    with_exams = any("decontaminated" in entry for entry in statistics.steps.values())
    steps = [step for step in LABELS if step != "decontaminated" or with_exams]
    raw_bytes = max(statistics.total("raw")[2], 1)

    def entry(values: list[int]) -> dict[str, Any]:
        return {"texts": values[0], "characters": values[1], "bytes": values[2], "share_of_raw_bytes": values[2] / raw_bytes}

    drops = {}
    for reason, by_source in statistics.drops.items():
        texts, _, size = _sum(list(by_source.values()))
        drops[reason] = {
            "texts": texts,
            "bytes": size,
            "by_source": {source: values[0] for source, values in sorted(by_source.items())},
            "examples": statistics.examples.get(reason, []),
        }
    losing = {}
    for source, of_steps in sorted(statistics.steps.items()):
        size = of_steps["raw"][2]
        lost = 1 - of_steps.get("extracted", [0, 0, 0])[2] / max(size, 1)
        if MOSTLY_KEPT_LOSS < lost < 0.5:
            losing[source] = lost
    return {
        "steps": {step: entry(statistics.total(step)) for step in steps},
        "sources": {
            source: {step: entry(of_steps.get(step, [0, 0, 0])) for step in steps}
            for source, of_steps in sorted(statistics.steps.items())
        },
        "drops": drops,
        "losing": losing,
        "masked": statistics.masks,
        "unreadable": statistics.unreadable,
        "lengths": statistics.lengths,
    }


# The page

OTHERS = "other sources"
TITLE = "Collected passages"
STYLE = """
td:first-child{min-width:13rem;overflow-wrap:anywhere}
small{display:block;color:#777;font-weight:400;font-size:12px;white-space:nowrap}
.row{display:grid;grid-template-columns:16rem 1fr 4.5rem;gap:.6rem;align-items:center;margin:.25rem 0}
.bar{display:flex;height:1.5rem;background:#f4f4f4} .thin .bar{height:.7rem} .thin .row{margin:0;font-size:12px;line-height:1rem}
.key{display:inline-block;margin-right:1.2rem} .key i{display:inline-block;width:.8rem;height:.8rem;margin-right:.4rem}
.sources{display:grid;grid-template-columns:repeat(auto-fill,minmax(28rem,1fr));gap:1.2rem 2rem} .sources b{font-size:13px}
blockquote{margin:.2rem 0 .2rem 1rem;color:#555;font-size:13px;overflow-wrap:anywhere}
"""


def page(report: dict[str, Any]) -> str:
    """The report as one HTML text that needs no other file."""
    masked = ", ".join(f"{html.escape(kind)} {count:,}" for kind, count in sorted(report["masked"].items())) or "none"
    parts = [
        f"<p>{report['passages']:,} passages in {report['shards']:,} files.</p>",
        _bars(report),
        _steps_table(report),
        *(
            f"<p><b>{html.escape(source)}</b>: {_percent(100 * share)} of its bytes are out of domain.</p>"
            for source, share in report["losing"].items()
        ),
        "<h2>Dropped</h2>",
        _drops(report) or "<p>Nothing.</p>",
        "<h2>Lengths</h2>",
        html_image("Characters per document and per passage", image(_lengths(report))),
        f"<h2>Besides</h2><p>Personal data masked: {masked}. Unreadable lines and files: {report['unreadable']:,}. "
        f"Files of other kinds, not read: {report['not_read']:,}.</p>",
    ]
    return html_page(TITLE, parts, STYLE)


def _bars(report: dict[str, Any]) -> str:
    """A bar per step of all raw bytes, its sources side by side in it; and for each source the same of its own raw bytes."""
    steps, colours = list(report["steps"]), _colours(report)
    groups: dict[str, dict[str, float]] = {name: dict.fromkeys(steps, 0.0) for name in colours}
    # Shares are of all raw bytes; below, of each source's own: a source with 20 of 100 MB of which 5 are left has 5 % of the
    # whole and 25 % of its own.
    for source, of_steps in report["sources"].items():
        for step in steps:
            groups[source if source in groups else OTHERS][step] += 100 * of_steps[step]["share_of_raw_bytes"]
    keys = "".join(f"<span class=key>{_block(colour)}{html.escape(name)}</span>" for name, colour in colours.items())
    whole, of_sources = "", ""
    for step in steps:
        blocks = [_block(colours[name], shares[step], f"{name}: {_percent(shares[step])}") for name, shares in groups.items()]
        whole += _bar(LABELS[step], "".join(blocks), 100 * report["steps"][step]["share_of_raw_bytes"])
    for name, shares in groups.items():
        left = {step: 100 * shares[step] / max(shares["raw"], 1e-9) for step in steps[1:]}
        bars = "".join(_bar(LABELS[step], _block(colours[name], share), share) for step, share in left.items())
        of_sources += f"<div><b>{html.escape(name)}</b>{bars}</div>"
    return (
        f"<h2>What each step leaves of the raw bytes</h2><div>{whole}</div><p>{keys}</p>"
        f"<h2>What each step leaves of each source's own bytes</h2><div class='thin sources'>{of_sources}</div>"
    )


def _bar(label: str, blocks: str, percent: float) -> str:
    return f"<div class=row><span>{label}</span><span class=bar>{blocks}</span><span>{_percent(percent)}</span></div>"


def _block(colour: str, percent: float | None = None, hint: str = "") -> str:
    width = "" if percent is None else f";width:{percent:.3f}%"
    return f'<i style="background:{colour}{width}" title="{html.escape(hint)}"></i>'


def _percent(value: float) -> str:
    return f"{value:.3g} %" if value < 99.95 else "100 %"


def _colours(report: dict[str, Any]) -> dict[str, str]:
    """The colour of each source; where there are more than colours, the smallest share the last one."""
    # In the order of the sources' names, so that a source keeps its colour from one run to the next as far as it can.
    sources = report["sources"]
    largest = sorted(sources, key=lambda name: -sources[name]["raw"]["bytes"])[: len(PALETTE) - 1]
    shown = [name for name in sources if name in largest]
    if len(shown) < len(sources):
        shown.append(OTHERS)
    return dict(zip(shown, PALETTE, strict=False))


def _lengths(report: dict[str, Any]) -> "Figure":
    """Histograms of lengths: documents before, passages after."""
    figure, colours = new_figure(9, 3.6, columns=2, grid=None), _colours(report)
    starts = [i * LENGTH_BIN for i in range(LAST_BIN + 1)]
    for axes, step, title in zip(
        figure.axes, ("raw", list(report["steps"])[-1]), ("raw documents", "passages that stay"), strict=True
    ):
        bottom = [0] * len(starts)
        for name, colour in colours.items():
            counts = [0] * len(starts)
            for source in report["sources"]:
                if source == name or (name == OTHERS and source not in colours):
                    _add(counts, report["lengths"].get(source, {}).get(step, []))
            axes.bar(starts, counts, LENGTH_BIN, bottom=bottom, align="edge", color=colour)
            _add(bottom, counts)
        axes.set(title=title, xlabel=f"characters (the last bar: {LAST_BIN * LENGTH_BIN:,} and more)", ylabel="texts")
    return figure


def _steps_table(report: dict[str, Any]) -> str:
    def cell(entry: dict[str, Any]) -> str:
        return (
            f"{_percent(100 * entry['share_of_raw_bytes'])}<small>{entry['texts']:,} texts</small>"
            f"<small>{entry['characters'] / 1e6:,.2f} M chars, {entry['bytes'] / 1e6:,.2f} MB</small>"
        )

    rows = [[html.escape(name), *map(cell, of_steps.values())] for name, of_steps in report["sources"].items()]
    rows.append(["all", *map(cell, report["steps"].values())])
    table = html_table(["", *(LABELS[step] for step in report["steps"])], rows, total=True)
    return f"<h2>By source</h2>{table}<p class=faint>Shares are of the raw bytes of all sources.</p>"


def _drops(report: dict[str, Any]) -> str:
    parts = []
    # Those that cost most come first: they are what to look at when too little is left.
    for reason, drop in sorted(report["drops"].items(), key=lambda pair: -pair[1]["bytes"]):
        by_source = ", ".join(f"{html.escape(source)} {count:,}" for source, count in drop["by_source"].items())
        size = f"{drop['texts']:,} texts, {drop['bytes'] / 1e6:.2f} MB"
        parts.append(f"<p><b>{html.escape(reason)}</b>: {size} <span class=faint>({by_source})</span></p>")
        parts += [f"<blockquote>{html.escape(example)}</blockquote>" for example in drop["examples"]]
    return "".join(parts)
