"""Findings on constructed measurements: every condition, status and sentence, just inside and just outside its band.

A measurement is the exact frame with one thing changed, so that nothing else can decide. Runs at smoke size then show
that what is trained, stored and printed is what the findings are about.
"""

import json
import math
from dataclasses import asdict, replace

import numpy as np
import pytest
import safetensors.torch
import torch
from numpy.testing import assert_allclose, assert_array_equal

from _support.tolerances import EXACT, FLOAT32
from collapsekit import UFM, CollapseError, predict
from collapsekit.cli import main
from collapsekit.diagnosis import compare
from collapsekit.metrics import measure_features
from collapsekit.training import TrainConfig, compare_run, load_run, load_split, train
from collapsekit.training.models import mlp

COUNTS = [500, 300, 40, 10]
FRAME = predict(UFM(COUNTS, lambda_w=3e-2, lambda_h=1e-3, names=[*"abcd"]))  # d collapses, and only d
DEAD = predict(UFM([30, 20, 10], 1.0, 1.0))  # everything collapses
WEIGHTS, FEATURES = FRAME.weights_and_features(dim=5)
CONDITIONS = ["misjudged_classes", "largest_deviation", "objective_excess", "largest_cosine"]


def measured(frame, weights, features, **options):
    labels = np.repeat(np.arange(len(features)), frame.problem.counts.astype(int))
    return measure_features(features[labels], labels, weights, **options)


EXACTLY = measured(FRAME, WEIGHTS, FEATURES)


def found(features=FEATURES, weights=WEIGHTS, **values):
    """Compare the frame with other features or weights; confidences and losses stay exact unless they are given."""
    outputs = {"confidences": EXACTLY.confidences, "losses": EXACTLY.losses} | values
    return compare(FRAME, replace(measured(FRAME, weights, features), **outputs))


def changed(array, k, value):
    copy = array.copy()
    copy[k] = value
    return copy


def failed(comparison):
    return [condition.name for condition in comparison.conditions if not condition.ok]


def statuses(comparison):
    return [finding.status for finding in comparison.classes]


def agreements(comparison):
    return [finding.agreement for finding in comparison.classes]


# What "reached" takes


def test_the_exact_frame_meets_every_condition():
    comparison = compare(FRAME, EXACTLY)
    assert [condition.name for condition in comparison.conditions] == CONDITIONS
    assert failed(comparison) == []
    assert comparison.reached
    assert comparison.same_classes_collapsed
    assert_allclose(comparison.objective_excess, 0, atol=EXACT)
    assert_allclose([c.margin for c in comparison.classes], FRAME.margins, rtol=0, atol=EXACT)


@pytest.mark.parametrize(("offset", "reached"), [(0.0099, True), (-0.0099, True), (0.0101, False), (-0.0101, False)])
def test_confidences_decide(offset, reached):
    comparison = found(confidences=changed(EXACTLY.confidences, 1, FRAME.confidences[1] + offset))
    assert failed(comparison) == ([] if reached else ["largest_deviation"])
    assert comparison.reached is reached
    assert_allclose(comparison.largest_deviation, abs(offset), rtol=EXACT)


@pytest.mark.parametrize(
    ("excess", "reached"),
    [(0.0099, True), (0.0101, False), (-0.00009, True), (-0.00011, False), (-0.3, False), (1.0, False)],
)
def test_the_objective_decides_on_both_sides(excess, reached):
    comparison = found(losses=EXACTLY.losses + excess * FRAME.objective)
    assert failed(comparison) == ([] if reached else ["objective_excess"])
    assert comparison.reached is reached
    assert_allclose(comparison.objective_excess, excess, rtol=0, atol=EXACT)
    below = "BELOW the predicted optimum, so the network was trained on another problem" in comparison.verdict
    assert below is (not reached and excess < 0)


@pytest.mark.parametrize(("cosine", "reached"), [(0.049, True), (-0.049, True), (0.051, False), (-0.051, False)])
def test_orthogonality_decides(cosine, reached):
    axes = np.eye(4, 5)  # those of the frame's own features
    tilted = np.sqrt(FRAME.feature_sqnorms[1]) * (np.sqrt(1 - cosine**2) * axes[1] + cosine * axes[0])
    comparison = found(changed(FEATURES, 1, tilted))
    assert_allclose(comparison.largest_cosine, abs(cosine), rtol=EXACT)
    assert_allclose(comparison.mean_cosine, abs(cosine) / 3, rtol=EXACT)
    assert failed(comparison) == ([] if reached else ["largest_cosine"])
    assert comparison.reached is reached
    assert ("not orthogonal (largest |cosine| 0.05)" in comparison.verdict) is not reached


