r"""Local descent in balanced variables: a trust-region Newton method on the free variables, bounds by projection.

The Hessian applied to ``(dU, dV, db)`` costs a few K×K products,

.. math:: dZ = f \odot (V\,dU^\top + dV\,U^\top) + \mathbf 1\, db^\top, \quad
          dG = \nabla^2 L\, dZ, \quad
          (dG^\top_f V + G_f^\top dV + \kappa\, dU,\; dG_f U + G_f dU + \kappa\, dV,\;
          \textstyle\sum_k dG_k + \lambda_b db)

with ``G_f = f ⊙ G``, so that no matrix of the size of the variables is ever formed.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from collapsekit.solver.model import Balanced, Point
from collapsekit.solver.progress import Progress
from collapsekit.solver.strips import FEW, Index, pattern
from collapsekit.validation import Array

Mask = NDArray[np.bool_]
ROUNDING = 4e-16
"""Twice the unit of rounding, relative: falls of the objective below this are noise."""
MOST_STEPS = 500
"""Steps of one descent: tens are usual, and a descent that needs more is taken up again after the next escape."""
SMALL = 32
"""Up to so many classes a Hessian product costs next to nothing, and accurate steps are the quickest way."""
PAIRED = 1e-3
"""Stationarity from which on steps know of couplings; before, regions of trust in their metric reach too far."""
EARLY, MANY = 1e-4, 200
"""Stationarity above which, and classes beyond which, steps are solved roughly: faces still change a lot."""
NEARLY = 0.999
"""Largest coupling of a pair of variables in the metric, relative: at 1 the pair would have a direction of size 0.
With 0.9 steps of 1,000 classes cost 2.5 times the products at decay 0.02, and somewhat fewer at 5e-4."""


def effort(size: int, stationarity: float, sparse: bool = False) -> tuple[float, int, int]:
    """Return how well a step is solved for K classes; with many, steps along manifolds of equivalent optima cost most.

    There are none in the frame, nor with a few coordinates more (`sparse`).

    The shift of the Hessian, in units of its diagonal, for a stationarity of 1 or more and in proportion below;
    products of one run of conjugate gradients; and such runs, one a face, in one step.
    """
    # measured: with these the steps to a gap of 1e-10 cost the least time at 10, 100 and 1,000 classes
    if size <= SMALL or sparse:
        return 0.1, 400, 12
    return (10.0, 20, 3) if stationarity > EARLY and size > MANY else (10.0, 60, 5)


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
    """The variables that a step may move, as one short vector: Uᵀ, the free entries of V, and b if there is a bias."""

    def __init__(self, here: Local) -> None:
        self.here, point, self.biases = here, here.point, here.model.size if here.model.has_bias else 0
        self.mask = unpack(here.free.astype(np.float64), point.V.shape)[1] > 0
        self.pattern = pattern(self.mask)
        self.ends = np.cumsum([point.U.size, self.pattern.rows.size])
        self.effort = effort(here.model.size, here.stationarity, self.pattern.rows.size <= FEW * here.model.rows)
        self._U, self._V = np.ascontiguousarray(point.U.T), self.pattern.laid(point.V[self.mask])
        floor = -point.V[self.mask] if here.model.problem.relu else np.full(self.pattern.rows.size, -np.inf)
        self.lower = np.concatenate([np.full(self.ends[0], -np.inf), floor, np.full(self.biases, -np.inf)])

    def reduced(self, U: Array, V: Array, b: Array) -> Array:
        """Return arrays like U, V and b as a vector of the face."""
        return np.concatenate([U.T.ravel(), V[self.mask], b[: self.biases]])

    def split(self, x: Array) -> tuple[Array, Array, Array]:
        """Return Uᵀ (r, K), the free entries of V (m,) and b (K,)."""
        first, second = self.ends
        b = x[second:] if self.biases else np.zeros(self.here.model.size)
        return x[:first].reshape(self._U.shape), x[first:second], b

    def moved(self, step: Array) -> Point:
        """Return the point after a step."""
        dU, free, db = self.split(step)
        point, V = self.here.point, self.here.point.V.copy()
        V[self.mask] += free
        return Point(point.U + dU.T, np.maximum(V, 0.0) if self.here.model.problem.relu else V, point.b + db)

    def curve(self, step: Array) -> Array:
        """Return the Hessian times a step, both vectors of the face."""
        here, model, pattern = self.here, self.here.model, self.pattern
        dU, free, db = self.split(step)
        dV = pattern.laid(free)
        dG = model.loss.curvature(here.state, model.factors[:, None] * pattern.times((self._V, dU), (dV, self._U)) + db)
        bent = model.factors[:, None] * dG
        U = pattern.back((self._V, bent), (dV, here.scaled)) + model.kappa * dU
        V = pattern.entries((bent, self._U), (here.scaled, dU)) + model.kappa * free
        b = dG.sum(axis=0) + model.bias_penalty * db if model.has_bias else db[:0]
        return np.concatenate([U.ravel(), V, b])

    def metric(self) -> Metric:
        """Return what is near the Hessian: its diagonal and, between entries of a row that move together, blocks.

        Along a rotation of two coordinates the entry ``v_lk`` and that of class l in ``u_k`` move together, and all
        but the curvature of the loss cancels: a block of two for each. What they do to the target's own logit is of
        rank 1 in each row l.
        """
        here, model, pattern = self.here, self.here.model, self.pattern
        U, V = self._U, here.point.V[self.mask]
        diagonal = model.loss.diagonal(here.state)
        squares = (model.factors**2)[:, None] * diagonal
        by_V = model.kappa + pattern.entries((squares, U**2))
        by_U = model.kappa + pattern.back((pattern.laid(V**2), squares))
        b = diagonal.sum(axis=0) + model.bias_penalty + 1e-300
        whole = np.concatenate([by_U.ravel(), by_V, b[: self.biases]])
        if here.stationarity > PAIRED or model.size <= SMALL:
            return Metric(whole)
        targets = model.loss.labels[pattern.rows]
        first, once = np.unique(pattern.columns * model.size + targets, return_index=True)  # types may share a target
        rows, targets = pattern.rows[once], targets[once]
        outer = V[once], U[pattern.columns[once], targets]
        pairs, w = (first, self.ends[0] + once), squares[rows, targets]
        return Coupled(whole, pairs, here.scaled[rows, targets], (rows, w), outer)


class Metric:
    """A positive diagonal."""

    def __init__(self, diagonal: Array) -> None:
        self.diagonal = diagonal

    def times(self, x: Array) -> Array:
        """Return the product with a vector."""
        return self.diagonal * x

    def inverse(self, free: Mask) -> Callable[[Array], Array]:
        """Return what solves with the matrix on the free entries, and is 0 on the others."""
        inverse = np.where(free, 1.0 / self.diagonal, 0.0)
        return lambda x: inverse * x


class Coupled(Metric):
    """A diagonal, couplings of pairs of entries (`one`, `other`), and a matrix ``w g gᵀ`` on the pairs of each row.

    The diagonal contains that of these matrices of rank 1; all pairs of a row have the same w.
    """

    def __init__(
        self,
        diagonal: Array,
        pairs: tuple[Index, Index],
        cross: Array,
        rows: tuple[Index, Array],
        g: tuple[Array, Array],
    ) -> None:
        super().__init__(diagonal.copy())
        (self.one, self.other), (self.row, self.w), self.g = pairs, rows, g
        for at, part in zip(pairs, g, strict=True):
            self.diagonal[at] -= self.w * part**2
        most = NEARLY * np.sqrt(self.diagonal[self.one] * self.diagonal[self.other])
        self.cross = np.clip(cross, -most, most)

    def times(self, x: Array) -> Array:
        first, second, out = x[self.one], x[self.other], self.diagonal * x
        along = self.w * self._over_rows(self.g[0] * first + self.g[1] * second)
        out[self.one] += self.cross * second + along * self.g[0]
        out[self.other] += self.cross * first + along * self.g[1]
        return out

    def inverse(self, free: Mask) -> Callable[[Array], Array]:
        """By Sherman and Morrison's formula for each row; `one` is always free."""
        one, other, both, alone = self.one, self.other, free[self.other], np.where(free, 1.0 / self.diagonal, 0.0)
        scale = np.where(both, 1.0 / (self.diagonal[one] * self.diagonal[other] - self.cross**2), 0.0)
        a, b, c = (
            np.where(both, scale * self.diagonal[other], alone[one]),
            scale * self.diagonal[one],
            -scale * self.cross,
        )
        g, k = self.g[0], np.where(both, self.g[1], 0.0)
        turned = a * g + c * k, c * g + b * k
        share = self.w / (1 + self.w * self._over_rows(g * turned[0] + k * turned[1]))

        def solve(x: Array) -> Array:
            out, first, second = alone * x, x[one], x[other]
            along = share * self._over_rows(turned[0] * first + turned[1] * second)
            out[one] = a * first + c * second - along * turned[0]
            out[other] = c * first + b * second - along * turned[1]
            return out

        return solve

    def _over_rows(self, x: Array) -> Array:
        """The sum over the pairs of its row, for each pair."""
        return np.asarray(np.bincount(self.row, x)[self.row])


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
    face: Face | None = None
    # five steps without gain or calm, all within rounding: nothing is left to find
    while here.stationarity > goal and stalled < 5 and progress.taken < last and not progress.spent():
        progress.taken += 1
        if face is None or face.here is not here:
            face = Face(here)
            metric = face.metric()
        if radius < 0:
            size = face.reduced(point.U, point.V, point.b)
            radius = max(1.0, float(np.sqrt(size @ metric.times(size))))
        step, promised, edge = _trial(face, metric, radius, progress)
        there = Local(model, face.moved(step), within)
        gained, noise = here.value - there.value, ROUNDING * (abs(here.value) + 1)
        length = float(np.sqrt(step @ metric.times(step)))
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


