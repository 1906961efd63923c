"""UFM: every refused argument by its message, and every unit against the gradient of a training objective."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from collapsekit import UFM, CollapseError
from tolerances import EXACT, UNITS

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


@pytest.mark.parametrize(
    ("recipe", "fragment"),
    [
        ({"feature_decay": 1, "optimizer": "adamw"}, "decoupled decay.*SGD or Adam"),
        ({"feature_decay": 1, "optimizer": "lion"}, "optimizer='lion'"),
        ({}, "feature_decay=None.*batchnorm_branches=1"),
        ({"feature_decay": 1, "batchnorm_branches": 1}, "give one of the two"),
        ({"feature_decay": -1}, "feature_decay=-1"),
        ({"feature_decay": 1, "weight_decay": 0}, "weight_decay=0"),
        ({"feature_decay": 1, "batch_size": 0}, "batch_size=0"),
        ({"feature_decay": 1, "batch_size": 99, "drop_last": True}, "no step is taken"),
        ({"feature_decay": 1, "feature_reduction": "mean"}, "feature_reduction='mean'"),
        ({"feature_decay": 1, "feature_reduction": "entry_mean"}, "feature_dim=None"),
        ({"feature_decay": 1, "loss_factor": 0}, "loss_factor=0"),
        ({"batchnorm_branches": 0}, "batchnorm_branches=0"),
        ({"feature_decay": 1, "class_weights": [1, 2]}, "class_weights: shape"),
    ],
)
def test_refused_recipes(recipe, fragment):
    with pytest.raises(CollapseError, match=fragment):
        UFM.from_training([6, 3, 3], **({"weight_decay": 0.1} | recipe))


COUNTS, WIDTH = np.array([6, 4, 2]), 5
LABELS = np.repeat(np.arange(3), COUNTS)
WD, FD = 0.3, 0.07

ROWS = {
    "batch_sum": {"batch_size": 4},
    "batch_sum, full batch": {},
    "batch_mean": {"batch_size": 4, "feature_reduction": "batch_mean"},
    "entry_mean": {"batch_size": 4, "feature_reduction": "entry_mean", "feature_dim": WIDTH},
    "full_sum": {"feature_reduction": "full_sum"},
    "halved loss": {"batch_size": 4, "loss_factor": 0.5},
    "torch weights": {"class_weights": [0.5, 1.0, 4.0]},
    "torch weights, halved": {"class_weights": [0.5, 1.0, 4.0], "loss_factor": 0.5},
}


def epoch_objective(W, H, *, batch_size=12, feature_reduction="batch_sum", loss_factor=1.0, class_weights=None, **_):
    """Mean over an epoch's steps of what the recipe minimises in a step, written as a user writes it in torch."""
    weight = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float64)
    total, steps = 0.0, 0
    for rows in torch.split(torch.arange(12), batch_size):
        h, y = H[rows], torch.from_numpy(LABELS)[rows]
        loss = loss_factor * torch.nn.functional.cross_entropy(h @ W.T, y, weight=weight)
        penalty = {
            "batch_sum": h.pow(2).sum(),
            "batch_mean": h.pow(2).sum(dim=1).mean(),
            "entry_mean": h.pow(2).mean(),
            "full_sum": H.pow(2).sum(),
        }[feature_reduction]
        total = total + loss + WD / 2 * W.pow(2).sum() + FD / 2 * penalty
        steps += 1
    return total / steps


def ufm_objective(problem, W, H):
    """UFM+ as written: a sum over all samples."""
    omega = np.ones(3) if problem.class_weights is None else problem.class_weights
    total = problem.lambda_w / 2 * (W**2).sum() + problem.lambda_h / 2 * (H**2).sum()
    for h, k in zip(H, LABELS, strict=True):
        z = W @ h
        total += omega[k] * (np.log(np.exp(z - z.max()).sum()) + z.max() - z[k]) / len(LABELS)
    return total


def numerical_gradient(function, x, step=1e-4):
    """Central differences, fourth order."""
    gradient = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        values = []
        for shift in (-2, -1, 1, 2):
            moved = x.copy()
            moved[i] += shift * step
            values.append(function(moved))
        gradient[i] = (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * step)
    return gradient


