"""`collapsekit landscape`: which optimisers reach the optimum from the same starts; no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
from cyclopts import Parameter

from collapsekit import CollapseError
from collapsekit.cli._console import print_json, print_note, print_table, progress
from collapsekit.cli._inputs import Counting, Head, Penalties
from collapsekit.cli.solve import draw
from collapsekit.solver import Landscape
from collapsekit.solver import landscape as find_landscape


def landscape(
    counts: Annotated[tuple[str, ...], Parameter(help="One count a class, or one file.")] = (),
    /,
    *,
    counting: Annotated[Counting | None, Parameter(name="*")] = None,
    head: Annotated[Head | None, Parameter(name="*")] = None,
    penalties: Annotated[Penalties | None, Parameter(name="*")] = None,
    seed: int = 0,
    starts: int = 10,
    scale: float = 0.1,
    figure: Path | None = None,
    json: bool = False,
) -> None:
    """Say how often gradient descent, Adam, L-BFGS and the certified solver reach the optimum from the same starts.

    Needs --dim; counts and penalties are given as for predict.

    Example: collapsekit landscape --long-tail 5000:50:10 --lambda-w 0.01 --lambda-h 0.0001 --dim 10

    Parameters
    ----------
    counts : tuple of str
        One count a class, or one file: a count or `name,count` a line, JSON, or labels (one a line, a column, arrays).
    seed : int
        Of the random starts.
    starts : int
        Random starts.
    scale : float
        Standard deviation of a start's entries, in balanced variables.
    figure : Path
        Write the figure of the gaps here (.png, .svg or .pdf).
    json : bool
        Print one JSON object.
    """
    sizes = (counting or Counting()).sizes(counts)
    problem = (head or Head()).problem(penalties or Penalties(), sizes)
    if problem.dim is None:
        raise CollapseError("--dim: missing; local descent happens at one width")
    with progress("starts"):
        found = find_landscape(problem, starts, seed=seed, scale=scale)
    if figure is not None:
        from collapsekit.report.solver_figures import landscape_gaps

        draw(figure, lambda ax: landscape_gaps(found, ax=ax))
    if json:
        print_json(found.to_dict())
    else:
        _print_landscape(found)


def _print_landscape(found: Landscape) -> None:
    headers = ("method", "reached", "median gap", "largest gap", "wrongly dead", "curvature", "CPU s", "")
    rows = []
    for name, ends in found.outcomes.items():
        gaps, known = [one.gap for one in ends], [one.curvature for one in ends if np.isfinite(one.curvature)]
        rows.append(
            (
                name,
                f"{sum(gap <= found.tol for gap in gaps)}/{len(ends)}",
                f"{np.median(gaps):.1e}",
                f"{max(gaps):.1e}",
                f"{np.mean([one.wrongly_dead for one in ends]):.1f}",
                f"{min(known):.1e}" if known else "",
                f"{np.mean([one.seconds for one in ends]):.3g}",
                "",
            )
        )
    print_table(headers, rows)
    print_note(
        f"Reached: relative gap at most {found.tol:g}. Wrongly dead: mean number of classes dead there and alive at "
        f"the optimum. Curvature: smallest Hessian eigenvalue on the free entries over κ. Starts: standard deviation "
        f"{found.scale:g} in balanced variables, dim = {found.problem.dim}."
    )
