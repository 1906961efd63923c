"""UFM, beside test_problem.py: rarer misuse, the whole units table by complex steps, optimisers, the container."""

import json
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from _support import oracles
from _support.strategies import examples, problems
from _support.tolerances import EXACT
from collapsekit import UFM, CollapseError, CrossEntropy

NAN, INF = float("nan"), float("inf")

MISUSE = [
    ({"counts": {}}, "counts=[]: give one count a class, for at least two classes"),
    ({"counts": [1j, 2]}, "counts=[1j, 2]: give real numbers"),
    ({"counts": [5, 2.5]}, "counts: class 1 has 2.5 samples; counts are whole numbers, at least 1"),
    ({"lambda_w": True}, "lambda_w=True: give real numbers"),
    ({"lambda_w": [0.1, 0.1, 0.1]}, "lambda_w=[0.1, 0.1, 0.1]: must be one finite number above 0"),
    ({"lambda_w": 0}, "without a penalty no minimiser exists"),
    ({"lambda_h": [[0.1, 0.2, 0.3]]}, "lambda_h: shape (1, 3); expected one value a class, (3,)"),
    ({"lambda_h": [0.1, NAN, 1]}, "lambda_h: class 1 has nan; must be finite and above 0"),
    ({"lambda_h": [[0.1], [0.2, 0.3]]}, "lambda_h=[[0.1], [0.2, 0.3]]: give real numbers"),
    ({"class_weights": 1.0}, "class_weights: shape (); expected one value a class, (3,); leave it out"),
    ({"class_weights": ["a", "b", "c"]}, "class_weights=['a', 'b', 'c']: give real numbers"),
    ({"class_weights": [1, 1, INF]}, "class_weights: class 2 has inf"),
    ({"bias": 0}, "bias=0: must be one finite number above 0; give None, 'free' or a penalty"),
    ({"bias": NAN}, "bias=nan: must be"),
    ({"bias": True}, "bias=True: give real numbers"),
    ({"bias": [0.1, 0.2]}, "bias=[0.1, 0.2]: must be one finite number"),
    ({"bias": np.ones(3)}, "bias=array([1., 1., 1.]): must be one finite number"),
    ({"relu": "no"}, "relu='no': give True or False"),
    ({"dim": NAN}, "dim=nan: must be a whole number of at least 1; give the feature dimension or None"),
    ({"dim": "wide"}, "dim='wide': give real numbers"),
    ({"loss": None}, "loss=None: give a loss of this package, e.g. CrossEntropy()"),
    ({"names": 3}, "names=3"),
]


def refusal(build, **arguments):
    with pytest.raises(CollapseError) as caught:
        build(**arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("changed", "fragment"), MISUSE, ids=str)
def test_misuse(changed, fragment):
    assert fragment in refusal(UFM, **({"counts": [5, 3, 2], "lambda_w": 0.1, "lambda_h": 0.1} | changed))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_objective_refuses_what_is_not_finite(bad):
    problem, zeros = UFM([2, 1], 0.1, 0.1), np.zeros((2, 3))
    with pytest.raises(CollapseError, match="weights: not finite"):
        problem.objective(zeros + bad, zeros)
    with pytest.raises(CollapseError, match="features: not finite"):
        problem.objective(zeros, zeros + bad)


# The objective


def drawn(problem, seed, dim=3):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(problem.num_classes, dim)), np.abs(rng.normal(size=(problem.num_classes, dim)))


def per_sample(problem, features):
    labels = np.repeat(np.arange(problem.num_classes), problem.counts.astype(int))
    return features[labels], labels


@settings(max_examples=examples(100))
@given(problems(), st.integers(0, 2**32 - 1))
def test_objective_equals_the_sum_over_samples(problem, seed):
    weights, features = drawn(problem, seed)
    expected = oracles.sample_objective(problem, weights, *per_sample(problem, features))
    assert_allclose(problem.objective(weights, features), expected, rtol=EXACT)


