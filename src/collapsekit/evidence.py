"""Where predictions have been tested on real networks, and whether a problem lies inside that range."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

from collapsekit.losses import CrossEntropy
from collapsekit.problem import UFM
from collapsekit.recipe import BatchNorm, Recipe
from collapsekit.theory import NoClosedForm, thresholds


@dataclass(frozen=True)
class Scope:
    """What a prediction's claim rests on.

    Attributes
    ----------
    tested_on : str
        The networks, data and range of the tests.
    largest_deviation : float
        Largest |measured − predicted| class confidence among them.
    inside : bool
        Whether the problem lies in the tested range.
    reasons : tuple of str
        In what it lies outside.
    """

    tested_on: str
    largest_deviation: float
    inside: bool
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        """One line; :attr:`details` has the rest."""
        reasons = "; ".join(reason.split(",")[0] for reason in self.reasons)
        inside = f"inside the tested range; class confidences deviated by at most {self.largest_deviation:.4f}"
        return f"Scope: {inside if self.inside else f'outside the tested range ({reasons}); --json says more'}."

    @property
    def details(self) -> str:
        """What was tested, how far predictions were off, and in what this problem lies outside."""
        where = "inside that range" if self.inside else f"OUTSIDE that range ({'; '.join(self.reasons)})"
        return (
            f"Scope: tested on {self.tested_on}; largest deviation of a class confidence there "
            f"{self.largest_deviation:.4f}. This problem lies {where}."
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the scope as plain values, with its schema version."""
        return {"schema": 1} | asdict(self) | {"reasons": list(self.reasons)}


def scope(problem: UFM, recipe: Recipe | None = None, extras: Sequence[str] = ()) -> Scope:
    """Return what a prediction for `problem` rests on.

    Parameters
    ----------
    problem : UFM
        What is predicted.
    recipe : Recipe, optional
        What made the problem; left out: the theory's own penalties, which are tested as explicit ones are.
    extras : sequence of str
        What else lies outside the tested range, known to the caller.

    Returns
    -------
    Scope

    References
    ----------
    The tested ranges are written by ``experiments/_tools/summary.py`` from the results of the experiments it names.
    """
    tested = _tested()["batchnorm" if isinstance(recipe, BatchNorm) else "penalty"]
    size, imbalance = problem.num_classes, float(problem.counts.max() / problem.counts.min())
    least, most = tested["penalty_scale"]
    try:
        scale = 1 / float(thresholds(problem).headroom.min())
    except NoClosedForm:
        scale = least
    outside = {
        f"{size} classes, tested {', '.join(map(str, tested['num_classes']))}": size not in tested["num_classes"],
        f"imbalance {imbalance:.3g}, tested up to {tested['imbalance']:.3g}": imbalance > tested["imbalance"],
        f"λ_W λ_H {scale:.3g} times the smallest threshold, tested {least:g} to {most:g}": not (
            least * (1 - 1e-9) <= scale <= most * (1 + 1e-9)
        ),
        "class weights": problem.class_weights is not None,
        "a loss other than plain cross-entropy": problem.loss != CrossEntropy(),
        "a bias in the head": problem.bias is not None and problem.relu,
        "features without ReLU, as of a free shift": not problem.relu,
    }
    reasons = (*(reason for reason, applies in outside.items() if applies), *extras)
    return Scope(tested["tested_on"], tested["largest_deviation"], not reasons, reasons)


@cache
def _tested() -> dict[str, Any]:
    from importlib.resources import files  # here, because predictions without a scope should not pay for it

    return dict(json.loads(files("collapsekit").joinpath("scope.json").read_text(encoding="utf-8")))
