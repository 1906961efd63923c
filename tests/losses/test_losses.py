"""Cross-entropy: value, gradient, scalar form, margin and confidence, against extended precision; extremes."""

from dataclasses import FrozenInstanceError, replace

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from _support import oracles
from _support.strategies import examples, losses
from _support.tolerances import EXACT, GOLDEN, MARGIN, THRESHOLD_BAND, UNITS
from collapsekit import MSE, UFM, CollapseError, CrossEntropy, Focal, Hinge, predict, thresholds
from collapsekit.metrics.losses import sample_losses
from collapsekit.prediction import Basis
from collapsekit.recipe import Penalty
from collapsekit.theory import closed_form
from collapsekit.training.objective import mean_loss

LOSS = CrossEntropy()
SIZES = st.integers(2, 12)
SEEDS = st.integers(0, 2**32 - 1)


def exact_losses(logits):
    """Extended precision, row by row."""
    with mpmath.workdps(oracles.DIGITS):
        rows = [[mpmath.mpf(z) for z in row] for row in logits.tolist()]
        return [float(mpmath.log(mpmath.fsum(map(mpmath.exp, row))) - row[k]) for k, row in enumerate(rows)]


@settings(max_examples=examples(100))
@given(SIZES, SEEDS, st.sampled_from([1e-3, 1.0, 30.0, 1e3]))
def test_value_in_extended_precision(size, seed, scale):
    logits = np.random.default_rng(seed).normal(scale=scale, size=(size, size))
    before = logits.copy()
    assert_allclose(LOSS.value(logits), exact_losses(logits), rtol=EXACT, atol=EXACT * scale)
    assert_array_equal(logits, before)


def test_the_value_oracle_rejects_a_wrong_target():
    logits = np.random.default_rng(0).normal(size=(4, 4))
    with pytest.raises(AssertionError):
        assert_allclose(LOSS.value(logits[:, ::-1]), exact_losses(logits), rtol=EXACT)


@settings(max_examples=examples(100))
@given(SIZES, SEEDS, st.sampled_from([0.1, 1.0, 10.0]))
def test_gradient_is_the_derivative_of_the_losses(size, seed, scale):
    logits = np.random.default_rng(seed).normal(scale=scale, size=(size, size))
    labels = np.arange(size)
    slopes = oracles.gradient(lambda z: oracles.sample_losses(np.eye(size), z, labels).sum(), logits)
    gradient = LOSS.gradient(logits)
    assert_allclose(gradient.ravel(), slopes, rtol=0, atol=EXACT)
    assert_allclose(gradient.sum(axis=1), 0, atol=EXACT)
    with pytest.raises(AssertionError):
        assert_allclose(gradient.ravel() + 1e-9, slopes, rtol=0, atol=EXACT)


@pytest.mark.parametrize(
    "loss", [LOSS, CrossEntropy(smoothing=0.1, scales=[1, 2, 0.5, 1]), MSE(), Hinge(), Focal(2.0)], ids=repr
)
def test_hessians_of_the_sums_are_differences_of_their_gradients(loss):
    rng = np.random.default_rng(0)
    rows = loss.summed(rng.uniform(0.5, 2, 7), rng.integers(0, 4, 7), 4, 0.3)
    logits, step = rng.normal(size=(7, 4)), 1e-5

    def curved(moved):
        return (rows.evaluate(logits + step * moved)[1] - rows.evaluate(logits - step * moved)[1]) / (2 * step)

    state, moved = rows.evaluate(logits)[2], rng.normal(size=(7, 4))
    assert_allclose(rows.curvature(state, moved), curved(moved), atol=UNITS)
    if loss.convex:
        units = np.eye(4)[:, None] + np.zeros((7, 1))  # one class's logit of every row, as a bias moves it
        columns = np.array([curved(unit) for unit in units])
        assert_allclose(rows.bias_hessian(state), columns.sum(axis=1).T, atol=UNITS)
        assert_allclose(rows.diagonal(state), np.einsum("jij->ij", columns), atol=UNITS)


@settings(max_examples=examples(100))
@given(SIZES, st.floats(-50, 50), st.floats(-20, 20))
def test_scalar_is_the_value_at_equal_wrong_logits(size, margin, shift):
    logits = margin * np.eye(size) + shift
    scalar = LOSS.scalar(np.array([margin]), size)
    assert_allclose(LOSS.value(logits), np.repeat(scalar, size), rtol=EXACT, atol=EXACT * 100)


