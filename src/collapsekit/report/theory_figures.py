"""Figures of the theory alone: regimes of the norms, phase diagram, confidence map, losses side by side, price of ReLU.

The conventions are those of `figures`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from collapsekit.losses import Loss
from collapsekit.prediction import predict
from collapsekit.prediction._phase import PhaseDiagram
from collapsekit.problem import UFM
from collapsekit.report.figures import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    against_size,
    legend_above,
    name_ticks,
    new_axes,
    plain_ticks,
)
from collapsekit.theory._thresholds import thresholds
from collapsekit.validation import Array

STYLES = ((BLUE, "-"), (ORANGE, "--"), (GREEN, "-."), ("black", ":"), (GREY, (0, (5, 1))))
REGIMES = {"λ → 0": 1e-6, "0.01 × threshold": 1e-2, "0.3 × threshold": 0.3, "0.9 × threshold": 0.9}
"""λ_W λ_H as multiples of the smallest class's threshold, from the limit λ → 0 to where that class vanishes."""
MOST_POINTS = 200
"""Of more classes some are drawn, evenly by rank."""
ON_COLOURS: Any = {"color": "white", "path_effects": [withStroke(linewidth=3, foreground="black")]}


def predicted_line(problem: UFM, *, ax: Axes | None = None) -> Axes:
    """Draw predicted class confidence against class size, and where classes die."""
    ax = ax or new_axes()
    frame, limits, order = predict(problem), thresholds(problem), _by_size(problem)
    ax.plot(problem.counts[order], frame.confidences[order], "s-", ms=5, mfc="none", color=BLUE)
    low, high = limits.critical_count.min(), limits.critical_count.max()
    if np.isclose(low, high):  # with class weights or target margins every class has a threshold of its own
        left = min(problem.counts.min(), high) / 1.5
        ax.axvspan(left, high, color="0.92", lw=0)
        ax.set_xlim(left=left)
        ax.annotate(f"dies at {high:.3g}", (high, 1.0), (3, 0), textcoords="offset points", va="top", color=GREY)
    ax.axhline(1 / problem.num_classes, color=GREY, lw=0.8, ls=":")
    return against_size(ax, "training confidence", (0, 1.02), 0)


def norm_regimes(problem: UFM, *, scales: Mapping[str, float] = REGIMES, ax: Axes | None = None) -> Axes:
    """Draw ‖h_k‖² against class size at several penalties: minority features are longest in the limit, then vanish."""
    ax = ax or new_axes()
    order, limit = _by_size(problem), float(thresholds(problem).headroom.min())
    for (colour, line), (label, scale) in zip(STYLES, scales.items(), strict=False):
        sqnorms = predict(_scaled(problem, limit * scale)).feature_sqnorms
        ax.plot(problem.counts[order], (sqnorms / sqnorms.max())[order], color=colour, ls=line, label=label)
    return against_size(ax, "‖h‖² of the class mean / largest", (0, None), 3)


def phase(diagram: PhaseDiagram, *, point: tuple[float, float] | None = None, ax: Axes | None = None) -> Axes:
    """Draw the number of surviving classes over imbalance and penalty, with the first and the last death.

    `point` is a λ_W λ_H and a ratio to mark.
    """
    ax = ax or new_axes()
    colours: Any = {"cmap": "cividis", "vmin": 0, "vmax": diagram.num_classes}
    image = ax.pcolormesh(diagram.products, diagram.ratios, diagram.survivors, rasterized=True, **colours)
    ax.plot(diagram.first_death, diagram.ratios, lw=1.5, label="first class dies", **ON_COLOURS)
    ax.plot(diagram.last_death, diagram.ratios, ls="--", lw=1.5, label="last class dies", **ON_COLOURS)
    ax.set(xscale="log", yscale="log", xlabel="λ_W λ_H", ylabel="largest / smallest count")
    ax.set(xlim=(diagram.products[0], diagram.products[-1]), ylim=(diagram.ratios[0], diagram.ratios[-1]))
    if point is not None:
        ax.plot(*point, "X", ms=9, mec="black", mfc=ORANGE, ls="none", label="this problem", clip_on=False)
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, fontsize=7, facecolor="0.75", columnspacing=1.0)
    ax.figure.colorbar(image, ax=ax, label="surviving classes")
    return ax


