"""Count profiles: their formulas, the paper's counts, every misuse."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from _support.strategies import examples
from _support.tolerances import EXACT
from collapsekit import UFM, CollapseError, long_tail, step
from collapsekit.profiles import paper


def sizes(draw_ratio=10**4):
    return st.tuples(st.integers(1, 10**5), st.integers(1, draw_ratio), st.integers(2, 50))


@settings(max_examples=examples(200))
@given(sizes())
def test_long_tail_falls_from_largest_to_smallest_at_a_constant_rate(arguments):
    smallest, ratio, size = arguments
    counts = long_tail(smallest * ratio, smallest, size)
    assert counts.shape == (size,)
    assert (counts[0], counts[-1]) == (smallest * ratio, smallest)
    assert (np.diff(counts) <= 0).all()
    exact = [float(smallest * ratio) * ratio ** (-k / (size - 1)) for k in range(size)]
    assert np.abs(counts - exact).max() <= 0.5 + EXACT * counts[0]
    UFM(counts, 1, 1)  # whole numbers, at least 1


@pytest.mark.parametrize(
    ("arguments", "total"), [((500, 5, 100), 10847), ((5000, 50, 10), 12406), ((5000, 500, 10), 20431)]
)
def test_a_long_tail_by_the_rule_of_the_published_ones(arguments, total):
    largest, smallest, size = arguments
    counts = long_tail(largest, smallest, size, rounding="truncated")
    assert counts.sum() == total
    assert_array_equal(counts, [int(largest * (smallest / largest) ** (k / (size - 1.0))) for k in range(size)])


@settings(max_examples=examples(100))
@given(sizes())
def test_truncated_counts_keep_both_ends_and_lie_at_most_one_below_rounded_ones(arguments):
    smallest, ratio, size = arguments
    rounded, truncated = (long_tail(smallest * ratio, smallest, size, rounding=r) for r in ("nearest", "truncated"))
    assert (truncated[0], truncated[-1]) == (smallest * ratio, smallest)
    assert set(rounded - truncated) <= {0, 1}


def test_a_rounding_of_the_smallest_count_does_not_truncate_it():
    assert 49 * (1 / 49) < 1
    assert long_tail(49, 1, 3, rounding="truncated")[-1] == 1


@pytest.mark.parametrize("rounding", ["down", None, 1])
def test_other_roundings_are_refused(rounding):
    with pytest.raises(CollapseError, match=r"rounding=.*give 'nearest' or 'truncated'"):
        long_tail(9, 3, 3, rounding=rounding)


@settings(max_examples=examples(100))
@given(sizes(), st.data())
def test_step_has_two_levels(arguments, data):
    smallest, ratio, size = arguments
    few = data.draw(st.integers(0, size))
    counts = step(smallest * ratio, smallest, size, few)
    assert_array_equal(counts, [smallest * ratio] * (size - few) + [smallest] * few)


def test_half_of_the_classes_are_minorities_by_default_rounded_down():
    assert_array_equal(step(9, 2, 5), [9, 9, 9, 2, 2])
    assert_array_equal(step(9, 2, 2), [9, 2])


@pytest.mark.parametrize(
    ("largest", "num_classes", "expected"),
    [
        (500, 10, [100, 100, 200, 200, 300, 300, 400, 400, 500, 500]),
        (5000, 10, [1000, 1000, 2000, 2000, 3000, 3000, 4000, 4000, 5000, 5000]),
        (500, 100, np.repeat([100, 200, 300, 400, 500], 20)),
        (500, 5, [100, 200, 300, 400, 500]),
    ],
)
def test_the_counts_of_the_paper(largest, num_classes, expected):
    assert_array_equal(paper(largest, num_classes), expected)


@settings(max_examples=examples(100))
@given(st.integers(5, 10**6), st.integers(2, 200))
def test_paper_counts_are_whole_positive_and_increasing(largest, size):
    counts = paper(largest, size)
    assert counts.shape == (size,)
    assert (np.diff(counts) >= 0).all()
    UFM(counts, 1, 1)


@pytest.mark.parametrize("counts", [long_tail(9, 2, 4), step(9, 2, 4), paper(10, 4)])
def test_counts_are_read_only_float64(counts):
    assert counts.dtype == np.float64
    with pytest.raises(ValueError, match="read-only"):
        counts[0] = 1


MISUSE = [
    (long_tail, (5, 10, 3), "smallest=10: larger than largest=5; swap the two"),
    (long_tail, (5, 1, 1), "num_classes=1: must be a whole number of at least 2; give the number of classes"),
    (long_tail, (5, 1, 2.5), "num_classes=2.5"),
    (
        long_tail,
        (5.5, 1, 3),
        "largest=5.5: must be a whole number of at least 1; give the samples of the largest class",
    ),
    (long_tail, ("5", 1, 3), "largest='5': give real numbers"),
    (long_tail, (float("inf"), 1, 3), "largest=inf"),
    (long_tail, (5, 0, 3), "smallest=0: must be a whole number of at least 1; give the samples of the smallest class"),
    (long_tail, (5, float("nan"), 3), "smallest=nan"),
    (long_tail, (5, -1, 3), "smallest=-1"),
    (long_tail, ([5, 4], 1, 3), "largest=[5, 4]"),
    (step, (5, 10, 3), "smallest=10: larger than largest=5"),
    (step, (5, 1, 0), "num_classes=0"),
    (step, (5, 1, 3, 4), "minorities=4: only 3 classes"),
    (step, (5, 1, 3, -1), "minorities=-1: must be a whole number of at least 0; give how many are small"),
    (step, (5, 1, 3, 1.5), "minorities=1.5"),
    (step, (5, 1, 3, True), "minorities=True: give real numbers"),
    (paper, (4, 10), "largest=4: the paper's profile has a class of a fifth of it; give at least 5"),
    (paper, (500, 1), "num_classes=1"),
    (paper, (None, 10), "largest=None"),
]


@pytest.mark.parametrize(
    ("profile", "arguments", "fragment"), MISUSE, ids=lambda value: getattr(value, "__name__", None)
)
def test_misuse(profile, arguments, fragment):
    with pytest.raises(CollapseError) as caught:
        profile(*arguments)
    assert fragment in str(caught.value)
    assert "\n" not in str(caught.value)
