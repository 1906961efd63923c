"""BatchNorm's own parameters by brute force, every sample free: shift free, shift frozen, one class above one half."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import special
from scipy.optimize import minimize

from _support.tolerances import BRUTE_BATCHNORM, EXACT
from collapsekit import predict, solve
from collapsekit.recipe import BatchNorm, LastLayer

FREE_SHIFT = [
    ((6, 6, 6), 0.15, False),
    ((6, 6, 6), 0.15, True),
    ((12, 5, 3), 0.1, False),
    ((12, 5, 3), 0.1, True),
    ((12, 5, 3), 0.25, False),
    ((12, 5, 3), 0.25, True),
    ((20, 4, 4, 2), 0.12, False),
    ((20, 4, 4, 2), 0.12, True),
    ((9, 9, 2, 2), 0.3, False),
    ((9, 9, 2, 2), 0.3, True),
]
FROZEN = [
    ((7, 5, 4), 0.1),
    ((7, 5, 4), 0.25),
    ((9, 6, 3), 0.2),
    ((8, 8), 0.3),
    ((6, 4, 4, 2), 0.2),
    ((12, 4, 4), 0.2),
    ((14, 3, 3), 0.25),
    ((16, 2, 2), 0.15),
    ((10, 6, 4), 0.3),
    ((11, 6, 4), 0.2),
]


def objective(x, counts, wd, dim, biased, frozen):
    """Head, pre-activations (N, d) of every sample and the head's free bias; γ² is their variance, β their mean."""
    labels = np.repeat(np.arange(len(counts)), counts)
    total, size = len(labels), len(counts)
    U, rest = x[: total * dim].reshape(total, dim), x[total * dim :]
    W, b = rest[: size * dim].reshape(size, dim), rest[size * dim :] if biased else 0.0
    centred = U - U.mean(axis=0)
    before = centred if frozen else U
    H = np.maximum(before, 0)
    Z = H @ W.T + b
    softmax, losses = special.softmax(Z, axis=1), special.logsumexp(Z, axis=1) - Z[np.arange(total), labels]
    G = (softmax - np.eye(size)[labels]) / total
    value = losses.mean() + wd / 2 * ((W**2).sum() + (centred**2).sum() / total)
    D = (G @ W) * (before > 0)
    D = (D - D.mean(axis=0) if frozen else D) + wd / total * centred
    parts = [D.ravel(), (G.T @ H + wd * W).ravel()] + ([G.sum(axis=0)] if biased else [])
    return value, np.concatenate(parts)


def least(counts, wd, dim, biased, frozen, given=(), starts=6):
    """The least value that descents from given and from drawn starts end at."""
    rng, total, size = np.random.default_rng(0), sum(counts), len(counts)
    labels = np.repeat(np.arange(size), counts)
    drawn = []
    for start in range(starts):
        U = 0.3 * rng.normal(size=(total, dim)) + (0 if frozen else 3)
        kept = rng.random((total, dim)) < (1 if start % 2 else 0.7)  # of a class above one half: shared by coordinates
        U += rng.uniform(0.5, 2, dim) * (labels[:, None] == rng.integers(0, size, dim)) * kept
        drawn.append(np.concatenate([U.ravel(), 0.3 * rng.normal(size=size * dim), np.zeros(size * biased)]))
    return min(
        minimize(
            objective,
            x0,
            (counts, wd, dim, biased, frozen),
            "L-BFGS-B",
            jac=True,
            options={"maxiter": 4000, "maxfun": 6000, "ftol": 1e-16, "gtol": 1e-10, "maxcor": 30},
        ).fun
        for x0 in [*given, *drawn]
    )


def realised(solution, counts, biased, far=1e5):
    """The proof's parameters: centred features moved above 0; without a bias of the head one coordinate, nearly
    constant, carries that of the problem."""
    shares = np.array(counts) / sum(counts)
    W, H, b = solution.weights, solution.features - shares @ solution.features, solution.bias
    b = b + W @ (shares @ solution.features)
    shift = -H.min(axis=0)
    U, b = H + shift, b - W @ shift
    if not biased:
        U, W = np.column_stack([U, np.full(len(U), far)]), np.column_stack([W, b / far])
    U = np.repeat(U, counts, axis=0)
    return np.concatenate([U.ravel(), W.ravel(), b if biased else []]), U.shape[1]


@pytest.mark.parametrize(("counts", "wd", "biased"), FREE_SHIFT, ids=str)
def test_a_free_shift_is_a_problem_without_relu_and_with_a_free_bias(counts, wd, biased):
    problem = BatchNorm(wd, "gain").problem(counts, LastLayer(biased=biased, branches=1))
    solution = solve(problem)
    assert solution.optimal
    start, dim = realised(solution, counts, biased)
    found = least(counts, wd, dim, biased, False, [start])
    assert_allclose(found, solution.objective, rtol=BRUTE_BATCHNORM)
    assert found > solution.lower_bound * (1 - EXACT)


def spread(prediction, counts):
    """Pre-activations and head at which each class has its margin: a class above one half has as many coordinates as
    samples, each active on half of all samples, in turn."""
    total, size, columns, rows = sum(counts), len(counts), [], []
    for k, (n, margin) in enumerate(zip(counts, prediction.margins, strict=True)):
        active, own = min(n, total // 2), np.flatnonzero(np.repeat(np.arange(size), counts) == k)
        turns = n if active < n else 1
        ratio = np.sqrt(active / (total - active) * size / (size - 1))  # both penalties are equal
        height = np.sqrt(margin / (ratio * (active if turns > 1 else 1)))
        for turn in range(turns):
            on = np.zeros(total)
            on[own[(turn + np.arange(active)) % n]] = height
            columns.append(np.where(on > 0, on, -height * active / (total - active)))
            rows.append(ratio * height * (np.eye(size)[k] - 1 / size))
    return np.concatenate([np.ravel(np.array(columns).T), np.ravel(np.array(rows).T)]), len(columns)


@pytest.mark.parametrize(("counts", "wd"), FROZEN, ids=str)
def test_a_frozen_shift_on_both_sides_of_one_half(counts, wd):
    predicted = predict(BatchNorm(wd, "gain_frozen_shift").problem(counts, LastLayer(branches=1)))
    start, dim = spread(predicted, counts)
    found = least(counts, wd, dim, False, True, [start], starts=24)
    assert found > predicted.objective * (1 - EXACT)
    assert_allclose(found, predicted.objective, rtol=BRUTE_BATCHNORM)


def test_the_laws_without_these_corrections_are_ruled_out():
    total = np.sum(FREE_SHIFT[4][0])
    free = solve(BatchNorm(0.25, "gain").problem(FREE_SHIFT[4][0], LastLayer(branches=1))).objective
    assert abs(predict(BatchNorm(0.25).problem(FREE_SHIFT[4][0], LastLayer(branches=1))).objective / free - 1) > 1e-3
    frozen = BatchNorm(0.15, "gain_frozen_shift").problem((16, 2, 2), LastLayer(branches=1))
    assert abs(frozen.lambda_h[0] / (0.15 / total / (1 - 0.8)) - 1) > 0.1
