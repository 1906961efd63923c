"""The page of `collapsekit adjust`: what was chosen, recall before and after by class size, and the tables."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from collapsekit.diagnosis import Adjustment
from collapsekit.report.figures import BLUE, ORANGE, against_size, new_axes
from collapsekit.report.sheet import Sheet, Table, write


def adjust_page(found: Adjustment, notes: Sequence[str], tables: Sequence[Table], path: str | os.PathLike[str]) -> Path:
    """Write the page of a repaired head to a file and return where it is.

    Parameters
    ----------
    found : Adjustment
        What was chosen, and what it brings.
    notes : sequence of str
        Sentences, the outcome first.
    tables : sequence of Table
        As printed, with every class.
    path : path
        Where to.

    Raises
    ------
    CollapseError
        If the file cannot be written.
    """
    sheet = Sheet("What repairing the head brings", notes[:1], False, tables, notes[1:])
    return write(sheet, _pictures(found), path)


def _pictures(found: Adjustment) -> Iterator[tuple[str, Axes]]:
    yield (
        "Recall of each class on the validation samples, before (open) and after (full), by its training samples.",
        before_after(found),
    )


def before_after(found: Adjustment, *, ax: Axes | None = None) -> Axes:
    """Draw the recall of each class with validation samples before and after, joined by a line, by class size."""
    ax, rows = ax or new_axes(), [row for row in found.table if not row["reason"]]
    counts = np.maximum([row["count"] for row in rows], 0.5)  # a class without training samples stands left of 1
    before, after = (np.array([row[key] for row in rows]) for key in ("before", "after"))
    ax.vlines(counts, before, after, color="0.75", lw=1, zorder=1)
    ax.plot(counts, before, "o", ms=5, mfc="none", color=BLUE, label="before")
    ax.plot(counts, after, "o", ms=4, color=ORANGE, label="after")
    return against_size(ax, "recall", (-0.03, 1.03), 2)
