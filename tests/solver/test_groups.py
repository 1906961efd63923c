"""Groups of alike classes against the search over single classes, and against broken certificates."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from _support.tolerances import CERTIFIED, GROUPS
from collapsekit import MSE, UFM, CollapseError, CrossEntropy, predict, solve
from collapsekit.prediction import Basis, from_solution
from collapsekit.solver import certify
from collapsekit.solver.groups import _Reduced, groups_of, solve_groups


def drawn(rng, turn, most_groups=4, most_alike=7):
    """A problem of groups: any bias, ReLU or not, offsets, scales, margins, weights, smoothing."""
    G = int(rng.integers(2, most_groups + 1))
    m = rng.integers(1, most_alike + 1, G)
    n = np.round(10 ** rng.uniform(0.7, 3, G))
    bias, relu, total = (None, "free", 0.03)[turn % 3], bool(turn % 4 != 3), (m * n).sum()
    offsets = (None, np.log(n / total), rng.normal(0, 1, G))[rng.integers(3)]
    if offsets is None and bias is None and relu:
        offsets = rng.normal(0, 1, G)
    scales = np.exp(rng.normal(0, 0.3, G)) if turn % 5 == 4 else None
    margins = rng.uniform(0, 1.5, G) if turn % 7 == 6 else None
    weights = np.exp(rng.normal(0, 0.5, G)) if turn % 2 else None
    alpha = (1 if weights is None else weights) * n / total
    root = np.sqrt(np.median(alpha**2 / n)) * 10 ** rng.uniform(-1.2, 0)

    def each(values):
        return None if values is None else np.repeat(values, m)

    loss = CrossEntropy(
        smoothing=0.1 * (turn % 6 == 5), offsets=each(offsets), scales=each(scales), margins=each(margins)
    )
    return UFM(each(n), root, root, class_weights=each(weights), loss=loss, bias=bias, relu=relu)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.heavy) for seed in range(1, 6))])
def test_groups_reach_the_certified_optimum_of_single_classes(seed):
    rng = np.random.default_rng(seed)
    for turn in range(40):
        problem = drawn(rng, turn)
        point, solution = solve_groups(problem), solve(problem, time_limit=20)
        assert point.gap <= CERTIFIED, problem
        assert point.objective >= solution.lower_bound
        if solution.optimal:
            assert_allclose(point.objective, solution.objective, rtol=GROUPS)


@pytest.mark.parametrize("turn", [0, 1, 2, 3, pytest.param(4, marks=pytest.mark.heavy)])
def test_more_than_four_groups(turn):
    rng = np.random.default_rng(turn)
    problem = drawn(rng, turn, most_groups=8, most_alike=10)
    point, solution = solve_groups(problem), solve(problem, time_limit=20)
    assert max(point.gap, solution.gap) <= CERTIFIED
    assert_allclose(point.objective, solution.objective, rtol=GROUPS)


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("loss", [CrossEntropy(), MSE()], ids=["cross-entropy", "squared error"])
def test_a_prediction_by_groups_is_that_of_single_classes(relu, loss):
    problem = UFM(np.repeat([500, 40], [14, 10]), 3e-3, 4e-5, loss=loss, bias="free", relu=relu)
    predicted, solved = predict(problem), from_solution(solve(problem))
    assert predicted.basis is Basis.GROUPS
    for key in ("margins", "confidences", "training_confidences", "feature_sqnorms", "classifier_sqnorms"):
        assert_allclose(getattr(predicted, key), getattr(solved, key), rtol=1e-5, atol=1e-7, err_msg=key)
    assert (predicted.collapses == solved.collapses).all()
    ours, theirs = predicted.geometry(), solved.geometry()
    for key in ("gram_h", "gram_w", "cross"):
        scale = np.abs(getattr(theirs, key)).max()
        assert_allclose(getattr(ours, key), getattr(theirs, key), atol=1e-5 * scale, err_msg=key)
    rows = predicted.gram_rows(slice(3, 17))
    assert_allclose(rows[2], ours.cross[3:17])
    bias = predicted.bias - predicted.bias.mean()
    assert_allclose(bias, solved.bias - solved.bias.mean(), atol=1e-5)
    with pytest.raises(CollapseError, match=r"use geometry\(\)"):
        predicted.weights_and_features()


def test_a_thousand_classes_with_a_free_bias_are_certified():
    problem = UFM(np.repeat([5000, 50], 500), 8.6e-6, 8.6e-6, bias="free")
    prediction = predict(problem)
    assert prediction.basis is Basis.GROUPS
    assert prediction.gap <= CERTIFIED


def test_classes_of_a_group_in_any_order():
    counts = np.random.default_rng(0).permutation(np.repeat([300, 40, 7], [9, 8, 7]))
    problem = UFM(counts, 2e-3, 1e-4, bias=0.01)
    inside = predict(problem).confidences
    in_order = predict(UFM(np.sort(counts), 2e-3, 1e-4, bias=0.01)).confidences
    assert_allclose(np.sort(inside), np.sort(in_order), rtol=1e-9)
    assert_allclose(inside, in_order[np.searchsorted(np.sort(counts), counts)], rtol=1e-9)


def test_a_bound_is_valid_at_poor_points_and_a_polar_that_forgets_contrasts_is_not(monkeypatch):
    rng, above = np.random.default_rng(3), 0
    for turn in range(30):
        problem = drawn(rng, turn)
        best = solve_groups(problem)
        reduced = _Reduced(problem)
        x = reduced.start(rng)
        assert reduced.point(x).lower_bound <= best.objective
        honest = _Reduced.polar

        def forgetful(self, target, other, kappa_square, honest=honest):
            mixed = target / self.sizes + (1 - 1 / self.sizes) * np.diagonal(other)  # no contrast inside groups
            even = other - np.diag(np.diagonal(other)) + np.diag(mixed)
            return honest(self, mixed, even, kappa_square)

        with monkeypatch.context() as broken:
            broken.setattr(_Reduced, "polar", forgetful)
            above += reduced.point(x).lower_bound > best.objective
    assert above > 0


def test_groups_are_classes_that_agree_in_everything():
    assert groups_of(UFM([5, 3, 5, 3], 0.1, 0.1)).tolist() == [1, 0, 1, 0]
    assert len(set(groups_of(UFM([5, 5, 5], 0.1, [0.1, 0.2, 0.1])))) == 2
    assert len(set(groups_of(UFM([5, 5, 5], 0.1, 0.1, class_weights=[1, 2, 3])))) == 3
    assert len(set(groups_of(UFM([5, 5, 5], 0.1, 0.1, loss=CrossEntropy(offsets=[0, 0, 1]))))) == 2


def test_the_objective_of_a_point_is_that_of_a_classifier_and_features_with_its_gram_matrices():
    """Without ReLU any Gram matrices are those of a point: its objective by the problem's own formula."""
    problem = UFM(np.repeat([300, 20], [5, 6]), 3e-3, 1e-4, bias="free", relu=False)
    point = solve_groups(problem)
    gram_h, gram_w, cross = point.gram_rows(slice(None))
    joint = np.block([[gram_w, cross], [cross.T, gram_h]])
    values, vectors = np.linalg.eigh(joint)
    factors = vectors * np.sqrt(np.maximum(values, 0))
    W, H = factors[:11], factors[11:]
    assert_allclose(problem.objective(W, H, point.bias), point.objective, rtol=1e-9)
    assert certify(problem, W, H, point.bias).gap < 1e-7


def test_classes_of_unequal_label_noise_are_not_alike():
    rates = np.repeat([0.0, 0.3, 0.3, 0.1], [3, 2, 2, 3])
    problem = UFM([40] * 10, 1e-3, 1e-3, loss=CrossEntropy(smoothing=rates), bias="free")
    assert groups_of(problem).tolist() == [0] * 3 + [2] * 4 + [1] * 3
    point, solution = solve_groups(problem), solve(problem)
    assert point.gap <= CERTIFIED
    assert_allclose(point.objective, solution.objective, rtol=GROUPS)
