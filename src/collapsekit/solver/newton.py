r"""Local descent in balanced variables: a trust-region Newton method on the free variables, bounds by projection.

The Hessian applied to ``(dU, dV, db)`` costs a few K×K products,

.. math:: dZ = f \odot (V\,dU^\top + dV\,U^\top) + \mathbf 1\, db^\top, \quad
          dG = \nabla^2 L\, dZ, \quad
          (dG^\top_f V + G_f^\top dV + \kappa\, dU,\; dG_f U + G_f dU + \kappa\, dV,\; \textstyle\sum_k dG_k + \lambda_b db)

with ``G_f = f ⊙ G``, so that no matrix of the size of the variables is ever formed.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from collapsekit.solver.model import Balanced, Point
from collapsekit.validation import Array

Mask = NDArray[np.bool_]
ROUNDING = 4e-16


@dataclass
class Progress:
    """Steps taken and allowed, the time by which to end, why a search ended early, and the last point reached."""

    steps: int
    deadline: float = np.inf
    taken: int = 0
    ended: str = ""
    point: Point | None = None

    def spent(self) -> bool:
        """Whether to end now."""
        if self.taken >= self.steps:
            self.ended = f"step limit of {self.steps} reached"
        elif time.monotonic() > self.deadline:
            self.ended = "time limit reached"
        return bool(self.ended)


class Local:
    """A point with everything that a Newton step needs; moves in place of the point make new ones."""

    def __init__(self, model: Balanced, point: Point) -> None:
        self.model, self.point = model, point
        loss, gradient, self._state = model.loss.evaluate(model.logits(point))
        self.value = loss + model.penalty(point)
        self.slopes = gradient
        self.scaled = model.factors[:, None] * gradient
        self._V = point.V
        db = gradient.sum(axis=0) + model.bias_penalty * point.b if model.has_bias else np.zeros(model.size)
        dU = self.scaled.T @ point.V + model.kappa * point.U
        dV = self.scaled @ point.U + model.kappa * point.V
        self.gradient = pack(dU, dV, db)

    @property
    def free(self) -> Mask:
        """Which entries of the packed variables may move: all but V at its bound with the gradient pointing out."""
        U, V, b = self.point.U, self.point.V, self.point.b
        if self.model.problem.relu:
            inner = (V > 0) | (unpack(self.gradient, V.shape)[1] < 0)
        else:
            inner = np.ones(V.shape, dtype=bool)
        return np.concatenate([np.ones(U.size, dtype=bool), inner.ravel(), np.full(b.size, self.model.has_bias)])

    @property
    def stationarity(self) -> float:
        """Norm of the projected gradient, relative to that of the penalty's."""
        size = np.sqrt(np.vdot(self.point.U, self.point.U) + np.vdot(self.point.V, self.point.V))
        return float(np.linalg.norm(self.projected_gradient()) / (self.model.kappa * max(1.0, size)))

    def projected_gradient(self) -> Array:
        """Return the gradient, 0 where a bound holds against it."""
        return np.where(self.free, self.gradient, 0.0)

    def curve(self, moved: Array) -> Array:
        """Return the Hessian times a packed change, (…, n) for (…, n)."""
        model, point = self.model, self.point
        dU, dV, db = unpack(moved, point.V.shape)
        f = model.factors[:, None]
        dZ = f * (point.V @ dU.swapaxes(-1, -2) + dV @ point.U.T) + db[..., None, :]
        dG = model.loss.curvature(self._state, dZ)
        bent = f * dG
        return pack(
            bent.swapaxes(-1, -2) @ point.V + self.scaled.T @ dV + model.kappa * dU,
            bent @ point.U + self.scaled @ dU + model.kappa * dV,
            dG.sum(axis=-2) + model.bias_penalty * db if model.has_bias else np.zeros_like(db),
        )


def pack(U: Array, V: Array, b: Array) -> Array:
    """Return U, V and b as one vector, (…, n)."""
    shape = U.shape[:-2]
    return np.concatenate([U.reshape(*shape, -1), V.reshape(*shape, -1), b], axis=-1)


def unpack(x: Array, shape: tuple[int, ...]) -> tuple[Array, Array, Array]:
    """Return U, V and b of one vector; the inverse of :func:`pack`."""
    size = shape[0] * shape[1]
    lead = x.shape[:-1]
    return (
        x[..., :size].reshape(*lead, *shape),
        x[..., size : 2 * size].reshape(*lead, *shape),
        x[..., 2 * size :],
    )


