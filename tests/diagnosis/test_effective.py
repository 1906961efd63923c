"""effective_penalties: exact on the theory's own frames, close under noise, silent where the model does not apply."""

import json

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from _support.samples import rotation
from _support.strategies import examples, problems
from _support.tolerances import BRUTE_GRAM
from collapsekit import UFM, CollapseError, CrossEntropy, predict
from collapsekit.diagnosis import effective_penalties
from collapsekit.diagnosis._effective import LARGEST_MISFIT
from collapsekit.metrics import measure_features

COUNTS = np.array([60, 40, 25, 12, 6])
PROBLEM = UFM(COUNTS, 0.02, 3e-4)


def sampled(problem, *, within=0.0, seed=0, dim=None):
    """Features of every sample of a predicted frame, nonnegative noise on top, labels and head."""
    weights, features = predict(problem).weights_and_features(dim)
    labels = np.repeat(np.arange(problem.num_classes), problem.counts.astype(int))
    noise = np.random.default_rng(seed).normal(size=(len(labels), features.shape[1]))
    features = features[labels]
    scale = np.sqrt((features**2).sum() / noise.size)
    return np.maximum(features + within * scale * noise, 0) if within else features, labels, weights


def measured(problem, **kwargs):
    features, labels, weights = sampled(problem, **kwargs)
    return measure_features(features, labels, weights, loss=problem.loss)


def assert_recovered(found, problem, rtol=BRUTE_GRAM):
    assert found.applies, found.reason
    assert_allclose([found.lambda_w, found.lambda_h], [problem.lambda_w, problem.lambda_h], rtol=rtol)
    assert_allclose(found.product, problem.lambda_w * problem.lambda_h, rtol=rtol)
    assert_allclose(found.ratio, problem.lambda_h / problem.lambda_w, rtol=rtol)
    low, high = found.product_interval
    assert low <= found.product * (1 + rtol)
    assert high >= found.product * (1 - rtol)


def assert_refused(found, reason):
    """Never a number that means nothing."""
    assert not found.applies
    assert reason in found.reason
    assert found.lambda_w is found.lambda_h is found.product is found.product_interval is found.ratio is None
    assert "the model does not apply" in str(found)
    assert reason in str(found)
    content = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert content["lambda_w"] is content["lambda_h"] is content["product"] is None


def test_the_checks_reject_wrong_answers():
    found = effective_penalties(measured(PROBLEM), resamples=5)
    assert_recovered(found, PROBLEM)
    for wrong in (UFM(COUNTS, 0.02, 3.01e-4), UFM(COUNTS, 3e-4, 0.02), UFM(COUNTS, 0.04, 1.5e-4)):
        with pytest.raises(AssertionError):
            assert_recovered(found, wrong)
    with pytest.raises(AssertionError):
        assert_refused(found, "margins")


@settings(max_examples=examples(300))
@given(problem=problems(max_classes=6))
def test_frames_give_their_penalties_back(problem):
    """Whatever the loss weights, and with some classes dead."""
    assume(problem.counts.sum() < 3000)
    frame = predict(problem)
    assume(frame.headroom.max() > 1.01)
    found = effective_penalties(measured(problem), class_weights=problem.class_weights, resamples=20)
    assert_recovered(found, problem)


@settings(max_examples=examples(100))
@given(
    smoothing=st.sampled_from([0.0, 0.1]),
    margins=st.booleans(),
    temperature=st.sampled_from([0.5, 1.0, 2.0]),
    scale=st.floats(0.01, 3.0),
)
def test_losses_other_than_the_plain_one(smoothing, margins, temperature, scale):
    loss = CrossEntropy(smoothing, tuple(0.5 * (6 / COUNTS) ** 0.25) if margins else None, temperature)
    product = scale / predict(UFM(COUNTS, 1, 1, loss=loss)).headroom.min() ** -1
    problem = UFM(COUNTS, np.sqrt(900 * product), np.sqrt(product / 900), loss=loss)
    assume(predict(problem).headroom.max() > 1.01)
    assert_recovered(effective_penalties(measured(problem), resamples=5), problem)
    features, labels, weights = sampled(problem)
    plainly = measure_features(features, labels, weights)
    assert_recovered(effective_penalties(plainly, loss=loss, resamples=5), problem)


def test_the_loss_and_its_weights_matter():
    smoothed = UFM(COUNTS, 0.02, 3e-5, loss=CrossEntropy(0.1))
    assert_refused(effective_penalties(measured(smoothed), loss=CrossEntropy()), "margins deviate")
    weighted = UFM(COUNTS, 0.02, 3e-4, class_weights=(COUNTS.mean() / COUNTS))
    assert_refused(effective_penalties(measured(weighted)), "margins deviate")


@pytest.mark.parametrize("within", [0.01, 0.03])
def test_scattered_features_are_close_to_the_penalties(within):
    """Noise of a few hundredths of the features: estimates within the misfit that is allowed."""
    for seed in range(5):
        found = effective_penalties(measured(PROBLEM, within=within, seed=seed, dim=8), resamples=20)
        assert_recovered(found, PROBLEM, rtol=LARGEST_MISFIT)
        assert found.misfit < LARGEST_MISFIT


