"""Figures: each takes data and, optionally, the axes to draw on, and returns the axes.

Colours are from the Okabe-Ito palette and every colour is doubled by a marker, a line style or a label. Predictions
are hollow or lines, measurements filled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis, XAxis
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from collapsekit.diagnosis import Comparison
from collapsekit.prediction import Prediction
from collapsekit.validation import Array, short

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#666666"
MOST_LABELS = 20
"""Above this many classes points are not labelled and trajectories not named."""
MOST_LETTERS = 12
"""Of a name in a figure."""
FAR = 10.0
"""Where every class has more headroom than this, the threshold is not drawn: all points would lie in one corner."""

STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "collapsekit",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.constrained_layout.use": True,
}


def style() -> AbstractContextManager[None]:
    """Draw with matplotlib's defaults and our style, whatever the user has set."""
    return matplotlib.style.context(["default", STYLE])


def new_axes(width: float = 4.6, height: float = 3.4) -> Axes:
    """Return the axes of a new figure, in inches; no window and no global state."""
    return Figure(figsize=(width, height)).add_subplot()


def collapse_line(frame: Prediction, comparison: Comparison, *, ax: Axes | None = None) -> Axes:
    """Draw class confidence against headroom: the predicted line, its collapse at 1, and the measured classes."""
    ax = ax or new_axes()
    measured = np.array([c.measured_confidence for c in comparison.classes])
    size = len(measured)
    least, widest = float(frame.headroom.min()), max(2.0, float(frame.headroom.max())) * 1.15
    x = np.geomspace(min(0.5, least) / 1.15 if least < FAR else least / 2, widest, 400)
    loss = frame.problem.loss
    if least < FAR:
        ax.axvspan(x[0], 1.0, color="0.92", lw=0)
        ax.text(0.02, 0.96, "collapsed", transform=ax.transAxes, va="top", color=GREY)
    if getattr(loss, "margins", None) is None:
        margins = loss.margin(loss.critical_price(size) / np.sqrt(x), size)
        ax.plot(x, loss.confidence(margins, size), color=BLUE, label="predicted")
    else:  # each class has a line of its own
        ax.plot(frame.headroom, frame.confidences, "s", ms=8, mfc="none", color=BLUE, label="predicted")
    ax.plot(frame.headroom, measured, "o", ms=5, color=ORANGE, label="measured")
    if size <= MOST_LABELS:
        for c, px, py in zip(comparison.classes, frame.headroom, measured, strict=True):
            # points in a row: beside one another their names would overlap
            offset, turned = ((4, -9), 0) if px > 1 else ((2, 5), 45)
            _label(ax, short(c.label, MOST_LETTERS), (px, py), offset, rotation=turned)
    lowest = float(np.nanmin([measured, frame.confidences]))
    if lowest > 0.5:
        ax.set_ylim(1 - 1.5 * (1 - lowest), 1 + 0.1 * (1 - lowest) + 1e-6)
    else:
        ax.axhline(1 / size, color=GREY, lw=0.8, ls=":")
        ax.text(x[-1], 1 / size, "1/K", ha="right", va="bottom", color=GREY)
        ax.set_ylim(0, 1.02)
    labels = {"xlabel": "headroom: class size / critical size", "ylabel": "training confidence"}
    ax.set(xscale="log", xlim=(x[0], x[-1]), **labels)
    plain_ticks(ax)
    legend_above(ax)
    return ax


def by_count(counts: Array, predicted: Array | None, measured: Array, *, ylabel: str, ax: Axes | None = None) -> Axes:
    """Draw a quantity of each class against class size, predicted (if there is a prediction) and measured."""
    ax = ax or new_axes()
    if predicted is not None:
        order = np.argsort(counts, kind="stable")
        ax.plot(counts[order], predicted[order], "-", color=BLUE, lw=1)
        ax.plot(counts, predicted, "s", ms=8, mfc="none", color=BLUE, label="predicted")
    ax.plot(counts, measured, "o", ms=4, color=ORANGE, label="measured")
    return against_size(ax, ylabel, (0, None), 0 if predicted is None else 2)


def against_size(ax: Axes, ylabel: str, ylim: tuple[float, float | None], columns: int) -> Axes:
    """Finish axes that have class sizes below, with a legend of so many columns, if any; return them."""
    ax.set(xscale="log", xlabel="training samples of the class", ylabel=ylabel, ylim=ylim)
    plain_ticks(ax)
    if columns:
        legend_above(ax, columns)
    return ax


def gram(matrix: Array, *, title: str, limit: float, labels: Sequence[str] = (), ax: Axes | None = None) -> Axes:
    """Draw a Gram matrix on a diverging scale from −`limit` to `limit`."""
    ax = ax or new_axes(3.6, 3.2)
    image = ax.imshow(matrix, cmap="PuOr_r", vmin=-limit, vmax=limit)
    name_ticks(labels, ax.xaxis, ax.yaxis)
    ax.set_title(title, fontsize=9)
    ax.figure.colorbar(image, ax=ax, shrink=0.8)
    return ax


