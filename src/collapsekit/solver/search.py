"""The search behind solve: descents, escapes and certificates; few dimensions by many descents and exchanges."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from collapsekit.problem import UFM
from collapsekit.solver import narrow
from collapsekit.solver._certify import Certificate, certificate_at
from collapsekit.solver.coordinates import (
    added,
    cleared,
    largest,
    responding,
    room,
    rounded,
    staircase,
    tidied,
    widened,
)
from collapsekit.solver.model import Balanced, Point
from collapsekit.solver.newton import SMALL, Local, Mask, descend
from collapsekit.solver.polar import ascents, escape_directions
from collapsekit.solver.progress import Progress, Status
from collapsekit.solver.solution import Solution
from collapsekit.solver.strips import Index
from collapsekit.validation import frozen

START_SCALE = 0.1
"""Standard deviation of a random start's entries in balanced variables."""
COARSE, FINE = 1e-3, 1e-13
"""Stationarity at which escape directions are first looked for, and at which none are left to be found."""
SHARPER = 1e-5
"""Factor of the stationarity from one certificate to the next: descents converge quadratically, so it costs little."""
CERTIFIABLE = 1e-9
"""Stationarity from which bounds are computed on the way: above it they are too loose to close a gap of 1e-8."""
GOALS = (1e-3, 1e-6, 1e-9, 1e-11)
"""Stationarities of the staircase, the last two of which are certified: the gap is near a hundredth of them."""
DEAD = 1e-4
"""Share of the penalty at which the staircase takes a class for dead: a first descent leaves no less of the others."""
RANKED = 1e-6
"""Stationarity at which objectives differ by less than local optima do: only the lowest is descended from further."""
SMOOTHINGS = tuple(0.1 * 0.25**power for power in range(15))
"""Of the hinge, one after the other: from a tenth of its margin to 4e-10, well below a gap of 1e-8; at a quarter each
descents stay within reach of the next."""
EXPLORED = 3
"""The place among the smoothings at which many points descend at once: smooth enough for first-order steps."""
MOST_ROUNDS = 200
"""Of escapes, or exchanges; one adds at least a coordinate or lowers the objective. Tens are usual."""
RESTARTS = 2
"""Times that random points are drawn and improved: with one, 1 of 200 problems ended above the best of ten descents,
with two none."""
FEW, ARRANGED = 8, 4
"""Of many descents, how many of the lowest are descended from further: after random starts, after exchanges."""
LOWER = 1e-9
"""Relative fall of the objective that counts as another local optimum."""
TIE = 1e-13
"""Relative difference of objectives that may be rounding."""


def random_start(problem: UFM, rng: np.random.Generator, scale: float = START_SCALE) -> Point:
    """Return ``U ~ N(0, scale²)``, ``V ~ |N(0, scale²)|`` (without ReLU signed) and no bias, (K, dim or 2K)."""
    size, rows = problem.num_classes, problem.samples.size
    dim = problem.dim or 2 * max(size, rows)
    U, V = rng.normal(0.0, scale, (size, dim)), rng.normal(0.0, scale, (rows, dim))
    return Point(U, np.abs(V) if problem.relu else V, np.zeros(problem.num_classes))


