"""The polar with types of samples, many rows of a low rank: exact by cones and branches; where relaxation fails."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from _support.strategies import examples
from _support.tolerances import BOUND, SOLVED
from collapsekit import UFM, solve
from collapsekit.solver import cones, polar, signs
from collapsekit.solver.model import Balanced
from collapsekit.solver.newton import Local


def low_rank(rng, types, rank):
    """``L Lᵀ`` with some rows nearly alike, as types of one class are."""
    L = rng.normal(size=(types, rank)) + (rng.random() < 0.5) * rng.normal(size=rank)
    return L @ L.T


def random_types(rng, types, size):
    """Soft labels, relabelled copies or classes with coinciding ones; every class in some type."""
    kind = rng.integers(3)
    if kind == 0:
        targets = rng.dirichlet(np.ones(size) * 10 ** rng.uniform(-1, 1), types)
    elif kind == 1:
        targets = np.array([rng.multinomial(16, 0.8 * np.eye(size)[t % size] + 0.2 / size) / 16 for t in range(types)])
    else:
        targets = np.vstack([np.eye(size), rng.dirichlet(np.ones(size), types - size)])
    m = np.round(10 ** rng.uniform(0.5, 3, types))
    penalty = 10 ** rng.uniform(-1.5, 0) * np.sqrt(np.median(m)) / m.sum()
    return UFM.from_types(m, targets, penalty, penalty, bias=(None, "free", 0.03)[rng.integers(3)])


@pytest.mark.parametrize("rank", [1, 2, 3, 4])
def test_cones_are_exact(rank):
    rng = np.random.default_rng(rank)
    for _ in range(examples(25)):
        A = low_rank(rng, int(rng.integers(rank, 11)), rank)
        exact = polar.by_supports(A)[0]
        assert exact * (1 - BOUND) <= cones.by_cones(A, 0.5 * exact) <= exact * (1 + SOLVED)
        assert_allclose(cones.by_cones(A, 1.5 * exact), 1.5 * exact, rtol=BOUND)
        assert not cones.below(cones.factor(A)[0] / np.sqrt(exact * (1 - 1e-6)), most=20_000)


def test_too_many_dimensions_or_too_little_time_prove_nothing():
    A = low_rank(np.random.default_rng(0), 20, cones.MOST_DIMENSIONS + 1)
    assert cones.by_cones(A, 1.0) == np.inf
    assert cones.by_cones(low_rank(np.random.default_rng(0), 20, 4), 1.0, until=0.0) == np.inf
    A /= polar.largest_eigenvalue(np.maximum(A, 0))
    v = cones.highest(cones.factor(A)[0])
    assert 1 < polar.by_branches(A, 0 * A, until=0.0) < np.inf
    assert np.einsum("ij,ij->i", v @ A, v).max() < 1


@pytest.mark.parametrize("rank", [2, 5, 8])
def test_branches_prove_what_is_true_and_nothing_else(rank, monkeypatch):
    rng = np.random.default_rng(rank)
    for _ in range(examples(8)):
        A = low_rank(rng, 11, rank)
        exact = polar.by_supports(A)[0]
        start = np.maximum(-A / exact, 0)
        with monkeypatch.context() as few:  # what is left open bounds, too
            few.setattr(signs, "MOST_BRANCHES", 4)
            assert signs.branched(A / exact, start) >= 1 - BOUND
        assert signs.branched(A / (exact * (1 + 1e-6)), start) == 1
        assert signs.branched(A / (exact * (1 - 1e-6)), start) * (1 - 1e-6) >= 1 - BOUND


@pytest.mark.parametrize("types", [16, 28, 40])
def test_descent_comes_near_the_semidefinite_bound_and_not_below(types):
    pytest.importorskip("cvxpy")
    rng = np.random.default_rng(types)
    A = low_rank(rng, types, int(rng.integers(3, 9)))
    expected = polar.semidefinite(A)
    found = signs.relaxed(A / expected, np.eye(types), np.maximum(-A / expected, 0))
    assert found.bound >= 1 - 1e-6  # the oracle's own accuracy
    assert found.bound <= 1 + 3e-3
    assert found.N.min() >= 0
    assert found.bound >= polar.largest_eigenvalue(A / expected + found.N) * (1 - BOUND)


def test_bounds_of_many_types_are_above_every_direction():
    rng = np.random.default_rng(5)
    for _ in range(examples(12)):
        A = low_rank(rng, int(rng.integers(16, 61)), int(rng.integers(1, 10)))
        v = np.abs(rng.normal(size=(200, len(A)))) * (rng.random((200, len(A))) < 0.5)
        heights = np.einsum("ij,ij->i", v @ A, v) / np.maximum((v**2).sum(axis=1), 1e-300)
        v = cones.highest(cones.factor(A)[0])
        known = max(heights.max(), np.einsum("ij,ij->i", v @ A, v).max())
        for V in (None, np.abs(rng.normal(size=(len(A), 3)))):
            for target in (0.5 * known, known):
                assert polar.upper_bound(A, V, True, target)[0] >= known * (1 - BOUND)


def test_the_doubly_non_negative_bound_of_an_optimum_can_be_loose():
    """Horn's copositive matrix is no sum of a semidefinite and a nonnegative one; neither is that of some types."""
    horn = np.ones((5, 5)) - 2 * sum(np.roll(np.eye(5), shift, axis=1) for shift in (1, 4))
    A = np.eye(5) - 0.25 * horn
    assert_allclose(polar.by_supports(A)[0], 1, rtol=BOUND)
    assert signs.relaxed(A, np.eye(5), np.maximum(-A, 0)).bound > 1 + 1e-2
    problem = random_types(np.random.default_rng(2), 30, 4)
    solution, model = solve(problem), Balanced(problem)
    assert solution.certificate.kind == polar.CONES
    assert solution.gap <= SOLVED
    scaled = Local(model, model.point(solution.weights, solution.features, solution.bias)).scaled / model.kappa
    found = signs.relaxed(scaled @ scaled.T, np.eye(30), np.zeros((30, 30)))
    assert found.bound > 1 + 1e-3


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.heavy) for seed in range(1, 10))])
def test_many_types_of_few_classes_are_certified(seed):
    """Sixteen to sixty types of two to four classes, five problems a seed."""
    rng = np.random.default_rng(seed)
    for _ in range(5):
        problem = random_types(rng, int(rng.integers(16, 61)), int(rng.integers(2, 5)))
        solution = solve(problem)
        assert solution.gap <= 1e-6, (problem, solution)
