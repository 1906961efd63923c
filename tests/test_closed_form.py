"""The closed form: golden values, brute force, extended precision, symmetries, limits and refusals."""

import json
from dataclasses import replace

import mpmath
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

import brute_force as oracles
from collapsekit import UFM, CollapseError, predict, thresholds
from strategies import examples, problems
from tolerances import BRUTE_OBJECTIVE, EXACT, GOLDEN

FIRST = UFM([500, 300, 40, 10], 3e-2, 1e-3)


def test_golden_values_one():
    frame = predict(FIRST)
    assert_allclose(frame.margins, [2.6128458342, 2.2912803938, 0.5340824859, 0], atol=GOLDEN)
    assert_allclose(frame.feature_sqnorms, [0.5542683023, 0.6274929786, 0.4005618644, 0], atol=GOLDEN)
    assert_allclose(frame.classifier_sqnorms, [7.4957714677, 5.5205213001, 1.6932897665, 1.3372347758], atol=GOLDEN)
    assert_allclose(frame.geometry().gram_w[0, 1], -3.8336768322, atol=GOLDEN)
    assert_allclose(frame.objective, 0.7559496807, atol=GOLDEN)
    assert_array_equal(frame.collapsed, [False, False, False, True])


def test_golden_values_two():
    frame = predict(UFM([200, 100, 50, 50], 5e-3, 5e-4))
    assert_allclose(frame.margins, [4.3102575952, 3.9468544025, 3.575986011, 3.575986011], atol=GOLDEN)
    assert_allclose(frame.objective, 0.2607492608, atol=GOLDEN)


def test_golden_values_three():
    frame = predict(UFM([400, 200, 20, 20], 4e-2, 1e-3))
    assert_allclose(frame.confidences, [0.8247287816, 0.7521290658, 0.25, 0.25], atol=GOLDEN)
    assert_allclose(frame.objective, 0.7571752008, atol=GOLDEN)
    assert frame.collapsed.sum() == 2


@settings(max_examples=examples(200))
@given(problems())
def test_equals_brute_force(problem):
    # At a threshold the objective is flat to fourth order and no descent finds Grams to 1e-6; extended precision does.
    assume(np.abs(thresholds(problem).headroom - 1).min() > 1e-3)
    oracles.assert_agrees(predict(problem), *oracles.brute_force(problem))


@pytest.mark.parametrize("field", ["objective", "feature_sqnorms", "margins", "classifier_sqnorms"])
def test_brute_force_rejects_a_wrong_answer(field):
    frame = predict(FIRST)
    optimum = oracles.brute_force(FIRST)
    oracles.assert_agrees(frame, *optimum)
    with pytest.raises(AssertionError):
        oracles.assert_agrees(replace(frame, **{field: getattr(frame, field) * (1 + 1e-5)}), *optimum)


@settings(max_examples=examples(300))
@given(problems(max_ratio=1e9))
def test_margins_in_extended_precision(problem):
    frame, size = predict(problem), problem.num_classes
    with mpmath.workdps(40):
        for k in range(size):
            n, total = mpmath.mpf(problem.counts[k]), mpmath.mpf(problem.counts.sum())
            weight = mpmath.mpf(float(oracles.omega(problem)[k]))
            # The exact inputs, not their rounded products, define the problem.
            product = mpmath.mpf(problem.lambda_w) * mpmath.mpf(problem.lambda_h)
            price = total / weight * mpmath.sqrt(product * (size - 1) / (size * n))
            distance = 1 - price * size / (size - 1)
            exact = mpmath.log((size - 1) * (1 - price) / price) if distance > 0 else mpmath.mpf(0)
            error = abs(mpmath.mpf(float(frame.margins[k])) - exact)
            assert error <= max(1e-14, 1e-12 * exact if abs(distance) >= 1e-3 else 1e-14)


def test_bisection_agrees_with_the_margins_and_rejects_others():
    frame = predict(FIRST)
    costs = np.sqrt(FIRST.lambda_w * FIRST.lambda_h * FIRST.counts * 3 / 4)
    exact = [oracles.scalar_minimum(a, c, 4) for a, c in zip(FIRST.loss_weights, costs, strict=True)]
    assert_allclose(frame.margins, np.array(exact, dtype=float), rtol=EXACT)
    with pytest.raises(AssertionError):
        assert_allclose(frame.margins * (1 + 1e-9), np.array(exact, dtype=float), rtol=EXACT)


@settings(max_examples=examples(200))
@given(problems(max_ratio=1e3), st.integers(0, 7))
def test_a_class_dies_exactly_at_its_threshold(problem, k):
    k %= problem.num_classes
    limits = thresholds(problem)
    for factor, dead in ((1 - 1e-9, False), (1 + 1e-9, True)):
        product = limits.critical_product[k] * factor
        moved = UFM(problem.counts, product / 1e-3, 1e-3, class_weights=problem.class_weights)
        assert predict(moved).collapsed[k] == dead
    frame = predict(problem)
    assert_array_equal(frame.collapsed, limits.headroom <= 1 + EXACT)
    assert_allclose(limits.headroom, problem.counts / limits.critical_count, rtol=EXACT)
    assert limits.minority_collapse == limits.critical_product.min()
    assert limits.complete_collapse == limits.critical_product.max()


