"""UFM, beside test_problem.py: rarer misuse, the whole units table by complex steps, optimisers, the container."""

import json
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy.optimize import minimize

from _support import oracles
from _support.strategies import examples, problems
from _support.tolerances import EXACT, FROZEN_SHIFT, STATIONARY
from collapsekit import UFM, CollapseError, CrossEntropy, predict

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


TRAINING_MISUSE = [
    ({"counts": [5, 0]}, "counts: class 1 has 0 samples"),
    ({"weight_decay": NAN}, "weight_decay=nan: must be one finite number above 0; the closed form needs a penalty"),
    ({"weight_decay": "1e-3"}, "weight_decay='1e-3': give real numbers"),
    ({"feature_decay": 0}, "feature_decay=0: must be one finite number above 0; give None"),
    ({"batchnorm_branches": 1, "feature_decay": "x"}, "feature_decay='x'"),
    ({"batchnorm_branches": 1.5, "feature_decay": None}, "batchnorm_branches=1.5: must be a whole number"),
    ({"loss_factor": INF}, "loss_factor=inf: must be one finite number above 0; give 1"),
    ({"batch_size": 2.5}, "batch_size=2.5: must be a whole number of at least 1; give None for full batch"),
    ({"batch_size": 0, "feature_reduction": "full_sum"}, "batch_size=0"),
    ({"feature_reduction": "entry_mean", "feature_dim": 0}, "feature_dim=0: must be a whole number"),
    ({"optimizer": "AdamW"}, "add the penalty to the loss and set AdamW's weight_decay to 0"),
    ({"class_weights": [1, 2, -1]}, "class_weights: class 2 has -1"),
    ({"dim": 0}, "dim=0"),
]


@pytest.mark.parametrize(("changed", "fragment"), TRAINING_MISUSE, ids=str)
def test_misuse_of_from_training(changed, fragment):
    arguments = {"counts": [5, 3, 2], "weight_decay": 0.1, "feature_decay": 0.1} | changed
    assert fragment in refusal(UFM.from_training, **arguments)


# The units table. N = 10: batches of 5 divide it, batches of 4 do not, 20 is more than there is.

FEATURE = {"weight_decay": 0.3, "feature_decay": 0.2}
RECIPES = [
    FEATURE,
    FEATURE | {"batch_size": 5},
    FEATURE | {"batch_size": 5, "drop_last": True},
    FEATURE | {"batch_size": 4},
    FEATURE | {"batch_size": 4, "drop_last": True},
    FEATURE | {"batch_size": 1},
    FEATURE | {"batch_size": 20},
    FEATURE | {"batch_size": 5, "loss_factor": 0.5},
    FEATURE | {"batch_size": 4, "feature_reduction": "batch_mean"},
    FEATURE | {"batch_size": 4, "feature_reduction": "batch_mean", "drop_last": True, "loss_factor": 0.5},
    FEATURE | {"batch_size": 4, "feature_reduction": "entry_mean", "feature_dim": 3},
    FEATURE | {"batch_size": 5, "feature_reduction": "entry_mean", "feature_dim": 3, "drop_last": True},
    FEATURE | {"batch_size": 4, "feature_reduction": "full_sum"},
    FEATURE | {"batch_size": 4, "feature_reduction": "full_sum", "drop_last": True, "loss_factor": 2.0},
    FEATURE | {"class_weights": [1.0, 2.0, 5.0]},
    FEATURE | {"class_weights": [3.0, 0.5, 1.0], "loss_factor": 0.5, "feature_reduction": "batch_mean"},
    {"weight_decay": 0.3, "batchnorm_branches": 1},
    {"weight_decay": 0.3, "batchnorm_branches": 3},
    {"weight_decay": 0.3, "batchnorm_branches": 2, "loss_factor": 0.5, "class_weights": [1.0, 2.0, 5.0]},
]


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_the_units_table_has_the_gradient_of_the_training_objective(recipe):
    oracles.assert_same_minimisers(UFM.from_training([5, 3, 2], **recipe), recipe)


