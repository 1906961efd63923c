"""`collapsekit solve`: a numerical optimum with its certificate; no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

import collapsekit
from collapsekit import UFM, CollapseError, CrossEntropy, Focal, Hinge
from collapsekit.cli._console import Column, print_classes, print_json, print_note, progress
from collapsekit.cli._inputs import Counting, Penalties, by_flags, class_labels
from collapsekit.losses import MSE, Loss
from collapsekit.prediction import fates, from_solution
from collapsekit.solver import Solution
from collapsekit.validation import shorten


@dataclass(frozen=True, kw_only=True)
class Head:
    """What the closed form cannot have: a bias, logit adjustment, class-dependent temperatures, features without ReLU.

    Attributes
    ----------
    bias : str
        none, free, or the penalty on the bias.
    loss : str
        cross-entropy, focal (γ = 2), hinge or mse.
    logit_adjustment : float
        τ: τ log π_k is added to the logits in training.
    cdt : float
        γ: logits are multiplied by (n_k / n_max)^γ in training.
    no_relu : bool
        Features may be negative.
    dim : int
        Width of the features; left out: as wide as needed.
    """

    bias: str = "none"
    loss: Literal["cross-entropy", "focal", "hinge", "mse"] = "cross-entropy"
    logit_adjustment: float | None = None
    cdt: float | None = None
    no_relu: bool = False
    dim: int | None = None

    @by_flags()
    def problem(self, penalties: Penalties, sizes: Any) -> UFM:
        """Return the problem of these flags."""
        if not penalties.given:
            raise CollapseError("--lambda-w: missing; give penalties, as predict does")
        plain = penalties.problem(sizes)
        bias: Any = {"none": None, "free": "free"}.get(self.bias, self.bias)
        try:
            bias = bias if bias in (None, "free") else float(bias)
        except ValueError:
            raise CollapseError(f"--bias={shorten(self.bias)}: give none, free or a penalty") from None
        return replace(plain, loss=self._loss(plain), bias=bias, relu=not self.no_relu, dim=self.dim)

    def _loss(self, plain: UFM) -> Loss:
        tau, gamma, loss = self.logit_adjustment, self.cdt, plain.loss
        assert isinstance(loss, CrossEntropy)
        if self.loss == "cross-entropy":
            offsets = None if tau is None else CrossEntropy.logit_adjusted(plain.counts, tau).offsets
            scales = None if gamma is None else CrossEntropy.cdt(plain.counts, gamma).scales
            return replace(loss, offsets=offsets, scales=scales)
        if tau is not None or gamma is not None or loss != CrossEntropy():
            raise CollapseError(f"--loss={self.loss}: smoothing, --logit-adjustment and --cdt are cross-entropy's")
        others: dict[str, Loss] = {"focal": Focal(), "hinge": Hinge(), "mse": MSE()}
        return others[self.loss]


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
