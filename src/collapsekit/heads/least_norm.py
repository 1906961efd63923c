"""The shortest input at which a class has the largest logit: how far training would have to drive a feature."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from collapsekit.validation import Array

ADDED, ROUNDS = 50, 60
"""Rivals that come in a round, and rounds."""
FEASIBLE = 1e-9
"""Violation, relative to the sizes that are subtracted, up to which a rival counts as beaten; float64 reaches it."""


def least_norm(weight: NDArray[np.floating], bias: NDArray[np.floating], row: int, lower: float | None = None) -> float:
    """Return the least norm of an input (of at least `lower` in each coordinate) at which no other logit is larger.

    Least distance programming after Lawson and Hanson (Solving Least Squares Problems, chapter 23): nonnegative least
    squares in the multipliers; rivals come in as they are violated. NaN where there is no such input, or none found.
    """
    own, lead = weight[row].astype(np.float64), bias.astype(np.float64) - float(bias[row])
    size, point = weight.shape[1], np.zeros(weight.shape[1])
    if lower is not None and lower > 0:
        point[:] = lower
    rivals = np.empty(0, dtype=np.intp)
    for _ in range(ROUNDS):
        behind = weight @ point - own @ point + lead
        tolerance = FEASIBLE * (float(np.abs(own) @ np.abs(point)) + float(np.abs(lead).max()))
        worst = np.argsort(-behind)[:ADDED]
        fresh = np.setdiff1d(worst[behind[worst] > tolerance], rivals)
        if not fresh.size:
            return float(np.linalg.norm(point)) if behind.max() <= 100 * tolerance else np.nan
        rivals = np.concatenate([rivals, fresh])
        rows, least = own - weight[rivals].astype(np.float64), lead[rivals]
        if lower is not None:
            rows, least = np.vstack([rows, np.eye(size)]), np.append(least, np.full(size, lower))
        found = _least_distance(rows, least)
        if found is None:
            return np.nan
        point = found if lower is None else np.maximum(found, lower)
    return np.nan


def _least_distance(rows: Array, least: Array) -> Array | None:
    """The x of least norm with ``rows @ x >= least``; None where there is none."""
    from scipy.optimize import nnls

    scale = np.maximum(np.sqrt((rows**2).sum(axis=1) + least**2), np.finfo(float).tiny)
    stacked = np.column_stack([rows, least]).T / scale
    goal = np.append(np.zeros(rows.shape[1]), 1.0)
    try:
        multipliers, _ = nnls(stacked, goal, maxiter=20 * stacked.shape[1])
    except RuntimeError:  # too many iterations
        return None
    rest = stacked @ multipliers - goal
    return None if abs(rest[-1]) < FEASIBLE else -rest[:-1] / rest[-1]
