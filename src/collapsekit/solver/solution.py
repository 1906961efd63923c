"""The result of a search: the best point, what is known about it, and how the search ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from collapsekit.geometry import Geometry
from collapsekit.losses import CrossEntropy
from collapsekit.problem import UFM
from collapsekit.solver._certify import Certificate
from collapsekit.solver.progress import Status
from collapsekit.validation import Array

TIE = 1e-6
"""Logits that differ by less than this share of the largest (or of 1, the loss's own scale) tie: a search that stops at
a closed gap has left stationarities of up to 1e-8, and merged classes differ by a few times that."""


@dataclass(frozen=True, eq=False, repr=False)
class Solution:
    """The best point that :func:`solve` found, how far it can be from the global optimum, and why the search ended.

    Attributes
    ----------
    problem : UFM
        What was solved.
    weights, features : ndarray, shape (K, d)
        Classifier and class features, rows as classes (with types of samples features are (T, d)); d is the problem's
        `dim`, or as many as needed.
    bias : ndarray, shape (K,), or None
        For a problem that has one.
    certificate : Certificate
        Objective, lower bound, gap, stationarity and polar.
    coordinates : int
        Coordinates in use; the others are zero.
    steps : int
        Newton steps taken in all.
    needed : int
        Coordinates of the best point of any dimension that the search met; where they exceed `dim` the gap is also
        that between dimensions.
    status : Status
        How the search ended; its value is the sentence.
    """

    problem: UFM
    weights: Array
    features: Array
    bias: Array | None
    certificate: Certificate
    coordinates: int
    steps: int
    needed: int
    status: Status

    @property
    def objective(self) -> float:
        """The problem's objective at the point."""
        return self.certificate.objective

    @property
    def lower_bound(self) -> float:
        """No feasible point lies below."""
        return self.certificate.lower_bound

    @property
    def gap(self) -> float:
        """Relative distance between the two."""
        return self.certificate.gap

    @property
    def optimal(self) -> bool:
        """Whether the status is globally optimal."""
        return self.status is Status.OPTIMAL

    @property
    def collapses(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Classes whose own logit, at their features, is not strictly the largest, (K,).

        All of them where no feature tells classes apart, even if a bias prefers one.
        """
        return collapsed(self._logits, np.arange(len(self.weights)))

    @property
    def confidences(self) -> Array:
        """Softmax probability (of z/T) that the head gives each class at its features, (K,); with types the mean."""
        from scipy.special import softmax  # a heavy import, which predictions do without

        loss = self.problem.loss
        temperature = loss.temperature if isinstance(loss, CrossEntropy) else 1.0
        return self.of_classes(softmax((self.features @ self.weights.T + self._shift) / temperature, axis=1))

    @property
    def margins(self) -> Array:
        """Target logit minus the mean of the others at each class's features, bias included, (K,)."""
        target = np.diagonal(self._logits)
        return np.asarray((len(target) * target - self._logits.sum(axis=1)) / (len(target) - 1))

    @property
    def _logits(self) -> Array:
        return np.asarray(self.class_features @ self.weights.T + self._shift)

    @property
    def _shift(self) -> Array | float:
        return 0.0 if self.bias is None else self.bias

    @property
    def class_features(self) -> Array:
        """Features by class, (K, d): with types of samples their means ``Σ_t m_t Y_tk h_t / Σ_t m_t Y_tk``."""
        types = self.problem.types
        return self.features if types is None else types.shares @ self.features

    def of_classes(self, values: Array) -> Array:
        """Return each class's own column, (K,), of one row a feature: ``Σ_t m_t Y_tk x_tk / Σ_t m_t Y_tk`` of types."""
        types = self.problem.types
        return np.asarray(np.diagonal(values) if types is None else (types.shares * values.T).sum(axis=1))

    def geometry(self) -> Geometry:
        """Return the Gram matrices, (K, K) each."""
        W, H = self.weights, self.class_features
        return Geometry(H @ H.T, W @ W.T, W @ H.T, self.problem.counts, names=self.problem.names)

    def to_dict(self) -> dict[str, Any]:
        """Return the solution as plain values (JSON-ready), with its schema version."""
        return {
            "schema": 2,
            "problem": self.problem.to_dict(),
            "weights": self.weights.tolist(),
            "features": self.features.tolist(),
            "bias": None if self.bias is None else self.bias.tolist(),
            "certificate": self.certificate.to_dict(),
            "collapses": self.collapses.tolist(),
            "coordinates": self.coordinates,
            "needed": self.needed,
            "steps": self.steps,
            "status": self.status.value,
        }

    def __repr__(self) -> str:
        return (
            f"Solution(objective {self.objective:.8g}, lower bound {self.lower_bound:.8g}, gap {self.gap:.1e}, "
            f"{self.coordinates} of {self.features.shape[1]} coordinates, {self.steps} steps; {self.status.value})"
        )


def collapsed(logits: Array, labels: np.ndarray[Any, np.dtype[np.int_]]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Return which rows of logits (n, K) have no strictly largest own logit; all of them where rows do not differ."""
    tie = TIE * max(1.0, float(np.abs(logits).max()))
    rows, others = np.arange(len(labels)), logits.copy()
    others[rows, labels] = -np.inf
    same = float(np.ptp(logits, axis=0).max()) <= tie
    return np.asarray((logits[rows, labels] - others.max(axis=1) <= tie) | same)
