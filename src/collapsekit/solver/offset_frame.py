r"""The best point whose classes keep a coordinate each, for any cross-entropy: two scalars a class, by Lambert's W.

Let class k alone use its coordinate: ``z_k = f_k v_k u_k + b`` (the units of :mod:`collapsekit.solver.model`). At a
given size of ``x = f_k v_k u_k`` the penalty is least for ``‖u_k‖ = v_k``, where it is ``c_k ‖x‖``, ``c_k = κ/f_k``:
for a given bias the problem splits into K convex ones,

.. math:: \min_x\ \alpha_k\,\bigl[m_k \operatorname{lse}(o_k + s \odot (x + b)) - \langle y_k,\cdot\rangle\bigr]
          + c_k \lVert x\rVert .

*Derivation.* x = 0 is optimal iff the gradient there is no longer than c_k, ``α_k ‖s ⊙ (y_k − m_k p)‖ ≤ c_k``.
Otherwise ``α_k s ⊙ (y_k − m_k p) = c_k x/‖x‖``; with ``r = α_k ‖x‖/c_k`` that is ``x = r s ⊙ (y_k − m_k p)``. Put
into ``p_j = e^{o_j + s_j b_j + s_j x_j}/Z`` and write ``w_j = r s_j² m_k p_j``:

.. math:: w_j e^{w_j} = \frac{r s_j^2 m_k}{Z}\, e^{o_j + s_j b_j + r s_j^2 y_{kj}},
          \qquad \sum_j p_j = 1, \qquad \alpha_k \lVert s \odot (y_k - m_k p)\rVert = c_k .

For given r the first sum falls in Z; along its roots the norm falls in r, because p is then the minimiser under
``+ ‖x‖²/(2r)`` instead, of which the gradient shrinks as the penalty does. Both roots are found by Newton's method
within brackets, all classes at once. In b the minimum is convex, with gradient ``Σ_k α_k s ⊙ (m_k p_k − y_k) + λ_b b``;
its Hessian, for a living class ``Q − Q (∇²ℓ + Q)⁻¹ Q`` with ``Q = (c_k/‖x‖)(I − x xᵀ/‖x‖²)``, is a diagonal and rank 4.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from collapsekit.losses.sums import SoftmaxSum
from collapsekit.solver.model import Balanced, Point
from collapsekit.validation import Array

MOST_STEPS = 100
"""Of one root: Newton's method takes about five, and halving a bracket of 200 down to rounding sixty."""
BIAS_STEPS = 60
"""Newton steps for the bias: ten are usual."""
TINY = 1e-300


@dataclass(frozen=True, eq=False)
class Frame:
    """The best point with a coordinate for each class alone.

    Attributes
    ----------
    lengths : ndarray, shape (K,)
        ``‖x_k‖``; 0 for a dead class.
    residuals : ndarray, shape (K, K)
        Rows ``s ⊙ (y_k − m_k p_k)``: what is left of each class's loss to descend.
    living : ndarray of bool, shape (K,)
        Classes that keep a coordinate.
    bias : ndarray, shape (K,)
        0 without one.
    objective : float
        An upper bound on the optimum.
    """

    lengths: Array
    residuals: Array
    living: Array
    bias: Array
    objective: float

    @property
    def cosines(self) -> Array:
        """Cosines between the residuals, (K, K)."""
        unit = self.residuals / np.maximum(np.linalg.norm(self.residuals, axis=1, keepdims=True), TINY)
        return np.asarray(unit @ unit.T)

    @property
    def best(self) -> bool:
        """Whether no living class gains by sharing a coordinate: with all alive, the point is the global optimum.

        ``⟨y_k − p_k, y_l − p_l⟩ ≤ 0`` for living k and every other l, up to a cosine of 1e-9 (rounding and what is left
        of the roots). Dead classes must also be unable to gain among themselves, which the certificate decides.
        """
        apart = self.cosines[self.living]
        apart[np.arange(len(apart)), np.flatnonzero(self.living)] = 0.0
        return bool(apart.max(initial=0.0) <= 1e-9)

    def point(self, model: Balanced) -> Point:
        """Return the frame as balanced factors, one coordinate a living class."""
        alive = np.flatnonzero(self.living)
        sizes = np.sqrt(self.lengths[alive] / model.factors[alive])  # ‖x‖ = f v ‖u‖ and v = ‖u‖
        directions = self.residuals[alive]
        V = np.zeros((model.size, alive.size))
        V[alive, np.arange(alive.size)] = sizes
        return Point((directions / np.linalg.norm(directions, axis=1, keepdims=True)).T * sizes, V, self.bias)


