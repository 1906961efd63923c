r"""Losses summed over the rows of a matrix of logits: value, gradient, curvature, and a rigorous dual value.

Each loss says by ``summed`` which of these sums it is; theory, solver and metrics have no other copy. Lower bounds
are held against optima to the last digits, so what is small is never a difference of what is large: the distance of
a probability from 1 is the sum of the others, the loss is ``log1p(Σ_{j≠k} e^{u_j − u_k})``, and every row of a
gradient sums to 0 by construction.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from collapsekit.losses.scalar import confidence_at
from collapsekit.validation import Array

Labels = NDArray[np.intp]

EPS = float(np.finfo(np.float64).eps)
"""Twice the largest relative error of one operation."""


@dataclass(frozen=True)
class MatrixLoss(ABC):
    """A loss of the rows of a matrix of logits, one label a row; without labels row k is of class k."""

    centred: ClassVar[bool] = True
    convex: ClassVar[bool] = True
    smooth: ClassVar[bool] = True

    @property
    def obstacle(self) -> str | None:
        """Why the loss is no function of the margin, or None if it is one."""
        return None

    @abstractmethod
    def summed(self, weights: Array, labels: Labels, num_classes: int, smoothing: float = 1.0) -> LossSum:
        """Return ``Σ_i weights_i ℓ(z_i; labels_i)``; a loss with kinks is smoothed by `smoothing`."""

    def value(self, logits: Array, labels: Labels | None = None) -> Array:
        """Return the loss of each row, (n,), for logits (n, K); without labels row k is of class k."""
        return self._of_rows(logits, labels).parts(logits)[0]

    def gradient(self, logits: Array, labels: Labels | None = None) -> Array:
        """Return the gradient of each row's loss in its logits, (n, K)."""
        return self._of_rows(logits, labels).evaluate(logits)[1]

    def critical_price(self, num_classes: int) -> Array:
        """Return the price, per unit of loss weight, from which margin 0 is optimal, (); here 1."""
        return np.asarray(1.0)

    def confidence(self, margins: Array, num_classes: int) -> Array:
        """Return the target's softmax probability at each margin, same shape."""
        return confidence_at(margins, num_classes)

    def training_confidence(self, margins: Array, num_classes: int) -> Array:
        """Return the same inside the loss, after target margins."""
        return self.confidence(margins, num_classes)

    def to_dict(self) -> dict[str, Any]:
        """Return the loss as plain values (JSON-ready)."""
        values = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        return {"name": type(self).__name__} | values

    def _of_rows(self, logits: Array, labels: Labels | None) -> LossSum:
        size, num_classes = logits.shape
        return self.summed(np.ones(size), np.arange(size) if labels is None else labels, num_classes)


@dataclass(frozen=True)
class LossSum(ABC):
    """``Σ_i α_i ℓ(z_i)`` for rows ``z_i`` of logits.

    Attributes
    ----------
    weights : ndarray, shape (n,)
        α.
    labels : ndarray of int, shape (n,)
        The target of each row.
    """

    weights: Array
    labels: Labels

    @cached_property
    def own(self) -> tuple[Labels, Labels]:
        """Where the targets stand in a matrix of logits."""
        return np.arange(len(self.labels)), self.labels

    @abstractmethod
    def parts(self, logits: Array) -> tuple[Array, Array, Any]:
        """Return the loss of each row, its gradient (n, K), both unweighted, and what :meth:`curvature` needs."""

    @abstractmethod
    def curvature(self, state: Any, moved: Array) -> Array:
        """Return the Hessian times a change of the logits, (n, K)."""

    @abstractmethod
    def diagonal(self, state: Any) -> Array:
        """Return the diagonal of the Hessian, or a positive stand-in, (n, K)."""

    def evaluate(self, logits: Array) -> tuple[float, Array, Any]:
        """Return the sum, its gradient (n, K) and what :meth:`curvature` needs."""
        losses, gradient, state = self.parts(logits)
        return float(self.weights @ losses), self.weights[:, None] * gradient, state

    def bias_hessian(self, state: Any) -> Array:
        """Return the sum of the rows' Hessians, (K, K): that of a bias."""
        return np.diag(self.diagonal(state).sum(axis=0))

    def dual(self, logits: Array, balanced: bool) -> Dual | None:
        """Return the dual point at these logits, `balanced` if its columns must sum to 0; None if not convex."""
        return None


