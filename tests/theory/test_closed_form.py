"""The closed form against tests/oracles.py, which share nothing with it; limits, laws and refusals."""

import contextlib
import itertools
import json
from dataclasses import replace

import mpmath
import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from _support import oracles
from _support.strategies import examples, losses, other_problems, problems
from _support.tolerances import BOUND, CERTIFIED, EXACT, GOLDEN, GRAMS, INVERSE, LIMIT, MARGIN
from collapsekit import MSE, UFM, CollapseError, CrossEntropy, Focal, Hinge, long_tail, predict, solve, thresholds
from collapsekit.theory import closed_form, counts_for, largest_penalty, margins_for, weights_for

SEEDS = st.integers(0, 2**32 - 1)
FIRST = UFM([500, 300, 40, 10], 3e-2, 1e-3)
SECOND = UFM([200, 100, 50, 50], 5e-3, 5e-4)
THIRD = UFM([400, 200, 20, 20], 4e-2, 1e-3)
WORDS = ["margins", "confidences", "feature_sqnorms", "classifier_sqnorms", "headroom"]


def rebuilt(problem, **changed):
    fields = ["counts", "lambda_w", "lambda_h", "class_weights"]
    return UFM(**{name: getattr(problem, name) for name in fields} | changed)


# Golden values (docs/theory.md, section 9); rtol=0 because numpy's default of 1e-7 would hide three digits


@pytest.mark.parametrize(
    ("problem", "name", "expected"),
    [
        (FIRST, "margins", [2.6128458342, 2.2912803938, 0.5340824859, 0]),
        (FIRST, "feature_sqnorms", [0.5542683023, 0.6274929786, 0.4005618644, 0]),
        (FIRST, "classifier_sqnorms", [7.4957714677, 5.5205213001, 1.6932897665, 1.3372347758]),
        (FIRST, "objective", 0.7559496807),
        (SECOND, "margins", [4.3102575952, 3.9468544025, 3.575986011, 3.575986011]),
        (SECOND, "objective", 0.2607492608),
        (THIRD, "confidences", [0.8247287816, 0.7521290658, 0.25, 0.25]),
        (THIRD, "objective", 0.7571752008),
    ],
    ids=str,
)
def test_golden_values(problem, name, expected):
    assert_allclose(getattr(predict(problem), name), expected, rtol=0, atol=GOLDEN)


def test_golden_inner_product_and_collapsed_classes():
    assert_allclose(predict(FIRST).geometry().gram_w[0, 1], -3.8336768322, rtol=0, atol=GOLDEN)
    collapsed = [predict(problem).collapses.tolist() for problem in (FIRST, SECOND, THIRD)]
    assert collapsed == [[False] * 3 + [True], [False] * 4, [False] * 2 + [True] * 2]


# Brute force


@settings(max_examples=examples(200))
@given(problems())
def test_prediction_is_the_brute_force_optimum(problem):
    assume(oracles.off_threshold(thresholds(problem).headroom))
    oracles.assert_is_optimum(predict(problem))


@settings(max_examples=examples(40))
@given(problems(), SEEDS)
def test_prediction_is_the_brute_force_optimum_with_a_feature_penalty_for_each_class(problem, seed):
    spread = np.exp(np.random.default_rng(seed).normal(size=problem.num_classes))
    problem = rebuilt(problem, lambda_h=problem.lambda_h * spread)
    assume(oracles.off_threshold(thresholds(problem).headroom))
    oracles.assert_is_optimum(predict(problem))


@settings(max_examples=examples(200))
@given(st.data())
def test_prediction_is_the_brute_force_optimum_with_smoothing_margins_and_temperature(data):
    problem = data.draw(problems())
    loss = data.draw(losses(problem.num_classes))
    plain, own = (one.critical_price(problem.num_classes) for one in (problem.loss, loss))
    factor = np.median(own / plain)  # so that none, some or all classes collapse, as without
    problem = rebuilt(problem, lambda_w=problem.lambda_w * factor, lambda_h=problem.lambda_h * factor, loss=loss)
    assume(oracles.off_threshold(thresholds(problem).headroom))
    oracles.assert_is_optimum(predict(problem))


