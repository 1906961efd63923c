"""adjust: each repair against an independent oracle, honest cross-validation, invariances, and what is misused."""

import json

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestCentroid

from collapsekit import UFM, CollapseError, predict
from collapsekit.diagnosis import adjust
from collapsekit.diagnosis.held_out import cross_validated, folds, gain, intervals, jeffreys
from collapsekit.diagnosis.repairs import DECAYS, METHODS, PULL, STRENGTHS, Given, Samples, balanced_head, fewer

COUNTS = (150, 60, 25, 8, 4)
ANY_SIGN = [0.0, 3.0]


def data(seed=0, counts=COUNTS, held_out=(25,) * 5, dim=6, shift=0.0):
    """Training and validation samples around the same centres, and the head of plain logistic regression."""
    rng = np.random.default_rng(seed)
    centres = 1.6 * rng.normal(size=(len(counts), dim)) + shift
    pairs = []
    for sizes in (counts, held_out):
        labels = np.repeat(np.arange(len(counts)), sizes)
        pairs.append((centres[labels] + 1.4 * rng.normal(size=(len(labels), dim)), labels))
    fitted = LogisticRegression(max_iter=2000).fit(*pairs[0])
    return *pairs[0], (fitted.coef_, fitted.intercept_), pairs[1]


def given(x, y, head, **options):
    names = tuple(str(k) for k in range(len(head[0])))
    return Given(head[0], head[1], Samples(x, y, len(head[0])), names, True, **options)


def recalls_by_hand(x, y, weight, bias):
    found = (x @ weight.T + bias).argmax(axis=1)
    return np.array([np.mean(found[y == k] == k) for k in np.unique(y)])


# the repairs


@pytest.mark.parametrize("shift", ANY_SIGN)
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("decay", [0.1, 1e-3])
def test_the_retrained_head_is_that_of_scikit_learn(decay, biased, shift):
    x, y, _, _ = data(shift=shift)
    centre = x.mean(axis=0) if biased else 0.0
    inputs = x - centre
    scale = np.sqrt(np.mean(inputs**2))
    oracle = LogisticRegression(
        C=1 / (decay * len(y)), class_weight="balanced", fit_intercept=biased, tol=1e-9, max_iter=20_000
    ).fit(inputs / scale, y)
    weight, bias = balanced_head(Samples(x, y, 5), decay, biased=biased)
    logits = x @ weight.T + (0 if bias is None else bias)
    wanted = oracle.decision_function(inputs / scale)
    assert_allclose(softmax(logits, axis=1), softmax(wanted, axis=1), atol=2e-4)
    assert (bias is None) == (not biased)


def test_logit_adjustment_is_the_best_of_all_strengths_and_takes_off_the_log_shares():
    x, y, (weight, bias), held = data(3)
    found = adjust(x, y, (weight, bias), validation=held, method="logit-adjustment")
    shares = np.log(np.array(COUNTS) / sum(COUNTS))
    scores = [recalls_by_hand(*held, weight, bias - tau * shares).mean() for tau in STRENGTHS]
    assert found.attempt.parameter == STRENGTHS[int(np.argmax(np.round(scores, 12)))]
    assert_allclose(found.head[1], bias - found.attempt.parameter * shares)
    assert_array_equal(found.head[0], weight)


def test_row_norms_become_powers_of_what_they_were():
    x, y, head, held = data(1)
    before = np.linalg.norm(head[0], axis=1)
    for tau, weight, bias in METHODS["row-norms"].heads(given(x, y, head), Samples(*held, 5)):
        after = np.linalg.norm(weight, axis=1)
        assert_allclose(after / after[0], (before / before[0]) ** (1 - tau))
        assert np.prod(after) == pytest.approx(np.prod(before))
        assert_array_equal(bias, head[1])


def test_the_nearest_mean_is_that_of_scikit_learn():
    x, y, head, held = data(2)
    weight, bias = adjust(x, y, head, validation=held, method="nearest-mean").head
    assert_array_equal((held[0] @ weight.T + bias).argmax(axis=1), NearestCentroid().fit(x, y).predict(held[0]))