def test_a_class_against_the_prediction_decides():
    """d is predicted, although confidences and the objective do not tell."""
    recalls, confidences = changed(EXACTLY.recalls, 3, 1.0), changed(EXACTLY.confidences, 3, 0.2551)
    comparison = found(recalls=recalls, confidences=confidences)
    assert failed(comparison) == ["misjudged_classes"]
    assert not comparison.reached
    assert comparison.same_classes_collapsed is False
    assert "against the prediction: d" in comparison.verdict


def test_cosines_are_those_of_the_classes_that_survive_in_theory():
    towards = changed(FEATURES, 3, 0.3 * FEATURES[0])  # alive against the prediction, and parallel to a
    assert_allclose(found(towards).largest_cosine, 0, atol=EXACT)
    assert compare(None, measured(FRAME, WEIGHTS, towards)).largest_cosine > 0.99


# Statuses


def remnant(k, share):
    """A mean of class k along an axis of its own, with this share of the largest squared norm."""
    return np.sqrt(share * FRAME.feature_sqnorms.max()) * np.eye(4, 5)[k]


def test_words_of_the_exact_frame():
    comparison = compare(FRAME, EXACTLY)
    assert statuses(comparison) == ["alive", "alive", "weak", "lost"]
    assert [finding.fate for finding in comparison.classes] == ["survives", "survives", "nearly lost", "collapses"]
    assert agreements(comparison) == ["as predicted"] * 4


@pytest.mark.parametrize(
    ("share", "offset", "recall", "status"),
    [
        (0.0099, 0.0051, 0, "lost"),
        (0.0101, 0.0049, 0, "lost"),
        (0.0101, -0.2, 0, "lost"),
        (0.0101, 0.0051, 0, "never predicted"),
        (0.0099, 0.0049, 0.01, "weak"),
        (1.0, 0.26, 0.49, "weak"),
        (1.0, 0.24, 0.51, "weak"),
        (1.0, 0.26, 0.51, "alive"),
    ],
)
def test_status_is_decided_by_recall_then_feature_and_confidence(share, offset, recall, status):
    confidences = changed(EXACTLY.confidences, 2, 0.25 + offset)
    recalls = changed(EXACTLY.recalls, 2, recall)
    comparison = found(changed(FEATURES, 2, remnant(2, share)), confidences=confidences, recalls=recalls)
    assert statuses(comparison)[2] == status
    gone = status in ("lost", "never predicted")
    assert (agreements(comparison)[2] == "against the prediction") is gone


@pytest.mark.parametrize(("offset", "agreement"), [(0.0049, "as predicted"), (0.0051, "against the prediction")])
def test_a_class_that_collapses_has_no_hit_or_the_predicted_confidence(offset, agreement):
    for sign in (1, -1):
        confidences = changed(EXACTLY.confidences, 3, 0.25 + sign * offset)
        assert agreements(found(confidences=confidences, recalls=np.ones(4)))[3] == agreement
    assert agreements(found(confidences=changed(EXACTLY.confidences, 3, 0.1)))[3] == "as predicted"


@pytest.mark.parametrize(("share", "squeezed"), [(0.901, False), (0.899, True), (0.3, True), (2, False)])
def test_squeezed_is_a_margin_below_nine_tenths_of_the_predicted_one(share, squeezed):
    comparison = found(changed(FEATURES, 1, share * FEATURES[1]))
    assert agreements(comparison) == ["as predicted", "squeezed" if squeezed else "as predicted", *["as predicted"] * 2]
    assert_allclose(comparison.classes[1].margin, share * FRAME.margins[1], rtol=EXACT)


def test_a_class_without_samples_is_unseen():
    comparison = compare(None, measure_features(FEATURES[[0, 1, 3]], [0, 1, 3], WEIGHTS), outside="of a test")
    assert statuses(comparison) == ["alive", "alive", "unseen", "lost"]
    assert math.isnan(comparison.classes[2].measured_confidence)
    json.dumps(comparison.to_dict(), allow_nan=False)


# Where everything collapses, and near it