@settings(max_examples=examples(100))
@given(SIZES, st.floats(-50, 50))
def test_confidence_is_the_softmax_and_the_exponential_of_the_loss(size, margin):
    confidence = LOSS.confidence(np.array([margin]), size)
    assert_allclose(confidence, np.exp(-LOSS.scalar(np.array([margin]), size)), rtol=EXACT)
    assert_allclose(confidence[0], 1 + LOSS.gradient(margin * np.eye(size))[0, 0], rtol=EXACT, atol=EXACT)


@settings(max_examples=examples(300))
@given(st.integers(2, 1000), st.floats(1e-12, 3))
def test_margin_minimises_the_scalar_problem(size, price):
    margin = float(LOSS.margin(np.array([price]), size)[0])
    expected = oracles.scalar_minimum(mpmath.mpf(1), mpmath.mpf(price), size)
    relative = EXACT * expected.margin if expected.closeness >= THRESHOLD_BAND else 0
    assert abs(margin - expected.margin) <= max(MARGIN, relative)
    chosen = LOSS.scalar(np.array([margin]), size) + price * margin
    for other in np.maximum(0, margin + np.array([-1, -1e-2, 1e-2, 1])):
        assert LOSS.scalar(np.array([other]), size) + price * other >= chosen * (1 - EXACT)


def test_the_scalar_oracle_rejects_a_wrong_margin():
    expected = oracles.scalar_minimum(mpmath.mpf(1), mpmath.mpf(0.1), 5)
    right = LOSS.margin(np.array([0.1]), 5)[0]
    assert_allclose(right, float(expected.margin), rtol=0, atol=MARGIN)
    with pytest.raises(AssertionError):
        assert_allclose(right + 1e-12, float(expected.margin), rtol=0, atol=MARGIN)


@pytest.mark.parametrize("size", [2, 3, 10, 10**6])
def test_critical_price_is_the_slope_at_zero_and_kills_the_margin(size):
    critical = LOSS.critical_price(size)
    slope = oracles.gradient(lambda s: np.log(1 + (size - 1) * np.exp(-s[0])), np.zeros(1))
    assert_allclose(critical, -slope[0], rtol=EXACT)
    prices = critical * np.array([1 - 1e-9, 1, 1 + 1e-15, 1 + 1e-9, 1e300])
    assert_array_equal(LOSS.margin(prices, size) > 0, [True, False, False, False, False])


def test_margins_fall_with_the_price():
    prices = np.geomspace(1e-300, 2, 2000)
    assert (np.diff(LOSS.margin(prices, 7)) <= 0).all()


@pytest.mark.parametrize("height", [1e4, -1e4, 1e300])
def test_extreme_logits_neither_overflow_nor_lose_the_loss(height):
    logits = height * np.eye(3)
    right, wrong = (0.0, height) if height > 0 else (-height + np.log(2), 0.0)
    assert_allclose(LOSS.value(logits), right, rtol=EXACT)
    assert_allclose(LOSS.value(logits[[1, 2, 0]]), wrong + (0 if height > 0 else np.log(2)), rtol=EXACT)
    assert_allclose(LOSS.gradient(logits).sum(axis=1), 0, atol=EXACT)
    assert_allclose(LOSS.gradient(logits)[0, 0], 0 if height > 0 else -1, rtol=0, atol=EXACT)
    assert_allclose(LOSS.scalar(np.array([height]), 3), right, rtol=EXACT)


@pytest.mark.parametrize(("margin", "confidence"), [(1e4, 1.0), (800.0, 1.0), (-700.0, 0.0), (-1e4, 0.0)])
def test_confidence_of_extreme_margins(margin, confidence):
    assert_allclose(LOSS.confidence(np.array([margin]), 10), confidence, rtol=0, atol=EXACT)


def test_losses_are_values():
    assert CrossEntropy() == LOSS
    assert "\n" not in repr(LOSS)
    with pytest.raises(FrozenInstanceError):
        LOSS.smoothing = 0.1


# Smoothing, target margins, temperature


