"""`collapsekit advise`: what to change so that every class lives, before and after, class by class; no torch."""

from __future__ import annotations

import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from collapsekit import UFM, CollapseError, thresholds
from collapsekit.cli._console import Column, print_classes, print_json, print_note, progress
from collapsekit.cli._inputs import Counting, Head, Penalties, by_flags, class_labels
from collapsekit.cli._outputs import check_output, pages
from collapsekit.cli.predict import NO_ACCURACY, print_horizon, sheet_of
from collapsekit.evidence import scope
from collapsekit.prediction import Advice, Remedy, fates
from collapsekit.prediction import advise as advice_for
from collapsekit.prediction._fates import Fate
from collapsekit.recipe import Recipe, horizon_sentence
from collapsekit.theory import NoClosedForm, Thresholds
from collapsekit.validation import class_counts, shorten

FUNCTION = re.compile(r" \((largest_penalty|weights_for)\)")  # as the library names remedies
MOST_LISTED = 20
# with more classes a line to paste would fill the screen: --json has it
COLUMNS = {
    "class weights": ("class\nweight", ".4g"),
    "target margins": ("target\nmargin Δ", "z.3f"),
    "oversampling": ("count\nneeded", ".0f"),
}


def advise(
    counts: Annotated[tuple[str, ...], Parameter(help="One count a class, or one file.")] = (),
    /,
    *,
    counting: Annotated[Counting | None, Parameter(name="*")] = None,
    min_confidence: float | None = None,
    margins: Literal["equal", "ldam"] = "equal",
    keep: str | None = None,
    head: Annotated[Head | None, Parameter(name="*")] = None,
    penalties: Annotated[Penalties | None, Parameter(name="*")] = None,
    html: Path | None = None,
    json: bool = False,
) -> None:
    """Say what to change so that every class lives: decays, class weights, target margins or counts, to be pasted.

    Counts and penalties are given as for predict. Each remedy stands alone, the simplest that is enough comes first,
    and what it does to every class is predicted; what is impossible says why. With the recipe's own units its decays
    stay as they are while oversampling changes the number of samples.

    Example: collapsekit advise 500 300 40 10 --lambda-w 0.03 --lambda-h 0.001

    Example: collapsekit advise --long-tail 5000:50:10 --weight-decay 0.05 --batchnorm-branches 1 --min-confidence 0.5

    Parameters
    ----------
    counts : tuple of str
        One count a class, or one file: a count or `name,count` a line, JSON, or labels (one a line, a column, arrays).
    min_confidence : float
        Confidence on its training samples that every class shall keep; left out: none shall be lost.
    margins : str
        Wanted margins: equal, or ldam (proportional to count^(-1/4)).
    keep : str
        The one class that has to be kept, by name or position; left out: every class.
    html : Path
        Write a page with the table and figures, too (needs the extras report and torch).
    json : bool
        Print one JSON object.
    """
    if html is not None:
        check_output("--html", html, counts)
    sizes = (counting or Counting()).sizes(counts)
    penalties = penalties or Penalties()
    if not penalties.given:
        raise CollapseError("--weight-decay: missing; advice needs the recipe's penalties, as predict does")
    if penalties.horizon is not None and (reason := penalties.refusal(class_counts(sizes))) is not None:
        print_horizon(reason, penalties.horizon, class_labels(sizes), html, json)
        return
    problem, recipe, names = (head or Head()).problem(penalties, sizes), penalties.recipe, class_labels(sizes)
    position = None if keep is None else _position(keep, names)
    with progress("looking for remedies"), by_flags():
        advice = advice_for(problem, min_confidence=min_confidence, keep=position, margins=margins, recipe=recipe)
    now, limits = advice.now, _limits(problem, recipe)
    who = "every class" if position is None else f"class {names[position]}"
    wanted = f"{who} to live" if min_confidence is None else f"{who} to keep a confidence of {min_confidence:g}"
    opening, rest = _opening(advice, wanted), _impossible(advice)
    if penalties.horizon is not None:
        rest.append(f"With these steps {horizon_sentence(penalties.horizon)}.")
    after = {remedy.name: remedy.prediction.confidences for remedy in advice.remedies}
    columns = _columns(advice, names, limits, penalties.weight_decay)
    ground, page = scope(problem, recipe), dict[str, str]()
    if html is not None:
        caption = "Each class now and after each remedy alone, predicted"
        verdict = [sentence.removesuffix(":") for sentence in opening]
        sheet = sheet_of("What to change so that classes live", verdict, caption, columns, now, ground.details)
        sheet = replace(sheet, advice=_paste(advice, names), notes=[*rest, *sheet.notes])
        solved = now if limits is None else None
        page = {"page": str(pages("theory_page").advice_page(problem, after, sheet, html, solved))}
    if json:
        found = {remedy.name: None if remedy.values is None else remedy.values.tolist() for remedy in advice.remedies}
        content = {
            "schema": 2,
            "problem": problem.to_dict(),
            "confidences": now.confidences.tolist(),
            "thresholds": limits and limits.to_dict(),
            "largest_penalty": advice.largest and asdict(advice.largest),
            "min_confidence": min_confidence,
            "enough": advice.enough,
            "remedies": [
                {"name": remedy.name, "line": remedy.line, "reaches": remedy.reaches} for remedy in advice.remedies
            ],
            "class_weights": found.get("class weights"),
            "target_margins": found.get("target margins"),
            "counts": found.get("oversampling"),
            "confidences_after": {name: confidences.tolist() for name, confidences in after.items()},
            "impossible": advice.impossible,
            "horizon": penalties.horizon,
            "labels": names,
            "scope": ground.details,
        }
        print_json(content | page)
        return
    kept = ("class", "count", "confidence\nnow", "status now")
    print_classes(columns, [header for header, _, _ in columns[::-1] if header not in kept])
    for sentence in (
        *opening,
        *_steps(advice, names),
        *rest,
        NO_ACCURACY,
        ground,
        *(f"page: {written}" for written in page.values()),
    ):
        print_note(str(sentence))


