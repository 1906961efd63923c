"""Pages of the theory alone: what a recipe will lose, and what to change, with the figures that show it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from collapsekit.losses import MSE, CrossEntropy, Focal, Hinge, Loss
from collapsekit.prediction import Prediction, phase_diagram, predict
from collapsekit.problem import UFM
from collapsekit.report import theory_figures
from collapsekit.report._report import MOST_GRAM_CLASSES
from collapsekit.report.figures import gram
from collapsekit.report.sheet import Sheet, write
from collapsekit.theory import thresholds
from collapsekit.validation import Array

FAMILIES: dict[str, Loss] = {
    "cross-entropy": CrossEntropy(),
    "focal, γ = 2": Focal(2.0),
    "label smoothing 0.1": CrossEntropy(smoothing=0.1),
    "hinge": Hinge(),
    "squared error": MSE(),
}


def prediction_page(problem: UFM, sheet: Sheet, path: str | os.PathLike[str], solved: Prediction | None = None) -> Path:
    """Write the page of `collapsekit predict` to a file and return where it is; `solved` without a closed form."""
    pictures = _prediction_pictures(problem) if solved is None else _solved_pictures(solved, {})
    return write(sheet, pictures, path)


def advice_page(
    problem: UFM,
    after: Mapping[str, Array],
    sheet: Sheet,
    path: str | os.PathLike[str],
    solved: Prediction | None = None,
) -> Path:
    """Write the page of `collapsekit advise`, with the confidences after each remedy, and return where it is."""
    pictures = _advice_pictures(problem, after) if solved is None else _solved_pictures(solved, after)
    return write(sheet, pictures, path)


def _prediction_pictures(problem: UFM) -> Iterator[tuple[str, Axes]]:
    yield (
        "Confidence of each class on its training samples against its size. Where classes share one threshold, the "
        "shaded sizes are lost: they keep no feature and the confidence 1/K.",
        theory_figures.predicted_line(problem),
    )
    yield (
        "The same while both penalties move together, from a hundredth of the first death to beyond the last.",
        theory_figures.confidence_map(problem),
    )
    yield (
        "Squared length of class means against class size, at several multiples of the smallest threshold: rare "
        "classes have the longest features where penalties vanish, and none at their threshold.",
        theory_figures.norm_regimes(problem),
    )
    largest, smallest = float(problem.counts.max()), float(problem.counts.min())
    product = problem.lambda_w * float(np.exp(np.log(problem.lambda_h).mean()))
    limits, ratio, loss = thresholds(problem), largest / smallest, problem.loss
    if isinstance(loss, CrossEntropy):  # without what tells classes apart: the diagram is about other counts
        loss = CrossEntropy(loss.smoothing, None, loss.temperature)
    low, high = min(product, limits.minority_collapse) / 10, 10 * max(product, limits.complete_collapse)
    ratios = np.geomspace(1, max(10.0, min(largest, 10 * ratio)), 60)
    diagram = phase_diagram(
        problem.num_classes,
        int(largest),
        ratios=ratios,
        products=np.geomspace(low, high, 80),
        loss=loss,
    )
    yield (
        f"How many of {problem.num_classes} classes survive, for long tails from {largest:.0f} samples down. The cross "
        "stands at this problem's ratio and penalties; its counts need not be a long tail.",
        theory_figures.phase(diagram, point=(product, ratio)),
    )
    yield (
        "Margins of these classes under several losses at the same penalties, relative to the largest margin. "
        "A margin of 0 is a lost class.",
        theory_figures.loss_families(problem, FAMILIES),
    )


def _advice_pictures(problem: UFM, after: Mapping[str, Array]) -> Iterator[tuple[str, Axes]]:
    yield (
        "Confidence of each class on its training samples, now and after each remedy alone.",
        theory_figures.before_and_after(problem, predict(problem).confidences, after),
    )
    yield (
        "Confidence of each class while both penalties move together, from a hundredth of the first death to "
        "beyond the last.",
        theory_figures.confidence_map(problem),
    )


def _solved_pictures(solved: Prediction, after: Mapping[str, Array]) -> Iterator[tuple[str, Axes]]:
    """What can be drawn of an optimum that was searched for."""
    yield (
        "Confidence of each class on its training samples, as predicted"
        + (", and after each remedy alone." * bool(after) or "."),
        theory_figures.before_and_after(solved.problem, solved.confidences, after),
    )
    if solved.problem.num_classes <= MOST_GRAM_CLASSES:
        matrix, labels = solved.geometry().gram_h, solved.problem.names or ()
        limit = float(np.nanmax(np.abs(matrix))) or 1.0
        yield (
            "Inner products of the class features there: off the diagonal classes share directions.",
            gram(matrix, title="class features", limit=limit, labels=labels),
        )