def gradients(recipe, problem):
    rng = np.random.default_rng(0)
    W, H = rng.normal(size=(3, WIDTH)), rng.normal(size=(12, WIDTH)) ** 2
    factor = recipe.get("loss_factor", 1.0)  # the recipe's objective is this multiple of the problem's

    def trained(W, H):
        return float(epoch_objective(torch.from_numpy(W), torch.from_numpy(H), **recipe))

    pairs = [
        (numerical_gradient(lambda w: trained(w, H), W), numerical_gradient(lambda w: ufm_objective(problem, w, H), W)),
        (numerical_gradient(lambda h: trained(W, h), H), numerical_gradient(lambda h: ufm_objective(problem, W, h), H)),
    ]
    return [(ours, factor * theirs) for ours, theirs in pairs]


def assert_same_gradients(recipe, problem):
    for trained, predicted in gradients(recipe, problem):
        assert_allclose(trained, predicted, rtol=UNITS, atol=UNITS * np.abs(predicted).max())


@pytest.mark.parametrize("row", ROWS)
def test_units_against_the_training_objective(row):
    recipe = ROWS[row]
    assert_same_gradients(recipe, UFM.from_training(COUNTS, weight_decay=WD, feature_decay=FD, **recipe))


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("name", ["lambda_w", "lambda_h"])
def test_the_units_oracle_rejects_wrong_units(row, name):
    recipe = ROWS[row]
    right = UFM.from_training(COUNTS, weight_decay=WD, feature_decay=FD, **recipe)
    penalties = {"lambda_w": right.lambda_w, "lambda_h": right.lambda_h}
    penalties[name] *= 1 + 1e-4
    wrong = UFM(COUNTS, **penalties, class_weights=right.class_weights)
    with pytest.raises(AssertionError):
        assert_same_gradients(recipe, wrong)


def test_incomplete_last_batches():
    kept = UFM.from_training([6, 4], weight_decay=1, feature_decay=1, batch_size=4)
    dropped = UFM.from_training([6, 4], weight_decay=1, feature_decay=1, batch_size=4, drop_last=True)
    assert_allclose([kept.lambda_h, dropped.lambda_h], [1 / 3, 4 / 10], rtol=EXACT)


@pytest.mark.parametrize("branches", [1, 2, 3])
def test_batchnorm_law_costs_what_the_decay_of_gain_and_shift_costs(branches):
    """γ = std h, β = mean h realise h ≥ 0, each of m branches a share 1/m: (wd/2)(‖γ‖² + ‖β‖²) = (wd/2mN) Σ ‖h‖²."""
    h = np.random.default_rng(0).normal(size=(12, WIDTH)) ** 2
    wd = 0.2
    cost = branches * wd / 2 * (np.square(h.std(axis=0) / branches) + np.square(h.mean(axis=0) / branches)).sum()
    problem = UFM.from_training(COUNTS, weight_decay=wd, batchnorm_branches=branches)
    assert problem.lambda_w == wd
    assert_allclose(cost, problem.lambda_h / 2 * np.square(h).sum(), rtol=EXACT)


@pytest.mark.parametrize("bias", [None, "free", 0.3])
def test_objective_against_the_formula(bias):
    rng = np.random.default_rng(1)
    problem = UFM([6, 4, 2], 0.1, [0.2, 0.3, 0.4], class_weights=[1, 2, 3], bias=bias)
    W, H = rng.normal(size=(3, 4)), rng.normal(size=(3, 4)) ** 2
    b = None if bias is None else rng.normal(size=3)
    logits = H @ W.T + (0 if b is None else b)
    losses = np.log(np.exp(logits).sum(axis=1)) - np.diagonal(logits)
    expected = (np.array([6, 8, 6]) / 12) @ losses + 0.05 * (W**2).sum()
    expected += 0.5 * (np.array([0.2, 0.3, 0.4]) * [6, 4, 2]) @ (H**2).sum(axis=1)
    expected += 0.15 * (b**2).sum() if bias == 0.3 else 0
    assert_allclose(problem.objective(W, H, b), expected, rtol=EXACT)


def test_objective_misuse():
    with pytest.raises(CollapseError, match="weights"):
        UFM([5, 3], 1, 1).objective(np.zeros((2, 3)), np.zeros((2, 4)))
    with pytest.raises(CollapseError, match="bias"):
        UFM([5, 3], 1, 1).objective(np.zeros((2, 3)), np.zeros((2, 3)), np.zeros(2))


def test_a_mapping_names_the_classes_and_nothing_can_be_changed():
    problem = UFM({"cat": 5, "dog": 3}, 1, 1)
    assert problem.names == ("cat", "dog")
    assert_array_equal(problem.counts, [5, 3])
    with pytest.raises(AttributeError):
        problem.lambda_w = 2
    with pytest.raises(ValueError, match="read-only"):
        problem.counts[0] = 1
