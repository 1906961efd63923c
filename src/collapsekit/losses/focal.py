"""Focal loss, whose best margin may jump."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np

from collapsekit.errors import CollapseError
from collapsekit.losses.cross_entropy import CrossEntropy
from collapsekit.losses.scalar import SNAP, softplus
from collapsekit.losses.sums import Labels, LossSum, MatrixLoss
from collapsekit.validation import Array, numeric

LARGEST_GAMMA = 50.0


@dataclass(frozen=True)
class Focal(MatrixLoss):
    r"""Focal loss ``ℓ_k(z) = −(1−p_k)^γ log p_k`` with p the softmax; γ = 0 is cross-entropy.

    With t the log-odds of error it is ``f(t) = σ(t)^γ softplus(t)``, increasing but for many classes not convex: the
    optimal margin then JUMPS to 0 at the critical price (K ≥ 57, 24, 18, 18, 20 at γ = 0.5, 1, 2, 3, 5), which is
    found by comparing the interior minimum with the margin 0.

    Parameters
    ----------
    gamma : float
        γ ≥ 0.

    Raises
    ------
    CollapseError
        If γ is out of range.

    References
    ----------
    Lin et al., ICCV 2017; scalar form, jump and thresholds: derived here (docs/theory.md).

    Examples
    --------
    >>> loss = Focal(gamma=2.0)
    >>> round(float(loss.critical_price(100)), 4)
    1.1045
    >>> loss.margin(np.array([1.1044, 1.1046]), 100).round(2)
    array([2.37, 0.  ])
    """

    gamma: float = 2.0

    convex: ClassVar[bool] = False

    def __post_init__(self) -> None:
        gamma = numeric("gamma", self.gamma)
        if gamma.ndim or not 0 <= gamma <= LARGEST_GAMMA:
            raise CollapseError(f"gamma={self.gamma!r}: give a number from 0 to {LARGEST_GAMMA:g}")
        object.__setattr__(self, "gamma", float(gamma))

    def summed(self, weights: Array, labels: Labels, num_classes: int, smoothing: float = 1.0) -> FocalSum:
        return FocalSum(weights, labels, self)

    def scalar(self, margins: Array, num_classes: int) -> Array:
        """Return φ at each margin, same shape."""
        return self.of_odds(np.log(num_classes - 1) - margins)

    def critical_price(self, num_classes: int) -> Array:
        """Return the price from which margin 0 is optimal, (): the steepest chord of φ from margin 0."""
        return np.asarray(self.slope(np.asarray(_last_odds(self, num_classes))))

    def margin(self, prices: Array, num_classes: int) -> Array:
        """Return the global minimiser of ``φ(s) + q s`` over s ≥ 0 for each price q, same shape; 0 from the jump on.

        It is where ``f'(t) = q`` on the rising side of f'. ``f'(t) ≤ (1+γ) e^{(γ+1) t}`` bounds t from below.
        """
        if not self.gamma:
            return CrossEntropy().margin(prices, num_classes)
        last, q = _last_odds(self, num_classes), np.asarray(prices, dtype=np.float64)
        alive = q < self.critical_price(num_classes) * SNAP
        wanted = q[alive]
        lowest = np.minimum((np.log(wanted) - np.log1p(self.gamma)) / (self.gamma + 1.0), last) - 1e-9
        margins = np.zeros(q.shape)
        margins[alive] = np.log(num_classes - 1) - _root(lambda t, q: self._rising(t) / q - 1.0, lowest, last, wanted)
        return np.maximum(margins, 0.0)

    def price(self, margins: Array, num_classes: int) -> Array:
        """Return ``−φ'`` at each margin; NaN where no price makes that margin the minimiser (inside the jump)."""
        odds = np.log(num_classes - 1) - margins
        reached = odds <= _last_odds(self, num_classes) * (1 + 1e-12)
        return np.where(reached, self.slope(odds), np.nan)

    def of_odds(self, t: Array) -> Array:
        """f(t), t the log-odds of error."""
        return np.asarray(np.exp(-self.gamma * softplus(-t)) * softplus(1.0 * t))

    def slope(self, t: Array) -> Array:
        """f'(t) = σ(t)^γ (σ(t) + γ σ(−t) softplus(t)); increasing up to one point, then decreasing to 1."""
        wrong, right = np.exp(-np.logaddexp(0.0, -t)), np.exp(-np.logaddexp(0.0, t))
        return np.asarray(wrong**self.gamma * (wrong + self.gamma * right * np.logaddexp(0.0, t)))

    def bend(self, t: Array) -> Array:
        """Return f''(t), t the log-odds of error."""
        wrong, right, soft = np.exp(-np.logaddexp(0.0, -t)), np.exp(-np.logaddexp(0.0, t)), np.logaddexp(0.0, t)
        curved = (1 + 2 * self.gamma) * wrong + self.gamma * soft * (self.gamma * right - wrong)
        return np.asarray(wrong**self.gamma * right * curved)

    def _rising(self, t: Array) -> Array:
        """f'(t) for t that does not overflow once exponentiated: fewer roundings than :meth:`slope`."""
        odds = np.exp(t)
        wrong = odds / (1.0 + odds)
        return np.asarray(wrong**self.gamma * (wrong + self.gamma * np.log1p(odds) / (1.0 + odds)))


