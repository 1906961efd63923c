"""`collapsekit advise`: what to change so that every class lives, before and after, class by class; no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from cyclopts import Parameter

from collapsekit import UFM, CollapseError, predict, thresholds
from collapsekit.cli._console import print_classes, print_json, print_note
from collapsekit.cli._inputs import Counting, Penalties
from collapsekit.cli.predict import NO_ACCURACY, pages
from collapsekit.evidence import scope
from collapsekit.prediction import fates
from collapsekit.recipe import Recipe
from collapsekit.theory import LargestPenalty, WeightAdvice, counts_for, largest_penalty, margins_for, weights_for
from collapsekit.theory._counts import with_counts
from collapsekit.validation import Array, shorten

Result = TypeVar("Result")
SAFE = 0.9
"""Share of the largest decays at which the table shows what they leave: at the largest themselves a class dies."""


def advise(
    counts: Annotated[tuple[str, ...], Parameter(help="One count a class, or one file.")] = (),
    /,
    *,
    counting: Annotated[Counting | None, Parameter(name="*")] = None,
    margins: Literal["equal", "ldam"] = "equal",
    keep: str | None = None,
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
    problem = penalties.problem(sizes)
    names = list(sizes) if isinstance(sizes, dict) else [str(k) for k in range(len(sizes))]
    advice = Advice(problem, margins, _position(keep, names), penalties.recipe)
    ground, table = scope(problem, penalties.recipe), AdviceTable(advice, names, penalties.weight_decay)
    written = None if html is None else _write_page(table, ground.details, html)
    if json:
        content = advice.to_dict() | {"labels": names, "scope": ground.details}
        print_json(content | ({} if written is None else {"page": str(written)}))
        return
    _print(table)
    print_note(str(ground))
    if written is not None:
        print_note(f"page: {written}")


def _position(keep: str | None, names: list[str]) -> int | None:
    """The class that a user names, by its name or, where no class has that name, by its position."""
    if keep is None:
        return None
    if keep in names:
        return names.index(keep)
    if keep.isdecimal() and int(keep) < len(names):
        return int(keep)
    raise CollapseError(f"--keep={shorten(keep)}: no such class; give one of {shorten(names)}, or a position")


class Advice:
    """Every remedy for one problem; a remedy that is impossible is the sentence that says why."""

    def __init__(self, problem: UFM, wish: Literal["equal", "ldam"], keep: int | None, hold: Recipe | None) -> None:
        self.problem, self.keep, self.hold = problem, keep, hold
        self.now, self.limits = predict(problem), thresholds(problem, hold=hold)
        self.limit: LargestPenalty = largest_penalty(problem, keep)
        self.weights: WeightAdvice | str = _or_reason(lambda: weights_for(problem, wish))
        self.margins: UFM | str = _or_reason(lambda: margins_for(problem, wish))
        self.counts: Array | str = _or_reason(lambda: counts_for(problem, hold=hold))

    @property
    def confidences(self) -> dict[str, Array]:
        """Confidence of each class after each possible remedy."""
        after = {f"{SAFE:g} × largest decays": predict(self._with_decays(SAFE * self.limit.factor)).confidences}
        if isinstance(self.weights, WeightAdvice):
            after["class weights"] = predict(self.weights.problem).confidences
        if isinstance(self.margins, UFM):
            after["target margins"] = predict(self.margins).confidences
        if isinstance(self.counts, np.ndarray):
            after["oversampling"] = predict(with_counts(self.problem, self.counts, self.hold)).confidences
        return after

    def _with_decays(self, factor: float) -> UFM:
        one = self.problem
        return replace(one, lambda_w=one.lambda_w * factor, lambda_h=one.lambda_h * factor)

    @property
    def target_margins(self) -> tuple[float, ...] | None:
        """Δ_k, if target margins are possible."""
        return getattr(self.margins.loss, "margins", None) if isinstance(self.margins, UFM) else None

    @property
    def impossible(self) -> dict[str, str]:
        """Why a remedy is impossible."""
        wishes = {"class weights": self.weights, "target margins": self.margins, "oversampling": self.counts}
        return {name: value.split(": ", 1)[-1] for name, value in wishes.items() if isinstance(value, str)}

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values, with its schema version."""
        weights = self.weights
        return {
            "schema": 1,
            "problem": self.problem.to_dict(),
            "confidences": self.now.confidences.tolist(),
            "thresholds": self.limits.to_dict(),
            "largest_penalty": {"product": self.limit.product, "factor": self.limit.factor, "label": self.limit.label},
            "class_weights": weights.torch_weights.tolist() if isinstance(weights, WeightAdvice) else None,
            "target_margins": self.target_margins,
            "counts": self.counts.astype(int).tolist() if isinstance(self.counts, np.ndarray) else None,
            "confidences_after": {key: value.tolist() for key, value in self.confidences.items()},
            "impossible": self.impossible,
        }


