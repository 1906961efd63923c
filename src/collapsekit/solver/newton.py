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
MOST_STEPS = 500
"""Steps of one descent."""
SMALL = 32
"""Up to so many classes a Hessian product costs next to nothing, and accurate steps are the quickest way."""


@dataclass(frozen=True)
class Effort:
    """How well a step is solved: the shift of the Hessian, in units of its diagonal, for a stationarity of 1 or more
    and in proportion below; products of one run of conjugate gradients; and such runs, one a face, in one step.
    """

    shift: float
    products: int
    faces: int


def effort(size: int) -> Effort:
    """Return the effort for K classes; with many, steps along manifolds of equivalent optima cost most."""
    return Effort(0.1, 400, 12) if size <= SMALL else Effort(10.0, 60, 5)


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
    """Return a stationary point below `point`: stationarity at most `goal`, or as small as rounding allows."""
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is not accepted
        return _descend(model, point, goal, progress)


def _descend(model: Balanced, point: Point, goal: float, progress: Progress) -> Local:
    here, stalled, last = Local(model, point), 0, progress.taken + MOST_STEPS
    radius = max(1.0, float(np.linalg.norm(np.sqrt(_metric(here)) * pack(point.U, point.V, point.b))))
    while here.stationarity > goal and stalled < 5 and progress.taken < last and not progress.spent():
        progress.taken += 1
        step, promised, edge = _trial(here, radius)
        there = Local(model, _moved(model, here.point, step))
        gained, noise = here.value - there.value, ROUNDING * (abs(here.value) + 1)
        length = float(np.sqrt(step @ (_metric(here) * step)))
        small, calmer = promised <= noise, there.stationarity < 0.9 * here.stationarity
        if not np.isfinite(there.value) or gained < 0.1 * promised or promised == 0.0:
            radius = 0.25 * (min(length, radius) if length else radius)
        elif edge and gained > 0.5 * promised:
            radius = 2.5 * radius
        if np.isfinite(there.value) and ((gained > 0.01 * promised and not small) or (calmer and gained > -noise)):
            here = there
            progress.point = here.point
            stalled = 0 if calmer or not small else stalled + 1
            if small:
                radius = max(radius, 2 * length)
        else:
            stalled += 1 if small else 0
        if radius == 0.0:
            break
    return here


def _trial(here: Local, radius: float) -> tuple[Array, float, bool]:
    """Return a step within bounds and trust region, the fall of the quadratic model, and whether it is at the edge.

    Conjugate gradients on the free entries, a projected search where they leave the orthant, and again on the face
    that is left (Lin and Moré, 1999).
    """
    metric, relu = _metric(here), here.model.problem.relu
    free, V = here.free, np.full(here.gradient.size, np.inf)
    if relu:
        size = here.point.V.size
        V[size : 2 * size] = here.point.V.ravel()
    step, bent, edge = np.zeros_like(V), np.zeros_like(V), False
    fall, first = 0.0, None
    for _ in range(effort(here.model.size).faces):
        residual = np.where(free, -(here.gradient + bent), 0.0)
        energy = float(residual @ (residual / metric))
        first = energy if first is None else first
        wanted = min(0.1, np.sqrt(here.stationarity)) ** 2 * first
        if energy <= wanted or energy == 0.0:
            break
        move, edge = _steihaug(here, metric, (free, residual, step), (radius, wanted))
        blocked = free & (V + step <= 0) & (move < 0)
        if blocked.any():  # freed by their gradient, but the others' moves turn them back
            free = free & ~blocked
            continue
        size, fits = 1.0, False
        for _ in range(12):
            trial = np.maximum(step + size * move, -V)
            turned = here.curve(trial)
            deeper = -float(trial @ here.gradient + 0.5 * trial @ turned)
            fits = bool((step + size * move >= -V).all())
            if deeper > fall + 1e-2 * abs(float(residual @ (trial - step))) or (fits and deeper > fall):
                break
            size *= 0.4
        else:
            break
        step, bent, fall = trial, turned, deeper
        if fits or edge:
            break
        free = free & (V + step > 0)
    return step, fall, edge


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


def _steihaug(
    here: Local, metric: Array, face: tuple[Mask, Array, Array], ends: tuple[float, float]
) -> tuple[Array, bool]:
    """Minimise the quadratic model on a face by preconditioned conjugate gradients, within the trust region.

    `face` holds the free entries, the residual (minus the model's gradient) and the step so far; `ends` the radius and
    the residual energy to reach. Returns the further step and whether it ends at the region's edge, to which negative
    curvature is followed. Optimal features with one Gram matrix form manifolds, along which the Hessian vanishes; a
    shift of the size of the gradient keeps the steps along them short and the convergence quadratic.
    """
    (free, residual, base), (radius, wanted) = face, ends
    most = effort(here.model.size)
    inverse, shift = np.where(free, 1.0 / metric, 0.0), most.shift * min(1.0, here.stationarity)
    step = np.zeros_like(residual)
    scaled = inverse * residual
    direction, energy = scaled.copy(), float(residual @ scaled)
    first = energy
    inside = float(base @ (metric * base))
    for _ in range(min(2 * int(free.sum()) + 10, most.products)):
        if energy <= wanted or energy <= 1e-28 * first:
            break
        weighed = metric * direction
        bent = np.where(free, here.curve(direction) + shift * weighed, 0.0)
        curvature = float(direction @ bent)
        length, mixed = float(direction @ weighed), float((base + step) @ weighed)
        far = energy / curvature if curvature > 1e-14 * length else np.inf
        if not np.isfinite(far) or inside + 2 * far * mixed + far**2 * length >= radius**2:
            root = np.sqrt(mixed**2 + length * max(radius**2 - inside, 0.0))
            return step + (root - mixed) / length * direction, True
        step = step + far * direction
        inside += 2 * far * mixed + far**2 * length
        residual = residual - far * bent
        scaled = inverse * residual
        fresh = float(residual @ scaled)
        direction, energy = scaled + fresh / energy * direction, fresh
    return step, False
