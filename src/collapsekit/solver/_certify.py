r"""certify: how far any feasible point is from the global optimum, by Fenchel duality.

For any P with ``Ω°(−(f ⊙ P)ᵀ) ≤ κ`` (in the units of :mod:`collapsekit.solver.model`), and ``c = Σ_k P_k``,

.. math:: \min \ \ge\ -L^*(P) - \begin{cases} 0 & \text{no bias} \\
          0 \text{ if } c = 0 \text{, else } \infty & \text{free bias} \\
          \lVert c\rVert^2/(2\lambda_b) & \text{penalised bias.}\end{cases}

P is the gradient of the loss at the point, its bias first re-optimised, mended so that ``c = 0`` where the bias is
free, and scaled down by ``t = min(1, κ/ρ)`` with an upper bound ρ on the polar. Nothing here assumes optimality: a
poor point gives a poor bound, never a wrong one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from collapsekit.errors import CollapseError
from collapsekit.losses.sums import EPS
from collapsekit.problem import UFM
from collapsekit.solver.model import Balanced, Point
from collapsekit.solver.newton import Local
from collapsekit.solver.polar import upper_bound
from collapsekit.validation import Array, numeric, shorten

NO_CERTIFICATE = "none (the focal loss is not convex)"
LONGEST_STEP = 1e4
"""Of Newton's method for the bias, in logits: saturated losses have no curvature."""
HINGE_SMOOTHINGS = (0.3, 0.03, 1e-3, 1e-5, 1e-7)
"""Any gives a valid bound; which gives the best depends on the margins, and the last is below a gap of 1e-6."""


@dataclass(frozen=True, eq=False)
class Certificate:
    """What is known about a feasible point of a :class:`collapsekit.UFM`.

    Attributes
    ----------
    objective : float
        Its value.
    lower_bound : float
        No feasible point of any dimension lies below; −∞ without a certificate.
    gap : float
        ``(objective − lower_bound) / objective``: the point is within this share of the global optimum.
    stationarity : float
        Norm of the projected gradient over that of the penalty's, in balanced variables: 0 at a stationary point.
    polar : float
        Upper bound on ``Ω°(Y)/κ`` at the point's gradient, its bias re-optimised: 1 at a global optimum, above 1
        where another coordinate could lower the objective (or the bound is loose).
    kind : str
        Which bound on the polar was the tightest.
    """

    objective: float
    lower_bound: float
    stationarity: float
    polar: float
    kind: str

    @property
    def gap(self) -> float:
        """The point is within this share of the global optimum."""
        return (self.objective - self.lower_bound) / max(abs(self.objective), 1e-300)

    def to_dict(self) -> dict[str, Any]:
        """Return the certificate as plain values, with its schema version."""
        values = {key: getattr(self, key) for key in ("objective", "lower_bound", "gap", "stationarity", "polar")}
        return {"schema": 1, "kind": self.kind} | {k: v if np.isfinite(v) else None for k, v in values.items()}

    def __repr__(self) -> str:
        return (
            f"Certificate(objective {self.objective:.8g}, lower bound {self.lower_bound:.8g}, gap {self.gap:.1e}, "
            f"stationarity {self.stationarity:.1e}, polar {self.polar:.6g} by {self.kind})"
        )


@np.errstate(all="ignore")  # what is not finite bounds nothing
def certify(problem: UFM, weights: ArrayLike, features: ArrayLike, bias: ArrayLike | None = None) -> Certificate:
    r"""Bound how far a feasible point is from the global optimum, whatever it came from.

    The class means of a trained network are such a point; its own objective, with samples that scatter around them,
    is larger, so compare that with `lower_bound` too.

    Parameters
    ----------
    problem : UFM
        Any loss, bias and dimension, with or without ReLU.
    weights, features : array_like, shape (K, d)
        Classifier and class features, rows as classes (with types features are (T, d)); d need not be the problem's.
    bias : array_like, shape (K,), optional
        For a problem that has one.

    Returns
    -------
    Certificate

    Raises
    ------
    CollapseError
        If shapes do not fit, numbers are not finite, or features of a ReLU problem are negative.

    References
    ----------
    Derived in docs/global_or_spurious.md; the gauge is that of Bach 2013, the polar that of Haeffele and Vidal 2015.

    Examples
    --------
    >>> import numpy as np
    >>> from collapsekit import UFM, predict, certify
    >>> problem = UFM([200, 100, 50, 50], lambda_w=5e-3, lambda_h=5e-4)
    >>> certify(problem, *predict(problem).weights_and_features()).gap < 1e-12
    True
    >>> round(certify(problem, np.zeros((4, 2)), np.zeros((4, 2))).gap, 4)
    0.8511
    """
    W, H, b = feasible(problem, weights, features, bias)
    models = [Balanced(problem, smoothing) for smoothing in ((1.0,) if problem.loss.smooth else HINGE_SMOOTHINGS)]
    found = [certificate_at(model, model.point(W, H, b)) for model in models]
    best = max(found, key=lambda one: one.lower_bound)
    return replace(best, objective=problem.objective(W, H, None if problem.bias is None else b))


