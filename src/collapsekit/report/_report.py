"""report: one self-contained HTML page of a run, readable in print, on a phone and by the colour-blind."""

from __future__ import annotations

import io
import os
import re
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
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
from collapsekit.report import figures
from collapsekit.theory import Nearness, nearest_reference
from collapsekit.training import Run, TrainConfig, compare_run, run_scope
from collapsekit.validation import Array

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
    frame, comparison = run.prediction, compare_run(run)
    html = render(
        "page.html.j2",
        _pictures(run, comparison),
        run=run,
        frame=frame,
        comparison=comparison,
        missed=not (comparison.reached or (frame is None and all(c.status not in GONE for c in comparison.classes))),
        metrics=_metrics(run),
        settings=_settings(run.config),
        penalties=run.config.penalties(run.measured.counts, run.last_layer),
        units=_units(run),
        lambda_h="" if frame is None else _lambda_h(frame.problem.lambda_h),
        scope=run_scope(run),
        nearest=_nearest(run),
    )
    files.replace(target, html)
    return target


def _nearest(run: Run) -> list[Nearness]:
    """Reference geometries by distance; none for so many classes that Gram matrices are left out too."""
    if run.measured.moments.unseen or len(run.measured.counts) > MOST_GRAM_CLASSES:
        return []
    return nearest_reference(run.measured.geometry(), None if run.prediction is None else run.prediction.problem)


def render(template: str, pictures: Iterable[Picture], **content: Any) -> str:
    """Return the page that a template makes of its content, every picture with ids of its own."""
    templates = Environment(
        loader=PackageLoader("collapsekit.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    templates.filters["number"] = _number
    apart = [_apart(one, f"figure{i}") for i, one in enumerate(pictures)]
    return templates.get_template(template).render(pictures=apart, **content)


def _number(value: float, form: str) -> str:
    """A number for the page; nothing where there is none."""
    text = form % value if np.isfinite(value) else ""
    return text.removeprefix("-") if text and not float(text) else text


def _metrics(run: Run) -> list[tuple[str, float, str]]:
    """Name, value and meaning of every scalar metric."""
    found = run.measured.metrics(run.prediction)
    return [(key, found[key], meaning) for key, meaning in MEANINGS.items() if key in found]


def _settings(config: TrainConfig) -> dict[str, Any]:
    """What was chosen and is not said elsewhere on the page."""
    said = ("schema", "weight_decay", "feature_decay", "class_names")
    return {key: value for key, value in config.to_dict().items() if key not in said and value is not None}


def _lambda_h(value: float | Array) -> str:
    low, high = float(np.min(value)), float(np.max(value))
    return f"{low:.6g}" if low == high else f"{low:.6g} to {high:.6g} by class"


def _units(run: Run) -> str:
    """How the recipe's numbers become λ_W and λ_H."""
    if run.problem is None:
        return f"No λ_H follows from this recipe: {run.outside}."
    return run.recipe.units(run.last_layer)


def _pictures(run: Run, comparison: Comparison) -> Iterator[Picture]:
    """Pictures in pairs, which a wide page sets side by side."""
    labels = [c.label for c in comparison.classes]
    with figures.style():
        yield _confidence_picture(run, comparison)
        yield picture(
            "Confidence of each class over training, dark the first class, light the last"
            + ("." if run.prediction is None else "; squares: predicted."),
            figures.confidence_trajectory(
                run.history, None if run.prediction is None else run.prediction.confidences, labels=labels
            ),
        )
        yield from _norm_pictures(run)
        if len(labels) <= MOST_GRAM_CLASSES:
            yield from _gram_pictures(run, labels)
        yield from _history_pictures(run)


def _confidence_picture(run: Run, comparison: Comparison) -> Picture:
    if run.prediction is not None:
        return picture(
            "Confidence of each class on its training samples against its headroom. At headroom 1 or below a class "
            "keeps no feature and its confidence is 1/K.",
            figures.collapse_line(run.prediction, comparison),
        )
    confidences = run.measured.per_class()["confidence"]
    return picture(
        "Confidence of each class on its training samples against class size.",
        figures.by_count(run.measured.counts, None, confidences, ylabel="training confidence"),
    )


def _norm_pictures(run: Run) -> Iterator[Picture]:
    vectors, counts, frame = run.measured.per_class(), run.measured.counts, run.prediction
    predicted = (None, None) if frame is None else (frame.feature_sqnorms, frame.classifier_sqnorms)
    yield picture(
        "Squared length of class means against class size.",
        figures.by_count(counts, predicted[0], vectors["feature_sqnorm"], ylabel="‖h‖² of the class mean"),
    )
    yield picture(
        "Squared length of classifier rows against class size.",
        figures.by_count(counts, predicted[1], vectors["classifier_sqnorm"], ylabel="‖w‖² of the row"),
    )


def _gram_pictures(run: Run, labels: list[str]) -> Iterator[Picture]:
    measured = run.measured.geometry()
    predicted = None if run.prediction is None else run.prediction.geometry()
    for what, of, key in (
        ("Class means", "of class means", "gram_h"),
        ("Classifier", "of classifier rows", "gram_w"),
    ):
        sides = {} if predicted is None else {"predicted": getattr(predicted, key)}
        sides["measured"] = getattr(measured, key)
        limit = max(float(np.nanmax(np.abs(matrix))) for matrix in sides.values()) or 1.0
        for side, matrix in sides.items():
            ax = figures.gram(matrix, title=f"{what}, {side}", limit=limit, labels=labels)
            yield picture(f"Inner products {of}, {side}.", ax)


def _history_pictures(run: Run) -> Iterator[Picture]:
    if run.prediction is not None:
        yield picture(
            "How far the training objective lies above the predicted optimum. It jumps during the warm-up of the "
            "penalties.",
            figures.objective_trajectory(run.history, run.prediction.objective),
        )
    else:
        yield picture("Training loss, without penalties.", figures.loss_trajectory(run.history))
    yield picture(
        "NC1: within-class relative to between-class variability of the features. Where classes have collapsed it "
        "divides by their vanishing means, and may rise although features of every class coincide ever better.",
        figures.nc1_trajectory(run.history),
    )


def picture(caption: str, ax: Axes) -> Picture:
    """Return a figure as an inline SVG."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    buffer = io.StringIO()
    with warnings.catch_warnings():
        # The SVG holds text, which the reader's fonts draw; matplotlib's own are for measuring it.
        warnings.filterwarnings("ignore", message=r"Glyph \d+ \(.*\) missing from font", category=UserWarning)
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = buffer.getvalue()  # matplotlib escapes the text that it draws
    return Picture(caption, Markup(text[text.index("<svg") :]))


def _apart(picture: Picture, prefix: str) -> Picture:
    """Name the picture for readers of the screen, and give its ids, and references to them, a prefix of their own.

    Only tags are changed: the text between them may be anything. matplotlib escapes quotes and ``>`` inside tags.
    """
    named = str(picture.svg).replace("<svg ", f'<svg role="img" aria-label="{escape(picture.caption)}" ', 1)
    svg = re.sub(r"<[^>]*>", lambda tag: re.sub(r'( id="|href="#|url\(#)', rf"\1{prefix}-", tag[0]), named)
    return Picture(picture.caption, Markup(svg))
