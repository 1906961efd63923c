"""Closed forms and their limits: cases that came out wrong once, each with siblings of its kind."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.optimize import minimize_scalar

from collapsekit import MSE, UFM, CollapseError, CrossEntropy, Hinge, long_tail, predict
from collapsekit.metrics import measure_features
from collapsekit.theory import balanced_without_relu, merging_threshold

NOT_REFUSED = pytest.fail.Exception
COUNTS = [500, 300, 40, 10]


def at_the_prediction(problem):
    """The scalar metrics, against the prediction, of a network that is exactly on it."""
    prediction = predict(problem)
    weights, features = prediction.weights_and_features()
    labels = np.repeat(np.arange(problem.num_classes), problem.counts.astype(int))
    return measure_features(features[labels], labels, weights).metrics(prediction)


# A1: the frame's algebra was written three times, twice for centred rows only


@pytest.mark.xfail(strict=True, raises=AssertionError, reason="A1")
@pytest.mark.parametrize("key", ["nc2_wwt_residual", "nc3_wh_residual", "nc2_w_residual"])
def test_residuals_vanish_on_the_frame_of_mse(key):
    assert_allclose(at_the_prediction(UFM(COUNTS, 3e-2, 1e-3, loss=MSE()))[key], 0, atol=1e-9)


@pytest.mark.xfail(strict=True, raises=AssertionError, reason="A1")
def test_residuals_and_shapes_vanish_on_the_frame_of_weighted_mse():
    found = at_the_prediction(UFM([120, 80, 9], 1e-2, 2e-3, loss=MSE(), class_weights=[0.5, 1, 4]))
    keys = ["nc2_h", "nc2_w", "nc2_wwt", "nc3_wh"]
    assert_allclose([found[key] for key in keys], 0, atol=1e-7)
    assert_allclose([found[f"{key}_residual"] for key in keys], 0, atol=1e-9)


@pytest.mark.parametrize("loss", [CrossEntropy(), Hinge()])
def test_residuals_vanish_on_centred_frames(loss):
    found = at_the_prediction(UFM(COUNTS, 3e-2, 1e-3, loss=loss))
    assert_allclose([found[f"nc2_{key}_residual"] for key in ("h", "w", "wwt")], 0, atol=1e-9)


# A7: without ReLU a loss may call for negative margins


def best_margin(problem):
    """Margin and objective of the balanced optimum without ReLU, over margins of either sign."""
    size, n = problem.num_classes, problem.counts[0]
    price = np.sqrt(problem.lambda_w * problem.lambda_h * n) * (size - 1)  # of a unit of margin of all classes

    def objective(s):
        return float(problem.loss.scalar(np.full(size, s), size).mean() + price * abs(s))

    found = min(
        (minimize_scalar(objective, bounds=b, method="bounded") for b in ((-20, 0), (0, 20))), key=lambda r: r.fun
    )
    return found.x, found.fun


@pytest.mark.xfail(strict=True, raises=AssertionError, reason="A7")
@pytest.mark.parametrize(
    ("problem", "margin", "objective"),
    [
        (
            UFM([50] * 4, 1e-3, 1e-4, relu=False, loss=CrossEntropy(smoothing=0.5, margins=[-5.0] * 4)),
            -3.36,
            1.0962,
        ),
        (UFM([20] * 3, 1e-3, 1e-4, relu=False, loss=CrossEntropy(smoothing=0.3, margins=[-6.0] * 3)), None, None),
    ],
    ids=["the case", "sibling"],
)
def test_balanced_margins_may_be_negative_without_relu(problem, margin, objective):
    expected = best_margin(problem)
    if margin is not None:
        assert_allclose(expected, (margin, objective), atol=5e-3)
    try:
        found = balanced_without_relu(problem)
    except CollapseError:
        return  # a refusal is as good
    assert_allclose(found.margins, expected[0], atol=1e-3)


# A22: published long tails truncate


def truncated_tail(largest, smallest, num_classes):
    """Counts by the rule of the published long tails, asked for by name."""
    return long_tail(largest, smallest, num_classes, rounding="down")


@pytest.mark.xfail(strict=True, raises=TypeError, reason="A22")
@pytest.mark.parametrize(
    ("arguments", "total"), [((500, 5, 100), 10847), ((5000, 50, 10), 12406), ((5000, 500, 10), 20431)]
)
def test_a_long_tail_by_the_published_rule(arguments, total):
    largest, smallest, size = arguments
    counts = truncated_tail(*arguments)
    assert counts.sum() == total
    assert_array_equal(counts, [int(largest * (smallest / largest) ** (k / (size - 1.0))) for k in range(size)])


# A24: any group of equal classes merges without ReLU, whatever the others are


@pytest.mark.xfail(strict=True, raises=CollapseError, reason="A24")
@pytest.mark.parametrize(
    ("counts", "group"),
    [([300, 100, 10, 10], 10), ([50, 40, 30, 6, 6, 6], 6), ([12, 700, 90, 12], 12)],
)
def test_a_group_of_equal_counts_merges_at_its_own_threshold(counts, group):
    assert_allclose(np.sqrt(merging_threshold(counts)), np.sqrt(group) / sum(counts), rtol=1e-12)


# A28: what float64 cannot hold is refused with the range


@pytest.mark.xfail(strict=True, raises=OverflowError, reason="A28")
@pytest.mark.parametrize("penalties", [(1e154, 1e154), (1e308, 1e-3), (1e200, 1e150)])
def test_penalties_beyond_the_range_are_refused(penalties):
    with pytest.raises(CollapseError, match="lambda"):
        predict(UFM([500, 10], *penalties))


@pytest.mark.xfail(strict=True, raises=NOT_REFUSED, reason="A28")
@pytest.mark.parametrize("count", [2**53 + 1, 2**53 + 2, 2**60, 2**63 - 1, 2**63, 2.0**70])
def test_counts_beyond_the_range_are_refused(count):
    with pytest.raises(CollapseError, match=r"counts.*(2\*\*53|2\^53|9007199254740992)"):
        UFM([count, 10], 1e-3, 1e-3)
