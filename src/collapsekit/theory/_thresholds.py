"""thresholds: where classes die."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from collapsekit.errors import CollapseError
from collapsekit.losses import CrossEntropy
from collapsekit.losses.scalar import SNAP
from collapsekit.problem import UFM
from collapsekit.recipe import BatchNorm, Recipe
from collapsekit.theory._closed_form import (
    SOLVE,
    NoClosedForm,
    centring_share,
    headroom_of,
    require_classes,
    require_closed_form,
)
from collapsekit.validation import Array, frozen, shorten


@dataclass(frozen=True, eq=False)
class Thresholds:
    """Where classes die, all else fixed.

    Attributes
    ----------
    critical_product : ndarray, shape (K,)
        λ_W λ_H from which the class is dead (it survives below).
    critical_count : ndarray, shape (K,)
        ``n_k`` up to which the class is dead at the problem's own N and penalties; real-valued.
    headroom : ndarray, shape (K,)
        Critical λ_W λ_H divided by λ_W λ_H, which equals ``n_k`` divided by its critical count.
    lower_count, upper_count : ndarray, shape (K,)
        The open interval of counts with which the class survives when N moves with its count and the other counts
        stay; NaN where it is empty. Beyond the upper one the class kills itself by enlarging N.
    one_sided : bool
        With offsets, scales or class-weighted smoothing: below its product a class lives, beyond it the class may live
        on by sharing coordinates with others. The counts with which it survives are not known then (NaN).
    """

    critical_product: Array
    critical_count: Array
    headroom: Array
    lower_count: Array
    upper_count: Array
    one_sided: bool = False

    @property
    def decay_factor(self) -> Array:
        """By how much the recipe's decays, all of them, may be multiplied before each class dies, (K,)."""
        return np.sqrt(self.headroom)

    @property
    def minority_collapse(self) -> float:
        """λ_W λ_H at which the first class dies."""
        return float(self.critical_product.min())

    @property
    def complete_collapse(self) -> float:
        """λ_W λ_H at which the last class dies and the network predicts nothing."""
        return float(self.critical_product.max())

    def to_dict(self) -> dict[str, Any]:
        """Return the thresholds as plain lists (JSON-ready), with the schema version."""
        return {
            "schema": 1,
            "critical_product": self.critical_product.tolist(),
            "critical_count": self.critical_count.tolist(),
            "headroom": self.headroom.tolist(),
            "decay_factor": self.decay_factor.tolist(),
            "lower_count": self.lower_count.tolist(),
            "upper_count": self.upper_count.tolist(),
            "one_sided": self.one_sided,
            "minority_collapse": self.minority_collapse,
            "complete_collapse": self.complete_collapse,
        }


def thresholds(problem: UFM, *, hold: Recipe | None = None) -> Thresholds:
    r"""Return where each class of a bias-free UFM+ dies.

    .. math::

        (\lambda_W\lambda_H)^{\rm crit}_k = \frac{\omega_k^2 (K-1) n_k}{K N^2}

    for cross-entropy; the price of margin grows with the square root of the product for every loss. In the units of
    a recipe: class k dies when all its decays are multiplied by ``decay_factor[k]``, or one of two by ``headroom[k]``.
    With offsets and the like (no closed form) a class lives at least while a coordinate of its own would pay,
    ``λ_W λ_H < (ω_k² n_k/N²) ‖∇ℓ_k(0)‖²``: then the thresholds are `one_sided`.

    Parameters
    ----------
    problem : UFM
        Without a bias, with ReLU features; any loss.
    hold : Recipe, optional
        What stays while N moves with the count of a class: the recipe that made the problem, in which λ_H (and
        torch's class weights) move with the counts; left out: the penalties themselves.

    Returns
    -------
    Thresholds

    Raises
    ------
    CollapseError
        If the problem has a bias or no ReLU under imbalance, or types of samples, or `hold` is no recipe.

    References
    ----------
    Dang et al., ICML 2024, Theorem 4.1; class weights, other losses, offsets, both counts: derived here
    (docs/theory.md).

    Examples
    --------
    >>> limits = thresholds(UFM([900, 100], lambda_w=1e-3, lambda_h=1e-3))
    >>> limits.headroom
    array([450.,  50.])
    >>> limits.critical_count
    array([2., 2.])
    """
    require_classes(problem)
    if _has_one_sided(problem):
        return _one_sided(problem)
    require_closed_form(problem)
    size, headroom = problem.num_classes, headroom_of(problem)
    survivors = int((headroom > 1).sum())
    if problem.dim is not None and problem.dim < survivors:
        raise NoClosedForm(
            f"dim={problem.dim}: {survivors} classes survive with features wide enough, and thresholds are known for "
            f"that many dimensions; widen them, or {SOLVE}"
        )
    per_root_product = np.sqrt(problem.counts * centring_share(problem))  # c_k over the root of λ_W λ_H
    critical_root = problem.loss.critical_price(size) * problem.loss_weights / per_root_product
    lower, upper = count_roots(problem, hold)
    with np.errstate(divide="ignore", over="ignore"):  # penalties so large that no count is enough
        critical_counts = problem.counts / headroom
    return Thresholds(
        critical_product=frozen(critical_root**2),
        critical_count=frozen(critical_counts),
        headroom=frozen(headroom),
        lower_count=frozen(lower),
        upper_count=frozen(upper),
    )


