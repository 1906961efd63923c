"""`collapsekit predict`: which classes a recipe will lose, from counts alone; never imports torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
from cyclopts import Parameter

import collapsekit
from collapsekit import UFM, CollapseError
from collapsekit.cli._console import print_classes, print_json, print_note
from collapsekit.cli._inputs import Counting, Penalties
from collapsekit.evidence import scope
from collapsekit.prediction import fates, from_solution
from collapsekit.prediction._predict import predicted
from collapsekit.recipe import Penalty

DROP = ("‖w‖²", "‖h‖²", "margin", "dies at\ncount", "headroom", "dies at\nweight decay")
"""What a narrow terminal goes without, in this order; never class, count, confidence and status."""
NO_ACCURACY = "The prediction describes the training geometry; what it means for test accuracy has to be measured."


def predict(
    counts: Annotated[tuple[str, ...], Parameter(help="One count a class, or one file.")] = (),
    /,
    *,
    counting: Annotated[Counting | None, Parameter(name="*")] = None,
    penalties: Annotated[Penalties | None, Parameter(name="*")] = None,
    html: Path | None = None,
    json: bool = False,
) -> None:
    """Say which classes a recipe will lose, with each class's threshold and headroom.

    Give counts, and either the theory's penalties (--lambda-w, --lambda-h) or the recipe's own units
    (--weight-decay with --feature-decay or --batchnorm-branches). Without penalties only thresholds are printed.

    Example: collapsekit predict 500 300 40 10 --lambda-w 0.03 --lambda-h 0.001

    Example: collapsekit predict --long-tail 5000:50:100 --weight-decay 0.1 --batchnorm-branches 1

    Example: collapsekit predict labels.csv --label-column species --weight-decay 0.05 --batchnorm-branches 1

    Parameters
    ----------
    counts : tuple of str
        One count a class, or one file: a count or `name,count` a line, JSON, or labels (one a line, a column, arrays).
    html : Path
        Write a page with the table and figures, too (needs the extras report and torch).
    json : bool
        Print one JSON object.
    """
    sizes = (counting or Counting()).sizes(counts)
    penalties = penalties or Penalties()
    names = list(sizes) if isinstance(sizes, dict) else [str(k) for k in range(len(sizes))]
    if penalties.given:
        _print_prediction(penalties, penalties.problem(sizes), names, html, json)
    elif html is not None:
        raise CollapseError("--html: a page needs penalties; give --lambda-w and --lambda-h, or the recipe's own units")
    else:
        unit = Penalty(1.0, 1.0).problem(sizes, class_weights=penalties.class_weights, loss=penalties.loss)
        _print_thresholds(unit, names, json)


def _print_thresholds(unit: UFM, names: list[str], json: bool) -> None:
    limits = collapsekit.thresholds(unit)
    if json:
        content = limits.to_dict()
        for key in ("headroom", "critical_count"):  # they depend on penalties, and none were given
            del content[key]
        print_json(content | {"labels": names, "counts": unit.counts.astype(int).tolist()})
        return
    print_classes(
        ("class", "count", "dies at λ_W λ_H ≥", ""),
        lambda k: (names[k], f"{unit.counts[k]:.0f}", f"{limits.critical_product[k]:.6g}", ""),
        [""] * unit.num_classes,
    )
    print_note(
        f"The first class dies at λ_W λ_H = {limits.minority_collapse:.6g}, the last at "
        f"{limits.complete_collapse:.6g}. Give penalties to see confidences and headroom."
    )


def _print_prediction(penalties: Penalties, problem: UFM, names: list[str], html: Path | None, json: bool) -> None:
    frame = predicted(problem)
    if isinstance(frame, str):
        _print_solved(frame, problem, names, html, json)
        return
    limits = collapsekit.thresholds(problem, hold=penalties.recipe)
    ground = scope(problem, penalties.recipe)
    table = PredictionTable(frame, limits, names, penalties.weight_decay)
    summary = _summary(frame, limits, problem)
    if html is not None:
        page = pages().prediction_page
        sheet = pages().Sheet(
            title="Which classes this recipe will lose",
            verdict=[summary],
            missed=bool(frame.collapses.any()),
            caption="Each class on its training samples, predicted",
            headers=[header.replace("\n", " ") for header in table.headers],
            rows=[table.row(k) for k in range(problem.num_classes)],
            lost=frame.collapses.tolist(),
            notes=[ground.details, NO_ACCURACY],
        )
        written = page(problem, sheet, html)
    if json:
        content = frame.to_dict() | {"labels": names, "thresholds": limits.to_dict(), "scope": ground.to_dict()}
        print_json(content | ({} if html is None else {"page": str(written)}))
        return
    print_classes(table.headers, table.row, table.fates, [header for header in DROP if header in table.headers])
    print_note(summary)
    print_note(str(ground))
    if html is not None:
        print_note(f"page: {written}")


def _print_solved(reason: str, problem: UFM, names: list[str], html: Path | None, json: bool) -> None:
    """The prediction of what has no closed form: a certified optimum, without thresholds."""
    if html is not None:
        raise CollapseError(f"--html: a page needs thresholds; {reason}")
    found = from_solution(collapsekit.solve(problem))
    if json:
        print_json(found.to_dict() | {"labels": names, "thresholds": None, "scope": None})
        return
    table = PredictionTable(found, None, names, None)
    print_classes(table.headers, table.row, table.fates, [header for header in DROP if header in table.headers])
    print_note(
        f"{int(found.collapses.sum())} of {problem.num_classes} classes collapse. No thresholds ({reason}); shown is "
        f"{found.basis.value} (relative gap {found.gap:.1e})."
    )


class PredictionTable:
    """One row a class, of words."""

    def __init__(self, frame: Any, limits: Any, names: list[str], weight_decay: float | None) -> None:
        self.frame, self.limits, self.names, self.weight_decay = frame, limits, names, weight_decay
        self.fates = fates(frame.problem.loss, frame.confidences, frame.collapses)

    @property
    def headers(self) -> list[str]:
        """What the columns are; a death in units of the recipe where it is given in them."""
        columns = ["class", "count", "confidence", "margin", "‖h‖²", "‖w‖²"]
        if self.limits is None:
            return [*columns, "status"]
        own = [] if self.weight_decay is None else ["dies at\nweight decay"]
        return [*columns, "headroom", *own, "dies at\ncount", "status"]

    def row(self, k: int) -> list[str]:
        """Class k in words."""
        frame, limits = self.frame, self.limits
        ends = []
        if limits is not None:
            own = [] if self.weight_decay is None else [f"{self.weight_decay * limits.decay_factor[k]:.4g}"]
            ends = [f"{frame.headroom[k]:.4g}", *own, f"{limits.critical_count[k]:.4g}"]
        return [
            self.names[k],
            f"{frame.problem.counts[k]:.0f}",
            f"{frame.confidences[k]:.4f}",
            f"{frame.margins[k]:.4f}",
            f"{frame.feature_sqnorms[k]:.4g}",
            f"{frame.classifier_sqnorms[k]:.4g}",
            *ends,
            self.fates[k],
        ]


def pages() -> Any:
    """Return the module that writes pages, or say what it needs."""
    try:
        from collapsekit.report import theory_page
    except ModuleNotFoundError as missing:
        raise CollapseError(
            f"--html: {missing.name} is not installed; run: pip install 'collapsekit[report,torch]'"
        ) from None
    return theory_page


def _summary(frame: Any, limits: Any, problem: UFM) -> str:
    dead, products = int(frame.collapses.sum()), problem.lambda_w * np.unique(problem.lambda_h)
    product = " to ".join(f"{p:.4g}" for p in dict.fromkeys((products[0], products[-1])))
    fate = f"{dead} of {problem.num_classes} classes collapse" if dead else "No class collapses"
    factor = float(np.sqrt(frame.headroom.min()))
    change = (
        f"divide both decays by more than {1 / factor:.3g} to keep every class"
        if dead
        else f"both decays may grow by a factor below {factor:.3g}"
    )
    return (
        f"{fate} at λ_W λ_H = {product} (first class dies at {limits.minority_collapse:.4g}, the last at "
        f"{limits.complete_collapse:.4g}); {change}."
    )