@pytest.mark.parametrize("recipe", RECIPES[4::3], ids=str)
def test_the_units_oracle_rejects_wrong_penalties_and_weights(recipe):
    right = UFM.from_training([5, 3, 2], **recipe)
    omega = np.ones(3) if right.class_weights is None else right.class_weights
    wrong = [
        UFM(right.counts, right.lambda_w, right.lambda_h * (1 + 1e-5), class_weights=omega),
        UFM(right.counts, right.lambda_w * (1 + 1e-5), right.lambda_h, class_weights=omega),
        UFM(right.counts, right.lambda_w, right.lambda_h, class_weights=omega * [1, 1, 1 + 1e-5]),
    ]
    for problem in wrong:
        with pytest.raises(AssertionError):
            oracles.assert_same_minimisers(problem, recipe)


@settings(max_examples=examples(100))
@given(st.integers(0, 2**32 - 1), st.integers(1, 3))
def test_no_split_over_batchnorm_branches_is_cheaper_than_the_law(seed, branches):
    rng = np.random.default_rng(seed)
    raw = rng.normal(size=(branches, 10, 4))
    normed = (raw - raw.mean(axis=1, keepdims=True)) / raw.std(axis=1, keepdims=True)
    gamma, beta = rng.normal(size=(2, branches, 1, 4))
    features = np.maximum(0, (gamma * normed + beta).sum(axis=0))
    price = UFM.from_training([5, 3, 2], weight_decay=0.3, batchnorm_branches=branches).lambda_h * (features**2).sum()
    assert 0.3 * ((gamma**2).sum() + (beta**2).sum()) >= price * (1 - EXACT)
    assert_allclose(0.3 * oracles.batchnorm_penalty(features, branches), price, rtol=EXACT)


def frozen_shift_objective(x, counts, wd):
    """Head and free pre-activations of BatchNorm with β = 0, class-collapsed: x = (W, P) flat; value and gradient."""
    size, shares = len(counts), counts / counts.sum()
    W, P = x.reshape(2, size, -1)
    centred = P - shares @ P
    H = np.maximum(centred, 0)
    losses, softmax = oracles.cross_entropy(H @ W.T)
    G = shares[:, None] * (softmax - np.eye(size))
    variances = shares @ centred**2  # = γ²
    D = (G @ W) * (centred > 0) + wd * shares[:, None] * centred
    gradient = np.stack([G.T @ H + wd * W, D - shares[:, None] * D.sum(axis=0)])
    return shares @ losses + wd / 2 * ((W**2).sum() + variances.sum()), gradient.ravel()


@pytest.mark.parametrize(("counts", "wd"), [([5, 4, 3], 0.1), ([50, 30, 15, 5], 0.1), ([50, 30, 15, 5], 0.25)])
def test_brute_force_over_pre_activations_with_a_frozen_shift_ends_at_the_law(counts, wd):
    problem = UFM.from_training(counts, weight_decay=wd, batchnorm_branches=1, batchnorm_decay="gain_frozen_shift")
    rng, size, n = np.random.default_rng(0), len(counts), np.array(counts, dtype=float)
    assert_allclose(problem.lambda_h, wd / (n.sum() - n), rtol=EXACT)
    found = [
        minimize(
            frozen_shift_objective, rng.normal(size=2 * size * 6 * size), (n, wd), "L-BFGS-B", jac=True, tol=1e-14
        ).fun
        for _ in range(10)
    ]
    assert_allclose(min(found), predict(problem).objective, rtol=FROZEN_SHIFT)


@pytest.mark.parametrize(
    ("changed", "fragment"),
    [
        ({"batchnorm_decay": "none"}, "nothing penalises the features"),
        ({"batchnorm_decay": "gain"}, "its variance"),
        ({"batchnorm_decay": "gain_frozen_shift"}, r"class 0 holds 60%"),
        ({"batchnorm_decay": "shift"}, "batchnorm_decay='shift'"),
        ({"batchnorm_branches": 0}, "batchnorm_branches=0"),
        ({"batch_size": -3}, "batch_size=-3"),
        ({"feature_reduction": "x"}, "feature_reduction='x'"),
        ({"colour": 1}, "colour: no argument"),
        ({"lambda_w": 1}, "lambda_w: no argument"),
    ],
    ids=str,
)
def test_batchnorm_recipes_outside_the_law_are_refused(changed, fragment):
    with pytest.raises(CollapseError, match=fragment):
        UFM.from_training([6, 3, 1], **({"weight_decay": 0.1, "batchnorm_branches": 1} | changed))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_objective_refuses_what_is_not_finite(bad):
    problem, zeros = UFM([2, 1], 0.1, 0.1), np.zeros((2, 3))
    with pytest.raises(CollapseError, match="weights: not finite"):
        problem.objective(zeros + bad, zeros)
    with pytest.raises(CollapseError, match="features: not finite"):
        problem.objective(zeros, zeros + bad)