@dataclass(frozen=True)
class Dual(ABC):
    r"""A matrix P near an exactly feasible one, P*, and a lower bound on ``−L*(t P*)``, for any t in [0, 1].

    Rounding is bounded to first order in EPS, by sums of moduli whatever the order of summation (Higham, "Accuracy
    and stability of numerical algorithms", section 3); EPS is twice the unit roundoff, which covers the higher orders.

    Attributes
    ----------
    gradient : ndarray, shape (n, K)
        P.
    error : ndarray, shape (n, K)
        At least ``|P − P*|``; P* is a gradient of the loss somewhere, and its columns sum to 0 exactly if asked for.
    """

    gradient: Array
    error: Array

    @abstractmethod
    def value(self, t: float) -> float:
        """Return a lower bound on ``−L*(t P*)``."""

    def drift(self, t: float) -> Array:
        """Return upper bounds on the moduli of the column sums of t P*, (K,)."""
        rounding = self.error + len(self.gradient) * EPS * np.abs(self.gradient)
        return np.asarray(t * (np.abs(self.gradient.sum(axis=0)) + rounding.sum(axis=0)))


@dataclass(frozen=True)
class SoftmaxDual(Dual):
    r"""``Σ_i α_i [m_i H(r_i) + t ⟨D_i, o_i⟩]`` for ``r = (y + t D)/m``, D the matrix ``m p − y`` and H the entropy.

    Attributes
    ----------
    loss : SoftmaxSum
    apart, distance : ndarray, shape (n, K)
        D, and at least the distance of its entries from those of the exactly feasible D*.
    """

    loss: SoftmaxSum
    apart: Array
    distance: Array

    def value(self, t: float) -> float:
        """The entropy of r* differs from that of r by at most ``Σ δ (1 − log δ)`` for ``δ ≥ |r − r*|``, as
        ``|h(x) − h(y)| ≤ h(|x − y|) + |x − y|`` for ``h(x) = −x log x`` on [0, 1]. The target's entry is that of
        1 minus the sum of the others.
        """
        loss, size = self.loss, self.apart.shape[1]
        m = loss.masses[:, None]
        r = np.maximum((loss.targets + t * self.apart) / m, 0.0)
        away = (self.distance + 4 * EPS * (loss.targets + np.abs(self.apart))) / m
        r[loss.own] = away[loss.own] = 0.0
        wrong = np.minimum(r.sum(axis=1), 1.0)
        right = 1.0 - wrong
        entropy = -(r * np.log(np.where(r > 0, r, 1.0))).sum(axis=1)
        entropy -= right * np.log1p(-np.where(right > 0, wrong, 0.0))
        away[loss.own] = away.sum(axis=1) + size * EPS * wrong
        doubt = (away * (1 - np.log(np.maximum(away, 1e-300)))).sum(axis=1) + (size + 8) * EPS * entropy
        raised = loss.shifts - loss.shifts[loss.own][:, None]
        shift = t * (self.apart * raised).sum(axis=1)
        doubt = loss.masses * doubt
        doubt += t * ((self.distance + (size + 4) * EPS * np.abs(self.apart)) * np.abs(raised)).sum(axis=1)
        return lowered(loss.weights, loss.masses * entropy + shift, doubt)


@dataclass(frozen=True)
class HingeDual(SoftmaxDual):
    """``Σ_i α_i (1 − r_iy)``: the hinge is at least ``Σ_{j≠y} r_j (1 + z_j − z_y)`` for every distribution r."""

    def value(self, t: float) -> float:
        own, loss = self.loss.own, self.loss
        wrong = -t * self.apart[own]
        return lowered(loss.weights * loss.slopes[loss.labels], wrong, t * self.distance[own])


