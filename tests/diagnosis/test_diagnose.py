"""diagnose: networks that were spoiled in a known way are told apart, healthy ones are left alone."""

import json

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from torch import nn

from _support.spoiled import LONG_TAIL, NAMES, digits, network, sgd, train
from collapsekit import UFM, CollapseError, predict
from collapsekit.diagnosis import diagnose
from collapsekit.diagnosis.causes import RULES
from collapsekit.diagnosis.clues import collect, falling
from collapsekit.diagnosis.findings import WORDS
from collapsekit.diagnosis.samples import checked_samples, coinciding
from collapsekit.losses import MSE
from collapsekit.metrics import features_of, measure_features
from collapsekit.recipe import BatchNorm, LastLayer, Optimizer, Penalty, Plain

PRIOR = np.log(LONG_TAIL / LONG_TAIL.sum())


def diagnosed(model, data, **told):
    """What is said of a network; statuses are checked against the logits themselves."""
    inputs, labels, test_inputs, test_labels = data
    found = features_of(model, [(torch.from_numpy(inputs), torch.from_numpy(labels))])
    tested = features_of(model, [(torch.from_numpy(test_inputs), torch.from_numpy(test_labels))])
    measured = measure_features(*found, names=NAMES)
    result = diagnose(measured, samples=found[:2], held_out=tested[:2], **told)
    with torch.no_grad():
        logits = model(torch.from_numpy(inputs)).numpy()
    ranked = np.sort(logits, axis=1)
    leads = ranked[:, -1] - ranked[:, -2]
    right = (logits.argmax(axis=1) == labels) & (leads > 0.01 * np.median(leads))
    for k, one in enumerate(result.classes):
        if (labels == k).any():
            assert one.recall == pytest.approx(right[labels == k].mean(), abs=0.02)
        assert (one.status in ("lost", "never predicted")) == (one.recall == 0)
        assert (one.cause is None) == (one.status == "alive" and one.held_out_recall > 0.3) or one.cause == "data"
    return result


def shown(result):
    """JSON-ready, ranked, and every finding can be read by a person."""
    json.dumps(result.to_dict(), allow_nan=False)
    ranks = [["error", "warning", "note"].index(one.severity) for one in result.findings]
    assert ranks == sorted(ranks)
    for one in result.findings:
        assert one.sentence[0].isupper() or one.sentence[0].isdigit(), one.sentence
        assert one.sentence.endswith("."), one.sentence
        assert "\n" not in one.sentence + one.remedy
        assert set(one.classes) <= set(NAMES)
        if not one.remedy.startswith("collapsekit "):
            compile(one.remedy, "remedy", "exec")  # it can be typed
    assert len(result.verdict) == 3
    return result


@pytest.mark.parametrize("kind", ["plain", "gelu-layernorm-adamw", "batchnorm", "balanced without bias"])
def test_healthy_networks_are_left_alone(kind):
    data = digits([100] * 10 if "balanced" in kind else LONG_TAIL)
    made = {
        "gelu-layernorm-adamw": {"act": nn.GELU, "norm": nn.LayerNorm},
        "batchnorm": {"norm": nn.BatchNorm1d},
        "balanced without bias": {"bias": False},
    }
    model = network(**made.get(kind, {}))
    adamw = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    train(model, *data[:2], adamw if "adamw" in kind else sgd(model))
    result = shown(diagnosed(model, data))
    assert {one.severity for one in result.findings} <= {"note"}
    assert result.cause is None
    assert result.verdict[1] == "Nothing is wrong that can be seen here."


def test_decay_that_is_too_strong_without_any_recipe():
    data, model = digits(LONG_TAIL), network()
    train(model, *data[:2], sgd(model, decay=0.02), epochs=120)
    result = shown(diagnosed(model, data))
    assert result.cause == "regularisation"
    worst = result.findings[0]
    assert worst.code == "decay-too-strong"
    assert "nine" in worst.classes
    assert worst.numbers["implied_decay"] == pytest.approx(0.02, rel=0.05)  # which it was not told
    assert worst.remedy.startswith("weight_decay=0.002 ")


