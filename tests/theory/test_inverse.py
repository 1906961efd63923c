"""Inverse problems: predict of what they return is what was wished for; impossible wishes are refused with a reason."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from _support.strategies import examples, losses, problems
from _support.tolerances import EXACT, INVERSE
from collapsekit import MSE, UFM, CollapseError, CrossEntropy, Focal, Hinge, predict, thresholds
from collapsekit.recipe import BatchNorm, LastLayer, Penalty
from collapsekit.theory import count_range, counts_for, largest_penalty, margins_for, weights_for
from collapsekit.theory._counts import with_counts

FIRST = UFM([500, 300, 40, 10], 3e-2, 1e-3, names=["a", "b", "c", "d"])
MILD = UFM([400, 200, 100, 50], 1e-3, 1e-4)


@settings(max_examples=examples(200))
@given(problems())
def test_the_largest_penalty_is_where_the_first_class_dies(problem):
    limit = largest_penalty(problem)
    ratio = problem.lambda_w / problem.lambda_h
    below, above = (
        predict(UFM(problem.counts, np.sqrt(p * ratio), np.sqrt(p / ratio), class_weights=problem.class_weights))
        for p in limit.product * np.array([1 - INVERSE, 1 + INVERSE])
    )
    assert not below.collapses.any()
    assert above.collapses[int(limit.label)]
    both = replace(problem, lambda_w=problem.lambda_w * limit.factor, lambda_h=problem.lambda_h * limit.factor)
    assert_allclose(thresholds(both).headroom.min(), 1, rtol=INVERSE)


def test_the_largest_penalty_of_a_named_class():
    assert largest_penalty(FIRST, "c").label == "c"
    assert_allclose(largest_penalty(FIRST, "c").product, thresholds(FIRST).critical_product[2], rtol=EXACT)
    assert largest_penalty(FIRST, 0).product == thresholds(FIRST).critical_product[0]
    for label, fragment in (("x", "no such class"), (4, "label=4"), (-1, "label=-1"), (True, "label=True")):
        with pytest.raises(CollapseError, match=fragment):
            largest_penalty(FIRST, label)


@settings(max_examples=examples(200))
@given(st.data(), problems())
def test_weights_realise_any_margins(data, problem):
    loss = data.draw(st.one_of(losses(problem.num_classes), st.just(Focal(1.5)), st.just(MSE())))
    top = 0.99 if isinstance(loss, MSE) else 4.0 * getattr(loss, "temperature", 1.0)
    wanted = np.random.default_rng(data.draw(st.integers(0, 99))).uniform(0.1, 1, problem.num_classes) * top
    prices = np.broadcast_to(loss.price(wanted, problem.num_classes), wanted.shape)
    assume((prices > 1e-3).all())  # with smoothing no price is low enough for a large margin
    problem = replace(problem, loss=loss)
    advice = weights_for(problem, wanted)
    assert_allclose(predict(advice.problem).margins, wanted, rtol=INVERSE)
    assert_allclose(predict(advice.torch_problem).margins, wanted, rtol=INVERSE)
    assert_allclose(advice.torch_weights @ problem.counts, problem.num_samples, rtol=EXACT)
    assert_allclose(advice.torch_problem.lambda_w * advice.scale, problem.lambda_w, rtol=EXACT)


@pytest.mark.parametrize(("wish", "power"), [("equal", 0.0), ("ldam", -0.25)])
def test_weights_of_mean_one_realise_a_shape(wish, power):
    advice = weights_for(MILD, wish)
    assert_allclose(advice.scale, 1, rtol=INVERSE)
    margins = predict(advice.problem).margins
    assert_allclose(margins / margins[0], (MILD.counts / 400) ** power, rtol=INVERSE)
    if wish == "equal":
        ratio = advice.class_weights / advice.class_weights[0]
        assert_allclose(ratio, (MILD.counts / 400) ** -0.5, rtol=INVERSE)


@settings(max_examples=examples(200))
@given(st.data(), problems(weighted=False))
def test_target_margins_realise_any_margins(data, problem):
    loss = replace(data.draw(losses(problem.num_classes)), margins=None)
    problem = replace(problem, loss=loss)
    headroom = thresholds(problem).headroom
    assume((headroom > 1.1).all())
    wanted = np.random.default_rng(data.draw(st.integers(0, 99))).uniform(0.1, 6, problem.num_classes)
    advised = margins_for(problem, wanted * loss.temperature)
    try:
        margins = predict(advised).margins
    except CollapseError as refused:  # smoothing with a margin wanted so small that Δ is negative
        assert "target margin" in str(refused)  # noqa: PT017
        return
    assert_allclose(margins, wanted * loss.temperature, rtol=INVERSE)


def test_target_margins_of_a_shape_keep_the_largest_class():
    margins = predict(margins_for(MILD, "equal")).margins
    assert_allclose(margins, predict(MILD).margins[0], rtol=INVERSE)
    ldam = predict(margins_for(MILD, "ldam")).margins
    assert_allclose(ldam / ldam[0], (MILD.counts / 400) ** -0.25, rtol=INVERSE)


@settings(max_examples=examples(300))
@given(problems(max_classes=5, max_ratio=300), st.integers(0, 4))
def test_counts_inside_the_range_live_and_outside_die(problem, k):
    k %= problem.num_classes
    found = count_range(problem, k)

    def lives(count):
        counts = problem.counts.copy()
        counts[k] = count
        return not predict(replace(problem, counts=counts)).collapses[k]

    if found.smallest is None:
        trial = np.unique(np.round(np.geomspace(1, 1e7, 200)))
        inside = trial[(trial > found.lower) & (trial < found.upper)] if np.isfinite(found.lower) else trial[:0]
        assert not inside.size
        assert not any(lives(count) for count in trial)
        return
    assert lives(found.smallest)
    assert found.smallest == 1 or not lives(found.smallest - 1)
    last = np.ceil(found.upper) - 1
    if last < 2**50:
        assert lives(last) or last < found.smallest
        assert not lives(np.floor(found.upper) + 1)


def test_oversampling_reaches_the_least_counts_that_save_every_class():
    problem = UFM([500, 300, 40, 10], 1.3e-2, 1e-3)
    counts = counts_for(problem)
    assert not predict(replace(problem, counts=counts)).collapses.any()
    assert (counts >= problem.counts).all()
    for k in np.flatnonzero(counts > problem.counts):
        fewer = counts.copy()
        fewer[k] -= 1
        assert predict(replace(problem, counts=fewer)).collapses[k]
    assert_array_equal(counts_for(MILD), MILD.counts)


LAST = LastLayer(branches=1)
RECIPES = {
    "penalties": None,
    "mean": Penalty(1, 1, "batch_mean"),
    "full batch": Penalty(1, 1),
    "batchnorm": BatchNorm(1),
    "frozen shift": BatchNorm(1, "gain_frozen_shift"),
}


def of_recipe(problem, hold):
    """A problem that the recipe can have made: its λ_H by class, its class weights those of torch."""
    weights = problem.class_weights
    if hold is None:
        return problem
    made = hold.problem(problem.counts, LAST, class_weights=weights)
    lambda_h = np.mean(problem.lambda_h) * made.lambda_h / np.mean(made.lambda_h)
    return replace(problem, lambda_h=lambda_h, class_weights=made.class_weights)


def drawn(problem, hold):
    if hold is not None and hold.refusal(LAST, counts=problem.counts):
        assume(False)
    return of_recipe(problem, hold)


@pytest.mark.parametrize("hold", RECIPES.values(), ids=RECIPES)
@settings(max_examples=examples(200))
@given(problem=problems(max_classes=5, max_ratio=100))
def test_oversampling_saves_every_class_with_no_sample_to_spare_or_is_impossible(hold, problem):
    problem = drawn(problem, hold)
    try:
        counts = counts_for(problem, hold=hold)
    except CollapseError as refused:
        assert "no oversampling saves" in str(refused)  # noqa: PT017
        dying = thresholds(problem).headroom <= 1
        for factor in (1.5, 4.0, 30.0, 1e3):  # all dying classes enlarged, one by one and together
            for k in (*np.flatnonzero(dying), dying):
                trial = problem.counts.copy()
                trial[k] = np.round(trial[k] * factor)
                if hold is None or hold.refusal(LAST, counts=trial) is None:
                    assert predict(with_counts(problem, trial, hold)).collapses.any()
        return
    assert not predict(with_counts(problem, counts, hold)).collapses.any()
    for k in np.flatnonzero(counts > problem.counts):
        fewer = counts.copy()
        fewer[k] -= 1
        assert predict(with_counts(problem, fewer, hold)).collapses.any()


@pytest.mark.parametrize("hold", RECIPES.values(), ids=RECIPES)
@settings(max_examples=examples(200))
@given(problem=problems(max_classes=5, max_ratio=100), k=st.integers(0, 4))
def test_a_class_lives_between_its_two_counts_while_n_moves(hold, problem, k):
    k %= problem.num_classes
    problem = drawn(problem, hold)
    limits = thresholds(problem, hold=hold)
    low, high = limits.lower_count[k], limits.upper_count[k]
    for count in np.unique(np.round(np.geomspace(1, 1e7, 40))):
        counts = problem.counts.copy()
        counts[k] = count
        if hold is not None and hold.refusal(LAST, counts=counts):
            continue
        if isinstance(hold, BatchNorm) and hold.decays == "gain_frozen_shift" and counts.sum() % 2:
            continue  # an odd N above one half costs 1/N² more, which the roots pass over
        lives = not predict(with_counts(problem, counts, hold)).collapses[k]
        if np.isnan(low):
            assert np.isnan(high)
            assert not lives
        elif abs(count / low - 1) > 1e-9 and abs(count / high - 1) > 1e-9:
            assert lives is bool(low < count < high), (count, low, high)


@pytest.mark.parametrize("weights", [None, [1.0, 1.5, 0.5, 2.0]], ids=str)
@pytest.mark.parametrize(
    ("hold", "last"),
    [
        (BatchNorm(0.35, "gain_frozen_shift"), LastLayer(branches=1)),
        (BatchNorm(0.4), LastLayer(branches=2)),
        (Penalty(0.35, 5e-4), LastLayer()),
        (Penalty(0.35, 1e-3, batch_size=64), LastLayer()),
        (Penalty(0.35, 1e-3, batch_size=64, drop_last=True), LastLayer()),
        (Penalty(0.35, 2.0, "entry_mean"), LastLayer(dim=9)),
    ],
    ids=str,
)
def test_the_least_count_is_that_of_a_search_through_the_recipe_itself(hold, last, weights):
    """A23: what stays is the recipe, in which λ_H moves with the shares, with N or with the steps an epoch."""

    def lives(count):
        return not predict(hold.problem([300, 300, 300, count], last, class_weights=weights)).collapses[3]

    first = next((count for count in range(1, 900) if lives(count)), None)
    problem = hold.problem([300, 300, 300, 20], last, class_weights=weights)
    assert first is not None
    assert count_range(problem, 3, hold=hold).smallest == first
    if not predict(hold.problem([300, 300, 300, first], last, class_weights=weights)).collapses.any():
        assert_array_equal(counts_for(problem, hold=hold), [300, 300, 300, max(20, first)])


def test_a_frozen_shift_needs_the_count_that_its_own_penalty_asks_for():
    hold = BatchNorm(0.35, "gain_frozen_shift")
    problem = hold.problem([300, 300, 300, 20], LAST)
    assert count_range(problem, 3, hold=hold).smallest == 233
    assert count_range(problem, 3, hold=BatchNorm(0.35)).smallest != 233  # the check can fail


def test_a_recipe_that_is_fed_more_samples_has_no_upper_count():
    recipe = BatchNorm(0.2)
    problem = recipe.problem([900, 40], LAST)
    lower = thresholds(problem, hold=recipe).lower_count[1]
    share = lower / (900 + lower)
    assert_allclose(share, 2 * 0.2**2, rtol=INVERSE)  # docs/theory.md: dead at π ≤ (K/(K−1)) wd²
    found = count_range(problem, 1, hold=recipe)
    for count, dead in ((found.smallest - 1, True), (found.smallest, False)):
        assert bool(predict(recipe.problem([900, count], LAST)).collapses[1]) is dead
    assert found.upper == np.inf


def test_decay_factors_are_in_the_recipe_s_own_units():
    def recipe(wd):
        return BatchNorm(wd).problem([500, 300, 40], LastLayer(branches=2))

    factors = thresholds(recipe(0.05)).decay_factor
    for k, factor in enumerate(factors):
        dead = [predict(recipe(0.05 * factor * (1 + shift))).collapses[k] for shift in (-INVERSE, INVERSE)]
        assert dead == [False, True]


@pytest.mark.parametrize("hold", ["recipe", np.array([1.0, 2.0]), 3, BatchNorm], ids=str)
@pytest.mark.parametrize("call", [thresholds, counts_for, lambda one, hold: count_range(one, 0, hold=hold)])
def test_what_is_held_is_a_recipe(call, hold):
    with pytest.raises(CollapseError, match=r"hold=.*give the recipe that made the problem, or leave it out"):
        call(MILD, hold=hold)


@pytest.mark.parametrize(
    ("call", "fragment"),
    [
        (lambda: weights_for(MILD, [1, 1, 1]), r"shape \(3,\)"),
        (lambda: weights_for(MILD, [1, 1, 0, 1]), "class 2 has 0"),
        (lambda: weights_for(MILD, "same"), "margins='same'"),
        (lambda: weights_for(replace(MILD, loss=Hinge()), [1, 1, 1, 1]), "margins are 1 or 0"),
        (lambda: weights_for(replace(MILD, loss=MSE()), [1.5, 0.5, 0.5, 0.5]), "no weight gives class 0"),
        (lambda: weights_for(UFM([400, 100], 1e-1, 1e-1), "equal"), "weights of mean 1 cannot"),
        (lambda: margins_for(FIRST, [1, 1, 1, 1]), "class d is dead at every target margin"),
        (lambda: margins_for(replace(MILD, loss=Focal())), "weigh the classes .weights_for."),
        (lambda: counts_for(FIRST.__class__([500, 300, 40, 10], 1.0, 1.0)), "no oversampling saves class 3"),
        (lambda: weights_for(UFM([4, 3], 1e-3, 1e-3, loss=CrossEntropy(smoothing=0.1)), [50, 1]), "no weight"),
        (lambda: largest_penalty(UFM([4, 3], 1e-3, 1e-3, bias="free")), "bias"),
    ],
)
def test_impossible_wishes_are_refused_with_the_reason(call, fragment):
    with pytest.raises(CollapseError, match=fragment):
        call()