def feasible(
    problem: UFM, weights: ArrayLike, features: ArrayLike, bias: ArrayLike | None
) -> tuple[Array, Array, Array]:
    """Return the point as arrays, checked: shapes, finite, features in the orthant if they leave a ReLU."""
    if not isinstance(problem, UFM):
        raise CollapseError(f"problem={shorten(problem)}: give a UFM(counts, lambda_w, lambda_h)")
    W, H = numeric("weights", weights), numeric("features", features)
    b = np.zeros(problem.num_classes) if bias is None else numeric("bias", bias)
    if not np.isfinite(b).all():
        raise CollapseError("bias: not finite; give finite numbers")
    problem.objective(W, H, bias)  # checks shapes, and that the problem has a bias if one is given
    if problem.relu and H.size and H.min() < 0:
        k, what = int(np.argwhere(H < 0)[0][0]), "class" if problem.types is None else "type"
        raise CollapseError(
            f"features: {what} {k} has {H[k].min():g}, but features leave a ReLU; clip them or build UFM(relu=False)"
        )
    return W, H, b


def certificate_at(model: Balanced, point: Point, target: float = 1e-13, until: float = np.inf) -> Certificate:
    """Return what a point of this model yields; polar bounds are tried until one closes the gap to `target`.

    One that is found by descent stops at the time `until`, by the monotonic clock.


    The polar of the exactly feasible P* is at most that of P plus the Frobenius norm of their distance; forming
    ``A = YᵀY`` errs by at most ``(K + 2) EPS ‖ |Y| ‖² ≤ (K + 2) EPS ‖Y‖₁ ‖Y‖_∞``.
    """
    here, relu, objective = Local(model, point), model.problem.relu, model.unsmoothed(point)
    logits = model.logits(point)
    if model.has_bias and model.problem.loss.convex:
        logits = logits + (optimal_bias(model, logits, point.b) - point.b)
    dual = model.loss.dual(logits, balanced=model.has_bias and not model.bias_penalty)
    if dual is None:
        square = upper_bound(here.scaled @ here.scaled.T, None, relu, np.inf)[0]
        return Certificate(objective, -np.inf, here.stationarity, float(np.sqrt(square)) / model.kappa, NO_CERTIFICATE)
    Y = model.factors[:, None] * dual.gradient
    square, kind = upper_bound(Y @ Y.T, point.V, relu, (model.kappa * (1 + target)) ** 2, until)
    square += (max(Y.shape) + 2) * EPS * float(np.abs(Y).sum(axis=0).max() * np.abs(Y).sum(axis=1).max())
    polar = float(np.sqrt(square) + np.linalg.norm(model.factors[:, None] * dual.error)) / model.kappa
    scale = min(1.0, (1 - 4 * EPS) / max(polar, 1e-300))
    value = dual.value(scale)
    if model.bias_penalty:
        value -= float((dual.drift(scale) ** 2).sum()) * (1 + max(Y.shape) * EPS) / (2 * model.bias_penalty)
    return Certificate(objective, value, here.stationarity, polar, kind)


def optimal_bias(model: Balanced, logits: Array, bias: Array, steps: int = 50) -> Array:
    """Return the bias that is best for these logits (which contain `bias`): Newton's method, convex in K variables."""
    b, base = bias.copy(), logits - bias
    value, gradient, state = model.loss.evaluate(base + b)
    value += float(0.5 * model.bias_penalty * (b @ b))
    for _ in range(steps):  # the slope is a sum of K terms: below 1e-16 of their moduli it is rounding
        slope = gradient.sum(axis=0) + model.bias_penalty * b
        if np.abs(slope).max() <= 1e-16 * np.abs(gradient).sum(axis=0).max():
            break
        hessian = model.loss.bias_hessian(state)
        # a shift, for constants in all entries of a free bias change nothing
        hessian[np.diag_indices(model.size)] += model.bias_penalty + 1e-13 * np.trace(hessian) / model.size + 1e-300
        step = -np.linalg.lstsq(hessian, slope, rcond=1e-13)[0]
        size = min(1.0, LONGEST_STEP / max(float(np.abs(step).max()), 1e-300))
        while True:
            trial = b + size * step
            found, turned, fresh = model.loss.evaluate(base + trial)
            found += float(0.5 * model.bias_penalty * (trial @ trial))
            if found <= value + 1e-15 * abs(value) or size < 1e-10:
                break
            size *= 0.5
        better = np.abs(turned.sum(axis=0) + model.bias_penalty * trial).max() < np.abs(slope).max()
        if found > value or (found >= value - 1e-15 * abs(value) and not better):
            break
        b, value, gradient, state = trial, found, turned, fresh
    return b