def _trial(face: Face, metric: Metric, radius: float, progress: Progress) -> tuple[Array, float, bool]:
    """Return a step within bounds and trust region, the fall of the quadratic model, and whether it is at the edge.

    Conjugate gradients on the free entries, a projected search where they leave the orthant, and again on the face
    that is left (Lin and Moré, 1999).
    """
    here, (_, _, faces) = face.here, face.effort
    gradient, free = face.reduced(*unpack(here.gradient, here.point.V.shape)), np.ones(metric.diagonal.size, dtype=bool)
    step, bent, edge, fall, first = np.zeros_like(gradient), np.zeros_like(gradient), False, 0.0, None
    for _ in range(faces):
        residual = np.where(free, -(gradient + bent), 0.0)
        inverse = metric.inverse(free)
        energy = float(residual @ inverse(residual))
        first = energy if first is None else first
        # the residual falls with the root of the gradient: superlinear convergence; energy is its square
        wanted = min(0.1, np.sqrt(here.stationarity)) ** 2 * first
        if energy <= wanted or energy == 0.0:
            break
        move, edge = _steihaug(face, (metric, inverse), (free, residual, step), (radius, wanted), progress)
        blocked = free & (step <= face.lower) & (move < 0)
        if blocked.any():  # freed by their gradient, but the others' moves turn them back
            free = free & ~blocked
            continue
        found = _searched(face, (gradient, residual), (step, move), fall)
        if found is None:
            break
        step, bent, fall, fits = found
        if fits or edge or progress.late:
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
    face: Face,
    scale: tuple[Metric, Callable[[Array], Array]],
    start: tuple[Mask, Array, Array],
    ends: tuple[float, float],
    progress: Progress,
) -> tuple[Array, bool]:
    """Minimise the quadratic model by preconditioned conjugate gradients, within the trust region.

    `start` holds the free entries, the residual (minus the model's gradient) and the step so far; `ends` the radius and
    the residual energy to reach. Returns the further step and whether it ends at the region's edge, to which negative
    curvature is followed. Optimal features with one Gram matrix form manifolds, along which the Hessian vanishes; a
    shift of the size of the gradient keeps the steps along them short and the convergence quadratic.
    """
    (metric, inverse), (free, residual, base), (radius, wanted) = scale, start, ends
    shift, products, _ = face.effort
    shift = shift * min(1.0, face.here.stationarity)
    step = np.zeros_like(residual)
    scaled = inverse(residual)
    direction, energy = scaled.copy(), float(residual @ scaled)
    first, inside = energy, float(base @ metric.times(base))
    for _ in range(min(2 * int(free.sum()) + 10, products)):
        # 1e-28 is the square of 1e-14: the residual is rounding; what is found by the deadline is a step as well
        if energy <= wanted or energy <= 1e-28 * first or progress.late:
            break
        weighed = metric.times(direction)
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
        scaled = inverse(residual)
        fresh = float(residual @ scaled)
        direction, energy = scaled + fresh / energy * direction, fresh
    return step, False