def objective_trajectory(history: list[dict[str, Any]], predicted: float, *, ax: Axes | None = None) -> Axes:
    """Draw how far the training objective lies above the predicted optimum, relative to it, over the steps."""
    excess = np.array([entry["objective"] for entry in history]) / predicted - 1
    ax = _over_steps(history, np.maximum(excess, 1e-7), "objective / predicted optimum − 1", ORANGE, ax)
    ax.set_yscale("log")
    return ax


def loss_trajectory(history: list[dict[str, Any]], *, ax: Axes | None = None) -> Axes:
    """Draw the training loss, without penalties, over the steps."""
    return _over_steps(history, [entry["loss"] for entry in history], "training loss", ORANGE, ax)


def nc1_trajectory(history: list[dict[str, Any]], *, ax: Axes | None = None) -> Axes:
    """Draw NC1, within-class relative to between-class variability, over the steps."""
    return _over_steps(history, [entry["nc1"] for entry in history], "NC1", GREEN, ax)


def _over_steps(history: list[dict[str, Any]], values: ArrayLike, ylabel: str, color: str, ax: Axes | None) -> Axes:
    """On a logarithmic axis, unless no value is above 0: samples of a class may be the same to the last bit."""
    ax, numbers = ax or new_axes(), np.array(values, dtype=float)
    ax.plot([entry["step"] for entry in history], numbers, color=color)
    ax.set(yscale="log" if (numbers > 0).any() else "linear", xlabel="training step", ylabel=ylabel)
    return ax


def confidence_trajectory(
    history: list[dict[str, Any]], predicted: Array | None, *, labels: Sequence[str], ax: Axes | None = None
) -> Axes:
    """Draw each class's confidence over the steps, and the predicted ones, if any, at the right edge."""
    ax = ax or new_axes()
    steps = [entry["step"] for entry in history]
    confidences = np.array([entry["confidences"] for entry in history], dtype=float).reshape(-1, len(labels))
    for k, shade in enumerate(np.linspace(0.0, 0.75, len(labels))):
        ax.plot(steps, confidences[:, k], color=str(shade), lw=1)
    if steps and predicted is not None:
        ends = [steps[-1]] * len(predicted)
        ax.plot(ends, predicted, "s", ms=6, mfc="none", color=BLUE, label="predicted", clip_on=False)
        legend_above(ax)
    if steps and len(labels) <= MOST_LABELS:
        for height, names in _stacked(labels, confidences[-1] if predicted is None else predicted):
            _label(ax, names, (steps[-1], height), (7, -3), annotation_clip=False)
    ax.set(xlabel="training step", ylabel="training confidence", ylim=(0, 1.02))
    return ax


def _label(ax: Axes, text: str, point: tuple[float, float], offset: tuple[float, float], **style: Any) -> None:
    """Write names beside a point, as they stand: no part of them is a formula."""
    ax.annotate(text, point, offset, textcoords="offset points", fontsize=7, parse_math=False, **style)


def legend_above(ax: Axes, ncols: int = 2) -> None:
    """Put the legend where no data can be."""
    ax.legend(frameon=False, loc="lower right", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.0, ncols=ncols, fontsize=8)


def name_ticks(labels: Sequence[str], *axes: Axis) -> None:
    """Write class names beside the cells of a matrix; of many classes whole numbers."""
    names = [short(label, MOST_LETTERS) for label in labels]
    for axis in axes:
        if 0 < len(names) <= MOST_LABELS:
            upright = 90 if isinstance(axis, XAxis) and max(map(len, names)) > 2 else 0
            axis.set_ticks(range(len(names)), names, parse_math=False, rotation=upright, fontsize=7)
        else:
            axis.set_major_locator(MaxNLocator(integer=True))


def plain_ticks(ax: Axes) -> None:
    """Label a logarithmic x axis with 1, 2, 5, 10 …, or with powers of ten alone if it is long."""
    low, high = ax.get_xlim()
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if len(decades) <= 4 else (1,)
    ticks = [s * 10.0**d for d in decades for s in steps if low <= s * 10.0**d <= high]
    ax.set_xticks(ticks, [f"{t:g}" for t in ticks])
    ax.minorticks_off()


def _stacked(labels: Sequence[str], heights: Array, apart: float = 0.035) -> list[tuple[float, str]]:
    """Join labels that would be printed over one another; those of unknown height are left out."""
    stacks: list[tuple[float, list[str]]] = []
    for k in np.argsort(heights, kind="stable"):
        if stacks and heights[k] - stacks[-1][0] < apart:
            stacks[-1][1].append(labels[k])
        elif np.isfinite(heights[k]):
            stacks.append((float(heights[k]), [labels[k]]))
    return [(height, _joined([short(name, MOST_LETTERS) for name in names])) for height, names in stacks]


def _joined(names: list[str], most: int = 24) -> str:
    """Whole names as far as they fit, one at least, and how many more there are."""
    shown = max(1, sum(len(", ".join(names[: k + 1])) <= most for k in range(len(names))))
    more = f" +{len(names) - shown}" if shown < len(names) else ""
    return ", ".join(names[:shown]) + more
