"""solve: local descent, escape and certificate in turn, until the gap is closed or the reason why not is known."""

from __future__ import annotations

import time

import numpy as np

from collapsekit.errors import CollapseError
from collapsekit.problem import UFM
from collapsekit.solver._certify import feasible
from collapsekit.solver.model import Balanced, Point
from collapsekit.solver.progress import Progress, Status
from collapsekit.solver.search import Search, random_start
from collapsekit.solver.solution import Solution
from collapsekit.validation import Array, positive_number, shorten, whole_number


@np.errstate(all="ignore")  # what is not finite is never accepted
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
    5. If more than d coordinates are in use, the best of them are kept and descended from, as are many random points;
       from the lowest end escape directions replace coordinates, and classes are exchanged, until nothing helps.

    Parameters
    ----------
    problem : UFM
        What to minimise; the lower bound holds for any dimension.
    seed : int
        Of the random starts ``|N(0, 0.1²)|`` in balanced variables.
    starts : int
        Random starts; the search ends at the first that is certified. The first is rounded, the others are not.
    tol : float
        Relative gap at which the result counts as globally optimal.
    start : tuple of array_like, optional
        (weights, features) or (weights, features, bias) of the first start in place of a random one; the result is
        never above where descent from there ends.
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
    >>> round(solution.objective, 10), solution.gap < 1e-8, solution.collapses.tolist()
    (0.7559496807, True, [False, False, False, True])
    >>> solve(UFM([500, 300, 40, 10], lambda_w=3e-2, lambda_h=1e-3, bias="free")).status
    <Status.OPTIMAL: 'globally optimal: the gap is at most the tolerance'>
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
    search = Search(problem, tol, progress, rng)
    try:
        for run in range(runs):
            search.run(random_start(problem, rng) if first is None or run else first, rounding=run == 0)
            if search.over:
                break
    except KeyboardInterrupt:
        progress.ended = Status.INTERRUPTED
    return search.solution()


def _given(problem: UFM, start: tuple[Array, ...]) -> Point:
    if not isinstance(start, tuple | list) or len(start) not in (2, 3):
        raise CollapseError(f"start={shorten(start)}: give (weights, features) or (weights, features, bias)")
    W, H, b = feasible(problem, start[0], start[1], start[2] if len(start) == 3 else None)
    return Balanced(problem).point(W, H, b)