def test_what_the_recipe_itself_gives_up():
    penalties = 0.05, 0.005
    recipe = Penalty(*penalties, batch_size=64)
    data, model = digits(LONG_TAIL), network(bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    train(model, *data[:2], optimizer, epochs=120, penalties=penalties)
    result = shown(diagnosed(model, data, recipe=recipe))
    expected = predict(recipe.problem(LONG_TAIL, LastLayer()))
    lost = {NAMES[k] for k in np.flatnonzero(expected.confidences < 0.5)}
    assert {one.label for one in result.classes if one.cause == "regularisation"} == lost
    assert result.findings[0].code == "regularised-away"
    assert result.findings[0].numbers["headroom"] == pytest.approx(expected.headroom.min())


def test_a_network_that_was_stopped_early():
    data, model = digits(LONG_TAIL), network()
    losses = train(model, *data[:2], sgd(model, rate=0.01), epochs=4)
    for told in ({}, {"history": {"loss": losses}}):
        assert shown(diagnosed(model, data, **told)).cause == "unfinished"


@pytest.mark.parametrize("which", ["hidden", "reversed prior", "wrong sign"])
def test_a_wrong_bias_is_found_and_its_remedy_mends_it(which):
    data, model = digits(LONG_TAIL), network()
    offsets = torch.tensor(-2 * PRIOR, dtype=torch.float32) if which == "wrong sign" else 0.0
    train(model, *data[:2], sgd(model, decay=5e-3 if which == "wrong sign" else 5e-4), offsets=offsets)
    added = {"hidden": -30 * (np.arange(10) == 4), "reversed prior": 3 * PRIOR, "wrong sign": 0 * PRIOR}[which]
    model[1].bias.data += torch.tensor(added, dtype=torch.float32)
    result = shown(diagnosed(model, data))
    assert result.cause == "bias"
    head = model[1]
    exec(result.findings[0].remedy, {"head": head, "torch": torch})
    again = diagnosed(model, data)
    assert all(one.recall > 0.5 for one in again.classes if one.label in result.findings[0].classes)


def test_equal_inputs_under_two_labels():
    inputs, labels, *held_out = digits([100] * 10)
    twins = np.flatnonzero(labels == 3)[:30]
    inputs = np.concatenate([inputs[labels != 9], inputs[twins]])
    labels = np.concatenate([labels[labels != 9], np.full(30, 9)])
    model = network()
    train(model, inputs, labels, sgd(model))
    result = shown(diagnosed(model, (inputs, labels, *held_out)))
    assert (result.cause, result.findings[0].code) == ("data", "coinciding-samples")
    assert result.findings[0].classes == ("nine",)
    assert set(result.suspects["nine"]) == set(np.flatnonzero(labels == 9).tolist())
    assert "three" in result.findings[0].sentence


def test_a_class_that_is_part_of_another():
    inputs, labels, *held_out = digits([100] * 10)
    labels = labels.copy()
    kept = labels != 9
    labels[np.flatnonzero(labels == 3)[:30]] = 9
    model = network()
    train(model, inputs[kept], labels[kept], sgd(model, decay=2e-3), epochs=30)
    result = shown(diagnosed(model, (inputs[kept], labels[kept], *held_out)))
    assert (result.cause, result.findings[0].code) == ("data", "inseparable-classes")
    assert next(one for one in result.classes if one.label == "nine").confused_with == "three"


def test_two_samples_are_learned_by_heart():
    data, model = digits([100] * 8 + [1, 1]), network()
    train(model, *data[:2], sgd(model))
    result = shown(diagnosed(model, data))
    assert (result.cause, result.findings[0].code) == ("data", "too-few-samples")
    assert result.classes[8].cause == "data" or result.classes[9].cause == "data"
    assert "one-sample-class" in {one.code for one in result.findings}


def test_features_that_are_too_narrow():
    data, model = digits([100] * 10), network(1)
    train(model, *data[:2], sgd(model, rate=0.05), epochs=60)
    assert shown(diagnosed(model, data)).cause == "width"


def test_what_the_optimiser_loses():
    """In as few dimensions as classes, with λ_W far above λ_H and no warm-up, Adam loses classes that can live."""
    decay = 0.15
    recipe = Penalty(decay, decay / 900, batch_size=64)
    data, model = digits(LONG_TAIL), network(10, bias=False)
    train(model, *data[:2], torch.optim.Adam(model.parameters(), lr=3e-3), epochs=100, penalties=(decay, decay / 900))
    result = shown(diagnosed(model, data, recipe=recipe))
    assert (result.cause, result.findings[0].code) == ("optimiser", "lost-by-the-optimiser")
    assert result.findings[0].numbers["objective_excess"] > 0.01


def test_dead_units():
    data, model = digits(LONG_TAIL), network(16)
    model[0][2].bias.data.fill_(-100.0)
    result = shown(diagnosed(model, data))
    assert (result.cause, result.findings[0].code) == ("optimiser", "degenerate-features")


def test_every_rule_has_words_and_a_section():
    from pathlib import Path

    page = (Path(__file__).parents[2] / "docs" / "diagnose.md").read_text(encoding="utf-8")
    assert {code for _, _, code in RULES} | {"unknown-cause"} == set(WORDS)
    for code in WORDS:
        assert f"\n## {code}\n" in page


def square(labels=(0, 0, 1, 1, 2, 2)):
    features = np.eye(3)[list(labels)]
    return features, np.array(labels), measure_features(features, labels, 5 * np.eye(3))


def test_a_measurement_alone_is_enough():
    *_, measured = square()
    result = diagnose(measured)
    assert repr(result) == ("Diagnosis(All 3 classes are alive on their training samples; cause: none; 0 findings)")
    assert result.to_dict()["classes"][0] == {
        "label": "0",
        "count": 2,
        "status": "alive",
        "cause": None,
        "recall": 1.0,
        "confidence": pytest.approx(result.classes[0].confidence),
        "margin": 5.0,
        "held_out_recall": None,
        "confused_with": None,
    }


def test_notes_on_the_recipe():
    features, labels, measured = square()
    told = {"optimizer": Optimizer("adamw", 1e-3, steps=10), "recipe": Plain(0.01)}
    assert {one.code for one in diagnose(measured, **told).findings} == {"decoupled-decay", "decay-has-not-acted"}
    excluded = diagnose(measured, recipe=BatchNorm(0.01, "none"))
    assert [one.code for one in excluded.findings] == ["norm-layers-excluded"]
    shifted = measure_features(features - 0.5, labels, 5 * np.eye(3))
    assert "features-not-nonnegative" in {one.code for one in diagnose(shifted, recipe=Penalty(1e-3, 1e-5)).findings}


def test_a_class_without_samples_and_one_that_nothing_explains():
    rng = np.random.default_rng(0)
    features, labels = np.abs(rng.normal(size=(30, 6))), np.arange(30) % 3
    result = diagnose(measure_features(features, labels, rng.normal(size=(4, 6))))
    assert {one.code for one in result.findings} == {"no-samples", "unknown-cause"}
    assert result.classes[3].status == "unseen"
    assert result.classes[3].cause is None


@pytest.mark.parametrize(
    ("told", "names"),
    [
        ({"samples": 3}, "samples=3"),
        ({"samples": (np.eye(3), [0, 1, 2])}, "samples"),
        ({"held_out": 3}, "held_out=3"),
        ({"held_out": (np.eye(3), [0, 1, 7])}, "held_out"),
        ({"recipe": 3}, "recipe=3"),
        ({"optimizer": "adam"}, "optimizer='adam'"),
        ({"problem": UFM([1, 2], 0.1, 0.1)}, "problem"),
        ({"history": {"loss": "abc"}}, "history"),
        ({"history": {"loss": [[1.0]]}}, "history"),
        ({"history": {"recalls": [[1.0]]}}, "history"),
    ],
)
def test_misuse_is_named(told, names):
    *_, measured = square()
    with pytest.raises(CollapseError, match=f"^{names}") as error:
        diagnose(measured, **told)
    assert "\n" not in str(error.value)


def test_without_a_head_nothing_is_predicted():
    with pytest.raises(CollapseError, match="without a head"):
        diagnose(measure_features(np.eye(3), [0, 1, 2]))


def test_features_of_gives_what_the_head_gets():
    data, model = digits([5] * 10), network()
    inputs, labels = (torch.from_numpy(values) for values in data[:2])
    found = features_of(model, list(zip(inputs.split(7), labels.split(7), strict=True)))
    with torch.no_grad():
        torch.testing.assert_close(found.features @ found.weight.T + found.bias, model(inputs))
    assert torch.equal(found.labels, labels)
    with pytest.raises(CollapseError, match="no batches"):
        features_of(model, [])


@pytest.mark.parametrize("change", ["order", "scale", "nan", "width"])
def test_samples_that_were_not_measured_are_refused(change):
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    features = 3 * np.eye(4)[labels] + rng.normal(size=(60, 4))
    measured = measure_features(features, labels, np.eye(3, 4))
    others = {"order": features[::-1], "scale": 7 * features, "nan": np.nan * features, "width": features[:, :2]}
    with pytest.raises(CollapseError, match=r"^samples: (the mean of class 0|features of the shape \(60, 2\))"):
        diagnose(measured, samples=(others[change], labels))
    diagnose(measured, samples=(features, labels))


def test_held_out_of_another_head_or_other_names_is_refused():
    features, labels, measured = square()
    diagnose(measured, held_out=measured)
    with pytest.raises(CollapseError, match=r"^held_out: measured with another head"):
        diagnose(measured, held_out=measure_features(features, labels, -5 * np.eye(3)))
    with pytest.raises(CollapseError, match=r"^held_out: measured with another head"):
        diagnose(measured, held_out=measure_features(features, labels, 5 * np.eye(3), np.zeros(3)))
    named = [measure_features(features, labels, 5 * np.eye(3), names=names) for names in (list("abc"), list("acb"))]
    with pytest.raises(CollapseError, match=r"^held_out: class 1 is 'c' against 'b'"):
        diagnose(named[0], held_out=named[1])


@pytest.mark.parametrize("kind", ["reversed", "two swapped", "counted from 1"])
def test_labels_in_another_order_than_the_rows(kind):
    rng = np.random.default_rng(1)
    labels = np.repeat(np.arange(8), 20)
    centres = rng.normal(size=(8, 30))
    features = centres[labels] + 0.1 * rng.normal(size=(160, 30))
    order = {"reversed": np.arange(8)[::-1], "two swapped": np.array([0, 1, 5, 3, 4, 2, 6, 7])}.get(kind)
    kept = labels < 7 if order is None else labels >= 0
    given = features[kept], (labels + 1 if order is None else order[labels])[kept]
    result = diagnose(measure_features(*given, centres), samples=given)
    assert result.findings[0].code == "row-order"
    assert set(result.findings[0].classes) == {one.label for one in result.classes if one.recall == 0}
    assert ("counted from 1" in result.findings[0].sentence) == (kind == "counted from 1")
    assert result.verdict[1].startswith("Likeliest cause: Class")
    right = diagnose(measure_features(features, labels, centres), samples=(features, labels))
    assert not right.findings


def clouds(size, count, dim, spread, seed=0):
    """Normal clouds around random centres."""
    rng = np.random.default_rng(seed)
    centres, labels = spread * rng.normal(size=(size, dim)), np.repeat(np.arange(size), count)
    return centres, centres[labels] + rng.normal(size=(len(labels), dim)), labels


@pytest.mark.parametrize("history", [None, {"loss": [2.0, *[1.2] * 30]}])
def test_the_best_rule_for_classes_that_overlap_is_not_unfinished(history):
    centres, features, labels = clouds(6, 300, 10, 0.4)
    best = measure_features(features, labels, centres, -(centres**2).sum(axis=1) / 2)  # Bayes' own logits
    result = diagnose(best, samples=(features, labels), history=history)
    assert any(one.status == "weak" for one in result.classes)
    assert (result.cause, result.findings[0].code) == ("data", "inseparable-classes")


def test_a_block_of_wrong_labels_is_data_and_its_samples_are_named():
    from sklearn.linear_model import LogisticRegression

    _, features, truth = clouds(8, 100, 12, 1.6)
    labels = truth.copy()
    wrong = np.flatnonzero(truth == 5)[:65]
    labels[wrong] = 7
    fitted = LogisticRegression(C=10.0, max_iter=5000).fit(features, labels)
    measured = measure_features(features, labels, fitted.coef_, fitted.intercept_)
    result = diagnose(measured, samples=(features, labels))
    assert result.cause == "data"
    assert result.classes[5].cause == "data"
    assert len(set(result.suspects["7"]) & set(wrong.tolist())) > 60
    assert "'7'" in result.findings[0].remedy


def test_a_head_without_a_bias_is_not_said_to_have_a_wrong_one():
    features = np.column_stack([3 * np.eye(3)[np.repeat([0, 1, 2], 20)], np.ones(60)])
    weight, labels = np.column_stack([2 * np.eye(3), [0, 0, -9]]), np.repeat([0, 1, 2], 20)
    assert diagnose(measure_features(features, labels, weight), samples=(features, labels)).cause != "bias"


def test_a_recipe_that_is_not_this_networks():
    data, model = digits(LONG_TAIL), network(bias=False)
    train(model, *data[:2], sgd(model), epochs=100)
    result = shown(diagnosed(model, data, recipe=Penalty(0.5, 0.5, batch_size=64)))
    assert result.prediction is None
    assert [one.code for one in result.findings if one.severity != "note"] == ["other-recipe"]
    assert result.cause is None


def test_losses_that_are_not_numbers_are_divergence_and_strange_keys_are_named():
    features, labels, measured = square()
    lost = measure_features(features, labels, [[5, 0, 0], [0, 0, 5], [0, 0, 9]])
    assert diagnose(lost, history={"loss": [1.0, np.inf, np.nan]}).findings[0].code == "unstable-training"
    with pytest.raises(CollapseError, match=r"^history: 'losses' is none of loss, recalls, steps"):
        diagnose(measured, history={"losses": [1.0]})
    with pytest.raises(CollapseError, match=r"^history="):
        diagnose(measured, history=[1.0])
    with pytest.raises(CollapseError, match=r"^history: steps='x'"):
        diagnose(measured, recipe=Plain(0.1), optimizer=Optimizer("sgd", 0.1), history={"steps": "x"})
    with pytest.raises(CollapseError, match=r"^last='x'"):
        diagnose(measured, recipe=Penalty(0.1, 0.1), last="x")


def test_the_worst_classes_are_named_first_and_the_right_ones_are_called_right():
    centres, features, labels = clouds(9, 30, 20, 1.0)
    weight = 0.02 * centres
    weight[8], weight[3] = -weight[8], 0.0
    result = diagnose(measure_features(features, labels, weight), samples=(features, labels))
    first = result.findings[0]
    recalls = {one.label: one.recall for one in result.classes}
    assert [recalls[name] for name in first.classes] == sorted(recalls[name] for name in first.classes)
    assert "or right, but with low confidence" in first.sentence
    sure = diagnose(measure_features(features, labels, 0.02 * centres))
    assert {one.status for one in sure.classes} == {"weak"}
    assert "are right, but with low confidence" in sure.findings[0].sentence
    assert "hardly" not in sure.findings[0].sentence


def test_what_held_out_samples_say_of_a_class_without_training_samples():
    features, labels, measured = square()
    weight = np.vstack([5 * np.eye(3), np.zeros(3)])
    measured = measure_features(features, labels, weight)
    held_out = np.vstack([features, features[:1]]), np.append(labels, 3)
    sentence = diagnose(measured, held_out=held_out).findings[0].sentence
    assert sentence == "Class '3' has no training sample here; on held-out samples it is never right (named '0')."
    result = diagnose(measured)
    assert result.verdict[1:] == (
        "Class '3' has no training sample here: nothing can be said of it.",
        "First: give these classes training samples.",
    )


def test_a_loss_that_is_a_word_is_refused():
    with pytest.raises(CollapseError, match=r"^loss='mse'"):
        measure_features(np.eye(2), [0, 1], np.eye(2), loss="mse")


def test_no_one_is_told_to_merge_classes_or_that_there_is_nothing_to_do():
    from pathlib import Path

    root = Path(__file__).parents[2]
    for path in [*(root / "src" / "collapsekit" / "diagnosis").glob("*.py"), root / "docs" / "diagnose.md"]:
        assert "merge" not in path.read_text(encoding="utf-8")
        assert "# nothing to do" not in path.read_text(encoding="utf-8")


def test_samples_that_coincide_near_the_origin_are_found():
    """A class whose features are short beside those of others: each has a twin under another label."""
    rng = np.random.default_rng(0)
    features = np.concatenate([rng.uniform(2, 4, (60, 6)), 0.01 * rng.uniform(2, 4, (40, 6))])
    labels = np.repeat([0, 1], [60, 40])
    features[20:60] = features[60:]
    share, partner = coinciding(
        checked_samples((features, labels), measure_features(features, labels, np.eye(2, 6))), 2
    )
    assert_array_equal(share, [40 / 60, 1.0])
    assert_array_equal(partner, [1, 0])


def test_features_of_which_hardly_any_varies_are_the_optimisers():
    x = np.zeros((90, 8))
    x[:, 3] = np.repeat([1.0, 2.0, 3.0], 30)
    labels = np.repeat([0, 1, 2], 30)
    head = np.zeros((3, 8))
    head[:, 3] = [-2.0, 0.0, 1.0]
    told = {"samples": (x, labels), "history": {"loss": [1.1, 0.6, 0.6, 0.6, 0.6, 0.6]}}
    found = diagnose(measure_features(x, labels, head), **told)
    assert found.cause == "optimiser"
    assert found.findings[0].code == "degenerate-features"
    assert "only 1 of 8 features still varies" in found.findings[0].sentence


def test_a_loss_that_jumps_up_and_down_to_the_end_is_seen():
    quiet, loud = [2.0, 1.5, 1.2, 1.1, 1.05, 1.0], [2.0, 1.5, 1.2, 1.6, 1.1, 1.4, 1.0]
    assert falling({"loss": quiet})[2] == 0.0
    assert falling({"loss": loud})[2] == pytest.approx(0.3)  # from the middle on; the lowest is the last


def test_few_held_out_samples_put_no_label_under_suspicion():
    """Three right of five are compatible with a good recall, 120 of 200 are not."""
    rng = np.random.default_rng(0)
    centres, labels = 4 * np.eye(3), np.repeat([0, 1, 2], 40)
    x = centres[labels] + 0.1 * rng.normal(size=(120, 3))
    x[:12] = [1.2, 3.0, 0.0]  # nearer to the mean of class 1, yet named rightly
    measured = measure_features(x, labels, 8 * np.eye(3), [20.0, 0.0, 0.0])
    held, tested = centres[[0, 0, 0, 1, 1, *[1] * 5, *[2] * 5]], np.repeat([0, 1, 2], 5)

    def alarms(repeats):
        told = np.tile(held, (repeats, 1)), np.tile(tested, repeats)
        found = diagnose(measured, samples=(x, labels), held_out=told)
        return [one.severity for one in found.findings if one.code == "suspicious-labels"]

    assert alarms(1) == []
    assert alarms(40) == ["warning"]


def test_a_class_below_resolution_does_not_make_all_features_the_same():
    """Features of class 2 stored far from the origin: their spread is not known, those of the others are apart."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], 30)
    x = (8 * np.eye(3)[labels] + rng.normal(size=(90, 3))).astype(np.float32)
    x[60:] = np.float32(3e4) + np.float32(1e-4) * rng.normal(size=(30, 3)).astype(np.float32)
    measured = measure_features(x, labels, np.eye(3), [0.0, 0.0, -100.0])
    assert np.isnan(measured.per_class()["within"][2])
    clues = collect(measured, None, None, {}, np.nan, np.array([], dtype=int))
    assert clues.spread > 0.1


def test_a_wrong_bias_under_squared_error_is_found_and_its_remedy_mends_it():
    """The best bias makes the mean of each output its class's share; one turned over by more than a target hides."""
    _, x, labels = clouds(5, 40, 12, 3.0)
    targets, inputs = np.eye(5)[labels], np.column_stack([x, np.ones(len(x))])
    *weight, bias = np.linalg.lstsq(inputs, targets, rcond=None)[0]
    weight, wrong = np.array(weight).T, bias - [0.0, 0.0, 0.3, 1.5, 1.5]

    def said(given):
        return diagnose(measure_features(x, labels, weight, given, loss=MSE()), samples=(x, labels))

    assert said(bias).cause is None
    found = said(wrong)
    assert (found.cause, set(found.findings[0].classes)) == ("bias", {"3", "4"})
    assert found.findings[0].numbers["share_of_output"] == pytest.approx(0.2 - 1.5)  # targets have a mean of one fifth
    head = nn.Linear(12, 5)
    head.bias.data = torch.tensor(wrong)
    exec(found.findings[0].remedy, {"head": head, "torch": torch})
    assert said(head.bias.data.numpy()).cause is None


def test_classes_whose_inputs_are_all_equal_coincide_where_no_other_has_collapsed():
    """As blank images under two labels; where other classes are points, too, it may be that all have collapsed."""
    centres, x, labels = clouds(5, 20, 8, 6.0)
    counts = np.repeat([20, 20, 20, 20, 10], 20) > np.tile(np.arange(20), 5)
    x, labels = x[counts], labels[counts]
    x[labels >= 3] = centres[3]
    weight = np.vstack([centres[:4], 0.5 * centres[3]])
    measured = measure_features(x, labels, weight)
    found = diagnose(measured, samples=(x, labels))
    assert (found.cause, found.findings[0].code) == ("data", "coinciding-samples")
    assert found.findings[0].classes == ("4",)
    x[labels == 0] = centres[0]
    share, _ = coinciding(checked_samples((x, labels), measure_features(x, labels, weight)), 5)
    assert_array_equal(share, 0.0)


@pytest.mark.parametrize("history", [None, {"loss": [2.0, 0.5, 0.1, 0.01, 0.006, 13.0, 41.0]}])
def test_equal_features_that_still_make_logits_are_no_decays(history):
    labels = np.repeat(np.arange(6), 20)
    x, weight = np.tile([2.0, 3.0, 1.0, 3.0], (120, 1)), 9 * np.vstack([np.eye(4), -np.eye(2, 4)])
    found = diagnose(measure_features(x, labels, weight), samples=(x, labels), history=history)
    assert found.cause == "optimiser"
    assert "every feature is the same for every sample" in found.findings[0].sentence
    gone = measure_features(1e-3 * x, labels, 1e-3 * weight)
    assert diagnose(gone, samples=(1e-3 * x, labels), history=history).cause == "regularisation"


def test_two_units_behind_a_layer_norm_are_too_narrow():
    labels = np.repeat(np.arange(6), 20)
    x, weight = np.tile([0.8, -0.8], (120, 1)), np.linspace(-0.5, 0.5, 12).reshape(6, 2)
    weight[:, 1] *= -1
    assert diagnose(measure_features(x, labels, weight), samples=(x, labels)).cause == "width"


@pytest.mark.parametrize(("spread", "cause"), [(0.2, "optimiser"), (30.0, "unfinished")])
def test_dead_units_do_not_come_back_however_long_training_goes_on(spread, cause):
    """One of eight units varies, and the head is far from rest: only if that unit tells classes apart they may yet."""
    rng = np.random.default_rng(0)
    labels, x = np.repeat([0, 1, 2, 3, 4], 30), np.zeros((150, 8))
    x[:, 3] = spread * labels + rng.normal(size=150) + 200
    head = np.zeros((5, 8))
    head[:, 3] = [0.0, -0.01, 0.0, -0.02, -0.01]
    head[:, 0] = rng.normal(size=5)
    assert diagnose(measure_features(x, labels, head), samples=(x, labels)).cause == cause


@pytest.mark.parametrize(
    ("length", "equal_norms", "cause"),
    [(20.0, False, "optimiser"), (0.0, False, "unfinished"), (20.0, True, "unfinished")],
)
def test_a_head_that_has_been_far_has_not_only_begun(length, equal_norms, cause):
    """Gradients leave the sum of rows as it was at the start; rows set to one norm at random have a sum as long."""
    rng = np.random.default_rng(1)  # not that of the clouds' centres
    _, x, labels = clouds(6, 40, 24, 0.8)
    x, start, moved = 1e-3 * x, rng.normal(size=(6, 24)) / np.sqrt(72), rng.normal(size=(6, 24)) / np.sqrt(24)
    weight = length * moved if equal_norms else start + length * (moved - moved.mean(axis=0))
    found = diagnose(measure_features(x, labels, weight), samples=(x, labels))
    assert found.cause == cause
    assert ("times as long as at their start" in found.findings[0].sentence) == (cause == "optimiser")