@settings(max_examples=examples(100))
@given(st.data(), SIZES, SEEDS)
def test_the_whole_family_equals_torch(data, size, seed):
    loss, logits = data.draw(losses(size)), np.random.default_rng(seed).normal(scale=3, size=(size, size))
    z = torch.tensor(logits, requires_grad=True)
    shifts = torch.diag(torch.tensor(loss.margins or [0.0] * size, dtype=torch.float64))
    values = torch.nn.functional.cross_entropy(
        z / loss.temperature - shifts, torch.arange(size), label_smoothing=loss.smoothing, reduction="none"
    )
    values.sum().backward()
    scale = np.abs(logits).max() / loss.temperature + 10
    assert_allclose(loss.value(logits), values.detach(), rtol=0, atol=EXACT * scale)
    assert_allclose(loss.gradient(logits), z.grad, rtol=0, atol=EXACT / min(1, loss.temperature))


@settings(max_examples=examples(100))
@given(st.data(), SIZES, st.floats(-5, 5))
def test_scalar_and_confidence_of_the_whole_family_at_equal_wrong_logits(data, size, margin):
    loss = data.draw(losses(size))
    logits = margin * loss.temperature * np.eye(size) + 1.5
    scalar = loss.scalar(np.full(size, margin * loss.temperature), size)
    assert_allclose(scalar, loss.value(logits), rtol=EXACT, atol=10 * EXACT)
    softmax = oracles.cross_entropy(logits / loss.temperature)[1]
    assert_allclose(loss.confidence(np.full(size, margin * loss.temperature), size), np.diagonal(softmax), rtol=EXACT)


@settings(max_examples=examples(100))
@given(st.data(), SIZES, SEEDS)
def test_margins_of_the_whole_family_in_extended_precision(data, size, seed):
    loss = data.draw(losses(size))
    critical = np.broadcast_to(loss.critical_price(size), size)
    prices = critical * np.random.default_rng(seed).uniform(0.001, 1.3, size)
    shifts = loss.margins or (0.0,) * size
    with mpmath.workdps(oracles.DIGITS):
        others = mpmath.mpf(size - 1)
        for k, margin in enumerate(loss.margin(prices, size).tolist()):
            r = mpmath.mpf(loss.temperature) * prices[k] + mpmath.mpf(loss.smoothing) * others / size
            expected = loss.temperature * max(0, shifts[k] + mpmath.log(others * (1 / r - 1))) if r < 1 else 0
            assert abs(margin - expected) <= 10 * MARGIN * max(1, loss.temperature) * max(1, abs(shifts[k]))


@pytest.mark.parametrize(
    ("values", "fragment"),
    [
        ({"smoothing": 1.0}, "smoothing=1.0"),
        ({"smoothing": -0.1}, "smoothing=-0.1"),
        ({"smoothing": "a"}, "smoothing='a'"),
        ({"temperature": 0}, "temperature=0"),
        ({"margins": [1.0, np.nan]}, "class 1 has nan"),
        ({"margins": [[1.0]]}, r"shape \(1, 1\)"),
        ({"margins": [1e3, 0]}, "class 0 has 1000"),
    ],
)
def test_misuse_of_the_family(values, fragment):
    with pytest.raises(CollapseError, match=fragment):
        CrossEntropy(**values)


# Offsets, scales, class-weighted smoothing


def steepest(loss, size):
    """The largest factor of a logit, s/T."""
    return max(loss.scales or [1.0] * size) / loss.temperature


@st.composite
def shifted_losses(draw, size):
    """The whole family with offsets, scales and smoothing weights, each present or not."""
    base, rng = draw(losses(size)), np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    values = {"offsets": rng.normal(0, 3, size), "scales": np.exp(rng.normal(0, 0.7, size))}
    if base.smoothing:
        values["smoothing_weights"] = np.exp(rng.normal(0, 1, size))
    return replace(base, **{name: value for name, value in values.items() if draw(st.booleans())})


