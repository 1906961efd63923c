"""landscape: how often ordinary descent ends at the global optimum, and what is wrong with where it ends otherwise."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from collapsekit.errors import CollapseError
from collapsekit.problem import UFM
from collapsekit.solver.model import Balanced, Point
from collapsekit.solver.newton import Face, Local, Mask, pack, unpack
from collapsekit.solver.progress import Progress
from collapsekit.solver.search import START_SCALE, Search, random_start
from collapsekit.validation import Array, positive_number, shorten, whole_number

DEAD = 1e-3
"""A class is dead below this share of the largest squared feature norm."""
GRADIENT_STEPS, ADAM_STEPS, LBFGS_STEPS = 3000, 3000, 15_000
"""Enough for objectives to stand still to 1e-4 at ten classes and everyday penalties; L-BFGS stops by itself."""
ADAM_RATE = 0.05
"""In balanced variables; with the cosine schedule each entry may travel 75 in all, ten times what optima need."""


@dataclass(frozen=True)
class Outcome:
    """Where one method ended from one start.

    Attributes
    ----------
    objective : float
    gap : float
        Relative to the certified lower bound (without a certificate: to the best value of all).
    stationarity : float
        Projected gradient over the penalty's; large where the steps did not suffice.
    wrongly_dead : int
        Classes that are dead here and alive in the certified solution.
    curvature : float
        Smallest Hessian eigenvalue on the free entries, over κ: clearly negative at a saddle; NaN if not computed.
    steps : int
        Evaluations of the gradient, or Newton steps.
    seconds : float
        CPU time.
    """

    objective: float
    gap: float
    stationarity: float
    wrongly_dead: int
    curvature: float
    steps: int
    seconds: float


@dataclass(frozen=True, eq=False, repr=False)
class Landscape:
    """Outcomes of each method from the same starts.

    Attributes
    ----------
    problem : UFM
    scale : float
        Standard deviation of the starts' entries in balanced variables.
    tol : float
        Relative gap that counts as having reached the optimum.
    lower_bound : float
        The best certified bound; NaN without certificate.
    outcomes : dict of str to tuple of Outcome
        By method, one a start.
    """

    problem: UFM
    scale: float
    tol: float
    lower_bound: float
    outcomes: dict[str, tuple[Outcome, ...]]

    def reached(self, method: str) -> float:
        """Share of the starts from which a method reaches the optimum."""
        return float(np.mean([one.gap <= self.tol for one in self.outcomes[method]]))

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values (JSON-ready), with its schema version and settings."""
        methods = {}
        for name, ends in self.outcomes.items():
            columns = {key: [getattr(one, key) for one in ends] for key in Outcome.__dataclass_fields__}
            columns["curvature"] = [c if np.isfinite(c) else None for c in columns["curvature"]]
            methods[name] = {"reached": self.reached(name)} | columns
        bound = self.lower_bound if np.isfinite(self.lower_bound) else None
        settings = {"scale": self.scale, "tol": self.tol, "adam_rate": ADAM_RATE}
        return {"schema": 1, "problem": self.problem.to_dict(), "lower_bound": bound} | settings | {"methods": methods}

    def __repr__(self) -> str:
        shares = ", ".join(f"{name} {self.reached(name):.0%}" for name in self.outcomes)
        return f"Landscape(reached the optimum: {shares})"


