"""What predict costs, in units of one np.log over as many numbers; every row stores the accuracy reached beside it.

Run: make bench. Processor time is measured, so that other work on the machine does not blur the ratios.
"""

import os
import time
import tracemalloc

import mpmath
import numpy as np
import pytest

from collapsekit import MSE, UFM, CrossEntropy, Focal, Hinge, predict, thresholds
from collapsekit.theory import counts_for, weights_for

FULL = 1_000_000
CLASSES = int(os.environ.get("COLLAPSEKIT_BENCH_CLASSES", FULL))  # fewer: tests/test_benchmarks.py
RNG = np.random.default_rng(0)
COUNTS = np.round(10 ** RNG.uniform(0, 4, CLASSES))
MOST_LOGS, MOST_ARRAYS = 20, 16  # the claim, for plain cross-entropy
MARGIN_PER_CLASS = 1e-15
LOSSES = {
    "CrossEntropy": CrossEntropy(),
    "smoothing and temperature": CrossEntropy(smoothing=0.1, temperature=2.0),
    "target margins": CrossEntropy(margins=RNG.uniform(0, 1, CLASSES)),
    "Focal": Focal(2.0),
    "Hinge": Hinge(),
    "MSE": MSE(),
}


def problem_of(loss):
    """Half of the classes collapse."""
    unit = UFM(COUNTS, 1.0, 1.0, loss=loss)
    root = float(np.sqrt(np.median(thresholds(unit).critical_product)))
    return UFM(COUNTS, root, root, loss=loss)


def seconds(call, rounds):
    """Least processor time of some calls."""
    best = np.inf
    for _ in range(rounds):
        start = time.process_time()
        call()
        best = min(best, time.process_time() - start)
    return best


def arrays(call):
    """Peak of memory, in arrays of K numbers."""
    tracemalloc.start()
    call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / (8 * CLASSES)


def margin_error(problem, frame, loss):
    """Largest absolute error of 40 margins, half of them nearest to their threshold, against 40 digits."""
    near = np.argsort(np.abs(frame.headroom - 1.1))[:20]
    chosen = np.concatenate([near, RNG.integers(0, CLASSES, 20)])
    worst, total = 0.0, mpmath.mpf(problem.num_samples)
    with mpmath.workdps(40):
        for k in chosen.tolist():
            share = 1 if isinstance(loss, MSE) else mpmath.mpf(CLASSES - 1) / CLASSES
            product = mpmath.mpf(problem.lambda_w) * mpmath.mpf(float(problem.lambda_h))
            q = mpmath.sqrt(product * share / problem.counts[k]) * total
            worst = max(worst, abs(float(exact_margin(loss, q, k) - mpmath.mpf(float(frame.margins[k])))))
    return worst


def exact_margin(loss, q, k):
    if isinstance(loss, MSE):
        return max(mpmath.mpf(0), 1 - q)
    if isinstance(loss, Hinge):
        return mpmath.mpf(q < 1)
    if isinstance(loss, Focal):
        return focal_margin(loss, q)
    shift = 0 if loss.margins is None else mpmath.mpf(loss.margins[k])
    r = loss.temperature * q + mpmath.mpf(loss.smoothing) * (CLASSES - 1) / CLASSES
    inside = shift + mpmath.log((CLASSES - 1) * (1 / r - 1)) if r < 1 else 0
    return loss.temperature * max(mpmath.mpf(0), inside)


def focal_margin(loss, q):
    """Bisection on the rising side of f', where the critical price says that the class lives."""
    if q >= float(loss.critical_price(CLASSES)):
        return mpmath.mpf(0)
    gamma = mpmath.mpf(loss.gamma)

    def slope(t):
        wrong = 1 / (1 + mpmath.exp(-t))
        return wrong**gamma * (wrong + gamma * (1 - wrong) * mpmath.log1p(mpmath.exp(t)))

    low = high = (mpmath.log(q) - mpmath.log1p(gamma)) / (gamma + 1) - 1
    while slope(high) < q:
        high += mpmath.mpf(0.05)
    for _ in range(150):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < q else (low, middle)
    return mpmath.log(CLASSES - 1) - low


@pytest.fixture(scope="module")
def log_seconds():
    numbers = COUNTS + 0.5
    return seconds(lambda: np.log(numbers), 60)


@pytest.mark.parametrize("name", LOSSES)
def test_predict_a_million_classes(benchmark, log_seconds, name):
    problem = problem_of(LOSSES[name])
    frame = predict(problem)
    benchmark.pedantic(predict, (problem,), rounds=9, warmup_rounds=2)
    benchmark.extra_info |= {
        "in np.log": round(seconds(lambda: predict(problem), 15) / log_seconds, 2),
        "arrays": round(arrays(lambda: predict(problem)), 2),
        "largest margin error": margin_error(problem, frame, LOSSES[name]),
        "collapsed": float(frame.collapses.mean()),
    }
    assert benchmark.extra_info["largest margin error"] <= MARGIN_PER_CLASS * CLASSES
    if name == "CrossEntropy" and CLASSES == FULL:
        assert benchmark.extra_info["in np.log"] <= MOST_LOGS
        assert benchmark.extra_info["arrays"] <= MOST_ARRAYS


@pytest.mark.parametrize("call", [weights_for, counts_for, thresholds], ids=lambda call: call.__name__)
def test_inverse_problems_of_a_million_classes(benchmark, log_seconds, call):
    lives = problem_of(CrossEntropy())
    limit = float(np.sqrt(thresholds(lives).headroom.min())) * 0.9
    problem = UFM(COUNTS, lives.lambda_w * limit, lives.lambda_h * limit)
    benchmark.pedantic(call, (problem,), rounds=3)
    benchmark.extra_info["in np.log"] = round(seconds(lambda: call(problem), 3) / log_seconds, 1)
    benchmark.extra_info["accuracy"] = accuracy(call, problem)
    assert benchmark.extra_info["accuracy"] <= 1e-9


def accuracy(call, problem):
    """How far the result is from what was asked for, relative."""
    result = call(problem)
    if call is weights_for:
        margins = predict(result.problem).margins
        return float(np.ptp(margins) / margins[0])
    if call is counts_for:
        return float(np.abs(result - problem.counts).max())  # every class lives already
    return float(np.abs(result.critical_product / (problem.lambda_w * problem.lambda_h) / result.headroom - 1).max())