@dataclass(frozen=True)
class SoftmaxSum(LossSum):
    """``Σ_i α_i [m_i lse(u_i) − ⟨y_i, u_i⟩]`` with ``u_i = S z_i + o_i``: the cross-entropies, and smoothed hinges.

    Attributes
    ----------
    slopes : ndarray, shape (K,)
        Diagonal of S.
    shifts, targets : ndarray, shape (n, K)
        Rows o_i and y_i; ``m_i`` is the sum of ``y_i``.
    dual_type : type
        What bounds it from below: a smoothed hinge has the dual of the hinge itself.
    """

    slopes: Array
    shifts: Array
    targets: Array
    dual_type: type[SoftmaxDual] = SoftmaxDual

    @cached_property
    def masses(self) -> Array:
        """m_i, (n,), rounded once: bounds know of no error in them that grows with K."""
        return np.asarray(self.targets.sum(axis=1, dtype=np.longdouble), dtype=np.float64)

    def parts(self, logits: Array) -> tuple[Array, Array, Array]:
        """Return losses, gradients and probabilities."""
        u = logits * self.slopes + self.shifts
        u -= u[self.own][:, None]
        top = u.max(axis=1)  # at least 0, that of the target
        p = np.exp(u - top[:, None])
        p[self.own] = 0.0
        wrong, right = p.sum(axis=1), np.exp(-top)
        total = wrong + right
        p /= total[:, None]
        sums = np.where(top > 0, top + np.log(total), np.log1p(wrong))
        losses = self.masses * sums - np.einsum("ij,ij->i", self.targets, u)
        apart = self._apart(p)
        p[self.own] = right / total
        return losses, apart * self.slopes, p

    def _apart(self, p: Array) -> Array:
        """``m p − y`` from the probabilities of the wrong classes; rows sum to 0."""
        apart = self.masses[:, None] * p - self.targets
        apart[self.own] = 0.0
        apart[self.own] = -apart.sum(axis=1)
        return apart

    def curvature(self, state: Array, moved: Array) -> Array:
        moved = moved * self.slopes
        bent = state * (moved - np.einsum("ij,ij->i", state, moved)[:, None])
        return np.asarray(bent * ((self.weights * self.masses)[:, None] * self.slopes))

    def diagonal(self, state: Array) -> Array:
        return np.asarray(state * (1 - state) * ((self.weights * self.masses)[:, None] * self.slopes**2))

    def bias_hessian(self, state: Array) -> Array:
        """Return the sum of the rows' Hessians, (K, K), without an n×K×K array."""
        w = self.weights * self.masses
        bent = np.diag(w @ state) - state.T @ (w[:, None] * state)
        return np.asarray(bent * np.outer(self.slopes, self.slopes))

    def dual(self, logits: Array, balanced: bool) -> Dual:
        """Return the probabilities at these logits as a dual point, mended where its columns must sum to 0."""
        p, size = self.parts(logits)[2], self.targets.shape[1]
        p[self.own] = 0.0
        wrong = p.sum(axis=1)
        p /= np.where(wrong > 1 - size * EPS, wrong * (1 + 2 * size * EPS), 1.0)[:, None]  # their sum: at most 1
        apart, most = self._apart(p), self.masses[:, None] * p + self.targets
        error = 2 * EPS * most
        if balanced:
            apart, error = self._mended(p, apart, most)
        error[self.own] = 0.0
        error[self.own] = (error + size * EPS * np.abs(apart)).sum(axis=1)
        units = self.weights[:, None] * self.slopes
        return self.dual_type(units * apart, units * (error + 12 * EPS * np.abs(apart)), self, apart, error)

    def _mended(self, p: Array, apart: Array, most: Array) -> tuple[Array, Array]:
        r"""``m p' − y`` for p' near p with ``Σ_i α_i (m_i p'_i − y_i) = 0`` exactly, and a bound on its rounding.

        ``p' = (1 − θ) p + x``, one x for all rows: with ``r = Σ α (m p − y)`` and ``h = Σ α m p`` the sum vanishes for
        ``x = (θ h − r)/Σ α m``, which is nonnegative from some θ on. All terms are of the size of the errors.
        """
        n, g = len(p), self.weights * self.masses
        rest = self.weights @ apart
        moduli = self.weights[:, None] * most
        moduli[self.own] = 0.0
        noise = (n + 4) * EPS * (moduli.sum(axis=0) + self._by_class(moduli.sum(axis=1)))
        right = self._by_class(g * (1 - p.sum(axis=1)))
        have = g @ p + right
        theta = min(1.0, (1 + 1e-12) * max(0.0, float(((rest + noise) / np.maximum(have, 1e-300)).max())))
        shared = np.maximum(theta * have - rest, 0.0) / g.sum()
        rounding = noise + 4 * EPS * np.abs(rest) + (n + 4) * EPS * theta * (have + self._by_class(g))
        mended = (1 - theta) * apart + self.masses[:, None] * shared - theta * self.targets
        mended[self.own] = 0.0
        mended[self.own] = -mended.sum(axis=1)
        error = 8 * EPS * (most + self.masses[:, None] * shared) + self.masses[:, None] * (rounding / g.sum())
        return mended, error

    def _by_class(self, rows: Array) -> Array:
        """Sums over the rows of each class, (K,)."""
        return np.asarray(np.bincount(self.labels, rows, self.targets.shape[1]), dtype=np.float64)