def with_label_noise(problem, seed, most=0.8):
    """The problem with a rate of label noise for each class, its penalties such that none, some or all collapse."""
    rates = np.random.default_rng(seed).uniform(0, most, problem.num_classes)
    loss = CrossEntropy(smoothing=rates, temperature=(1.0, 0.5)[seed % 2])
    plain, own = (np.median(one.critical_price(problem.num_classes)) for one in (problem.loss, loss))
    return rebuilt(problem, lambda_w=problem.lambda_w * own / plain, lambda_h=problem.lambda_h * own / plain, loss=loss)


@settings(max_examples=examples(65))
@given(problems(), SEEDS)
def test_label_noise_of_each_class_has_the_brute_force_optimum(problem, seed):
    problem = with_label_noise(problem, seed)
    assume(oracles.off_threshold(thresholds(problem).headroom))
    oracles.assert_is_optimum(predict(problem))


@settings(max_examples=examples(40))
@given(problems(), SEEDS)
def test_label_noise_of_each_class_is_the_certified_optimum(problem, seed):
    """Also as the types that it stands for: the rows of its targets, in which no class is its own."""
    problem = with_label_noise(problem, seed)
    frame, solution = predict(problem), solve(problem)
    assert solution.gap <= CERTIFIED
    assert_allclose(frame.objective, solution.objective, rtol=CERTIFIED)
    if problem.class_weights is None:
        rates, size, loss = np.array(problem.loss.smoothing)[:, None], problem.num_classes, problem.loss
        targets = (1 - rates) * np.eye(size) + rates / size
        plain = CrossEntropy(temperature=loss.temperature)
        types = UFM.from_types(problem.counts, targets, problem.lambda_w, problem.lambda_h, loss=plain)
        assert_allclose(solve(types).objective, frame.objective, rtol=CERTIFIED)


def test_label_noise_of_each_class_in_numbers():
    """``r_k = q_k + ε_k (K−1)/K`` decides, written out."""
    n, rates, lam = np.array([500.0, 300, 40, 10]), np.array([0.0, 0.2, 0.1, 0.4]), 3e-3
    r = n.sum() * np.sqrt(3 * lam * lam / (4 * n)) + rates * 3 / 4
    frame = predict(UFM(n, lam, lam, loss=CrossEntropy(smoothing=rates)))
    expected = np.log(np.maximum(3 * (1 / np.minimum(r, 1) - 1), 1))
    assert_allclose(frame.margins, expected, rtol=EXACT)
    assert_array_equal(frame.collapses, r >= 3 / 4)
    target = UFM(n, 0.1 * lam, lam, loss=CrossEntropy(smoothing=rates))
    assert_allclose(predict(margins_for(target, [3, 1, 2, 0.5])).margins, [3, 1, 2, 0.5], rtol=INVERSE)


def test_equal_classes_of_unequal_label_noise_are_not_balanced():
    noisy = CrossEntropy(smoothing=(0.0, 0.3, 0.3))
    for arguments in ({"bias": "free"}, {"relu": False}):
        with pytest.raises(CollapseError, match="no closed form"):
            closed_form(UFM([10, 10, 10], 0.01, 0.01, loss=noisy, **arguments))
        even = closed_form(UFM([10, 10, 10], 0.01, 0.01, loss=CrossEntropy(smoothing=[0.3] * 3), **arguments))
        assert_allclose(
            even.objective,
            closed_form(UFM([10, 10, 10], 0.01, 0.01, loss=CrossEntropy(smoothing=0.3), **arguments)).objective,
            rtol=EXACT,
        )


@pytest.mark.parametrize("kind", ["focal", "mse"])
@settings(max_examples=examples(200))
@given(st.data())
def test_prediction_is_the_brute_force_optimum_for_other_losses(kind, data):
    problem = data.draw(other_problems(kind))
    assume(oracles.off_threshold(thresholds(problem).headroom))
    oracles.assert_is_optimum(predict(problem))


@settings(max_examples=examples(200))
@given(other_problems("hinge"))
def test_prediction_meets_a_rigorous_lower_bound_for_the_hinge(problem):
    frame = predict(problem)
    size, lambda_h = problem.num_classes, np.broadcast_to(problem.lambda_h, problem.num_classes)
    costs = np.sqrt(problem.lambda_w * lambda_h * problem.counts * (size - 1) / size)
    bound = oracles.hinge_lower_bound(problem, np.minimum(costs, oracles.loss_shares(problem)))
    assert_allclose(frame.objective, bound, rtol=BOUND)
    weights, features = frame.weights_and_features()
    assert_allclose(problem.objective(weights, features), frame.objective, rtol=EXACT)
    if frame.collapses.all():
        return
    with pytest.raises(AssertionError):  # a frame with another margin does not meet the bound
        assert_allclose(problem.objective(weights, 0.9 * features), bound, rtol=BOUND)


