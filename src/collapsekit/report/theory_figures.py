"""Figures of the theory alone: regimes of the norms, phase diagram, confidence map, losses side by side, price of ReLU.

The conventions are those of `figures`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from matplotlib.axes import Axes

from collapsekit.losses import Loss
from collapsekit.problem import UFM
from collapsekit.report.figures import BLUE, GREEN, GREY, ORANGE, new_axes, plain_ticks
from collapsekit.theory.closed_form import predict
from collapsekit.theory.limits import thresholds
from collapsekit.theory.phase import PhaseDiagram
from collapsekit.validation import Array

STYLES = ((BLUE, "-"), (ORANGE, "--"), (GREEN, "-."), ("black", ":"), (GREY, (0, (5, 1))))
REGIMES = (1e-6, 1e-2, 0.3, 0.9)
"""λ_W λ_H as multiples of the smallest class's threshold, from the limit λ → 0 to where that class vanishes."""


def predicted_line(problem: UFM, *, ax: Axes | None = None) -> Axes:
    """Draw predicted class confidence against class size, and where classes die."""
    ax = ax or new_axes()
    frame, limits = predict(problem), thresholds(problem)
    order = np.argsort(problem.counts, kind="stable")
    ax.plot(problem.counts[order], frame.confidences[order], "s-", ms=5, mfc="none", color=BLUE, label="predicted")
    low, high = limits.critical_count.min(), limits.critical_count.max()
    if np.isclose(low, high) and high > problem.counts.min():
        ax.axvspan(0.9 * problem.counts.min(), high, color="0.92", lw=0)
        ax.text(0.02, 0.9, "collapsed", va="top", color=GREY, transform=ax.transAxes)
    ax.axhline(1 / problem.num_classes, color=GREY, lw=0.8, ls=":")
    ax.set(xscale="log", xlabel="training samples of the class", ylabel="training confidence", ylim=(0, 1.02))
    plain_ticks(ax)
    return ax


def norm_regimes(problem: UFM, *, scales: tuple[float, ...] = REGIMES, ax: Axes | None = None) -> Axes:
    """Draw ‖h_k‖² against class size at several penalties: minority features are longest in the limit, then vanish."""
    ax = ax or new_axes()
    order = np.argsort(problem.counts, kind="stable")
    limit = thresholds(problem).headroom.min()
    for (colour, line), scale in zip(STYLES, scales, strict=False):
        factor = np.sqrt(limit * scale)
        scaled = replace(problem, lambda_w=problem.lambda_w * factor, lambda_h=problem.lambda_h * factor)
        sqnorms = predict(scaled).feature_sqnorms
        label = f"{scale:g} × threshold"
        ax.plot(problem.counts[order], (sqnorms / sqnorms.max())[order], color=colour, ls=line, label=label)
    ax.set(xscale="log", xlabel="training samples of the class", ylabel="‖h‖² / largest")
    ax.set_ylim(bottom=0)
    ax.legend(frameon=False)
    return ax


def phase(diagram: PhaseDiagram, *, ax: Axes | None = None) -> Axes:
    """Draw the number of surviving classes over imbalance and penalty, with the first and the last death."""
    ax = ax or new_axes()
    image = ax.pcolormesh(
        diagram.products, diagram.ratios, diagram.survivors, cmap="cividis", vmin=0, vmax=diagram.num_classes
    )
    for deaths, line, label in ((diagram.first_death, "-", "first class dies"), (diagram.last_death, "--", "last")):
        ax.plot(deaths, diagram.ratios, color="white", ls=line, label=label)
    ax.set(xscale="log", yscale="log", xlabel="λ_W λ_H", ylabel="largest / smallest count")
    ax.set(xlim=(diagram.products[0], diagram.products[-1]), ylim=(diagram.ratios[0], diagram.ratios[-1]))
    ax.legend(loc="upper left", facecolor="0.3", labelcolor="white", framealpha=0.8)
    _bar(ax, image, "surviving classes")
    return ax


def confidence_map(problem: UFM, *, points: int = 60, ax: Axes | None = None) -> Axes:
    """Draw the confidence of every class over penalties, from a hundredth of the first death to the last."""
    ax = ax or new_axes()
    limits = thresholds(problem)
    order = np.argsort(-problem.counts, kind="stable")
    scales = np.geomspace(0.01 * limits.headroom.min(), 1.5 * limits.headroom.max(), points)
    confidences = np.array([_scaled_confidences(problem, scale)[order] for scale in scales]).T
    image = ax.pcolormesh(scales, np.arange(len(order)), confidences, cmap="cividis", vmin=0, vmax=1)
    ax.axvline(1.0, color="white", lw=1, ls=":")
    ax.set(xscale="log", xlabel="λ_W λ_H / this problem's", ylabel="class, largest first")
    ax.invert_yaxis()
    _bar(ax, image, "training confidence")
    return ax


def loss_families(problem: UFM, families: Mapping[str, Loss], *, ax: Axes | None = None) -> Axes:
    """Draw the predicted margins of several losses on the same problem, each scaled to its largest."""
    ax = ax or new_axes()
    order = np.argsort(problem.counts, kind="stable")
    for (colour, line), (name, loss) in zip(STYLES, families.items(), strict=False):
        margins = predict(replace(problem, loss=loss)).margins
        scaled = margins / (margins.max() or 1.0)
        ax.plot(problem.counts[order], scaled[order], color=colour, ls=line, marker=".", label=name)
    ax.set(xscale="log", xlabel="training samples of the class", ylabel="margin / largest", ylim=(0, 1.05))
    ax.legend(frameon=False)
    return ax


def price_of_relu(largest: int = 64, *, ax: Axes | None = None) -> Axes:
    """Draw critical λ_W λ_H of balanced classes with and without ReLU features, times N: their ratio is K/(K−1)."""
    ax = ax or new_axes()
    sizes = np.unique(np.round(np.geomspace(2, largest, 40))).astype(int)
    # balanced: n = N/K. With ReLU (K−1)/K · n/N², without n/N²
    ax.plot(sizes, (sizes - 1) / sizes**2, "-", color=BLUE, label="ReLU features")
    ax.plot(sizes, 1 / sizes, "--", color=ORANGE, label="free features")
    ax.set(xscale="log", yscale="log", xlabel="classes K", ylabel="N · critical λ_W λ_H")
    plain_ticks(ax)
    ax.legend(frameon=False)
    return ax


def before_and_after(counts: Array, before: Array, after: Mapping[str, Array], *, ax: Axes | None = None) -> Axes:
    """Draw the confidences of each class before and after several changes, against class size."""
    ax = ax or new_axes()
    order = np.argsort(counts, kind="stable")
    ax.plot(counts[order], before[order], "s-", ms=5, mfc="none", color=BLUE, label="now")
    for (colour, line), (name, values) in zip(STYLES[1:], after.items(), strict=False):
        ax.plot(counts[order], values[order], color=colour, ls=line, marker=".", label=name)
    ax.set(xscale="log", xlabel="training samples of the class", ylabel="training confidence", ylim=(0, 1.02))
    ax.legend(frameon=False)
    return ax


def _scaled_confidences(problem: UFM, scale: float) -> Array:
    factor = float(np.sqrt(scale))
    return predict(replace(problem, lambda_w=problem.lambda_w * factor, lambda_h=problem.lambda_h * factor)).confidences


def _bar(ax: Axes, image: object, label: str) -> None:
    figure = ax.get_figure()
    assert figure is not None
    figure.colorbar(image, ax=ax, label=label)  # type: ignore[arg-type]
