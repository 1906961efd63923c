r"""The problem in the variables that the solver works with.

With ``U = W (λ_W/κ)^½`` and ``v_k = h_k (λ_{H,k} n_k/κ)^½`` the objective of :class:`collapsekit.UFM` is

.. math:: L(Z) + \tfrac{\kappa}{2}\bigl(\lVert U\rVert^2 + \lVert V\rVert^2\bigr)
          + \tfrac{\lambda_b}{2}\lVert b\rVert^2,
          \qquad z_k = f_k\, U v_k + b, \qquad f_k = \frac{\kappa}{\sqrt{\lambda_W \lambda_{H,k} n_k}},

so that both factors are penalised alike whatever ``λ_W/λ_H`` and the counts. κ only fixes the unit of U and V.
With types of samples V has a row a type, and ``m_t`` stands for ``n_k``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from collapsekit.problem import UFM
from collapsekit.validation import Array


@dataclass(frozen=True)
class Point:
    """Balanced factors: U (K, r) with rows as classes, V with rows as features, and the bias (K,), 0 without one."""

    U: Array
    V: Array
    b: Array


class Balanced:
    """The problem in balanced variables.

    Attributes
    ----------
    problem : UFM
    loss : LossSum
        Over the rows of features; a hinge is smoothed by `smoothing`.
    kappa : float
        κ, the geometric mean of λ_W and the mean λ_H.
    factors : ndarray, shape (K,) or (T,)
        f_k.
    """

    def __init__(self, problem: UFM, smoothing: float = 1e-3) -> None:
        self.problem, self.smoothing = problem, smoothing
        self.loss = problem.summed_loss(smoothing)
        lambda_h = np.broadcast_to(problem.lambda_h, problem.samples.size)
        self.kappa = float(np.sqrt(problem.lambda_w) * np.exp(0.5 * np.log(lambda_h).mean()))
        self.unit_w = np.sqrt(self.kappa / problem.lambda_w)
        self.unit_h = np.sqrt(self.kappa / (lambda_h * problem.samples))
        self.factors: Array = self.unit_w * self.unit_h
        self.has_bias, self.bias_penalty = problem.bias is not None, problem.bias_penalty

    @property
    def size(self) -> int:
        """K."""
        return self.problem.num_classes

    @property
    def rows(self) -> int:
        """Rows of features: K, or T with types of samples."""
        return int(self.factors.size)

    def logits(self, point: Point) -> Array:
        """Return Z, row k the logits at feature k, (K, K) or (T, K)."""
        return np.asarray(self.factors[:, None] * (point.V @ point.U.T) + point.b)

    def penalty(self, point: Point) -> float:
        """Return what is added to the loss."""
        size = np.vdot(point.U, point.U) + np.vdot(point.V, point.V)
        return float(0.5 * (self.kappa * size + self.bias_penalty * (point.b @ point.b)))

    def objective(self, point: Point) -> float:
        """Return the (smoothed) objective."""
        return self.loss.evaluate(self.logits(point))[0] + self.penalty(point)

    def unsmoothed(self, point: Point) -> float:
        """Return the problem's own objective."""
        bias = point.b if self.has_bias else None
        return self.problem.objective(self.weights(point), self.features(point), bias)

    def weights(self, point: Point) -> Array:
        """Return W, (K, r)."""
        return np.asarray(self.unit_w * point.U)

    def features(self, point: Point) -> Array:
        """Return H, (K, r) or (T, r)."""
        return np.asarray(self.unit_h[:, None] * point.V)

    def point(self, weights: Array, features: Array, bias: Array | None) -> Point:
        """Return the balanced factors of a classifier, class features and bias."""
        b = np.zeros(self.size) if bias is None else np.array(bias, dtype=np.float64)
        return Point(weights / self.unit_w, features / self.unit_h[:, None], b)