@settings(max_examples=examples(200))
@given(st.data(), SIZES, SEEDS)
def test_offsets_scales_and_weighted_smoothing_equal_the_literature_and_torch(data, size, seed):
    loss, logits = data.draw(shifted_losses(size)), np.random.default_rng(seed).normal(scale=3, size=(size, size))
    z, labels = torch.tensor(logits, requires_grad=True), torch.arange(size)
    scales, offsets, margins, weights = (  # VS: Δ_j z_j + ι_j for every class j, whatever the target
        torch.tensor(values or [default] * size, dtype=torch.float64)
        for values, default in (
            (loss.scales, 1.0),
            (loss.offsets, 0.0),
            (loss.margins, 0.0),
            (loss.smoothing_weights, 1.0),
        )
    )
    u = scales * z / loss.temperature + offsets - torch.diag(margins)
    values = torch.stack(  # torch weighs row k by w_k, which belongs to the problem
        [
            torch.nn.functional.cross_entropy(u[k : k + 1], labels[k : k + 1], weights, label_smoothing=loss.smoothing)
            for k in range(size)
        ]
    )
    values.sum().backward()
    scale = 10 + float(u.detach().abs().max() * (weights / weights[:, None]).max())
    assert_allclose(loss.value(logits), values.detach(), rtol=0, atol=EXACT * scale)
    assert_allclose(loss.gradient(logits), z.grad, rtol=0, atol=EXACT * scale * steepest(loss, size))
    own = torch.tensor(logits, requires_grad=True)
    in_torch = sample_losses(own, labels, loss)
    assert_allclose(in_torch.detach(), loss.value(logits), rtol=0, atol=EXACT * scale)
    assert_allclose(mean_loss(own, labels, loss).detach(), in_torch.detach().mean(), rtol=EXACT, atol=EXACT * scale)


@settings(max_examples=examples(100))
@given(st.data(), SIZES, SEEDS)
def test_the_gradient_of_the_shifted_family_is_its_derivative(data, size, seed):
    loss, rng = data.draw(shifted_losses(size)), np.random.default_rng(seed)
    logits, direction = rng.normal(size=(2, size, size))
    step = 1e-5
    slope = (loss.value(logits + step * direction) - loss.value(logits - step * direction)) / (2 * step)
    size_of_slope = 1 + np.abs(loss.gradient(logits)).max() + steepest(loss, size) ** 3
    assert_allclose((loss.gradient(logits) * direction).sum(axis=1), slope, rtol=0, atol=UNITS * 10 * size_of_slope)


def test_torch_weighs_a_mean_of_weighted_smoothing_as_the_problem_does():
    rng = np.random.default_rng(0)
    weights, labels = rng.uniform(0.2, 4, 5), torch.tensor(rng.integers(0, 5, 40))
    logits, w = torch.tensor(rng.normal(size=(40, 5))), torch.tensor(weights)
    expected = torch.nn.functional.cross_entropy(logits, labels, w, label_smoothing=0.2)
    loss = CrossEntropy(smoothing=0.2, smoothing_weights=weights)
    assert_allclose(mean_loss(logits, labels, loss, w), expected, rtol=EXACT)
    counts = np.bincount(labels, minlength=5)
    problem = Penalty(0.1, 0.1).problem(counts, class_weights=weights, loss=CrossEntropy(smoothing=0.2))
    assert problem.loss == loss
    means = [sample_losses(logits, labels, problem.loss)[labels == k].mean() for k in range(5)]
    assert_allclose(problem.loss_weights @ np.array(means), expected, rtol=EXACT)


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"offsets": [1, 2]}, "logit adjustment"),
        ({"scales": [1, 2]}, "CDT"),
        ({"smoothing": 0.1, "smoothing_weights": [1, 2]}, "class-weighted label smoothing"),
    ],
)
def test_what_has_no_scalar_form_names_the_solver(values, what):
    loss = CrossEntropy(**values)
    for refused in (loss.scalar, loss.margin, loss.price, loss.confidence):
        with pytest.raises(CollapseError, match=f"{what}.*no closed form; use collapsekit.solve"):
            refused(np.ones(2), 2)
    with pytest.raises(CollapseError, match=f"{what}.*collapsekit.solve"):
        loss.critical_price(2)
    problem = UFM([4, 3], 0.01, 0.01, loss=loss)
    with pytest.raises(CollapseError, match=f"{what}.*no closed form; predict"):
        closed_form(problem)
    assert predict(problem).basis is Basis.CERTIFIED
    assert thresholds(problem).one_sided
    assert CrossEntropy(**{k: v for k, v in loss.to_dict().items() if k != "name"}) == loss


