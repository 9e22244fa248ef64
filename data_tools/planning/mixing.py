"""The mixing curve: which source the draws of each part of a run come from.

`huatuo-data mix` draws it from sizes alone, before there is any data, or from a finished plan. What must hold: beside the
measured curve stands the closed form that it approaches with large sources, derived without any of the code that draws: an
independent check. Next to read: `huatuo_jax/data/priority.py`.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from huatuo_jax.config import SourceMix, require
from huatuo_jax.data.plan import Plan
from huatuo_jax.data.priority import draw_order
from huatuo_jax.io.files import PathLike, write_text
from huatuo_jax.mixtures import Curve, in_mixture_order, mixing_curve
from huatuo_jax.report.style import colors, new_figure, save_figure


def drawn_curve(counts: Mapping[str, int], mixture: Mapping[str, SourceMix], windows: int, seed: int) -> Curve:
    """The curve of one drawn order, from record counts alone: source → float64 [windows]."""
    counts = {source: count for source, count in counts.items() if source in mixture}
    offsets = np.cumsum([0, *counts.values()])
    return _checked_curve(draw_order(counts, mixture, seed), offsets, list(counts), windows)


def planned_curve(plan: Plan, windows: int) -> Curve:
    """The curve of a plan, source → float64 [windows] over its draws in the order of training; sources by falling priority."""
    records, offsets = np.asarray(plan.row_docs), np.asarray(plan.manifest["offsets"])
    curve, mixture = _checked_curve(records, offsets, plan.manifest["sources"], windows), plan.manifest["mixture"]
    return {source: curve[source] for source in in_mixture_order(mixture, mixture)}


def closed_form(counts: Mapping[str, int], mixture: Mapping[str, SourceMix], windows: int) -> Curve:
    """The expected curve of large sources, source → float64 [windows].

    At "time" u the share exp(−π·u) of a source is not yet drawn, so u at the part t of N draws solves Σ n·(1 − exp(−π·u)) = t·N.
    It has no solution in closed form; it rises with u, so it is found by halving an interval, for all windows at once.
    """
    draws = {source: int(counts[source] * mix.epochs) for source, mix in mixture.items()}
    n = np.array(list(draws.values()), np.float64)[:, None]
    priority = np.array([mix.priority for mix in mixture.values()], np.float64)[:, None]
    priority = priority / priority.max()  # only ratios matter, and so u stays within what float64 can tell apart
    drawn = np.linspace(0, n.sum(), windows + 1)
    low, high = np.zeros(windows + 1), np.full(windows + 1, 750.0 / priority.min())  # exp(-750) is 0 in float64: all is drawn
    for _ in range(200):  # halvings: more than float64 has bits to tell apart
        middle = (low + high) / 2
        enough = (n * -np.expm1(-priority * middle)).sum(axis=0) >= drawn
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    shares = np.diff(n * -np.expm1(-priority * high), axis=1) / (n.sum() / windows)
    return dict(zip(draws, shares, strict=True))


def _checked_curve(records: np.ndarray, offsets: np.ndarray, sources: Sequence[str], windows: int) -> Curve:
    require(len(records) >= windows, f"--windows is {windows}, but there are only {len(records)} draws; ask for fewer windows")
    return mixing_curve(records, offsets, sources, windows)


def starts(windows: int) -> np.ndarray:
    """Where each window starts, as a fraction of the run: float64 [windows]."""
    return np.arange(windows) / windows


def write_csv(path: PathLike, curve: Curve) -> None:
    """Writes `duration` (start of the window, 0 to 1) and one column per source."""
    table = np.stack([starts(len(next(iter(curve.values())))), *curve.values()], axis=1)
    lines = [",".join(["duration", *curve])] + [",".join(f"{value:.6f}" for value in row) for row in table]
    write_text(path, "\n".join(lines) + "\n")


def plot(path: PathLike, curve: Curve, title: str) -> None:
    """Draws the curve as a stacked area chart; the format follows the file's name (`report.style.image_format`)."""
    windows = len(next(iter(curve.values())))
    edges = np.linspace(0, 1, windows + 1)
    figure = new_figure(9.5, 4.8, grid=None)
    [axes] = figure.axes
    base = np.zeros(windows)
    for color, (source, shares) in zip(colors(len(curve)), curve.items(), strict=True):
        axes.stairs(base + shares, edges, baseline=base, fill=True, color=color, label=source, edgecolor="white", linewidth=0.4)
        base = base + shares
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="part of the run", ylabel="share of draws")
    axes.set_title(title, loc="left")
    axes.xaxis.set_major_formatter("{x:.0%}")
    axes.yaxis.set_major_formatter("{x:.0%}")
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside right upper", frameon=False)
    save_figure(path, figure)