def test_the_bias_alone_is_fitted_to_a_stationary_point_and_that_of_an_absent_class_stays():
    x, y, (weight, bias), held = data(4, held_out=(20, 20, 0, 20, 3))
    samples = Samples(*held, 5)
    one = np.zeros((len(held[1]), 5))
    one[np.arange(len(one)), held[1]] = 1
    weights = 1 / (4 * np.bincount(held[1])[held[1]])
    heads = METHODS["bias-only"].heads(given(x, y, (weight, bias)), samples)
    ((parameter, same, new),) = heads
    assert parameter is None
    assert_array_equal(same, weight)
    error = softmax(held[0] @ weight.T + new, axis=1) - one
    slope = weights @ error + PULL / 5 * (new - bias)
    assert_allclose(slope[[0, 1, 3, 4]], 0, atol=1e-5)
    assert new[2] == bias[2]


def test_predicted_margins_become_equal_on_the_predicted_frame():
    prediction = predict(UFM(COUNTS, lambda_w=4e-3, lambda_h=1e-5))
    weight, features = prediction.weights_and_features()
    y = np.repeat(np.arange(5), COUNTS)
    found = METHODS["predicted-geometry"].heads(
        given(features[y], y, (weight, None), prediction=prediction), Samples(features, np.arange(5), 5)
    )
    assert np.ptp(prediction.margins) > 0.5
    tau, new, bias = found[STRENGTHS.index(1.0)]
    assert (tau, bias) == (1.0, None)
    own = np.linalg.norm(new, axis=1) / np.linalg.norm(weight, axis=1) * prediction.margins
    assert_allclose(own, own[0])


def test_without_a_prediction_rows_go_by_the_counts():
    x, y, head, held = data(5)
    lost = predict(UFM(COUNTS, lambda_w=0.2, lambda_h=1e-3))
    assert lost.collapses.any()
    for one in (given(x, y, head), given(x, y, head, prediction=lost)):
        _, weight, _ = METHODS["predicted-geometry"].heads(one, Samples(*held, 5))[STRENGTHS.index(2.0)]
        shrunk = np.linalg.norm(weight, axis=1) / np.linalg.norm(head[0], axis=1)
        assert_allclose(shrunk / shrunk[0], (np.array(COUNTS) / COUNTS[0]) ** -0.5)
    found = adjust(x, y, head, validation=held, prediction=lost)
    assert any("goes by the counts" in note for note in found.notes)


def test_of_very_many_samples_the_largest_classes_give_as_many_each():
    x, y, _, _ = data(0)
    whole = Samples(x, y, 5)
    assert fewer(whole, 247) is whole
    some = fewer(whole, 100)
    assert len(some.labels) <= 100
    cap = some.counts.max()
    assert cap >= 25
    assert_array_equal(some.counts, np.minimum(COUNTS, cap))
    order = np.random.default_rng(0).permutation(247)
    again = fewer(Samples(x[order], y[order], 5), 100)
    assert {row.tobytes() for row in again.features} == {row.tobytes() for row in some.features}
    assert_array_equal(fewer(whole, 1).counts, 1)


# cross-validation and the choice


@pytest.mark.parametrize("name", [*METHODS])
def test_a_sample_is_judged_by_a_head_for_which_its_label_was_not_used(name):
    """With the labels of a fold turned round the classes, each of its samples is hit exactly once."""
    x, y, head, held = data(6)
    samples = Samples(*held, 5)
    fold, number = folds(samples)
    assert number == 5
    for i in range(number):
        inside, times = fold == i, np.zeros(len(fold))
        for turn in range(5):
            turned = Samples(held[0], np.where(inside, (held[1] + turn) % 5, held[1]), 5)
            times += cross_validated(METHODS[name], given(x, y, head), turned, fold)[0]
        assert_array_equal(times[inside], 1)


