"""Margins of every loss: against 50 digits on the scalar problem, and by its KKT residual."""

import mpmath
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from _support.strategies import examples
from _support.tolerances import EXACT, MARGIN_PER_CLASS, MARGIN_RELATIVE, PREDICTED_MARGIN, SAFE_PRICE
from collapsekit import MSE, UFM, CrossEntropy, Focal, Hinge, predict, thresholds

SEEDS = st.integers(0, 2**32 - 1)
DIGITS = 50
MILLION = 10**6


def plain(size, rng):
    return CrossEntropy()


def family(size, rng):
    return CrossEntropy(0.1, np.abs(rng.normal(0, 2, size)), 0.7)


def shifted(size, rng):
    return CrossEntropy(margins=rng.normal(0, 2, size))


def tempered(size, rng):
    return CrossEntropy(smoothing=0.2, temperature=1.7)


def focal(size, rng):
    return Focal(float(rng.choice([0.5, 1.0, 2.0, 5.0])))


LOSSES = [plain, family, shifted, tempered, focal, lambda size, rng: MSE(), lambda size, rng: Hinge()]
NAMES = ["plain", "family", "shifted", "tempered", "focal", "mse", "hinge"]


def near_threshold(rng, size, make, most=9.0):
    """Counts from 1 to 10^most and penalties at, near or far below a threshold."""
    counts = np.concatenate([[1, 10**most], np.round(10 ** rng.uniform(0, most, size - 2))])
    loss = make(size, rng)
    weights = 10 ** rng.uniform(-1, 1, size) if rng.uniform() < 0.5 else None
    critical = thresholds(UFM(counts, 1, 1, loss=loss, class_weights=weights)).critical_product
    shift = 1 + rng.choice([-1, 1]) * 10 ** rng.uniform(-7, 0)
    product = rng.choice(critical) * shift if rng.uniform() < 0.7 else critical.max() * 10 ** rng.uniform(-12, 0)
    root, ratio = np.sqrt(abs(product) or critical.max()), 10 ** rng.uniform(-2, 2)
    return UFM(counts, root * ratio, root / ratio, loss=loss, class_weights=weights)


def price(problem, k):
    """q_k from the exact float64 inputs."""
    size = problem.num_classes
    share = 1 if isinstance(problem.loss, MSE) else mpmath.mpf(size - 1) / size
    product = mpmath.mpf(problem.lambda_w) * mpmath.mpf(float(np.broadcast_to(problem.lambda_h, size)[k]))
    omega = 1 if problem.class_weights is None else mpmath.mpf(float(problem.class_weights[k]))
    return mpmath.sqrt(product * share / mpmath.mpf(problem.counts[k])) * mpmath.mpf(problem.counts.sum()) / omega


def exact(problem, k):
    """Margin, and price relative to the critical one."""
    loss, size, q = problem.loss, problem.num_classes, price(problem, k)
    if isinstance(loss, MSE):
        return max(mpmath.mpf(0), 1 - q), q
    if isinstance(loss, Hinge):
        return mpmath.mpf(int(q < 1)), q
    if isinstance(loss, Focal):
        critical = mpmath.mpf(float(loss.critical_price(size)))
        return (focal_margin(loss.gamma, q, size) if q < critical else mpmath.mpf(0)), q / critical
    shift = mpmath.mpf(0 if loss.margins is None else loss.margins[k])
    smooth = mpmath.mpf(loss.smoothing) * (size - 1) / size
    r = loss.temperature * q + smooth
    critical = ((size - 1) / (size - 1 + mpmath.exp(-shift)) - smooth) / loss.temperature
    inside = shift + mpmath.log((size - 1) * (1 / r - 1)) if r < 1 else mpmath.mpf(0)
    return loss.temperature * max(mpmath.mpf(0), inside), q / critical


def focal_slope(gamma, t):
    wrong = 1 / (1 + mpmath.exp(-t))
    return wrong**gamma * (wrong + gamma * (1 - wrong) * mpmath.log1p(mpmath.exp(t)))


def focal_margin(gamma, q, size):
    """The first crossing from the left, by bisection."""
    low = high = (mpmath.log(q) - mpmath.log1p(gamma)) / (gamma + 1) - 1
    while focal_slope(gamma, high) < q:
        high += mpmath.mpf(1) / 50
    for _ in range(3 * DIGITS):
        middle = (low + high) / 2
        low, high = (middle, high) if focal_slope(gamma, middle) < q else (low, middle)
    return max(mpmath.mpf(0), mpmath.log(size - 1) - low)


