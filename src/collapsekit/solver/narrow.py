"""Fewer dimensions than classes: many descents at once, then exchanges of classes, as no certificate leads the way.

The landscape there is rough. On 200 random problems (3 to 10 classes, any fewer dimensions, with and without bias) the
best of ten descents was found by one of the ten only in 86; which classes share a direction decides, so that random
starts find the neighbourhood and exchanges of two classes the best arrangement.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np

from collapsekit.losses.sums import LossSum
from collapsekit.solver.model import Balanced, Point
from collapsekit.solver.progress import Progress
from collapsekit.validation import Array

Points = list[Array]
"""U (m, K, r), V (m, K, r) and b (m, K) of m points; with types of samples V (m, T, r)."""
MOST_POINTS, MOST_LOGITS = 64, 100_000
"""Points that descend at once, and the logits that they may have together: a second or so for a thousand steps."""
STEPS = 1000
"""With 300 steps 5 of 60 problems ended above the best of ten descents, with 1,000 one, mended by the moves."""
RATE, MEAN, SQUARE = 0.05, 0.9, 0.99
"""Adam's; the rate in units of the size that gives logits of TYPICAL, which thirty steps then cross."""
TYPICAL = 10.0
"""Logits at everyday penalties: errors of 1e-4 to 1e-5."""


def width(model: Balanced) -> int:
    """Return how many points may descend at once; at 0 or 1 there are too many classes for it to pay."""
    return min(MOST_POINTS, MOST_LOGITS // (model.size * model.rows))


def unit(model: Balanced) -> float:
    """Return the size of the entries of U and V at typical logits."""
    return float(np.sqrt(TYPICAL / model.factors.mean()))


def drawn(model: Balanced, dim: int, rng: np.random.Generator) -> Points:
    """Return random points, from a tenth of the typical size to all of it: where rare classes end depends on it."""
    count = width(model)
    sizes = unit(model) * np.geomspace(0.1, 1.0, count)[:, None, None]
    U, V = (sizes * rng.normal(size=(count, rows, dim)) for rows in (model.size, model.rows))
    return [U, np.abs(V) if model.problem.relu else V, np.zeros((count, model.size))]


def rearranged(point: Point, most: int, rng: np.random.Generator) -> Points:
    """Return the point with one class in all directions alike, or two exchanged: each way, or `most` of them.

    Types of samples exchange features alone.
    """
    size = len(point.V)
    pairs = np.array([*((k, k) for k in range(size)), *combinations(range(size), 2)])
    pairs = pairs[rng.permutation(len(pairs))[:most]]
    U, V, b = (np.repeat(array[None], len(pairs), axis=0) for array in (point.U, point.V, point.b))
    each, alone = np.arange(len(pairs)), pairs[:, 0] == pairs[:, 1]
    for array in (U, V, b) if len(point.U) == size else (V,):
        array[each[:, None], pairs] = array[each[:, None], pairs[:, ::-1]]
    V[each[alone], pairs[alone, 0]] = 0.5 * np.abs(point.V).max(initial=0.0)
    return [U, V, b]


def descended(model: Balanced, points: Points, progress: Progress) -> list[Point]:
    """Return where the points end after Adam with a cosine schedule, projected; the lowest first."""
    rate, x = RATE * unit(model), [array.copy() for array in points]
    mean, square = [[np.zeros_like(array) for array in x] for _ in range(2)]
    moving, loss = range(3 if model.has_bias else 2), model.problem.summed_loss(model.smoothing, len(x[0]))
    for step in range(1, STEPS + 1):
        gradients = slopes(model, loss, x)[1]
        size = 0.5 * rate * (1 + np.cos(np.pi * step / STEPS)) / (1 - MEAN**step)
        for i in moving:
            mean[i] = MEAN * mean[i] + (1 - MEAN) * gradients[i]
            square[i] = SQUARE * square[i] + (1 - SQUARE) * gradients[i] ** 2
            x[i] -= size * mean[i] / (np.sqrt(square[i] / (1 - SQUARE**step)) + 1e-8 * model.kappa)
        if model.problem.relu:
            np.maximum(x[1], 0.0, out=x[1])
        if progress.spent():
            break
    return [Point(*(array[i] for array in x)) for i in np.argsort(slopes(model, loss, x)[0])]


def slopes(model: Balanced, loss: LossSum, points: Points) -> tuple[Array, Points]:
    """Return the objectives of the points, (m,), and their gradients."""
    U, V, b = points
    factors, weights = model.factors[:, None], loss.weights.reshape(V.shape[:2])
    losses, gradient, _ = loss.parts((factors * (V @ U.swapaxes(1, 2)) + b[:, None]).reshape(-1, model.size))
    G = weights[..., None] * gradient.reshape(*V.shape[:2], model.size)
    penalties = model.kappa * ((U**2).sum(axis=(1, 2)) + (V**2).sum(axis=(1, 2)))
    values = (weights * losses.reshape(weights.shape)).sum(axis=1)
    values += 0.5 * (penalties + model.bias_penalty * (b**2).sum(axis=1))
    scaled = factors * G
    moved = [scaled.swapaxes(1, 2) @ V + model.kappa * U, scaled @ U + model.kappa * V]
    return values, [*moved, G.sum(axis=1) + model.bias_penalty * b]
