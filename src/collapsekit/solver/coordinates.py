"""Coordinates of features and classifier: rounding a start, removing and merging, adding where the polar says so."""

from __future__ import annotations

import numpy as np

from collapsekit.losses.sums import EPS
from collapsekit.solver.model import Balanced, Point
from collapsekit.solver.strips import Index
from collapsekit.validation import Array

NEGLIGIBLE = 1e-12
"""A coordinate with less than this share of the penalty is removed: a gap of 1e-8 does not resolve it."""
PROPORTIONAL = 1e-7
"""Coordinates whose features point the same way up to this sine are merged: cosines resolve no smaller one (1e-15)."""


def room(model: Balanced) -> int:
    """Return the most coordinates that the search keeps, whatever `dim`: the optimum needs about K, escapes a few."""
    most = max(model.size, model.rows)
    return most + most // 4 + 4


def rounded(model: Balanced, start: Point) -> Point:
    """Return the start with each coordinate given to its dominant class and each class's coordinates merged, (K, ≤ K).

    Without ReLU: the singular value decomposition of the same logits, at the least penalty.
    """
    if not model.problem.relu:
        return svd_factors(start)
    owner, lengths = start.V.argmax(axis=0), np.linalg.norm(start.V, axis=0)
    classes = np.unique(owner[lengths > 0])
    belongs = (owner[:, None] == classes) * lengths[:, None]
    size = np.sqrt((belongs**2).sum(axis=0))
    V = np.zeros((model.rows, len(classes)))
    V[classes, np.arange(len(classes))] = size
    return Point(start.U @ belongs / size, V, start.b)


def responding(model: Balanced, point: Point) -> Point:
    """Return the point with each classifier column along the steepest descent for its features, at the best size.

    Lengths of the features keep their proportions; each column is balanced. Classes of one coordinate each then lower
    the objective together, where arbitrary columns would have to be turned round first.
    """
    slopes = model.loss.evaluate(np.zeros((model.rows, model.size)) + point.b)[1]
    responses = -(model.factors[:, None] * slopes).T @ point.V
    lengths = np.maximum(np.linalg.norm(responses, axis=0), 1e-300)
    U = responses / lengths * np.linalg.norm(point.V, axis=0)
    # powers of 2 from a quarter to a thousand: weak penalties want logits far above those of small starts
    trials = [Point(size * U, size * point.V, point.b) for size in 2.0 ** np.arange(-2, 11)]
    return min(trials, key=model.objective)


def svd_factors(point: Point) -> Point:
    """Return balanced factors of the same ``V Uᵀ`` with at most K coordinates: the least penalty without ReLU."""
    v, s, u = np.linalg.svd(point.V @ point.U.T, full_matrices=False)
    keep = s > NEGLIGIBLE * max(float(s.max(initial=0.0)), 1e-300)
    root = np.sqrt(s[keep])
    return Point(u[keep].T * root, v[:, keep] * root, point.b)


def cleared(model: Balanced, point: Point) -> Point:
    """Return the point without coordinates that are a negligible share of the penalty, or a rounding of the objective.

    The latter are what descents leave of a complete collapse.
    """
    weight = np.linalg.norm(point.U, axis=0) * np.linalg.norm(point.V, axis=0)
    keep = weight > max(NEGLIGIBLE * weight.sum(), EPS * model.objective(point) / model.kappa)
    return Point(point.U[:, keep], point.V[:, keep], point.b)


def tidied(model: Balanced, point: Point) -> Point:
    """Return the point without negligible coordinates, proportional ones merged; the penalty never grows.

    Without ReLU: its singular value decomposition.
    """
    point = cleared(model, point if model.problem.relu else svd_factors(point))
    if point.V.shape[1] == 0:
        return point
    lengths = np.linalg.norm(point.V, axis=0)
    unit = point.V / lengths
    near = 1 - unit.T @ unit < 0.5 * PROPORTIONAL**2 + 1e-15
    first = near.argmax(axis=1)  # the first coordinate that each one is proportional to
    groups = np.unique(first)
    if len(groups) == len(first):
        return point
    belongs = (first[:, None] == groups) * lengths[:, None]
    u, v = point.U @ belongs, unit[:, groups]
    length = np.sqrt(np.linalg.norm(u, axis=0)) + 1e-300
    return Point(u / length, v * length, point.b)


def added(model: Balanced, point: Point, directions: Array, slopes: Array) -> Point | None:
    """Return the point with a coordinate along each direction v (m, K), of the best common size; None if none helps.

    The classifier's part is ``Y v``, so that both have one length: for small lengths the objective falls whenever
    ``‖Y v‖ > κ``.
    """
    responses = -(model.factors[:, None] * slopes).T @ directions.T
    heights = np.linalg.norm(responses, axis=0)
    rise = np.sqrt(np.maximum(heights / model.kappa - 1, 0.0))
    u, v = responses / heights * rise, directions.T * rise
    typical = np.linalg.norm(point.V, axis=0).max(initial=1.0)
    best, least = None, model.objective(point)
    for size in typical * 2.0 ** np.arange(2, -12, -1):  # from four times the typical size to 1/2,000 of it
        trial = Point(np.hstack([point.U, size * u]), np.hstack([point.V, size * v]), point.b)
        value = model.objective(trial)
        if value < least:
            best, least = trial, value
        elif best is not None:
            break
    return best


def staircase(point: Point, rows: Index, rank: Index) -> Point:
    """Return a point with triangular features in the order of `rank`, one coordinate for each of `rows` (so ordered).

    The Gram matrix of these rows and their logits stay as they are if the factor of Cholesky is nonnegative; what
    other rows have beyond their projection onto them is lost.
    """
    gram, logits = point.V @ point.V[rows].T, point.V[rows] @ point.U.T
    factor, order = np.linalg.cholesky(gram[rows]), np.argsort(rows)
    V, U = np.linalg.solve(factor, gram.T).T[:, order], np.linalg.solve(factor, logits).T[:, order]
    return Point(U, np.where(rank[:, None] >= rank[rows[order]], np.maximum(V, 0.0), 0.0), point.b)


def largest(point: Point, count: int) -> Point:
    """Return the `count` coordinates with the largest share of the penalty."""
    weight = np.linalg.norm(point.U, axis=0) * np.linalg.norm(point.V, axis=0)
    keep = np.sort(np.argsort(-weight, kind="stable")[:count])
    return Point(point.U[:, keep], point.V[:, keep], point.b)


def widened(point: Point, dim: int) -> Point:
    """Return the point with zero coordinates up to `dim`."""
    extra = ((0, 0), (0, max(0, dim - point.V.shape[1])))
    return Point(np.pad(point.U, extra), np.pad(point.V, extra), point.b)
