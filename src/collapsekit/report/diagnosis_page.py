"""The page of a diagnosis, for a person who owns the model: what is wrong, with which classes, and what to do."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from collapsekit.diagnosis import Diagnosis
from collapsekit.diagnosis.status import GONE
from collapsekit.metrics.measurement import as_array, has_free_shift
from collapsekit.report import diagnosis_figures, figures
from collapsekit.report._report import write_page

FIRST_ROWS, MOST_ROWS = 30, 1_000
"""Classes in sight, and in the page; of more the worst."""
MOST_ANGLES = 100
"""Classes up to which angles between class means are drawn: a cell of more is a dot."""


def diagnosis_page(found: Diagnosis, path: str | os.PathLike[str]) -> Path:
    """Write the page of a diagnosis to a file and return where it is."""
    classes = sorted(found.classes, key=lambda c: c.badness)
    return write_page(
        path,
        "diagnosis.html.j2",
        _pictures(found),
        found=found,
        gone=GONE,
        classes=classes[:MOST_ROWS],
        first=FIRST_ROWS,
        omitted=max(0, len(classes) - MOST_ROWS),
        tested=any(np.isfinite(c.held_out_recall) for c in classes),
        confused=any(c.confused_with for c in classes),
        serious=any(one.severity != "note" for one in found.findings),
    )


def _pictures(found: Diagnosis) -> Iterator[tuple[str, Axes]]:
    yield (
        "Recall of each class against its number of training samples: the share of its samples that the model gets "
        "right. Classes in trouble are named.",
        diagnosis_figures.recalls(found.classes),
    )
    yield (
        "Confidence: the mean probability that the model gives the right class on training samples. Below one half "
        "(dotted) the other classes together weigh more.",
        diagnosis_figures.confidences(found.classes),
    )
    if found.named:
        yield (
            "What the samples of the classes in trouble are taken for. Pale: all other classes together.",
            diagnosis_figures.taken_for(found.named),
        )
    measured, prediction = found.measured, found.prediction
    if prediction is not None:
        if has_free_shift(prediction.problem):
            measured = measured.centred()
        yield (
            "Margin of each class, by how much its own logit leads the others on average: what the recipe allows "
            "(squares) and what the model has (dots).",
            figures.by_count(measured.counts, prediction.margins, measured.margins, ylabel="margin"),
        )
    lengths, seen = measured.per_class()["feature_sqnorm"], measured.counts > 0
    yield (
        "Geometry: squared length of each class's mean feature. A class without a feature of its own lies at 0.",
        figures.by_count(measured.counts[seen], None, lengths[seen], ylabel="squared length of the class mean"),
    )
    if len(seen) <= MOST_ANGLES and seen.all() and (lengths > 0).all():
        means = as_array(measured.moments.means)
        unit = means / np.linalg.norm(means, axis=1, keepdims=True)
        labels = [c.label for c in found.classes]
        yield (
            "Geometry: cosines between the classes' mean features. Classes that the features do not tell apart have a "
            "cosine near 1.",
            figures.gram(unit @ unit.T, title="cosines between class means", limit=1.0, labels=labels),
        )
