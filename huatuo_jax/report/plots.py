"""A run's history in, figures out: loss, loss per source, mixing curve, learning rate, throughput, recall."""

from collections.abc import Callable

import matplotlib
import numpy as np

matplotlib.use("Agg")

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from huatuo_jax.report.history import History, in_mixture_order
from huatuo_jax.report.style import PALETTE

INK, FAINT = "#222222", "#dddddd"


def figures(history: History) -> dict[str, Figure]:
    """The figures that the history has data for, by name ("loss", "mixing", …)."""
    drawers: dict[str, tuple[Callable[[Axes, History], None], bool]] = {
        "loss": (_loss, True),
        "loss_per_source": (_loss_per_source, bool(history.sources)),
        "mixing": (_mixing, bool(history.mixing)),
        "learning_rate": (_learning_rate, True),
        "throughput": (_throughput, history.series("tokens_per_second")[0].size > 0),
        "recall": (_recall, bool(history.recall.get("sources"))),
    }
    return {name: _figure(draw, history) for name, (draw, has_data) in drawers.items() if has_data}


def _figure(draw: Callable[[Axes, History], None], history: History) -> Figure:
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    draw(axes, history)
    return figure


def smooth(values: np.ndarray, share: float = 0.05) -> np.ndarray:
    """Centred moving average over `share` of the points; the ends average over what is there."""
    width = max(1, int(len(values) * share))
    if width == 1:
        return values
    kernel = np.ones(width)
    return np.convolve(values, kernel, "same") / np.convolve(np.ones_like(values), kernel, "same")


def _loss(axes: Axes, history: History) -> None:
    steps, loss = history.series("loss")
    axes.plot(steps, loss, color=PALETTE[1], linewidth=0.8, alpha=0.7, label="each logged step", marker=_marker(steps))
    axes.plot(steps, smooth(loss), color=PALETTE[0], linewidth=2, label="moving average")
    held_out_steps, held_out = history.series("eval_loss")
    if held_out_steps.size:
        axes.plot(held_out_steps, held_out, "o-", color=PALETTE[6], markersize=4, label="held out")
    axes.set(title="Training loss", xlabel="step", ylabel="cross-entropy per target token (nats)")
    axes.legend(frameon=False)


def _loss_per_source(axes: Axes, history: History) -> None:
    for color, source in zip(_colors(len(history.sources)), history.sources, strict=True):
        steps, loss = history.series(f"loss/{source}")
        axes.plot(steps, smooth(loss), color=color, linewidth=1.6, label=source, marker=_marker(steps))
    axes.set(title="Training loss per source", xlabel="step", ylabel="cross-entropy per target token (nats)")
    _legend_beside(axes)


def _mixing(axes: Axes, history: History) -> None:
    windows = len(next(iter(history.mixing.values())))
    starts = np.arange(windows + 1) / windows
    shares = [np.append(s, s[-1]) for s in history.mixing.values()]
    axes.stackplot(starts, shares, labels=list(history.mixing), colors=_colors(len(shares)), step="post", linewidth=0)
    axes.set(
        title="Mixing curve actually trained",
        xlabel="duration of the run",
        ylabel="share of the records",
        xlim=(0, 1),
        ylim=(0, 1),
    )
    _legend_beside(axes)


def _learning_rate(axes: Axes, history: History) -> None:
    steps, rates = history.series("learning_rate")
    axes.plot(steps, rates, color=PALETTE[0], linewidth=2, marker=_marker(steps))
    axes.set(title="Learning rate", xlabel="step", ylabel="rate")
    axes.set_ylim(bottom=0)


def _throughput(axes: Axes, history: History) -> None:
    steps, tokens = history.series("tokens_per_second")
    axes.plot(steps, tokens, color=PALETTE[2], linewidth=1.5, marker=_marker(steps))
    axes.set(title="Throughput", xlabel="step", ylabel="tokens per second")
    axes.set_ylim(bottom=0)


def _recall(axes: Axes, history: History) -> None:
    sources = history.recall["sources"]
    names = in_mixture_order(history.config, sources)
    shares = [100 * sources[name]["recall"] for name in names]
    bars = axes.barh(names, shares, color=_colors(len(names)))
    axes.bar_label(bars, fmt="%.0f %%", padding=3, color=INK)
    axes.invert_yaxis()
    axes.grid(visible=False)
    characters = history.recall["characters"]
    axes.set(title="Recall of trained records, greedy", xlabel=f"% of the first {characters} characters right", xlim=(0, 112))


def _colors(count: int) -> list[str]:
    return [PALETTE[i % len(PALETTE)] for i in range(count)]


def _legend_beside(axes: Axes) -> None:
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1.0), fontsize=8)


def _marker(steps: np.ndarray) -> str:
    """Points of a run with few logged steps, which would else draw no line."""
    return "o" if len(steps) < 5 else ""
