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
