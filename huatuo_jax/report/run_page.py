"""The report of a run: `plots/*.png` and one self-contained `report.html` in the run directory.

`huatuo report` calls `write_run_report` after (or during) training. What is drawn comes from `history.py`, which reads the run's
files; how it looks from `style.py`. What must hold: a picture whose data is missing is left out, never drawn empty, and the page
needs no other file. Next to read: `history.py`.
"""

import html
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from huatuo_jax.io.files import write_bytes, write_text
from huatuo_jax.mixtures import in_mixture_order
from huatuo_jax.report.history import History, read_history
from huatuo_jax.report.style import INK, PALETTE, colors, html_image, html_page, html_table, image, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def write_run_report(run: Path) -> dict[str, str]:
    """Writes the plots and `report.html` of a run; returns name → path of everything written."""
    history = read_history(run)
    pictures = draw_pictures(history)
    written = {name: str(run / "plots" / f"{name}.png") for name in pictures}
    for name, png in pictures.items():
        write_bytes(written[name], png)
    written["report"] = str(run / "report.html")
    write_text(written["report"], _page(history, pictures))
    return written


# ---------------------------------------------------------------- the pictures


def draw_pictures(history: History) -> dict[str, bytes]:
    """Name ("loss", "mixing", …) → PNG of every picture that the history has data for."""
    drawers: dict[str, tuple[Callable[[Axes, History], None], bool]] = {
        "loss": (_draw_loss, True),
        "loss_per_source": (_draw_loss_per_source, bool(history.sources)),
        "mixing": (_draw_mixing, bool(history.mixing)),
        "learning_rate": (_draw_learning_rate, True),
        "throughput": (_draw_throughput, history.series("tokens_per_second")[0].size > 0),
        "recall": (_draw_recall, bool(history.recall.get("sources"))),
    }
    pictures = {}
    for name, (draw, has_data) in drawers.items():
        if has_data:
            figure = new_figure()
            draw(figure.axes[0], history)
            pictures[name] = image(figure)
    return pictures


def smooth(values: np.ndarray, share: float = 0.05) -> np.ndarray:
    """Centred moving average of values [n] over `share` of the points; near the ends, over the points that exist."""
    width = max(1, int(len(values) * share))
    if width == 1:
        return values
    # Divided by how many points each place really sums: a plain average would fall towards 0 at both ends.
    kernel = np.ones(width)
    return np.convolve(values, kernel, "same") / np.convolve(np.ones_like(values), kernel, "same")


def _draw_loss(axes: "Axes", history: History) -> None:
    steps, loss = history.series("loss")
    axes.plot(steps, loss, color=PALETTE[1], linewidth=0.8, alpha=0.7, label="each logged step", marker=_marker(steps))
    axes.plot(steps, smooth(loss), color=PALETTE[0], linewidth=2, label="moving average")
    held_out_steps, held_out = history.series("eval_loss")
    if held_out_steps.size:
        axes.plot(held_out_steps, held_out, "o-", color=PALETTE[6], markersize=4, label="held out")
    axes.set(title="Training loss", xlabel="step", ylabel="cross-entropy per target token (nats)")
    axes.legend(frameon=False)


def _draw_loss_per_source(axes: "Axes", history: History) -> None:
    for color, source in zip(colors(len(history.sources)), history.sources, strict=True):
        steps, loss = history.series(f"loss/{source}")
        axes.plot(steps, smooth(loss), color=color, linewidth=1.6, label=source, marker=_marker(steps))
    axes.set(title="Training loss per source", xlabel="step", ylabel="cross-entropy per target token (nats)")
    _legend_beside(axes)


def _draw_mixing(axes: "Axes", history: History) -> None:
    shares = list(history.mixing.values())
    # A step plot needs the right edge of the last window too, so the last share is given twice.
    edges = np.linspace(0, 1, len(shares[0]) + 1)
    steps = [np.append(s, s[-1]) for s in shares]
    axes.stackplot(edges, steps, labels=list(history.mixing), colors=colors(len(steps)), step="post", linewidth=0)
    axes.set(title="Mixing curve actually trained", xlabel="duration of the run", ylabel="share of the records")
    axes.set(xlim=(0, 1), ylim=(0, 1))
    _legend_beside(axes)


