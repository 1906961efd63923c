"""solve: local descent, escape and certificate in turn, until the gap is closed or the reason why not is known."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from collapsekit.errors import CollapseError
from collapsekit.geometry import Geometry
from collapsekit.losses import CrossEntropy
from collapsekit.problem import UFM
from collapsekit.solver._certify import NO_CERTIFICATE, Bound, Certificate, bound_at, certificate, feasible
from collapsekit.solver.coordinates import added, largest, responding, room, rounded, svd_factors, tidied, widened
from collapsekit.solver.model import Balanced, Point
from collapsekit.solver.newton import Local, Progress, descend
from collapsekit.solver.polar import escape_directions
from collapsekit.validation import Array, frozen, positive_number, shorten, whole_number

START_SCALE = 0.1
"""Standard deviation of a random start's entries in balanced variables."""
COARSE, FINE = 1e-3, 1e-13
"""Stationarity at which escape directions are first looked for, and at which none are left to be found."""
SMOOTHINGS = tuple(0.1 * 0.25**power for power in range(15))
"""Of the hinge, one after the other."""
MOST_ROUNDS = 200
TIE = 1e-13
"""Relative difference of objectives that may be rounding."""


@dataclass(frozen=True, eq=False, repr=False)
class Solution:
    """The best point that :func:`solve` found, how far it can be from the global optimum, and why the search ended.

    Attributes
    ----------
    problem : UFM
        What was solved.
    weights, features : ndarray, shape (K, d)
        Classifier and class features, rows as classes; d is the problem's `dim`, or as many as needed.
    bias : ndarray, shape (K,), or None
        For a problem that has one.
    certificate : Certificate
        Objective, lower bound, gap, stationarity and polar.
    coordinates : int
        Coordinates in use; the others are zero.
    steps : int
        Newton steps taken in all.
    status : str
        In a sentence: globally optimal; not closed because `dim` is too small; spurious; not converged; or no
        certificate.
    """

    problem: UFM
    weights: Array
    features: Array
    bias: Array | None
    certificate: Certificate
    coordinates: int
    steps: int
    status: str

    @property
    def objective(self) -> float:
        """The problem's objective at the point."""
        return self.certificate.objective

    @property
    def lower_bound(self) -> float:
        """No feasible point lies below."""
        return self.certificate.lower_bound

    @property
    def gap(self) -> float:
        """Relative distance between the two."""
        return self.certificate.gap

    @property
    def optimal(self) -> bool:
        """Whether the status says globally optimal."""
        return self.status.startswith(OPTIMAL)

    @property
    def collapsed(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Classes whose features vanish, (K,): below 1e-8 of the largest squared norm."""
        sqnorms = (self.features**2).sum(axis=1)
        return np.asarray(sqnorms <= 1e-8 * max(float(sqnorms.max()), 1e-300))

    @property
    def confidences(self) -> Array:
        """Softmax probability (of z/T) that the head gives each class at its features, (K,)."""
        from scipy.special import softmax  # a heavy import, which predictions do without

        loss = self.problem.loss
        temperature = loss.temperature if isinstance(loss, CrossEntropy) else 1.0
        return np.asarray(np.diagonal(softmax(self._logits / temperature, axis=1)))

    @property
    def margins(self) -> Array:
        """Target logit minus the mean of the others at each class's features, bias included, (K,)."""
        target = np.diagonal(self._logits)
        return np.asarray((len(target) * target - self._logits.sum(axis=1)) / (len(target) - 1))

    @property
    def _logits(self) -> Array:
        bias = 0.0 if self.bias is None else self.bias
        return np.asarray(self.features @ self.weights.T + bias)

    def geometry(self) -> Geometry:
        """Return the Gram matrices, (K, K) each."""
        W, H = self.weights, self.features
        return Geometry(H @ H.T, W @ W.T, W @ H.T, self.problem.counts, names=self.problem.names)

    def to_dict(self) -> dict[str, Any]:
        """Return the solution as plain values (JSON-ready), with its schema version."""
        return {
            "schema": 1,
            "problem": self.problem.to_dict(),
            "weights": self.weights.tolist(),
            "features": self.features.tolist(),
            "bias": None if self.bias is None else self.bias.tolist(),
            "certificate": self.certificate.to_dict(),
            "collapsed": self.collapsed.tolist(),
            "coordinates": self.coordinates,
            "steps": self.steps,
            "status": self.status,
        }

    def __repr__(self) -> str:
        return (
            f"Solution(objective {self.objective:.8g}, lower bound {self.lower_bound:.8g}, gap {self.gap:.1e}, "
            f"{self.coordinates} of {self.features.shape[1]} coordinates, {self.steps} steps; {self.status})"
        )


OPTIMAL = "globally optimal"


def solve(
    problem: UFM,
    *,
    seed: int = 0,
    starts: int = 1,
    tol: float = 1e-8,
    start: tuple[Array, ...] | None = None,
    max_steps: int = 10_000,
    time_limit: float | None = None,
) -> Solution:
    r"""Minimise a UFM numerically and say how far the result is from the global optimum.

    For every loss, bias and dimension, with or without ReLU, on class features (K, d):

    1. A start is drawn (or given); its coordinates are rounded to their dominant classes and merged.
    2. A trust-region Newton method on the free entries finds a stationary point.
    3. Where the polar exceeds κ, coordinates along the escape directions are added, negligible ones removed and
       proportional ones merged; back to 2. As few coordinates are kept as are in use, so cost does not grow with d.
    4. Fenchel duality gives a lower bound (:func:`collapsekit.certify`).
    5. If more than d coordinates are in use, the best of them are kept and descended from, each spare escape
       direction being tried in place of another coordinate.

    Parameters
    ----------
    problem : UFM
        What to minimise; the lower bound holds for any dimension.
    seed : int
        Of the random starts ``|N(0, 0.1²)|`` in balanced variables.
    starts : int
        Random starts; the search ends at the first that is certified.
    tol : float
        Relative gap at which the result counts as globally optimal.
    start : tuple of array_like, optional
        (weights, features) or (weights, features, bias) of the first start in place of a random one.
    max_steps : int
        Newton steps in all.
    time_limit : float, optional
        Seconds of wall clock.

    Returns
    -------
    Solution
        Never an exception for a numerical outcome: the status says what happened. Ctrl-C ends the search and keeps
        the best point.

    Raises
    ------
    CollapseError
        If an argument is out of range, or the start is not feasible.

    References
    ----------
    Derived in docs/global_or_spurious.md; local search with escapes for factorised gauges: Haeffele and Vidal 2015.

    Examples
    --------
    >>> from collapsekit import UFM, solve
    >>> solution = solve(UFM([500, 300, 40, 10], lambda_w=3e-2, lambda_h=1e-3))
    >>> round(solution.objective, 10), solution.gap < 1e-8, solution.collapsed.tolist()
    (0.7559496807, True, [False, False, False, True])
    >>> solve(UFM([500, 300, 40, 10], lambda_w=3e-2, lambda_h=1e-3, bias="free")).status[:16]
    'globally optimal'
    """
    if not isinstance(problem, UFM):
        raise CollapseError(f"problem={shorten(problem)}: give a UFM(counts, lambda_w, lambda_h)")
    tol = positive_number("tol", tol, "give a relative gap such as 1e-8")
    steps = whole_number("max_steps", max_steps, 1, "give a number of Newton steps")
    seconds = np.inf if time_limit is None else positive_number("time_limit", time_limit, "give seconds or None")
    progress = Progress(steps, time.monotonic() + seconds)
    runs = whole_number("starts", starts, 1, "give a number of starts")
    rng = np.random.default_rng(whole_number("seed", seed, 0, "give a seed"))
    first = None if start is None else _given(problem, start)
    search = Search(problem, tol, progress)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # what is not finite is never accepted
        try:
            for run in range(runs):
                search.run(first if run == 0 and first is not None else random_start(problem, rng))
                if search.closed or progress.spent():
                    break
        except KeyboardInterrupt:
            progress.ended = "stopped by Ctrl-C"
        return search.solution()


def random_start(problem: UFM, rng: np.random.Generator, scale: float = START_SCALE) -> Point:
    """Return ``U ~ N(0, scale²)``, ``V ~ |N(0, scale²)|`` (without ReLU signed) and no bias, (K, dim or 2K)."""
    shape = (problem.num_classes, problem.dim or 2 * problem.num_classes)
    U, V = rng.normal(0.0, scale, shape), rng.normal(0.0, scale, shape)
    return Point(U, np.abs(V) if problem.relu else V, np.zeros(problem.num_classes))


def _given(problem: UFM, start: tuple[Array, ...]) -> Point:
    if not isinstance(start, tuple | list) or len(start) not in (2, 3):
        raise CollapseError(f"start={shorten(start)}: give (weights, features) or (weights, features, bias)")
    W, H, b = feasible(problem, start[0], start[1], start[2] if len(start) == 3 else None)
    return Balanced(problem).point(W, H, b)


class Search:
    """The state of one call of :func:`solve`: the best point and the best lower bound so far."""

    def __init__(self, problem: UFM, tol: float, progress: Progress) -> None:
        self.problem, self.tol, self.progress = problem, tol, progress
        self.best: Point | None = None
        self.objective, self.bound = np.inf, Bound(-np.inf, np.inf, np.inf, "none")
        self.own = -np.inf  # the bound that the best point itself yields
        self.needed, self.relaxed = 0, np.inf  # coordinates and objective of the best point of any dimension

    @property
    def closed(self) -> bool:
        """Whether the gap is closed."""
        return bool(np.isfinite(self.objective)) and certificate(self.objective, self.bound).gap <= self.tol

    def run(self, start: Point) -> None:
        """Search from one start; best point and bound are kept in place."""
        if not np.isfinite(Balanced(self.problem).objective(start)):
            self.progress.ended = "the objective is not finite at the start (give smaller numbers)"
            return
        for i, smoothing in enumerate((1.0,) if self.problem.loss.smooth else SMOOTHINGS):
            model = Balanced(self.problem, smoothing)
            start = self._any_dimension(model, start if i else self._first(model, start))
            if self.closed or self.progress.spent():
                return
        if self.problem.relu and self.bound.lower_bound < self.relaxed * (1 - self.tol):
            start = min(start, self._any_dimension(model, rounded(model, start)), key=model.objective)
        if self.closed or self.progress.spent():
            return
        dim = self.problem.dim
        if dim is not None and start.V.shape[1] > dim and not self.closed:
            self._within(model, start, dim)

    def _any_dimension(self, model: Balanced, start: Point) -> Point:
        """Descend, escape and certify with as many coordinates as are needed."""
        here = descend(model, start, COARSE, self.progress)
        goal = COARSE
        for _ in range(MOST_ROUNDS):
            here, taken = Local(model, self._tidied(model, here.point)), self.progress.taken
            wider = self._escaped(model, here, room(model))
            if wider is not None:
                reached = descend(model, wider, goal, self.progress)
                if self.progress.taken > taken:  # else the escape is no more than what is left of the gradient
                    here = reached
                    if self.progress.spent():
                        break
                    continue
            if goal <= FINE:
                break
            goal = max(FINE, goal * 1e-5)
            here = descend(model, here.point, goal, self.progress)
            if goal <= 1e-9:
                self.offer(model, here)
            if self.closed or self.progress.spent():
                break
        self.offer(model, here)
        return here.point

    def _first(self, model: Balanced, start: Point) -> Point:
        """The rounded start, or the start itself if rounding and a first descent do not get below it."""
        coarse = rounded(model, start)
        if self.problem.relu:
            coarse = responding(model, coarse)
            coarse = self._escaped(model, Local(model, coarse), 2 * room(model)) or coarse
            coarse = self._tidied(model, coarse)
        if start.V.shape[1] > room(model) or not self.problem.relu:
            return coarse
        reached = descend(model, coarse, COARSE, self.progress)
        return reached.point if reached.value <= model.objective(start) else start

    def _tidied(self, model: Balanced, point: Point) -> Point:
        return tidied(point if self.problem.relu else svd_factors(point))

    def _escaped(self, model: Balanced, here: Local, most: int) -> Point | None:
        """The point with coordinates along escape directions, or None if there are none, or no room."""
        free = most - here.point.V.shape[1]
        if free <= 0:
            return None
        A = here.scaled @ here.scaled.T
        above = model.kappa**2 * (1 + max(1e-12, 4 * here.stationarity))
        directions = escape_directions(A, self.problem.relu, above, free)
        if not len(directions):
            return None
        wider = added(model, here.point, directions, here.slopes)
        return wider if wider is not None else added(model, here.point, directions[:1], here.slopes)

    def _within(self, model: Balanced, point: Point, dim: int) -> None:
        """Descend with at most `dim` coordinates: from one a class, then from the largest, then by exchanges."""
        ends: list[Local] = []
        for start in (rounded(model, point), point):
            here = descend(model, largest(start, dim), COARSE, self.progress)
            for _ in range(dim):
                wider = self._escaped(model, Local(model, self._tidied(model, here.point)), dim)
                if wider is None or self.progress.spent():
                    break
                here = descend(model, wider, COARSE, self.progress)
            ends.append(descend(model, self._tidied(model, here.point), FINE, self.progress))
            self.offer(model, ends[-1])
            if self.closed or self.progress.spent():
                return
        here = min(ends, key=lambda end: end.value)
        for _ in range(MOST_ROUNDS):
            better = self._exchanged(model, here, dim)
            if better is None or self.progress.spent():
                break
            here = better
            self.offer(model, here)

    def _exchanged(self, model: Balanced, here: Local, dim: int) -> Local | None:
        """A lower stationary point reached by an escape direction in place of one of the coordinates, or None."""
        base = tidied(here.point)
        count = base.V.shape[1]
        for out in range(count) if count >= dim else (None,):
            fewer = base if out is None else Point(np.delete(base.U, out, 1), np.delete(base.V, out, 1), base.b)
            wider = self._escaped(model, Local(model, fewer), dim)
            if wider is None:
                continue
            reached = descend(model, wider, 1e-9, self.progress)
            if reached.value < here.value * (1 - 1e-10):
                return descend(model, reached.point, FINE, self.progress)
            if self.progress.spent():
                break
        return None

    def offer(self, model: Balanced, here: Local) -> None:
        """Take the point if it is the best that fits into `dim`, and its bound if it is the highest."""
        bound = bound_at(model, here.point, min(1e-3 * self.tol, 1e-11))
        objective = self._objective(model, here.point)
        dim, count = self.problem.dim, here.point.V.shape[1]
        if objective < self.relaxed * (1 - TIE) or (objective <= self.relaxed * (1 + TIE) and count < self.needed):
            self.relaxed, self.needed = objective, count
        if bound.lower_bound > self.bound.lower_bound:
            self.bound = replace(self.bound, lower_bound=bound.lower_bound)
        near = objective <= self.objective * (1 + TIE)  # of two equals the one whose own bound is higher
        better = objective < self.objective * (1 - TIE) or (near and bound.lower_bound >= self.own)
        if better and (dim is None or count <= dim):
            self.own = bound.lower_bound
            self.best, self.objective = here.point, objective
            self.bound = replace(bound, lower_bound=max(bound.lower_bound, self.bound.lower_bound))

    def _objective(self, model: Balanced, point: Point) -> float:
        bias = None if self.problem.bias is None else point.b
        return self.problem.objective(model.weights(point), model.features(point), bias)

    def solution(self) -> Solution:
        """Return the best point, its certificate and the status."""
        model, problem = Balanced(self.problem), self.problem
        point, dim = self.best, problem.dim
        if point is None and self.progress.point is not None:
            point = self.progress.point if dim is None else largest(self.progress.point, dim)
            self.offer(model, Local(model, point))
        if point is None:
            zero = np.zeros((problem.num_classes, 1))
            point = Point(zero, zero, np.zeros(problem.num_classes))
            self.offer(model, Local(model, point))
        used = int((np.abs(point.V).sum(axis=0) > 0).sum())
        point = widened(point, dim or 1)
        found = certificate(self._objective(model, point), self.bound)
        return Solution(
            problem=problem,
            weights=frozen(model.weights(point)),
            features=frozen(model.features(point)),
            bias=None if problem.bias is None else frozen(point.b),
            certificate=found,
            coordinates=used,
            steps=self.progress.taken,
            status=self._status(found),
        )

    def _status(self, found: Certificate) -> str:
        dim, gap = self.problem.dim, f"gap {found.gap:.1e}"
        if found.kind == NO_CERTIFICATE:
            end = self.progress.ended or f"stationarity {found.stationarity:.1e}"
            return f"no certificate: the focal loss is not convex; best of the local searches, {end}"
        if found.gap <= self.tol:
            return f"{OPTIMAL}: {gap} is at most tol = {self.tol:g}"
        if self.progress.ended:
            return f"not converged: {self.progress.ended}; best point kept, {gap}"
        if dim is not None and self.needed > dim:
            return (
                f"stationary, {gap} not closed because dim is too small: {dim} coordinates where the optimum of any "
                f"dimension uses {self.needed}; widen the feature layer"
            )
        if found.stationarity > 1e-6:
            return f"not converged: stationarity {found.stationarity:.1e}, {gap}; allow more steps or other starts"
        if found.polar > 1 + 1e-9 and dim is not None and self.needed == dim:
            return f"spurious, {gap}: an escape direction is known but no coordinate of dim = {dim} is free"
        return f"stationary, {gap} not closed: the bound on the polar, {found.kind}, may be loose"
