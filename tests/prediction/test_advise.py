"""The largest decays by bisection against a scan of predictions; remedies pasted as they are printed."""

import re

import numpy as np
import pytest

from collapsekit import MSE, UFM, CollapseError, CrossEntropy, Focal, long_tail, predict
from collapsekit.prediction import advise, largest_decays
from collapsekit.prediction._advise import scaled
from collapsekit.recipe import BatchNorm, LastLayer, Penalty
from collapsekit.solver.progress import Progress
from collapsekit.theory import counts_for


@pytest.mark.parametrize("options", [{"bias": "free"}, {"bias": 0.01}, {"relu": False}], ids=str)
@pytest.mark.parametrize("decay", [0.1, 1.0])
def test_just_below_every_class_lives_and_just_above_one_is_lost(options, decay):
    problem = UFM([500, 300, 40, 10], 3e-2 * decay, 1e-3 * decay, **options)
    found = largest_decays(problem)
    assert not predict(scaled(problem, 0.999 * found.factor)).collapses.any()
    assert predict(scaled(problem, 1.001 * found.factor)).collapses[int(found.label)]
    assert found.product == pytest.approx(problem.lambda_w * problem.lambda_h * found.factor**2)


def test_a_class_that_is_named():
    problem = UFM({"ant": 500, "bee": 300, "cat": 40}, 3e-2, 1e-3, bias="free")
    assert largest_decays(problem, "bee").factor > largest_decays(problem, "cat").factor
    with pytest.raises(CollapseError, match="label='fly'"):
        largest_decays(problem, "fly")


def test_too_many_classes_say_so():
    with pytest.raises(CollapseError, match="2100 classes are too many"):
        largest_decays(UFM(np.arange(100, 2200), 1e-3, 1e-5, bias="free"))


NUMBER = r"[-+0-9.e]+"
TAIL = long_tail(500, 5, 8)


def pasted(line):
    """The numbers that stand in a line to paste, by name."""
    return {name: float(value) for name, value in re.findall(rf"(\w+)=({NUMBER})", line)}


@pytest.mark.parametrize("confidence", [None, 0.4, 0.8])
@pytest.mark.parametrize(
    ("recipe", "last"),
    [(BatchNorm(0.3), LastLayer(branches=1)), (Penalty(0.05, 0.02, batch_size=64), LastLayer())],
    ids=["batchnorm", "penalty"],
)
def test_decays_as_pasted_keep_every_class(recipe, last, confidence):
    advice = advise(recipe.problem(TAIL, last), min_confidence=confidence, recipe=recipe)
    assert not advice.enough
    numbers = pasted(next(remedy for remedy in advice.remedies if remedy.name == "decays").line)
    again = BatchNorm(**numbers) if isinstance(recipe, BatchNorm) else Penalty(**numbers, batch_size=64)
    found = predict(again.problem(TAIL, last))
    assert not found.collapses.any()
    assert found.confidences.min() >= (confidence or 0)
    assert found.confidences.min() <= (confidence or 1) + 0.002  # and no smaller than it takes


@pytest.mark.parametrize("confidence", [0.6, 0.7])
@pytest.mark.parametrize("loss", [CrossEntropy(), CrossEntropy(temperature=2.0), CrossEntropy(smoothing=0.05)], ids=str)
def test_counts_are_enough_for_a_confidence_and_none_too_many(loss, confidence):
    problem = UFM([500, 300, 40, 10], 1e-2, 4e-4, loss=loss)
    counts = counts_for(problem, min_confidence=confidence)
    assert (counts > problem.counts).any()

    def confidences(n):
        return predict(UFM(n, 1e-2, 4e-4, loss=loss)).confidences

    assert confidences(counts).min() >= confidence - 1e-12
    for k in np.flatnonzero(counts > problem.counts):
        fewer = counts - (np.arange(4) == k)
        assert confidences(fewer).min() < confidence


@pytest.mark.parametrize("options", [{"bias": "free"}, {"loss": CrossEntropy.logit_adjusted([500, 300, 40, 10], 1.0)}])
def test_what_a_remedy_does_is_predicted_for_the_problem_itself(options):
    problem = UFM([500, 300, 40, 10], 3e-2, 1e-3, **options)
    for remedy in advise(problem, min_confidence=0.5).remedies:
        after = remedy.prediction
        assert (after.problem.bias, type(after.problem.loss)) == (problem.bias, type(problem.loss))
        assert remedy.reaches == bool((~after.collapses & (after.confidences >= 0.5)).all())


def test_what_is_enough_needs_no_remedy_that_changes_nothing():
    advice = advise(UFM([500, 300, 40, 10], 3e-4, 1e-3))
    assert advice.enough
    assert advice.largest.factor > 1
    assert "oversampling" not in {remedy.name for remedy in advice.remedies}


