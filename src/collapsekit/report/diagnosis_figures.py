"""Figures of a diagnosis: recall and confidence by class size, and what the worst classes are taken for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from collapsekit.diagnosis import ClassDiagnosis
from collapsekit.report.figures import (
    BLUE,
    GREY,
    MOST_LETTERS,
    ORANGE,
    _label,
    against_size,
    new_axes,
)
from collapsekit.validation import short

NAMED = 8
"""Of the worst classes so many are named in a picture."""
APART = 0.05
"""Decades between two class sizes from which slanted names do not meet."""
WIDE = 0.18
"""Share of a bar from which a name fits into it."""
SHADES = (ORANGE, "#E69F00", "#F0E442", "#CCCCCC")


def recalls(classes: Sequence[ClassDiagnosis], *, ax: Axes | None = None) -> Axes:
    """Draw recall on training and held-out samples against class size; the worst classes are named."""
    ax = ax or new_axes()
    counts = np.array([max(c.count, 1) for c in classes])
    ax.plot(counts, [c.recall for c in classes], "o", ms=5, color=ORANGE, label="training samples")
    tested = np.array([c.held_out_recall for c in classes])
    known = bool(np.isfinite(tested).any())
    if known:
        ax.plot(counts, tested, "s", ms=7, mfc="none", color=BLUE, label="held-out samples")
    _name_worst(ax, classes, counts, np.array([c.recall for c in classes]))
    return against_size(ax, "recall", (0, 1.05), 2 if known else 0)


def confidences(classes: Sequence[ClassDiagnosis], *, ax: Axes | None = None) -> Axes:
    """Draw confidence on training samples against class size, with chance; the worst classes are named."""
    ax = ax or new_axes()
    counts, values = np.array([max(c.count, 1) for c in classes]), np.array([c.confidence for c in classes])
    ax.plot(counts, values, "o", ms=5, color=ORANGE)
    ax.axhline(0.5, color=GREY, lw=0.8, ls=":")
    _name_worst(ax, classes, counts, values)
    return against_size(ax, "confidence on training samples", (0, 1.05), 0)


def _name_worst(ax: Axes, classes: Sequence[ClassDiagnosis], x: np.ndarray, y: np.ndarray) -> None:
    """Names of the classes that have a cause; those that would lie over one another are left out."""
    taken: list[tuple[float, float]] = []
    worst = [k for k in np.argsort(y, kind="stable") if classes[k].cause is not None and np.isfinite(y[k])]
    for k in worst[: 4 * NAMED]:
        place = (float(np.log10(x[k])), float(y[k]))
        if len(taken) < NAMED and all(abs(a - place[0]) > APART or abs(b - place[1]) > 0.2 for a, b in taken):
            taken.append(place)
            _label(ax, short(classes[k].label, MOST_LETTERS), (x[k], y[k]), (2, 5), rotation=45)


def taken_for(named: Mapping[str, Mapping[str, float]], *, ax: Axes | None = None) -> Axes:
    """Draw for each of the worst classes a bar of what its samples are taken for, itself first."""
    rows = list(named.items())[::-1]
    ax = ax or new_axes(4.6, 1.0 + 0.32 * len(rows))
    for height, (label, shares) in enumerate(rows):
        start, shade = 0.0, 0
        for other in sorted(shares, key=lambda name: (name != label, -shares[name])):
            color = BLUE if other == label else SHADES[min(shade, len(SHADES) - 1)]
            shade += other != label
            ax.barh(height, shares[other], left=start, color=color, edgecolor="white", height=0.8)
            if shares[other] >= WIDE:
                words = "right" if other == label else short(other, max(4, int(26 * shares[other])))
                middle = start + shares[other] / 2
                dark = "white" if color in (BLUE, ORANGE) else "black"
                ax.text(middle, height, words, ha="center", va="center", fontsize=7, color=dark, parse_math=False)
            start += shares[other]
        if start < 0.999:
            ax.barh(height, 1 - start, left=start, color="0.92", height=0.8)
    names = [short(label, MOST_LETTERS) for label, _ in rows]
    ax.set_yticks(range(len(rows)), names, parse_math=False, fontsize=8)
    ax.set(xlim=(0, 1), xlabel="share of the class's samples")
    return ax
