"""The page of `collapsekit inspect`: verdict, classes at risk by name, distances in order, and a map of the rows."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray
from scipy.linalg import eigh

from collapsekit.heads import Inspection
from collapsekit.heads._inspect import NEAR
from collapsekit.heads.coincidence import row_blocks
from collapsekit.report.figures import BLUE, GREY, MOST_LABELS, MOST_LETTERS, ORANGE, legend_above, new_axes
from collapsekit.report.sheet import MOST_ROWS, Advice, Sheet, Table, write
from collapsekit.validation import Array, short

MOST_POINTS = 1000
"""Of more classes a line is drawn through some, evenly by rank."""
ADVICE = (
    Advice("A class that was never seen needs samples, or goes out of the labels."),
    Advice(
        "One that weight decay has taken needs less of it, or more weight on its samples; with the samples of each "
        "class and the decay of the recipe this says how much:",
        "collapsekit advise --help",
    ),
)
OUTPUT = {True: "can be", False: "never"}
COLUMNS = (
    ("row", "row", "{}"),
    ("distance from the dead point", "distance", "{:.3g}"),
    ("norm", "norm", "{:.3g}"),
    ("share of the data at least", "share_at_least", "{:.2g}"),
    ("shortest input", "least_norm", "{:.3g}"),
)


def head_page(found: Inspection, weight: NDArray[np.floating], layer: str, path: str | os.PathLike[str]) -> Path:
    """Write the page of a head to a file and return where it is.

    Parameters
    ----------
    found : Inspection
        What its weights tell.
    weight : (K, d) array
        The same weights, for the map.
    layer : str
        What the model calls the head.
    path : path
        Where to.

    Raises
    ------
    CollapseError
        If the file cannot be written.
    """
    missed = bool(found.flagged.size or found.unreachable)
    layer = short(layer or "weight", 60)
    sheet = Sheet(
        "Which classes this model can never or hardly output",
        found.verdict,
        missed,
        [_table(found)],
        [f"Head {layer!r}, {len(weight)} classes × {weight.shape[1]} inputs."],
        ADVICE if missed else (),
    )
    return write(sheet, _pictures(found, weight), path)


def _table(found: Inspection) -> Table:
    table = found.table()
    shown = table[:MOST_ROWS]
    headers, rows = _cells(shown, found.output)
    return Table(
        "Classes",
        "Those most at risk first" if found.flagged.size else "Those with the shortest rows first",
        headers,
        rows,
        lost={i for i, one in enumerate(shown) if one["reachable"] is False},
        omitted=f"{len(table) - MOST_ROWS} classes with less risk are left out" * (len(table) > MOST_ROWS),
    )


def _cells(table: list[dict[str, Any]], output: str) -> tuple[list[str], list[list[str]]]:
    """Headers and cells; columns in which nothing is known are left out."""
    known = [one for one in COLUMNS if any(row[one[1]] is not None for row in table)]
    words = [("same row", ["yes" if row["coinciding"] else "" for row in table])]
    last = "can be the largest" if output == "sigmoids" else "can be output"
    words.append((last, [OUTPUT.get(row["reachable"], "") for row in table]))
    words = [(header, cells) for header, cells in words if any(cells)]
    rows = [
        [
            short(row["label"], 60),
            *("" if row[key] is None else form.format(row[key]) for _, key, form in known),
            *(cells[i] for _, cells in words),
        ]
        for i, row in enumerate(table)
    ]
    return ["class", *(header for header, _, _ in known), *(header for header, _ in words)], rows


def _pictures(found: Inspection, weight: NDArray[np.floating]) -> Iterator[tuple[str, Axes]]:
    measured = not np.isnan(found.distance).all()
    yield (
        f"Distance of each row from the dead point, in its norms, in order. Those up to {NEAR:g}, shaded, are flagged."
        if measured
        else "Norm of each row, in order.",
        in_order(found.distance if measured else found.norm, measured, found.coinciding),
    )
    yield (
        "The rows on the two directions in which they vary most"
        + ("; a dead point draws the rows of lost classes together." if found.groups else "."),
        row_map(found, weight),
    )


def in_order(values: Array, measured: bool, coinciding: NDArray[np.bool_], *, ax: Axes | None = None) -> Axes:
    """Draw distances from the dead point (or norms) in ascending order, the rows that coincide marked."""
    ax, order = ax or new_axes(), np.argsort(values, kind="stable")
    ranks = np.unique(np.linspace(0, len(order) - 1, MOST_POINTS).round().astype(int))
    dead = coinciding[order[ranks]]
    style: dict[str, Any] = {"ls": "", "ms": 4 if len(order) <= MOST_LABELS else 2}
    ax.plot(ranks[~dead] + 1, values[order[ranks]][~dead], "o", color=BLUE, label="rows", **style)
    if dead.any():
        ax.plot(ranks[dead] + 1, values[order[ranks]][dead], "s", color=ORANGE, label="coinciding rows", **style)
    if measured:
        ax.axhspan(0, NEAR, color="0.92", lw=0, zorder=0)
    ax.set(xlabel="rank", ylabel="distance / norm of the dead point" if measured else "norm", ylim=(0, None))
    legend_above(ax)
    return ax


def row_map(found: Inspection, weight: NDArray[np.floating], *, ax: Axes | None = None) -> Axes:
    """Draw the rows on their first two principal directions, those that coincide and those that are flagged marked."""
    ax, places = ax or new_axes(), principal(weight)
    risky = np.zeros(len(places), dtype=bool)
    risky[found.flagged] = True
    style: dict[str, Any] = {"ls": "", "rasterized": len(places) > MOST_POINTS}
    ms = 5 if len(places) <= MOST_LABELS else 2
    kinds = (("rows", ~risky, "o", BLUE), ("near the dead point", risky & ~found.coinciding, "^", GREY))
    for label, own, mark, colour in (*kinds, ("coinciding rows", found.coinciding, "s", ORANGE)):
        if own.any():
            ax.plot(*places[own].T, mark, ms=ms, color=colour, label=label, **style)
    if len(places) <= MOST_LABELS:
        for rows in _together(found):
            name = ", ".join(short(found.names[k], MOST_LETTERS) for k in rows)
            ax.annotate(name, places[rows[0]], (4, 2), textcoords="offset points", fontsize=7, parse_math=False)
    ax.set(xlabel="first direction", ylabel="second direction")
    legend_above(ax, 3)
    return ax


def _together(found: Inspection) -> list[list[int]]:
    """Rows that are named as one, for they coincide, and each other one."""
    alone = [[int(k)] for k in np.flatnonzero(~found.coinciding)]
    return [*(one.rows.tolist() for one in found.groups), *alone]


def principal(weight: NDArray[np.floating]) -> Array:
    """Return the coordinates of the rows on the two directions in which they vary most, (K, 2)."""
    mean, dim = weight.mean(axis=0, dtype=np.float64), weight.shape[1]
    spread = np.zeros((dim, dim))
    for block in row_blocks(weight):
        spread += (block - mean).T @ (block - mean)
    _, directions = eigh(spread, subset_by_index=[max(0, dim - 2), dim - 1])
    places = np.concatenate([(block - mean) @ directions[:, ::-1] for block in row_blocks(weight)])
    return places if dim > 1 else np.column_stack([places, np.zeros(len(places))])
