r"""Local descent in balanced variables: a trust-region Newton method on the free variables, bounds by projection.

The Hessian applied to ``(dU, dV, db)`` costs a few K×K products,

.. math:: dZ = f \odot (V\,dU^\top + dV\,U^\top) + \mathbf 1\, db^\top, \quad
          dG = \nabla^2 L\, dZ, \quad
          (dG^\top_f V + G_f^\top dV + \kappa\, dU,\; dG_f U + G_f dU + \kappa\, dV,\;
          \textstyle\sum_k dG_k + \lambda_b db)

with ``G_f = f ⊙ G``, so that no matrix of the size of the variables is ever formed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from collapsekit.solver.model import Balanced, Point
from collapsekit.solver.progress import Progress
from collapsekit.validation import Array

Mask = NDArray[np.bool_]
ROUNDING = 4e-16
"""Twice the unit of rounding, relative: falls of the objective below this are noise."""
MOST_STEPS = 500
"""Steps of one descent: tens are usual, and a descent that needs more is taken up again after the next escape."""
SMALL = 32
"""Up to so many classes a Hessian product costs next to nothing, and accurate steps are the quickest way."""
FEW = 4
"""Free entries of V a class up to which products are sparse: near the frame there is one, and beyond a few dense
products are quicker."""


def effort(size: int) -> tuple[float, int, int]:
    """Return how well a step is solved for K classes; with many, steps along manifolds of equivalent optima cost most.

    The shift of the Hessian, in units of its diagonal, for a stationarity of 1 or more and in proportion below;
    products of one run of conjugate gradients; and such runs, one a face, in one step.
    """
    # measured: with these the steps to a gap of 1e-10 cost the least time at 10, 100 and 1,000 classes
    return (0.1, 400, 12) if size <= SMALL else (10.0, 60, 5)


class Local:
    """A point with everything that a Newton step needs; moves in place of the point make new ones."""

    def __init__(self, model: Balanced, point: Point, within: Mask | None = None) -> None:
        self.model, self.point, self.within = model, point, within
        loss, self.slopes, self.state = model.loss.evaluate(model.logits(point))
        self.value = loss + model.penalty(point)
        self.scaled = model.factors[:, None] * self.slopes
        db = self.slopes.sum(axis=0) + model.bias_penalty * point.b if model.has_bias else np.zeros(model.size)
        dU = self.scaled.T @ point.V + model.kappa * point.U
        dV = self.scaled @ point.U + model.kappa * point.V
        self.gradient = pack(dU, dV, db)

    @property
    def free(self) -> Mask:
        """Which entries of the packed variables may move: all but V at its bound with the gradient pointing out."""
        U, V, b = self.point.U, self.point.V, self.point.b
        inner = (V > 0) | (unpack(self.gradient, V.shape)[1] < 0) | (not self.model.problem.relu)
        inner = inner if self.within is None else inner & self.within
        return np.concatenate([np.ones(U.size, dtype=bool), inner.ravel(), np.full(b.size, self.model.has_bias)])

    @property
    def stationarity(self) -> float:
        """Norm of the gradient, 0 where a bound holds against it, relative to that of the penalty's."""
        size = np.sqrt(np.vdot(self.point.U, self.point.U) + np.vdot(self.point.V, self.point.V))
        return float(np.linalg.norm(np.where(self.free, self.gradient, 0.0)) / (self.model.kappa * max(1.0, size)))


