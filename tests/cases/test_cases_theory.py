"""Closed forms and their limits: cases that came out wrong once, each with siblings of its kind."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from collapsekit import MSE, UFM, CollapseError, CrossEntropy, Hinge, predict
from collapsekit.metrics import measure_features

COUNTS = [500, 300, 40, 10]


def at_the_prediction(problem):
    """The scalar metrics, against the prediction, of a network that is exactly on it."""
    prediction = predict(problem)
    weights, features = prediction.weights_and_features()
    labels = np.repeat(np.arange(problem.num_classes), problem.counts.astype(int))
    return measure_features(features[labels], labels, weights).metrics(prediction)


# A1: the frame's algebra was written three times, twice for centred rows only


@pytest.mark.parametrize("key", ["nc2_wwt_residual", "nc3_wh_residual", "nc2_w_residual"])
def test_residuals_vanish_on_the_frame_of_mse(key):
    assert_allclose(at_the_prediction(UFM(COUNTS, 3e-2, 1e-3, loss=MSE()))[key], 0, atol=1e-9)


def test_residuals_and_shapes_vanish_on_the_frame_of_weighted_mse():
    found = at_the_prediction(UFM([120, 80, 9], 1e-2, 2e-3, loss=MSE(), class_weights=[0.5, 1, 4]))
    keys = ["nc2_h", "nc2_w", "nc2_wwt", "nc3_wh"]
    assert_allclose([found[key] for key in keys], 0, atol=1e-7)
    assert_allclose([found[f"{key}_residual"] for key in keys], 0, atol=1e-9)


@pytest.mark.parametrize("loss", [CrossEntropy(), Hinge()])
def test_residuals_vanish_on_centred_frames(loss):
    found = at_the_prediction(UFM(COUNTS, 3e-2, 1e-3, loss=loss))
    assert_allclose([found[f"nc2_{key}_residual"] for key in ("h", "w", "wwt")], 0, atol=1e-9)


# A28: what float64 cannot hold is refused with the range


@pytest.mark.parametrize("penalties", [(1e154, 1e154), (1e308, 1e-3), (1e200, 1e150)])
def test_penalties_beyond_the_range_are_refused(penalties):
    with pytest.raises(CollapseError, match="lambda"):
        predict(UFM([500, 10], *penalties))
