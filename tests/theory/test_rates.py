"""Rates of a class near its threshold, and one-sided thresholds, against descent and certified optima."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from _support.tolerances import EXACT, RATES
from collapsekit import UFM, CollapseError, CrossEntropy, predict, thresholds
from collapsekit.theory import growth_rates

COUNTS = np.array([500.0, 300.0, 40.0, 10.0])


def measured_rate(problem, k, step):
    """Rate of class k's own coordinate in gradient descent on W and one feature a class (its samples move alike), the
    classes above it at their optimum and those below it at 0."""
    n, size = problem.counts, problem.num_classes
    W, H = predict(problem).weights_and_features(size)
    H = H * (np.arange(size) < k)[:, None]
    W = W * (np.arange(size) < k)[None, :]
    H[k, k], W[:, k] = 1e-6, 1e-6 * (np.eye(size)[k] - 1 / size)
    heights = []
    for _ in range(20_000):
        Z = H @ W.T
        p = np.exp(Z - Z.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        G = (p - np.eye(size)) / n.sum()
        W, H = (
            W - step * ((n[:, None] * G).T @ H + problem.lambda_w * W),
            np.maximum(H - step * (G @ W + problem.lambda_h * H), 0),
        )
        heights.append(H[k, k])
        if not 1e-12 < H[k, k] < 1e-3:
            break
    half = len(heights) // 2
    return np.log(heights[-1] / heights[half]) / (step * (len(heights) - 1 - half))


@pytest.mark.parametrize("ratio", [1.0, 900.0])
@pytest.mark.parametrize("share", [0.6, 0.9, 1.2])
def test_a_small_coordinate_grows_or_dies_at_the_rate(share, ratio):
    product = thresholds(UFM(COUNTS, 1.0, 1.0)).critical_product[2] * share
    problem = UFM(COUNTS, np.sqrt(product * ratio), np.sqrt(product / ratio))
    expected = growth_rates(problem)[2]
    assert (expected > 0) == (share < 1)
    step = 0.02 / max(problem.lambda_w + problem.lambda_h, 2 * np.sqrt(product))
    assert_allclose(measured_rate(problem, 2, step), expected, rtol=RATES)


def test_the_rate_vanishes_at_the_threshold():
    product = thresholds(UFM(COUNTS, 1.0, 1.0)).critical_product[2]
    assert_allclose(growth_rates(UFM(COUNTS, 30 * np.sqrt(product), np.sqrt(product) / 30))[2], 0, atol=EXACT)


def test_offsets_of_zero_have_the_thresholds_of_none():
    plain, offset = (thresholds(UFM(COUNTS, 1e-2, 1e-3, loss=loss)) for loss in (CrossEntropy(), zero_offsets()))
    assert_allclose(offset.critical_product, plain.critical_product, rtol=EXACT)
    assert_allclose(offset.critical_count, plain.critical_count, rtol=EXACT)
    assert (offset.one_sided, plain.one_sided) == (True, False)


def zero_offsets():
    return CrossEntropy(offsets=np.zeros(4))


@pytest.mark.parametrize("tau", [0.5, 1.0, 1.5])
def test_below_its_one_sided_threshold_a_class_lives(tau):
    loss = CrossEntropy.logit_adjusted(COUNTS, tau)
    critical = thresholds(UFM(COUNTS, 1.0, 1.0, loss=loss)).critical_product
    for k in range(4):
        root = np.sqrt(critical[k])
        below = predict(UFM(COUNTS, 0.97 * root, root, loss=loss))
        assert below.feature_sqnorms[k] > 0, k


def test_beyond_it_a_class_may_live_on():
    counts = [1000, 10, 10]
    loss = CrossEntropy.logit_adjusted(counts)
    root = np.sqrt(thresholds(UFM(counts, 1.0, 1.0, loss=loss)).critical_product[1])
    assert predict(UFM(counts, 1.47 * root, root, loss=loss)).feature_sqnorms[1] > 1e-6
    assert predict(UFM(counts, 1.50 * root, root, loss=loss)).feature_sqnorms[1] < 1e-6


def test_with_log_priors_the_product_has_a_formula():
    shares = COUNTS / COUNTS.sum()
    limits = thresholds(UFM(COUNTS, 1.0, 1.0, loss=CrossEntropy.logit_adjusted(COUNTS)))
    expected = shares / COUNTS.sum() * (1 - 2 * shares + (shares**2).sum())
    assert_allclose(limits.critical_product, expected, rtol=EXACT)


def test_a_bias_has_no_thresholds():
    with pytest.raises(CollapseError, match="bias='free'"):
        thresholds(UFM(COUNTS, 0.1, 0.1, bias="free", loss=zero_offsets()))