def _columns(advice: Advice, names: list[str], limits: Thresholds | None, decay: float | None) -> list[Column]:
    """The table: each class now and after each remedy."""
    now = advice.now
    unit, dies = (1.0, "decays ×") if decay is None else (decay, "weight decay")
    columns: list[Column] = [
        ("class", names, ""),
        ("count", now.problem.counts, ".0f"),
        ("confidence\nnow", now.confidences, ".4f"),
        *([] if limits is None else [(f"dies at\n{dies}", unit * limits.decay_factor, ".4g")]),
    ]
    for remedy in advice.remedies:
        if remedy.values is not None:
            header, form = COLUMNS[remedy.name]
            columns.append((header, remedy.values, form))
        header = "with these\n decays" if remedy.values is None else "→ confidence"
        columns.append((header, remedy.prediction.confidences, ".4f"))
    columns.append(("status now", fates(now.problem.loss, now.confidences, now.collapses), ""))
    return columns


def _opening(advice: Advice, wanted: str) -> list[str]:
    """How far the decays may grow, and whether one remedy is enough."""
    limit, sentences = advice.largest, list[str]()
    if limit is not None:
        change = "may grow by a factor below" if limit.factor > 1 else "must be multiplied by less than"
        sentences.append(f"Decays: all {change} {limit.factor:.4g} for {wanted} (λ_W λ_H below {limit.product:.4g}).")
    if advice.enough:
        return [*sentences, "Nothing has to change; each of these changes what classes keep:"]
    if advice.remedies and advice.remedies[0].reaches:
        return [*sentences, "One of these is enough, the simplest first:"]
    together = "" if limit is None else "; take them together with smaller decays"
    return [*sentences, f"Nothing below is enough alone{together}:"]


def _steps(advice: Advice, names: list[str]) -> list[str]:
    """Each remedy with what to paste, and what it leaves."""
    return [
        sentence
        for i, remedy in enumerate(advice.remedies, 1)
        for sentence in (f"{i}. {_name(remedy, advice)}: {_line(remedy, len(names))}", f"   {_left(remedy, names)}")
    ]


def _paste(advice: Advice, names: list[str]) -> list[Any]:
    """The same for a page."""
    line = pages("sheet").Advice
    return [
        line(f"{_name(remedy, advice)}: {_left(remedy, names)}.", _line(remedy, len(names)))
        for remedy in advice.remedies
    ]


def _name(remedy: Remedy, advice: Advice) -> str:
    return remedy.name.capitalize() + ("" if remedy.reaches or advice.enough else ", not enough alone")


def _impossible(advice: Advice) -> list[str]:
    reasons = _by_reason(advice.impossible)
    return [f"{which.capitalize()}: impossible, {FUNCTION.sub('', why)}." for why, which in reasons]


def _line(remedy: Remedy, size: int) -> str:
    return remedy.line if remedy.values is None or size <= MOST_LISTED else f"one a class, {size} in all: see --json"


def _left(remedy: Remedy, names: list[str]) -> str:
    """The worst class after a remedy, and what stays lost or nearly lost."""
    found = remedy.prediction
    worst, words = int(found.confidences.argmin()), fates(found.problem.loss, found.confidences, found.collapses)
    left = f"lowest confidence {found.confidences[worst]:.4f} (class {names[worst]})"
    counted = [f"{words.count(word)} {said}" for word, said in STAY.items() if words.count(word)]
    return f"{left}; {', '.join(counted)}" if counted else left


STAY: dict[Fate, str] = {"collapses": "still lost", "nearly lost": "nearly lost"}
# what a prediction says of a class, and how it is told of classes after a remedy


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