def test_the_focal_margin_jumps_where_the_theory_puts_it():
    loss = Focal(2.0)
    with mpmath.workdps(oracles.DIGITS):

        def phi(s):
            right = 1 / (1 + 99 * mpmath.exp(-s))
            return -((1 - right) ** 2) * mpmath.log(right)

        steepest = mpmath.findroot(lambda s: mpmath.diff(lambda x: (phi(0) - phi(x)) / x, s), 2.37)
        price = (phi(0) - phi(steepest)) / steepest
    assert_allclose(loss.critical_price(100), float(price), rtol=EXACT)
    alive, dead = loss.margin(loss.critical_price(100) * np.array([1 - 1e-12, 1 + 1e-12]), 100)
    assert_allclose(alive, float(steepest), rtol=INVERSE)
    assert dead == 0
    assert 1.1044 < price < 1.1045  # docs/theory.md
    assert 2.37 < steepest < 2.38
    first_with_a_jump = {0.5: 57, 1.0: 24, 2.0: 18, 3.0: 18, 5.0: 20}
    for gamma, size in first_with_a_jump.items():
        just_alive = [Focal(gamma).margin(Focal(gamma).critical_price(K) * (1 - 1e-12), K) for K in (size - 1, size)]
        assert just_alive[0] < 1e-4 < 5e-3 < just_alive[1], (gamma, size)


def test_a_target_margin_too_low_for_its_smoothing_is_refused():
    loss = CrossEntropy(smoothing=0.3, margins=[0, -3, 0])
    with pytest.raises(CollapseError, match="target margin of class 1"):
        thresholds(rebuilt(UFM([3, 2, 1], 1e-2, 1e-3), loss=loss))
    with pytest.raises(CollapseError, match="2 values"):
        UFM([3, 2, 1], 1e-2, 1e-3, loss=CrossEntropy(margins=[1, 2]))


@pytest.mark.parametrize("problem", [FIRST, SECOND, THIRD], ids=str)
@pytest.mark.parametrize("name", ["objective", "margins", "confidences", "feature_sqnorms", "classifier_sqnorms"])
def test_brute_force_rejects_a_changed(problem, name):
    frame, optimum = predict(problem), oracles.brute_force(problem)
    oracles.assert_is_optimum(frame, optimum)
    with pytest.raises(AssertionError):
        oracles.assert_is_optimum(replace(frame, **{name: getattr(frame, name) * (1 + 1e-4)}), optimum)


def test_brute_force_rejects_a_class_wrongly_dead():
    frame, optimum = predict(FIRST), oracles.brute_force(FIRST)
    with pytest.raises(AssertionError):
        oracles.assert_is_optimum(replace(frame, collapses=np.array([False, False, True, True])), optimum)


def test_brute_force_finds_strictly_more_where_dim_is_too_small():
    narrow = oracles.descend(oracles.Balanced(FIRST), np.abs(np.random.default_rng(0).normal(size=2 * 4 * 2)))
    assert oracles.Balanced(FIRST).value(narrow)[0] > predict(FIRST).objective * (1 + 1e-4)


@settings(max_examples=examples(100))
@given(problems(), SEEDS, st.sampled_from([1e-6, 1e-3, 1.0]))
def test_no_point_nearby_is_better(problem, seed, size):
    frame, rng = predict(problem), np.random.default_rng(seed)
    weights, features = frame.weights_and_features(2 * problem.num_classes)
    by_w, by_h = (size * (np.abs(a).max() + 1e-3) for a in (weights, features))
    weights = weights + by_w * rng.normal(size=weights.shape)
    features = np.maximum(0, features + by_h * rng.normal(size=features.shape))
    assert problem.objective(weights, features) >= frame.objective * (1 - EXACT)


# Extended precision


