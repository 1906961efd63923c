"""What UFM and its units table refuse, by the message: argument, value, remedy."""

import pytest

from collapsekit import UFM, CollapseError

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("counts", "fragment"),
    [
        ([5, 0], "class 1 has 0 samples; drop the class"),
        ([5, -1], "class 1 has -1 samples"),
        ([5, 2.5], "class 1 has 2.5 samples"),
        ([5, NAN], "class 1 has nan samples"),
        ([5, INF], "class 1 has inf samples"),
        ([5], "at least two classes"),
        ([], "at least two classes"),
        (5, "one count a class"),
        ([[5, 3]], "one count a class"),
        ("53", "give real numbers"),
        (["a", "b"], "give real numbers"),
        ([True, False], "give real numbers"),
        ([[1], [2, 3]], "give real numbers"),
        (None, "give real numbers"),
    ],
)
def test_misuse_of_counts(counts, fragment):
    with pytest.raises(CollapseError, match=fragment) as caught:
        UFM(counts, 0.1, 0.1)
    assert "counts" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["lambda_w", "lambda_h"])
@pytest.mark.parametrize("value", [0, -1, NAN, INF, "x", None, 1j])
def test_misuse_of_penalties(name, value):
    with pytest.raises(CollapseError, match=f"{name}="):
        UFM([5, 3], **({"lambda_w": 0.1, "lambda_h": 0.1} | {name: value}))


@pytest.mark.parametrize("count", [2**53, 2**53 + 1, 2**60, 2**63 - 1, 2**63, 2**64, 10**400, 2.0**70])
def test_counts_beyond_whole_numbers_of_float64_are_refused(count):
    """Rounded, they would be other counts; as integers of 64 bits, negative ones."""
    with pytest.raises(CollapseError, match="counts") as caught:
        UFM([count, 10], 1e-3, 1e-3)
    assert "2**53" in str(caught.value) or count > 10**300


def test_the_largest_counts_are_what_they_were_given_as():
    assert UFM([2**53 - 1, 10], 1e-3, 1e-3).to_dict()["counts"] == [2**53 - 1, 10]


@pytest.mark.parametrize("value", [1e154, 1e308, 1e151, 1e-301, 5e-324])
@pytest.mark.parametrize("name", ["lambda_w", "lambda_h", "class_weights", "bias"])
def test_numbers_that_leave_float64_are_refused_with_the_range(name, value):
    given = {"lambda_w": 0.1, "lambda_h": 0.1} | {name: [value, 1.0] if name == "class_weights" else value}
    with pytest.raises(CollapseError, match=f"{name}.*give a number from 1e-300 to 1e\\+150"):
        UFM([5, 3], **given)


@pytest.mark.parametrize(
    ("options", "fragment"),
    [
        ({"lambda_h": [0.1, 0.1, 0.1]}, r"lambda_h: shape \(3,\)"),
        ({"lambda_h": [0.1, 0]}, "lambda_h: class 1 has 0"),
        ({"class_weights": [1, 2, 3]}, "class_weights: shape"),
        ({"class_weights": [1, 0]}, "class_weights: class 1 has 0"),
        ({"class_weights": [1, NAN]}, "class_weights: class 1 has nan"),
        ({"bias": "frozen"}, "bias='frozen'"),
        ({"bias": -1}, "bias=-1"),
        ({"relu": 1}, "relu=1"),
        ({"dim": 0}, "dim=0"),
        ({"dim": 2.5}, "dim=2.5"),
        ({"loss": "ce"}, "loss='ce'"),
        ({"names": ["a"]}, "names: 1 names for 2 classes"),
        ({"names": ["a", "a"]}, "'a' stands for two classes"),
    ],
)
def test_misuse_of_options(options, fragment):
    with pytest.raises(CollapseError, match=fragment):
        UFM([5, 3], **({"lambda_w": 0.1, "lambda_h": 0.1} | options))