@np.errstate(all="ignore")  # descents may leave the range of numbers, and end there
def landscape(
    problem: UFM,
    starts: int = 10,
    *,
    seed: int = 0,
    scale: float = START_SCALE,
    tol: float = 1e-4,
    curvature: bool = True,
    methods: tuple[str, ...] | None = None,
) -> Landscape:
    r"""Descend by several methods from the same random starts and say where each one ends.

    Gradient descent (projected, with a step length that doubles and halves), Adam (projected, cosine schedule),
    bounded L-BFGS and the certified solver, all in balanced variables at the problem's `dim`, from
    ``U ~ N(0, scale²)``, ``V ~ |N(0, scale²)|``.

    Parameters
    ----------
    problem : UFM
        With `dim`.
    starts : int
        Random starts.
    seed : int
        Of the starts.
    scale : float
        Their standard deviation.
    tol : float
        Relative gap that counts as having reached the optimum.
    curvature : bool
        Whether to compute the smallest Hessian eigenvalue (Lanczos).
    methods : tuple of str, optional
        Some of "gradient descent", "adam", "bounded L-BFGS"; the certified solver always takes part.

    Returns
    -------
    Landscape

    Raises
    ------
    CollapseError
        If the problem has no `dim`, or an argument is out of range.

    References
    ----------
    Derived here; settings and figures in docs/global_or_spurious.md.

    Examples
    --------
    >>> from collapsekit import UFM
    >>> from collapsekit.solver import landscape
    >>> found = landscape(UFM([50, 20, 10], 1e-2, 1e-3, dim=8), 2)
    >>> found.reached("certified")
    1.0
    """
    if not isinstance(problem, UFM):
        raise CollapseError(f"problem={shorten(problem)}: give a UFM(counts, lambda_w, lambda_h, dim=...)")
    if problem.dim is None:
        raise CollapseError("dim=None: local descent happens at one width; build UFM(..., dim=...)")
    count = whole_number("starts", starts, 1, "give a number of starts")
    size = positive_number("scale", scale, "give the standard deviation of the start")
    wanted = positive_number("tol", tol, "give a relative gap such as 1e-4")
    rng = np.random.default_rng(whole_number("seed", seed, 0, "give a seed"))
    unknown = set(methods or ()) - set(METHODS)
    if unknown:
        raise CollapseError(f"methods: {shorten(min(unknown))} is none of {', '.join(METHODS)}")
    used = {name: METHODS[name] for name in METHODS if methods is None or name in (*methods, "certified")}
    points = [random_start(problem, rng, size) for _ in range(count)]
    model = Balanced(problem)
    ends = {name: [_timed(model, method, start) for start in points] for name, method in used.items()}
    bounds = [bound for *_, bound in ends["certified"]]
    objectives = [model.unsmoothed(point) for rows in ends.values() for point, *_ in rows]
    bound = max(bounds) if problem.loss.convex else min(objectives)
    best = min(ends["certified"], key=lambda row: model.unsmoothed(row[0]))[0]
    outcomes = {
        name: tuple(_outcome(model, row, bound, _dead(model, best), curvature) for row in rows)
        for name, rows in ends.items()
    }
    return Landscape(problem, size, wanted, bound if problem.loss.convex else np.nan, outcomes)


Row = tuple[Point, int, float, float]


def _timed(model: Balanced, method: Callable[[Balanced, Point], tuple[Point, int, float]], start: Point) -> Row:
    begun = time.process_time()
    point, steps, bound = method(model, start)
    return point, steps, time.process_time() - begun, bound


def _outcome(model: Balanced, row: Row, bound: float, dead: Mask, curvature: bool) -> Outcome:
    point, steps, seconds, _ = row
    here, objective = Local(model, point), model.unsmoothed(point)
    return Outcome(
        objective=objective,
        gap=(objective - bound) / abs(objective),
        stationarity=here.stationarity,
        wrongly_dead=int((_dead(model, point) & ~dead).sum()),
        curvature=smallest_curvature(here) if curvature else np.nan,
        steps=steps,
        seconds=seconds,
    )


def _dead(model: Balanced, point: Point) -> Mask:
    sqnorms = (model.features(point) ** 2).sum(axis=1)
    return np.asarray(sqnorms <= DEAD * max(float(sqnorms.max()), 1e-300))


