r"""Losses: value, gradient, and the scalar form φ that the closed forms minimise.

A loss acts on a (K, K) matrix of logits whose row k holds the logits of class k's (collapsed) feature, so that the
target of row k is k. Every loss here is a nondecreasing function of the log-odds of error plus a multiple of the
margin, which is why the geometry of the general orthogonal frame holds for it with the margin that minimises
``φ(s) + q s`` (docs/theory.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from collapsekit.errors import CollapseError
from collapsekit.validation import Array, numeric, positive_number

LARGEST_MARGIN = 500.0
"""Target margins beyond this overflow float64 once exponentiated."""


@dataclass(frozen=True)
class CrossEntropy:
    r"""Cross-entropy with label smoothing ε, target margins Δ_k and temperature T.

    .. math::

        \ell_k(z) = \log \sum_j e^{u_j} - \sum_j y_j u_j, \qquad
        u = z/T - \Delta_k e_k, \qquad y = (1-\varepsilon)\, e_k + \varepsilon/K

    For logits whose margin (target logit minus any other) is s it equals

    .. math:: \varphi_k(s) = \log\bigl(1 + (K-1)\, e^{\Delta_k - s/T}\bigr)
              + \varepsilon\,\tfrac{K-1}{K}\,(s/T - \Delta_k).

    Class weights belong to the problem (:class:`collapsekit.UFM`).

    Parameters
    ----------
    smoothing : float
        ε in [0, 1); torch's ``label_smoothing``.
    margins : sequence of float, optional
        Δ_k, one a class, in logits; LDAM's are ``C n_k^(−1/4)``. None: no margins.
    temperature : float
        T > 0, by which logits are divided.

    Raises
    ------
    CollapseError
        If an argument is out of range.

    References
    ----------
    Szegedy et al., CVPR 2016 (smoothing); Cao et al., NeurIPS 2019 (LDAM). Scalar forms: derived here.

    Examples
    --------
    >>> import numpy as np
    >>> loss = CrossEntropy()
    >>> loss.value(np.zeros((3, 3)))
    array([1.09861229, 1.09861229, 1.09861229])
    >>> loss.scalar(np.array([0.0]), 3)
    array([1.09861229])
    >>> CrossEntropy(smoothing=0.1).margin(np.array([0.05, 0.5]), 10).round(4)
    array([4.0125, 1.8333])
    """

    smoothing: float = 0.0
    margins: tuple[float, ...] | None = None
    temperature: float = 1.0

    def __post_init__(self) -> None:
        smoothing = numeric("smoothing", self.smoothing)
        if smoothing.ndim or not 0 <= smoothing < 1:
            raise CollapseError(f"smoothing={self.smoothing!r}: give a share of at least 0 and less than 1")
        object.__setattr__(self, "smoothing", float(smoothing))
        temperature = positive_number("temperature", self.temperature, "logits are divided by it")
        object.__setattr__(self, "temperature", temperature)
        if self.margins is not None:
            object.__setattr__(self, "margins", _target_margins(self.margins))

    def value(self, logits: Array) -> Array:
        """Return the loss of each class, (K,), for logits (K, K) with row k the logits of class k."""
        u = self._shifted(logits)
        target = np.diagonal(u)
        if self.smoothing:
            target = (1 - self.smoothing) * target + self.smoothing * u.mean(axis=1)
        return np.asarray(np.logaddexp.reduce(u, axis=1) - target)

    def gradient(self, logits: Array) -> Array:
        """Return the gradient of each row's loss in its logits, (K, K): (softmax minus targets) over T."""
        u = self._shifted(logits)
        shifted = np.exp(u - u.max(axis=1, keepdims=True))
        probabilities = shifted / shifted.sum(axis=1, keepdims=True)
        targets = (1 - self.smoothing) * np.eye(len(u)) + self.smoothing / len(u)
        return np.asarray((probabilities - targets) / self.temperature)

    def scalar(self, margins: Array, num_classes: int) -> Array:
        """Return φ_k at each margin, (…, K) or any shape without target margins."""
        shifts, share = self._shifts, (num_classes - 1) / num_classes
        s = margins / self.temperature
        log_odds = np.logaddexp(0.0, np.log(num_classes - 1) + shifts - s)
        return np.asarray(log_odds + self.smoothing * share * (s - shifts))

    def confidence(self, margins: Array, num_classes: int) -> Array:
        """Return the target's softmax probability (of z/T, without target margin) at each margin, same shape."""
        wrong = np.log(num_classes - 1) - margins / self.temperature  # log-odds of error
        with np.errstate(over="ignore"):  # overflow means certainty of error
            return np.asarray(1.0 / (1.0 + np.exp(wrong)))

    def critical_price(self, num_classes: int) -> Array:
        """Return the price q of margin, per unit of loss weight, from which a class keeps none: ``−φ_k'(0)``.

        Shape (), or (K,) with target margins. Below 0 the loss falls towards negative margins (smoothing with a
        negative target margin) and the closed form does not hold.
        """
        share = (num_classes - 1) / num_classes
        return np.asarray((self._error_at_zero(num_classes) - self.smoothing * share) / self.temperature)

    def margin(self, prices: Array, num_classes: int) -> Array:
        r"""Return the minimiser of ``φ_k(s) + q s`` over s ≥ 0 for each price q, same shape.

        With ``c = (K−1) e^Δ`` and ``r = T q + ε (K−1)/K`` stationarity reads ``c e^{−s/T} / (1 + c e^{−s/T}) = r``,
        hence ``s/T = log1p((1+c)(1−v)/v)`` with ``v = r (1+c)/c`` in (0, 1): a form that keeps its digits where the
        class is about to die. A price within a few roundings of the critical one counts as critical.
        """
        error = self._error_at_zero(num_classes)
        floor = self.smoothing * (num_classes - 1) / num_classes / error  # v at price 0
        with np.errstate(divide="ignore", over="ignore"):
            u = np.asarray(prices / self.critical_price(num_classes))
            alive = (u >= 0) & (u < 1.0 - 8.0 * np.finfo(np.float64).eps)
            u = np.where(alive, u, 1.0)
            odds = (1.0 - floor) * (1.0 - u) / (floor + (1.0 - floor) * u)
            margins = self.temperature * np.log1p((1.0 + (num_classes - 1) * np.exp(self._shifts)) * odds)
        return np.asarray(np.where(alive, margins, 0.0))

    def to_dict(self) -> dict[str, Any]:
        """Return the loss as plain values (JSON-ready)."""
        margins = None if self.margins is None else list(self.margins)
        return {
            "name": "CrossEntropy",
            "smoothing": self.smoothing,
            "margins": margins,
            "temperature": self.temperature,
        }

    @property
    def _shifts(self) -> Array:
        """Δ, () or (K,)."""
        return np.asarray(0.0 if self.margins is None else self.margins)

    def _shifted(self, logits: Array) -> Array:
        return np.asarray(logits / self.temperature - self._shifts * np.eye(len(logits)))

    def _error_at_zero(self, num_classes: int) -> Array:
        """Softmax probability of error at margin 0, c/(1+c): (K−1)/K without target margins."""
        return np.asarray((num_classes - 1) / (num_classes - 1 + np.exp(-self._shifts)))


def _target_margins(margins: Sequence[float]) -> tuple[float, ...]:
    values = numeric("margins", margins)
    bad = np.flatnonzero(~(np.abs(values) <= LARGEST_MARGIN))
    if values.ndim != 1 or bad.size:
        what = f"class {bad[0]} has {values.flat[bad[0]]:g}" if bad.size else f"shape {values.shape}, expected (K,)"
        raise CollapseError(f"margins: {what}; give one number a class, within ±{LARGEST_MARGIN:g}")
    return tuple(values.tolist())
