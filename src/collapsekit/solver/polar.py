r"""The polar of the gauge, ``Ω°(Y) = max{‖Y v‖ : ‖v‖ = 1, v ≥ 0}``: upper bounds, and directions that come near it.

With ``A = YᵀY`` every bound here is a bound on ``max vᵀA v``. Whenever ``N ≥ 0`` elementwise,

.. math:: v^\top A v \le v^\top (A + N) v \le \lambda_{\max}(A + N) \quad\text{for } v \ge 0,

so each N gives one; the best N gives the doubly non-negative (semidefinite) bound.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from itertools import combinations
from typing import Any

import numpy as np

from collapsekit.solver import signs
from collapsekit.solver.cones import by_cones, factor, highest
from collapsekit.validation import Array

EXACT_LEAST_SQUARES, LARGEST_SEMIDEFINITE = 40, 60
"""Classes up to which N is found by non-negative least squares, and up to which semidefinite programs are solved: a
second or so each."""
LARGEST_EXACT = 15
"""Classes up to which all supports are enumerated: 2^15 small eigenproblems, half a second."""
LARGEST_DESCENT = 128
"""Classes or types up to which N is found by descent: half a second for a hundred."""
HOPEFUL, CLOSE, LONGEST = 1.5, 1e-8, 20.0
"""How near to the target, relative, a bound must be for branches to be tried; what they prove, relative to it; and
seconds after which they give up: 5 are usual at 50 types of ten classes."""
NEAR = 1 + 1e-4
"""How near to the target, relative, a descent must come for a semidefinite program to be solved."""
MANY_TYPES = 400
"""Types of samples up to which escapes are also looked for from random starts, 0.1 s or so; classes alone, of which no
matrix has a low rank, need none."""
PATIENT = 10.0
"""Seconds that must be left for a semidefinite program, which cannot be stopped, to be begun."""
POSITIVE_PART, COMPLEMENTARY, EXACT, CONES, DESCENT, BRANCHES, SEMIDEFINITE, SPECTRAL = (
    "positive-part eigenvalue",
    "eigenvalue complementary to the features",
    "exact by supports",
    "exact by cones",
    "doubly non-negative by descent",
    "doubly non-negative in branches",
    "doubly non-negative",
    "spectral norm",
)
SLACK = 1e-14
"""Upper bounds are raised by this share a class, 45 times the machine's epsilon: LAPACK's eigenvalues err by a modest
multiple of epsilon times the norm, less than one a class."""


def upper_bound(A: Array, V: Array | None, relu: bool, target: float, until: float = np.inf) -> tuple[float, str]:
    """Return an upper bound on ``Ω°(Y)²`` and its name: the first at most `target`, or else the tightest at hand.

    Parameters
    ----------
    A : ndarray, shape (K, K)
        ``YᵀY``.
    V : ndarray, shape (K, r), optional
        Features, rows as classes: a hint, by which no bound can become wrong.
    relu : bool
        Whether v is nonnegative.
    target : float
        κ², or a little more: a bound this low needs no better one.
    until : float
        By the monotonic clock: a descent on N stops then, and what it has found is a bound like any other.
    """
    raised = 1 + SLACK * len(A)
    if not relu:
        return raised * largest_eigenvalue(A), SPECTRAL
    size, N, best, name = len(A), np.maximum(-A, 0.0), np.inf, ""

    def by_descent() -> float:
        nonlocal N
        found = signs.relaxed(A / target, np.eye(size), N / target, until=until)
        N = target * found.N
        return target * found.bound

    def branched() -> float:
        return target * by_branches(A / target, N / target, until) if best <= HOPEFUL * target else np.inf

    def complementary() -> float:
        nonlocal N
        assert V is not None
        N = target * complement(A / target, V, until)
        return largest_eigenvalue(A + N)

    def semidefinite_if_near() -> float:
        patient = size <= LARGEST_SEMIDEFINITE and until - time.monotonic() > PATIENT and find_spec("cvxpy") is not None
        return semidefinite(A) if patient and best <= NEAR * target else np.inf

    bounds: list[tuple[str, Callable[[], float]]] = [(POSITIVE_PART, lambda: largest_eigenvalue(np.maximum(A, 0.0)))]
    if V is not None and V.size and np.isfinite(target):
        bounds.append((COMPLEMENTARY, complementary))
    if size <= LARGEST_EXACT:
        bounds.append((EXACT, lambda: by_supports(A)[0]))
    else:
        bounds.append((CONES, lambda: by_cones(A, target, until)))
        if size <= LARGEST_DESCENT:
            bounds += [(DESCENT, by_descent), (BRANCHES, branched)]
        bounds.append((SEMIDEFINITE, semidefinite_if_near))
    for kind, bound in bounds:
        value = raised * bound()
        if value < best:
            best, name = value, kind
        if best <= target or name in (CONES, BRANCHES):  # nothing is tighter
            break
    return best, name


def largest_eigenvalue(matrix: Array) -> float:
    """Return the largest eigenvalue of a symmetric matrix, by LAPACK; 0 if none is positive."""
    return max(0.0, float(np.linalg.eigvalsh(matrix)[-1]))


def complement(A: Array, V: Array, until: float = np.inf) -> Array:
    """Return ``N ≥ 0`` with ``(A + N) V = V`` as nearly as can be and ``N = 0`` where two classes share a coordinate.

    If features V are optimal and A is in units of κ², some N of this kind makes ``λ_max(A + N) = 1`` whenever the
    doubly non-negative bound is tight (complementary slackness), and there is little freedom left. Least squares with
    bounds: exactly up to EXACT_LEAST_SQUARES classes, by L-BFGS beyond.
    """
    # coordinates as long as they are: what is left of one that fades away has features of noise, and weighs nothing
    V = V / max(float(np.linalg.norm(V, axis=0).max()), 1e-300)
    lengths = np.linalg.norm(V, axis=1)
    # classes that share a coordinate by more than what descents leave of one
    apart = np.tril(1e-9 * np.outer(lengths, lengths) >= V @ V.T)
    rows, columns = np.nonzero(apart)
    wanted, N = V - A @ V, np.zeros_like(A)
    if rows.size:
        start = np.maximum(-A, 0.0)[rows, columns]
        if len(A) <= EXACT_LEAST_SQUARES:
            found = _least_squares(V, wanted, (rows, columns), start)
        else:
            found = _descended(V, wanted, (rows, columns), start, until)
        N[rows, columns] = np.maximum(found, 0.0)
    return np.asarray(np.maximum(N, N.T))


def _least_squares(V: Array, wanted: Array, pairs: tuple[Any, Any], start: Array) -> Array:
    from scipy.optimize import nnls

    rows, columns = pairs
    each, nudge = np.arange(rows.size), 1e-7  # towards the start where N is not determined
    matrix = np.zeros((rows.size, *V.shape))
    matrix[each, rows] = V[columns]
    matrix[each, columns] = np.where((rows == columns)[:, None], V[columns], V[rows])
    tall = np.vstack([matrix.reshape(rows.size, -1).T, nudge * np.eye(rows.size)])
    try:
        return np.asarray(nnls(tall, np.concatenate([wanted.ravel(), nudge * start]))[0])
    except RuntimeError:  # too many iterations
        return start


def _descended(V: Array, wanted: Array, pairs: tuple[Any, Any], start: Array, until: float) -> Array:
    from scipy.optimize import Bounds, minimize

    rows, columns = pairs
    share = np.where(rows == columns, 0.5, 1.0)

    def value(x: Array) -> tuple[float, Array]:
        N = np.zeros((len(V), len(V)))
        N[rows, columns] = x * share
        apart = (N + N.T) @ V - wanted
        slope = apart @ V.T
        return 0.5 * float((apart**2).sum()), (slope + slope.T)[rows, columns] * share

    def stop(_: Array) -> None:
        if time.monotonic() > until:
            raise StopIteration

    options = {"maxiter": 2000, "maxfun": 4000, "ftol": 0, "gtol": 1e-14, "maxcor": 30}
    bounds = Bounds(np.zeros(rows.size), np.inf)
    done = minimize(value, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options, callback=stop)
    return np.asarray(done.x)


def by_branches(A: Array, N: Array, until: float = np.inf) -> float:
    """Return a bound on ``Ω°²`` by branch and bound over signs, 1 and a rounding if that is proved, ∞ if not tried.

    Tried where A has a low rank (types of samples) and no direction is found above.
    """
    L = factor(A)[0]
    v = highest(L)
    if 4 * L.shape[1] > 3 * len(A) or ((v @ L) ** 2).sum(axis=1).max(initial=0.0) > 1 + CLOSE:
        return np.inf
    until = min(until, time.monotonic() + LONGEST)
    return (1 + CLOSE) * signs.branched(A / (1 + CLOSE), N / (1 + CLOSE), until)


def by_supports(A: Array) -> tuple[float, Array]:
    """Return ``Ω°²`` and where it is attained, by the top eigenvector of every principal block: 2^K of them.

    On its support the maximiser is positive, hence interior, hence a top eigenvector of the block; a block whose top
    eigenvalue is multiple can be left out, because its maximiser can be moved to a smaller support.
    """
    size = len(A)
    best, where = 0.0, np.eye(size)[np.diagonal(A).argmax()]
    for count in range(1, size + 1):
        supports = np.array(list(combinations(range(size), count)))
        for part in np.split(supports, range(20_000, len(supports), 20_000)):
            values, vectors = np.linalg.eigh(A[part[:, :, None], part[:, None, :]])
            top = vectors[:, :, -1]
            top *= np.sign(np.take_along_axis(top, np.abs(top).argmax(axis=1)[:, None], 1))
            # a support too many only raises the bound; entries this small are the rounding of zeros
            fits = np.where((top >= -1e-10).all(axis=1), values[:, -1], -np.inf)
            winner = int(fits.argmax())
            if fits[winner] > best:
                best, where = float(fits[winner]), np.zeros(size)
                where[part[winner]] = np.maximum(top[winner], 0.0)
    return best, where


def semidefinite(A: Array) -> float:
    """Return ``min λ_max(A + N)`` over ``N ≥ 0`` (needs the `sdp` extra); rigorous whatever the solver's accuracy.

    N is made nonnegative and the eigenvalue is computed again.
    """
    import cvxpy

    cp: Any = cvxpy

    scale = max(largest_eigenvalue(A), 1e-300)
    extra = cp.Variable(A.shape, symmetric=True)
    problem = cp.Problem(cp.Minimize(cp.lambda_max(A / scale + extra)), [extra >= 0])
    with suppress(cp.SolverError), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of inaccuracy: the bound is computed anew
        problem.solve(solver=cp.CLARABEL)
    if extra.value is None:
        return np.inf
    N = np.maximum(0.5 * (extra.value + extra.value.T), 0.0) * scale
    return largest_eigenvalue(A + N)


def ascents(A: Array, relu: bool, starts: Array, steps: int = 60) -> Array:
    """Return unit vectors, (m, K), to which the starts (m, K) ascend: ``v ← max(A v, 0)``, normalised.

    ``‖Y v‖²`` is convex, so that no step lowers it. Without ReLU: the top eigenvector.
    """
    if not relu:
        return np.asarray(np.linalg.eigh(A)[1][:, -1:].T)
    v = starts / np.linalg.norm(starts, axis=1, keepdims=True)
    for _ in range(steps):  # a direction above κ is enough, so that slow convergence does no harm
        moved = np.maximum(v @ A, 0.0)
        length = np.linalg.norm(moved, axis=1, keepdims=True)
        moved = np.where(length > 0, moved / np.where(length > 0, length, 1.0), v)
        if np.abs(moved - v).max() < 1e-12:
            break
        v = moved
    return np.asarray(v)


def escape_directions(A: Array, relu: bool, above: float, most: int) -> Array:
    """Return distinct nonnegative unit v with ``vᵀA v > above``, steepest first, (m, K), m at most `most`.

    Single classes come first: coordinates of one class each are the frame, from which the others differ little.
    """
    size, alone = len(A), np.diagonal(A)
    if relu and alone.max() > above:
        order = np.argsort(-alone)[:most]
        return np.asarray(np.eye(size)[order[alone[order] > above]])
    if relu and size > LARGEST_EXACT and largest_eigenvalue(np.maximum(A, 0.0)) <= above:
        return np.zeros((0, size))  # no v reaches it, and one eigenvalue costs less than K ascents
    starts = np.concatenate([np.eye(size), np.maximum(A, 0.0).sum(axis=1)[None] + 1e-300])
    chosen = _steepest(A, ascents(A, relu, starts), above, most)
    if len(chosen) or not relu:
        return chosen
    if size <= LARGEST_EXACT:
        height, v = by_supports(A)
        return v[None] if height > above else chosen
    L = factor(A)[0] if size <= MANY_TYPES else A
    return _steepest(A, highest(L), above, most) if 4 * L.shape[1] <= 3 * size else chosen


def _steepest(A: Array, found: Array, above: float, most: int) -> Array:
    """Return the distinct ones of the directions (m, K) that are higher than `above`, steepest first."""
    heights = np.einsum("ij,ij->i", found @ A, found)
    chosen: list[int] = []
    for i in np.argsort(-heights):
        if heights[i] <= above or len(chosen) == most:
            break
        if all(abs(found[i] @ found[j]) < 0.999 for j in chosen):
            chosen.append(int(i))
    return np.asarray(found[chosen])