def offset_frame(model: Balanced) -> Frame:
    """Return the best point with a coordinate for each class alone, whatever offsets, scales, smoothing and bias.

    Examples
    --------
    >>> from collapsekit import UFM, CrossEntropy, solve
    >>> problem = UFM([50, 40, 30], 5e-3, 5e-4, loss=CrossEntropy.logit_adjusted([50, 40, 30]), bias="free")
    >>> frame = offset_frame(Balanced(problem))
    >>> frame.best, abs(frame.objective - solve(problem).objective) < 1e-9
    (True, True)
    """
    classes = Classes(model)
    b = np.zeros(model.size)
    value, p = classes.solved(b)
    for _ in range(BIAS_STEPS if model.has_bias else 0):
        slope = classes.slope(p) + model.bias_penalty * b
        if np.abs(slope).max() <= 1e-15 * model.loss.weights.max():
            break
        hessian = classes.bias_hessian(p)
        hessian[np.diag_indices(model.size)] += model.bias_penalty + 1e-13 * np.trace(hessian) / model.size + TINY
        step, size = -np.linalg.solve(hessian, slope), 1.0
        while size > 1e-6:
            trial, q = classes.solved(b + size * step)
            if trial <= value + 0.1 * size * float(slope @ step) + 1e-15 * abs(value):
                break
            size *= 0.5
        else:
            break
        b, value, p = b + size * step, trial, q
    return Frame(classes.lengths(p), classes.residuals(p), classes.living, b - b.mean() * classes.shifting, value)