@pytest.mark.parametrize(
    ("values", "fragment"),
    [
        ({"offsets": [1.0, np.inf]}, "offsets: class 1 has inf"),
        ({"offsets": 1.0}, r"offsets: shape \(\)"),
        ({"scales": [1.0, 0.0]}, "scales: class 1 has 0"),
        ({"scales": [[1.0]]}, r"scales: shape \(1, 1\)"),
        ({"scales": [1.0, 1.0], "offsets": [1.0, 2.0, 3.0]}, "one number a class"),
        ({"smoothing_weights": [1.0, 2.0]}, "give smoothing above 0"),
        ({"smoothing": 0.1, "smoothing_weights": [1.0, -2.0]}, "smoothing_weights: class 1 has -2"),
    ],
)
def test_misuse_of_offsets_scales_and_smoothing_weights(values, fragment):
    with pytest.raises(CollapseError, match=fragment):
        CrossEntropy(**values)


def test_the_number_of_classes_must_agree_with_the_problem():
    with pytest.raises(CollapseError, match=r"3 values .* for 2 classes"):
        UFM([5, 3], 0.1, 0.1, loss=CrossEntropy(offsets=[1, 2, 3]))


# Focal, hinge, MSE


@pytest.mark.parametrize("loss", [Focal(0.0), Focal(0.5), Focal(2.0), Focal(5.0), MSE()], ids=str)
@settings(max_examples=examples(50))
@given(size=SIZES, seed=SEEDS, scale=st.sampled_from([0.1, 1.0, 10.0]))
def test_value_and_gradient_equal_torch(loss, size, seed, scale):
    logits = np.random.default_rng(seed).normal(scale=scale, size=(size, size))
    z = torch.tensor(logits, requires_grad=True)
    if isinstance(loss, MSE):
        values = 0.5 * (z - torch.eye(size)).square().sum(dim=1)
    else:
        cross = torch.nn.functional.cross_entropy(z, torch.arange(size), reduction="none")
        values = (-torch.expm1(-cross)) ** loss.gamma * cross
    values.sum().backward()
    assert_allclose(loss.value(logits), values.detach(), rtol=1e3 * EXACT, atol=EXACT)
    assert_allclose(loss.gradient(logits), z.grad, rtol=0, atol=1e3 * EXACT)


@settings(max_examples=examples(50))
@given(SIZES, SEEDS)
def test_the_hinge_is_the_largest_violation_and_its_subgradient_supports_it(size, seed):
    rng = np.random.default_rng(seed)
    logits, others = rng.normal(size=(2, size, size))
    loss = Hinge()
    expected = [max([0.0] + [1 + row[j] - row[k] for j in range(size) if j != k]) for k, row in enumerate(logits)]
    assert_allclose(loss.value(logits), expected, rtol=EXACT)
    tangent = loss.value(logits) + (loss.gradient(logits) * (others - logits)).sum(axis=1)
    assert (loss.value(others) >= tangent - EXACT).all()


@pytest.mark.parametrize("loss", [Focal(0.0), Focal(0.5), Focal(2.0), Focal(5.0), Hinge(), MSE()], ids=str)
@settings(max_examples=examples(100))
@given(size=st.one_of(SIZES, st.integers(13, 2000)), share=st.floats(1e-6, 1.3))
def test_the_margin_is_the_global_minimiser_of_the_scalar_problem(loss, size, share):
    price = share * loss.critical_price(size)
    margin = loss.margin(price, size)
    grid = np.concatenate([[0.0], np.geomspace(1e-9, 60, 20_000)])
    values = loss.scalar(grid, size) + price * grid
    assert loss.scalar(margin, size) + price * margin <= values.min() * (1 + EXACT)
    if share >= 1:
        assert margin == 0
    elif not isinstance(loss, Hinge):
        assert_allclose(loss.price(margin, size), price, rtol=GOLDEN)


def test_focal_with_gamma_zero_is_cross_entropy():
    prices, logits = np.geomspace(1e-9, 2, 50), np.random.default_rng(0).normal(size=(5, 5))
    assert_allclose(Focal(0.0).margin(prices, 5), LOSS.margin(prices, 5), rtol=0, atol=10 * MARGIN)
    assert_allclose(Focal(0.0).value(logits), LOSS.value(logits), rtol=EXACT)
    assert_allclose(Focal(0.0).gradient(logits), LOSS.gradient(logits), rtol=0, atol=EXACT)


