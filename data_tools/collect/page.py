"""A report in, one self-contained HTML page out: what each step left of every source, reasons of drops, lengths.

Bars are HTML, so that names of sources are readable in any script that the browser has a font for.
"""

import base64
import html
import io
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from data_tools.collect.report import LABELS
from data_tools.collect.statistics import LAST_BIN, LENGTH_BIN
from huatuo_jax.report.style import PALETTE

STYLE = """
body{font:15px/1.55 system-ui,"Noto Sans CJK SC","PingFang SC","Microsoft YaHei",sans-serif;color:#222}
body{max-width:66rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem} h2{font-size:1.1rem;margin-top:2.2rem;border-bottom:1px solid #ddd}
img{width:100%;max-width:58rem} table{border-collapse:collapse}
td,th{padding:.3rem 1.2rem .3rem 0;text-align:left;vertical-align:top} td:first-child{min-width:13rem;overflow-wrap:anywhere}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums} tr.all td{border-top:1px solid #999;font-weight:600}
small,.faint{color:#777;font-weight:400} small{display:block;font-size:12px;white-space:nowrap}
.row{display:grid;grid-template-columns:16rem 1fr 4.5rem;gap:.6rem;align-items:center;margin:.25rem 0}
.bar{display:flex;height:1.5rem;background:#f4f4f4} .thin .bar{height:.7rem} .thin .row{margin:0;font-size:12px;line-height:1rem}
.key{display:inline-block;margin-right:1.2rem} .key i{display:inline-block;width:.8rem;height:.8rem;margin-right:.4rem}
.sources{display:grid;grid-template-columns:repeat(auto-fill,minmax(28rem,1fr));gap:1.2rem 2rem} .sources b{font-size:13px}
blockquote{margin:.2rem 0 .2rem 1rem;color:#555;font-size:13px;overflow-wrap:anywhere}
"""
OTHERS = "other sources"


def page(report: dict[str, Any]) -> str:
    """The HTML text."""
    parts = [
        "<h1>Collected passages</h1>",
        f"<p>{report['passages']:,} passages in {report['shards']:,} files.</p>",
        _funnel(report),
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


def _funnel(report: dict[str, Any]) -> str:
    """A bar per step of all raw bytes, its sources side by side in it; and for each source the same of its own raw bytes."""
    steps, colours = list(report["steps"]), _colours(report)
    groups: dict[str, dict[str, float]] = {name: dict.fromkeys(steps, 0.0) for name in colours}
    for source, found in report["sources"].items():
        for step in steps:
            groups[source if source in groups else OTHERS][step] += 100 * found[step]["share_of_raw_bytes"]
    keys = "".join(f"<span class=key>{_block(colour)}{html.escape(name)}</span>" for name, colour in colours.items())
    whole = []
    for step in steps:
        parts = "".join(
            _block(colours[name], shares[step], f"{name}: {_percent(shares[step])}") for name, shares in groups.items()
        )
        whole.append(_bar(LABELS[step], parts, 100 * report["steps"][step]["share_of_raw_bytes"]))
    own = []
    for name, shares in groups.items():
        left = {step: 100 * share / max(shares["raw"], 1e-9) for step, share in shares.items()}
        bars = "".join(_bar(LABELS[step], _block(colours[name], left[step]), left[step]) for step in steps[1:])
        own.append(f"<div><b>{html.escape(name)}</b>{bars}</div>")
    return (
        f"<h2>What each step leaves of the raw bytes</h2><div>{''.join(whole)}</div><p>{keys}</p>"
        f"<h2>What each step leaves of each source's own bytes</h2><div class='thin sources'>{''.join(own)}</div>"
    )


def _bar(label: str, parts: str, percent: float) -> str:
    return f"<div class=row><span>{label}</span><span class=bar>{parts}</span><span>{_percent(percent)}</span></div>"


def _block(colour: str, percent: float | None = None, hint: str = "") -> str:
    width = "" if percent is None else f";width:{percent:.3f}%"
    return f'<i style="background:{colour}{width}" title="{html.escape(hint)}"></i>'


def _percent(value: float) -> str:
    return f"{value:.3g} %" if value < 99.95 else "100 %"


def _colours(report: dict[str, Any]) -> dict[str, str]:
    """The colour of each source; where there are more than colours, the smallest share the last one."""
    sources = report["sources"]
    largest = sorted(sources, key=lambda name: -sources[name]["raw"]["bytes"])[: len(PALETTE) - 1]
    shown = [name for name in sources if name in largest]
    if len(shown) < len(sources):
        shown.append(OTHERS)
    return dict(zip(shown, PALETTE, strict=False))


def _lengths(report: dict[str, Any]) -> Figure:
    """Histograms of lengths: documents before, passages after."""
    figure, colours = Figure(figsize=(9, 3.6), layout="constrained"), _colours(report)
    for axes, step, title in zip(
        figure.subplots(1, 2), ("raw", list(report["steps"])[-1]), ("raw documents", "passages that stay"), strict=True
    ):
        axes.spines[["top", "right"]].set_visible(False)
        starts, bottom = np.arange(LAST_BIN + 1) * LENGTH_BIN, np.zeros(LAST_BIN + 1)
        for name, colour in colours.items():
            own = [source for source in report["sources"] if source == name or (name == OTHERS and source not in colours)]
            counts = sum((np.array(report["lengths"].get(source, {}).get(step, bottom * 0)) for source in own), bottom * 0)
            axes.bar(starts, counts, LENGTH_BIN, bottom=bottom, align="edge", color=colour)
            bottom = bottom + counts
        axes.set(title=title, xlabel=f"characters (the last bar: {LAST_BIN * LENGTH_BIN:,} and more)", ylabel="texts")
    return figure


def _steps_table(report: dict[str, Any]) -> str:
    steps = list(report["steps"])
    head = "".join(f"<th class=n>{LABELS[step]}</th>" for step in steps)
    rows = [_row(source, found, steps, "") for source, found in report["sources"].items()]
    rows.append(_row("all", report["steps"], steps, " class=all"))
    return (
        f"<h2>By source</h2><table><tr><th></th>{head}</tr>{''.join(rows)}</table>"
        "<p class=faint>Shares are of the raw bytes of all sources.</p>"
    )


def _row(name: str, found: dict[str, Any], steps: list[str], style: str) -> str:
    cells = "".join(
        f"<td class=n>{_percent(100 * found[step]['share_of_raw_bytes'])}<small>{found[step]['texts']:,} texts</small>"
        f"<small>{found[step]['characters'] / 1e6:,.2f} M chars, {found[step]['bytes'] / 1e6:,.2f} MB</small></td>"
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