class Face:
    """The variables that a step may move, as one short vector: U, the free entries of V, and b if there is a bias.

    With few free entries a Hessian product needs no product of K×K matrices: V is sparse and only its free entries'
    share of ``G_f U`` is computed.
    """

    def __init__(self, here: Local) -> None:
        self.here, point, self.biases = here, here.point, here.model.size if here.model.has_bias else 0
        self.mask = unpack(here.free.astype(np.float64), point.V.shape)[1] > 0
        self.rows, self.columns = np.nonzero(self.mask)
        self.ends = np.cumsum([point.U.size, self.rows.size])
        self.few = point.V.shape[0] > SMALL and self.rows.size <= FEW * point.V.shape[0]
        self._V: Any = point.V
        if self.few:
            from scipy.sparse import csr_array

            self._V = csr_array(point.V)
            self._U = np.ascontiguousarray(point.U.T)[self.columns]  # (m, K)
        floor = -point.V[self.mask] if here.model.problem.relu else np.full(self.rows.size, -np.inf)
        self.lower = np.concatenate([np.full(self.ends[0], -np.inf), floor, np.full(self.biases, -np.inf)])

    def reduced(self, U: Array, V: Array, b: Array) -> Array:
        """Return arrays like U, V and b as a vector of the face."""
        return np.concatenate([U.ravel(), V[self.mask], b[: self.biases]])

    def split(self, x: Array) -> tuple[Array, Array, Array]:
        """Return U (K, r), the free entries of V (m,) and b (K,)."""
        first, second = self.ends
        b = x[second:] if self.biases else np.zeros(self.here.model.size)
        return x[:first].reshape(self.here.point.U.shape), x[first:second], b

    def moved(self, step: Array) -> Point:
        """Return the point after a step."""
        dU, free, db = self.split(step)
        point, V = self.here.point, self.here.point.V.copy()
        V[self.mask] += free
        return Point(point.U + dU, np.maximum(V, 0.0) if self.here.model.problem.relu else V, point.b + db)

    def curve(self, step: Array) -> Array:
        """Return the Hessian times a step, both vectors of the face."""
        here, model = self.here, self.here.model
        dU, free, db = self.split(step)
        dV = self._scattered(free)
        dZ = model.factors[:, None] * (self._V @ dU.T + dV @ here.point.U.T) + db
        dG = model.loss.curvature(here.state, dZ)
        bent = model.factors[:, None] * dG
        U = (self._V.T @ bent + dV.T @ here.scaled).T + model.kappa * dU
        if self.few:
            V = np.einsum("ij,ij->i", bent[self.rows], self._U)
            V += np.einsum("ij,ij->i", here.scaled[self.rows], np.ascontiguousarray(dU.T)[self.columns])
        else:
            V = (bent @ here.point.U + here.scaled @ dU)[self.mask]
        b = dG.sum(axis=0) + model.bias_penalty * db if model.has_bias else db[:0]
        return np.concatenate([U.ravel(), V + model.kappa * free, b])

    def metric(self) -> Array:
        """Return a positive diagonal near that of the Hessian: the loss's own curvature and the penalty's."""
        model, point = self.here.model, self.here.point
        diagonal = model.loss.diagonal(self.here.state)
        squares = (model.factors**2)[:, None] * diagonal
        V = np.einsum("ij,ij->i", squares[self.rows], self._U**2) if self.few else (squares @ point.U**2)[self.mask]
        U = (self._V.T**2 if not self.few else self._V.T.power(2)) @ squares
        b = diagonal.sum(axis=0) + model.bias_penalty + 1e-300
        return np.concatenate([(model.kappa + U.T).ravel(), model.kappa + V, b[: self.biases]])

    def _scattered(self, free: Array) -> Any:
        if self.few:
            from scipy.sparse import csr_array

            return csr_array((free, (self.rows, self.columns)), shape=self.here.point.V.shape)
        dV = np.zeros(self.here.point.V.shape)
        dV[self.mask] = free
        return dV


def pack(U: Array, V: Array, b: Array) -> Array:
    """Return U, V and b as one vector."""
    return np.concatenate([U.ravel(), V.ravel(), b])


def unpack(x: Array, shape: tuple[int, ...]) -> tuple[Array, Array, Array]:
    """Return U, V (of this shape) and b of one vector; the inverse of :func:`pack`."""
    rows, width = shape
    size = (x.size - rows * width) // (width + 1)  # classes: a row of U and an entry of b each
    U, V, b = np.split(x, [size * width, (size + rows) * width])
    return U.reshape(size, width), V.reshape(shape), b


def descend(model: Balanced, point: Point, goal: float, progress: Progress, within: Mask | None = None) -> Local:
    """Return a stationary point below `point`: stationarity at most `goal`, or as small as rounding allows.

    Entries of V outside `within`, (K, r), are 0 and stay there.
    """
    here, stalled, last, radius = Local(model, point, within), 0, progress.taken + MOST_STEPS, -1.0
    # five steps without gain or calm, all within rounding: nothing is left to find
    while here.stationarity > goal and stalled < 5 and progress.taken < last and not progress.spent():
        progress.taken += 1
        face = Face(here)
        metric = face.metric()
        if radius < 0:
            size = face.reduced(point.U, point.V, point.b)
            radius = max(1.0, float(np.sqrt(size @ (metric * size))))
        step, promised, edge = _trial(face, metric, radius)
        there = Local(model, face.moved(step), within)
        gained, noise = here.value - there.value, ROUNDING * (abs(here.value) + 1)
        length = float(np.sqrt(step @ (metric * step)))
        small, calmer = promised <= noise, there.stationarity < 0.9 * here.stationarity
        # the trust region's usual constants (Lin and Moré): shrink below a tenth of the promise, grow above a half
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