class Search:
    """The state of one call of :func:`solve`: the best point and the best lower bound so far."""

    def __init__(self, problem: UFM, tol: float, progress: Progress, rng: np.random.Generator) -> None:
        self.problem, self.tol, self.progress, self.rng = problem, tol, progress, rng
        self.models = [Balanced(problem, smoothing) for smoothing in ((1.0,) if problem.loss.smooth else SMOOTHINGS)]
        self.best: Point | None = None
        self.found = Certificate(np.inf, -np.inf, np.inf, np.inf, "none")  # of the best point, by the best bound
        self.own = -np.inf  # the bound that the best point itself yields
        self.needed, self.relaxed = 0, np.inf  # coordinates and objective of the best point of any dimension

    @property
    def closed(self) -> bool:
        """Whether the gap is closed."""
        return bool(np.isfinite(self.found.objective)) and self.found.gap <= self.tol

    @property
    def over(self) -> bool:
        """Whether nothing is left to do, or no effort to do it with."""
        return self.closed or self.progress.spent()

    def run(self, start: Point, rounding: bool = True) -> None:
        """Search from one start, or from the rounded start; best point and bound are kept in place."""
        model, dim = self.models[-1], self.problem.dim
        if not np.isfinite(model.objective(start)):
            self.progress.ended = Status.NOT_FINITE
            return
        point = self._first(self.models[0], start) if rounding else start
        if self.over:
            return
        for smoothed in self.models:
            point = self._any_dimension(smoothed, point)
            if self.over:
                return
        if self.problem.relu and self.found.lower_bound < self.relaxed * (1 - self.tol):
            point = min(point, self._any_dimension(model, rounded(model, point)), key=model.objective)
            if self.over:
                return
        ends = [self._down(start, FINE)] if dim is None or start.V.shape[1] <= dim else []
        if dim is not None and point.V.shape[1] > dim:
            self._within(ends, point, dim)

    def _any_dimension(self, model: Balanced, start: Point) -> Point:
        """Descend, escape and certify with as many coordinates as are needed."""
        here, goal = descend(model, start, COARSE, self.progress), COARSE
        for _ in range(MOST_ROUNDS):
            here, taken = Local(model, tidied(model, here.point)), self.progress.taken
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
            goal = max(FINE, goal * SHARPER)
            here = descend(model, here.point, goal, self.progress)
            if goal <= CERTIFIABLE:
                self.offer(model, here)
            if self.over:
                break
        self.offer(model, here)
        return here.point

    def _first(self, model: Balanced, start: Point) -> Point:
        """The rounded start, or the start itself if rounding and a first descent do not get below it.

        With many classes, where a loss of logits alone needs no rounding, the staircase.
        """
        if model.problem.relu and model.problem.loss.smooth and model.size > SMALL:
            return self._staircase(model)
        coarse = rounded(model, start)
        if self.problem.relu:
            coarse = responding(model, coarse)
            coarse = self._escaped(model, Local(model, coarse), 2 * room(model)) or coarse
            coarse = tidied(model, coarse)
        if start.V.shape[1] > room(model) or not self.problem.relu:
            return coarse
        reached = descend(model, coarse, COARSE, self.progress)
        return reached.point if reached.value <= model.objective(start) else start

    def _staircase(self, model: Balanced) -> Point:
        """Descend with a coordinate for each row of features that it shares, if at all, with rows rarer than itself.

        Rotations ``V Q`` that keep the Gram matrix of the features leave the objective alone, and along them a descent
        creeps; a triangular V with a positive diagonal has none. From the frame, where V is diagonal,
        the optimum under a long tail is found in tens of steps. What is solved is the problem with V triangular in
        the order of rarity: it has the optimum of the whole if and only if some optimal Gram matrix of features has
        a nonnegative triangular factor (docs/theory.md), which nothing ensures; what it lacks, escapes add.
        """
        rank = np.argsort(np.argsort(model.kappa / (model.factors * model.loss.weights), kind="stable"))
        rows = len(rank)  # of features: one a class, or a type of samples
        alone, shared = np.eye(rows, dtype=bool), rank[:, None] >= rank
        empty = Point(np.zeros((model.size, rows)), np.diag(1 / model.factors**0.5), np.zeros(model.size))
        start = responding(model, empty)
        frame = descend(model, start, COARSE, self.progress, alone)
        own = np.linalg.norm(frame.point.U, axis=0) * np.diag(frame.point.V)
        lives = own > DEAD * model.penalty(frame.point) / model.kappa
        first = Point(frame.point.U[:, lives], frame.point.V[:, lives], frame.point.b)
        leaned = self._leaned(model, frame, (alone, lives), rank) if model.has_bias and not self.over else []
        here = Local(model, min([first, *leaned], key=model.objective))
        for goal in GOALS:
            here = descend(model, here.point, goal, self.progress, shared[:, lives])
            if goal <= CERTIFIABLE:
                # a coordinate that fades away has features of noise, which would mislead the bound on the polar
                self.offer(model, Local(model, tidied(model, here.point)), 0.5 * self.tol)
            if self.over:
                break
        return here.point

    def _leaned(self, model: Balanced, frame: Local, own: tuple[Mask, Mask], rank: Index) -> list[Point]:
        """The frame with one coordinate for all classes, brought onto the staircase; empty if none helps.

        With a bias rare classes want features that lean towards each other: little but one direction of them.
        """
        A, (alone, lives) = frame.scaled @ frame.scaled.T, own
        direction = ascents(A, True, np.maximum(A, 0.0).sum(axis=1)[None] + 1e-300)
        if float((direction @ A @ direction.T).item()) <= model.kappa**2 * (1 + 4 * frame.stationarity):
            return []
        wider = added(model, frame.point, direction, frame.slopes)
        if wider is None:
            return []
        within = np.hstack([alone, np.ones((len(alone), 1), dtype=bool)])
        leaning = descend(model, wider, COARSE, self.progress, within).point
        return [staircase(leaning, np.flatnonzero(lives)[np.argsort(rank[lives])], rank)]

    def _escaped(self, model: Balanced, here: Local, most: int) -> Point | None:
        """The point with coordinates along escape directions, or None if there are none, or no room.

        What is left of the gradient raises the polar by about its relative size; an escape must lie clearly above.
        """
        free = most - here.point.V.shape[1]
        if free <= 0:
            return None
        A = here.scaled @ here.scaled.T  # whose rounding is below the 1e-12 that is asked at least
        above = model.kappa**2 * (1 + max(1e-12, 4 * here.stationarity))
        directions = escape_directions(A, self.problem.relu, above, free)
        if not len(directions):
            return None
        wider = added(model, here.point, directions, here.slopes)
        return wider if wider is not None else added(model, here.point, directions[:1], here.slopes)

    def _down(self, start: Point, goal: float, first: int = 0) -> Local:
        """Descend without a change of coordinates, a hinge through its smoothings from the `first`; offer the end."""
        here = Local(self.models[first], start)
        for model in self.models[first:]:
            here = descend(model, here.point, goal, self.progress)
        self.offer(here.model, here)
        return here

    def _within(self, ends: list[Local], point: Point, dim: int) -> None:
        """Descend with at most `dim` coordinates: from the best point of any dimension, and from many random ones.

        From the lowest of them, escape directions replace coordinates and classes are exchanged until nothing helps.
        """
        model, middle = self.models[-1], min(EXPLORED, len(self.models) - 1)
        for start in (rounded(model, point), point):
            here = descend(model, largest(start, dim), COARSE, self.progress)
            for _ in range(dim):
                wider = self._escaped(model, Local(model, tidied(model, here.point)), dim)
                if wider is None or self.over:
                    break
                here = descend(model, wider, COARSE, self.progress)
            ends.append(self._down(tidied(model, here.point), FINE))
        for _ in range(RESTARTS if narrow.width(model) > 1 else 0):
            if self.over:
                return
            ends.append(self._lowest(narrow.drawn(model, dim, self.rng), middle, FEW))
            self._improved(min(ends, key=lambda end: end.value), dim, middle)
            ends = []
        if ends:
            self._improved(min(ends, key=lambda end: end.value), dim, middle)

    def _improved(self, here: Local, dim: int, middle: int) -> None:
        """Replace coordinates and exchange classes until nothing helps."""
        for _ in range(MOST_ROUNDS):
            if self.over:
                return
            trials = [self._replaced(self.models[-1], here, dim)]
            if narrow.width(here.model) > 1:
                arranged = narrow.rearranged(widened(here.point, dim), narrow.width(here.model), self.rng)
                trials.append(self._lowest(arranged, middle, ARRANGED))
            better = min((end for end in trials if end is not None), key=lambda end: end.value, default=here)
            if better.value >= here.value * (1 - LOWER):
                return
            here = better

    def _lowest(self, points: narrow.Points, middle: int, count: int) -> Local:
        """The lowest end of many descents, the `count` lowest of which are descended from further."""
        reached = narrow.descended(self.models[middle], points, self.progress)[:count]
        ends = [self._down(point, RANKED, middle) for point in reached]
        return self._down(min(ends, key=lambda end: end.value).point, FINE, len(self.models) - 1)

    def _replaced(self, model: Balanced, here: Local, dim: int) -> Local | None:
        """A lower stationary point reached by an escape direction in place of one of the coordinates, or None."""
        base = tidied(model, here.point)
        count = base.V.shape[1]
        for out in range(count) if count >= dim else (None,):
            fewer = base if out is None else Point(np.delete(base.U, out, 1), np.delete(base.V, out, 1), base.b)
            wider = self._escaped(model, Local(model, fewer), dim)
            if wider is None:
                continue
            reached = descend(model, wider, RANKED, self.progress)
            if reached.value < here.value * (1 - LOWER):
                return self._down(reached.point, FINE, len(self.models) - 1)
            if self.progress.spent():
                break
        return None

    def offer(self, model: Balanced, here: Local, target: float | None = None) -> None:
        """Take the point if it is the best that fits into `dim`, and its bound if it is the highest."""
        # a polar this close to κ needs no tighter bound: what remains is a thousandth of the tolerance
        target = min(1e-3 * self.tol, 1e-11) if target is None else target
        if self.progress.over and model.size > SMALL and here.stationarity > RANKED:
            target = np.inf  # no bound closes the gap there, and with many classes a second one takes seconds
        offered, bound = certificate_at(model, here.point, target, self.progress.patience), self.found.lower_bound
        objective, dim, count = offered.objective, self.problem.dim, here.point.V.shape[1]
        if objective < self.relaxed * (1 - TIE) or (objective <= self.relaxed * (1 + TIE) and count < self.needed):
            self.relaxed, self.needed = objective, count
        near = objective <= self.found.objective * (1 + TIE)  # of two equals the one whose own bound is higher
        better = objective < self.found.objective * (1 - TIE) or (near and offered.lower_bound >= self.own)
        if better and (dim is None or count <= dim):
            self.best, self.own, self.found = here.point, offered.lower_bound, offered
        self.found = replace(self.found, lower_bound=max(bound, offered.lower_bound))

    def solution(self) -> Solution:
        """Return the best point, its certificate and the status."""
        model, problem = self.models[-1], self.problem
        if self.best is None:
            zeros = np.zeros((model.size, 1)), np.zeros((model.rows, 1)), np.zeros(model.size)
            reached = self.progress.point or Point(*zeros)
            self.offer(model, Local(model, reached if problem.dim is None else largest(reached, problem.dim)))
        assert self.best is not None
        point = cleared(model, self.best)
        used, point = point.V.shape[1], widened(point, problem.dim or 1)
        found = replace(self.found, objective=model.unsmoothed(point))
        return Solution(
            problem=problem,
            weights=frozen(model.weights(point)),
            features=frozen(model.features(point)),
            bias=None if problem.bias is None else frozen(point.b),
            certificate=found,
            coordinates=used,
            steps=self.progress.taken,
            needed=self.needed,
            status=self._status(found),
        )

    def _status(self, found: Certificate) -> Status:
        dim = self.problem.dim
        if found.gap <= self.tol:
            return Status.OPTIMAL
        if self.progress.ended is not None:
            return self.progress.ended
        if not self.problem.loss.convex:
            return Status.NO_CERTIFICATE
        if dim is not None and self.needed > dim:
            return Status.NARROW
        if found.stationarity > RANKED:
            return Status.NOT_STATIONARY
        if found.polar > 1 + 1e-9 and dim is not None and self.needed == dim:  # above what rounding leaves of a polar
            return Status.SPURIOUS
        return Status.LOOSE