def _has_one_sided(problem: UFM) -> bool:
    loss = getattr(problem, "loss", None)
    return isinstance(loss, CrossEntropy) and loss.obstacle is not None and problem.bias is None and problem.relu


def _one_sided(problem: UFM) -> Thresholds:
    """Where a coordinate of its own pays for a class at equal logits: ``λ_W λ_H < (α_k ‖∇ℓ_k(0)‖)²/n_k``."""
    size, slopes = problem.num_classes, np.empty(problem.num_classes)
    for labels in np.array_split(np.arange(size), max(1, size**2 // ROWS_AT_ONCE)):
        summed = problem.loss.summed(np.ones(len(labels)), labels, size)
        slopes[labels] = np.linalg.norm(summed.evaluate(np.zeros((len(labels), size)))[1], axis=1)
    critical = (problem.loss_weights * slopes) ** 2 / problem.counts
    headroom = critical / (problem.lambda_w * problem.lambda_h)
    unknown = frozen(np.full(size, np.nan))
    return Thresholds(
        frozen(critical), frozen(problem.counts / headroom), frozen(headroom), unknown, unknown, one_sided=True
    )


ROWS_AT_ONCE = 10**7
"""Entries of the largest matrix of gradients."""


def count_roots(problem: UFM, hold: Recipe | None) -> tuple[Array, Array]:
    """Return between which counts n each class lives, all others fixed; NaN where there are none.

    With A the headroom times V²/n_k, R the other samples, and V = S + w n the sum of class weights over all samples,
    class k lives where ``V² < A n``, or ``V² N < A n (R + n)`` where λ_H falls as 1/N: a quadratic with S² > 0. Only
    torch's weights move V; ω that is held counts as 1. (An odd N above one half is taken as even.)
    """
    if not isinstance(hold, Recipe | None):
        raise CollapseError(f"hold={shorten(hold)}: give the recipe that made the problem, or leave it out")
    weights = problem.class_weights
    w = np.ones(problem.num_classes) if weights is None or hold is None else weights
    samples, own = problem.num_samples, w * problem.counts
    total = own.sum()
    rest, others = samples - problem.counts, total - own
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        room = headroom_of(problem) * total * (total / problem.counts)
        frozen_shift = isinstance(hold, BatchNorm) and hold.decays == "gain_frozen_shift"
        if frozen_shift:  # λ_H as it is for counts up to one half
            halves = np.floor(samples / 2) * np.ceil(samples / 2)
            room = np.where(problem.counts > rest, room * problem.counts * rest / halves, room)
        if hold is not None and hold.divides_by_samples:
            room = room / samples
            slope, square = room * rest - 2 * others * w, w**2 - room
            root = np.sqrt(room) * np.sqrt(room * rest**2 + 4 * others * (others - rest * w))
        else:
            slope, square = room - 2 * others * w, w**2
            far = 4 * others * w < SNAP * room  # else the roots are one point up to rounding
            root = np.where(far, np.sqrt(room) * np.sqrt(room - 4 * others * w), 0.0)
        lives = (root > 0) & (slope + root > 0)  # at root 0 there is one point, and no class lives there
        lower = np.where(lives, 2 * others * (others / (slope + root)), np.nan)
        upper = np.where(square <= 0, np.inf, (slope + root) / (2 * square))
        if frozen_shift:
            return _above_half(lower, upper, lives, np.sqrt(room / (4 * rest)), w, others, rest)
        return lower, np.where(lives, upper, np.nan)


def _above_half(
    lower: Array, upper: Array, lives: NDArray[np.bool_], most: Array, w: Array, others: Array, rest: Array
) -> tuple[Array, Array]:
    """The roots where λ_H grows with n/N² beyond n = R: there class k lives where ``V < most (R + n)``, linear in n.

    V/(R + n) is monotone, so that it lives there from R on, up to a root, or from a root on, for ever.
    """
    at_half = lives & (lower < rest) & (upper > rest)
    root = (most * rest - others) / (w - most)
    ends = np.where(w > most, root, np.inf)
    later = ~(lives & (lower < rest)) & (w < most)
    lower = np.where(lives & (lower < rest), lower, np.where(later, root, np.nan))
    upper = np.where(at_half, ends, np.where(later, np.inf, upper))
    return lower, np.where(np.isnan(lower), np.nan, upper)
