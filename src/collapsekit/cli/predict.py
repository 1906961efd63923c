"""`collapsekit predict`: which classes a recipe will lose, from counts alone; never imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from cyclopts import Parameter

import collapsekit
from collapsekit import UFM, CollapseError
from collapsekit.cli._console import Column, cells, print_classes, print_json, print_note
from collapsekit.cli._inputs import Counting, Penalties, class_labels
from collapsekit.evidence import scope
from collapsekit.prediction import fates, from_solution
from collapsekit.prediction._predict import predicted
from collapsekit.recipe import Penalty

# what a narrow terminal goes without, in this order; never class, count, confidence and status
DROP = ("‖w‖²", "‖h‖²", "margin", "dies at\ncount", "headroom", "dies at\nweight decay")
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
    names = class_labels(sizes)
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
        dependent = ("headroom", "critical_count")  # on penalties, and none were given
        content = {key: value for key, value in limits.to_dict().items() if key not in dependent}
        print_json(content | {"labels": names, "counts": unit.counts.astype(int).tolist()})
        return
    dies = ("dies at λ_W λ_H ≥", limits.critical_product, ".6g")
    print_classes([("class", names, ""), ("count", unit.counts, ".0f"), dies, ("", [""] * len(names), "")])
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
    columns = _columns(frame, names, limits, penalties.weight_decay)
    summary, page = _summary(frame, limits, problem), dict[str, str]()
    if html is not None:
        caption = "Each class on its training samples, predicted"
        sheet = sheet_of("Which classes this recipe will lose", [summary], caption, columns, frame, ground.details)
        page = {"page": str(pages().prediction_page(problem, sheet, html))}
    if json:
        print_json(
            frame.to_dict() | {"labels": names, "thresholds": limits.to_dict(), "scope": ground.to_dict()} | page
        )
        return
    print_classes(columns, DROP)
    for sentence in (summary, ground, *(f"page: {written}" for written in page.values())):
        print_note(str(sentence))


def _print_solved(reason: str, problem: UFM, names: list[str], html: Path | None, json: bool) -> None:
    """The prediction of what has no closed form: a certified optimum, without thresholds."""
    if html is not None:
        raise CollapseError(f"--html: a page needs thresholds; {reason}")
    found = from_solution(collapsekit.solve(problem))
    if json:
        print_json(found.to_dict() | {"labels": names, "thresholds": None, "scope": None})
        return
    print_classes(_columns(found, names, None, None), DROP)
    print_note(
        f"{int(found.collapses.sum())} of {problem.num_classes} classes collapse. No thresholds ({reason}); shown is "
        f"{found.basis.value} (relative gap {found.gap:.1e})."
    )


def _columns(frame: Any, names: list[str], limits: Any, weight_decay: float | None) -> list[Column]:
    """What is said of each class; a death in units of the recipe where it is given in them."""
    columns: list[Column] = [
        ("class", names, ""),
        ("count", frame.problem.counts, ".0f"),
        ("confidence", frame.confidences, ".4f"),
        ("margin", frame.margins, ".4f"),
        ("‖h‖²", frame.feature_sqnorms, ".4g"),
        ("‖w‖²", frame.classifier_sqnorms, ".4g"),
    ]
    if limits is not None:
        columns.append(("headroom", frame.headroom, ".4g"))
        if weight_decay is not None:
            columns.append(("dies at\nweight decay", weight_decay * limits.decay_factor, ".4g"))
        columns.append(("dies at\ncount", limits.critical_count, ".4g"))
    return [*columns, ("status", fates(frame.problem.loss, frame.confidences, frame.collapses), "")]


def sheet_of(
    title: str, verdict: Sequence[str], caption: str, columns: Sequence[Column], frame: Any, ground: str
) -> Any:
    """Return the words of a page about a prediction."""
    return pages().Sheet(
        title=title,
        verdict=verdict,
        missed=bool(frame.collapses.any()),
        caption=caption,
        headers=[header.replace("\n", " ") for header, _, _ in columns],
        rows=[cells(columns, k) for k in range(frame.problem.num_classes)],
        lost=frame.collapses.tolist(),
        notes=[ground, NO_ACCURACY],
    )


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