@pytest.mark.parametrize("size", [0.0, 1e-9, 1e-3])
def test_remnants_of_a_complete_collapse_are_nothing(size):
    """Their norms differ widely and their cosines are 1, but all of it is rounding beside a unit of margin."""
    weights, features = size * np.outer([1.0, 2.0, -3.0], [1, 1]), size * np.outer([1, 0.5, 0.01], [1, 1])
    comparison = compare(DEAD, measured(DEAD, weights, features))
    assert agreements(comparison) == ["as predicted"] * 3
    assert comparison.reached
    assert math.isnan(comparison.largest_cosine)
    assert comparison.feature_norm_error == 0
    units = np.sqrt(np.array([30, 20, 10]) * 3 / 2)  # of ‖w_k‖², for a margin of 1
    expected = (2 * size**2 * np.array([1, 4, 9]) / units).max()
    assert_allclose(comparison.classifier_norm_error, expected, rtol=EXACT)
    assert statuses(comparison) == (["lost"] * 3 if size == 0 else ["lost", "weak", "lost"])
    assert "The network reached the predicted geometry" in comparison.verdict


def test_a_network_that_died_against_the_prediction_is_not_merely_squeezed():
    comparison = compare(FRAME, measured(FRAME, 1e-9 * WEIGHTS, 1e-9 * FEATURES))
    assert statuses(comparison) == ["weak"] * 3 + ["lost"]  # hits, of margins of a billionth
    assert agreements(comparison) == ["squeezed"] * 3 + ["as predicted"]
    comparison = compare(FRAME, measured(FRAME, 0 * WEIGHTS, 0 * FEATURES))
    assert agreements(comparison) == ["against the prediction"] * 3 + ["as predicted"]
    assert "against the prediction: a, b, c" in comparison.verdict


def test_survivors_near_the_threshold_are_as_predicted_although_all_are_at_chance():
    critical = (2 / 3) * 10 / 60**2  # of the smallest class
    frame = predict(UFM([20, 20, 20], 1.0, critical * 2 * (1 - 1e-3)))
    assert 0 < frame.margins.max() < 0.01
    comparison = compare(frame, measured(frame, *frame.weights_and_features()))
    assert statuses(comparison) == ["weak"] * 3
    assert agreements(comparison) == ["as predicted"] * 3
    assert comparison.reached


# Numbers beside the conditions


def test_norm_errors_are_the_largest_of_their_kind():
    comparison = found(changed(FEATURES, 2, FEATURES[2] * np.sqrt(1.05)))
    assert_allclose(comparison.feature_norm_error, 0.05, rtol=EXACT)
    assert_allclose(comparison.classifier_norm_error, 0, atol=EXACT)
    comparison = found(weights=changed(WEIGHTS, 3, WEIGHTS[3] * np.sqrt(0.8)))
    assert_allclose(comparison.classifier_norm_error, 0.2, rtol=EXACT)
    assert_allclose(comparison.feature_norm_error, 0, atol=EXACT)
    assert_allclose(found(changed(FEATURES, 3, remnant(3, 0.5))).feature_norm_error, 0, atol=EXACT)


def test_objectives_are_those_of_the_problem():
    comparison = compare(FRAME, measured(FRAME, WEIGHTS, 0.5 * FEATURES))
    assert_allclose(comparison.objective, FRAME.problem.objective(WEIGHTS, 0.5 * FEATURES), rtol=EXACT)
    assert comparison.predicted_objective == FRAME.objective
    assert_allclose(comparison.objective_excess, comparison.objective / FRAME.objective - 1, rtol=EXACT)


# Sentences and tables


LOST = (
    "Lost (never predicted, at chance or without a feature of its own): d; "
    "weak (recall or confidence below one half): c. "
)


def test_verdicts():
    assert compare(FRAME, EXACTLY).verdict == (
        f"{LOST}The network reached the predicted geometry: class confidences within 0.0001 of the prediction."
    )
    both = {"losses": EXACTLY.losses + 0.1, "confidences": changed(EXACTLY.confidences, 0, FRAME.confidences[0] - 0.1)}
    shrunk = found(changed(FEATURES, 2, 0.5 * FEATURES[2]), **both)
    assert shrunk.verdict == (
        f"{LOST}The network has NOT reached the predicted geometry: class confidences within 0.1000 of the prediction, "
        f"objective {shrunk.objective_excess:.2%} above the predicted optimum; squeezed: c."
    )
    below = found(losses=EXACTLY.losses - 0.25 * FRAME.objective)
    assert below.verdict == (
        f"{LOST}The network has NOT reached the predicted geometry: class confidences within 0.0001 of the prediction, "
        "objective 25.00% BELOW the predicted optimum, so the network was trained on another problem; check penalties, "
        "loss and ReLU."
    )
    never = found(recalls=changed(EXACTLY.recalls, 1, 0.0))
    assert never.verdict.startswith(
        "The network never predicts b, even on the samples it was trained on; lost, too (never predicted, at chance or "
        "without a feature of its own): d; weak (recall or confidence below one half): c. "
    )
    alive = compare(None, measured(FRAME, 3 * np.eye(4), 3 * np.eye(4)))
    assert alive.verdict.startswith("Every class is alive on its training samples. No prediction: ")


