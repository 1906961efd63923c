"""Counts that keep classes alive, where the penalties stay or the recipe that makes them does."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from collapsekit.errors import CollapseError
from collapsekit.losses import CrossEntropy, Focal
from collapsekit.problem import UFM
from collapsekit.recipe import Recipe
from collapsekit.theory._closed_form import headroom_of, require_closed_form
from collapsekit.theory._inverse import class_label, class_position
from collapsekit.theory._thresholds import thresholds
from collapsekit.validation import Array, frozen


@dataclass(frozen=True)
class CountRange:
    """Which counts a class survives with, all other counts fixed while N moves with it.

    Attributes
    ----------
    lower, upper : float
        The open interval of survival; NaN if it is empty. Beyond `upper` the class kills itself by enlarging N.
    smallest : int or None
        The least whole number inside; None if there is none.
    """

    lower: float
    upper: float
    smallest: int | None


def count_range(problem: UFM, label: str | int, *, hold: Recipe | None = None) -> CountRange:
    r"""Return the counts with which a class survives when N moves with its count.

    With R samples in the other classes and ``A = (ω_k q_crit)² / (λ_W λ_H (K−1)/K)``, class k lives where
    ``(R + n)² < A n``: between the roots of a quadratic. In a recipe λ_H (and torch's class weights) move with n, too;
    with batches that N does not fill λ_H falls in steps, which the roots pass over.

    Parameters
    ----------
    problem : UFM
        As for ``predict``.
    label : str or int
        Name or position of the class.
    hold : Recipe, optional
        The recipe that made the problem, which stays while N moves; left out: the penalties stay.

    Raises
    ------
    CollapseError
        If there is no such class or no closed form, or `hold` is no recipe.

    References
    ----------
    Derived here (docs/theory.md).

    Examples
    --------
    >>> from collapsekit import UFM
    >>> from collapsekit.recipe import BatchNorm, LastLayer
    >>> count_range(UFM([900, 100], lambda_w=1e-2, lambda_h=6e-3), 1).smallest
    127
    >>> recipe = BatchNorm(weight_decay=0.35, decays="gain_frozen_shift")
    >>> count_range(recipe.problem([300, 300, 300, 20], LastLayer(branches=1)), 3, hold=recipe).smallest
    233
    """
    require_closed_form(problem)
    k = class_position(problem, label)
    limits = thresholds(problem, hold=hold)
    lower, upper = float(limits.lower_count[k]), float(limits.upper_count[k])
    if np.isnan(lower):
        return CountRange(lower, upper, None)

    smallest = int(np.floor(lower)) + 1
    while smallest > 1 and _lives(problem, k, smallest - 1, hold):  # batches that N does not fill: λ_H falls in steps
        smallest -= 1
    while smallest < upper and not _lives(problem, k, smallest, hold):
        smallest += 1
    return CountRange(lower, upper, smallest if smallest < upper else None)


def _lives(problem: UFM, k: int, count: int, hold: Recipe | None) -> bool:
    return bool(_headroom(problem, _replaced(problem.counts, k, count), hold)[k] > 1)


def _headroom(problem: UFM, counts: Array, hold: Recipe | None) -> Array:
    try:
        return headroom_of(with_counts(problem, counts, hold))
    except CollapseError:  # a dropped batch is all there is, or one class holds more than half
        return np.zeros(problem.num_classes)


def _replaced(counts: Array, k: int, count: float) -> Array:
    return np.where(np.arange(len(counts)) == k, count, counts)


def counts_for(problem: UFM, *, hold: Recipe | None = None, min_confidence: float | None = None) -> Array:
    """Return the least counts, none below the problem's own, with which every class survives: oversampling's target.

    All classes that die are enlarged together; N grows with them, and with it, in a recipe, λ_H and torch's class
    weights.

    Parameters
    ----------
    problem : UFM
        As for ``predict``.
    hold : Recipe, optional
        The recipe that made the problem, which stays while N grows; left out: the penalties and ω_k stay.
    min_confidence : float, optional
        Confidence, above 1/K, that every class must keep; left out: any.

    Returns
    -------
    ndarray, shape (K,)
        Whole numbers as float64.

    Raises
    ------
    CollapseError
        If no counts will do: enlarging some classes kills others faster than it saves them.

    Examples
    --------
    >>> from collapsekit import UFM
    >>> counts_for(UFM([900, 100], lambda_w=1e-2, lambda_h=6e-3))
    array([900., 127.])
    >>> counts_for(UFM([900, 100], lambda_w=1e-3, lambda_h=6e-4), min_confidence=0.95)
    array([900., 127.])
    """
    require_closed_form(problem)
    needed = needed_headroom(problem, min_confidence)
    dying = int(thresholds(problem, hold=hold).headroom.argmin())
    counts = problem.counts.copy()
    for _ in range(MOST_STEPS):
        headroom = headroom_of(with_counts(problem, counts, hold)) / needed
        if headroom.min() > 1:
            return frozen(_trimmed(problem, counts, hold, needed))
        # N only grows: a class that dies up to a count now dies up to at least that count in the end.
        with np.errstate(over="ignore", divide="ignore"):
            least = np.floor(counts / headroom * (1 - ROUNDING)) + 1
        counts = np.where(headroom > 1, counts, np.maximum(counts + 1, least))
        if not counts.sum() < MOST_SAMPLES:
            break
    raise CollapseError(
        f"counts: no oversampling saves class {class_label(problem, dying)}: with more samples N grows, and thresholds "
        "faster than counts; lower the penalties (largest_penalty) or weigh the class (weights_for)"
    )


def needed_headroom(problem: UFM, min_confidence: float | None) -> Array:
    """Return the headroom, (K,), beyond which each class keeps a confidence: (critical price / price there)².

    1 without a confidence; infinite where the loss stops falling before it.

    Raises
    ------
    CollapseError
        If the confidence is not between 1/K and 1.
    """
    size, loss = problem.num_classes, problem.loss
    if min_confidence is None:
        return np.ones(size)
    if not isinstance(loss, CrossEntropy | Focal):
        raise CollapseError(
            f"min_confidence={min_confidence:g}: {type(loss).__name__} aims at no confidence; leave it out"
        )
    if not 1 / size < min_confidence < 1:
        raise CollapseError(f"min_confidence={min_confidence:g}: give a number above 1/K = {1 / size:.4g} and below 1")
    margin = getattr(loss, "temperature", 1.0) * np.log(min_confidence / (1 - min_confidence) * (size - 1))
    prices = np.broadcast_to(loss.price(np.full(size, margin), size), size)
    with np.errstate(divide="ignore"):
        return np.where(prices > 0, (loss.critical_price(size) / np.maximum(prices, 0)) ** 2, np.inf)


def _trimmed(problem: UFM, counts: Array, hold: Recipe | None, needed: Array) -> Array:
    """What a class needs falls as N grows where λ_H falls in steps, or torch's weight of the class is small."""
    if hold is None or (problem.class_weights is None and getattr(hold, "batch_size", None) is None):
        return counts
    before = counts
    for k in np.flatnonzero(counts > problem.counts).tolist():
        low, high = problem.counts[k] - 1, counts[k]  # all live with `high`
        while high - low > 1:
            middle = np.floor(low + (high - low) / 2)
            low, high = (
                (low, middle)
                if (_headroom(problem, _replaced(counts, k, middle), hold) / needed).min() > 1
                else (middle, high)
            )
        counts = _replaced(counts, k, high)
    return counts if (counts == before).all() else _trimmed(problem, counts, hold, needed)


MOST_STEPS = 100_000
"""Of the search for counts: it slows down where hardly any counts will do."""
MOST_SAMPLES = 2.0**52
"""Beyond, counts are no longer whole in float64."""
ROUNDING = 1e-12
"""Relative, of a critical count."""


def with_counts(problem: UFM, counts: Array, hold: Recipe | None) -> UFM:
    """Return the problem at other counts: the penalties stay, or the recipe that made them."""
    return replace(problem, counts=counts) if hold is None else hold.moved(problem, counts)