@pytest.mark.parametrize("scale", [0.05, 0.3])
def test_the_interval_holds_the_truth_under_noise(scale):
    """Margins off by a per cent of their size: resampling ten classes covers somewhat less than its 95 %."""
    counts = np.array([90, 70, 55, 42, 33, 25, 20, 15, 12, 9])
    product = scale * predict(UFM(counts, 1, 1)).headroom.min()
    problem = UFM(counts, np.sqrt(900 * product), np.sqrt(product / 900))
    weights, features = predict(problem).weights_and_features()
    labels = np.repeat(np.arange(10), counts)
    hits, far = 0, 0
    for seed in range(50):
        factors = 1 + 0.01 * np.random.default_rng(seed).normal(size=10)
        found = effective_penalties(measure_features((features * factors[:, None])[labels], labels, weights), seed=seed)
        assert found.applies
        low, high = found.product_interval
        assert low <= found.product <= high
        hits += low <= product <= high
        far += low <= 1.2 * product <= high
    assert hits >= 40
    assert far == 0


def test_the_interval_is_seeded_and_narrows_with_the_noise():
    noisy = measured(PROBLEM, within=0.05, dim=8)
    first, second = effective_penalties(noisy, seed=1), effective_penalties(noisy, seed=1)
    assert first == second
    assert effective_penalties(noisy, seed=2).product_interval != first.product_interval
    assert effective_penalties(noisy, seed=2).product == first.product

    def width(found):
        low, high = found.product_interval
        return np.log(high / low)

    exact = effective_penalties(measured(PROBLEM, dim=8))
    assert width(exact) < width(first) / 100
    assert "an estimate" in str(first)
    assert first.to_dict()["estimate"] is True


# where the model does not apply


def test_a_bias_is_refused():
    features, labels, weights = sampled(PROBLEM)
    found = effective_penalties(measure_features(features, labels, weights, 0.1 * np.arange(5.0)))
    assert_refused(found, "the head has a bias")
    zero = effective_penalties(measure_features(features, labels, weights, np.zeros(5)))
    assert_recovered(zero, PROBLEM)


def test_negative_features_are_refused():
    """The same geometry turned: norms, angles and margins are those of the frame, but there is no ReLU."""
    features, labels, weights = sampled(PROBLEM)
    turn = rotation(5)
    assert_refused(effective_penalties(measure_features(features @ turn, labels, weights @ turn)), "negative")


def test_means_that_are_not_orthogonal_are_refused():
    features, labels, weights = sampled(PROBLEM)
    found = effective_penalties(measure_features(features + 0.3 * features.max(), labels, weights))
    assert_refused(found, "not orthogonal")


def test_scattered_features_are_refused():
    assert_refused(effective_penalties(measured(PROBLEM, within=0.6, dim=8)), "scatter within classes")


@pytest.mark.parametrize("factors", [[1, 1, 1, 1, 3], [1, 0.5, 1, 1, 1], [0.2, 0.4, 0.6, 0.8, 1]], ids=str)
def test_margins_of_no_single_product_are_refused(factors):
    features, labels, weights = sampled(PROBLEM)
    scaled = features * np.array(factors)[labels][:, None]
    found = effective_penalties(measure_features(scaled, labels, weights))
    assert_refused(found, "margins deviate")
    assert found.misfit > LARGEST_MISFIT


def test_complete_collapse_is_refused():
    dead = UFM(COUNTS, 1.0, 1.0)
    assert predict(dead).collapses.all()
    features, labels, weights = sampled(dead, dim=5)
    assert_refused(effective_penalties(measure_features(features, labels, weights)), "no class has a margin")
    features, labels, weights = sampled(PROBLEM)
    assert_refused(effective_penalties(measure_features(features, labels, -weights)), "no class has a margin")


@settings(max_examples=examples(100))
@given(seed=st.integers(0, 10**6), spread=st.floats(0, 2))
def test_networks_off_the_frame_get_no_number(seed, spread):
    """Random nonnegative features and heads."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(5), COUNTS)
    features = np.abs(rng.normal(size=(5, 7)))[labels] + spread * np.abs(rng.normal(size=(len(labels), 7)))
    found = effective_penalties(measure_features(features, labels, rng.normal(size=(5, 7))), resamples=5)
    assert_refused(found, "")


def test_misuse():
    features, labels, weights = sampled(PROBLEM)
    with pytest.raises(CollapseError, match="without a head there are no margins"):
        effective_penalties(measure_features(features, labels))
    kept = labels != 2
    with pytest.raises(CollapseError, match="class 2 has no samples"):
        effective_penalties(measure_features(features[kept], labels[kept], weights))
    whole = measure_features(features, labels, weights)
    for values, fragment in (
        ({"class_weights": [1, 2]}, "class_weights: shape"),
        ({"class_weights": [1, 2, 3, 4, 0]}, "class 4 has 0"),
        ({"resamples": 0}, "resamples=0"),
    ):
        with pytest.raises(CollapseError, match=fragment):
            effective_penalties(whole, **values)