def test_torch_weighs_its_smoothing_too():
    torch = pytest.importorskip("torch")
    problem = UFM([50, 20, 5], 1e-2, 1e-3, loss=CrossEntropy(smoothing=0.1))
    remedy = next(one for one in advise(problem).remedies if one.name == "class weights")
    weights = torch.tensor(remedy.values)
    W, H = (torch.tensor(side) for side in remedy.prediction.weights_and_features())
    labels = torch.arange(3).repeat_interleave(torch.tensor([50, 20, 5]))
    logits = (H @ W.T)[labels]
    loss = torch.nn.CrossEntropyLoss(weight=weights, label_smoothing=0.1)(logits, labels)
    counts = torch.tensor([50.0, 20.0, 5.0])
    penalties = 1e-2 * W.square().sum() + 1e-3 * (counts @ H.square().sum(1).to(counts.dtype))
    assert float(loss + penalties / 2) == pytest.approx(remedy.prediction.objective, rel=1e-6)


def test_what_cannot_be_asked_for_says_so():
    with pytest.raises(CollapseError, match=r"min_confidence=0\.2: give a number above 1/K = 0\.25 and below 1"):
        advise(UFM([500, 300, 40, 10], 1e-2, 1e-3), min_confidence=0.2)
    with pytest.raises(CollapseError, match=r"min_confidence=0\.5: MSE aims at no confidence; leave it out"):
        advise(UFM([500, 300, 40, 10], 1e-2, 1e-3, loss=MSE()), min_confidence=0.5)


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (Focal(), "losses = losses * torch.tensor(["),
        (MSE(), "losses = losses * torch.tensor(["),
        (CrossEntropy(smoothing=0.1), "label_smoothing=0.1)"),
        (CrossEntropy(), "CrossEntropyLoss(weight=torch.tensor(["),
    ],
    ids=str,
)
def test_weights_are_pasted_into_the_loss_that_they_were_made_for(loss, said):
    remedies = {one.name: one for one in advise(UFM([500, 300, 40, 10], 3e-3, 1e-4, loss=loss)).remedies}
    assert said in remedies["class weights"].line


def test_target_margins_are_those_of_raw_logits_at_any_temperature():
    torch = pytest.importorskip("torch")
    problem = UFM([50, 20, 5], 5e-4, 5e-4, loss=CrossEntropy(temperature=2.0))
    remedy = next(one for one in advise(problem).remedies if one.name == "target margins")
    W, H = (torch.tensor(side) for side in remedy.prediction.weights_and_features())
    labels = torch.arange(3).repeat_interleave(torch.tensor([50, 20, 5]))
    logits = (H @ W.T)[labels].double()
    exec(remedy.line, {"torch": torch, "logits": logits, "labels": labels})
    loss = torch.nn.functional.cross_entropy(logits / 2, labels)
    penalties = 5e-4 * (W.square().sum() + torch.tensor([50.0, 20.0, 5.0], dtype=W.dtype) @ H.square().sum(1))
    assert float(loss + penalties / 2) == pytest.approx(remedy.prediction.objective, rel=1e-3)  # four digits pasted


def test_a_confidence_out_of_reach_leaves_the_other_advice():
    advice = advise(UFM([500, 300, 40, 10], 1e-3, 1e-4, loss=CrossEntropy(smoothing=0.1)), min_confidence=0.99)
    assert advice.largest is None
    assert "smoothing or offsets keep it lower" in advice.impossible["decays"]


def test_weighted_smoothing_is_advised_from_the_plain_twin():
    loss = CrossEntropy(smoothing=0.1, smoothing_weights=[1.0, 1.0, 2.0, 3.0])
    problem = UFM([500, 300, 40, 10], 3e-2, 1e-3, loss=loss, class_weights=[1, 1, 2, 3])
    assert "class weights" in {one.name for one in advise(problem, min_confidence=0.4).remedies}


def test_what_is_enough_is_not_told_to_decay_more():
    advice = advise(UFM([500, 300, 40, 10], 3e-4, 1e-3))
    assert "decays" not in {one.name for one in advice.remedies}


def test_the_decay_of_a_bias_is_pasted_with_the_others():
    problem = UFM([500, 300, 40, 10], 3e-2, 1e-3, bias=0.02)
    numbers = pasted(advise(problem, min_confidence=0.4).remedies[0].line)
    again = predict(UFM([500, 300, 40, 10], numbers["lambda_w"], numbers["lambda_h"], bias=numbers["bias"]))
    assert again.confidences.min() == pytest.approx(0.4, abs=5e-4)


def test_an_interruption_ends_the_search(monkeypatch):
    """Ctrl-C in the middle of one optimum, which keeps its best point, is no answer about the decays."""
    steps = iter(range(10**6))

    def interrupted(_):
        if next(steps) == 3:
            raise KeyboardInterrupt
        return False

    monkeypatch.setattr(Progress, "spent", interrupted)
    with pytest.raises(KeyboardInterrupt):
        largest_decays(UFM([500, 300, 40, 10], 3e-2, 1e-3, dim=1))
