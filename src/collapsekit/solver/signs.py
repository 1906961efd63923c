r"""The doubly non-negative bound by descent, and branch and bound over signs where it is loose.

``max vᵀA v`` over unit ``v ≥ 0`` is attained where ``λ v = (A v)_+``: a type t of samples has ``v_t = 0`` and
``(A v)_t ≤ 0``, or ``(A v)_t ≥ 0``. In a branch some types are decided; with a row of E for each entry of v that is
left, and ``± (A v)_t`` for each decided one, ``E v ≥ 0`` and

.. math:: v^\top A v \le \lambda_{\max}(A + E^\top N E) \quad\text{for every } N \ge 0.

The density matrix of the best N tells which type to decide next: one that is, in it, active and inactive at once.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from itertools import count

import numpy as np
from numpy.typing import NDArray

from collapsekit.losses.sums import EPS
from collapsekit.validation import Array

SMOOTHED = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9)
"""How the largest eigenvalue is smoothed, in units of κ²."""
FEW = 100
"""Steps of a descent for each smoothing."""
MOST_BRANCHES = 400
"""Of one bound: a tenth of a second each at 50 types, a third at 100."""


ROUNDING = 1e-11
"""How far below 1 a descent ends, more than what rows of E of unit length and N add to its bound by rounding."""


@dataclass(frozen=True)
class Relaxed:
    """A bound, the N that yields it, and the density matrix of the smoothed eigenvalue."""

    bound: float
    N: Array
    density: Array


def relaxed(A: Array, E: Array, N: Array, start: float = 1.0, until: float = np.inf) -> Relaxed:
    """Return a bound near ``min λ_max(A + Eᵀ N E)`` over ``N ≥ 0``; whether it is at most 1 decides how far it goes.

    ``μ log tr exp((A + EᵀNE)/μ)`` for a falling μ (at most `start`), smooth and at most ``μ log T`` above, by descents
    of FEW steps. Bounds are eigenvalues without smoothing, so that they hold whatever the descents' accuracy.
    """
    from scipy.optimize import Bounds, minimize

    pairs, best, size = np.tril_indices(len(E), -1), np.inf, len(E)  # a diagonal would only raise the eigenvalue
    x = 2 * N[pairs]
    lowest, density = x, np.eye(len(A)) / len(A)

    def value(x: Array, mu: float) -> tuple[float, Array]:
        nonlocal best, lowest, density
        N = np.zeros((size, size))
        N[pairs] = 0.5 * x
        values, vectors = np.linalg.eigh(A + E.T @ (N + N.T) @ E)
        shares = np.exp((values - values[-1]) / mu)
        keep, total = shares > 1e-17, shares.sum()
        top = vectors[:, keep] * np.sqrt(shares[keep] / total)
        if values[-1] < best:
            best, lowest, density = float(values[-1]), x.copy(), top @ top.T
        slopes = E @ top
        return float(values[-1] + mu * np.log(total)), (slopes @ slopes.T)[pairs]

    def stop(_: Array) -> None:
        if best <= 1 - ROUNDING or time.monotonic() > until:
            raise StopIteration

    options = {"maxiter": FEW, "maxcor": 20, "ftol": 0, "gtol": 1e-14}
    for mu in (mu for mu in SMOOTHED if mu <= start):
        last, bounds = best, Bounds(np.zeros(x.size), np.inf)
        x = minimize(value, x, (mu,), "L-BFGS-B", True, bounds=bounds, options=options, callback=stop).x
        # done, late, or loose: smoothing is not what is left
        if best <= 1 - ROUNDING or time.monotonic() > until or best - 1 > max(10 * mu, 0.7 * (last - 1)):
            break
    N = np.zeros((size, size))
    N[pairs] = 0.5 * lowest
    return Relaxed(best + 4 * size * EPS * 2 * float(N.sum()), N + N.T, density)


@dataclass(frozen=True)
class Branch:
    """Rows of ``[I; ±A]`` that are nonnegative in it, by number, the sign of each decided type, and its bound."""

    rows: NDArray[np.intp]
    signs: Array
    found: Relaxed

    @property
    def types(self) -> NDArray[np.intp]:
        """The types that may be active."""
        return self.rows[self.rows < len(self.signs)]


def branched(A: Array, N: Array, until: float = np.inf) -> float:
    """Return a bound on ``vᵀA v`` for unit ``v ≥ 0``: 1 if that is proved, else the highest of the branches left.

    N is where the first descent starts.
    """
    T, order = len(A), count()
    first = Branch(np.arange(T, dtype=np.intp), np.zeros(T), relaxed(A, np.eye(T), N, until=until))
    heap = [(-first.found.bound, next(order), first)]
    while heap and heap[0][0] < -1 and time.monotonic() < until and next(order) < MOST_BRANCHES:
        t = _undecided(A, heap[0][2])
        if t is None:
            break
        for child in _children(A, heappop(heap)[2], t, until):
            if child.found.bound > 1:
                heappush(heap, (-child.found.bound, next(order), child))
    return max(1.0, -heap[0][0]) if heap else 1.0


def _undecided(A: Array, branch: Branch) -> int | None:
    """The type whose entry is positive and whose product is negative by most, the lesser of both; None if none is."""
    types = branch.types
    B, X = A[np.ix_(types, types)], branch.found.density
    active = np.diagonal(X)
    inactive = np.einsum("ij,ij->i", B @ X, B) - active
    split = np.where(branch.signs[types] == 0, np.minimum(active, inactive), -np.inf)
    return int(types[split.argmax()]) if len(types) > 1 and split.max() > -np.inf else None


def _children(A: Array, branch: Branch, t: int, until: float) -> Iterator[Branch]:
    """Yield the branches in which type t is decided, their descents started where that of the parent ended."""
    T = len(A)
    N = np.zeros((2 * T, 2 * T))
    N[np.ix_(branch.rows, branch.rows)] = branch.found.N
    for sign in (-1.0, 1.0):
        signs = branch.signs.copy()
        signs[t] = sign
        rows = np.append(branch.rows if sign > 0 else branch.rows[branch.rows != t], T + t)
        yield _bounded(A, replace(branch, rows=rows, signs=signs), N[np.ix_(rows, rows)], until)


def _bounded(A: Array, branch: Branch, N: Array, until: float) -> Branch:
    """Return the branch with the bound that a descent from N yields."""
    products = branch.signs[:, None] * A / np.sqrt((A**2).sum(axis=1) + 1e-300)[:, None]
    E = np.vstack([np.eye(len(A)), products])[np.ix_(branch.rows, branch.types)]
    start = max(1e-6, 3 * (branch.found.bound - 1))
    B = A[np.ix_(branch.types, branch.types)]
    found = relaxed(B, E, np.zeros_like(N) if np.linalg.eigvalsh(B)[-1] <= 1 else N, start, until)
    return replace(branch, found=replace(found, bound=min(found.bound, branch.found.bound)))
