"""Types of samples of a data set, against counting by hand and by a dictionary of every input."""

from collections import Counter, defaultdict
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from _support.strategies import examples
from collapsekit import UFM, CollapseError, predict
from collapsekit.data import types_of


def by_hand(inputs, labels):
    """Samples of each distribution of labels, in fractions."""
    sets, types = defaultdict(Counter), Counter()
    for one, label in zip(inputs, labels, strict=True):
        sets[one][label] += 1
    for members in sets.values():
        total = sum(members.values())
        types[frozenset((label, Fraction(count, total)) for label, count in members.items())] += total
    return types


@settings(max_examples=examples(200))
@given(st.lists(st.tuples(st.text("ab\0", max_size=3), st.integers(0, 3)), min_size=1), st.booleans())
def test_types_are_those_counted_by_hand(samples, as_numbers):
    texts, labels = [one for one, _ in samples], [label for _, label in samples]
    inputs = np.array([[ord(c) + 1 for c in one.ljust(3, "z")] for one in texts]) if as_numbers else texts
    counts, targets = types_of(inputs, labels, 4)
    found = {
        frozenset((k, Fraction(share).limit_denominator(1000)) for k, share in enumerate(row) if share): count
        for count, row in zip(counts, targets, strict=True)
    }
    assert found == by_hand(texts, labels)
    assert len(found) == len(counts)


def test_classes_come_first_and_in_order():
    counts, targets = types_of(["x", "c", "x", "b", "a", "a", "y", "y"], [2, 2, 1, 1, 0, 0, 1, 2], 3)
    assert_array_equal(counts, [2, 1, 1, 4])
    assert_array_equal(targets, [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0.5, 0.5]])


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64, np.int64])
def test_images_of_any_type(dtype):
    images = np.zeros((4, 2, 3), dtype)
    images[2:, 0, 1] = 1
    counts, targets = types_of(images, [0, 1, 1, 1], 2)
    assert_array_equal(counts, [2, 2])
    assert_array_equal(targets, [[0, 1], [0.5, 0.5]])


def test_zero_has_no_sign():
    counts, _ = types_of(np.array([[0.0], [-0.0]]), [0, 1], 2)
    assert_array_equal(counts, [2])


def test_texts_that_coincide_are_predicted():
    texts = [f"{k} {i}" for k, count in enumerate((150, 70, 20)) for i in range(count)] + 2 * [
        f"=: {i}" for i in range(10)
    ]
    labels = np.repeat([0, 1, 2, 1, 2], [150, 70, 20, 10, 10])
    penalty = 0.12 * np.sqrt(30) / 260
    assert predict(UFM.from_types(*types_of(texts, labels, 3), penalty, penalty)).confidences.round(3)[2] == 0.745


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        ((["a"], [0, 1], 2), r"labels: shape \(2,\) for 1 inputs"),
        (([], [], 2), "at least one"),
        ((["a", "b"], [0, 2], 2), "labels: 2.0 is no class from 0 to 1"),
        ((["a", "b"], [0, 0.5], 2), "labels: 0.5 is no class"),
        ((["a", "b"], ["x", "y"], 2), "labels=.*give real numbers"),
        ((["a", "b"], [0, 1], 1), "num_classes=1"),
    ],
)
def test_misuse(arguments, fragment):
    with pytest.raises(CollapseError, match=fragment) as error:
        types_of(*arguments)
    assert "\n" not in str(error.value)
