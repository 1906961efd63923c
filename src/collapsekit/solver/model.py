r"""The problem in the variables that the solver works with, and the loss as a function of all logits at once.

With ``U = W (λ_W/κ)^½`` and ``v_k = h_k (λ_{H,k} n_k/κ)^½`` the objective of :class:`collapsekit.UFM` is

.. math:: L(Z) + \tfrac{\kappa}{2}\bigl(\lVert U\rVert^2 + \lVert V\rVert^2\bigr)
          + \tfrac{\lambda_b}{2}\lVert b\rVert^2,
          \qquad z_k = f_k\, U v_k + b, \qquad f_k = \frac{\kappa}{\sqrt{\lambda_W \lambda_{H,k} n_k}},

so that both factors are penalised alike whatever ``λ_W/λ_H`` and the counts. κ only fixes the unit of U and V.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from collapsekit.losses import MSE, CrossEntropy, Focal, Hinge
from collapsekit.problem import UFM
from collapsekit.validation import Array


@dataclass(frozen=True)
class Softmax:
    """``Σ_k μ α_k [m_k lse(u_k) − ⟨y_k, u_k⟩]`` with ``u_k = S z_k + o_k``: the cross-entropies, and smoothed hinges.

    Attributes
    ----------
    weights : ndarray, shape (K,)
        μ α_k.
    slopes : ndarray, shape (K,)
        Diagonal of S.
    shifts, targets : ndarray, shape (K, K)
        Rows o_k and y_k; ``m_k`` is the sum of ``y_k``.
    """

    weights: Array
    slopes: Array
    shifts: Array
    targets: Array

    @cached_property
    def masses(self) -> Array:
        """m_k, (K,)."""
        return np.asarray(self.targets.sum(axis=1))

    def evaluate(self, logits: Array) -> tuple[float, Array, Array]:
        """Return L, its gradient (K, K) and what :meth:`curvature` needs."""
        u = logits * self.slopes + self.shifts
        top = u.max(axis=1)
        p = np.exp(u - top[:, None])
        total = p.sum(axis=1)
        p /= total[:, None]
        value = self.weights @ (self.masses * (np.log(total) + top) - np.einsum("ij,ij->i", self.targets, u))
        gradient = (self.masses[:, None] * p - self.targets) * (self.weights[:, None] * self.slopes)
        return float(value), gradient, p

    def curvature(self, state: Array, moved: Array) -> Array:
        """Return the Hessian of L times a change of the logits, (K, K)."""
        moved = moved * self.slopes
        bent = state * (moved - np.einsum("ij,...ij->...i", state, moved)[..., None])
        return np.asarray(bent * ((self.weights * self.masses)[:, None] * self.slopes))

    def diagonal(self, state: Array) -> Array:
        """Return the diagonal of the Hessian of L, (K, K)."""
        return np.asarray(state * (1 - state) * ((self.weights * self.masses)[:, None] * self.slopes**2))


@dataclass(frozen=True)
class Squared:
    """``Σ_k α_k ½ ‖z_k − e_k‖²``."""

    weights: Array

    def evaluate(self, logits: Array) -> tuple[float, Array, Array]:
        """Return L, its gradient (K, K) and the weights."""
        apart = logits - np.eye(len(logits))
        gradient = self.weights[:, None] * apart
        return float(0.5 * (gradient * apart).sum()), gradient, self.weights

    def curvature(self, state: Array, moved: Array) -> Array:
        """Return the Hessian of L times a change of the logits, (K, K)."""
        return np.asarray(state[:, None] * moved)

    def diagonal(self, state: Array) -> Array:
        """Return the diagonal of the Hessian of L, (K, K)."""
        return np.repeat(state[:, None], len(state), axis=1)


@dataclass(frozen=True)
class FocalSum:
    """``Σ_k α_k f(t_k)``, ``f(t) = σ(t)^γ softplus(t)``, t the log-odds of error: not convex."""

    weights: Array
    loss: Focal

    def evaluate(self, logits: Array) -> tuple[float, Array, tuple[Array, Array, Array]]:
        """Return L, its gradient (K, K) and what :meth:`curvature` needs."""
        size = len(logits)
        others = np.where(np.eye(size, dtype=bool), -np.inf, logits)
        odds = np.logaddexp.reduce(others, axis=1)
        shares = np.exp(others - odds[:, None])
        odds = odds - np.diagonal(logits)
        first, second = self._derivatives(odds)
        value = float(self.weights @ self.loss.value(logits))
        return value, (self.weights * first)[:, None] * (shares - np.eye(size)), (shares, first, second)

    def curvature(self, state: tuple[Array, Array, Array], moved: Array) -> Array:
        """Return the Hessian of L times a change of the logits, (K, K)."""
        shares, first, second = state
        mean = np.einsum("ij,...ij->...i", shares, moved)
        bent = first[:, None] * shares * (moved - mean[..., None])
        bent += (second * (mean - np.diagonal(moved, axis1=-2, axis2=-1)))[..., None] * (shares - np.eye(len(shares)))
        return np.asarray(self.weights[:, None] * bent)

    def diagonal(self, state: tuple[Array, Array, Array]) -> Array:
        """Return a positive stand-in for the diagonal of the Hessian of L, (K, K)."""
        shares, first, second = state
        slope = shares - np.eye(len(shares))
        bent = first[:, None] * shares * (1 - shares) + np.abs(second)[:, None] * slope**2
        return np.asarray(self.weights[:, None] * bent)

    def _derivatives(self, t: Array) -> tuple[Array, Array]:
        """f' and f'', from σ' = σ(1−σ)."""
        g, wrong, right = self.loss.gamma, np.exp(-np.logaddexp(0.0, -t)), np.exp(-np.logaddexp(0.0, t))
        soft, power = np.logaddexp(0.0, t), np.exp(-self.loss.gamma * np.logaddexp(0.0, -t))
        first = power * (wrong + g * right * soft)
        second = power * right * ((1 + 2 * g) * wrong + g * soft * (g * right - wrong))
        return np.asarray(first), np.asarray(second)


LossSum = Softmax | Squared | FocalSum


def loss_sum(problem: UFM, smoothing: float = 1e-3) -> LossSum:
    """Return the loss over all classes; a hinge is smoothed by `smoothing` > 0, from above by at most that times log K.

    ``μ log(1 + Σ_{j≠k} e^{(1 + z_j − z_k)/μ})`` is μ times a cross-entropy of temperature μ and target margin 1/μ.
    """
    loss, alpha, size = problem.loss, problem.loss_weights, problem.num_classes
    if isinstance(loss, CrossEntropy):
        return Softmax(alpha, loss.slopes(size), loss.shifts(size), loss.targets(size))
    if isinstance(loss, Hinge):
        one = np.eye(size)
        return Softmax(alpha * smoothing, np.full(size, 1 / smoothing), -one / smoothing, one)
    return Squared(alpha) if isinstance(loss, MSE) else FocalSum(alpha, loss)


@dataclass(frozen=True)
class Point:
    """Balanced factors: U (K, r), V (K, r) with rows as classes, and the bias (K,), 0 without one."""

    U: Array
    V: Array
    b: Array


class Balanced:
    """The problem in balanced variables.

    Attributes
    ----------
    problem : UFM
    loss : Softmax, Squared or FocalSum
    kappa : float
        κ, the geometric mean of λ_W and the mean λ_H.
    factors : ndarray, shape (K,)
        f_k.
    """

    def __init__(self, problem: UFM, smoothing: float = 1e-3) -> None:
        self.problem, self.loss = problem, loss_sum(problem, smoothing)
        lambda_h = np.broadcast_to(problem.lambda_h, problem.num_classes)
        self.kappa = float(np.sqrt(problem.lambda_w) * np.exp(0.5 * np.log(lambda_h).mean()))
        self.unit_w = np.sqrt(self.kappa / problem.lambda_w)
        self.unit_h = np.sqrt(self.kappa / (lambda_h * problem.counts))
        self.factors = self.unit_w * self.unit_h
        self.has_bias, self.bias_penalty = problem.bias is not None, problem.bias_penalty

    @property
    def size(self) -> int:
        """K."""
        return self.problem.num_classes

    def logits(self, point: Point) -> Array:
        """Return Z, (K, K), row k the logits of class k."""
        return np.asarray(self.factors[:, None] * (point.V @ point.U.T) + point.b)

    def penalty(self, point: Point) -> float:
        """Return what is added to the loss."""
        size = np.vdot(point.U, point.U) + np.vdot(point.V, point.V)
        return float(0.5 * (self.kappa * size + self.bias_penalty * (point.b @ point.b)))

    def objective(self, point: Point) -> float:
        """Return the (smoothed) objective."""
        return self.loss.evaluate(self.logits(point))[0] + self.penalty(point)

    def weights(self, point: Point) -> Array:
        """Return W, (K, r)."""
        return np.asarray(self.unit_w * point.U)

    def features(self, point: Point) -> Array:
        """Return H, (K, r)."""
        return np.asarray(self.unit_h[:, None] * point.V)

    def point(self, weights: Array, features: Array, bias: Array | None) -> Point:
        """Return the balanced factors of a classifier, class features and bias."""
        b = np.zeros(self.size) if bias is None else np.array(bias, dtype=np.float64)
        return Point(weights / self.unit_w, features / self.unit_h[:, None], b)