def test_noise_is_rarely_taken_for_a_gain():
    changed, promised, left = 0, [], 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        x, v = rng.normal(size=(200, 5)), rng.normal(size=(60, 5))
        y, w = np.arange(200) % 4, np.arange(60) % 4
        found = adjust(x, y, (rng.normal(size=(4, 5)), rng.normal(size=4)), validation=(v, w))
        sure = any(one.gain > 2 * one.standard_error for one in found.attempts)
        assert (found.chosen != "untouched") == sure
        left += not sure and any(one.gain > 0 for one in found.attempts)
        changed += sure
        promised += [one.gain for one in found.attempts]
    assert abs(np.mean(promised)) < 0.04
    assert changed <= 2
    assert left > 0  # some gained less than two errors


def test_the_head_stays_where_nothing_is_to_be_gained():
    y, w = np.repeat(np.arange(5), COUNTS), np.repeat(np.arange(5), 6)
    rng = np.random.default_rng(0)
    x, v = (np.eye(5)[labels] + 0.05 * rng.normal(size=(len(labels), 5)) for labels in (y, w))
    found = adjust(x, y, (np.eye(5), np.zeros(5)), validation=(v, w))
    assert found.chosen == "untouched"
    assert "The head stays" in found.notes[0]
    assert_array_equal(found.head[0], np.eye(5))
    assert all(row["before"] == row["after"] for row in found.table)
    assert found.summary[0]["gain_low"] == found.summary[0]["gain_high"] == 0


@pytest.mark.parametrize("seed", range(4))
def test_the_choice_is_the_best_of_those_that_gain(seed):
    found = adjust(*data(seed)[:3], validation=data(seed)[3])
    sure = [one for one in found.attempts if one.gain > one.standard_error]
    assert found.attempt.gain == max(one.gain for one in sure)
    row = found.summary[0]
    assert row["after"] == pytest.approx(found.attempt.balanced_accuracy)
    assert row["gain"] == pytest.approx(found.attempt.gain)
    assert row["before"] == pytest.approx(np.mean(recalls_by_hand(*data(seed)[3], *data(seed)[2])))


def test_the_standard_error_and_the_intervals_are_those_of_a_bootstrap():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [300, 200, 150])
    before = rng.random(650) < np.array([0.9, 0.6, 0.2])[labels]
    after = np.where(rng.random(650) < 0.7, before, rng.random(650) < 0.7)
    samples = Samples(np.zeros((650, 1)), labels, 3)
    draws = []
    for _ in range(3000):
        chosen = np.concatenate([rng.choice(np.flatnonzero(labels == k), np.sum(labels == k)) for k in range(3)])
        draws.append([np.mean([m[chosen][labels == k].mean() for k in range(3)]) for m in (before, after)])
    draws = np.array(draws)
    rise, error = gain(before, after, samples)
    assert error == pytest.approx(np.diff(draws).std(), rel=0.05)
    assert rise == pytest.approx(np.diff(draws).mean(), abs=2e-3)
    overall = intervals(before, after, samples, [lambda r: r.mean(axis=-1)])
    wanted = np.percentile(np.column_stack([draws, np.diff(draws)]), (2.5, 97.5), axis=0).T
    assert_allclose(overall[0], wanted, atol=6e-3)


def test_the_interval_of_a_class_is_that_of_jeffreys():
    labels = np.repeat([0, 1, 2, 3], [20, 20, 10, 1])
    hits = np.concatenate([np.arange(20) < 20, np.arange(20) < 0, np.arange(10) < 4, [True]])
    found = jeffreys(hits, Samples(np.zeros((51, 1)), labels, 5))
    assert np.isnan(found[4]).all()
    p = np.sin((np.arange(10**6) + 0.5) / 10**6 * np.pi / 2) ** 2  # where the prior weighs all alike
    for (low, high), right, count in zip(found, [20, 0, 4, 1], [20, 20, 10, 1], strict=False):
        posterior = p**right * (1 - p) ** (count - right)
        beyond = [posterior[p < low].sum() / posterior.sum(), posterior[p > high].sum() / posterior.sum()]
        assert_allclose(beyond, [0.025 * (right > 0), 0.025 * (right < count)], atol=1e-4)