@dataclass(frozen=True)
class SquaredSum(LossSum):
    """``Σ_i α_i ½ ‖z_i − e_y‖²``."""

    def parts(self, logits: Array) -> tuple[Array, Array, Array]:
        """Return losses, gradients and the diagonal of the Hessian."""
        apart = np.array(logits, dtype=np.float64)
        apart[self.own] -= 1.0
        diagonal = np.broadcast_to(self.weights[:, None], apart.shape)
        return np.asarray(0.5 * (apart**2).sum(axis=1)), apart, diagonal

    def curvature(self, state: Array, moved: Array) -> Array:
        return state * moved

    def diagonal(self, state: Array) -> Array:
        return state

    def dual(self, logits: Array, balanced: bool) -> Dual:
        """Return the gradient as a dual point: any matrix is one, and columns are balanced by shares of the weights."""
        gradient = self.evaluate(logits)[1]
        error = np.zeros_like(gradient)
        if balanced:
            shares, n = (self.weights / self.weights.sum())[:, None], len(gradient)
            error = (n + 4) * EPS * (shares * np.abs(gradient).sum(axis=0) + np.abs(gradient))
            gradient = gradient - shares * gradient.sum(axis=0)
        return SquaredDual(gradient, error + 12 * EPS * np.abs(gradient), self)


@dataclass(frozen=True)
class SquaredDual(Dual):
    """``Σ_i [−t P_iy − ½ t² ‖P_i‖²/α_i]``."""

    loss: SquaredSum

    def value(self, t: float) -> float:
        P, weights = self.gradient, self.loss.weights[:, None]
        squares = 0.5 * t**2 * (P**2 / weights).sum(axis=1)
        doubt = t * self.error[self.loss.own] + (t**2 * self.error * (np.abs(P) + self.error) / weights).sum(axis=1)
        doubt += (P.shape[1] + 6) * EPS * squares
        return lowered(np.ones(len(P)), -t * P[self.loss.own] - squares, doubt)


def lowered(weights: Array, parts: Array, doubt: Array) -> float:
    """Return ``Σ weights (parts − doubt)``, less what summing and the rounding of the weights may have added."""
    moduli = weights @ np.abs(parts)
    return float(weights @ parts - weights @ doubt - (len(parts) + 12) * EPS * moduli)