class Classes:
    """The K problems of one class each; the roots of the last bias are where the next ones start."""

    def __init__(self, model: Balanced) -> None:
        assert isinstance(model.loss, SoftmaxSum)
        self.model, self.loss = model, model.loss
        self.s, self.m, self.y = self.loss.slopes, self.loss.masses[:, None], self.loss.targets
        self.prices = model.kappa / (model.factors * self.loss.weights)  # c/α, which the residual's norm meets
        self.shifting = model.has_bias and not model.bias_penalty and bool(np.ptp(self.s) == 0)
        self.living = np.ones(model.size, dtype=bool)
        self.r, self.level = np.ones(model.size), np.zeros(model.size)

    def residuals(self, p: Array) -> Array:
        """Return ``s ⊙ (y − m p)``, (K, K)."""
        return np.asarray(self.s * (self.y - self.m * p))

    def lengths(self, p: Array) -> Array:
        """Return ‖x‖, (K,)."""
        return np.asarray(np.where(self.living, self.r * np.linalg.norm(self.residuals(p), axis=1), 0.0))

    def slope(self, p: Array) -> Array:
        """Return the gradient of the loss in the bias, (K,)."""
        return np.asarray(-self.loss.weights @ self.residuals(p))

    def solved(self, b: Array) -> tuple[float, Array]:
        """Return the least objective for this bias, and the probabilities there, (K, K)."""
        base = self.loss.shifts + self.s * b
        p = np.exp(base - base.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        self.living = np.linalg.norm(self.residuals(p), axis=1) > self.prices
        alive = np.flatnonzero(self.living)
        if alive.size:
            p[alive] = self._rooted(base[alive], alive)
        x = np.where(self.living, self.r, 0.0)[:, None] * self.residuals(p)
        size = self.loss.weights * self.prices @ np.linalg.norm(x, axis=1)
        return float(self.loss.evaluate(x + b)[0] + size + 0.5 * self.model.bias_penalty * (b @ b)), p

    def _rooted(self, base: Array, alive: Array) -> Array:
        """Return the probabilities of the living classes, and keep their r: a bracketed Newton method in log r."""
        y, m, price = self.y[alive], self.m[alive], self.prices[alive]
        low, high, tau = np.full(alive.size, -70.0), np.full(alive.size, 70.0), np.log(self.r[alive])
        level = self.level[alive]
        for _ in range(MOST_STEPS):
            pull = np.exp(tau)[:, None] * self.s**2
            level, w, p = _levelled(base + pull * y + np.log(pull * m), pull * m, level)
            left = self.s * (y - m * p)
            norm = np.linalg.norm(left, axis=1)
            off = np.log(norm / price)
            low, high = np.where(off > 0, tau, low), np.where(off > 0, high, tau)
            # p along the roots of the sum: its own change, less that of Z which keeps the sum
            share, moved = p / (1 + w), p * (pull * y - w) / (1 + w)
            moved -= share * (moved.sum(axis=1) / share.sum(axis=1))[:, None]
            steep = -(left * self.s * m * moved).sum(axis=1) / norm**2
            fresh = tau - off / np.where(steep < 0, steep, -1.0)
            fresh = np.where((fresh > low) & (fresh < high), fresh, 0.5 * (low + high))
            if np.abs(fresh - tau).max() <= 1e-14 * (1 + np.abs(tau).max()) or np.abs(off).max() <= 4e-16:
                break
            tau = fresh
        self.r[alive], self.level[alive] = np.exp(tau), level
        return p

    def bias_hessian(self, p: Array) -> Array:
        """Return the Hessian in the bias of the least loss and penalty, (K, K)."""
        alive, weights = self.living, self.loss.weights * self.m[:, 0]
        dead = p[~alive] * self.s
        total = np.diag(weights[~alive] @ (dead * self.s)) - dead.T @ (weights[~alive, None] * dead)
        p, left = p[alive], self.residuals(p)[alive]
        unit = left / np.linalg.norm(left, axis=1, keepdims=True)
        gamma = (self.loss.weights / self.r)[alive][:, None]  # c/‖x‖
        first, second = np.sqrt(weights[alive])[:, None] * p * self.s, np.sqrt(gamma) * unit
        bent = weights[alive, None] * p * self.s**2
        T = 1 / (bent + gamma)
        # (I − Bᵀ T B)⁻¹, 2×2 a class, for B of the columns first and second
        a, d = 1 - (T * first**2).sum(axis=1), 1 - (T * second**2).sum(axis=1)
        c = -(T * first * second).sum(axis=1)
        det = np.maximum(a * d - c**2, TINY)
        one, two = (gamma * (T * B - unit * (unit * T * B).sum(axis=1)[:, None]) for B in (first, second))
        t = T * unit
        total += np.diag((gamma * bent * T).sum(axis=0))
        total -= unit.T @ ((gamma + gamma**2 * (unit * t).sum(axis=1)[:, None]) * unit)
        mixed = unit.T @ (gamma**2 * t) - one.T @ ((-c / det)[:, None] * two)
        total += mixed + mixed.T
        return np.asarray(total - one.T @ ((d / det)[:, None] * one) - two.T @ ((a / det)[:, None] * two))


def _levelled(x: Array, scale: Array, level: Array) -> tuple[Array, Array, Array]:
    """Return ``log Z`` (n,) with ``Σ_j W(e^{x_j} / Z) / scale_j = 1``, and W and its shares there, (n, K)."""
    low, high, w = np.full(len(x), -np.inf), np.full(len(x), np.inf), None
    for _ in range(MOST_STEPS):
        w = lambert_exp(x - level[:, None], w)
        p = w / scale
        total = p.sum(axis=1)
        off = np.log(total)
        low, high = np.where(off > 0, level, low), np.where(off > 0, high, level)
        fresh = level + off * total / (p / (1 + w)).sum(axis=1)
        # where Newton's step leaves the bracket: a step of slope 1, which never passes the root, or half the bracket
        half = np.where(np.isfinite(high - low), 0.5 * (low + high), level + off)
        fresh = np.where((fresh > low) & (fresh < high), fresh, half)
        if np.abs(off).max() <= 1e-15 or np.abs(fresh - level).max() <= 4e-16 * (1 + np.abs(level).max()):
            break
        level = fresh
    return level, w, p / total[:, None]


def lambert_exp(x: Array, start: Array | None = None) -> Array:
    """Return ``W(e^x)``: the root w of ``w + log w = x``, by Newton's method in ``log w``, whose equation is convex.

    Examples
    --------
    >>> lambert_exp(np.array([1.0, -800.0, 1e6])).round(6).tolist()
    [1.0, 0.0, 999986.184503]
    """
    t = np.where(x > 1, np.log(np.maximum(x, 1.0)), x) if start is None else np.log(np.maximum(start, TINY))
    for _ in range(MOST_STEPS):
        w = np.exp(np.minimum(t, 700.0))
        step = (w + t - x) / (1 + w)
        t = t - step
        if np.abs(step).max(initial=0.0) <= 1e-9:  # whose square is rounding
            break
    return np.asarray(np.exp(t))
