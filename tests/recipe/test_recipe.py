"""Recipes: the whole units table by complex steps and in numbers, brute force, optimisers, what is refused."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy.optimize import minimize

from _support import oracles
from _support.strategies import examples
from _support.tolerances import EXACT, FROZEN_SHIFT, STATIONARY
from collapsekit import UFM, CollapseError, predict
from collapsekit.recipe import BatchNorm, LastLayer, Optimizer, Penalty, Plain

NAN, INF = float("nan"), float("inf")


def problem_of(
    counts, *, feature_dim=None, batchnorm_branches=0, biased=False, class_weights=None, optimizer="sgd", **values
):
    """The problem of a recipe given as one flat dictionary, as the oracles read it."""
    last = LastLayer(feature_dim, biased, batchnorm_branches)
    if "feature_decay" in values:
        recipe = Penalty(values.pop("weight_decay"), values.pop("feature_decay"), **values)
    else:
        recipe = BatchNorm(**values)
    return recipe.problem(counts, last, class_weights=class_weights, optimizer=Optimizer(optimizer))


LAW, EXPLICIT = {"weight_decay": 0.1, "batchnorm_branches": 1}, {"weight_decay": 0.1, "feature_decay": 0.1}
MISUSE = [
    (EXPLICIT | {"weight_decay": NAN}, "weight_decay=nan: must be one finite number above 0"),
    (EXPLICIT | {"weight_decay": 0}, "weight_decay=0"),
    (EXPLICIT | {"weight_decay": "1e-3"}, "weight_decay='1e-3': give real numbers"),
    (EXPLICIT | {"feature_decay": 0}, "feature_decay=0: must be one finite number above 0; use BatchNorm or Plain"),
    (EXPLICIT | {"feature_decay": -1}, "feature_decay=-1"),
    (EXPLICIT | {"loss_factor": INF}, "loss_factor=inf: must be one finite number above 0; give 1"),
    (EXPLICIT | {"loss_factor": 0}, "loss_factor=0"),
    (EXPLICIT | {"batch_size": 2.5}, "batch_size=2.5: must be a whole number of at least 1; give None for the full"),
    (EXPLICIT | {"batch_size": 0, "reduction": "full_sum"}, "batch_size=0"),
    (EXPLICIT | {"batch_size": -3}, "batch_size=-3"),
    (EXPLICIT | {"batch_size": 99, "drop_last": True}, "no step is taken"),
    (EXPLICIT | {"reduction": "mean"}, "reduction='mean': give one of batch_sum"),
    (EXPLICIT | {"reduction": "entry_mean"}, "dim=None"),
    (EXPLICIT | {"reduction": "entry_mean", "feature_dim": 0}, "dim=0: must be a whole number"),
    (EXPLICIT | {"optimizer": "AdamW"}, "add the penalties to the loss, set AdamW's weight_decay to 0"),
    (EXPLICIT | {"optimizer": "lion"}, "optimizer='lion': give one of sgd, adam, adamw"),
    (EXPLICIT | {"class_weights": [1, 2, -1]}, "class_weights: class 2 has -1"),
    (EXPLICIT | {"class_weights": [1, 2]}, "class_weights: shape"),
    (LAW | {"batchnorm_branches": 1.5}, "branches=1.5: must be a whole number"),
    (LAW | {"batchnorm_branches": -1}, "branches=-1"),
    (LAW | {"batchnorm_branches": 0}, "without a feature penalty or a BatchNorm"),
    (LAW | {"decays": "none"}, "nothing penalises the features"),
    (LAW | {"decays": "gain", "feature_dim": 2}, "dim=2: with γ decayed and β free"),
    (LAW | {"decays": "gain_frozen_shift", "biased": True}, "class 0 holds 60%"),
    (LAW | {"decays": "shift"}, "decays='shift'"),
    (LAW | {"optimizer": "adamw"}, "no L2 penalty"),
]


@pytest.mark.parametrize(("recipe", "fragment"), MISUSE, ids=str)
def test_what_a_recipe_refuses(recipe, fragment):
    with pytest.raises(CollapseError) as caught:
        problem_of([6, 3, 1], **recipe)
    assert fragment in str(caught.value)
    assert "\n" not in str(caught.value)


def test_counts_of_a_recipe_are_checked():
    with pytest.raises(CollapseError, match="counts: class 1 has 0 samples"):
        Penalty(0.1, 0.1).problem([5, 0])


@pytest.mark.parametrize(
    ("recipe", "last", "optimizer"),
    [
        (Plain(0.1), LastLayer(branches=1), Optimizer()),
        (BatchNorm(0.1), LastLayer(), Optimizer("adam")),
        (BatchNorm(0.1, "none"), LastLayer(branches=2), Optimizer()),
        (BatchNorm(0.1, "gain"), LastLayer(2, branches=2, biased=True), Optimizer()),
        (BatchNorm(0.1), LastLayer(branches=1), Optimizer("adamw")),
        (BatchNorm(0.1, "gain_frozen_shift"), LastLayer(branches=1, biased=True), Optimizer()),
    ],
    ids=str,
)
def test_a_recipe_without_a_problem_says_why_before_it_is_asked_for_one(recipe, last, optimizer):
    reason = recipe.refusal(last, optimizer, [6, 3, 1])
    with pytest.raises(CollapseError) as caught:
        recipe.problem([6, 3, 1], last, optimizer=optimizer)
    assert str(caught.value).endswith(f": {reason}")


def test_a_head_with_a_bias_has_the_bias_that_the_recipe_gives_it():
    last = LastLayer(7, biased=True, branches=1)
    explicit = Penalty(0.1, 0.1).problem({"a": 5, "b": 3}, last)
    assert (explicit.names, explicit.bias, explicit.dim) == (("a", "b"), "free", 7)
    assert BatchNorm(0.1, loss_factor=0.5).problem([5, 3], last).bias == 0.2  # it decays with the head
    assert BatchNorm(0.1).problem([5, 3], LastLayer(branches=1)).bias is None


@pytest.mark.parametrize("loss_factor", [1.0, 0.5])
def test_the_units_are_said(loss_factor):
    divided = "divided by 0.5" if loss_factor != 1 else ""
    frozen = BatchNorm(0.1, "gain_frozen_shift", loss_factor).units(LastLayer(branches=3))
    assert "m = 3 and is divided by 1 − n_k/N, because β is frozen." in frozen
    assert divided in frozen
    assert "λ_H = fd / (N d)." in Penalty(0.1, 0.1, "entry_mean", loss_factor=loss_factor).units()
    assert "No λ_H follows" in Plain(0.1).units()


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
    FEATURE | {"batch_size": 4, "reduction": "batch_mean"},
    FEATURE | {"batch_size": 4, "reduction": "batch_mean", "drop_last": True, "loss_factor": 0.5},
    FEATURE | {"batch_size": 4, "reduction": "entry_mean", "feature_dim": 3},
    FEATURE | {"batch_size": 5, "reduction": "entry_mean", "feature_dim": 3, "drop_last": True},
    FEATURE | {"batch_size": 4, "reduction": "full_sum"},
    FEATURE | {"batch_size": 4, "reduction": "full_sum", "drop_last": True, "loss_factor": 2.0},
    FEATURE | {"class_weights": [1.0, 2.0, 5.0]},
    FEATURE | {"class_weights": [3.0, 0.5, 1.0], "loss_factor": 0.5, "reduction": "batch_mean"},
    {"weight_decay": 0.3, "batchnorm_branches": 1},
    {"weight_decay": 0.3, "batchnorm_branches": 3},
    {"weight_decay": 0.3, "batchnorm_branches": 2, "loss_factor": 0.5, "class_weights": [1.0, 2.0, 5.0]},
]


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_the_units_table_has_the_gradient_of_the_training_objective(recipe):
    oracles.assert_same_minimisers(problem_of([5, 3, 2], **recipe), recipe)


@pytest.mark.parametrize("recipe", RECIPES[4::3], ids=str)
def test_the_units_oracle_rejects_wrong_penalties_and_weights(recipe):
    right = problem_of([5, 3, 2], **recipe)
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
    price = problem_of([5, 3, 2], weight_decay=0.3, batchnorm_branches=branches).lambda_h * (features**2).sum()
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
    problem = problem_of(counts, weight_decay=wd, batchnorm_branches=1, decays="gain_frozen_shift")
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
    ("build", "moves"), [(torch.optim.SGD, False), (torch.optim.Adam, False), (torch.optim.AdamW, True)]
)
def test_only_coupled_optimizers_stand_still_at_the_predicted_optimum(build, moves):
    problem = problem_of([5, 3, 2], weight_decay=0.02, feature_decay=0.03)
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
        ({"feature_decay": 0.2, "reduction": "batch_mean"}, 0.1, 0.02),
        ({"feature_decay": 0.2, "reduction": "entry_mean", "feature_dim": 5}, 0.1, 0.004),
        ({"feature_decay": 0.2, "reduction": "full_sum", "batch_size": 2}, 0.1, 0.2),
        ({"batchnorm_branches": 3}, 0.1, 0.1 / 30),
        ({"feature_decay": 0.2, "optimizer": "adam"}, 0.1, 0.2),
        ({"feature_decay": 0.2, "optimizer": "SGD"}, 0.1, 0.2),
    ],
    ids=str,
)
def test_the_units_table_in_numbers(options, lambda_w, lambda_h):
    problem = problem_of([5, 3, 2], weight_decay=0.1, **options)
    assert_allclose([problem.lambda_w, problem.lambda_h], [lambda_w, lambda_h], rtol=EXACT)


def test_torch_class_weights_are_normalised_by_the_samples():
    problem = problem_of([5, 3, 2], weight_decay=0.1, feature_decay=0.1, class_weights=[1, 2, 4])
    assert_allclose(problem.class_weights, np.array([1, 2, 4]) * 10 / (5 + 6 + 8), rtol=EXACT)
    assert_allclose(problem.loss_weights.sum(), 1, rtol=EXACT)


def test_a_free_shift_moves_with_its_counts():
    recipe = BatchNorm(0.03, "gain")
    moved = recipe.moved(recipe.problem([50, 30, 20], LastLayer(branches=1)), [50, 30, 30])
    assert_allclose(moved.lambda_h, 0.03 / 110, rtol=EXACT)
    assert (moved.relu, moved.bias) == (False, "free")