@settings(max_examples=examples(200))
@given(problems())
@example(UFM([1, 10**9], 1e-12, 1e-12))
@example(UFM([1, 10**9, 10**9, 7], 1e-6, 1e-6))
@example(UFM([1, 10**9], 2e-9, 1e-10, class_weights=[3, 0.5]))
@example(UFM(long_tail(10**9, 1, 50), 1e-12, 1e-10))
def test_margins_and_objective_in_extended_precision(problem):
    oracles.assert_is_scalar_optimum(predict(problem))


@settings(max_examples=examples(100))
@given(SEEDS, st.floats(-12, 0))
def test_margins_of_one_sample_beside_a_billion(seed, exponent):
    rng = np.random.default_rng(seed)
    counts = np.concatenate([[1, 10**9], np.round(10 ** rng.uniform(0, 9, 4))])
    product = thresholds(UFM(counts, 1, 1)).critical_product.max() * 10**exponent
    oracles.assert_is_scalar_optimum(predict(UFM(counts, np.sqrt(product), np.sqrt(product))))


@pytest.mark.parametrize("name", ["margins", "objective"])
def test_extended_precision_rejects_a_changed(name):
    frame = predict(FIRST)
    oracles.assert_is_scalar_optimum(frame)
    with pytest.raises(AssertionError):
        oracles.assert_is_scalar_optimum(replace(frame, **{name: getattr(frame, name) * (1 + 1e-11)}))


# Thresholds


@settings(max_examples=examples(200))
@given(problems(), SEEDS)
def test_a_class_lives_below_its_critical_product_and_is_dead_from_it_on(problem, seed):
    k, limits = seed % problem.num_classes, thresholds(problem)

    def dead(factor):
        return bool(
            predict(rebuilt(problem, lambda_w=limits.critical_product[k] * factor / problem.lambda_h)).collapses[k]
        )

    assert [dead(factor) for factor in (1 - 1e-12, 1, 1 + 1e-12)] == [False, True, True]


@settings(max_examples=examples(200))
@given(problems())
def test_thresholds_are_the_formula_and_headroom_is_the_ratio_of_counts(problem):
    size, total, limits = problem.num_classes, problem.counts.sum(), thresholds(problem)
    omega = np.ones(size) if problem.class_weights is None else problem.class_weights
    product = omega**2 * (size - 1) * problem.counts / (size * total**2)
    count = size / (size - 1) * total**2 * problem.lambda_w * problem.lambda_h / omega**2
    assert_allclose(limits.critical_product, product, rtol=EXACT)
    assert_allclose(limits.critical_count, count, rtol=EXACT)
    assert_allclose(limits.headroom, problem.counts / limits.critical_count, rtol=EXACT)
    assert_array_equal(limits.headroom, predict(problem).headroom)
    assert (limits.minority_collapse, limits.complete_collapse) == (
        limits.critical_product.min(),
        limits.critical_product.max(),
    )


def test_the_transition_is_continuous_and_the_headroom_s_root_is_the_room_of_both_decays():
    limits = thresholds(SECOND)
    room = np.sqrt(limits.headroom[3])
    margins = [predict(UFM(SECOND.counts, 5e-3 * room * f, 5e-4 * room * f)).margins[3] for f in (1 - 1e-6, 1 + 1e-6)]
    assert 0 < margins[0] < 1e-5
    assert margins[1] == 0


def test_with_weights_the_last_class_to_die_is_not_the_largest():
    limits = thresholds(UFM([100, 50], 1, 1, class_weights=[1, 2]))
    assert limits.critical_product.argmax() == 1


# Laws


@settings(max_examples=examples(200))
@given(problems(), st.floats(1e-3, 1e3))
def test_only_the_product_of_the_penalties_sets_margins(problem, factor):
    frame = predict(problem)
    other = predict(rebuilt(problem, lambda_w=problem.lambda_w * factor, lambda_h=problem.lambda_h / factor))
    assert_allclose(other.margins, frame.margins, rtol=EXACT, atol=10 * MARGIN)
    assert_allclose(other.objective, frame.objective, rtol=EXACT)
    assert_allclose(
        other.feature_sqnorms,
        frame.feature_sqnorms * factor,
        rtol=GRAMS,
        atol=10 * MARGIN * other.feature_sqnorms.max(),
    )
    assert_allclose(other.classifier_sqnorms, frame.classifier_sqnorms / factor, rtol=GRAMS)


