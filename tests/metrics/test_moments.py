"""ClassMoments against two passes in extended precision, over random splits and merges; misuse."""

import functools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from _support.metric_oracles import assert_moments, class_table, raw_moments
from _support.strategies import examples
from _support.tolerances import EXACT, MOMENTS_EXTREME, MOMENTS_MERGED
from collapsekit import CollapseError
from collapsekit.metrics import ClassMoments

INTEGERS = [torch.uint8, torch.uint16, torch.uint32, torch.int8, torch.int16, torch.int32, torch.int64]


def cloud(seed, samples, num_classes, dim, spread):
    """Features whose class means have norm about 1 and whose within-class deviations have norm about `spread`."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, num_classes, samples)
    means = rng.normal(size=(num_classes, dim)) / np.sqrt(dim)
    return means[labels] + spread * rng.normal(size=(samples, dim)) / np.sqrt(dim), labels


def accumulate(features, labels, num_classes, cuts=()):
    parts = []
    for x, y in zip(np.split(features, cuts), np.split(labels, cuts), strict=True):
        part = ClassMoments(num_classes, features.shape[1])
        part.update(torch.from_numpy(x), torch.from_numpy(y))
        parts.append(part)
    return parts


@pytest.mark.parametrize(("spread", "rtol"), [(1.0, MOMENTS_MERGED), (1e-3, MOMENTS_MERGED), (1e-6, MOMENTS_EXTREME)])
@settings(max_examples=examples(60))
@given(st.integers(0, 2**32 - 1), st.integers(2, 6), st.integers(1, 9), st.data())
def test_any_split_in_any_merge_order(spread, rtol, seed, num_classes, dim, data):
    samples = data.draw(st.integers(1, 80))
    features, labels = cloud(seed, samples, num_classes, dim, spread)
    cuts = sorted(data.draw(st.lists(st.integers(0, samples), max_size=6)))
    parts = accumulate(features, labels, num_classes, cuts)
    streamed = ClassMoments(num_classes, dim)
    for x, y in zip(np.split(features, cuts), np.split(labels, cuts), strict=True):
        streamed.update(torch.from_numpy(x), torch.from_numpy(y))
    while len(parts) > 1:  # a random merge tree
        i = data.draw(st.integers(0, len(parts) - 2))
        before = [part.state.clone() for part in parts[i : i + 2]]
        merged = parts[i].merge(parts[i + 1])
        for part, state in zip(parts[i : i + 2], before, strict=True):
            assert_array_equal(part.state, state)
        parts[i : i + 2] = [merged]
    for moments in (streamed, parts[0]):
        assert_moments(moments, features, labels, rtol)


def from_table(table):
    """ClassMoments that hold what `table` says."""
    rows = np.c_[table.counts, table.within * table.counts, table.means]
    state = np.concatenate([rows.ravel(), table.scatter.ravel()]).astype(float)
    return ClassMoments.from_state(torch.from_numpy(state), *table.means.shape)


def test_the_oracle_accepts_the_truth_and_rejects_raw_second_moments_in_every_part():
    features, labels = cloud(0, 200, 3, 4, 1e-6)
    truth, raw = class_table(features, labels, 3), raw_moments(features, labels, 3)
    assert_moments(from_table(truth), features, labels, MOMENTS_EXTREME)
    wrong = {
        "counts": truth.counts + 1,
        "means": truth.means * (1 + 1e-9),
        "within": raw.within,
        "scatter": raw.scatter,
    }
    for part, value in wrong.items():
        with pytest.raises(AssertionError):
            assert_moments(from_table(truth._replace(**{part: value})), features, labels, MOMENTS_EXTREME)


def test_merge_is_associative_and_commutative():
    parts = accumulate(*cloud(1, 90, 4, 5, 1e-2), 4, (30, 50))
    left = functools.reduce(ClassMoments.merge, parts)
    right = functools.reduce(ClassMoments.merge, parts[::-1])
    assert_allclose(left.state, right.state, rtol=MOMENTS_MERGED, atol=EXACT)


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_every_integer_label_type(dtype):
    features, labels = cloud(2, 50, 3, 4, 0.1)
    moments = ClassMoments(3, 4)
    moments.update(torch.from_numpy(features), torch.from_numpy(labels).to(dtype))
    assert_moments(moments, features, labels, MOMENTS_MERGED)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_every_float_type_is_exact_in_its_own_values(dtype):
    features, labels = cloud(3, 50, 3, 4, 0.1)
    rounded = torch.from_numpy(features).to(dtype)
    moments = ClassMoments(3, 4)
    moments.update(rounded, torch.from_numpy(labels))
    assert moments.state.dtype == torch.float64
    assert_moments(moments, rounded.double().numpy(), labels, MOMENTS_MERGED)


def test_batches_of_one_empty_batches_empty_and_single_sample_classes():
    features, labels = cloud(4, 20, 2, 3, 0.1)
    labels[:] = 0
    labels[0] = 2
    moments = ClassMoments(4, 3)
    for i in range(20):
        moments.update(torch.from_numpy(features[i : i + 1]), torch.from_numpy(labels[i : i + 1]))
        moments.update(torch.empty(0, 3), torch.empty(0, dtype=torch.int64))
    assert_moments(moments, features, labels, MOMENTS_MERGED)
    assert moments.unseen == [1, 3]
    assert moments.singletons == [2]
    assert moments.seen.tolist() == [True, False, True, False]


def test_before_any_sample():
    moments = ClassMoments(2, 3)
    assert_array_equal(moments.counts, [0, 0])
    assert_array_equal(moments.scatter, np.zeros((3, 3)))
    assert moments.means.isnan().all()
    assert moments.within.isnan().all()
    assert_array_equal(moments.merge(ClassMoments(2, 3)).state, moments.state)
    assert repr(moments) == "ClassMoments(K=2, d=3, 0 samples, scatter)"


def test_features_that_require_grad_leave_no_graph():
    features, labels = cloud(7, 20, 3, 4, 0.1)
    moments = ClassMoments(3, 4)
    moments.update(torch.from_numpy(features).requires_grad_(), torch.from_numpy(labels))
    assert not moments.state.requires_grad


def test_results_are_copies_but_from_state_shares():
    features, labels = cloud(8, 20, 3, 4, 0.1)
    (moments,) = accumulate(features, labels, 3)
    before = moments.state.clone()
    for part in (moments.counts, moments.means, moments.within, moments.scatter):
        part.fill_(7.0)
    assert_array_equal(moments.state, before)
    ClassMoments.from_state(moments.state, 3, 4).update(torch.ones(1, 4), torch.tensor([0]))
    assert moments.counts[0] == before[0] + 1


def test_the_state_of_a_device_without_float64_lives_on_the_cpu():
    assert ClassMoments(2, 3, device="mps").state.device == torch.device("cpu")


def test_without_scatter():
    features, labels = cloud(5, 40, 3, 4, 0.1)
    moments = ClassMoments(3, 4, within="trace")
    moments.update(torch.from_numpy(features), torch.from_numpy(labels))
    assert moments.scatter is None
    assert_moments(moments, features, labels, MOMENTS_MERGED)


def test_inputs_are_left_alone():
    features, labels = map(torch.from_numpy, cloud(6, 40, 3, 4, 0.1))
    before = features.clone(), labels.clone()
    ClassMoments(3, 4).update(features, labels)
    assert_array_equal(features, before[0])
    assert_array_equal(labels, before[1])


@pytest.mark.parametrize(
    ("features", "labels", "fragment"),
    [
        (torch.zeros(2, 3), torch.tensor([0, 3]), "sample 1 has label 3; expected 0 to 2"),
        (torch.zeros(2, 3), torch.tensor([-1, 0]), "sample 0 has label -1"),
        (torch.zeros(2, 3), torch.tensor([0.0, 1.0]), "labels: dtype torch.float32"),
        (torch.zeros(2, 3), torch.tensor([True, False]), "labels: dtype torch.bool"),
        (torch.zeros(2, 3), torch.tensor([0]), r"labels: shape \(1,\) for 2 features"),
        (torch.zeros(2, 4), torch.tensor([0, 1]), r"features: shape \(2, 4\); expected \(n, 3\)"),
        (torch.zeros(2, 3, 1), torch.tensor([0, 1]), "features: shape"),
        (torch.zeros(2, 3, dtype=torch.int64), torch.tensor([0, 1]), "features: dtype torch.int64"),
        (torch.tensor([[0.0] * 3, [0, float("nan"), 0]]), torch.tensor([0, 1]), "sample 1 holds nan"),
        (torch.tensor([[float("inf")] * 3, [0.0] * 3]), torch.tensor([0, 1]), "sample 0 holds inf"),
    ],
)
def test_misuse_names_the_culprit_and_changes_nothing(features, labels, fragment):
    moments = ClassMoments(3, 3)
    moments.update(torch.ones(2, 3), torch.tensor([0, 1]))
    before = moments.state.clone()
    with pytest.raises(CollapseError, match=fragment):
        moments.update(features, labels)
    assert_array_equal(moments.state, before)


def test_misuse_of_size_and_merge():
    with pytest.raises(CollapseError, match="GiB"):
        ClassMoments(2, 200_000)
    assert ClassMoments(2, 200_000, within="trace").scatter is None
    for other in (ClassMoments(2, 4), ClassMoments(3, 3), ClassMoments(2, 3, within="trace")):
        with pytest.raises(CollapseError, match="cannot join"):
            ClassMoments(2, 3).merge(other)


def test_squares_beyond_float64_are_refused_in_any_split():
    features, labels = torch.tensor([[1e200], [-1e200]], dtype=torch.float64), torch.tensor([0, 0])
    moments = ClassMoments(2, 1)
    with pytest.raises(CollapseError, match="squares overflow float64"):
        moments.update(features, labels)
    moments.update(features[:1], labels[:1])
    before = moments.state.clone()
    with pytest.raises(CollapseError, match="squares overflow float64"):
        moments.update(features[1:], labels[1:])
    assert_array_equal(moments.state, before)


@pytest.mark.parametrize(("num_classes", "dim"), [(0, 3), (-1, 3), (2.5, 3), (2, 0), (2, 1.5)])
def test_misuse_of_sizes(num_classes, dim):
    with pytest.raises(CollapseError, match=r"num_classes|dim"):
        ClassMoments(num_classes, dim)


def test_table_oracle_itself_on_numbers_done_by_hand():
    table = class_table([[1.0], [3.0], [5.0]], [0, 0, 1], 2)
    assert_array_equal(table.means[:, 0].astype(float), [2, 5])
    assert_array_equal(table.within.astype(float), [1, 0])
    assert_array_equal(table.scatter.astype(float), [[2]])
