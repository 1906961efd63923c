"""Focal loss, whose best margin may jump."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

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

    centred: ClassVar[bool] = True
    convex: ClassVar[bool] = False
    smooth: ClassVar[bool] = True

    def __post_init__(self) -> None:
        gamma = numeric("gamma", self.gamma)
        if gamma.ndim or not 0 <= gamma <= LARGEST_GAMMA:
            raise CollapseError(f"gamma={self.gamma!r}: give a number from 0 to {LARGEST_GAMMA:g}")
        object.__setattr__(self, "gamma", float(gamma))

    def summed(self, weights: Array, labels: Labels, num_classes: int, smoothing: float = 1.0) -> FocalSum:
        """Return ``Σ_i weights_i ℓ(z_i; labels_i)``."""
        return FocalSum(weights, labels, self)

    def scalar(self, margins: Array, num_classes: int) -> Array:
        """Return φ at each margin, same shape."""
        return self.of_odds(np.log(num_classes - 1) - margins)

    def critical_price(self, num_classes: int) -> Array:
        """Return the price from which margin 0 is optimal, (): the steepest chord of φ from margin 0."""
        return np.asarray(self.slope(np.asarray(_last_odds(self, num_classes))))

    def margin(self, prices: Array, num_classes: int) -> Array:
        """Return the global minimiser of ``φ(s) + q s`` over s ≥ 0 for each price q, same shape; 0 from the jump on.

        By Newton's method on ``log f'(t) = log q``, kept between bounds; last steps in f' itself take back the
        roundings of the logarithms.
        """
        if not self.gamma:
            return CrossEntropy().margin(prices, num_classes)
        last, q = _last_odds(self, num_classes), np.atleast_1d(np.asarray(prices, dtype=np.float64))
        alive = np.flatnonzero(q < self.critical_price(num_classes) * SNAP)
        wanted = q[alive]
        # f'(t) ≤ (1+γ) e^{(γ+1)t} bounds the root from below
        odds = np.minimum((np.log(wanted) - np.log1p(self.gamma)) / (self.gamma + 1.0), last)
        odds = self._odds_at(np.log(wanted), odds, last)
        for number in (np.float64, np.longdouble):  # near the inflection a rounding of f' is many of the odds
            bend, odds = self._log_slope(np.asarray(odds, dtype=np.float64))[1], odds.astype(number)
            missing = (wanted - self._small_slope(odds)) / wanted
            odds += np.divide(missing, bend, out=np.zeros_like(odds), where=bend > 1e-4)
            np.minimum(odds, last, out=odds)
        margins = np.zeros_like(q)
        margins[alive] = np.maximum(np.log(np.longdouble(num_classes - 1)) - odds, 0.0)
        return margins.reshape(np.shape(prices))

    def price(self, margins: Array, num_classes: int) -> Array:
        """Return ``−φ'`` at each margin; NaN where no price makes that margin the minimiser (inside the jump)."""
        odds = np.log(num_classes - 1) - margins
        reached = odds <= _last_odds(self, num_classes) * (1 + 1e-12)
        return np.where(reached, self.slope(odds), np.nan)

    def to_dict(self) -> dict[str, Any]:
        """Return the loss as plain values (JSON-ready)."""
        return {"name": "Focal", "gamma": self.gamma}

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

    def _odds_at(self, log_prices: Array, odds: Array, last: float) -> Array:
        """The t ≤ last at which log f'(t) has the given values, from a bound below: Newton, up to rounding."""
        low, high = odds.copy(), np.full_like(odds, last)
        todo = np.arange(odds.size)
        for _ in range(200):
            if not todo.size:
                break
            t = odds[todo]
            value, slope = self._log_slope(t)
            missing = log_prices[todo] - value
            low[todo], high[todo] = np.where(missing > 0, t, low[todo]), np.where(missing > 0, high[todo], t)
            with np.errstate(divide="ignore", invalid="ignore"):
                moved = t + missing / slope
            inside = (moved >= low[todo]) & (moved <= high[todo])
            moved = np.where(inside, moved, 0.5 * (low[todo] + high[todo]))
            odds[todo] = moved
            todo = todo[np.abs(moved - t) > 4 * np.finfo(np.float64).eps * np.maximum(1.0, np.abs(t))]
        return odds

    def _small_slope(self, t: Array) -> Array:
        """f'(t) for t that does not overflow once exponentiated, to the last digits of the type of t."""
        odds = np.exp(t)
        wrong = odds / (1.0 + odds)
        return np.asarray(wrong**self.gamma * (wrong + self.gamma * np.log1p(odds) / (1.0 + odds)))

    def _log_slope(self, t: Array) -> tuple[Array, Array]:
        """log f'(t) and its derivative, for t that does not overflow once exponentiated."""
        odds = np.exp(t)
        right, soft = 1.0 / (1.0 + odds), np.log1p(odds)
        wrong, bent = odds * right, self.gamma * right * soft
        factor = wrong + bent
        curved = right * ((1.0 + self.gamma) * wrong - self.gamma * wrong * soft)
        return self.gamma * (t - soft) + np.log(factor), self.gamma * right + curved / factor


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
        """Return the Hessian times a change of the logits, (n, K)."""
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

    def bends_down(t: Array) -> Array:
        """Minus the sign of f'' : f''/f' has one zero."""
        return -loss._log_slope(t)[1]

    inflection = float(_root(bends_down, np.array([-50.0]), np.array([60.0]))[0]) if loss.gamma else np.inf
    if end <= inflection:
        return end
    return float(_root(beyond, np.array([-50.0]), np.array([inflection]))[0])


def _root(function: Callable[[Array], Array], low: Array, high: Array) -> Array:
    """Return where an increasing function crosses 0 in [low, high], by bisection down to neighbouring floats."""
    low, high = low.copy(), high.copy()
    for _ in range(200):
        middle = 0.5 * (low + high)
        if np.all((middle == low) | (middle == high)):
            break
        above = function(middle) > 0
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    return 0.5 * (low + high)