@settings(max_examples=examples(200))
@given(problems(), st.floats(1.0, 10))
def test_confidence_falls_with_the_penalties_and_rises_with_the_count(problem, factor):
    frame = predict(problem)
    for name in ("lambda_w", "lambda_h"):
        more = predict(rebuilt(problem, **{name: getattr(problem, name) * factor}))
        assert (more.confidences <= frame.confidences).all()
        assert more.objective >= frame.objective * (1 - EXACT)
    plain = predict(rebuilt(problem, class_weights=None))
    assert (np.diff(plain.confidences[np.argsort(problem.counts)]) >= 0).all()


def test_confidence_rises_with_the_count_at_fixed_total():
    confidences = [predict(UFM([n, 1000 - n, 50], 1e-2, 1e-3)).confidences[0] for n in range(1, 1000, 7)]
    assert (np.diff(confidences) >= 0).all()
    assert confidences[0] == 1 / 3 < confidences[-1]


@settings(max_examples=examples(100))
@given(problems(), SEEDS)
def test_a_permutation_of_the_classes_permutes_the_prediction(problem, seed):
    order = np.random.default_rng(seed).permutation(problem.num_classes)
    omega = None if problem.class_weights is None else problem.class_weights[order]
    frame, other = predict(problem), predict(rebuilt(problem, counts=problem.counts[order], class_weights=omega))
    for name in WORDS:
        assert_allclose(getattr(other, name), getattr(frame, name)[order], rtol=GRAMS, atol=EXACT, err_msg=name)
    assert_array_equal(other.collapses, frame.collapses[order])
    assert_allclose(other.objective, frame.objective, rtol=EXACT)


@settings(max_examples=examples(200))
@given(problems())
def test_the_frame_attains_its_objective_and_its_grams(problem):
    frame = predict(problem)
    weights, features = frame.weights_and_features()
    geometry = frame.geometry()
    assert features.min() >= 0
    assert features.shape[1] == max(1, (~frame.collapses).sum())
    assert_allclose(problem.objective(weights, features), frame.objective, rtol=EXACT)
    pairs = {
        "gram_h": features @ features.T,
        "gram_w": weights @ weights.T,
        "cross": weights @ features.T,
        "margins": frame.margins,
        "feature_sqnorms": frame.feature_sqnorms,
        "classifier_sqnorms": frame.classifier_sqnorms,
    }
    for name, expected in pairs.items():
        assert_allclose(oracles.largest_error(getattr(geometry, name), expected), 0, atol=GRAMS, err_msg=name)
    balance = problem.lambda_w * (weights**2).sum(), problem.lambda_h * problem.counts @ (features**2).sum(axis=1)
    assert_allclose(*balance, rtol=GRAMS)


@settings(max_examples=examples(100))
@given(problems())
def test_collapsed_classes_tie_and_share_one_classifier_row(problem):
    frame = predict(problem)
    weights, features = frame.weights_and_features(problem.num_classes)
    assert_array_equal(frame.margins > 0, ~frame.collapses)
    for vector in (frame.margins, frame.feature_sqnorms):
        assert_array_equal(vector[frame.collapses], 0)
    assert_allclose(frame.confidences[frame.collapses], 1 / problem.num_classes, rtol=EXACT)
    assert_array_equal(features[frame.collapses], 0)
    assert_array_equal(np.ptp(weights[frame.collapses], axis=0) if frame.collapses.any() else 0, 0)


@settings(max_examples=examples(100))
@given(problems(weighted=False), st.floats(0.1, 10))
def test_inverse_root_weights_equalise_margins_and_headrooms(problem, scale):
    weighted = rebuilt(problem, class_weights=scale / np.sqrt(problem.counts))
    frame = predict(weighted)
    assert_allclose(frame.headroom, frame.headroom[0], rtol=EXACT)
    assert_allclose(frame.margins, frame.margins[0], rtol=EXACT, atol=10 * MARGIN)


# Special cases and limits


def test_balanced_counts_give_an_orthogonal_frame_and_a_simplex():
    geometry = predict(UFM([50] * 5, 1e-2, 1e-3)).geometry()
    off = ~np.eye(5, dtype=bool)
    assert_array_equal(geometry.feature_cosines[off], 0)
    assert_allclose(geometry.classifier_cosines[off], -1 / 4, rtol=EXACT)
    assert_allclose(geometry.alignment, np.sqrt(4 / 5), rtol=EXACT)


