"""`collapsekit predict`: which classes a recipe will lose, from counts alone; never imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from cyclopts import Parameter

import collapsekit
from collapsekit import UFM, CollapseError
from collapsekit.cli._console import Column, cells, print_classes, print_json, print_note, progress
from collapsekit.cli._inputs import Counting, Head, Penalties, class_labels
from collapsekit.cli._outputs import check_output, pages
from collapsekit.evidence import scope
from collapsekit.prediction import Basis, Prediction, fates
from collapsekit.recipe import Penalty, horizon_sentence
from collapsekit.solver import Solution
from collapsekit.theory import NoClosedForm, Thresholds
from collapsekit.validation import class_counts

# what a narrow terminal goes without, in this order; never class, count, confidence and status
DROP = (
    *("‖w‖²", "‖h‖²", "margin", "dies at\ncount", "in training\nat least", "headroom\nat least", "headroom"),
    "dies at\nweight decay",
)
SHARED = (
    "With β frozen, classes that share coordinates cost more than is counted here: the optimum is a lower bound, and "
    "confidences are approximate."
)
NO_ACCURACY = "The prediction describes the training geometry; what it means for test accuracy has to be measured."


def predict(
    counts: Annotated[tuple[str, ...], Parameter(help="One count a class, or one file.")] = (),
    /,
    *,
    counting: Annotated[Counting | None, Parameter(name="*")] = None,
    head: Annotated[Head | None, Parameter(name="*")] = None,
    penalties: Annotated[Penalties | None, Parameter(name="*")] = None,
    time_limit: float = 60.0,
    html: Path | None = None,
    json: bool = False,
) -> None:
    """Say which classes a recipe will lose, with each class's threshold and headroom where there is a closed form.

    Give counts, and either the theory's penalties (--lambda-w, --lambda-h) or the recipe's own units
    (--weight-decay with --feature-decay or --batchnorm-branches). Without penalties only thresholds are printed.
    With --learning-rate and --steps it also says whether the decay has time to act at all.

    Example: collapsekit predict 500 300 40 10 --lambda-w 0.03 --lambda-h 0.001

    Example: collapsekit predict --long-tail 5000:50:100 --weight-decay 0.1 --batchnorm-branches 1

    Example: collapsekit predict labels.csv --label-column species --weight-decay 0.05 --batchnorm-branches 1

    Example: collapsekit predict 500 300 40 10 --lambda-w 0.03 --lambda-h 0.001 --bias free --logit-adjustment 1

    Parameters
    ----------
    counts : tuple of str
        One count a class, or one file: a count or `name,count` a line, JSON, or labels (one a line, a column, arrays).
    time_limit : float
        Seconds for the search of what has no closed form; past it the best point is shown with its gap.
    html : Path
        Write a page with the table and figures, too (needs the extras report and torch).
    json : bool
        Print one JSON object.
    """
    if html is not None:
        check_output("--html", html, counts)
    sizes = (counting or Counting()).sizes(counts)
    penalties, head, names = penalties or Penalties(), head or Head(), class_labels(sizes)
    if not penalties.given:
        if html is not None:
            raise CollapseError(
                "--html: a page needs penalties; give --lambda-w and --lambda-h, or the recipe's own units"
            )
        for flag, given in (("bias", head.bias not in (None, "none")), ("no-relu", head.no_relu), ("dim", head.dim)):
            if given:
                raise CollapseError(f"--{flag}: thresholds are known without it; give penalties, too")
        unit = UFM(sizes, 1.0, 1.0, loss=head.made(penalties, sizes))
        if penalties.class_weights is not None:
            unit = Penalty(1.0, 1.0).problem(sizes, class_weights=penalties.class_weights, loss=unit.loss)
        _print_thresholds(unit, names, json)
    elif penalties.horizon is not None and (reason := penalties.refusal(class_counts(sizes))) is not None:
        print_horizon(reason, penalties.horizon, names, html, json)
    else:
        _print_prediction(penalties, head.problem(penalties, sizes), names, time_limit, html, json)


def print_horizon(reason: str, horizon: float, names: list[str], html: Path | None, json: bool) -> None:
    """What can be said where the decay is the penalty of no problem: whether it acts at all."""
    if html is not None:
        raise CollapseError("--html: no class can be predicted, so there is no page; leave it out to see why")
    sentence = f"With these steps {horizon_sentence(horizon)}."
    if json:
        print_json({"schema": 2, "labels": names, "horizon": horizon, "reason": reason, "verdict": sentence})
        return
    print_note(f"No class can be predicted: {reason}.")
    print_note(sentence)


def _print_thresholds(unit: UFM, names: list[str], json: bool) -> None:
    limits = collapsekit.thresholds(unit)
    if json:
        dependent = ("headroom", "critical_count")  # on penalties, and none were given
        content = {key: value for key, value in limits.to_dict().items() if key not in dependent}
        print_json(content | {"labels": names, "counts": unit.counts.astype(int).tolist()})
        return
    ends = f"λ_W λ_H = {limits.minority_collapse:.6g}, the last at {limits.complete_collapse:.6g}"
    header, said = "dies at λ_W λ_H ≥", f"The first class dies at {ends}."
    if limits.one_sided:
        header, said = "lives below λ_W λ_H", "Beyond, a class may live on by sharing coordinates."
    products = (header, limits.critical_product, ".6g")
    print_classes([("class", names, ""), ("count", unit.counts, ".0f"), products, ("", [""] * len(names), "")])
    print_note(f"{said} Give penalties to see confidences and headroom.")


def _print_prediction(
    penalties: Penalties, problem: UFM, names: list[str], time_limit: float, html: Path | None, json: bool
) -> None:
    if not time_limit > 0:
        raise CollapseError(f"--time-limit={time_limit:g}: give seconds above 0")
    with progress("predicting"):
        frame = collapsekit.predict(problem, time_limit=time_limit)
    limits, why = _limits(penalties, problem)
    ground, exact = scope(problem, penalties.recipe), limits is not None and frame.basis is Basis.CLOSED_FORM
    columns = _columns(frame, names, limits, penalties.weight_decay)
    summary = _summary(frame, limits, problem) if exact else _solved_summary(frame, limits, why)
    horizon, page = penalties.horizon, dict[str, str]()
    acts = "" if horizon is None else f"With these steps {horizon_sentence(horizon)}."
    if html is not None:
        if frame.basis is Basis.BOUNDS:
            raise CollapseError(f"--html: of these classes only bounds are known; {why}")
        caption = "Each class on its training samples, predicted"
        sheet = sheet_of("Which classes this recipe will lose", [summary], caption, columns, frame, ground.details)
        page = {"page": str(pages("theory_page").prediction_page(problem, sheet, html, None if exact else frame))}
    if json:
        found = {
            "thresholds": limits and limits.to_dict(),
            "why": None if exact else why,
            "scope": ground.to_dict(),
            "horizon": horizon,
        }
        print_json(frame.to_dict() | {"labels": names} | found | page)
        return
    print_classes(columns, DROP)
    shared = "" if exact or getattr(penalties.recipe, "decays", None) != "gain_frozen_shift" else SHARED
    for sentence in (summary, shared, acts, str(ground), *(f"page: {written}" for written in page.values())):
        if sentence:
            print_note(sentence)


def _limits(penalties: Penalties, problem: UFM) -> tuple[Thresholds | None, str]:
    """The thresholds, or why there are none."""
    try:
        limits = collapsekit.thresholds(problem, hold=penalties.recipe)
    except NoClosedForm as reason:
        free = getattr(penalties.recipe, "decays", None) == "gain"
        shifted = "β is free, so that a feature costs its variance: a problem without ReLU and with a free bias"
        return None, shifted if free else str(reason).split(";")[0]
    return limits, f"loss: {getattr(problem.loss, 'obstacle', None)}" if limits.one_sided else "dim: too narrow for it"


def _solved_summary(frame: Prediction, limits: Thresholds | None, why: str) -> str:
    """What is said of an optimum that was searched for."""
    if frame.basis is Basis.BOUNDS:
        return f"Shown is what no class falls below ({frame.basis.value}: too many classes; {why})."
    fate = f"{int(frame.collapses.sum())} of {frame.problem.num_classes} classes collapse"
    if frame.basis is Basis.NOT_CERTIFIED:
        status = f"; {frame.source.status.value}" if isinstance(frame.source, Solution) else ""
        point = f"At the best point found {fate}, not certified: relative gap {frame.gap:.1e}{status}"
        return f"{point}. No thresholds ({why})."
    known = "Headrooms are lower bounds" if limits is not None and limits.one_sided else "No thresholds"
    return f"{fate}. {known} ({why}); shown is {frame.basis.value} (relative gap {frame.gap:.1e})."


def _columns(frame: Any, names: list[str], limits: Any, weight_decay: float | None) -> list[Column]:
    """What is said of each class; a death in units of the recipe where it is given in them."""
    bound = frame.problem.confidence_floor()
    known = frame.basis is not Basis.CLOSED_FORM and not np.isnan(bound).any()
    floor: list[Column] = [("in training\nat least", bound, ".4f")] if known else []
    if known and not np.array_equal(frame.confidences, frame.training_confidences):
        floor.insert(0, ("confidence\nin training", frame.training_confidences, ".4f"))
    columns: list[Column] = [
        ("class", names, ""),
        ("count", frame.problem.counts, ".0f"),
        ("confidence", frame.confidences, ".4f"),
        *floor,
        ("margin", frame.margins, ".4f"),
        ("‖h‖²", frame.feature_sqnorms, ".4g"),
        ("‖w‖²", frame.classifier_sqnorms, ".4g"),
    ]
    if limits is not None:
        columns.append(("headroom\nat least" if limits.one_sided else "headroom", limits.headroom, ".4g"))
        if not limits.one_sided:
            if weight_decay is not None:
                columns.append(("dies at\nweight decay", weight_decay * limits.decay_factor, ".4g"))
            columns.append(("dies at\ncount", limits.critical_count, ".4g"))
    return [*columns, ("status", fates(frame.problem.loss, frame.confidences, frame.collapses), "")]


def sheet_of(
    title: str, verdict: Sequence[str], caption: str, columns: Sequence[Column], frame: Any, ground: str
) -> Any:
    """Return the words of a page about a prediction; of many classes the largest and the smallest."""
    sheet, size = pages("sheet"), frame.problem.num_classes
    half, headers = sheet.MOST_ROWS // 2, [header.replace("\n", " ") for header, _, _ in columns]
    shown = range(size) if size <= sheet.MOST_ROWS else [*range(half), *range(size - half, size)]
    table = sheet.Table(
        "Classes",
        caption,
        headers,
        [cells(columns, k) for k in shown],
        words=headers[-1:],
        lost={i for i, k in enumerate(shown) if frame.collapses[k]},
        omitted=f"{size - sheet.MOST_ROWS} classes between are left out" * (size > sheet.MOST_ROWS),
    )
    notes = [ground, NO_ACCURACY, f"{frame.problem!r}."]
    return sheet.Sheet(title, verdict, bool(frame.collapses.any()), [table], notes)


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