def test_two_hits_of_two_samples_are_no_certainty():
    labels = np.repeat([0, 1, 2], [40, 40, 2])
    before, after = labels < 2, np.ones(82, dtype=bool)
    before[:20] = after[:20] = False
    rise, error = gain(before, after, Samples(np.zeros((82, 1)), labels, 3))
    assert rise == pytest.approx(1 / 3)
    assert error > 0.05


# invariances


@pytest.mark.parametrize("seed", range(4))
def test_the_order_of_samples_and_classes_changes_nothing(seed):
    x, y, (weight, bias), (v, w) = data(seed)
    found = adjust(x, y, (weight, bias), validation=(v, w))
    rng = np.random.default_rng(seed)
    first, second, order = rng.permutation(len(y)), rng.permutation(len(w)), rng.permutation(5)
    rows = np.argsort(order)
    again = adjust(x[first], order[y[first]], (weight[rows], bias[rows]), validation=(v[second], order[w[second]]))
    assert (again.chosen, again.attempt.parameter, again.folds) == (found.chosen, found.attempt.parameter, found.folds)
    assert_allclose([one.gain for one in again.attempts], [one.gain for one in found.attempts], atol=1e-9)
    assert_allclose(again.head[0], found.head[0][rows], atol=1e-4)
    for row, other in zip(found.table, [again.table[k] for k in order], strict=True):
        assert (row["before"], row["after"], row["count"]) == (other["before"], other["after"], other["count"])


def test_labels_may_be_names_and_arrays_tensors_of_any_type():
    x, y, (weight, bias), (v, w) = data()
    names = ["elk", "ant", "dog", "bee", "cat"]
    plain = adjust(x, y, (weight, bias), validation=(v, w))
    head, held = (torch.tensor(weight), bias), (v, np.array(names)[w])
    words = adjust(torch.tensor(x), np.array(names)[y], head, validation=held, names=names)
    assert [row["label"] for row in words.table] == names
    assert [row["after"] for row in words.table] == [row["after"] for row in plain.table]
    turned = (v[::-1], np.array(names)[w[::-1]])  # its names are first met in another order than in training
    unnamed = adjust(x, np.array(names)[y], head, validation=turned)
    assert [(row["label"], row["after"]) for row in unnamed.table] == [(r["label"], r["after"]) for r in words.table]
    rough = adjust(torch.tensor(x).bfloat16(), torch.tensor(y), (weight, bias), validation=(v, torch.tensor(w)))
    assert rough.summary[0]["before"] == plain.summary[0]["before"]  # the validation features are the same


def test_features_of_any_sign_and_offset_are_repaired():
    for shift in ANY_SIGN:
        x, y, head, held = data(8, held_out=(60,) * 5, shift=shift)
        assert adjust(x, y, head, validation=held).summary[0]["gain"] > 0.05


# what cannot be known


def test_a_class_without_validation_samples_is_named_and_not_counted():
    x, y, head, held = data(0, held_out=(30, 30, 0, 2, 1))
    found = adjust(x, y, head, validation=held, names=["ant", "bee", "cat", "dog", "elk"])
    row = found.table[2]
    assert row["reason"] == "no validation samples"
    assert np.isnan([row["before"], row["after"], row["after_low"]]).all()
    assert found.summary[0]["before"] == pytest.approx(np.mean(recalls_by_hand(*held, *head)))
    assert any("'cat'" in note and "nothing is known" in note for note in found.notes)
    assert any("'dog', 'elk'" in note and "hardly known" in note for note in found.notes)
    content = found.to_dict()
    assert content["classes"][2]["before"] is None
    json.dumps(content, allow_nan=False)


def test_a_head_that_cannot_be_improved_is_left_alone():
    """The best of six gains more than one standard error by chance in 4 of 10 cases."""
    changed = 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        centres, labels = 0.6 * rng.normal(size=(5, 10)), np.repeat(np.arange(5), 20)
        x, held = (centres[labels] + rng.normal(size=(100, 10)) for _ in range(2))
        best = centres, -(centres**2).sum(axis=1) / 2  # Bayes' rule
        changed += adjust(x, labels, best, validation=(held, labels)).chosen != "untouched"
    assert changed <= 1