def test_two_classes():
    frame = predict(UFM([30, 10], 1e-2, 1e-2))
    q = 40 * 1e-2 * np.sqrt(1 / (2 * np.array([30, 10])))
    assert_allclose(frame.confidences, 1 - q, rtol=EXACT)
    assert_allclose(frame.margins, np.log((1 - q) / q), rtol=EXACT)
    weights, _ = frame.weights_and_features()
    assert_allclose(weights[0], -weights[1], rtol=EXACT)


def test_minority_features_are_longer_where_penalties_vanish():
    norms = predict(UFM([10_000, 1], 1e-80, 1e-80)).feature_sqnorms
    assert_allclose(norms[1] / norms[0], 100, rtol=LIMIT)


def test_complete_collapse():
    frame = predict(UFM([5, 3], 10.0, 10.0, class_weights=[1, 2]))
    assert frame.collapses.all()
    assert_allclose(frame.objective, (5 + 6) / 8 * np.log(2), rtol=EXACT)
    geometry = frame.geometry()
    for matrix in (geometry.gram_h, geometry.gram_w, geometry.cross, *frame.weights_and_features()):
        assert_array_equal(matrix, 0)
    assert np.isnan(geometry.alignment).all()


def test_extreme_penalties_neither_warn_nor_lose_the_prediction():
    tiny, huge = predict(UFM([5, 3], 1e-120, 1e-20)), predict(UFM([5, 3], 1e120, 1e30))
    assert not tiny.collapses.any()
    assert huge.collapses.all()
    assert predict(UFM([5, 3], 1e-150, 1e150)).margins[0] == predict(UFM([5, 3], 1.0, 1.0)).margins[0] == 0


EXTREME_LOSSES = [
    CrossEntropy(),
    CrossEntropy(smoothing=0.1, temperature=1e-3, margins=[1.0, -0.2]),
    CrossEntropy(temperature=1e100),
    CrossEntropy(margins=[100.0, 100.0]),
    Focal(2.0),
    Hinge(),
    MSE(),
]


@pytest.mark.parametrize("loss", EXTREME_LOSSES, ids=str)
def test_at_the_ends_of_float64_answers_are_finite_or_refused(loss):
    """Without a warning, which is an error here."""
    ends, weights = [1e-300, 1e-150, 1.0, 1e149], [None, [1e-300, 1.0], [1e149, 1e-300]]
    for lambda_w, lambda_h, omega, counts in itertools.product(ends, ends, weights, [[5, 3], [2**53 - 1, 1]]):
        problem = UFM(counts, lambda_w, lambda_h, class_weights=omega, loss=loss)
        for function in (predict, thresholds, largest_penalty, counts_for, weights_for, margins_for):
            with contextlib.suppress(CollapseError):
                result = function(problem)
                if function is predict:
                    assert np.isfinite([result.margins, result.feature_sqnorms, result.classifier_sqnorms]).all()
                    assert np.isfinite(result.objective)


# Dimensions, sizes, refusals


def test_penalties_too_small_for_float64_s_headroom_still_have_thresholds():
    limits = thresholds(UFM([5, 3], 1e-300, 1e-300))
    assert_allclose(limits.critical_product, [5 / 128, 3 / 128], rtol=EXACT)
    assert np.isinf(limits.headroom).all()


@pytest.mark.parametrize("dim", [3, 4, 9])
def test_as_many_dimensions_as_survivors_are_enough(dim):
    problem = UFM(FIRST.counts, 3e-2, 1e-3, dim=dim)
    weights, features = predict(problem).weights_and_features()
    assert weights.shape == features.shape == (4, dim)
    assert_allclose(problem.objective(weights, features), predict(FIRST).objective, rtol=EXACT)
    oracles.assert_is_optimum(predict(problem))


@pytest.mark.parametrize(("dim", "fragment"), [(2, "dim=2: 3 classes survive"), (1, "widen the feature layer")])
def test_fewer_dimensions_than_survivors_are_refused(dim, fragment):
    with pytest.raises(CollapseError, match=fragment):
        closed_form(UFM(FIRST.counts, 3e-2, 1e-3, dim=dim))
    with pytest.raises(CollapseError, match=f"dim={dim}: 3 classes survive"):
        thresholds(UFM(FIRST.counts, 3e-2, 1e-3, dim=dim))
    assert thresholds(UFM(FIRST.counts, 3e-2, 1e-3, dim=3)).headroom.shape == (4,)