def test_a_verdict_lists_eight_classes_at_most():
    frame = predict(UFM([100] + [1] * 12, 1e-2, 1e-2))
    comparison = compare(frame, measured(frame, *frame.weights_and_features()))
    assert ": 1, 2, 3, 4, 5, 6, 7, 8 and 4 more. " in comparison.verdict


@pytest.mark.parametrize(
    ("features", "middle"),
    [
        (
            FEATURES,
            "98.8% of its training samples and its class means are orthogonal (mean |cosine| of class means 0.00",
        ),
        (FEATURES + 1, "but has NOT reached the orthogonal frame (mean |cosine| of class means 0.95"),
        (changed(0 * FEATURES, 0, FEATURES[0]), "fewer than two class means are left to form a frame."),
    ],
)
def test_without_a_prediction_the_verdict_says_why_and_how_far(features, middle):
    comparison = compare(None, measured(FRAME, WEIGHTS, features), outside="the reason")
    assert "No prediction: the reason. The network fits " in comparison.verdict
    assert middle in comparison.verdict
    assert "nan" not in comparison.verdict
    assert (comparison.reached, comparison.same_classes_collapsed, comparison.conditions) == (False, None, ())
    assert math.isnan(comparison.largest_deviation)


def test_to_dict_is_json_and_states_each_condition():
    content = json.loads(json.dumps(found(losses=EXACTLY.losses + 1).to_dict(), allow_nan=False))
    assert {
        "schema",
        "classes",
        "objective",
        "predicted_objective",
        "objective_excess",
        "largest_deviation",
        "feature_norm_error",
        "classifier_norm_error",
        "largest_cosine",
        "mean_cosine",
        "train_accuracy",
        "outside",
        "same_classes_collapsed",
        "verdict",
    } <= set(content)
    assert {c["name"]: c["ok"] for c in content["conditions"]} == {
        name: name != "objective_excess" for name in CONDITIONS
    }
    assert content["reached"] is False
    assert content["conditions"][1]["band"] == [0, 0.01]


# Misuse


def test_names_in_another_order_are_refused():
    for names in (None, [*"abcd"]):
        assert compare(FRAME, measured(FRAME, WEIGHTS, FEATURES, names=names)).classes[0].label == "a"
    with pytest.raises(CollapseError, match="prediction: class 0 is 'a' against 'd'; give both the same classes"):
        compare(FRAME, measured(FRAME, WEIGHTS, FEATURES, names=[*"dcba"]))


def test_misuse():
    with pytest.raises(CollapseError, match="without a head"):
        compare(FRAME, measured(FRAME, None, FEATURES))
    with pytest.raises(CollapseError, match="prediction: 4 classes, measured 3"):
        compare(FRAME, measured(DEAD, np.eye(3), np.eye(3)))
    with pytest.raises(CollapseError, match="its counts are not those measured"):
        compare(predict(UFM([500, 300, 40, 11], 3e-2, 1e-3)), EXACTLY)
    with pytest.raises(CollapseError, match=r"test_recalls: shape \(3,\); expected \(4,\)"):
        compare(FRAME, EXACTLY, test_recalls=[1.0, 1.0, 1.0])


# Runs, and what the command prints of them

SMOKE = TrainConfig(epochs=30, hidden=(8,), feature_dim=12)


@pytest.mark.parametrize("recipe", ["penalty", "batchnorm", "plain"])
def test_compare_run_lays_the_run_beside_its_own_prediction(tmp_path, recipe):
    run = train(replace(SMOKE, recipe=recipe), out=tmp_path)
    comparison = compare_run(run)
    again = compare(run.prediction, run.measured, test_recalls=run.test_recalls, outside=run.outside or "")
    assert comparison.to_dict() == again.to_dict()
    assert_array_equal([c.test_recall for c in comparison.classes], run.test_recalls)
    assert_array_equal([c.measured_confidence for c in comparison.classes], run.measured.confidences)
    if recipe == "plain":
        assert f"No prediction: {run.outside}. " in comparison.verdict
    else:
        assert comparison.predicted_objective == predict(run.problem).objective
        assert_array_equal([c.predicted_margin for c in comparison.classes], run.prediction.margins)


