"""Prediction: the closed form and solved points behind one interface, against their definitions."""

import json

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import softmax

from _support.tolerances import EXACT
from collapsekit import MSE, UFM, CollapseError, CrossEntropy, Focal, Hinge, predict, solve
from collapsekit.prediction import Basis, Prediction, from_solution

COUNTS = [500, 300, 40, 10]
VECTORS = ("margins", "confidences", "training_confidences", "feature_sqnorms", "classifier_sqnorms")
CLOSED = [
    UFM(COUNTS, 3e-2, 1e-3),
    UFM(COUNTS, 3e-2, 1e-3, loss=MSE(), class_weights=[1, 1, 2, 3]),
    UFM(COUNTS, 3e-2, 1e-4, loss=CrossEntropy(smoothing=0.1, margins=[0.1, 0.2, 0.5, 1.0], temperature=1.5)),
    UFM(COUNTS, 1e-3, 1e-4, loss=Hinge()),
]
SOLVED = [
    UFM(COUNTS, 3e-2, 1e-3, bias="free"),
    UFM(COUNTS, 3e-2, 1e-4, bias=0.1, loss=CrossEntropy.logit_adjusted(COUNTS)),
    UFM([80, 20, 5], 1e-2, 1e-3, loss=CrossEntropy.cdt([80, 20, 5], 0.3)),
    UFM([80, 20, 5], 1e-2, 1e-3, relu=False),
]


def logits_of(solution):
    return solution.features @ solution.weights.T + (0 if solution.bias is None else solution.bias)


@pytest.mark.parametrize("problem", CLOSED, ids=range(len(CLOSED)))
def test_a_solved_point_says_what_the_closed_form_says(problem):
    closed, solved = predict(problem), from_solution(solve(problem))
    assert closed.basis is Basis.CLOSED_FORM
    for name in VECTORS:
        assert_allclose(getattr(solved, name), getattr(closed, name), rtol=1e-3, atol=1e-4, err_msg=name)
    assert_array_equal(solved.collapses, closed.collapses)
    assert_allclose(solved.objective, closed.objective, rtol=1e-6)
    assert np.isnan(solved.headroom).all()
    for mine, theirs in zip(closed.gram_rows(slice(1, 3)), solved.gram_rows(slice(1, 3)), strict=True):
        assert_allclose(mine, theirs, atol=1e-3 * np.abs(mine).max())


@pytest.mark.parametrize("problem", SOLVED, ids=range(len(SOLVED)))
def test_a_solved_point_is_read_off_its_logits(problem):
    solution = solve(problem)
    found, Z = from_solution(solution), logits_of(solution)
    assert found.basis is Basis.CERTIFIED
    assert_allclose(found.confidences, np.diagonal(softmax(Z, axis=1)), rtol=EXACT)
    loss, size = problem.loss, len(Z)
    seen = Z * (1 if loss.scales is None else loss.scales) + (0 if loss.offsets is None else loss.offsets)
    assert_allclose(found.training_confidences, np.diagonal(softmax(seen, axis=1)), rtol=EXACT)
    if loss.scales is None and loss.offsets is None:
        assert_allclose(found.training_confidences, found.confidences, rtol=EXACT)
    lead = np.diagonal(Z) - np.where(np.eye(size, dtype=bool), -np.inf, Z).max(axis=1)
    assert_array_equal(found.collapses, lead < 1e-5)
    whole = found.geometry()
    for name, rows in zip(("gram_h", "gram_w", "cross"), found.gram_rows(slice(1, size)), strict=True):
        assert_allclose(rows, getattr(whole, name)[1:], rtol=EXACT)


def test_with_a_bias_a_class_at_the_origin_may_win_there():
    found = from_solution(solve(UFM([400, 100, 100, 100], 1e-3, 1e-5, bias="free")))
    assert found.feature_sqnorms[0] < 1e-6 * found.feature_sqnorms.max()
    assert not found.collapses.any()


@pytest.mark.parametrize("bias", [None, "free"])
def test_at_complete_collapse_all_classes_do_whatever_a_bias_prefers(bias):
    assert from_solution(solve(UFM([50, 20, 10], 1.0, 1.0, bias=bias))).collapses.all()


def test_focal_loss_has_no_certificate():
    found = from_solution(solve(UFM([50, 20, 10], 1e-2, 1e-3, loss=Focal(2.0))))
    assert found.basis is Basis.NOT_CERTIFIED
    content = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert content["lower_bound"] is None
    assert content["headroom"] == [None] * 3


@pytest.mark.parametrize("problem", CLOSED, ids=range(len(CLOSED)))
def test_row_blocks_are_those_of_explicit_weights_and_features(problem):
    found = predict(problem)
    W, H = found.weights_and_features()
    for rows in (slice(0, 1), slice(1, 4), slice(None)):
        for block, expected in zip(found.gram_rows(rows), (H @ H.T, W @ W.T, W @ H.T), strict=True):
            assert_allclose(block, expected[rows], atol=EXACT * max(1, np.abs(expected).max()))


def test_target_margins_lower_what_the_loss_sees():
    plain, shifted = (predict(UFM(COUNTS, 3e-2, 1e-4, loss=CrossEntropy(margins=m))) for m in (None, [1.0] * 4))
    assert plain.training_confidences is plain.confidences
    odds = shifted.confidences / (1 - shifted.confidences)
    assert_allclose(shifted.training_confidences, odds / (odds + np.e), rtol=EXACT)


def test_a_solved_point_keeps_its_dimension_and_its_bias():
    solution = solve(UFM([50, 20, 10], 1e-2, 1e-3, bias="free"))
    found = from_solution(solution)
    assert found.bias is solution.bias
    assert found.weights_and_features()[0] is solution.weights
    with pytest.raises(CollapseError, match="dim=99"):
        found.weights_and_features(99)
    assert predict(UFM([50, 20], 1e-2, 1e-3)).bias is None


def test_shown_in_one_line():
    text = repr(predict(UFM(COUNTS, 3e-2, 1e-3)))
    assert text == (
        "Prediction(K=4, 1 lost, confidences 0.25 … 0.8197, smallest headroom 0.346, objective 0.75595; "
        "the closed form of the global optimum)"
    )
    assert "headroom" not in repr(from_solution(solve(UFM([5, 3], 1e-2, 1e-2, bias="free"))))


@pytest.mark.parametrize("given", [None, "solution", predict(UFM([5, 3], 1e-2, 1e-2))], ids=["none", "text", "other"])
def test_only_solutions_are_read(given):
    with pytest.raises(CollapseError, match=r"solution=.*collapsekit\.solve"):
        from_solution(given)


def test_vectors_cannot_be_changed():
    for found in (predict(CLOSED[0]), from_solution(solve(SOLVED[0]))):
        assert isinstance(found, Prediction)
        for name in (*VECTORS, "collapses", "headroom"):
            assert not getattr(found, name).flags.writeable, name