@pytest.mark.parametrize("dim", [2, 0, -1, 3.5, "wide"])
def test_weights_and_features_refuse_a_dim_without_room(dim):
    with pytest.raises(CollapseError, match="dim="):
        predict(FIRST).weights_and_features(dim)


@pytest.mark.parametrize(
    ("options", "fragment"),
    [
        ({"bias": "free"}, "bias='free': a bias changes the geometry under imbalance and has no closed form"),
        (
            {"bias": 0.1},
            "bias=0.1: .*train the head without one .*give bias=None, or predict",
        ),
        ({"relu": False}, "relu=False: .*give relu=True, or predict"),
    ],
    ids=str,
)
@pytest.mark.parametrize("function", [closed_form, thresholds])
def test_problems_without_a_closed_form_are_refused(function, options, fragment):
    with pytest.raises(CollapseError, match=fragment):
        function(UFM([5, 3], 0.1, 0.1, **options))


@pytest.mark.parametrize("function", [predict, thresholds])
def test_only_problems_are_accepted(function):
    with pytest.raises(CollapseError, match=r"problem=\[5, 3\]: give a UFM"):
        function([5, 3])


def test_a_million_classes_are_predicted_and_their_grams_refused_by_size():
    frame = predict(UFM(np.arange(1, 10**6 + 1), 1e-9, 1e-9))
    assert 0 < frame.collapses.sum() < 10**6
    with pytest.raises(CollapseError, match=r"geometry: K = 1000000 needs 22351\.7 GiB .* limit of 2 GiB"):
        frame.geometry()


def test_geometry_is_refused_exactly_above_two_gibibytes(monkeypatch):
    monkeypatch.setattr("collapsekit.theory._closed_form.LARGEST_GEOMETRY_BYTES", 3 * 8 * 4**2)
    assert predict(FIRST).geometry().num_classes == 4
    with pytest.raises(CollapseError, match="K = 5"):
        predict(UFM([5] * 5, 1e-2, 1e-2)).geometry()


# Results


def test_results_are_json_with_a_schema_and_carry_the_names():
    frame = predict(UFM({"a": 5, "b": 3, "c": 1}, 0.1, 0.01, class_weights=[1, 2, 3]))
    content = json.loads(json.dumps(frame.to_dict()))
    assert (content["schema"], content["problem"]["schema"]) == (2, 1)
    for name in WORDS:
        assert_array_equal(content[name], getattr(frame, name))
    assert content["problem"]["names"] == ["a", "b", "c"]
    assert frame.geometry().names == ("a", "b", "c")
    limits = json.loads(json.dumps(thresholds(frame.problem).to_dict()))
    assert limits["schema"] == 1
    assert limits["minority_collapse"] == min(limits["critical_product"])


def test_results_are_read_only_and_their_repr_is_one_line():
    frame = predict(FIRST)
    assert "\n" not in repr(frame)
    assert "1 lost" in repr(frame)
    for name in WORDS:
        with pytest.raises(ValueError, match="read-only"):
            getattr(frame, name)[0] = 1


def test_inputs_stay_as_they_were():
    counts, penalties, weights = np.array([5, 3]), np.array([0.1, 0.2]), np.array([1.0, 2.0])
    copies = [array.copy() for array in (counts, penalties, weights)]
    frame = predict(UFM(counts, 0.1, penalties, class_weights=weights))
    frame.geometry()
    for array, copy in zip((counts, penalties, weights), copies, strict=True):
        assert_array_equal(array, copy)
        assert array.flags.writeable


# Laws of every loss

KINDS = ["plain", "family", "focal", "mse", "hinge"]


@st.composite
def any_problem(draw, kind):
    """A problem with the given kind of loss, with none, some or all classes collapsed."""
    if kind not in ("plain", "family"):
        return draw(other_problems(kind))
    problem = draw(problems())
    loss = draw(losses(problem.num_classes)) if kind == "family" else CrossEntropy()
    return replace(problem, loss=loss)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=examples(60))
