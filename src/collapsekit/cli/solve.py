"""`collapsekit solve`: a numerical optimum with its certificate; no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

import collapsekit
from collapsekit import CollapseError
from collapsekit.cli._console import Column, print_classes, print_json, print_note, progress
from collapsekit.cli._inputs import Counting, Head, Penalties, class_labels
from collapsekit.prediction import fates, from_solution
from collapsekit.solver import Solution
from collapsekit.validation import shorten


def solve(
    counts: Annotated[tuple[str, ...], Parameter(help="One count a class, or one file.")] = (),
    /,
    *,
    counting: Annotated[Counting | None, Parameter(name="*")] = None,
    head: Annotated[Head | None, Parameter(name="*")] = None,
    penalties: Annotated[Penalties | None, Parameter(name="*")] = None,
    seed: int = 0,
    starts: int = 1,
    tol: float = 1e-8,
    time_limit: float | None = None,
    figure: Path | None = None,
    json: bool = False,
) -> None:
    """Solve numerically what has no closed form, and say how far the result is from the global optimum.

    Counts and penalties are given as for predict.

    Example: collapsekit solve 500 300 40 10 --lambda-w 0.03 --lambda-h 0.001 --bias free

    Example: collapsekit solve --long-tail 5000:50:10 --weight-decay 0.05 --batchnorm-branches 1 --logit-adjustment 1

    Parameters
    ----------
    counts : tuple of str
        One count a class, or one file: a count or `name,count` a line, JSON, or labels (one a line, a column, arrays).
    seed : int
        Of the random starts.
    starts : int
        Most random starts; the first that is certified ends the search.
    tol : float
        Relative gap at which the result counts as globally optimal.
    time_limit : float
        Seconds after which the best point so far is shown.
    figure : Path
        Write the figure of the solution's features here (.png, .svg or .pdf).
    json : bool
        Print one JSON object.
    """
    sizes = (counting or Counting()).sizes(counts)
    problem = (head or Head()).problem(penalties or Penalties(), sizes)
    with progress("solving"):
        solution = collapsekit.solve(problem, seed=seed, starts=starts, tol=tol, time_limit=time_limit)
    if figure is not None:
        from collapsekit.report.solver_figures import solution_features

        draw(figure, lambda ax: solution_features(solution, ax=ax))
    if json:
        print_json(solution.to_dict() | {"labels": class_labels(sizes)})
    else:
        _print_solution(solution, class_labels(sizes))


def draw(path: Path, figure: Any) -> None:
    """Write a figure, given as a function of axes, to a file."""
    try:
        from matplotlib.figure import Figure

        from collapsekit.report.figures import style
    except ModuleNotFoundError as missing:
        raise CollapseError(
            f"--figure: {missing.name} is not installed; run: pip install 'collapsekit[report]'"
        ) from None
    with style():
        picture = Figure(figsize=(5.4, 3.6), layout="constrained")
        figure(picture.subplots())
        try:
            picture.savefig(path, dpi=130)
        except (OSError, ValueError) as error:
            raise CollapseError(f"--figure={shorten(str(path))}: {error}") from None


def _print_solution(solution: Solution, names: list[str]) -> None:
    predicted, problem, found = from_solution(solution), solution.problem, solution.certificate
    cross = solution.geometry().cross.T
    bias: list[Column] = [] if solution.bias is None else [("bias", solution.bias, ".4f")]
    columns: list[Column] = [
        ("class", names, ""),
        ("count", problem.counts, ".0f"),
        ("confidence", predicted.confidences, ".4f"),
        ("loss", problem.loss.value(cross if solution.bias is None else cross + solution.bias), ".4f"),
        ("margin", predicted.margins, ".4f"),
        ("‖h‖²", predicted.feature_sqnorms, ".4g"),
        ("‖w‖²", predicted.classifier_sqnorms, ".4g"),
        *bias,
        ("status", fates(problem.loss, predicted.confidences, predicted.collapses), ""),
    ]
    print_classes(columns, ("‖w‖²", "‖h‖²", "loss", "bias", "margin"))
    print_note(
        f"Objective {found.objective:.10g}, lower bound {found.lower_bound:.10g}, stationarity "
        f"{found.stationarity:.1e}, polar {found.polar:.8g} ({found.kind}); {solution.coordinates} coordinates, "
        f"{solution.steps} steps."
    )
    sentence = solution.status.value
    print_note(f"{sentence[0].upper()}{sentence[1:]} (gap {found.gap:.1e}).")