def confidence_map(problem: UFM, *, points: int = 60, ax: Axes | None = None) -> Axes:
    """Draw the confidence of every class over penalties, from a hundredth of the first death to beyond the last."""
    ax = ax or new_axes()
    limits, order = thresholds(problem), _by_size(problem)[::-1]
    scales = np.geomspace(0.01 * limits.headroom.min(), 1.5 * limits.headroom.max(), points)
    confidences = np.array([predict(_scaled(problem, float(scale))).confidences[order] for scale in scales]).T
    rows = np.arange(len(order))
    image = ax.pcolormesh(scales, rows, confidences, cmap="cividis", vmin=0, vmax=1, rasterized=True)
    ax.vlines(limits.headroom[order], rows - 0.5, rows + 0.5, lw=1.5, label="dies", **ON_COLOURS)
    if scales[0] < 1 < scales[-1]:
        ax.axvline(1.0, lw=1.5, ls=":", label="as given", **ON_COLOURS)
    ax.set(xscale="log", xlabel="λ_W λ_H relative to that given", ylabel="class, largest first", xlim=scales[[0, -1]])
    name_ticks([] if problem.names is None else [problem.names[k] for k in order], ax.yaxis)
    ax.invert_yaxis()
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, fontsize=7, facecolor="0.75")
    ax.figure.colorbar(image, ax=ax, label="training confidence")
    return ax


def loss_families(problem: UFM, families: Mapping[str, Loss], *, ax: Axes | None = None) -> Axes:
    """Draw the predicted margins of several losses on the same problem, each scaled to its largest."""
    ax = ax or new_axes()
    order = _by_size(problem)
    for (colour, line), (name, loss) in zip(STYLES, families.items(), strict=False):
        margins = predict(replace(problem, loss=loss)).margins
        scaled = margins / (margins.max() or 1.0)
        ax.plot(problem.counts[order], scaled[order], color=colour, ls=line, marker=".", label=name)
    return against_size(ax, "margin / largest", (0, 1.05), 3)


def price_of_relu(largest: int = 64, *, ax: Axes | None = None) -> Axes:
    """Draw critical λ_W λ_H of balanced classes with and without ReLU features, times N: their ratio is K/(K−1)."""
    ax = ax or new_axes()
    sizes = np.unique(np.round(np.geomspace(2, largest, 40))).astype(int)
    # balanced: n = N/K. With ReLU (K−1)/K · n/N², without n/N²
    ax.plot(sizes, (sizes - 1) / sizes**2, "-", color=BLUE, label="ReLU features")
    ax.plot(sizes, 1 / sizes, "--", color=ORANGE, label="free features")
    ax.set(xscale="log", yscale="log", xlabel="classes K", ylabel="N · critical λ_W λ_H")
    plain_ticks(ax)
    heights = (0.02, 0.05, 0.1, 0.2, 0.5)
    ax.set_yticks(heights, [f"{height:g}" for height in heights])
    ax.minorticks_off()
    legend_above(ax, 3)
    return ax


def before_and_after(problem: UFM, before: Array, after: Mapping[str, Array], *, ax: Axes | None = None) -> Axes:
    """Draw the confidences of each class before and after several changes, against class size before them."""
    ax = ax or new_axes()
    order, counts = _by_size(problem), problem.counts
    ax.plot(counts[order], before[order], "s-", ms=5, mfc="none", color=BLUE, label="now")
    for (colour, line), (name, values) in zip(STYLES[1:], after.items(), strict=False):
        ax.plot(counts[order], values[order], color=colour, ls=line, marker=".", label=name)
    return against_size(ax, "training confidence", (0, 1.02), 3)


def _by_size(problem: UFM) -> NDArray[np.intp]:
    """Classes, smallest first."""
    order = np.argsort(problem.counts, kind="stable")
    return np.asarray(order[np.unique(np.linspace(0, len(order) - 1, min(len(order), MOST_POINTS)).astype(int))])


def _scaled(problem: UFM, factor: float) -> UFM:
    """The problem with λ_W λ_H multiplied, at the same ratio."""
    root = float(np.sqrt(factor))
    return replace(problem, lambda_w=problem.lambda_w * root, lambda_h=problem.lambda_h * root)
