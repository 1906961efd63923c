"""Inverse problems: which penalties, class weights or target margins give each class what is wanted of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from collapsekit.errors import CollapseError
from collapsekit.losses import CrossEntropy, Hinge
from collapsekit.problem import UFM
from collapsekit.theory._closed_form import closed_form, margin_prices, require_closed_form
from collapsekit.theory._thresholds import thresholds
from collapsekit.validation import Array, frozen, positive_vector, shorten

Wish = Literal["equal", "ldam"] | ArrayLike
"""A margin profile: one margin a class, or a shape of which the level is chosen."""


@dataclass(frozen=True)
class LargestPenalty:
    """How far penalties may grow.

    Attributes
    ----------
    product : float
        λ_W λ_H below which the class lives (at it the class is dead), at the problem's own ratio λ_W/λ_H.
    factor : float
        By which both decays may grow, below 1 if they must shrink.
    label : str
        The class that dies there.
    """

    product: float
    factor: float
    label: str


def largest_penalty(problem: UFM, label: str | int | None = None) -> LargestPenalty:
    r"""Return the largest penalties that keep every class, or a named one, alive.

    .. math:: \lambda_W\lambda_H < \omega_k^2 (K-1) n_k / (K N^2)

    for plain cross-entropy; for other losses the critical price takes the place of ``(K−1)/K``.

    Parameters
    ----------
    problem : UFM
        As for ``predict``.
    label : str or int, optional
        Name or position of a class; None: all of them.

    Raises
    ------
    CollapseError
        If there is no such class or no closed form.

    Examples
    --------
    >>> from collapsekit import UFM, predict
    >>> largest_penalty(UFM([900, 100], lambda_w=1e-3, lambda_h=1e-3)).product  # 100 / (2 · 1000²)
    5e-05
    """
    require_closed_form(problem)
    limits = thresholds(problem)
    k = int(limits.headroom.argmin()) if label is None else class_position(problem, label)
    return LargestPenalty(
        product=float(limits.critical_product[k]),
        factor=float(np.sqrt(limits.headroom[k])),
        label=class_label(problem, k),
    )


@dataclass(frozen=True, eq=False)
class WeightAdvice:
    """Class weights that realise a margin profile.

    Attributes
    ----------
    class_weights : ndarray, shape (K,)
        ω_k, as they stand in the problem.
    scale : float
        ``S = Σ ω_k n_k / N``. torch's ``weight=`` is divided by it, so that with these weights both decays must be
        divided by S too; 1 where the level of the profile was free.
    problem : UFM
        The problem with these weights.
    torch_weights : ndarray, shape (K,)
        For ``CrossEntropyLoss(weight=...)``: ω_k / S.
    torch_problem : UFM
        The problem as torch normalises it: ω/S, λ_W/S, λ_H/S; its minimisers are those of `problem`.
    """

    class_weights: Array
    scale: float
    problem: UFM

    @property
    def torch_weights(self) -> Array:
        """ω_k / S, (K,)."""
        return self.class_weights / self.scale

    @property
    def torch_problem(self) -> UFM:
        """The problem divided by S."""
        scale = self.scale
        return replace(
            self.problem,
            class_weights=self.torch_weights,
            lambda_w=self.problem.lambda_w / scale,
            lambda_h=self.problem.lambda_h / scale,
        )


def weights_for(problem: UFM, margins: Wish = "equal") -> WeightAdvice:
    r"""Return the class weights whose optimum has the wanted margins.

    .. math:: \omega_k = \frac{c_k}{(n_k/N)\,(-\varphi_k'(\bar M_k))}

    Equal margins need ``ω_k ∝ n_k^(−1/2)``. A shape ("equal", or "ldam": ``n_k^(−1/4)``) is scaled to the level at
    which ``Σ ω_k n_k = N``, as torch normalises, so that decays stay as they are.

    Parameters
    ----------
    problem : UFM
        Its own class weights are not used.
    margins : {"equal", "ldam"} or array_like, shape (K,)
        Wanted margins, positive.

    Raises
    ------
    CollapseError
        If no positive weights realise them, with the reason.

    References
    ----------
    Derived here (docs/theory.md).

    Examples
    --------
    >>> from collapsekit import UFM, predict
    >>> advice = weights_for(UFM([400, 100], lambda_w=1e-3, lambda_h=1e-4))
    >>> advice.torch_weights.round(4)  # ∝ n^(−1/2)
    array([0.8333, 1.6667])
    >>> predict(advice.problem).margins.round(6)
    array([4.997693, 4.997693])
    """
    if isinstance(problem.loss, Hinge):
        raise CollapseError(
            "loss=Hinge(): its margins are 1 or 0, whatever the weights; lower the penalties (largest_penalty)"
        )
    plain = replace(problem, class_weights=None)
    require_closed_form(plain)
    costs, shares = margin_prices(plain), plain.counts / plain.num_samples

    def weights(profile: Array) -> Array:
        prices = np.broadcast_to(plain.loss.price(profile, plain.num_classes), profile.shape)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(prices > 0, costs / prices, np.inf)

    profile = _profile(plain, margins)
    if isinstance(margins, str):
        profile *= _level(lambda level: float(shares @ weights(level * profile)) - 1.0, plain, margins)
    omega = weights(profile)
    bad = np.flatnonzero(~np.isfinite(omega))
    if bad.size:
        k = bad[0]
        raise CollapseError(
            f"margins: no weight gives class {class_label(problem, k)} the margin {profile[k]:.4g} under "
            f"{type(plain.loss).__name__}; its loss stops falling, or jumps, before that; give a margin that predict "
            "can return"
        )
    omega = frozen(omega)
    return WeightAdvice(omega, float(shares @ omega), replace(plain, class_weights=omega))


def margins_for(problem: UFM, margins: Wish = "equal") -> UFM:
    r"""Return the problem with the target margins Δ (as LDAM's) whose optimum has the wanted margins.

    .. math:: \Delta_k = \bar M_k / T - \log\bigl((K-1)(1/r_k - 1)\bigr), \qquad r_k = T q_k + \varepsilon\tfrac{K-1}{K}

    A shape ("equal", or "ldam") is scaled so that the largest class keeps the margin that it has.

    Parameters
    ----------
    problem : UFM
        With cross-entropy; its own target margins are not used.
    margins : {"equal", "ldam"} or array_like, shape (K,)
        Wanted margins, positive.

    Raises
    ------
    CollapseError
        If no target margins realise them: a class whose price ``r_k`` is 1 or more is dead at every Δ.

    References
    ----------
    Derived here (docs/theory.md).

    Examples
    --------
    >>> from collapsekit import UFM, predict
    >>> advised = margins_for(UFM([400, 100], lambda_w=1e-3, lambda_h=1e-4), [5.0, 4.0])
    >>> predict(advised).margins.round(9)
    array([5., 4.])
    """
    loss = problem.loss
    if not isinstance(loss, CrossEntropy):
        raise CollapseError(
            f"loss={type(loss).__name__}: target margins belong to CrossEntropy; weigh the classes (weights_for)"
        )
    plain = replace(problem, loss=replace(loss, margins=None))
    require_closed_form(plain)
    size, temperature = plain.num_classes, loss.temperature
    prices = margin_prices(plain)
    with np.errstate(over="ignore"):
        errors = temperature * prices + np.asarray(loss.smoothing) * (size - 1) / size
    dead = np.flatnonzero(errors >= 1)
    if dead.size:
        k = dead[0]
        raise CollapseError(
            f"margins: class {class_label(problem, k)} is dead at every target margin, its price {prices[k]:.4g} of a "
            "margin exceeds what any margin saves; lower the penalties (largest_penalty) or weigh the class "
            "(weights_for)"
        )
    profile = _profile(plain, margins)
    if isinstance(margins, str):
        largest = int(plain.counts.argmax())
        kept = float(closed_form(plain).margins[largest])
        if not kept > 0:
            raise CollapseError(f"margins={margins!r}: the largest class is dead; lower the penalties first")
        profile *= kept / profile[largest]
    shifts = profile / temperature - np.log((size - 1) * (1 / errors - 1))
    return replace(plain, loss=replace(loss, margins=tuple(shifts)))


def class_position(problem: UFM, label: str | int) -> int:
    """Return the position of a class given by name or position."""
    if isinstance(label, str):
        names = problem.names or tuple(str(k) for k in range(problem.num_classes))
        if label not in names:
            raise CollapseError(f"label={shorten(label)}: no such class; give one of {shorten(list(names))}")
        return names.index(label)
    if isinstance(label, bool) or not isinstance(label, int | np.integer) or not 0 <= label < problem.num_classes:
        raise CollapseError(f"label={shorten(label)}: give a name or a position from 0 to {problem.num_classes - 1}")
    return int(label)


def class_label(problem: UFM, k: int) -> str:
    """Return the name of a class, or its position."""
    return problem.names[k] if problem.names else str(k)


def _profile(problem: UFM, margins: Wish) -> Array:
    if isinstance(margins, str):
        if margins not in ("equal", "ldam"):
            raise CollapseError(f"margins={shorten(margins)}: give 'equal', 'ldam' or one margin a class")
        return np.ones(problem.num_classes) if margins == "equal" else (problem.counts / problem.counts.min()) ** -0.25
    return positive_vector("margins", margins, problem.num_classes, "every class must live").copy()


def _level(excess: Callable[[float], float], problem: UFM, wish: Any) -> float:
    """The level at which an increasing function of it is 0."""
    if excess(1e-12) > 0:
        raise CollapseError(
            f"margins={wish!r}: at these penalties weights of mean 1 cannot keep every class alive in that profile; "
            "lower the penalties (largest_penalty), or give margins whose weights have another scale"
        )
    low, high = 1e-12, 1.0
    while excess(high) < 0:
        low, high = high, 2 * high
    while low < (middle := 0.5 * (low + high)) < high:
        low, high = (middle, high) if excess(middle) < 0 else (low, middle)
    return low
