"""report: one self-contained HTML page of a run, readable in print, on a phone and by the colour-blind."""

from __future__ import annotations

import io
import os
import re
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from matplotlib.axes import Axes

from collapsekit import files
from collapsekit.diagnosis import Comparison
from collapsekit.diagnosis.status import GONE
from collapsekit.errors import CollapseError
from collapsekit.metrics.measurement import MEANINGS
from collapsekit.recipe import horizon_sentence
from collapsekit.report import figures
from collapsekit.theory import nearest_reference
from collapsekit.training import Run, compare_run, run_scope

MOST_GRAM_CLASSES = 200
"""Gram matrices of more classes are left out of the page: a cell would be smaller than a pixel."""


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
    frame, comparison, measured = run.prediction, compare_run(run), run.measured
    alone = bool(measured.moments.unseen) or len(measured.counts) > MOST_GRAM_CLASSES
    html = render(
        "run.html.j2",
        _pictures(run, comparison),
        run=run,
        frame=frame,
        comparison=comparison,
        missed=not (comparison.reached or (frame is None and all(c.status not in GONE for c in comparison.classes))),
        metrics=measured.metrics(frame),
        meanings=MEANINGS,
        penalties=run.config.penalties(measured.counts, run.last_layer),
        horizon=horizon_sentence(run.horizon),
        lambda_h=()
        if frame is None
        else (float(np.min(frame.problem.lambda_h)), float(np.max(frame.problem.lambda_h))),
        scope=run_scope(run),
        nearest=[]
        if alone
        else nearest_reference(measured.geometry(), *(() if frame is None else (frame.problem, frame.geometry()))),
    )
    files.replace(target, html)
    return target


def render(template: str, pictures: Iterable[tuple[str, Axes]], **content: Any) -> str:
    """Return the page that a template makes of its content, and of axes with the sentences that explain them."""
    templates = Environment(
        loader=PackageLoader("collapsekit.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    templates.filters["number"] = number
    with figures.style():
        drawn = [(caption, svg(caption, ax, f"figure{i}")) for i, (caption, ax) in enumerate(pictures)]
    return templates.get_template(template).render(pictures=drawn, **content)


def number(value: float, form: str) -> str:
    """Return a number for the page; nothing where there is none."""
    text = form % value if np.isfinite(value) else ""
    return text.removeprefix("-") if text and not float(text) else text


def _pictures(run: Run, comparison: Comparison) -> Iterator[tuple[str, Axes]]:
    """Pictures in pairs, which a wide page sets side by side."""
    labels, frame, counts = [c.label for c in comparison.classes], run.prediction, run.measured.counts
    vectors, history = run.measured.per_class(), run.history
    if frame is not None and not np.isnan(frame.headroom).any():
        yield (
            "Confidence of each class on its training samples against its headroom. At headroom 1 or below a class "
            "keeps no feature and its confidence is 1/K.",
            figures.collapse_line(frame, comparison),
        )
    else:
        yield (
            "Confidence of each class on its training samples against class size.",
            figures.by_count(
                counts,
                None if frame is None else frame.confidences,
                vectors["confidence"],
                ylabel="training confidence",
            ),
        )
    yield (
        "Confidence of each class over training, dark the first class, light the last"
        + ("." if frame is None else "; squares: predicted."),
        figures.confidence_trajectory(history, None if frame is None else frame.confidences, labels=labels),
    )
    predicted = (None, None) if frame is None else (frame.feature_sqnorms, frame.classifier_sqnorms)
    yield (
        "Squared length of class means against class size.",
        figures.by_count(counts, predicted[0], vectors["feature_sqnorm"], ylabel="‖h‖² of the class mean"),
    )
    yield (
        "Squared length of classifier rows against class size.",
        figures.by_count(counts, predicted[1], vectors["classifier_sqnorm"], ylabel="‖w‖² of the row"),
    )
    if len(labels) <= MOST_GRAM_CLASSES:
        yield from _gram_pictures(run, labels)
    if frame is not None:
        yield (
            "How far the training objective lies above the predicted optimum. It jumps during the warm-up of the "
            "penalties.",
            figures.objective_trajectory(history, frame.objective),
        )
    else:
        yield "Training loss, without penalties.", figures.loss_trajectory(history)
    yield (
        "NC1: within-class relative to between-class variability of the features. Where classes have collapsed it "
        "divides by their vanishing means, and may rise although features of every class coincide ever better.",
        figures.nc1_trajectory(history),
    )


def _gram_pictures(run: Run, labels: list[str]) -> Iterator[tuple[str, Axes]]:
    geometries = {} if run.prediction is None else {"predicted": run.prediction.geometry()}
    geometries["measured"] = run.measured.geometry()
    for what, of, key in (
        ("Class means", "of class means", "gram_h"),
        ("Classifier", "of classifier rows", "gram_w"),
    ):
        sides = {side: getattr(geometry, key) for side, geometry in geometries.items()}
        limit = max(float(np.nanmax(np.abs(matrix))) for matrix in sides.values()) or 1.0
        for side, matrix in sides.items():
            ax = figures.gram(matrix, title=f"{what}, {side}", limit=limit, labels=labels)
            yield f"Inner products {of}, {side}.", ax


def svg(caption: str, ax: Axes, prefix: str) -> Markup:
    """Return a figure as an inline SVG, named for readers of the screen; its ids and references to them get a prefix.

    Only tags are changed: the text between them may be anything. matplotlib escapes the text that it draws, and quotes
    and ``>`` inside tags.
    """
    figure = ax.get_figure(root=True)
    assert figure is not None
    buffer = io.StringIO()
    with warnings.catch_warnings():
        # The SVG holds text, which the reader's fonts draw; matplotlib's own are for measuring it.
        warnings.filterwarnings("ignore", message=r"Glyph \d+ \(.*\) missing from font", category=UserWarning)
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    _, tag, rest = buffer.getvalue().partition("<svg ")
    named = f'{tag}role="img" aria-label="{escape(caption)}" {rest}'
    return Markup(re.sub(r"<[^>]*>", lambda tag: re.sub(r'( id="|href="#|url\(#)', rf"\1{prefix}-", tag[0]), named))