def _draw_learning_rate(axes: "Axes", history: History) -> None:
    _draw_line(axes, history, "learning_rate", PALETTE[0])
    axes.set(title="Learning rate", xlabel="step", ylabel="rate")


def _draw_throughput(axes: "Axes", history: History) -> None:
    _draw_line(axes, history, "tokens_per_second", PALETTE[2])
    axes.set(title="Throughput", xlabel="step", ylabel="tokens per second")


def _draw_recall(axes: "Axes", history: History) -> None:
    sources = history.recall["sources"]
    names = in_mixture_order(sources, history.config["data"].get("mixture", {}))
    bars = axes.barh(names, [100 * sources[name]["recall"] for name in names], color=colors(len(names)))
    axes.bar_label(bars, fmt="%.0f %%", padding=3, color=INK)
    axes.invert_yaxis()
    axes.grid(visible=False)
    characters = history.recall["characters"]
    axes.set(title="Recall of trained records, greedy", xlabel=f"% of the first {characters} characters right", xlim=(0, 112))


def _draw_line(axes: "Axes", history: History, key: str, color: str) -> None:
    steps, values = history.series(key)
    axes.plot(steps, values, color=color, linewidth=2, marker=_marker(steps))
    axes.set_ylim(bottom=0)


def _legend_beside(axes: "Axes") -> None:
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1.0), fontsize=8)


def _marker(steps: np.ndarray) -> str:
    """Points where a run has few logged steps: a line through one point would be invisible."""
    return "o" if len(steps) < 5 else ""


# ---------------------------------------------------------------- the page


def _page(history: History, pictures: dict[str, bytes]) -> str:
    # Prompts, answers, names and the config come from data: everything but our own tags is escaped.
    parts = [_summary(history), *(html_image(title, png) for title, png in pictures.items())]
    if history.mixing_note:
        parts.append(f'<p class="faint">No mixing curve: {html.escape(history.mixing_note)}</p>')
    parts += [_answers(history), _recall_table(history)]
    parts.append(f"<h2>Resolved config</h2><pre>{html.escape(json.dumps(history.config, ensure_ascii=False, indent=2))}</pre>")
    return html_page(history.config["name"], parts)


def _summary(history: History) -> str:
    first, last = history.steps[0], history.steps[-1]
    rows = [
        ("steps", f"{last['step']:,}"),
        ("loss", f"{_number(first['loss'])} → {_number(last['loss'])}"),
        ("tokens", f"{last['tokens']:,} ({last['target_tokens']:,} targets)"),
        ("tokens per second", f"{last['tokens_per_second']:,.0f}"),
        ("skipped updates", f"{last.get('skipped', 0):,}"),
    ]
    if history.evaluations:
        rows.append(("held-out loss", f"{history.evaluations[-1]['eval_loss']:.3f}"))
    return html_table((), rows)


def _number(value: float | None) -> str:
    """Three digits; a dash for an interval in which no update was made."""
    return "–" if value is None else f"{value:.3f}"


def _answers(history: History) -> str:
    rows = []
    for answer in history.answers:
        recall = answer.get("recall")
        right = "" if recall is None else f' <span class="faint">({100 * recall:.0f} % right)</span>'
        question, text = html.escape(answer["prompt"]), html.escape(answer["answer"])
        rows.append(f"<p><b>{question}</b>{right}<br>{text}</p>")
    return "<h2>Asked after training</h2>" + "".join(rows) if rows else ""


def _recall_table(history: History) -> str:
    sources = history.recall.get("sources")
    if not sources:
        return ""
    rows = [(html.escape(name), f"{100 * entry['recall']:.1f} %", str(entry["records"])) for name, entry in sources.items()]
    return "<h2>Recall per source</h2>" + html_table(("source", "recall", "records"), rows)
