"""Multi-class hinge of Crammer and Singer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from collapsekit.losses.scalar import SNAP
from collapsekit.losses.sums import HingeDual, Labels, MatrixLoss, SoftmaxSum
from collapsekit.validation import Array


@dataclass(frozen=True)
class Hinge(MatrixLoss):
    r"""Multi-class hinge of Crammer and Singer, ``ℓ_k(z) = max(0, 1 + max_{j≠k} z_j − z_k)``.

    Margins are 1 or 0: ``φ(s) = max(0, 1 − s)``, and a class dies where margin costs as much as it saves. (torch's
    ``MultiMarginLoss`` is another loss: it sums over the other classes.)

    References
    ----------
    Crammer and Singer, JMLR 2001; derived here (docs/theory.md).

    Examples
    --------
    >>> Hinge().margin(np.array([0.5, 1.5]), 10)
    array([1., 0.])
    """

    smooth: ClassVar[bool] = False

    def value(self, logits: Array, labels: Labels | None = None) -> Array:
        """Return the loss of each row, (n,), for logits (n, K); without labels row k is of class k."""
        own, others = self._split(logits, labels)
        return np.asarray(np.maximum(0.0, 1.0 + others.max(axis=1) - logits[own]))

    def gradient(self, logits: Array, labels: Labels | None = None) -> Array:
        """Return a subgradient of each row's loss in its logits, (n, K); ties share."""
        own, others = self._split(logits, labels)
        largest = others == others.max(axis=1, keepdims=True)
        gradient = largest / largest.sum(axis=1, keepdims=True)
        gradient[own] = -1.0
        return np.asarray((self.value(logits, labels) > 0)[:, None] * gradient)

    def summed(self, weights: Array, labels: Labels, num_classes: int, smoothing: float = 1.0) -> SoftmaxSum:
        """Return μ times cross-entropies of temperature μ and target margin 1/μ: at most ``μ log K`` above the hinge.

        ``μ log(1 + Σ_{j≠y} e^{(1 + z_j − z_y)/μ})``, with `smoothing` μ > 0.
        """
        own = np.eye(num_classes)[labels]
        slopes = np.full(num_classes, 1 / smoothing)
        return SoftmaxSum(weights * smoothing, labels, slopes, -own / smoothing, own, HingeDual)

    def _split(self, logits: Array, labels: Labels | None) -> tuple[tuple[Labels, Labels], Array]:
        """Where the targets stand, and the logits with −∞ in their place."""
        own = self._of_rows(logits, labels).own
        others = np.array(logits, dtype=np.float64)
        others[own] = -np.inf
        return own, others

    def scalar(self, margins: Array, num_classes: int) -> Array:
        """Return φ at each margin, same shape."""
        return np.maximum(0.0, 1.0 - margins)

    def margin(self, prices: Array, num_classes: int) -> Array:
        """Return the minimiser of ``φ(s) + q s`` over s ≥ 0 for each price q; 0 at price 1, where all of [0, 1] tie."""
        return np.asarray(np.asarray(prices) < SNAP, dtype=np.float64)

    def price(self, margins: Array, num_classes: int) -> Array:
        """Return NaN: no price makes one margin between 0 and 1 optimal, and every price below 1 makes 1 optimal."""
        return np.full_like(np.asarray(margins, dtype=np.float64), np.nan)
