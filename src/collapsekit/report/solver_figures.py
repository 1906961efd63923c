"""Figures of the solver: where starts end, what they lose, and the features of a certified solution.

The conventions are those of `figures`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from collapsekit.report.figures import BLUE, GREEN, GREY, ORANGE, name_ticks, new_axes, plain_ticks
from collapsekit.solver import Landscape, Solution

METHODS = {
    "gradient descent": (GREY, "v", ":"),
    "adam": (GREEN, "^", "-."),
    "bounded L-BFGS": (ORANGE, "o", "--"),
    "certified": (BLUE, "s", "-"),
}
"""Colour, marker and line of each method."""
FLOOR = 1e-16
"""Gaps below are drawn here."""


def landscape_gaps(found: Landscape, *, ax: Axes | None = None) -> Axes:
    """Draw the gap of every start, by method, with the line below which the optimum counts as reached."""
    ax = ax or new_axes()
    for i, (name, ends) in enumerate(found.outcomes.items()):
        colour, marker, _ = METHODS[name]
        gaps = np.sort(np.maximum([one.gap for one in ends], FLOOR))
        places = i + 0.6 * (np.arange(len(gaps)) + 0.5) / len(gaps) - 0.3
        ax.plot(places, gaps, marker, ms=4, color=colour, ls="none")
    ax.axhline(found.tol, color=GREY, lw=0.8, ls=":")
    ax.set(yscale="log", ylabel="relative gap to the lower bound")
    ax.set_xticks(range(len(found.outcomes)), [f"{name}\n{found.reached(name):.0%}" for name in found.outcomes])
    return ax


def reached_shares(
    values: Sequence[float], shares: Mapping[str, Sequence[float]], label: str, *, ax: Axes | None = None
) -> Axes:
    """Draw the share of starts that reach the optimum against one setting, a line a method."""
    ax = ax or new_axes()
    for name, column in shares.items():
        colour, marker, line = METHODS[name]
        ax.plot(values, column, marker=marker, ms=4, color=colour, ls=line, label=name)
    ax.set(xlabel=label, ylabel="share of starts at the optimum", ylim=(-0.03, 1.03), xscale="log")
    plain_ticks(ax)
    return ax


def solution_features(solution: Solution, *, ax: Axes | None = None) -> Axes:
    """Draw the cosines between class features of a solution; classes without features are white."""
    ax = ax or new_axes()
    cosines = solution.geometry().feature_cosines
    image = ax.imshow(cosines, cmap="cividis", vmin=min(0.0, float(np.nanmin(cosines, initial=0.0))), vmax=1)
    ax.set(xlabel="class", ylabel="class", title="cosines between class features")
    name_ticks(solution.problem.names or [str(k) for k in range(len(cosines))], ax.xaxis, ax.yaxis)
    ax.figure.colorbar(image, ax=ax)
    return ax
