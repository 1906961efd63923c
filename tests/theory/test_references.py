"""Reference geometries: against their definitions, brute force, and one another; the nearest one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy.optimize import minimize

from _support import oracles
from _support.strategies import examples
from _support.tolerances import BRUTE_OBJECTIVE, EXACT, FROZEN_SHIFT, GRAMS, INVERSE, LIMIT
from collapsekit import MSE, UFM, CollapseError, CrossEntropy, Geometry, Hinge, predict, solve
from collapsekit.theory import (
    balanced_without_relu,
    deep_linear_mse,
    layer_peeled_critical_ratio,
    max_margin_frame,
    merging_threshold,
    nearest_reference,
    orthogonal_frame,
    seli,
    simplex_etf,
)

PRECISE = {"maxiter": 20_000, "maxfun": 40_000, "ftol": 0, "gtol": 1e-13}
COUNTS = st.lists(st.integers(1, 12), min_size=2, max_size=6)


def test_simplex_and_orthogonal_frame_have_their_angles():
    etf, frame = simplex_etf(5), orthogonal_frame(5)
    off = ~np.eye(5, dtype=bool)
    assert_allclose(etf.feature_cosines[off], -1 / 4, rtol=EXACT)
    assert_allclose(etf.feature_sqnorms, 1, rtol=EXACT)
    assert_allclose(frame.feature_cosines[off], 0, atol=EXACT)
    assert_allclose(frame.classifier_cosines[off], -1 / 4, rtol=EXACT)
    assert_allclose(frame.alignment, np.sqrt(4 / 5), rtol=EXACT)


def test_a_balanced_prediction_has_the_shape_of_the_orthogonal_frame():
    shape = predict(UFM([7] * 5, 1e-3, 1e-3)).geometry().distance(orthogonal_frame(5)).shape
    assert_allclose(list(shape.values()), 0, atol=EXACT)


@settings(max_examples=examples(100))
@given(COUNTS)
def test_seli_is_the_svd_of_the_full_label_matrix(counts):
    labels = np.repeat(np.arange(len(counts)), counts)
    Z = np.eye(len(counts))[:, labels] - 1 / len(counts)  # (K, N)
    left, singular, right = np.linalg.svd(Z, full_matrices=False)
    weights, features = left * np.sqrt(singular), (np.sqrt(singular)[:, None] * right).T
    first = np.cumsum([0, *counts[:-1]])
    geometry = seli(counts)
    assert_allclose(geometry.gram_w, weights @ weights.T, atol=GRAMS * np.abs(geometry.gram_w).max(), rtol=0)
    gram_h = features[first] @ features[first].T
    assert_allclose(geometry.gram_h, gram_h, atol=GRAMS * np.abs(gram_h).max(), rtol=0)
    assert_allclose(geometry.cross, weights @ features[first].T, atol=GRAMS, rtol=0)


@settings(max_examples=examples(50))
@given(COUNTS)
def test_the_max_margin_frame_is_the_hinge_s_and_the_limit_of_cross_entropy(counts):
    limit = max_margin_frame(counts)
    hinge = predict(UFM(counts, 1e-9, 1e-9, loss=Hinge())).geometry()
    for name in ("gram_h", "gram_w", "cross"):
        assert_allclose(getattr(limit, name), getattr(hinge, name), rtol=GRAMS, atol=GRAMS)
    cross_entropy = predict(UFM(counts, 1e-60, 1e-60)).geometry()
    assert max(cross_entropy.distance(limit).shape.values()) < LIMIT


def test_under_squared_error_references_are_not_centred():
    counts = [50, 20, 10, 4]
    problem = UFM(counts, 1e-9, 1e-9, loss=MSE())
    limit = predict(problem).geometry()
    for name in ("gram_h", "gram_w", "cross"):
        assert_allclose(getattr(max_margin_frame(counts, centred=False), name), getattr(limit, name), atol=1e-6, rtol=0)
    ranked = {near.name: near.shape for near in nearest_reference(limit, problem)}
    assert ranked["general orthogonal frame, λ → 0"] < 1e-6
    balanced = UFM([20] * 4, 1e-3, 1e-3, loss=MSE())
    ranked = {near.name: near.shape for near in nearest_reference(predict(balanced).geometry(), balanced)}
    assert_allclose(ranked["orthogonal frame"], 0, atol=EXACT)


def without_relu(x, problem):
    model = oracles.Balanced(problem)
    return model.value(x)


@pytest.mark.parametrize("scale", [0.3, 0.9, 1.5])
@pytest.mark.parametrize("size", [2, 3, 5])
def test_balanced_without_relu_is_what_descent_without_bounds_finds(size, scale):
    product = scale / (size**2 * 10)  # all classes die at 1, where √(λ_W λ_H n) K = 1
    problem = UFM([10] * size, np.sqrt(product) * 3, np.sqrt(product) / 3, relu=False)
    x = np.random.default_rng(0).normal(size=2 * size * (size + 2))
    found = minimize(without_relu, x, (problem,), "L-BFGS-B", jac=True, options=PRECISE)
    geometry, model = balanced_without_relu(problem), oracles.Balanced(problem)
    losses = problem.loss_weights @ problem.loss.value(geometry.cross.T)
    penalties = problem.lambda_w * geometry.classifier_sqnorms.sum()
    penalties += problem.lambda_h * problem.counts @ geometry.feature_sqnorms
    assert_allclose(losses + penalties / 2, found.fun, rtol=BRUTE_OBJECTIVE)
    V, U = model.split(found.x)
    grams = {"gram_w": model.unit_w**2 * V @ V.T, "gram_h": np.outer(model.unit_h, model.unit_h) * (U @ U.T)}
    for name, expected in grams.items():
        assert_allclose(getattr(geometry, name), expected, atol=1e-5 * max(1e-3, np.abs(expected).max()), rtol=0)


@pytest.mark.parametrize(
    ("smoothing", "shift"), [(0.5, -5.0), (0.3, -6.0), (0.2, -3.5)], ids=["the case", "lower", "barely"]
)
def test_losses_that_call_for_negative_margins_without_relu_are_refused(smoothing, shift):
    """At smoothing 0.5 and margins −5 the optimum is −3.36 (objective 1.0962), not 0 (1.8950)."""
    loss = CrossEntropy(smoothing=smoothing, margins=[shift] * 4)
    assert loss.scalar(np.full(4, -0.01), 4)[0] < loss.scalar(np.zeros(4), 4)[0]
    with pytest.raises(CollapseError, match=r"loss=.*negative margins.*collapsekit\.solve"):
        balanced_without_relu(UFM([50] * 4, 1e-3, 1e-4, relu=False, loss=loss))


def test_a_smoothed_loss_that_falls_at_margin_0_is_solved_without_relu():
    problem = UFM([50] * 4, 1e-3, 1e-4, relu=False, loss=CrossEntropy(smoothing=0.3, margins=[-0.5] * 4))
    margins = balanced_without_relu(problem).margins
    assert_allclose(margins, solve(problem).margins, rtol=1e-5)


def test_the_price_of_relu_is_the_root_of_k_over_k_minus_1():
    with_relu = UFM([50] * 4, 5e-3, 5e-4)
    without = balanced_without_relu(UFM([50] * 4, 5e-3, 5e-4 * 4 / 3))  # √(λ_H) grows by √(K/(K−1))
    assert_allclose(without.margins, predict(with_relu).margins, rtol=EXACT)


def deep_objective(x, counts, penalties, lambda_h, dims):
    """Value of the deep linear problem at collapsed features, and its gradient by the chain rule."""
    size, parts, start = len(counts), [], 0
    shapes = [(size, dims)] + [(dims, dims)] * (len(penalties) - 1) + [(dims, size)]
    for shape in shapes:
        parts.append(x[start : start + shape[0] * shape[1]].reshape(shape))
        start += shape[0] * shape[1]
    *layers, H = parts
    products = [np.eye(size)]
    for layer in layers:
        products.append(products[-1] @ layer)
    shares = counts / counts.sum()
    apart = (products[-1] @ H - np.eye(size)) * shares
    value = 0.5 * ((products[-1] @ H - np.eye(size)) ** 2 @ shares).sum()
    slopes, tail = [], H
    for j in range(len(layers) - 1, -1, -1):
        slopes.insert(0, products[j].T @ apart @ tail.T + penalties[j] * layers[j])
        tail = layers[j] @ tail
        value += 0.5 * penalties[j] * (layers[j] ** 2).sum()
    slopes.append(products[-1].T @ apart + lambda_h * counts * H)
    value += 0.5 * lambda_h * (H**2 @ counts).sum()
    return value, np.concatenate([slope.ravel() for slope in slopes])


@pytest.mark.parametrize("penalties", [[2e-2], [2e-2, 3e-2], [1e-2, 2e-2, 3e-2]])
@pytest.mark.parametrize("lambda_h", [1e-4, 1e-3, 2e-2])
def test_deep_linear_mse_is_the_best_that_descent_finds(penalties, lambda_h):
    counts, dims = np.array([60.0, 30.0, 10.0, 2.0]), 6
    size, rng = len(counts), np.random.default_rng(0)
    total = size * dims * 2 + dims**2 * (len(penalties) - 1)
    runs = [
        minimize(
            deep_objective,
            rng.normal(size=total) * scale,
            (counts, penalties, lambda_h, dims),
            "L-BFGS-B",
            jac=True,
            options={"maxiter": 20_000, "maxfun": 40_000, "ftol": 0, "gtol": 1e-12},
        ).fun
        for scale in (0.3, 0.6, 1.0, 1.5)
        for _ in range(5)
    ]
    geometry = deep_linear_mse(counts, penalties, lambda_h)
    scales, factors = geometry.margins, len(penalties) + 1
    mean = (np.prod(penalties) * lambda_h) ** (1 / factors)
    price = factors / 2 * mean * (scales * np.sqrt(counts)) ** (2 / factors)
    expected = 0.5 * (counts / counts.sum()) @ (1 - scales) ** 2 + price.sum()
    assert min(runs) >= expected * (1 - FROZEN_SHIFT)
    assert_allclose(min(runs), expected, rtol=1e-6)
    balance = lambda_h * counts * geometry.feature_sqnorms
    assert_allclose(balance, mean * (scales * np.sqrt(counts)) ** (2 / factors), rtol=GRAMS)


def test_one_deep_layer_is_the_mse_of_the_closed_form():
    problem = UFM([60, 30, 10, 1], 2e-2, 1e-3, loss=MSE())
    for name in ("gram_h", "gram_w", "cross"):
        deep = deep_linear_mse(problem.counts, [2e-2], 1e-3)
        assert_allclose(getattr(deep, name), getattr(predict(problem).geometry(), name), rtol=GRAMS, atol=GRAMS)


@pytest.mark.parametrize(("majorities", "minorities"), [(5, 5), (2, 6), (1, 3)])
def test_at_the_layer_peeled_ratio_minorities_die_with_the_norms_used_up(majorities, minorities):
    """In the constrained model λ_H,k ∝ 1/n_k; the multipliers are those at which both energies are met."""
    energy_w, energy_h = 1.3, 0.8
    ratio = layer_peeled_critical_ratio(majorities, minorities, energy_w, energy_h)
    minority = 10**6
    for factor, dead in ((1 - 1e-3, False), (1 + 1e-3, True)):
        counts = np.round([minority * ratio * factor] * majorities + [minority] * minorities)

        def frame(log_scale, counts=counts):
            lambda_w, lambda_h = np.exp(log_scale) / energy_w, np.exp(log_scale) / energy_h / counts
            return predict(UFM(counts, lambda_w, lambda_h))

        low, high = -30.0, 5.0
        for _ in range(100):
            middle = (low + high) / 2
            used = frame(middle).classifier_sqnorms.mean()
            low, high = (middle, high) if used > energy_w else (low, middle)
        found = frame(low)
        assert_allclose(found.classifier_sqnorms.mean(), energy_w, rtol=INVERSE)
        assert_allclose(found.feature_sqnorms.mean(), energy_h, rtol=INVERSE)
        assert bool(found.collapses[-1]) is dead


def nuclear_objective(x, counts, kappa):
    """Convex problem of Hong and Ling in factored form: CE(Z) + κ ‖Z D^½‖_*, with free factors."""
    size = len(counts)
    V, U = x.reshape(2, size, -1)
    Z = (U / np.sqrt(counts)[:, None]) @ V.T
    losses, P = oracles.cross_entropy(Z)
    G = (counts / counts.sum())[:, None] * (P - np.eye(size))
    scaled = G / np.sqrt(counts)[:, None]
    value = counts / counts.sum() @ losses + kappa / 2 * (x @ x)
    return value, np.stack([scaled.T @ U + kappa * V, scaled @ V + kappa * U]).ravel()


@pytest.mark.parametrize("factor", [0.8, 1.25])
@pytest.mark.parametrize("counts", [[90.0, 90.0, 10.0, 10.0], [300.0, 100.0, 10.0, 10.0]], ids=str)
def test_a_group_merges_without_relu_exactly_from_its_threshold_on(counts, factor):
    counts = np.array(counts)
    kappa = np.sqrt(merging_threshold(counts)) * factor
    x = np.random.default_rng(0).normal(size=2 * 4 * 6)
    found = minimize(
        nuclear_objective,
        x,
        (counts, kappa),
        "L-BFGS-B",
        jac=True,
        options=PRECISE,
    )
    _, U = found.x.reshape(2, 4, -1)
    apart = np.linalg.norm(U[2] - U[3]) / np.linalg.norm(U[0] - U[1])
    assert bool(apart < 1e-4) is (factor > 1), apart


@pytest.mark.parametrize(
    ("counts", "group"),
    [([300, 100, 10, 10], 10), ([50, 40, 30, 6, 6, 6], 6), ([12, 700, 90, 12], 12), ([9, 9, 9], 9)],
)
def test_every_group_has_a_threshold_and_the_rarest_comes_first(counts, group):
    assert_allclose(merging_threshold(counts), group / sum(counts) ** 2, rtol=EXACT)
    assert merging_threshold([*counts, 400, 400], 400) == 400 / (sum(counts) + 800) ** 2
    assert_allclose(merging_threshold([*counts, 400, 400]), group / (sum(counts) + 800) ** 2, rtol=EXACT)


def test_misuse_of_the_references():
    problem = UFM([5, 4], 1e-2, 1e-3)
    for call, fragment in (
        (lambda: simplex_etf(1), "num_classes=1"),
        (lambda: merging_threshold([5, 4, 3]), "no two classes have the same count"),
        (lambda: merging_threshold([5, 4, 4], 5), "no two classes have count=5"),
        (lambda: balanced_without_relu(problem), "not balanced"),
        (lambda: balanced_without_relu(UFM([5, 5], 1e-2, 1e-3, bias="free")), "bias"),
        (lambda: balanced_without_relu(UFM([5, 5, 5], 1e-2, 1e-3, dim=1)), "dim=1"),
        (lambda: deep_linear_mse([5, 4], [0.1, 0], 0.1), "class 1 has 0|penalties"),
        (lambda: deep_linear_mse([5, 4], [], 0.1), r"penalties=\[\]: give at least one"),
        (lambda: deep_linear_mse([5, 4], ["a"], 0.1), "penalties=.*give real numbers"),
        (lambda: nearest_reference("frame"), "geometry='frame'"),
        (lambda: layer_peeled_critical_ratio(0, 3, 1, 1), "num_majorities=0"),
        (lambda: nearest_reference(Geometry(np.eye(2), np.eye(2), np.eye(2), [3, 0])), "class 1 has 0"),
    ):
        with pytest.raises(CollapseError, match=fragment):
            call()


def test_each_reference_is_nearest_to_itself_whatever_its_scale():
    counts = [50, 20, 10, 4]
    for name, own in {
        "simplex ETF": simplex_etf(4),
        "orthogonal frame": orthogonal_frame(4),
        "general orthogonal frame, λ → 0": max_margin_frame(counts),
        "SELI": seli(counts),
    }.items():
        scaled = Geometry(3 * own.gram_h, 2 * own.gram_w, own.cross, counts)
        nearest = nearest_reference(scaled)
        assert nearest[0].name == name
        assert_allclose(nearest[0].shape, 0, atol=EXACT)
        assert nearest[1].shape > 0.05
