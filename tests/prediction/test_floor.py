"""The universal bound on errors, against certified optima of every kind of cross-entropy problem."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from _support.tolerances import EXACT, FLOOR
from collapsekit import MSE, UFM, CrossEntropy, Focal, Hinge, predict, solve
from collapsekit.prediction import from_solution


def drawn(rng, turn):
    """A problem of any bias, with or without ReLU, offsets, margins, scales, weights, smoothing, temperature."""
    size = int(rng.integers(2, 9))
    counts = np.round(10 ** rng.uniform(0.5, 3, size))

    def maybe(share, make):
        return make() if rng.random() < share else None

    smoothing = rng.choice([0.0, 0.0, 0.1, 0.3])
    loss = CrossEntropy(
        smoothing=smoothing,
        temperature=rng.choice([1.0, 1.0, 0.5, 2.0]),
        offsets=maybe(0.4, lambda: rng.normal(0, 1, size)),
        margins=maybe(0.3, lambda: rng.uniform(0, 1.5, size)),
        scales=maybe(0.3, lambda: np.exp(rng.normal(0, 0.3, size))),
        smoothing_weights=maybe(0.5, lambda: np.exp(rng.normal(0, 0.4, size))) if smoothing else None,
    )
    weights = maybe(0.3, lambda: np.exp(rng.normal(0, 0.5, size)))
    shares = counts / counts.sum() * (1 if weights is None else weights)
    root = np.sqrt(np.median(shares**2 / counts)) * 10 ** rng.uniform(-1.2, 0.1)
    lambda_h = root if rng.random() < 0.7 else root * np.exp(rng.normal(0, 0.5, size))
    bias, relu = (None, "free", 0.03)[turn % 3], bool(turn % 4)
    return UFM(counts, root, lambda_h, loss=loss, class_weights=weights, bias=bias, relu=relu)


def excess_of(seed, problems):
    """By how much the floor lies above each certified optimum, (certified,)."""
    rng, found = np.random.default_rng(seed), []
    for turn in range(problems):
        problem = drawn(rng, turn)
        solution = solve(problem)
        if solution.optimal:
            found.append((problem.confidence_floor() - from_solution(solution).training_confidences).max())
    return np.array(found)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.heavy) for seed in range(1, 11))])
def test_no_certified_optimum_lies_below_the_floor(seed):
    excess = excess_of(seed, 200)
    assert len(excess) > 195
    assert excess.max() <= FLOOR
    assert (
        np.abs(excess) <= FLOOR
    ).sum() > 20  # classes with a coordinate of their own lie on it: it is no loose bound


def test_the_closed_form_lies_on_its_floor_and_a_lower_floor_would_be_noticed():
    prediction = predict(UFM([500, 300, 40, 10], 3e-2, 1e-3))
    floor = prediction.problem.confidence_floor()
    assert_allclose(prediction.confidences[:3], floor[:3], rtol=EXACT)
    assert floor[3] == 0  # the dead class has 1/K, which no floor promises
    halved = UFM([500, 300, 40, 10], 1.5e-2, 1e-3)
    assert (halved.confidence_floor() > floor + FLOOR)[:3].all()


@pytest.mark.parametrize("loss", [MSE(), Hinge(), Focal(2.0)], ids=str)
def test_other_losses_have_no_floor(loss):
    assert np.isnan(UFM([3, 2], 0.1, 0.1, loss=loss).confidence_floor()).all()


def test_few_dimensions_have_no_floor():
    assert np.isnan(UFM([3, 2, 2], 0.01, 0.01, dim=2).confidence_floor()).all()
    assert_array_equal(
        UFM([3, 2, 2], 0.01, 0.01, dim=2, relu=False).confidence_floor(), UFM([3, 2, 2], 0.01, 0.01).confidence_floor()
    )