@dataclass(frozen=True)
class FocalSum(LossSum):
    """``Σ_i α_i f(t_i)``, t the log-odds of error: not convex."""

    loss: Focal

    def parts(self, logits: Array) -> tuple[Array, Array, tuple[Array, Array, Array]]:
        """Return losses, gradients, and the wrong classes' shares of the error with f' and f''."""
        others = np.array(logits, dtype=np.float64)
        others[self.own] = -np.inf
        top = others.max(axis=1)
        shares = np.exp(others - top[:, None])
        total = shares.sum(axis=1)
        shares /= total[:, None]
        odds = np.log(total) + (top - logits[self.own])
        first = self.loss.slope(odds)
        return self.loss.of_odds(odds), first[:, None] * self._lines(shares), (shares, first, self.loss.bend(odds))

    def curvature(self, state: tuple[Array, Array, Array], moved: Array) -> Array:
        shares, first, second = state
        mean = np.einsum("ij,ij->i", shares, moved)
        bent = first[:, None] * shares * (moved - mean[:, None])
        bent += (second * (mean - moved[self.own]))[:, None] * self._lines(shares)
        return np.asarray(self.weights[:, None] * bent)

    def diagonal(self, state: tuple[Array, Array, Array]) -> Array:
        """Return a positive stand-in for the diagonal of the Hessian, (n, K)."""
        shares, first, second = state
        bent = first[:, None] * shares * (1 - shares) + np.abs(second)[:, None] * self._lines(shares) ** 2
        return np.asarray(self.weights[:, None] * bent)

    def _lines(self, shares: Array) -> Array:
        """The gradient of the log-odds, (n, K)."""
        lines = shares.copy()
        lines[self.own] -= 1.0
        return lines


@lru_cache
def _last_odds(loss: Focal, num_classes: int) -> float:
    """The largest log-odds of error of a class that keeps its margin: where the line from margin 0 touches f."""
    end = float(np.log(num_classes - 1))

    def beyond(t: Array) -> Array:
        """Positive where the tangent at t passes above f at margin 0."""
        return np.asarray(loss.of_odds(t) + loss.slope(t) * (end - t) - loss.of_odds(np.asarray(end)))

    inflection = float(_root(loss.bend, -50.0, 60.0)) if loss.gamma else np.inf
    return end if end <= inflection else float(_root(beyond, -50.0, inflection))


def _root(function: Callable[..., Array], low: Array | float, high: float, *given: Array) -> Array:
    """Where a function of t (and of what is given beside it) is 0 between two bounds, or the upper one if it is not."""
    from scipy.optimize import elementwise  # here, because the other losses do without

    found = elementwise.find_root(function, (low, np.full(np.shape(low), high)), args=given)
    return np.where(found.success, found.x, high)
