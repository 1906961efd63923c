"""Squared error to one-hot targets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from collapsekit.losses.scalar import SNAP
from collapsekit.losses.sums import Labels, MatrixLoss, SquaredSum
from collapsekit.validation import Array


@dataclass(frozen=True)
class MSE(MatrixLoss):
    r"""Squared error to one-hot targets, ``ℓ_k(z) = ½ ‖z − e_k‖²``, summed over classes (``nn.MSELoss`` averages).

    No centring: the optimum has ``W h_k = s_k e_k``, so that margin s costs ``√(λ_W λ_H n_k)`` instead of
    ``√(λ_W λ_H n_k (K−1)/K)``, and ``φ(s) = ½ (1 − s)²``.

    References
    ----------
    Dang et al., ICML 2023 (deep linear networks), for one layer; with ReLU: derived here (docs/theory.md).

    Examples
    --------
    >>> MSE().margin(np.array([0.25, 1.5]), 10)
    array([0.75, 0.  ])
    """

    centred: ClassVar[bool] = False

    def summed(self, weights: Array, labels: Labels, num_classes: int, smoothing: float = 1.0) -> SquaredSum:
        return SquaredSum(weights, labels)

    def scalar(self, margins: Array, num_classes: int) -> Array:
        """Return φ at each margin, same shape."""
        return np.asarray(0.5 * (1.0 - margins) ** 2)

    def margin(self, prices: Array, num_classes: int) -> Array:
        """Return the minimiser of ``φ(s) + q s`` over s ≥ 0 for each price q: ``max(0, 1 − q)``."""
        prices = np.asarray(prices)
        return np.asarray(np.maximum(1.0 - prices, 0.0) * (prices < SNAP))

    def price(self, margins: Array, num_classes: int) -> Array:
        """Return ``−φ'`` at each margin: ``1 − s``."""
        return np.asarray(1.0 - margins)