def _or_reason(remedy: Callable[[], Result]) -> Result | str:
    try:
        return remedy()
    except CollapseError as error:
        return str(error)


class AdviceTable:
    """One row a class, of words: as it is now, and after each remedy."""

    def __init__(self, advice: Advice, names: list[str], weight_decay: float | None) -> None:
        self.advice, self.names, self.after = advice, names, advice.confidences
        now, limits = advice.now, advice.limits
        self.fates = fates(now.problem.loss, now.confidences, now.collapses)
        unit = 1.0 if weight_decay is None else weight_decay
        self.columns: list[tuple[str, Callable[[int], str]]] = [
            ("class", lambda k: names[k]),
            ("count", lambda k: f"{advice.problem.counts[k]:.0f}"),
            ("confidence\nnow", lambda k: f"{now.confidences[k]:.4f}"),
            (
                "dies at\ndecays ×" if weight_decay is None else "dies at\nweight decay",
                lambda k: f"{unit * limits.decay_factor[k]:.4g}",
            ),
        ]
        decays = next(iter(self.after))
        self._add(decays.replace("largest", "largest\n"), None, decays)
        if isinstance(advice.weights, WeightAdvice):
            weights = advice.weights.torch_weights
            self._add("class\nweight", lambda k: f"{weights[k]:.4g}", "class weights")
        shifts = advice.target_margins
        if shifts is not None:
            self._add("target\nmargin Δ", lambda k: f"{round(shifts[k], 3) + 0.0:.3f}", "target margins")
        if isinstance(advice.counts, np.ndarray):
            counts = advice.counts
            self._add("count\nneeded", lambda k: f"{counts[k]:.0f}", "oversampling")
        self.columns.append(("status now", self.fates.__getitem__))

    def _add(self, header: str, show: Callable[[int], str] | None, remedy: str) -> None:
        """A remedy and the confidences after it."""
        values = self.after[remedy]
        if show is not None:
            self.columns.append((header, show))
        self.columns.append(
            (header if show is None else "→ confidence", lambda k: f"{values[k]:.4f}"),
        )

    def row(self, k: int) -> list[str]:
        """Class k in words."""
        return [show(k) for _, show in self.columns]

    @property
    def sentences(self) -> list[str]:
        """What to do with the decays, and what is impossible."""
        advice, limit = self.advice, self.advice.limit
        who = "every class" if advice.keep is None else f"class {self.names[advice.keep]}"
        change = "may grow by a factor below" if limit.factor > 1 else "must be multiplied by less than"
        found = [f"Decays: all {change} {limit.factor:.4g} for {who} to live (λ_W λ_H below {limit.product:.4g})."]
        return found + [f"{name.capitalize()}: impossible, {why}." for name, why in advice.impossible.items()]


def _write_page(table: AdviceTable, ground: str, html: Path) -> Path:
    advice = table.advice
    sheet = pages().Sheet(
        title="What to change so that classes live",
        verdict=table.sentences,
        missed=bool(advice.now.collapses.any()),
        caption="Each class now and after each remedy alone, predicted",
        headers=[header.replace("\n", " ") for header, _ in table.columns],
        rows=[table.row(k) for k in range(len(table.names))],
        lost=advice.now.collapses.tolist(),
        notes=[ground, NO_ACCURACY],
    )
    return Path(pages().advice_page(advice.problem, table.after, sheet, html))


def _print(table: AdviceTable) -> None:
    headers = [header for header, _ in table.columns]
    kept = ("class", "count", "confidence\nnow", "status now")
    drop = [header for header in headers if header not in kept]
    print_classes(headers, table.row, table.fates, drop[::-1])
    for sentence in table.sentences:
        print_note(sentence)
    print_note(NO_ACCURACY)
