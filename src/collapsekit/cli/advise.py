"""`collapsekit advise`: what to change so that every class lives, before and after, class by class; no torch."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from cyclopts import Parameter

from collapsekit import UFM, CollapseError, predict, thresholds
from collapsekit.cli._console import Column, print_classes, print_json, print_note, progress
from collapsekit.cli._inputs import Counting, Head, Penalties, class_labels
from collapsekit.cli.predict import NO_ACCURACY, pages, print_horizon, sheet_of
from collapsekit.evidence import scope
from collapsekit.prediction import fates, largest_decays
from collapsekit.prediction._advise import scaled
from collapsekit.recipe import Recipe, horizon_sentence
from collapsekit.theory import NoClosedForm, Thresholds, counts_for, margins_for, weights_for
from collapsekit.theory._counts import with_counts
from collapsekit.validation import class_counts, shorten

# share of the largest decays at which the table shows what they leave: at the largest themselves a class dies
SAFE = 0.9
FUNCTION = re.compile(r" \((largest_penalty|weights_for)\)")  # as the library names remedies


def advise(
    counts: Annotated[tuple[str, ...], Parameter(help="One count a class, or one file.")] = (),
    /,
    *,
    counting: Annotated[Counting | None, Parameter(name="*")] = None,
    margins: Literal["equal", "ldam"] = "equal",
    keep: str | None = None,
    head: Annotated[Head | None, Parameter(name="*")] = None,
    penalties: Annotated[Penalties | None, Parameter(name="*")] = None,
    html: Path | None = None,
    json: bool = False,
) -> None:
    """Say what to change so that classes live and margins are as wanted: decays, weights, target margins, counts.

    Counts and penalties are given as for predict. Each remedy stands alone; what is impossible says why. With the
    recipe's own units its decays stay as they are while oversampling changes the number of samples.

    Example: collapsekit advise 500 300 40 10 --lambda-w 0.03 --lambda-h 0.001

    Example: collapsekit advise --long-tail 5000:50:10 --weight-decay 0.05 --batchnorm-branches 1 --margins ldam

    Parameters
    ----------
    counts : tuple of str
        One count a class, or one file: a count or `name,count` a line, JSON, or labels (one a line, a column, arrays).
    margins : str
        Wanted margins: equal, or ldam (proportional to count^(-1/4)).
    keep : str
        Class that the largest decays must keep alive, by name or position; left out: every class.
    html : Path
        Write a page with the table and figures, too (needs the extras report and torch).
    json : bool
        Print one JSON object.
    """
    sizes = (counting or Counting()).sizes(counts)
    penalties = penalties or Penalties()
    if not penalties.given:
        raise CollapseError("--weight-decay: missing; advice needs the recipe's penalties, as predict does")
    if penalties.horizon is not None and (reason := penalties.refusal(class_counts(sizes))) is not None:
        print_horizon(reason, penalties.horizon, class_labels(sizes), json)
        return
    problem, recipe, names = (head or Head()).problem(penalties, sizes), penalties.recipe, class_labels(sizes)
    position = None if keep is None else _position(keep, names)
    with progress("looking for the largest decays"):
        now, limits, limit = predict(problem), _limits(problem, recipe), largest_decays(problem, position)
    remedies, impossible = _remedies(problem, margins, recipe)
    safe = scaled(problem, SAFE * limit.factor)
    problems = {f"{SAFE:g} × largest decays": safe} | {name: remedy.after for name, remedy in remedies.items()}
    after = {name: predict(changed).confidences for name, changed in problems.items()}

    unit, dies = (1.0, "decays ×") if penalties.weight_decay is None else (penalties.weight_decay, "weight decay")
    columns: list[Column] = [
        ("class", names, ""),
        ("count", problem.counts, ".0f"),
        ("confidence\nnow", now.confidences, ".4f"),
        *([] if limits is None else [(f"dies at\n{dies}", unit * limits.decay_factor, ".4g")]),
        (f"{SAFE:g} × largest\n decays", next(iter(after.values())), ".4f"),
    ]
    for name, remedy in remedies.items():
        columns += [(remedy.header, remedy.values, remedy.form), ("→ confidence", after[name], ".4f")]
    columns.append(("status now", fates(problem.loss, now.confidences, now.collapses), ""))

    who = "every class" if position is None else f"class {names[position]}"
    change = "may grow by a factor below" if limit.factor > 1 else "must be multiplied by less than"
    sentences = [
        f"Decays: all {change} {limit.factor:.4g} for {who} to live (λ_W λ_H below {limit.product:.4g}).",
        *([] if penalties.horizon is None else [f"With these steps {horizon_sentence(penalties.horizon)}."]),
        *(f"{which.capitalize()}: impossible, {FUNCTION.sub('', why)}." for why, which in _by_reason(impossible)),
    ]
    ground, page = scope(problem, recipe), dict[str, str]()
    if html is not None:
        caption = "Each class now and after each remedy alone, predicted"
        sheet = sheet_of("What to change so that classes live", sentences, caption, columns, now, ground.details)
        page = {"page": str(pages().advice_page(problem, after, sheet, html))}
    if json:
        found = {name: np.asarray(remedy.values).tolist() for name, remedy in remedies.items()}
        content = {
            "schema": 1,
            "problem": problem.to_dict(),
            "confidences": now.confidences.tolist(),
            "thresholds": limits and limits.to_dict(),
            "largest_penalty": asdict(limit),
            "class_weights": found.get("class weights"),
            "target_margins": found.get("target margins"),
            "counts": found.get("oversampling"),
            "confidences_after": {name: confidences.tolist() for name, confidences in after.items()},
            "impossible": impossible,
            "horizon": penalties.horizon,
            "labels": names,
            "scope": ground.details,
        }
        print_json(content | page)
        return
    kept = ("class", "count", "confidence\nnow", "status now")
    print_classes(columns, [header for header, _, _ in columns[::-1] if header not in kept])
    for sentence in (*sentences, NO_ACCURACY, ground, *(f"page: {written}" for written in page.values())):
        print_note(str(sentence))


def _by_reason(impossible: dict[str, str]) -> list[tuple[str, str]]:
    """Each reason with the remedies that it stands against."""
    return [
        (why, ", ".join(name for name, other in impossible.items() if other == why))
        for why in dict.fromkeys(impossible.values())
    ]


def _limits(problem: UFM, recipe: Recipe | None) -> Thresholds | None:
    """The thresholds; None where there is no closed form."""
    try:
        limits = thresholds(problem, hold=recipe)
    except NoClosedForm:
        return None
    return None if limits.one_sided else limits


def _position(keep: str, names: list[str]) -> int:
    """The class that a user names, by its name or, where no class has that name, by its position."""
    if keep in names:
        return names.index(keep)
    if keep.isdecimal() and int(keep) < len(names):
        return int(keep)
    raise CollapseError(f"--keep={shorten(keep)}: no such class; give one of {shorten(names)}, or a position")


class Remedy(NamedTuple):
    """What to set for each class, as a column of a table, and the problem that this makes."""

    header: str
    values: Any
    form: str
    after: UFM


def _remedies(
    problem: UFM, wish: Literal["equal", "ldam"], hold: Recipe | None
) -> tuple[dict[str, Remedy], dict[str, str]]:
    """The remedies for one problem, and why others are impossible."""

    def weights() -> Remedy:
        advice = weights_for(problem, wish)
        return Remedy("class\nweight", advice.torch_weights, ".4g", advice.problem)

    def targets() -> Remedy:
        shifted: Any = margins_for(problem, wish)
        return Remedy("target\nmargin Δ", shifted.loss.margins, "z.3f", shifted)

    def oversampling() -> Remedy:
        counts = counts_for(problem, hold=hold)
        return Remedy("count\nneeded", counts.astype(int), ".0f", with_counts(problem, counts, hold))

    possible, impossible = dict[str, Remedy](), dict[str, str]()
    for name, remedy in {"class weights": weights, "target margins": targets, "oversampling": oversampling}.items():
        try:
            possible[name] = remedy()
        except NoClosedForm as error:
            impossible[name] = (
                f"known only where there is a closed form, and {str(error).split(': ', 1)[-1].split(';')[0]}"
            )
        except CollapseError as error:
            impossible[name] = str(error).split(": ", 1)[-1]
    return possible, impossible