@settings(max_examples=examples(100))
@given(st.data(), SIZES)
def test_the_price_of_a_margin_inverts_the_margin_of_a_price(data, size):
    loss = data.draw(losses(size))
    prices = np.broadcast_to(loss.critical_price(size), size) * data.draw(st.floats(0.01, 0.99))
    assert_allclose(loss.price(loss.margin(prices, size), size), prices, rtol=GOLDEN)


@pytest.mark.parametrize("gamma", [-1, np.nan, 51, "x"])
def test_a_gamma_out_of_range_is_refused(gamma):
    with pytest.raises(CollapseError, match="gamma="):
        Focal(gamma)


# One smoothing a class: label noise


@settings(max_examples=examples(100))
@given(st.data(), SIZES, SEEDS)
def test_smoothing_by_class_is_that_of_each_class(data, size, seed):
    """Every number of class k is that of a loss which smooths all classes by ε_k; torch agrees row by row."""
    rng, base = np.random.default_rng(seed), data.draw(shifted_losses(size))
    rates = rng.uniform(0, 0.9, size)
    base = replace(base, margins=None if base.margins is None else np.abs(base.margins))
    loss, logits = replace(base, smoothing=rates), rng.normal(scale=3, size=(size, size))
    alone = [replace(base, smoothing=rate) for rate in rates]
    values = [one.value(logits)[k] for k, one in enumerate(alone)]
    slopes = [one.gradient(logits)[k] for k, one in enumerate(alone)]
    scale = np.abs(values).max() + 1
    assert_allclose(loss.value(logits), values, rtol=0, atol=EXACT * scale)
    assert_allclose(loss.gradient(logits), slopes, rtol=0, atol=EXACT * scale * steepest(loss, size))
    labels, limits = torch.arange(size), 10 ** rng.uniform(-3, 1, size)
    assert_allclose(sample_losses(torch.tensor(logits), labels, loss), values, rtol=0, atol=EXACT * 10 * scale)
    assert_allclose(mean_loss(torch.tensor(logits), labels, loss), np.mean(values), rtol=0, atol=EXACT * 10 * scale)
    floors = [one.confidence_floor(limits, size)[k] for k, one in enumerate(alone)]
    assert_allclose(loss.confidence_floor(limits, size), floors, rtol=EXACT, atol=EXACT)
    if loss.obstacle is None:
        prices = rng.uniform(0.01, 1.2, size) * np.broadcast_to(loss.critical_price(size), size)
        critical = [np.broadcast_to(one.critical_price(size), size)[k] for k, one in enumerate(alone)]
        assert_allclose(loss.critical_price(size), critical, rtol=EXACT)
        margins = loss.margin(prices, size)
        for name in ("margin", "scalar", "price", "confidence", "training_confidence"):
            given = prices if name == "margin" else margins
            found = [getattr(one, name)(given, size)[k] for k, one in enumerate(alone)]
            assert_allclose(getattr(loss, name)(given, size), found, rtol=EXACT, atol=EXACT, err_msg=name)


def test_smoothing_by_class_is_a_value():
    loss = CrossEntropy(smoothing=np.array([0.1, 0.0, 0.3]))
    assert loss.smoothing == (0.1, 0.0, 0.3)
    assert loss.smooths
    assert not CrossEntropy(smoothing=(0.0, 0.0)).smooths
    assert CrossEntropy(**{k: v for k, v in loss.to_dict().items() if k != "name"}) == loss
    with pytest.raises(CollapseError, match=r"3 values \(smoothing, .* for 2 classes"):
        UFM([5, 3], 0.1, 0.1, loss=loss)


@pytest.mark.parametrize(
    ("values", "fragment"),
    [
        ({"smoothing": [0.1, 1.0]}, "smoothing: class 1 has 1; give a share of at least 0 and less than 1"),
        ({"smoothing": [0.1, np.nan]}, "smoothing: class 1 has nan"),
        ({"smoothing": [[0.1]]}, "smoothing=.*one a class"),
        ({"smoothing": [0.1, 0.2], "offsets": [1, 2, 3]}, "smoothing, offsets: .* give each one number a class"),
        ({"smoothing": [0.0, 0.0], "smoothing_weights": [1, 2]}, "give smoothing above 0"),
    ],
)
def test_misuse_of_smoothing_by_class(values, fragment):
    with pytest.raises(CollapseError, match=fragment):
        CrossEntropy(**values)
