"""Many classes: the search starts on a staircase of coordinates; what it offers is certified, whatever the rows are."""

import numpy as np
import pytest

from _support.tolerances import CERTIFIED
from collapsekit import UFM, CrossEntropy, long_tail, solve
from collapsekit.solver import search
from collapsekit.solver.coordinates import staircase
from collapsekit.solver.model import Point

COUNTS = long_tail(3000, 40, 40)


@pytest.mark.parametrize("decay", [5e-4, 0.02])
@pytest.mark.parametrize(
    "options",
    [{"bias": "free"}, {"bias": 0.01}, {"loss": CrossEntropy.logit_adjusted(COUNTS)}, {"class_weights": COUNTS**-0.5}],
    ids=["free bias", "decayed bias", "logit adjustment", "weights"],
)
def test_a_long_tail_is_certified(options, decay):
    assert solve(UFM(COUNTS, decay, decay / COUNTS.sum(), **options)).gap <= CERTIFIED


@pytest.mark.parametrize("pairs", [0, 3])
def test_types_of_samples_have_a_staircase_of_their_own(pairs):
    """More rows of features than classes, and fewer."""
    shared = np.zeros((3, 40))
    for row, (first, second) in enumerate([(0, 5), (3, 9), (20, 30)]):
        shared[row, [first, second]] = 0.5
    if pairs:
        problem = UFM.from_types([*COUNTS, 10, 10, 10], [*np.eye(40), *shared], 2e-4, 2e-5)
    else:
        problem = UFM.from_types([*COUNTS[:36], 10], [*np.eye(40)[:36], np.full(40, 1 / 40)], 2e-4, 2e-5)
    assert solve(problem).gap <= CERTIFIED


def test_it_ends_where_the_search_without_it_does(monkeypatch):
    problem = UFM(COUNTS, 0.02, 0.02 / COUNTS.sum(), bias="free")
    with_it = solve(problem)
    monkeypatch.setattr(search, "SMALL", 1000)
    without = solve(problem)
    assert without.lower_bound <= with_it.objective
    assert with_it.lower_bound <= without.objective
    assert with_it.steps < without.steps


def test_a_frame_that_leans_along_one_direction_fits_onto_the_staircase():
    """Its Gram matrix, a diagonal plus one of rank 1, has a nonnegative triangular factor in every order."""
    rng = np.random.default_rng(0)
    V = np.hstack([np.diag(rng.uniform(0.5, 2, 12)), rng.uniform(0, 1, (12, 1))])
    U, rank = rng.normal(size=(12, 13)), rng.permutation(12)
    point = staircase(Point(U, V, np.zeros(12)), np.argsort(rank), rank)
    assert (point.V[rank[:, None] < rank] == 0).all()
    np.testing.assert_allclose(point.V @ point.V.T, V @ V.T, rtol=1e-12)
    np.testing.assert_allclose(point.V @ point.U.T, V @ U.T, rtol=0, atol=1e-12)
    assert np.linalg.norm(point.U) <= np.linalg.norm(U)
    some = np.argsort(rank)[:9]  # the others, dead ones in the frame, keep what they share with these
    fewer = staircase(Point(U, V, np.zeros(12)), some, rank)
    np.testing.assert_allclose(fewer.V @ fewer.V[some].T, V @ V[some].T, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(fewer.V[some] @ fewer.U.T, V[some] @ U.T, rtol=0, atol=1e-12)