def test_equal_samples_share_a_fold():
    rng = np.random.default_rng(0)
    rows = np.repeat(rng.normal(size=(30, 3)), 2, axis=0)
    labels = np.repeat([0, 1], 30)
    rows[30:34] = rows[:4]  # under another label, too
    samples = Samples(rows, labels, 2)
    fold, number = folds(samples)
    assert number == 5
    assert all(len(set(fold[(rows == row).all(axis=1)])) == 1 for row in rows)
    assert np.bincount(fold).min() >= 6
    order = rng.permutation(60)
    assert_array_equal(folds(Samples(rows[order], 1 - labels[order], 2))[0], fold[order])
    x, y, head, _ = data(0)
    with pytest.raises(CollapseError, match="two that differ"):
        adjust(x, y, head, validation=(np.repeat(x[[0, -1]], 3, axis=0), np.repeat([0, 4], 3)))


def test_a_head_that_is_asked_to_stay_stays_as_asked():
    x, y, head, held = data(0)
    assert adjust(x, y, head, validation=held, method="untouched").notes[0] == ("The head stays: that was asked for.")


def test_few_samples_make_fewer_folds():
    x, y, head, held = data(0, held_out=(3, 2, 2, 1, 1))
    found = adjust(x, y, head, validation=held)
    assert found.folds == 3
    assert found.table[4]["after_high"] - found.table[4]["after_low"] > 0.5


def test_a_class_without_training_samples_leaves_out_what_needs_them():
    x, y, (weight, bias), held = data(0)
    found = adjust(x[y < 4], y[y < 4], (weight, bias), validation=held)
    reasons = {one.method: one.reason for one in found.attempts}
    assert "class '4' has no training samples" in reasons["nearest-mean"]
    assert "class '4' has no training samples" in reasons["retrained"]
    assert reasons["logit-adjustment"] == ""
    assert np.isnan(next(one.gain for one in found.attempts if one.method == "retrained"))
    with pytest.raises(CollapseError, match="no training samples; give another, or leave it out"):
        adjust(x[y < 4], y[y < 4], (weight, bias), validation=held, method="retrained")


def test_a_head_without_bias_keeps_none_on_request():
    x, y, (weight, _), held = data(1)
    free = adjust(x, y, weight, validation=held)
    assert free.head[1] is not None
    assert "The head had no bias, the new one has." in free.notes
    kept = adjust(x, y, weight, validation=held, add_bias=False)
    assert kept.head[1] is None
    out = {one.method for one in kept.attempts if one.reason}
    assert out == {"logit-adjustment", "nearest-mean", "bias-only"}
    assert any("only methods that need none" in note for note in kept.notes)
    with pytest.raises(CollapseError, match="needs a bias"):
        adjust(x, y, weight, validation=held, add_bias=False, method="bias-only")


def test_a_row_of_zeros_has_no_norm_to_divide_by():
    x, y, (weight, bias), held = data(1)
    found = adjust(x, y, (weight * [[1], [1], [1], [1], [0]], bias), validation=held)
    assert "the row of class '4' is 0" in {one.method: one.reason for one in found.attempts}["row-norms"]


def test_a_tie_of_all_logits_is_no_hit():
    x, y, _, held = data(1)
    found = adjust(x, y, (np.zeros((5, 6)), None), validation=held)
    assert found.summary[0]["before"] == 0


def test_what_is_no_validation_is_said():
    x, y, head, _ = data(2)
    found = adjust(x, y, head, validation=(x, y))
    assert any("says nothing of new data" in note for note in found.notes)
    turned = adjust(x, y, (np.roll(head[0], 1, axis=0), np.roll(head[1], 1)), validation=data(2)[3])
    assert any("are its rows in the order of the labels" in note for note in turned.notes)


