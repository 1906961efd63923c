"""Words for a class, from the network alone; the first of each kind was once judged wrongly or refused (A2, A3, B4)."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from collapsekit import MSE, UFM, CrossEntropy, predict, solve
from collapsekit.diagnosis import compare
from collapsekit.metrics import measure_features


def statuses(comparison):
    """The status of each class, from the network alone."""
    return [str(row.status) for row in comparison.classes]


def judged(features, counts, weight, bias=None, **options):
    """What is said, without a prediction, of samples that all sit at their class's feature."""
    labels = np.repeat(np.arange(len(counts)), counts)
    return compare(None, measure_features(np.asarray(features)[labels], labels, weight, bias, **options))


# A2: a class at the origin, under a bias


def at_the_origin(counts, size=1.0, remnant=0.0):
    """The last class at the origin, or nearly; a centred head with the bias of the counts."""
    classes = len(counts)
    features = size * np.eye(classes)
    features[-1] *= remnant
    return features, counts, 5 * np.eye(classes) - 5 / classes, np.log(counts)


LOST = {
    "the case": at_the_origin([50, 50, 5]),
    "a remnant": at_the_origin([50, 50, 5], size=2.0, remnant=1e-3),
    "two classes": at_the_origin([90, 10], size=3.0),
    "many classes": at_the_origin([200, 100, 60, 40, 30, 20, 10, 3], size=2.0),
}


@pytest.mark.parametrize("network", LOST.values(), ids=LOST)
def test_a_class_at_the_origin_is_lost_under_a_bias(network):
    assert statuses(judged(*network)) == ["alive"] * (len(network[1]) - 1) + ["lost"]


@pytest.mark.parametrize("network", LOST.values(), ids=LOST)
def test_the_verdict_names_the_lost_class(network):
    names = [*"abcdefg"[: len(network[1]) - 1], "axolotl"]
    verdict = judged(*network, names=names).verdict
    assert "axolotl" in verdict
    assert "no class" not in verdict


# A3: classes that keep features and are never predicted


def overshadowed(counts, own, rare):
    """The last `rare` classes share the first class's direction and have `own` of their own; no bias."""
    features = np.eye(len(counts))
    features[-rare:] *= own
    features[-rare:, 0] = 1.0
    return features, counts, 4 * np.eye(len(counts))


SHADOWS = {
    "three of five": (overshadowed([100, 90, 10, 10, 5], 0.8, 3), ["alive"] * 2 + ["never predicted"] * 3),
    "sixteen of twenty": (overshadowed([100] * 4 + [9] * 16, 0.9, 16), ["alive"] * 4 + ["never predicted"] * 16),
    "at chance, so lost": (overshadowed([100, 90, 80, 5], 0.1, 1), ["alive"] * 3 + ["lost"]),
}


@pytest.mark.parametrize(("network", "expected"), SHADOWS.values(), ids=SHADOWS)
def test_classes_without_a_hit_are_never_predicted(network, expected):
    assert statuses(judged(*network)) == expected


@pytest.mark.parametrize("network", [one for one, _ in SHADOWS.values()], ids=SHADOWS)
def test_the_verdict_names_a_class_that_is_never_predicted(network):
    names = [*(f"class {k:02}" for k in range(len(network[1]) - 1)), "axolotl"]
    verdict = judged(*network, names=names).verdict
    assert "axolotl" in verdict or "more" in verdict
    assert "no class" not in verdict


@pytest.mark.parametrize("hits", [4, 1])
def test_a_class_with_few_hits_is_weak(hits):
    labels = np.repeat([0, 1, 2], [50, 50, 10])
    features = np.eye(3)[labels]
    features[100 + hits :, 0] = 1.3
    found = compare(None, measure_features(features, labels, 6 * np.eye(3)))
    assert statuses(found) == ["alive", "alive", "weak"]


def test_a_tie_of_all_logits_is_no_hit():
    features = np.diag([0.0, 1.0, 1.0])  # argmax would name class 0
    labels = np.repeat([0, 1, 2], [5, 50, 50])
    measured = measure_features(features[labels], labels, 5 * np.eye(3) - 5 / 3)
    assert_array_equal(measured.recalls, [0, 1, 1])
    assert statuses(compare(None, measured)) == ["lost", "alive", "alive"]


def test_confidence_does_not_decide_under_mse():
    labels = np.repeat(np.arange(12), 5)  # logits 1 and 0: the softmax of the right class is 0.2
    found = measure_features(np.eye(12)[labels], labels, np.eye(12), loss=MSE())
    assert statuses(compare(None, found)) == ["alive"] * 12


# B4: a solution is a prediction too


def exactly_on(solution):
    """The measurement of a network that is exactly on a solution."""
    labels = np.repeat(np.arange(solution.problem.num_classes), solution.problem.counts.astype(int))
    options = {"bias": solution.bias, "loss": solution.problem.loss}
    return measure_features(solution.features[labels], labels, solution.weights, **options)


SOLVED = {
    "plain": UFM([50, 30, 10], 5e-3, 1e-3),
    "free bias": UFM([100, 30, 10], 3e-3, 1e-3, bias="free"),
    "logit adjustment": UFM(
        [100, 30, 10], 3e-3, 1e-3, loss=CrossEntropy(offsets=np.log([100 / 140, 30 / 140, 1 / 14]))
    ),
}


@pytest.mark.parametrize("problem", SOLVED.values(), ids=SOLVED)
def test_a_solution_is_compared(problem):
    solution = solve(problem)
    found = compare(solution, exactly_on(solution))
    assert found.reached
    assert found.largest_deviation < 1e-6
    assert found.objective == pytest.approx(solution.objective, rel=1e-9)


def test_a_solution_judges_as_the_closed_form_does():
    problem = SOLVED["plain"]
    measured = exactly_on(solve(problem))
    by_solver, by_formula = (compare(one, measured) for one in (solve(problem), predict(problem)))
    assert statuses(by_solver) == statuses(by_formula)
    assert by_solver.predicted_objective == pytest.approx(by_formula.predicted_objective, rel=1e-8)