def test_the_objective_oracle_rejects_a_wrong_penalty():
    right, wrong = UFM([5, 3], 0.3, [0.1, 0.2]), UFM([5, 3], 0.3, [0.1, 0.2 + 1e-9])
    weights, features = drawn(right, 0)
    expected = oracles.sample_objective(right, weights, *per_sample(right, features))
    assert_allclose(right.objective(weights, features), expected, rtol=EXACT)
    with pytest.raises(AssertionError):
        assert_allclose(wrong.objective(weights, features), expected, rtol=EXACT)


def test_distinct_features_of_a_class_cost_more_than_their_mean():
    problem, rng = UFM([5, 3, 2], 0.3, 0.1), np.random.default_rng(0)
    weights, features = drawn(problem, 1)
    spread, labels = per_sample(problem, features)
    noise = rng.normal(scale=1e-2, size=spread.shape)
    for k in range(3):
        noise[labels == k] -= noise[labels == k].mean(axis=0)
    assert oracles.sample_objective(problem, weights, spread + noise, labels) > problem.objective(weights, features)


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        ((np.ones((2, 2)), np.ones((3, 2))), "weights (2, 2), features (3, 2): both must be (K, d) with K = 3"),
        ((np.ones((2, 2)), np.ones((2, 2))), "K = 3"),
        ((np.ones(3), np.ones(3)), "both must be (K, d)"),
        (("w", np.ones((3, 2))), "weights='w': give real numbers"),
        ((np.ones((3, 2)), np.ones((3, 2)), np.ones(2)), "bias: shape (2,); expected (3,)"),
    ],
)
def test_misuse_of_objective(arguments, fragment):
    with pytest.raises(CollapseError) as caught:
        UFM([5, 3, 2], 0.1, 0.1, bias="free").objective(*arguments)
    assert fragment in str(caught.value)


# The container


def test_problems_are_immutable_and_keep_their_own_copies():
    counts, penalties, weights = np.array([5.0, 3]), np.array([0.1, 0.2]), np.array([1.0, 2])
    problem = UFM(counts, 0.1, penalties, class_weights=weights)
    counts[0], penalties[0], weights[0] = 7, 7, 7
    assert_array_equal(problem.counts, [5, 3])
    assert_array_equal(problem.lambda_h, [0.1, 0.2])
    assert_array_equal(problem.class_weights, [1, 2])
    for array in (problem.counts, problem.lambda_h, problem.class_weights):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
    with pytest.raises(FrozenInstanceError):
        problem.lambda_w = 2.0


@pytest.mark.parametrize("counts", [[5, 3], (5, 3), np.array([5, 3], dtype=np.uint8), [5.0, 3.0], {"x": 5, "y": 3}])
def test_accepted_forms_of_counts(counts):
    problem = UFM(counts, 1, np.float32(0.5))
    assert_array_equal(problem.counts, [5, 3])
    assert (problem.num_classes, problem.num_samples) == (2, 8)
    assert (type(problem.lambda_w), type(problem.lambda_h)) == (float, float)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"loss": CrossEntropy(smoothing=0.1, margins=[1, 2], temperature=2)},
        {"class_weights": [1, 2], "bias": "free", "dim": 4, "names": ["a", "b"]},
        {"bias": 0.5, "relu": False},
    ],
    ids=str,
)
def test_to_dict_is_json_and_rebuilds_the_problem(options):
    problem = UFM([5, 3], 0.1, [0.1, 0.2], **options)
    content = json.loads(json.dumps(problem.to_dict()))
    loss = content.pop("loss")
    assert (content.pop("schema"), loss.pop("name")) == (1, "CrossEntropy")
    assert UFM(loss=CrossEntropy(**loss), **content).to_dict() == problem.to_dict()


def test_repr_is_one_line_and_names_what_is_unusual():
    text = repr(UFM([5, 3], 0.1, [0.1, 0.2], class_weights=[1, 2], bias="free", relu=False, dim=4))
    assert text == (
        "UFM(K=2, N=8, counts 5 … 3, lambda_w=0.1, lambda_h=per class, class-weighted, bias='free', relu=False, dim=4)"
    )
