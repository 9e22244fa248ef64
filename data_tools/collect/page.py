"""A report in, one self-contained HTML page out: what each step left of every source, reasons of drops, lengths."""

import base64
import html
import io
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from data_tools.collect.report import LABELS
from data_tools.collect.statistics import LAST_BIN, LENGTH_BIN
from huatuo_jax.console import PALETTE

STYLE = """
body{font:15px/1.55 system-ui,"Noto Sans CJK SC","PingFang SC","Microsoft YaHei",sans-serif;color:#222}
body{max-width:66rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem} h2{font-size:1.1rem;margin-top:2.2rem;border-bottom:1px solid #ddd}
img{width:100%;max-width:58rem} table{border-collapse:collapse}
td,th{padding:.25rem .9rem .25rem 0;text-align:left;vertical-align:top}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
td.n,th.n{font-size:13px} tr.all td{border-top:1px solid #999;font-weight:600}
.faint{color:#777} blockquote{margin:.2rem 0 .2rem 1rem;color:#555;font-size:13px}
"""
INK, GRID = "#222222", "#dddddd"


def page(report: dict[str, Any]) -> str:
    """The HTML text."""
    parts = [
        "<h1>Collected passages</h1>",
        f"<p>{report['passages']:,} passages in {report['shards']:,} files.</p>",
        _picture("What each step leaves of the raw bytes", _funnel(report)),
        _steps_table(report),
        _drops(report),
        "<h2>Lengths</h2>",
        _picture("Characters per document and per passage", _lengths(report)),
        _other(report),
    ]
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Collected passages</title>'
    return f"<!doctype html><html><head>{head}<style>{STYLE}</style></head><body>{''.join(parts)}</body></html>\n"


def _picture(title: str, figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, metadata={"Software": None})
    return f'<img alt="{html.escape(title)}" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


def _funnel(report: dict[str, Any]) -> Figure:
    """A bar per step, its sources side by side in it: their share of all raw bytes."""
    steps, sources = list(report["steps"]), list(report["sources"])
    figure = Figure(figsize=(9, 1.2 + 0.75 * len(steps)), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    left = np.zeros(len(steps))
    for number, source in enumerate(sources):
        shares = np.array([100 * report["sources"][source][step]["share_of_raw_bytes"] for step in steps])
        axes.barh(np.arange(len(steps)), shares, left=left, color=PALETTE[number % len(PALETTE)], label=source, height=0.62)
        left += shares
    for row, total in enumerate(left):
        axes.text(total + 0.8, row, f"{total:.1f} %", va="center", color=INK)
    axes.set_yticks(np.arange(len(steps)), [LABELS[step] for step in steps])
    axes.invert_yaxis()
    axes.set(title="What each step leaves of the raw bytes", xlabel="% of all raw bytes", xlim=(0, 112))
    figure.legend(loc="outside right upper", frameon=False, fontsize=9)
    return figure


def _lengths(report: dict[str, Any]) -> Figure:
    """Histograms of lengths: documents before, passages after."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, step, title in zip(
        figure.subplots(1, 2), ("raw", list(report["steps"])[-1]), ("raw documents", "passages that stay"), strict=True
    ):
        axes.spines[["top", "right"]].set_visible(False)
        bottom = np.zeros(LAST_BIN + 1)
        for number, source in enumerate(report["sources"]):
            counts = np.array(report["lengths"].get(source, {}).get(step, [0] * (LAST_BIN + 1)))
            starts = np.arange(LAST_BIN + 1) * LENGTH_BIN
            axes.bar(starts, counts, LENGTH_BIN, bottom=bottom, align="edge", color=PALETTE[number % len(PALETTE)])
            bottom += counts
        axes.set(title=title, xlabel=f"characters (the last bar: {LAST_BIN * LENGTH_BIN:,} and more)", ylabel="texts")
    return figure


def _steps_table(report: dict[str, Any]) -> str:
    steps = list(report["steps"])
    head = "".join(f"<th colspan=4>{LABELS[step]}</th>" for step in steps)
    units = "<th class=n>texts</th><th class=n>characters</th><th class=n>MB</th><th class=n>share</th>" * len(steps)
    rows = [_row(source, found, steps, "") for source, found in report["sources"].items()]
    rows.append(_row("all", report["steps"], steps, " class=all"))
    return (
        f"<h2>By source</h2><div style='overflow-x:auto'><table><tr><th></th>{head}</tr><tr><th></th>{units}</tr>"
        f"{''.join(rows)}</table></div><p class=faint>Shares are of the raw bytes of all sources.</p>"
    )


def _row(name: str, found: dict[str, Any], steps: list[str], style: str) -> str:
    cells = "".join(
        f"<td class=n>{found[step]['texts']:,}</td><td class=n>{found[step]['characters']:,}</td>"
        f"<td class=n>{found[step]['bytes'] / 1e6:.2f}</td><td class=n>{100 * found[step]['share_of_raw_bytes']:.2f} %</td>"
        for step in steps
    )
    return f"<tr{style}><td>{html.escape(name)}</td>{cells}</tr>"


def _drops(report: dict[str, Any]) -> str:
    parts = ["<h2>Dropped</h2>"]
    for reason, found in sorted(report["drops"].items(), key=lambda pair: -pair[1]["bytes"]):
        by_source = ", ".join(f"{html.escape(source)} {count:,}" for source, count in found["by_source"].items())
        examples = "".join(f"<blockquote>{html.escape(example)}</blockquote>" for example in found["examples"])
        size = f"{found['texts']:,} texts, {found['bytes'] / 1e6:.2f} MB"
        parts.append(f"<p><b>{html.escape(reason)}</b>: {size} <span class=faint>({by_source})</span></p>{examples}")
    return "".join(parts) if len(parts) > 1 else "<h2>Dropped</h2><p>Nothing.</p>"


def _other(report: dict[str, Any]) -> str:
    masked = ", ".join(f"{html.escape(kind)} {count:,}" for kind, count in sorted(report["masked"].items())) or "none"
    return (
        f"<h2>Besides</h2><p>Personal data masked: {masked}. Unreadable lines and files: {report['unreadable']:,}. "
        f"Files of other kinds, not read: {report['not_read']:,}.</p>"
    )
