"""Many classes: the search starts on a staircase of coordinates; what it offers is certified, whatever the rows are."""

import numpy as np
import pytest

from _support.tolerances import CERTIFIED
from collapsekit import UFM, CrossEntropy, long_tail, solve
from collapsekit.solver import search

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