@pytest.fixture
def swapped(tmp_path):
    """Two blobs, and held-out samples under the other's label: recall 1 in training is recall 0 on them."""
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1], [30, 20])
    X = np.where(y == 0, -1.0, 1.0)[:, None] + 0.1 * rng.normal(size=(50, 4))
    np.savez(tmp_path / "swapped.npz", X=X, y=y, Xt=X[10:40], yt=1 - y[10:40])
    return tmp_path / "swapped.npz"


def test_train_json_prints_what_the_library_finds(swapped, tmp_path, capsys):
    arguments = ["--data", str(swapped), "--epochs", "150", "--hidden", "8", "--feature-dim", "8"]
    assert main(["train", *arguments, "--penalty-scale", "0.01", "--out", str(tmp_path / "runs"), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    run = load_run(printed["run"])
    assert_array_equal(run.measured.recalls, [1, 1])
    assert [c["test_recall"] for c in printed["classes"]] == [0, 0]
    assert printed["objective"] == run.measured.objective(run.problem)
    assert printed["predicted_objective"] == predict(run.problem).objective
    assert 0 < printed["objective_excess"] == printed["objective"] / printed["predicted_objective"] - 1
    margins = run.measured.geometry().margins
    assert_allclose([c["margin"] for c in printed["classes"]], margins, rtol=EXACT)
    comparison = compare_run(run)
    assert printed["verdict"] == comparison.verdict
    assert printed["classes"] == [asdict(finding) for finding in comparison.classes]


# The optimiser's steps, by formula: momentum, the cosine of the learning rate, the warm-up of the penalties

RATE, STEPS, WARMUP, WD, FD = 0.05, 5, 0.5, 0.4, 0.02


def sgd(state, gradient, rate):
    state["velocity"] = 0.9 * state.get("velocity", 0) + gradient
    return rate * state["velocity"]


def adam(state, gradient, rate):
    t = state["step"] = state.get("step", 0) + 1
    state["first"] = 0.9 * state.get("first", 0) + 0.1 * gradient
    state["second"] = 0.999 * state.get("second", 0) + 0.001 * gradient**2
    return rate * (state["first"] / (1 - 0.9**t)) / ((state["second"] / (1 - 0.999**t)).sqrt() + 1e-8)


def steps_by_hand(config, optimizer, decaying=()):
    """Train with explicit penalties on features and head, or with those on the named parameters; return all of them."""
    split = load_split(config)
    torch.manual_seed(config.seed)
    model = mlp(64, config.hidden, config.feature_dim, 10, batchnorm=config.has_batchnorm)
    states = {name: {} for name, _ in model.named_parameters()}
    for step in range(STEPS):
        factor = min(1.0, (step + 1) / (WARMUP * STEPS))
        rate = RATE * (1 + math.cos(math.pi * step / STEPS)) / 2
        features = model.body(split.train_inputs)
        loss = torch.nn.functional.cross_entropy(model.head(features), split.train_labels)
        if decaying:
            penalised = [p for name, p in model.named_parameters() if name in decaying]
            assert len(penalised) == len(decaying)
            loss = loss + factor * WD / 2 * sum((p**2).sum() for p in penalised)
        else:
            loss = loss + factor / 2 * (WD * (model.head.weight**2).sum() + FD * (features**2).sum())
        model.zero_grad()
        loss.backward()
        with torch.no_grad():
            for name, p in model.named_parameters():
                p -= optimizer(states[name], p.grad, rate)
    return dict(model.named_parameters())


@pytest.mark.parametrize(
    ("values", "optimizer", "decaying"),
    [
        ({"recipe": "penalty", "feature_decay": FD}, adam, ()),
        ({"recipe": "penalty", "feature_decay": FD, "optimizer": "sgd"}, sgd, ()),
        ({"recipe": "batchnorm"}, sgd, ("head.weight", "body.4.branches.0.1.weight", "body.4.branches.0.1.bias")),
    ],
    ids=["penalty-adam", "penalty-sgd", "batchnorm-sgd"],
)
def test_five_steps_equal_those_by_hand(tmp_path, values, optimizer, decaying):
    config = TrainConfig(
        **values, epochs=STEPS, hidden=(8,), feature_dim=12, learning_rate=RATE, warmup=WARMUP, weight_decay=WD
    )
    run = train(config, out=tmp_path)
    stored = safetensors.torch.load_file(run.folder / "checkpoint.safetensors")
    expected = steps_by_hand(config, optimizer, decaying)
    for name, parameter in expected.items():
        value = parameter.detach().numpy()
        assert_allclose(stored[f"model.{name}"], value, rtol=0, atol=FLOAT32 * np.abs(value).max(), err_msg=name)
    assert_allclose(run.measured.weight, expected["head.weight"].detach(), rtol=0, atol=FLOAT32)