def assert_exact(problem, margins, classes):
    with mpmath.workdps(DIGITS):
        for k in classes:
            expected, relative_price = exact(problem, k)
            error = abs(mpmath.mpf(float(margins[k])) - expected)
            closeness = abs(1 - relative_price)
            if closeness < 1e-14:  # within rounding of the threshold, which counts as dead
                continue
            assert error <= allowed(problem, k, expected), (problem, k, float(error))
            if relative_price < SAFE_PRICE:
                assert error <= MARGIN_RELATIVE * expected, (problem, k, float(error))


def allowed(problem, k, expected):
    """Absolute error near a threshold: a rounding of the price counts once for every (K−1) e^Δ in the margin."""
    shift = (getattr(problem.loss, "margins", None) or np.zeros(problem.num_classes))[k]
    others = (problem.num_classes - 1) * np.exp(max(0.0, shift)) * getattr(problem.loss, "temperature", 1.0)
    return max(PREDICTED_MARGIN, MARGIN_PER_CLASS * others, 3 * np.spacing(float(expected)))


@pytest.mark.parametrize("make", LOSSES, ids=NAMES)
@settings(max_examples=examples(200))
@given(seed=SEEDS, size=st.sampled_from([2, 3, 5, 8, 30, 100]))
@example(seed=398442, size=30)  # focal, near its inflection
def test_margins_of_every_loss_in_extended_precision(make, seed, size):
    rng = np.random.default_rng(seed)
    problem = near_threshold(rng, size, make)
    chosen = range(size) if size <= 8 else rng.integers(0, size, 8).tolist()
    assert_exact(problem, predict(problem).margins, chosen)


@pytest.mark.parametrize("make", LOSSES, ids=NAMES)
def test_margins_of_a_million_classes(make):
    rng = np.random.default_rng(7)
    problem = near_threshold(rng, MILLION, make)
    frame = predict(problem)
    nearest = np.argsort(np.abs(frame.headroom - 1))[:10]
    middling = np.argsort(np.abs(frame.headroom - 1.1))[:10]
    assert_exact(problem, frame.margins, np.concatenate([nearest, middling, rng.integers(0, MILLION, 10)]).tolist())
    assert_kkt(problem, frame)


def assert_kkt(problem, frame):
    """|φ'(M) + q| relative to what cancels in it of every living class; q ≥ −φ'(0) of every dead one; in float64."""
    loss, size = problem.loss, problem.num_classes
    share = 1 if isinstance(loss, MSE) else (size - 1) / size
    omega = 1 if problem.class_weights is None else problem.class_weights
    prices = np.sqrt(problem.lambda_w * problem.lambda_h * share / problem.counts) * problem.counts.sum() / omega
    alive = ~frame.collapses
    if not isinstance(loss, Hinge):
        own = np.broadcast_to(loss.price(frame.margins, size), prices.shape)
        other = 1.0 if isinstance(loss, MSE) else getattr(loss, "smoothing", 0.0) / getattr(loss, "temperature", 1.0)
        cancels = prices + other
        assert_allclose(((own - prices) / cancels)[alive], 0, rtol=0, atol=EXACT)
    critical = np.broadcast_to(loss.critical_price(size), prices.shape)
    assert (prices[~alive] >= critical[~alive] * (1 - EXACT)).all()


def test_the_residual_rejects_a_margin_that_is_a_little_off():
    problem = UFM([500, 300, 40, 10], 3e-2, 1e-3)
    frame = predict(problem)
    assert_kkt(problem, frame)
    off = type(frame)(**vars(frame) | {"margins": frame.margins * (1 + 1e-9)})
    with pytest.raises(AssertionError):
        assert_kkt(problem, off)
    with pytest.raises(AssertionError):
        assert_exact(problem, frame.margins * (1 + 1e-12), range(4))


def test_a_class_near_its_threshold_among_a_million():
    counts = np.full(MILLION, 1000.0)
    limit = thresholds(UFM(counts, 1, 1)).critical_product[0]
    for closeness in (1e-4, 1e-7, 1e-10):
        problem = UFM(counts, np.sqrt(limit) * (1 - closeness), np.sqrt(limit))
        assert_exact(problem, predict(problem).margins, [0, MILLION - 1])