def descend(model: Balanced, point: Point, goal: float, progress: Progress) -> Local:
    """Return a stationary point below `point`: stationarity at most `goal`, or as small as rounding allows.

    Each step minimises the quadratic model on the free variables within a trust region by preconditioned conjugate
    gradients (Steihaug), negative curvature being followed to the region's edge, and is projected onto the bounds.
    """
    here, stalled = Local(model, point), 0
    radius = max(1.0, float(np.linalg.norm(np.sqrt(_metric(here)) * pack(point.U, point.V, point.b))))
    while here.stationarity > goal and stalled < 4 and not progress.spent():
        progress.taken += 1
        metric = _metric(here)
        step, edge = _steihaug(here, metric, radius)
        moved = _moved(model, here.point, step)
        actual = pack(moved.U - here.point.U, moved.V - here.point.V, moved.b - here.point.b)
        promised = -(here.gradient @ actual + 0.5 * actual @ here.curve(actual))
        there = Local(model, moved)
        gained, noise = here.value - there.value, ROUNDING * (abs(here.value) + 1)
        length = float(np.sqrt(actual @ (metric * actual)))
        if not np.isfinite(there.value) or (gained < 0.05 * promised and gained < -noise) or promised <= 0:
            radius, good = 0.25 * min(length, radius), False
        else:
            good = gained > 0.05 * promised or there.stationarity < here.stationarity
            if good and edge and gained > 0.5 * promised:
                radius = 2.5 * max(radius, length)
            elif gained < 0.05 * promised and promised > noise:
                radius = 0.5 * length
        small = promised <= noise
        if good and (not small or there.stationarity < here.stationarity):
            stalled = stalled + 1 if small and there.stationarity > 0.5 * here.stationarity else 0
            here = there
            progress.point = here.point
        else:
            stalled += 1 if small else 0
            stalled += 4 if radius < 1e-14 else 0
    return here


def _moved(model: Balanced, point: Point, step: Array) -> Point:
    dU, dV, db = unpack(step, point.V.shape)
    V = point.V + dV
    return Point(point.U + dU, np.maximum(V, 0.0) if model.problem.relu else V, point.b + db)


def _metric(here: Local) -> Array:
    """Return a positive diagonal near that of the Hessian, packed: the loss's own curvature and the penalty's."""
    model, point = here.model, here.point
    kappa, diagonal = model.kappa, model.loss.diagonal(here._state)
    squares = (model.factors**2)[:, None] * diagonal
    db = diagonal.sum(axis=0) + model.bias_penalty + 1e-300 if model.has_bias else np.ones(model.size)
    return pack(kappa + squares.T @ point.V**2, kappa + squares @ point.U**2, db)


def _steihaug(here: Local, metric: Array, radius: float) -> tuple[Array, bool]:
    """Return an approximate minimiser of the quadratic model within the radius, and whether it lies on its edge."""
    free = here.free
    gradient = np.where(free, here.gradient, 0.0)
    inverse = np.where(free, 1.0 / metric, 0.0)
    step, residual = np.zeros_like(gradient), -gradient
    scaled = inverse * residual
    direction, energy = scaled.copy(), float(residual @ scaled)
    first, inside = energy, 0.0
    wanted = first * min(0.1, np.sqrt(here.stationarity)) ** 2
    for _ in range(min(2 * int(free.sum()) + 10, 400)):
        if energy <= wanted or energy <= 1e-30 * first:
            break
        bent = np.where(free, here.curve(direction), 0.0)
        curvature = float(direction @ bent)
        length = float(direction @ (metric * direction))
        mixed = float(step @ (metric * direction))
        far = energy / curvature if curvature > 1e-14 * length else np.inf
        if not np.isfinite(far) or inside + 2 * far * mixed + far**2 * length >= radius**2:
            root = np.sqrt(mixed**2 + length * (radius**2 - inside))
            return step + (root - mixed) / length * direction, True
        step = step + far * direction
        inside = float(step @ (metric * step))
        residual = residual - far * bent
        scaled = inverse * residual
        fresh = float(residual @ scaled)
        direction, energy = scaled + fresh / energy * direction, fresh
    return step, False