@settings(max_examples=examples(200))
@given(problems())
def test_symmetries(problem):
    frame = predict(problem)
    scaled = predict(
        UFM(problem.counts, problem.lambda_w * 7, problem.lambda_h / 7, class_weights=problem.class_weights)
    )
    assert_allclose(scaled.margins, frame.margins, rtol=1e-9, atol=1e-12)
    order = np.random.default_rng(0).permutation(problem.num_classes)
    weights = None if problem.class_weights is None else problem.class_weights[order]
    permuted = predict(UFM(problem.counts[order], problem.lambda_w, problem.lambda_h, class_weights=weights))
    assert_allclose(permuted.margins, frame.margins[order], rtol=EXACT, atol=EXACT)
    assert_allclose(permuted.classifier_sqnorms, frame.classifier_sqnorms[order], rtol=EXACT)
    smaller = predict(UFM(problem.counts, problem.lambda_w / 2, problem.lambda_h, class_weights=problem.class_weights))
    assert (smaller.confidences >= frame.confidences).all()
    if problem.class_weights is None:
        assert (np.diff(frame.confidences[np.argsort(problem.counts)]) >= 0).all()


@settings(max_examples=examples(200))
@given(problems())
def test_the_frame_is_feasible_attains_its_objective_and_has_its_geometry(problem):
    frame = predict(problem)
    weights, features = frame.weights_and_features()
    assert features.min() >= 0
    assert_allclose(problem.objective(weights, features), frame.objective, rtol=BRUTE_OBJECTIVE)
    geometry = frame.geometry()
    scale = max(1.0, np.abs(weights @ weights.T).max())
    assert_allclose(geometry.gram_w / scale, weights @ weights.T / scale, atol=EXACT)
    assert_allclose(geometry.gram_h, features @ features.T, rtol=EXACT, atol=EXACT)
    assert_allclose(geometry.cross, weights @ features.T, rtol=EXACT, atol=EXACT * 10)


def test_no_trial_point_beats_the_objective():
    frame, rng = predict(FIRST), np.random.default_rng(0)
    weights, features = frame.weights_and_features(6)
    for size in (1e-4, 1e-2, 1):
        for _ in range(50):
            trial = np.maximum(0, features + size * rng.normal(size=features.shape))
            assert FIRST.objective(weights + size * rng.normal(size=weights.shape), trial) >= frame.objective


def test_inverse_root_weights_equalise_margins_and_thresholds():
    counts = np.array([500.0, 300, 40, 10])
    problem = UFM(counts, 1e-3, 1e-4, class_weights=5 * counts**-0.5)
    assert_allclose(np.ptp(predict(problem).margins), 0, atol=EXACT)
    assert_allclose(np.ptp(thresholds(problem).headroom) / thresholds(problem).headroom[0], 0, atol=EXACT)


def test_complete_collapse():
    frame = predict(UFM([5, 3], 10.0, 10.0))
    assert frame.collapsed.all()
    assert_allclose(frame.objective, np.log(2), rtol=EXACT)
    assert_array_equal(frame.geometry().gram_w, np.zeros((2, 2)))


def test_dim_equal_to_the_survivors_is_enough():
    assert predict(UFM([500, 300, 40, 10], 3e-2, 1e-3, dim=3)).collapsed.sum() == 1
    with pytest.raises(CollapseError, match="dim=2: 3 classes survive"):
        predict(UFM([500, 300, 40, 10], 3e-2, 1e-3, dim=2))


@pytest.mark.parametrize(
    ("options", "fragment"), [({"bias": "free"}, "bias='free'"), ({"bias": 0.1}, "bias=0.1"), ({"relu": False}, "relu")]
)
def test_problems_without_a_closed_form_are_refused(options, fragment):
    problem = UFM([5, 3], 0.1, 0.1, **options)
    for function in (predict, thresholds):
        with pytest.raises(CollapseError, match=fragment):
            function(problem)


def test_a_million_classes():
    counts = np.arange(1, 1_000_001)
    frame = predict(UFM(counts, 1e-9, 1e-9))
    assert frame.collapsed.any()
    assert not frame.collapsed.all()
    with pytest.raises(CollapseError, match="GiB"):
        frame.geometry()


def test_results_are_json_and_one_line_and_inputs_stay():
    counts = np.array([5, 3, 2])
    frame = predict(UFM(counts, 0.1, 0.1))
    assert_array_equal(counts, [5, 3, 2])
    assert json.loads(json.dumps(frame.to_dict()))["schema"] == 1
    assert json.loads(json.dumps(thresholds(frame.problem).to_dict()))["schema"] == 1
    assert "\n" not in repr(frame)
    with pytest.raises(ValueError, match="read-only"):
        frame.margins[0] = 1
