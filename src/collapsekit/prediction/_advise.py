"""advise: what to change so that classes are kept, the simplest first; and how far the decays may grow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from collapsekit.errors import CollapseError
from collapsekit.losses import CrossEntropy
from collapsekit.prediction._fates import confidence_decides
from collapsekit.prediction._predict import predict
from collapsekit.prediction._prediction import Basis, Prediction
from collapsekit.problem import UFM
from collapsekit.recipe import Penalty, Recipe
from collapsekit.solver import Solution
from collapsekit.solver.progress import Status
from collapsekit.theory import LargestPenalty, NoClosedForm, counts_for, largest_penalty, margins_for, weights_for
from collapsekit.theory._counts import needed_headroom, with_counts
from collapsekit.theory._inverse import class_label, class_position
from collapsekit.validation import Array

CLOSE = 1.0005
"""Ratio of two factors between which bisection ends: four digits are printed."""
FARTHEST = 2.0**40
"""Beyond this factor, up or down, no answer is looked for."""
SAFE = 0.9
"""Share of the largest decays that is advised: at the largest themselves a class dies."""
SECONDS = 5.0
"""For the optimum of one problem, dozens of which are asked for; past them the best point found counts."""


class NoFactor(CollapseError):
    """The fate of a class does not depend on the decays."""


@dataclass(frozen=True, eq=False)
class Remedy:
    """One change to a recipe, and what it does to each class.

    Attributes
    ----------
    name : {"decays", "class weights", "target margins", "oversampling"}
        What is changed; all else stays.
    line : str
        To paste into a training script.
    values : ndarray, shape (K,), or None
        The weights, margins or counts; None for decays.
    prediction : Prediction
        What is expected of each class afterwards.
    reaches : bool
        Whether every class that shall be kept is.
    """

    name: Literal["decays", "class weights", "target margins", "oversampling"]
    line: str
    values: Array | None
    prediction: Prediction
    reaches: bool


@dataclass(frozen=True, eq=False)
class Advice:
    """What to change so that classes are kept.

    Attributes
    ----------
    now : Prediction
        Of the recipe as it stands.
    enough : bool
        Whether it keeps every class already.
    largest : LargestPenalty or None
        How far the decays may grow before a class falls short; below 1: by how much they must shrink. None if no
        decays do: `impossible` says why.
    remedies : tuple of Remedy
        Those that reach what is wanted first; the simplest first among them.
    impossible : dict of str to str
        Why other remedies cannot be given, by name.
    """

    now: Prediction
    enough: bool
    largest: LargestPenalty | None
    remedies: tuple[Remedy, ...]
    impossible: dict[str, str]


def advise(
    problem: UFM,
    *,
    min_confidence: float | None = None,
    keep: str | int | None = None,
    margins: Literal["equal", "ldam"] = "equal",
    recipe: Recipe | None = None,
) -> Advice:
    """Say what to change so that classes are kept: decays, class weights, target margins or counts, each alone.

    Weights, margins and counts come from the closed form; where the problem has none (a bias, offsets, features
    without ReLU) from that of the plain head with the same counts and penalties, and what they do is predicted for the
    problem itself.

    Parameters
    ----------
    problem : UFM
        What is trained.
    min_confidence : float, optional
        Confidence on its training samples, above 1/K, that every class shall keep; left out: any class that is not
        lost is kept.
    keep : str or int, optional
        Name or position of the one class that counts; left out: every class.
    margins : {"equal", "ldam"}
        Margins wanted of weights and targets: equal, or proportional to ``n_k^(−1/4)``.
    recipe : Recipe, optional
        That made the problem: decays are advised in its units, and stay while counts grow.

    Returns
    -------
    Advice

    Raises
    ------
    CollapseError
        If there is no such class, a confidence cannot be asked for, or classes are too many for a search.

    References
    ----------
    Derived here (docs/theory.md).

    Examples
    --------
    >>> advice = advise(UFM([500, 300, 40, 10], 3e-2, 1e-3), min_confidence=0.5)
    >>> [(remedy.name, remedy.reaches) for remedy in advice.remedies]
    [('decays', True), ('class weights', True), ('oversampling', True)]
    >>> advice.remedies[0].line
    'lambda_w=0.01176, lambda_h=0.000392'
    >>> advice.impossible["target margins"][:43]
    'class 3 is dead at every target margin, its'
    """
    position = None if keep is None else class_position(problem, keep)
    needed_headroom(plain_twin(problem), min_confidence)  # refuses what cannot be asked for
    now, largest, impossible = predict(problem), None, dict[str, str]()
    enough = not _short(now, position, min_confidence).any()
    try:
        largest = largest_decays(problem, position, min_confidence=min_confidence)
    except NoFactor as error:
        impossible["decays"] = str(error).split(": ", 1)[-1]

    def remedy(name: Any, line: str, values: Array | None, after: UFM) -> Remedy:
        found = _expected(after)
        return Remedy(name, line, values, found, not _short(found, position, min_confidence).any())

    def decays() -> Remedy:
        assert largest is not None
        factor = largest.factor * (SAFE if min_confidence is None else 1.0)
        line, factor = _decays_line(problem, recipe, factor)
        return remedy("decays", line, None, scaled(problem, factor))

    def weights() -> Remedy:
        found = weights_for(plain_twin(problem), margins).torch_weights
        loss = problem.loss
        if isinstance(loss, CrossEntropy) and loss.smooths:  # torch's weights weigh its smoothing, too
            loss = replace(loss, smoothing_weights=tuple(found.tolist()))
        return remedy(
            "class weights", _weights_line(problem, found), found, replace(problem, class_weights=found, loss=loss)
        )

    def targets() -> Remedy:
        shifted: Any = margins_for(plain_twin(problem), margins).loss
        loss: Any = problem.loss
        values = loss.temperature * np.array(shifted.margins)  # on the logits as the head gives them
        line = f"logits[torch.arange(len(labels)), labels] -= torch.tensor({_listed(values)})[labels]"
        line += "" if loss.margins is None else "  # in place of the margins that you have"
        return remedy("target margins", line, values, replace(problem, loss=replace(loss, margins=shifted.margins)))

    def oversampling() -> Remedy:
        counts = counts_for(plain_twin(problem), hold=recipe, min_confidence=min_confidence)
        line = (
            "indices = np.concatenate([np.resize(np.flatnonzero(labels == k), n) "
            f"for k, n in enumerate({counts.astype(int).tolist()})])"
        )
        if isinstance(problem.loss, CrossEntropy) and (problem.loss.margins or problem.loss.offsets):
            line += "  # margins and offsets of the loss stay those of today's counts"
        return remedy("oversampling", line, counts, with_counts(problem, counts, recipe))

    made: dict[str, Callable[[], Remedy]] = {
        **({} if largest is None or enough else {"decays": decays}),
        "class weights": weights,
        "target margins": targets,
        "oversampling": oversampling,
    }
    possible = list[Remedy]()
    for name, make in made.items():
        try:
            found = make()
        except CollapseError as error:
            impossible[name] = str(error).split(": ", 1)[-1]
            continue
        if found.values is None or not np.array_equal(found.values, problem.counts):  # enough already
            possible.append(found)
    ranked = sorted(possible, key=lambda one: not one.reaches)  # stable
    return Advice(now, enough, largest, tuple(ranked), impossible)


def largest_decays(
    problem: UFM, label: str | int | None = None, *, min_confidence: float | None = None
) -> LargestPenalty:
    """Return by which factor both penalties may grow before a class is lost: from thresholds, or by bisection.

    Parameters
    ----------
    problem : UFM
        Any that :func:`collapsekit.predict` answers for.
    label : str or int, optional
        Name or position of a class; None: all of them.
    min_confidence : float, optional
        Below this confidence, too, a class counts as lost.

    Returns
    -------
    LargestPenalty
        Its `label` is the class that is lost first just above. `product` is λ_W times the mean λ_H.

    Raises
    ------
    CollapseError
        If there is no such class, or it is lost, or kept, at all penalties, or classes are too many for a search.

    References
    ----------
    Thresholds: Dang et al., ICML 2024; a fate need not be monotone in the decays elsewhere, so that bisection finds a
    factor above which a class is lost.

    Examples
    --------
    >>> problem = UFM([900, 100], lambda_w=1e-2, lambda_h=6e-3)
    >>> round(largest_decays(problem).factor, 4)
    0.9129
    >>> round(largest_decays(UFM([900, 100], lambda_w=1e-2, lambda_h=6e-3, bias="free")).factor, 3)
    0.913
    """
    if min_confidence is None:
        try:
            return largest_penalty(problem, label)
        except NoClosedForm:
            pass
    k = None if label is None else class_position(problem, label)

    def lost(factor: float) -> int | None:
        found = _expected(scaled(problem, factor))
        if found.basis is Basis.BOUNDS:
            raise CollapseError(
                f"counts: {problem.num_classes} classes are too many to search for their largest decays; see what "
                "predict says of them"
            )
        short = _short(found, k, min_confidence)
        return int(np.where(short, found.confidences, np.inf).argmin()) if short.any() else None

    low, high, first = 1.0, 1.0, lost(1.0)
    if first is None:  # up until a class is lost
        while first is None and high < FARTHEST:
            low, high = high, 2 * high
            first = lost(high)
    else:  # down until none is
        while (dead := lost(low)) is not None and low > 1 / FARTHEST:
            high, first, low = low, dead, low / 2
    if first is None or low <= 1 / FARTHEST:
        if min_confidence is not None and first is not None:
            raise NoFactor(
                f"min_confidence={min_confidence:g}: no decays give every class that confidence, smoothing or offsets "
                "keep it lower; ask for less"
            )
        raise NoFactor(
            "label: the fate of the class is the same at all penalties that can be tried; see what predict says of it"
        )
    while high / low > CLOSE:
        middle = (low * high) ** 0.5
        dead = lost(middle)
        low, high, first = (middle, high, first) if dead is None else (low, middle, dead)
    product = problem.lambda_w * float(np.mean(problem.lambda_h)) * low**2
    return LargestPenalty(product=product, factor=low, label=class_label(problem, first))


def scaled(problem: UFM, factor: float) -> UFM:
    """Return the problem with both penalties multiplied, and that of a bias with them."""
    bias = problem.bias if problem.bias is None or isinstance(problem.bias, str) else factor * problem.bias
    return replace(problem, lambda_w=factor * problem.lambda_w, lambda_h=factor * problem.lambda_h, bias=bias)


def plain_twin(problem: UFM) -> UFM:
    """Return the problem that has a closed form, with the same counts and penalties: no bias, no offsets, a ReLU."""
    loss = problem.loss
    if isinstance(loss, CrossEntropy):
        loss = replace(loss, offsets=None, scales=None, smoothing_weights=None)
    if problem.types is not None:
        raise NoClosedForm("types: samples of several classes coincide, and no weights tell them apart")
    return replace(problem, bias=None, relu=True, dim=None, loss=loss)


def _short(found: Prediction, position: int | None, min_confidence: float | None) -> Any:
    """Which of the classes that shall be kept are not, (K,) of bool."""
    short = found.collapses
    if min_confidence is not None and confidence_decides(found.problem.loss):
        short = short | (found.confidences < min_confidence)
    return short if position is None else short & (np.arange(len(short)) == position)


def _expected(problem: UFM) -> Prediction:
    """What is expected of a problem, found in a short time; an interruption ends the whole search."""
    found = predict(problem, time_limit=SECONDS)
    if isinstance(found.source, Solution) and found.source.status is Status.INTERRUPTED:
        raise KeyboardInterrupt
    return found


def _weights_line(problem: UFM, weights: Array) -> str:
    """The weights as the loss takes them: torch's own where it is cross-entropy, else as factors of the losses."""
    listed, loss = f"torch.tensor({_listed(weights)})", problem.loss
    if not isinstance(loss, CrossEntropy) or isinstance(loss.smoothing, tuple):
        return f"losses = losses * {listed}[labels]  # one loss a sample, before their mean"
    smoothing = f", label_smoothing={loss.smoothing:g}" if loss.smooths else ""
    return f"torch.nn.CrossEntropyLoss(weight={listed}{smoothing})"


def _decays_line(problem: UFM, recipe: Recipe | None, factor: float) -> tuple[str, float]:
    """The decays times a factor, rounded down to four digits so that they can be typed, and the factor that makes."""
    decay = problem.lambda_w if recipe is None else recipe.weight_decay
    typed = _rounded_down(factor * decay)
    factor = typed / decay
    if recipe is None:
        bias = f", bias={factor * problem.bias:.4g}" if isinstance(problem.bias, float) else ""
        return f"lambda_w={typed:g}, lambda_h={_number(factor * problem.lambda_h)}{bias}", factor
    features = f", feature_decay={factor * recipe.feature_decay:.4g}" if isinstance(recipe, Penalty) else ""
    return f"weight_decay={typed:g}{features}", factor


def _number(value: float | Array) -> str:
    return f"{value:.4g}" if np.ndim(value) == 0 else _listed(np.asarray(value))


def _rounded_down(value: float) -> float:
    unit = 10.0 ** (np.floor(np.log10(value)) - 3)
    return float(f"{np.floor(value / unit) * unit:.4g}")


def _listed(values: Array) -> str:
    return f"[{', '.join(f'{value:.4g}' for value in values)}]"
