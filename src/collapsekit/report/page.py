"""report: one self-contained HTML page of a run, readable in print, on a phone and by the colour-blind."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.axes import Axes

from collapsekit.diagnosis import Comparison, compare, scope
from collapsekit.errors import CollapseError
from collapsekit.report import figures
from collapsekit.training import Run
from collapsekit.training.runs import replace_text

MOST_GRAM_CLASSES = 200
"""Gram matrices of more classes are left out of the page: a cell would be smaller than a pixel."""


@dataclass(frozen=True)
class Picture:
    """An inline SVG with the sentence that explains it."""

    caption: str
    svg: Markup


def report(run: Run, path: str | os.PathLike[str] | None = None) -> Path:
    """Write a run's report: figures, per-class table, recipe and units, scope, versions.

    Parameters
    ----------
    run : Run
        From ``train`` or ``load_run``.
    path : path, optional
        Where to; by default ``report.html`` in the run's folder.

    Returns
    -------
    Path
        Where the page is.

    Raises
    ------
    CollapseError
        If the file cannot be written.
    """
    target = run.folder / "report.html" if path is None else Path(path)
    if target.is_dir():
        raise CollapseError(f"path={str(target)!r}: is a folder; give a file name")
    frame = run.frame
    comparison = compare(frame, run.measured, test_recalls=run.test_recalls)
    templates = Environment(
        loader=PackageLoader("collapsekit.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    html = templates.get_template("page.html.j2").render(
        run=run,
        frame=frame,
        comparison=comparison,
        pictures=list(_pictures(run, comparison)),
        metrics=run.measured.metrics(frame),
        penalties=run.config.penalties(run.measured.counts),
        scope=str(scope(run.problem)),
    )
    replace_text(target, html)
    return target


def _pictures(run: Run, comparison: Comparison) -> Iterator[Picture]:
    frame, measured, labels = run.frame, run.measured, [c.label for c in comparison.classes]
    vectors, counts = measured.per_class(), run.problem.counts
    with mpl.rc_context(figures.STYLE):
        yield _picture(
            "Confidence of each class on its training samples against its headroom. At headroom 1 or below a class "
            "keeps no feature and its confidence is 1/K.",
            figures.collapse_line(frame, comparison),
        )
        yield _picture(
            "Squared length of class means against class size.",
            figures.norms(counts, frame.feature_sqnorms, vectors["feature_sqnorm"], ylabel="‖h‖² of the class mean"),
        )
        yield _picture(
            "Squared length of classifier rows against class size.",
            figures.norms(counts, frame.classifier_sqnorms, vectors["classifier_sqnorm"], ylabel="‖w‖² of the row"),
        )
        if len(labels) <= MOST_GRAM_CLASSES:
            yield from _gram_pictures(run, labels)
        yield _picture(
            "How far the training objective lies above the predicted optimum. It jumps while the penalties warm up.",
            figures.objective_trajectory(run.history, frame.objective),
        )
        yield _picture(
            "NC1: within-class relative to between-class variability of the features. Where classes have collapsed it "
            "divides by their vanishing means, and may rise although features of every class coincide ever better.",
            figures.nc1_trajectory(run.history),
        )
        yield _picture(
            "Confidence of each class over training, dark the first class, light the last; squares: predicted.",
            figures.confidence_trajectory(run.history, frame.confidences, labels=labels),
        )


def _gram_pictures(run: Run, labels: list[str]) -> Iterator[Picture]:
    predicted, measured = run.frame.geometry(), run.measured.geometry()
    for what, of, left, right in (
        ("Class means", "of class means", predicted.gram_h, measured.gram_h),
        ("Classifier", "of classifier rows", predicted.gram_w, measured.gram_w),
    ):
        limit = max(float(np.abs(left).max()), float(np.nanmax(np.abs(right)))) or 1.0
        for side, matrix in (("predicted", left), ("measured", right)):
            ax = figures.gram(matrix, title=f"{what}, {side}", limit=limit, labels=labels)
            yield _picture(f"Inner products {of}, {side}.", ax)


def _picture(caption: str, ax: Axes) -> Picture:
    figure = ax.get_figure(root=True)
    assert figure is not None
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Title": caption})
    text = buffer.getvalue()
    return Picture(caption, Markup(text[text.index("<svg") :]))  # matplotlib escapes the text that it draws