@pytest.mark.parametrize(
    ("counts", "cuts", "wanted", "words"),
    [
        ((150, 60, 25, 8, 4), None, (1, 2, 2), "many: above 100 training samples, few: below 20"),
        ((90, 60, 25, 8, 4), None, (2, 1, 2), "few: up to 8 (terciles"),
        ((150, 60, 25, 8, 4), (30, 5), (2, 2, 1), "many: above 30 training samples, few: below 5"),
        ((30, 30, 30, 30, 30), None, (0, 0, 5), "terciles"),
    ],
)
def test_the_cuts_are_stated(counts, cuts, wanted, words):
    x, y, head, held = data(0, counts=counts)
    found = adjust(x, y, head, validation=held, method="untouched", cuts=cuts)
    rows = {row["what"]: row for row in found.summary}
    assert tuple(rows[name]["classes"] for name in ("many", "medium", "few")) == wanted
    assert words in found.cuts
    recalls = recalls_by_hand(*held, *head)
    few = np.argsort(-np.array(counts), kind="stable")[5 - wanted[2] :]
    assert rows["few"]["before"] == pytest.approx(recalls[few].mean())
    assert rows["worst class"]["before"] == pytest.approx(recalls.min())
    assert (rows["many"]["reason"] == "no such class") == (wanted[0] == 0)


# misuse


def misused(**changes):
    x, y, head, held = data(0)
    arguments = {"train_features": x, "labels": y, "head": head, "validation": held} | changes
    with pytest.raises(CollapseError) as caught:
        adjust(arguments.pop("train_features"), arguments.pop("labels"), arguments.pop("head"), **arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"train_features": np.ones((251, 6))},
            "labels: shape (247,), torch.int64; give one whole number a sample",
        ),
        ({"train_features": np.ones((247, 5))}, "train_features: shape (247, 5); give (n, 6), what enters the head"),
        ({"train_features": np.full((247, 6), np.nan)}, "train_features: row 0 is not finite"),
        ({"train_features": "x"}, "train_features='x': give an array of numbers"),
        ({"labels": np.full(247, 5)}, "labels: 5 is no row of the head; give numbers from 0 to 4"),
        ({"labels": np.full(247, -1)}, "labels: -1 is no row of the head"),
        ({"labels": np.full(247, 0.5)}, "labels: shape (247,), torch.float64; give one whole number a sample"),
        ({"labels": ["cat"] * 247}, "labels: 1 names for 5 rows of the head; give names="),
        ({"head": np.ones((1, 6))}, "head: weight of shape (1, 6); give one row a class"),
        ({"head": np.ones(6)}, "head: shape (6,); give (K, d)"),
        ({"head": (np.ones((5, 6)), np.ones(4))}, "head: bias of shape (4,); give 5 finite numbers"),
        ({"validation": np.ones((3, 6))}, "validation: give features and labels of the validation split, (X, y)"),
        ({"validation": (np.ones((2, 5)), [0, 1])}, "validation features: shape (2, 5); give (n, 6)"),
        ({"validation": (np.ones((2, 6)), [0, 7])}, "validation labels: 7 is no row of the head"),
        ({"validation": (np.ones((2, 6)), ["a", "b"])}, "validation labels: 2 names for 5 rows"),
        (
            {"validation": (np.ones((2, 6)), [0, 1])},
            "validation: 2 samples of 2 classes; give samples of two",
        ),
        ({"validation": (np.ones((3, 6)), [1, 1, 1])}, "validation: 3 samples of 1 classes; give samples of two"),
        ({"validation": (np.ones((0, 6)), [])}, "validation features: shape (0, 6); give (n, 6)"),
        ({"method": "magic"}, "method='magic': give one of untouched, logit-adjustment"),
        ({"names": ["a", "b"]}, "names: 2 names for 5 classes"),
        ({"cuts": (5, 30)}, "cuts=(5, 30): the first count must not be below the second"),
        ({"prediction": predict(UFM([5, 4], 1e-3, 1e-3))}, "prediction: of 2 classes for 5 rows"),
    ],
)
def test_a_mistake_costs_one_line_with_its_remedy(changes, message):
    assert message in misused(**changes)


def test_the_decays_are_tried_from_the_strongest_on():
    x, y, head, held = data(0)
    heads = METHODS["retrained"].heads(given(x, y, head), Samples(*held, 5))
    assert [decay for decay, _, _ in heads] == [*DECAYS]
    norms = [np.linalg.norm(weight) for _, weight, _ in heads]
    assert norms == sorted(norms)
