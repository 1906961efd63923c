"""Checks that everything public keeps: inputs unchanged, symmetries, splits, the smallest cases, dtype and device."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn

from _support.samples import draw_samples, rotation, samples
from _support.strategies import examples, problems
from _support.tolerances import EXACT, METRICS
from collapsekit import UFM, predict, thresholds
from collapsekit.metrics import ClassMoments, NeuralCollapse, measure, measure_features

# Each view turns a list of batches (Samples with one head) into {key: number or (K,) vector}.


def of_moments(batches):
    moments = ClassMoments(*batches[0].weight.shape)
    for batch in batches:
        moments.update(*batch.tensors[:2])
    return {"count": moments.counts, "within": moments.within, "trace": moments.scatter.trace()}


def of_metric(batches):
    metric = NeuralCollapse(*batches[0].weight.shape)
    for batch in batches:
        metric.update(*batch.tensors)
    metric.use_centres()
    metric.reset()
    for batch in batches:
        metric.update(*batch.tensors)
    return metric.compute() | metric.compute_per_class()


def of_measurement(measured):
    return measured.metrics() | measured.per_class() | {"margins": measured.margins}


def of_measure(batches):
    """The network is its head, so that its inputs are the features."""
    num_classes, dim = batches[0].weight.shape
    head = nn.Linear(dim, num_classes, dtype=torch.float64)
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(batches[0].weight))
        head.bias.copy_(torch.from_numpy(batches[0].bias))
    return of_measurement(measure(head, [batch.tensors[:2] for batch in batches], head))


def joined(batches):
    features, labels = (np.concatenate(parts) for parts in list(zip(*batches, strict=True))[:2])
    return batches[0]._replace(features=features, labels=labels)


def of_measure_features(batches):
    return of_measurement(measure_features(*joined(batches)))


VIEWS = {
    "ClassMoments": of_moments,
    "NeuralCollapse": of_metric,
    "measure": of_measure,
    "measure_features": of_measure_features,
}
views = pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)


def assert_same(actual, expected, order=None, rtol=METRICS):
    """Equal keys and values; with `order`, entry k of a vector of `actual` is entry order[k] of `expected`."""
    assert actual.keys() == expected.keys()
    for key, value in expected.items():
        right = np.asarray(value)
        right = right[order] if order is not None and right.ndim else right
        assert_allclose(np.asarray(actual[key]), right, rtol=rtol, atol=rtol, err_msg=key)


# metrics


@views
@settings(max_examples=examples(30))
@given(s=samples(), data=st.data())
def test_batches_may_be_split_and_shuffled(view, s, data):
    rows = np.array(data.draw(st.permutations(range(len(s.labels)))))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(rows)), max_size=4)))
    assert_same(view([s.part(part) for part in np.split(rows, cuts)]), view([s]))


@views
@settings(max_examples=examples(30))
@given(s=samples(), seed=st.integers(0, 2**32 - 1))
def test_rotating_feature_space_changes_nothing(view, s, seed):
    turn = rotation(s.weight.shape[1], seed)
    assert_same(view([s._replace(features=s.features @ turn, weight=s.weight @ turn)]), view([s]))


@views
@settings(max_examples=examples(30))
@given(s=samples(), seed=st.integers(0, 2**32 - 1))
def test_classes_may_be_renumbered(view, s, seed):
    order = np.random.default_rng(seed).permutation(s.num_classes)  # class order[k] becomes class k
    named = s._replace(labels=np.argsort(order)[s.labels], weight=s.weight[order], bias=s.bias[order])
    assert_same(view([named]), view([s]), order)


@views
def test_repeating_the_data_changes_counts_only(view):
    s = draw_samples([9, 5, 2], 4)
    twice, once = view([s, s]), view([s])
    for result, factor in ((twice, 2), (once, 1)):
        for key in {"count", "trace"} & set(result):
            result[key] = result[key] / factor
    assert_same(twice, once)


@views
def test_inputs_are_left_alone(view):
    s = draw_samples([9, 5, 2], 4)
    before = [value.copy() for value in s]
    view([s])
    for value, copy in zip(s, before, strict=True):
        assert_array_equal(value, copy)


@views
def test_an_empty_class_is_nan_in_vectors_and_absent_from_scalars(view):
    s = draw_samples([9, 5, 0, 2], 6)
    result = view([s])
    for key, value in result.items():
        known = np.isfinite(np.asarray(value))
        never = key in {"count", "classifier_sqnorm"} or not known.ndim
        assert_array_equal(known, True if never else [True, True, False, True], err_msg=key)


@views
def test_one_sample_a_class_and_one_sample_in_all(view):
    every = view([draw_samples([1, 1, 1], 4)])
    assert not np.nan_to_num(np.asarray(every["within"])).any()  # 0 in the moments, not known in a measurement
    alone = view([draw_samples([0, 1, 0], 4)])
    assert_array_equal(alone["count"], [0, 1, 0])
    assert not np.nan_to_num(np.asarray(alone["within"])).any()
    for key in {"nc1", "cdnv"} & set(every):  # spread is 0 by definition, not by collapse
        assert np.isnan(np.asarray(every[key])).all()
    for key in {"nc1"} & set(alone):  # nothing between classes to compare with
        assert np.isnan(alone[key])


@views
@pytest.mark.parametrize("dim", [1, 5])
def test_two_classes(view, dim):
    result = view([draw_samples([8, 3], dim)])
    for key, value in result.items():
        assert np.isfinite(np.asarray(value)).all(), key


@views
def test_empty_batches_count_for_nothing(view):
    s = draw_samples([9, 5, 2], 4)
    nothing = s.part(slice(0, 0))
    assert_same(view([nothing, s, nothing]), view([s]), rtol=EXACT)


@views
def test_results_are_float64(view):
    for key, value in view([draw_samples([9, 5, 2], 4)]).items():
        assert np.asarray(value).dtype == np.float64, key


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_low_precision_inputs_give_the_float64_results_of_their_values(dtype):
    s = draw_samples([9, 5, 2], 4).tensors
    low = [value.to(dtype) if value.is_floating_point() else value for value in s]
    exact = [value.double() if value.is_floating_point() else value for value in low]
    assert_same(of_measurement(measure_features(*low)), of_measurement(measure_features(*exact)), rtol=EXACT)
    assert all(value.dtype in (dtype, torch.int64) for value in low)


def test_results_live_where_the_state_lives():
    s = draw_samples([9, 5, 2], 4)
    metric = NeuralCollapse(3, 4)
    metric.update(*s.tensors)
    for value in (s.moments().means, s.moments().merge(s.moments()).state, *metric.compute_per_class().values()):
        assert value.device == metric.moments_state.device == torch.device("cpu")


# the numpy core


def vectors(problem):
    frame, limits = predict(problem), thresholds(problem)
    names = ("margins", "confidences", "feature_sqnorms", "classifier_sqnorms", "collapses", "headroom")
    result = {name: getattr(frame, name) for name in names}
    result |= {"critical_product": limits.critical_product, "critical_count": limits.critical_count}
    return result | {"objective": frame.objective, "minority_collapse": limits.minority_collapse}


def rebuilt(problem, order):
    weights = None if problem.class_weights is None else problem.class_weights[order]
    return UFM(problem.counts[order], problem.lambda_w, problem.lambda_h, class_weights=weights)


@settings(max_examples=examples(60))
@given(problem=problems(), seed=st.integers(0, 2**32 - 1))
def test_predictions_follow_a_renumbering_of_classes(problem, seed):
    order = np.random.default_rng(seed).permutation(problem.num_classes)
    before, after = vectors(problem), vectors(rebuilt(problem, order))
    assert_array_equal(after.pop("collapses"), before.pop("collapses")[order])
    assert_same(after, before, order)


@settings(max_examples=examples(60))
@given(problem=problems())
def test_predictions_leave_their_problem_alone_and_cannot_be_changed(problem):
    before = problem.to_dict()
    result = vectors(problem)
    assert problem.to_dict() == before
    for name, value in result.items():
        if np.ndim(value):
            assert value.dtype == (bool if name == "collapses" else np.float64), name
            assert not value.flags.writeable, name


@pytest.mark.parametrize("counts", [np.array([30, 4], dtype=np.uint8), [30, 4], (30.0, 4.0), {"a": 30, "b": 4}])
def test_predictions_from_counts_of_any_kind_with_two_classes(counts):
    reference = vectors(UFM(np.array([30.0, 4.0]), 1e-3, 1e-3))
    result = vectors(UFM(counts, 1e-3, 1e-3))
    assert all(np.isfinite(np.asarray(value, dtype=float)).all() for value in result.values())
    assert_array_equal(result.pop("collapses"), reference.pop("collapses"))
    assert_same(result, reference, rtol=EXACT)


def test_inputs_of_a_problem_are_copied():
    counts, lambda_h = np.array([30.0, 4.0]), np.array([1e-3, 2e-3])
    problem = UFM(counts, 1e-3, lambda_h)
    before = vectors(problem)
    counts[0], lambda_h[0] = 1, 1
    after = vectors(problem)
    assert_array_equal(after.pop("collapses"), before.pop("collapses"))
    assert_same(after, before, rtol=EXACT)


# the checks can fail


@pytest.mark.parametrize(
    "spoilt",
    [{"a": 1.0 + 1e-8, "v": [1.0, 2.0]}, {"a": 1.0, "v": [2.0, 1.0]}, {"a": 1.0}, {"a": np.nan, "v": [1.0, 2.0]}],
)
def test_the_comparison_rejects_wrong_answers(spoilt):
    right = {"a": 1.0, "v": np.array([2.0, 1.0])}
    assert_same({"a": 1.0, "v": [1.0, 2.0]}, right, order=[1, 0])
    with pytest.raises(AssertionError):
        assert_same(spoilt, right, order=[1, 0])
