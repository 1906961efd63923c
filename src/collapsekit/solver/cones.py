r"""The polar of few dimensions exactly: branch and bound over simplicial cones.

With ``A = L Lᵀ`` of rank n, ``max{vᵀA v : ‖v‖ = 1, v ≥ 0} = max{‖(L w)_+‖² : ‖w‖ = 1}``: n dimensions, however many
classes or types there are. In a cone ``w = G α``, ``α ≥ 0``, a row l of L whose products with the generators have one
sign adds ``(lᵀw)²`` or 0; one of both signs adds at most ``(lᵀw)²``, and at most ``(Σ_i (lᵀg_i)_+ α_i)²``. Hence

.. math:: \alpha^\top B\,\alpha = h\,\lVert w\rVert^2 - \sum_l (r_l^\top \alpha)^2 \le h\,\lVert w\rVert^2
          - \lVert (L w)_+\rVert^2,

and the cone is done if B, or B without its positive entries off the diagonal, has no negative eigenvalue. Any other
is cut in two, where a row changes its sign if one does. Within a sign pattern the sum is exact, so that cones around a
maximiser need not become small.
"""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from collapsekit.losses.sums import EPS
from collapsekit.validation import Array

MOST_DIMENSIONS = 5
"""Rank up to which cones are cut: about 1,000 cones in three dimensions, 10,000 in four, some 200,000 in five."""
MOST_CONES = 400_000
"""Three seconds or so."""
AT_ONCE = 2_000
"""Cones tried at once: arrays of some megabytes."""
RANK = 1e-13
"""Relative eigenvalue that counts as 0, and is added to the bound."""
ROUNDING = 1e-12
"""Eigenvalue of B that counts as 0, relative, and is added to the bound."""
ABOVE = 1e-10
"""Relative height above the highest point that is known, at which the bound is tried."""
STARTS, STEPS = 300, 300
"""Random directions that ascend; what they miss shows as cones that cannot be done."""


def factor(A: Array) -> tuple[Array, float]:
    """Return L, (T, n), with ``0 ≤ A − L Lᵀ ≤ rest`` up to rounding, and the rest."""
    values, vectors = np.linalg.eigh(A)
    keep = values > RANK * max(float(values[-1]), 1e-300)
    return vectors[:, keep] * np.sqrt(values[keep]), max(0.0, float(values[~keep].max(initial=0.0)))


def highest(L: Array, starts: int = STARTS, steps: int = STEPS) -> Array:
    """Return directions v, (starts, T), nonnegative of unit length, to which random ``w`` ascend.

    Starts in all n dimensions reach maxima that no start from a single class or type does.
    """
    w = np.random.default_rng(0).normal(size=(starts, L.shape[1]))
    v = np.maximum(w @ L.T, 0.0)
    for _ in range(steps):
        w = v @ L
        w /= np.maximum(np.linalg.norm(w, axis=1, keepdims=True), 1e-300)
        v = np.maximum(w @ L.T, 0.0)
    return np.asarray(v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-300))


def by_cones(A: Array, target: float, until: float = np.inf) -> float:
    """Return an upper bound on ``Ω°²``: the target, or a rounding above the highest point found; ∞ if given up."""
    L, rest = factor(A)
    if L.shape[1] > MOST_DIMENSIONS:
        return np.inf
    v = highest(L)
    found = float(((v @ L) ** 2).sum(axis=1).max())
    height = max(target if np.isfinite(target) else 0.0, found * (1 + ABOVE))
    if not below(L / np.sqrt(height), until):
        return np.inf
    return float(height * (1 + ROUNDING + L.shape[1] * len(L) * EPS * float((L**2).sum()) / height) + rest)


def below(L: Array, until: float = np.inf, most: int = MOST_CONES) -> bool:
    """Return whether ``‖(L w)_+‖ ≤ 1`` for every unit w, up to rounding, is proved."""
    n = L.shape[1]
    signs = np.array(np.meshgrid(*[[1.0, -1.0]] * n)).reshape(n, -1).T
    stack, tried = [signs[:, None, :] * np.eye(n)], 0
    while stack:
        G = stack.pop()
        if len(G) > AT_ONCE:
            stack.append(G[AT_ONCE:])
            G = G[:AT_ONCE]
        tried += len(G)
        if tried > most or time.monotonic() > until:
            return False
        C = L @ G
        left = ~_done(G, C)
        if left.any():
            stack.append(_cut(G[left], C[left]))
    return True


def _done(G: Array, C: Array) -> NDArray[np.bool_]:
    """Return of which cones B is copositive for a plain reason; generators (m, n, n), their products (m, T, n)."""
    positive = np.maximum(C, 0.0)
    mostly = positive.max(axis=2) >= -C.min(axis=2)
    rows = np.where(mostly[:, :, None], C, positive)
    B = np.swapaxes(G, 1, 2) @ G - np.swapaxes(rows, 1, 2) @ rows
    lowered = np.where(np.eye(B.shape[1], dtype=bool), B, np.minimum(B, 0.0))
    return np.asarray((np.linalg.eigvalsh(np.stack([B, lowered]))[:, :, 0] >= -ROUNDING).any(axis=0))


def _cut(G: Array, C: Array) -> Array:
    """Return both halves of each cone: cut along the row that is the most of both signs, or the longest edge in two."""
    each, n = np.arange(len(G)), G.shape[1]
    mixed = np.minimum(C.max(axis=2), -C.min(axis=2))
    row = C[each, mixed.argmax(axis=1)]
    first, second = row.argmax(axis=1), row.argmin(axis=1)
    one, other = -row[each, second], row[each, first]  # weights at which the row vanishes between the two
    longest = (np.swapaxes(G, 1, 2) @ G).reshape(len(G), -1).argmin(axis=1)
    same = mixed.max(axis=1) <= ROUNDING
    first, second = np.where(same, longest // n, first), np.where(same, longest % n, second)
    one, other = np.where(same, 1.0, one), np.where(same, 1.0, other)
    between = one[:, None] * G[each, :, first] + other[:, None] * G[each, :, second]
    between /= np.linalg.norm(between, axis=1, keepdims=True)
    halves = G.copy(), G.copy()
    halves[0][each, :, first] = between
    halves[1][each, :, second] = between
    return np.concatenate(halves)