def _trial(face: Face, metric: Array, radius: float) -> tuple[Array, float, bool]:
    """Return a step within bounds and trust region, the fall of the quadratic model, and whether it is at the edge.

    Conjugate gradients on the free entries, a projected search where they leave the orthant, and again on the face
    that is left (Lin and Moré, 1999).
    """
    here, (_, _, faces) = face.here, effort(face.here.model.size)
    gradient, free = face.reduced(*unpack(here.gradient, here.point.V.shape)), np.ones(metric.size, dtype=bool)
    step, bent, edge, fall, first = np.zeros_like(metric), np.zeros_like(metric), False, 0.0, None
    for _ in range(faces):
        residual = np.where(free, -(gradient + bent), 0.0)
        energy = float(residual @ (residual / metric))
        first = energy if first is None else first
        # the residual falls with the root of the gradient: superlinear convergence; energy is its square
        wanted = min(0.1, np.sqrt(here.stationarity)) ** 2 * first
        if energy <= wanted or energy == 0.0:
            break
        move, edge = _steihaug(face, metric, (free, residual, step), (radius, wanted))
        blocked = free & (step <= face.lower) & (move < 0)
        if blocked.any():  # freed by their gradient, but the others' moves turn them back
            free = free & ~blocked
            continue
        found = _searched(face, (gradient, residual), (step, move), fall)
        if found is None:
            break
        step, bent, fall, fits = found
        if fits or edge:
            break
        free = free & (step > face.lower)
    return step, fall, edge


def _searched(
    face: Face, slopes: tuple[Array, Array], line: tuple[Array, Array], fall: float
) -> tuple[Array, Array, float, bool] | None:
    """Search along a move, projected onto the bounds, for a deeper fall of the quadratic model; None if there is none.

    Returns the step, the Hessian times it, the fall, and whether no bound was hit.
    """
    (gradient, residual), (step, move), size = slopes, line, 1.0
    for _ in range(12):  # down to 0.4^11 = 4e-5 of the move, of which a hundredth of the promised fall is asked
        reach = step + size * move
        fits = bool((reach >= face.lower).all())
        trial = reach if fits else np.maximum(reach, face.lower)
        turned = face.curve(trial)
        deeper = -float(trial @ gradient + 0.5 * trial @ turned)
        if deeper > fall + 1e-2 * abs(float(residual @ (trial - step))) or (fits and deeper > fall):
            return trial, turned, deeper, fits
        size *= 0.4
    return None


def _steihaug(
    face: Face, metric: Array, start: tuple[Mask, Array, Array], ends: tuple[float, float]
) -> tuple[Array, bool]:
    """Minimise the quadratic model by preconditioned conjugate gradients, within the trust region.

    `start` holds the free entries, the residual (minus the model's gradient) and the step so far; `ends` the radius and
    the residual energy to reach. Returns the further step and whether it ends at the region's edge, to which negative
    curvature is followed. Optimal features with one Gram matrix form manifolds, along which the Hessian vanishes; a
    shift of the size of the gradient keeps the steps along them short and the convergence quadratic.
    """
    (free, residual, base), (radius, wanted) = start, ends
    shift, products, _ = effort(face.here.model.size)
    inverse, shift = np.where(free, 1.0 / metric, 0.0), shift * min(1.0, face.here.stationarity)
    step = np.zeros_like(residual)
    scaled = inverse * residual
    direction, energy = scaled.copy(), float(residual @ scaled)
    first, inside = energy, float(base @ (metric * base))
    for _ in range(min(2 * int(free.sum()) + 10, products)):
        if energy <= wanted or energy <= 1e-28 * first:  # the square of 1e-14: the residual is rounding
            break
        weighed = metric * direction
        bent = np.where(free, face.curve(direction) + shift * weighed, 0.0)
        curvature = float(direction @ bent)
        length, mixed = float(direction @ weighed), float((base + step) @ weighed)
        # curvature within rounding of 0 counts as negative
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
