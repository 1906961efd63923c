"""The simplex equiangular tight frame with its norms: the optimum of balanced classes without ReLU, in closed form."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from collapsekit.errors import CollapseError
from collapsekit.geometry import Geometry
from collapsekit.problem import UFM
from collapsekit.validation import Array, frozen, whole_number


@dataclass(frozen=True, eq=False)
class Simplex:
    r"""Class features and classifier rows of equal norms and angles, ``cos = −1/(K−1)``.

    .. math::

        Z = s\,(I - \mathbf 1\mathbf 1^\top/K), \qquad
        s = \arg\min_{s \ge 0}\; \tfrac{\omega}{K}\,\varphi(s) + \sqrt{\lambda_W\lambda_H n}\,\tfrac{K-1}{K}\, s

    A unit of margin costs ``√((K−1)/K)`` times what it costs with ReLU: the price of ReLU is ``√(K/(K−1))``.

    Attributes
    ----------
    problem : UFM
        Balanced, without ReLU and bias.
    margins : ndarray, shape (K,)
        s, K times.
    headroom : ndarray, shape (K,)
        Critical λ_W λ_H over λ_W λ_H.
    """

    problem: UFM
    margins: Array
    headroom: Array

    @property
    def _ratio(self) -> float:
        """``‖w_k‖/‖h_k‖ = √(λ_H n/λ_W)``."""
        problem = self.problem
        return float(np.sqrt(np.mean(problem.lambda_h) * problem.counts[0] / problem.lambda_w))

    @property
    def _sqnorms(self) -> Array:
        """``‖w_k‖ ‖h_k‖``, (K,)."""
        size = self.problem.num_classes
        return np.asarray(self.margins * ((size - 1) / size))

    @property
    def feature_sqnorms(self) -> Array:
        """``‖h_k‖²``, (K,)."""
        return self._sqnorms / self._ratio

    @property
    def classifier_sqnorms(self) -> Array:
        """``‖w_k‖²``, (K,)."""
        return self._sqnorms * self._ratio

    @property
    def objective(self) -> float:
        """The optimal value."""
        problem = self.problem
        losses = problem.loss.scalar(self.margins, problem.num_classes)
        price = np.sqrt(problem.lambda_w * np.mean(problem.lambda_h) * problem.counts[0])
        return float(problem.loss_weights @ losses + price * self._sqnorms.sum())

    def gram_rows(self, rows: slice) -> tuple[Array, Array, Array]:
        """Return some rows of the Gram matrices of features, of the classifier and between the two, (r, K) each."""
        size = self.problem.num_classes
        logits = self.margins * ((np.arange(size)[rows, None] == np.arange(size)) - 1 / size)
        return logits / self._ratio, logits * self._ratio, logits

    def geometry(self) -> Geometry:
        """Return the Gram matrices, (K, K) each."""
        return Geometry(*self.gram_rows(slice(None)), self.problem.counts, names=self.problem.names)

    def weights_and_features(self, dim: int | None = None) -> tuple[Array, Array]:
        """Return one optimal pair of classifier and class features, (K, d) each; others are its rotations."""
        size = self.problem.num_classes
        dim = whole_number("dim", dim or self.problem.dim or size - 1, 1, "give the feature dimension or leave it out")
        if dim < size - 1:
            raise CollapseError(f"dim={dim}: a simplex of {size} classes needs {size - 1} dimensions")
        vectors = np.linalg.svd(np.eye(size) - 1 / size)[0][:, : size - 1]
        features = np.zeros((size, dim))
        features[:, : size - 1] = np.sqrt(self.margins / self._ratio)[:, None] * vectors
        return self._ratio * features, features


def is_balanced(problem: UFM) -> bool:
    """Return whether all classes are alike in counts, weights, penalties, target margins and smoothing."""
    margins, rates = getattr(problem.loss, "margins", None) or 0.0, getattr(problem.loss, "smoothing", 0.0)
    columns = (problem.counts, problem.loss_weights, *map(np.atleast_1d, (problem.lambda_h, margins, rates)))
    return all(np.ptp(column) == 0 for column in columns)


def simplex(problem: UFM) -> Simplex:
    """Return the optimum of a balanced, bias-free problem of margins without ReLU; what it asks for is not checked."""
    size = problem.num_classes
    price = np.sqrt(problem.lambda_w * np.mean(problem.lambda_h) * problem.counts[0]) * (size - 1) / size
    prices = price / problem.loss_weights
    margins = np.broadcast_to(problem.loss.margin(prices, size), size)
    return Simplex(problem, frozen(margins.copy()), frozen((problem.loss.critical_price(size) / prices) ** 2))
