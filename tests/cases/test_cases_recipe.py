"""What a recipe means: cases that came out wrong once, each with siblings of its kind."""

import json

import pytest
from numpy.testing import assert_allclose

from collapsekit import UFM, CrossEntropy, solve
from collapsekit.cli import main


def printed(capsys, words):
    """What a command prints with --json."""
    code = main([*words.split(), "--json"])
    out, err = capsys.readouterr()
    assert code == 0, err
    return json.loads(out)


# A8: torch's weighted smoothing is another loss than smoothing with class weights

WEIGHTED = {
    "two classes": ([90, 10], [1, 9], 0.1, (0.01, 0.001)),
    "three classes": ([60, 30, 10], [1, 2, 6], 0.05, (0.01, 0.001)),
}


def weighted_smoothing(counts, weights, smoothing, penalties):
    """Confidences of the optimum, by the solver, of torch's CrossEntropyLoss(weight=..., label_smoothing=...)."""
    loss = CrossEntropy(smoothing=smoothing, smoothing_weights=weights)
    return solve(UFM(counts, *penalties, class_weights=weights, loss=loss)).confidences


def words_of(counts, weights, smoothing):
    return f"{' '.join(map(str, counts))} --class-weights {' '.join(map(str, weights))} --smoothing {smoothing}"


def test_the_known_confidences_of_weighted_smoothing():
    assert_allclose(weighted_smoothing(*WEIGHTED["two classes"]), [0.662, 0.986], atol=5e-4)


@pytest.mark.parametrize("case", WEIGHTED.values(), ids=WEIGHTED)
def test_smoothing_with_class_weights_is_that_of_torch(case, capsys):
    words = f"predict {words_of(*case[:3])} --lambda-w {case[3][0]} --lambda-h {case[3][1]}"
    assert_allclose(printed(capsys, words)["confidences"], weighted_smoothing(*case), atol=1e-4)


@pytest.mark.parametrize("case", WEIGHTED.values(), ids=WEIGHTED)
def test_smoothing_with_class_weights_is_predicted_from_a_weight_decay(case, capsys):
    counts, weights, smoothing, (weight_decay, feature_decay) = case
    total = sum(counts) / sum(w * n for w, n in zip(weights, counts, strict=True))
    omega = [w * total for w in weights]  # torch divides by the sum of weights
    loss = CrossEntropy(smoothing=smoothing, smoothing_weights=weights)
    expected = solve(UFM(counts, weight_decay, feature_decay, class_weights=omega, loss=loss)).confidences
    decays = f"--weight-decay {weight_decay} --feature-decay {feature_decay} --feature-reduction full_sum"
    assert_allclose(printed(capsys, f"predict {words_of(*case[:3])} {decays}")["confidences"], expected, atol=1e-4)


# A23: what moves counts moves the penalty of a frozen shift too

FROZEN = {
    "the case": ("300 300 300", 0.35, 233),
    "three classes": ("200 200", 0.3, 77),
}


def frozen_shift(counts, weight_decay):
    return f"{counts} --weight-decay {weight_decay} --batchnorm-branches 1 --batchnorm-decay gain_frozen_shift"


@pytest.mark.parametrize(("others", "weight_decay", "least"), FROZEN.values(), ids=FROZEN)
def test_the_least_count_survives_and_one_fewer_does_not(others, weight_decay, least, capsys):
    for count, confidence in ((least, ">"), (least - 1, "=")):
        words = f"predict {frozen_shift(f'{others} {count}', weight_decay)}"
        found, chance = printed(capsys, words)["confidences"], 1 / (len(others.split()) + 1)
        assert (found[-1] > chance + 1e-12) == (confidence == ">")
        assert min(found[:-1]) > chance


@pytest.mark.parametrize("count", [5, 20])
@pytest.mark.parametrize(("others", "weight_decay", "least"), FROZEN.values(), ids=FROZEN)
def test_oversampling_under_a_frozen_shift_is_told_the_count_that_survives(others, weight_decay, least, count, capsys):
    found = printed(capsys, f"advise {frozen_shift(f'{others} {count}', weight_decay)}")["counts"]
    assert found == [*map(int, others.split()), least]
