r"""Losses: value, gradient, and the scalar form φ that the closed forms minimise.

A loss acts on a (K, K) matrix of logits whose row k holds the logits of class k's (collapsed) feature, so that the
target of row k is k. Every loss here is a nondecreasing function of the log-odds of error, which is why the
geometry of the general orthogonal frame holds for it with the margin that minimises ``φ(s) + q s`` (docs/theory.md).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from collapsekit.validation import Array


@dataclass(frozen=True)
class CrossEntropy:
    r"""Cross-entropy ``ℓ_k(z) = log Σ_j exp(z_j) − z_k``.

    For logits whose margin (target logit minus any other) is s the loss is
    ``φ(s) = log(1 + (K−1) exp(−s))``. Class weights belong to the problem (:class:`collapsekit.UFM`).

    Examples
    --------
    >>> import numpy as np
    >>> loss = CrossEntropy()
    >>> loss.value(np.zeros((3, 3)))
    array([1.09861229, 1.09861229, 1.09861229])
    >>> loss.scalar(np.array([0.0]), 3)
    array([1.09861229])
    """

    def value(self, logits: Array) -> Array:
        """Return the loss of each class, (K,), for logits (K, K) with row k the logits of class k."""
        return np.asarray(np.logaddexp.reduce(logits, axis=1) - np.diagonal(logits))

    def gradient(self, logits: Array) -> Array:
        """Return the gradient of each row's loss in its logits, (K, K): softmax minus one-hot."""
        shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities = shifted / shifted.sum(axis=1, keepdims=True)
        return np.asarray(probabilities - np.eye(len(logits)))

    def scalar(self, margins: Array, num_classes: int) -> Array:
        """Return φ at each margin, same shape: the loss when every wrong logit lies `margins` below the target."""
        return np.asarray(np.logaddexp(0.0, np.log(num_classes - 1) - margins))

    def confidence(self, margins: Array, num_classes: int) -> Array:
        """Return the target's softmax probability at each margin, same shape, in [1/K, 1) for margins ≥ 0."""
        wrong = np.log(num_classes - 1) - margins  # log-odds of error; overflow means certainty of it
        with np.errstate(over="ignore"):
            return np.asarray(1.0 / (1.0 + np.exp(wrong)))

    def critical_price(self, num_classes: int) -> float:
        """Return the price q of margin (per unit of loss weight) from which a class keeps none: ``−φ'(0)``."""
        return (num_classes - 1) / num_classes

    def margin(self, prices: Array, num_classes: int) -> Array:
        r"""Return the minimiser of ``φ(s) + q s`` over s ≥ 0 for each price q, same shape.

        Stationarity reads ``(K−1) e^{−s} / (1 + (K−1) e^{−s}) = q``, so the error probability equals the price
        and ``s = log((K−1)(1−q)/q) = log1p(K (1−u)/u)`` with ``u = q/q_crit``; the second form keeps its digits
        where the class is about to die. A price within a few roundings of the critical one counts as critical.
        """
        u = prices / self.critical_price(num_classes)
        alive = u < 1.0 - 8.0 * np.finfo(np.float64).eps
        safe = np.where(alive, u, 1.0)
        return np.log1p(num_classes * (1.0 - safe) / safe)