def smallest_curvature(here: Local) -> float:
    """Return the smallest Hessian eigenvalue on the free entries over κ, by Lanczos; NaN if that does not converge."""
    from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

    face = Face(here)
    size = face.lower.size
    operator = LinearOperator((size, size), matvec=lambda x: face.curve(x.ravel()) / here.model.kappa, dtype=np.float64)
    start = np.random.default_rng(0).normal(size=size)
    try:
        return float(eigsh(operator, k=1, which="SA", v0=start, tol=1e-4, maxiter=400)[0][0])
    except ArpackNoConvergence:
        return float("nan")


def _value(model: Balanced, x: Array, shape: tuple[int, ...]) -> tuple[float, Array]:
    here = Local(model, Point(*unpack(x, shape)))
    return here.value, here.gradient


def _lowest(model: Balanced, shape: tuple[int, ...]) -> Array:
    floor = 0.0 if model.problem.relu else -np.inf
    return pack(np.full((model.size, shape[1]), -np.inf), np.full(shape, floor), np.full(model.size, -np.inf))


def gradient_descent(model: Balanced, start: Point) -> tuple[Point, int, float]:
    """Projected gradient descent; the step doubles after success and halves until the objective falls enough."""
    shape, x = start.V.shape, pack(start.U, start.V, start.b)
    low, rate = _lowest(model, shape), 1.0 / model.kappa
    value, gradient = _value(model, x, shape)
    for step in range(GRADIENT_STEPS):
        moved = np.maximum(x - rate * gradient, low)
        found, turned = _value(model, moved, shape)
        if found <= value - 1e-4 * float(gradient @ (x - moved)):
            if value - found <= 1e-15 * abs(value):
                return Point(*unpack(moved, shape)), step + 1, np.nan
            x, value, gradient, rate = moved, found, turned, 1.5 * rate
        else:
            rate *= 0.5
    return Point(*unpack(x, shape)), GRADIENT_STEPS, np.nan


def adam(model: Balanced, start: Point) -> tuple[Point, int, float]:
    """Adam with its usual constants and a cosine schedule, projected."""
    shape, x = start.V.shape, pack(start.U, start.V, start.b)
    low, mean, square = _lowest(model, shape), np.zeros_like(x), np.zeros_like(x)
    for step in range(1, ADAM_STEPS + 1):
        gradient = _value(model, x, shape)[1]
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        rate = 0.5 * ADAM_RATE * (1 + np.cos(np.pi * step / ADAM_STEPS))
        root = np.sqrt(square / (1 - 0.999**step)) + 1e-8 * model.kappa
        x = np.maximum(x - rate * mean / (1 - 0.9**step) / root, low)
    return Point(*unpack(x, shape)), ADAM_STEPS, np.nan


def bounded_lbfgs(model: Balanced, start: Point) -> tuple[Point, int, float]:
    """scipy's L-BFGS-B with all the precision it has."""
    from scipy.optimize import Bounds, minimize

    shape, low = start.V.shape, _lowest(model, start.V.shape)
    done = minimize(
        lambda x: _value(model, x, shape),
        pack(start.U, start.V, start.b),
        jac=True,
        method="L-BFGS-B",
        bounds=Bounds(low, np.inf),
        options={"maxiter": LBFGS_STEPS, "maxfun": 2 * LBFGS_STEPS, "ftol": 0, "gtol": 1e-13, "maxcor": 20},
    )
    return Point(*unpack(np.maximum(done.x, low), shape)), int(done.nfev), np.nan


def certified(model: Balanced, start: Point) -> tuple[Point, int, float]:
    """The certified solver of :func:`collapsekit.solve`, from the same start."""
    search = Search(model.problem, 1e-8, Progress(10_000), np.random.default_rng(0))
    search.run(start)
    solution = search.solution()
    point = model.point(solution.weights, solution.features, solution.bias)
    return point, solution.steps, solution.lower_bound


METHODS: dict[str, Callable[[Balanced, Point], tuple[Point, int, float]]] = {
    "gradient descent": gradient_descent,
    "adam": adam,
    "bounded L-BFGS": bounded_lbfgs,
    "certified": certified,
}