@given(st.data(), SEEDS)
def test_no_trial_point_lies_below_the_objective_of_any_loss(kind, data, seed):
    problem, rng = data.draw(any_problem(kind)), np.random.default_rng(seed)
    frame = predict(problem)
    weights, features = frame.weights_and_features(2 * problem.num_classes)
    scale = 10 ** rng.uniform(-4, 1)
    near = weights + scale * rng.normal(size=weights.shape) * (np.abs(weights).max() or 1.0)
    trial = np.maximum(0, features + scale * rng.normal(size=features.shape) * (np.abs(features).max() or 1.0))
    far = rng.normal(size=weights.shape), np.abs(rng.normal(size=features.shape))
    for point in ((near, trial), (weights, trial), (near, features), far):
        assert problem.objective(*point) >= frame.objective * (1 - EXACT)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=examples(60))
@given(st.data(), st.floats(1e-3, 1e3), SEEDS)
def test_margins_know_the_product_of_the_penalties_only_and_follow_their_class(kind, data, factor, seed):
    problem = data.draw(any_problem(kind))
    assume(np.abs(thresholds(problem).headroom - 1).min() > 1e-9)
    frame = predict(problem)
    moved = replace(problem, lambda_w=problem.lambda_w * factor, lambda_h=problem.lambda_h / factor)
    assert_allclose(predict(moved).margins, frame.margins, rtol=EXACT, atol=1e3 * MARGIN)
    order = np.random.default_rng(seed).permutation(problem.num_classes)
    loss = problem.loss
    if getattr(loss, "margins", None) is not None:
        loss = replace(loss, margins=np.asarray(loss.margins)[order])
    omega = None if problem.class_weights is None else problem.class_weights[order]
    lambda_h = problem.lambda_h[order] if np.ndim(problem.lambda_h) else problem.lambda_h
    other = predict(UFM(problem.counts[order], problem.lambda_w, lambda_h, loss=loss, class_weights=omega))
    assert_allclose(other.margins, frame.margins[order], rtol=EXACT, atol=EXACT)
    assert_allclose(other.objective, frame.objective, rtol=EXACT)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=examples(60))
@given(st.data(), st.floats(1.0, 10.0))
def test_confidence_rises_with_the_count_and_falls_with_the_penalties_for_every_loss(kind, data, factor):
    problem = data.draw(any_problem(kind))
    frame = predict(problem)
    for name in ("lambda_w", "lambda_h"):
        more = predict(replace(problem, **{name: getattr(problem, name) * factor}))
        assert (more.confidences <= frame.confidences * (1 + EXACT)).all()
    k = 0  # more samples of one class, the others giving theirs up: N stays
    if problem.counts[1] > 1:
        counts = problem.counts.copy()
        counts[[k, 1]] += [1, -1]
        assert predict(replace(problem, counts=counts)).confidences[k] >= frame.confidences[k] * (1 - EXACT)


@pytest.mark.parametrize("loss", [CrossEntropy(), CrossEntropy(smoothing=0.1, temperature=2.0), Focal(2.0)], ids=str)
@settings(max_examples=examples(60))
@given(size=st.integers(2, 9), count=st.integers(1, 500), share=st.floats(0.01, 0.9))
def test_balanced_classes_give_an_orthogonal_frame_and_a_simplex_for_every_loss(loss, size, count, share):
    limit = thresholds(UFM([count] * size, 1, 1, loss=loss)).minority_collapse * share
    geometry = predict(UFM([count] * size, np.sqrt(limit), np.sqrt(limit), loss=loss)).geometry()
    off = ~np.eye(size, dtype=bool)
    assert_array_equal(geometry.feature_cosines[off], 0)
    assert_allclose(geometry.classifier_cosines[off], -1 / (size - 1), rtol=GRAMS)
    assert_allclose(geometry.alignment, np.sqrt((size - 1) / size), rtol=GRAMS)


@settings(max_examples=examples(60))
@given(st.lists(st.integers(1, 1000), min_size=2, max_size=6))
def test_norms_as_the_penalties_vanish(counts):
    n = np.array(counts, dtype=float)
    for loss in (CrossEntropy(), Focal(1.0), CrossEntropy(temperature=3.0)):
        frame = predict(UFM(counts, 1e-120, 1e-120, loss=loss))
        assert_allclose(frame.margins / frame.margins[0], 1, rtol=LIMIT)
        assert_allclose((frame.feature_sqnorms / frame.feature_sqnorms[0]) ** 0.5, (n[0] / n) ** 0.25, rtol=LIMIT)
