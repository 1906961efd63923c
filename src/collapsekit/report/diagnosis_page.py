"""The page of a diagnosis, for a person who owns the model: what is wrong, with which classes, and what to do."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from collapsekit.diagnosis import Diagnosis, Finding
from collapsekit.diagnosis.status import GONE
from collapsekit.metrics.measurement import as_array, has_free_shift
from collapsekit.report import diagnosis_figures, figures
from collapsekit.report._report import number
from collapsekit.report.sheet import MOST_ROWS, Advice, Sheet, Table, write

MOST_ANGLES = 100
"""Classes up to which angles between class means are drawn: a cell of more is a dot."""


def diagnosis_page(found: Diagnosis, path: str | os.PathLike[str]) -> Path:
    """Write the page of a diagnosis to a file and return where it is."""
    verdict = [*found.verdict, *filter(None, [found.assumed_order])]
    serious = any(one.severity != "note" for one in found.findings)
    advice = [Advice(one.sentence, one.remedy, one.severity, _more(one)) for one in found.findings]
    sheet = Sheet("What is wrong with this model, and what to do", verdict, serious, [_table(found)], advice=advice)
    return write(sheet, _pictures(found), path)


def _table(found: Diagnosis) -> Table:
    """The classes, the worst first, without columns in which nothing is known."""
    classes = sorted(found.classes, key=lambda c: c.badness)
    shown = classes[:MOST_ROWS]
    columns: dict[str, list[str]] = {
        "class": [c.label for c in shown],
        "status": [str(c.status) for c in shown],
        "cause": [str(c.cause or "") for c in shown],
        "training samples": [str(c.count) for c in shown],
        "recall": [number(c.recall, "%.2f") for c in shown],
        "held-out recall": [number(c.held_out_recall, "%.2f") for c in shown],
        "confidence": [number(c.confidence, "%.2f") for c in shown],
        "mistaken for": [c.confused_with or "" for c in shown],
    }
    known = {header: cells for header, cells in columns.items() if any(cells)}
    return Table(
        "Classes",
        "The worst first. Recall: share of its samples that the model gets right. Confidence: mean probability given "
        "to the right class",
        list(known),
        list(zip(*known.values(), strict=True)),
        words=("status", "cause", "mistaken for"),
        lost={i for i, c in enumerate(shown) if c.status in GONE},
        omitted=f"{len(classes) - MOST_ROWS} classes that fare better are left out" * (len(classes) > MOST_ROWS),
    )


def _more(one: Finding) -> str:
    """The numbers that a finding rests on, and where to read on."""
    numbers = {key.replace("_", " "): number(value, "%.3g") for key, value in one.numbers.items()}
    rests_on = "; ".join(f"{key} {value}" for key, value in numbers.items() if value)
    return f"{rests_on}{'. ' * bool(rests_on)}More: docs/diagnose.md, section “{one.code}”."


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