@pytest.mark.parametrize(
    ("build", "moves"), [(torch.optim.SGD, False), (torch.optim.Adam, False), (torch.optim.AdamW, True)]
)
def test_only_coupled_optimizers_stand_still_at_the_predicted_optimum(build, moves):
    problem = UFM.from_training([5, 3, 2], weight_decay=0.02, feature_decay=0.03)
    labels = torch.repeat_interleave(torch.arange(3), torch.tensor([5, 3, 2]))
    start, means = map(torch.from_numpy, predict(problem).weights_and_features())
    weight, features = start.clone().requires_grad_(), means[labels].requires_grad_()
    groups = [{"params": [weight], "weight_decay": 0.02}, {"params": [features], "weight_decay": 0.0}]
    optimizer = build(groups, lr=1.0) if build is torch.optim.SGD else build(groups, lr=1.0, eps=1.0)
    logits = features.relu() @ weight.T  # relu has no slope at 0, where H ≥ 0 holds the entry anyway
    (torch.nn.functional.cross_entropy(logits, labels) + 0.015 * features.square().sum()).backward()
    optimizer.step()
    drift = torch.cat([(weight - start).ravel(), (features - means[labels]).ravel()]).abs().max().item()
    assert (drift > STATIONARY) == moves


@pytest.mark.parametrize(
    ("options", "lambda_w", "lambda_h"),
    [
        ({"feature_decay": 0.2}, 0.1, 0.2),
        ({"feature_decay": 0.2, "batch_size": 4}, 0.1, 0.2 / 3),
        ({"feature_decay": 0.2, "batch_size": 4, "drop_last": True}, 0.1, 0.2 * 4 / 10),
        ({"feature_decay": 0.2, "batch_size": 4, "drop_last": True, "loss_factor": 0.5}, 0.2, 0.4 * 4 / 10),
        ({"feature_decay": 0.2, "feature_reduction": "batch_mean"}, 0.1, 0.02),
        ({"feature_decay": 0.2, "feature_reduction": "entry_mean", "feature_dim": 5}, 0.1, 0.004),
        ({"feature_decay": 0.2, "feature_reduction": "full_sum", "batch_size": 2}, 0.1, 0.2),
        ({"batchnorm_branches": 3}, 0.1, 0.1 / 30),
        ({"feature_decay": 0.2, "optimizer": "adam"}, 0.1, 0.2),
        ({"feature_decay": 0.2, "optimizer": "SGD"}, 0.1, 0.2),
    ],
    ids=str,
)
def test_the_units_table_in_numbers(options, lambda_w, lambda_h):
    problem = UFM.from_training([5, 3, 2], weight_decay=0.1, **options)
    assert_allclose([problem.lambda_w, problem.lambda_h], [lambda_w, lambda_h], rtol=EXACT)


def test_torch_class_weights_are_normalised_by_the_samples():
    problem = UFM.from_training([5, 3, 2], weight_decay=0.1, feature_decay=0.1, class_weights=[1, 2, 4])
    assert_allclose(problem.class_weights, np.array([1, 2, 4]) * 10 / (5 + 6 + 8), rtol=EXACT)
    assert_allclose(problem.loss_weights.sum(), 1, rtol=EXACT)


def test_from_training_passes_the_other_arguments_on():
    problem = UFM.from_training({"a": 5, "b": 3}, weight_decay=0.1, feature_decay=0.1, bias="free", dim=7, relu=False)
    assert (problem.names, problem.bias, problem.dim, problem.relu) == (("a", "b"), "free", 7, False)


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
