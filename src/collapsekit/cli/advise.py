"""`collapsekit advise`: what to change so that every class lives, before and after, class by class; no torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from cyclopts import Parameter

from collapsekit import UFM, CollapseError, predict
from collapsekit.cli.console import print_json, print_note, print_table, shown_rows
from collapsekit.cli.options import Penalties
from collapsekit.cli.predict import class_sizes
from collapsekit.theory import LargestPenalty, WeightAdvice, counts_for, largest_penalty, margins_for, weights_for
from collapsekit.theory.scope import scope
from collapsekit.validation import Array

Result = TypeVar("Result")


def advise(
    counts: Annotated[tuple[str, ...], Parameter(help="One count a class, or one file.")] = (),
    /,
    *,
    long_tail: str | None = None,
    label_column: str | None = None,
    margins: Literal["equal", "ldam"] = "equal",
    penalties: Annotated[Penalties | None, Parameter(name="*")] = None,
    json: bool = False,
) -> None:
    """Say what to change so that classes live and margins are as wanted: decays, weights, target margins, counts.

    Counts and penalties are given as for predict. Each remedy stands alone; what is impossible says why.

    Example: collapsekit advise 500 300 40 10 --lambda-w 0.03 --lambda-h 0.001

    Example: collapsekit advise --long-tail 5000:50:10 --weight-decay 0.05 --batchnorm-branches 1 --margins ldam

    Parameters
    ----------
    counts : tuple of str
        One count a class, or one file: a count a line, `name,count` a line, or a CSV with --label-column.
    long_tail : str
        LARGEST:SMALLEST:CLASSES, an exponential long tail, e.g. 5000:50:100.
    label_column : str
        Column of the CSV file whose values are the class labels; they are counted.
    margins : str
        Wanted margins: equal, or ldam (proportional to count^(-1/4)).
    json : bool
        Print one JSON object.
    """
    sizes = class_sizes(counts, long_tail, label_column)
    penalties = penalties or Penalties()
    if not penalties.given:
        raise CollapseError("--weight-decay: missing; advice needs the recipe's penalties, as predict does")
    problem = penalties.problem(sizes)
    names = list(sizes) if isinstance(sizes, dict) else [str(k) for k in range(len(sizes))]
    advice = Advice(problem, margins)
    ground = str(scope(problem, penalties.recipe))
    if json:
        print_json(advice.to_dict() | {"labels": names, "scope": ground})
    else:
        _print(advice, names)
        print_note(ground)


class Advice:
    """Every remedy for one problem; a remedy that is impossible is the sentence that says why."""

    def __init__(self, problem: UFM, wish: Literal["equal", "ldam"]) -> None:
        self.problem, self.now = problem, predict(problem)
        self.limit: LargestPenalty = largest_penalty(problem)
        self.weights: WeightAdvice | str = _or_reason(lambda: weights_for(problem, wish))
        self.margins: UFM | str = _or_reason(lambda: margins_for(problem, wish))
        self.counts: Array | str = _or_reason(lambda: counts_for(problem))

    @property
    def confidences(self) -> dict[str, Array]:
        """Confidence of each class after each possible remedy."""
        after = {}
        if isinstance(self.weights, WeightAdvice):
            after["class weights"] = predict(self.weights.problem).confidences
        if isinstance(self.margins, UFM):
            after["target margins"] = predict(self.margins).confidences
        return after

    @property
    def target_margins(self) -> tuple[float, ...] | None:
        """Δ_k, if target margins are possible."""
        return getattr(self.margins.loss, "margins", None) if isinstance(self.margins, UFM) else None

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values, with its schema version."""
        weights = self.weights
        return {
            "schema": 1,
            "problem": self.problem.to_dict(),
            "confidences": self.now.confidences.tolist(),
            "largest_penalty": {"product": self.limit.product, "factor": self.limit.factor, "label": self.limit.label},
            "class_weights": weights.torch_weights.tolist() if isinstance(weights, WeightAdvice) else None,
            "target_margins": self.target_margins,
            "counts": self.counts.astype(int).tolist() if isinstance(self.counts, np.ndarray) else None,
            "confidences_after": {key: value.tolist() for key, value in self.confidences.items()},
            "impossible": {
                name: value
                for name, value in (
                    ("class_weights", weights),
                    ("target_margins", self.margins),
                    ("counts", self.counts),
                )
                if isinstance(value, str)
            },
        }


def _or_reason(remedy: Callable[[], Result]) -> Result | str:
    try:
        return remedy()
    except CollapseError as error:
        return str(error)


def _print(advice: Advice, names: list[str]) -> None:
    now, after, size = advice.now, advice.confidences, advice.problem.num_classes
    columns: list[tuple[str, Callable[[int], str]]] = [
        ("class", lambda k: names[k]),
        ("count", lambda k: f"{advice.problem.counts[k]:.0f}"),
        ("confidence\nnow", lambda k: f"{now.confidences[k]:.4f}"),
        ("headroom", lambda k: f"{now.headroom[k]:.3g}"),
    ]
    weights, shifts, counts = advice.weights, advice.target_margins, advice.counts
    if isinstance(weights, WeightAdvice):
        torch_weights = weights.torch_weights
        columns.append(("class\nweight", lambda k: f"{torch_weights[k]:.4g}"))
        columns.append(("\nconfidence", lambda k: f"{after['class weights'][k]:.4f}"))
    if shifts is not None:
        columns.append(("target\nmargin Δ", lambda k: f"{shifts[k]:.3f}"))
        columns.append(("\nconfidence", lambda k: f"{after['target margins'][k]:.4f}"))
    if isinstance(counts, np.ndarray):
        columns.append(("count\nneeded", lambda k: f"{counts[k]:.0f}"))
    columns.append(("status now", lambda k: "collapses" if now.collapsed[k] else "survives"))
    shown = shown_rows(size)
    rows = [[show(k) for _, show in columns] for k in shown]
    print_table([header for header, _ in columns], rows, muted=[bool(now.collapsed[k]) for k in shown])
    if len(shown) < size:
        print_note(f"… {size - len(shown)} classes between are not shown; --json prints all.")
    change = "may grow by a factor below" if advice.limit.factor > 1 else "must be multiplied by less than"
    print_note(f"Decays: both {change} {advice.limit.factor:.4g} for every class to live.")
    for name, value in (("Class weights", weights), ("Target margins", advice.margins), ("Oversampling", counts)):
        if isinstance(value, str):
            print_note(f"{name}: impossible. {value}")
    print_note("These change the training geometry; what they do to test accuracy has to be measured.")
