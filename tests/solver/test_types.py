"""Types of samples against brute force, against problems by class, and what they refuse."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.optimize import minimize

from _support.tolerances import BRUTE_TYPES, CERTIFIED, DUAL_ROUNDING, EXACT, SPLIT_CLASSES
from collapsekit import MSE, UFM, CollapseError, CrossEntropy, certify, predict, solve, thresholds
from collapsekit.prediction import Basis
from collapsekit.solver import landscape
from collapsekit.theory import NoClosedForm, closed_form

COINCIDING = ([150, 70, 20, 20], [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0.5, 0.5]])
PENALTY = 0.12 * np.sqrt(30) / 260


def drawn(rng, turn):
    """Separable classes, coinciding ones and soft labels; any bias, with ReLU or without, offsets, scales."""
    K, some = int(rng.integers(2, 6)), int(rng.integers(1, 5))
    rows = [np.eye(K)[rng.random(K) < 0.8]] + [
        rng.dirichlet(np.ones(K) * 10 ** rng.uniform(-1, 1)) for _ in range(some)
    ]
    targets = np.vstack(rows)
    if targets.sum(axis=0).min() < 1e-6:
        targets = np.vstack([targets, np.full(K, 1 / K)])
    m = np.round(10 ** rng.uniform(0.5, 3, len(targets)))
    lam = np.sqrt(np.median(m)) / m.sum() * 10 ** rng.uniform(-1.5, 0)
    loss = CrossEntropy(
        temperature=(1.0, 0.5)[turn % 5 == 4],
        offsets=rng.normal(0, 1, K) if turn % 4 == 1 else None,
        scales=np.exp(rng.normal(0, 0.3, K)) if turn % 7 == 3 else None,
    )
    lambda_h = lam * np.exp(rng.normal(0, 0.4, len(m))) if turn % 6 == 5 else lam
    bias, relu = (None, "free", 0.03)[turn % 3], turn % 8 < 5
    return UFM.from_types(m, targets, 3 * lam, lambda_h, loss=loss, bias=bias, relu=relu)


def brute(problem, rng, starts=4):
    """The lowest of bounded descents on W, H and b, from the problem as written; in units that condition it."""
    m, Y, loss = problem.types.counts, problem.types.targets, problem.loss
    (T, K), d, N = Y.shape, len(m) + Y.shape[1], m.sum()
    s = (np.ones(K) if loss.scales is None else np.array(loss.scales)) / loss.temperature
    o = np.zeros(K) if loss.offsets is None else np.array(loss.offsets)
    lw, lh = problem.lambda_w, np.broadcast_to(problem.lambda_h, T)
    a, c = 1 / np.sqrt(lw), 1 / np.sqrt(lh * m)
    lb, has = problem.bias if isinstance(problem.bias, float) else 0.0, float(problem.bias is not None)

    def value(x):
        U, V, b = x[: K * d].reshape(K, d), x[K * d : (K + T) * d].reshape(T, d), has * x[(K + T) * d :]
        z = s * (a * c[:, None] * (V @ U.T) + b) + o
        z = z - z.max(axis=1, keepdims=True)
        logs = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
        G = (m / N)[:, None] * (np.exp(logs) - Y) * s
        loss = -(m / N) @ (Y * logs).sum(axis=1)
        F = a * c[:, None] * G
        slope = [(F.T @ V + U).ravel(), (F @ U + V).ravel(), has * (G.sum(axis=0) + lb * b)]
        return loss + 0.5 * (np.sum(U**2) + np.sum(V**2) + lb * b @ b), np.concatenate(slope)

    low = [(None, None)] * (K * d) + [(0 if problem.relu else None, None)] * (T * d) + [(None, None)] * K
    best = np.inf
    for _ in range(starts):
        x = np.concatenate([rng.normal(0, 0.3, K * d), np.abs(rng.normal(0, 0.3, T * d)), np.zeros(K)])
        x[K * d : (K + T) * d] += np.eye(T, d).ravel() * rng.uniform(0, 1)
        options = {"maxiter": 20000, "maxfun": 30000, "ftol": 1e-16, "gtol": 1e-11, "maxcor": 30}
        done = minimize(value, x, jac=True, method="L-BFGS-B", bounds=low, options=options)
        best = min(best, done.fun)
    return best


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.heavy) for seed in range(1, 11))])
def test_types_against_brute_force(seed):
    """Twenty problems a seed: certified, never above the lowest descent, and no descent below the bound."""
    rng = np.random.default_rng(seed)
    for turn in range(20):
        problem = drawn(rng, turn + 20 * seed)
        solution, lowest = solve(problem), brute(problem, rng)
        assert solution.gap <= CERTIFIED, (turn, problem, solution)
        assert lowest >= solution.lower_bound * (1 - DUAL_ROUNDING)
        assert_allclose(lowest, solution.objective, rtol=BRUTE_TYPES, err_msg=str((turn, problem)))


@pytest.mark.parametrize("bias", [None, "free", 0.03])
@pytest.mark.parametrize("relu", [True, False])
def test_a_class_in_several_types_is_one_class(bias, relu):
    """Types of one label and one penalty split a class as its samples do, in any order."""
    whole = UFM([100, 40, 12], 1e-2, 1e-3, bias=bias, relu=relu)
    split = UFM.from_types([12, 30, 10, 100], np.eye(3)[[2, 1, 1, 0]], 1e-2, 1e-3, bias=bias, relu=relu)
    one, two = solve(whole), predict(split)
    assert two.basis is Basis.CERTIFIED
    assert_allclose(two.objective, one.objective, rtol=CERTIFIED)
    assert_allclose(two.confidences, one.confidences, rtol=SPLIT_CLASSES)
    assert_allclose(two.margins, one.margins, rtol=SPLIT_CLASSES)
    assert_allclose(two.geometry().gram_h, one.geometry().gram_h, atol=SPLIT_CLASSES * one.geometry().gram_h.max())
    assert_array_equal(two.collapses, one.collapses)


def test_ten_coinciding_pairs():
    plain, types = UFM([150, 80, 30], PENALTY, PENALTY), UFM.from_types(*COINCIDING, PENALTY, PENALTY)
    assert_array_equal(types.counts, plain.counts)
    assert predict(plain).confidences.round(3)[2] == 0.902
    predicted = predict(types)
    assert predicted.basis is Basis.CERTIFIED
    assert predicted.confidences.round(3)[2] == 0.745
    assert_allclose(predicted.training_confidences, predicted.confidences, rtol=EXACT)
    assert np.isnan(types.confidence_floor()).all()
    assert np.isnan(predicted.headroom).all()


def test_predictions_are_by_class():
    offsets = (0.3, 0.0, -0.4)
    problem = UFM.from_types(*COINCIDING, PENALTY, PENALTY, loss=CrossEntropy(offsets=offsets, temperature=0.5))
    predicted = predict(problem)
    W, H = predicted.weights_and_features()
    assert_allclose(problem.objective(W, H), predicted.objective, rtol=EXACT)
    m, Y = problem.types.counts, problem.types.targets
    means = (m[:, None] * Y).T @ H / (m @ Y)[:, None]
    u = np.exp(2 * H @ W.T)
    p = u / u.sum(axis=1, keepdims=True)
    u = np.exp(2 * H @ W.T + offsets)
    q = u / u.sum(axis=1, keepdims=True)
    for found, shares in ((predicted.confidences, p), (predicted.training_confidences, q)):
        assert_allclose(found, (m[:, None] * Y * shares).sum(axis=0) / (m @ Y), rtol=EXACT)
    assert_allclose(predicted.feature_sqnorms, (means**2).sum(axis=1), rtol=EXACT)
    assert_allclose(predicted.geometry().cross, W @ means.T, rtol=EXACT)
    assert_allclose(predicted.gram_rows(slice(1, 3))[0], means[1:] @ means.T, rtol=EXACT)
    z = means @ W.T
    assert_allclose(predicted.margins, (3 * np.diagonal(z) - z.sum(axis=1)) / 2, rtol=EXACT)
    text = predicted.to_dict()["problem"]["types"]
    assert_allclose(text["targets"], Y)
    assert text["counts"] == m.tolist()


@pytest.mark.parametrize("bias", [None, "free"])
def test_one_type_alone(bias):
    """Samples that all coincide: with a free bias the shares themselves, at no price."""
    problem = UFM.from_types([50], [[0.5, 0.3, 0.2]], 1e-2, 1e-3, bias=bias)
    predicted = predict(problem)
    assert predicted.gap <= CERTIFIED
    if bias:
        assert_allclose(predicted.objective, -np.sum([0.5, 0.3, 0.2] * np.log([0.5, 0.3, 0.2])), rtol=CERTIFIED)


def test_the_order_of_types_does_not_matter():
    order = [3, 1, 0, 2]
    counts, targets = (np.array(part)[order] for part in COINCIDING)
    one, two = (predict(UFM.from_types(*types, PENALTY, PENALTY)) for types in (COINCIDING, (counts, targets)))
    assert_allclose(two.confidences, one.confidences, rtol=SPLIT_CLASSES)


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("bias", [None, "free", 0.03])
def test_no_feasible_point_lies_below_any_bound(relu, bias):
    """Bounds at random points, of which none is an optimum, against the optimum."""
    rng, problem = np.random.default_rng(3), UFM.from_types(*COINCIDING, PENALTY, PENALTY, relu=relu, bias=bias)
    best = solve(problem)
    for _ in range(50):
        W, H = rng.normal(0, 2, (3, 5)), np.abs(rng.normal(0, 2, (4, 5)))
        found = certify(problem, W, H, rng.normal(0, 1, 3) if bias else None)
        assert found.lower_bound <= best.objective <= found.objective


@pytest.mark.parametrize("dim", [1, 2])
def test_few_dimensions(dim):
    """Fewer dimensions than types: as low as the lowest of many descents."""
    problem = UFM.from_types(*COINCIDING, 5e-3, 5e-3, dim=dim)
    solution, found = solve(problem), landscape(problem, 10, methods=("bounded L-BFGS",))
    lowest = min(end.objective for end in found.outcomes["bounded L-BFGS"])
    assert solution.objective <= lowest * (1 + CERTIFIED)
    assert solution.features.shape == (4, dim)


def test_one_hot_types_one_a_class_have_the_closed_form():
    plain, types = UFM([90, 30], 1e-2, 1e-3), UFM.from_types([90, 30], np.eye(2), 1e-2, 1e-3)
    assert_array_equal(predict(types).margins, predict(plain).margins)
    assert predict(types).basis is Basis.CLOSED_FORM
    assert_array_equal(thresholds(types).headroom, thresholds(plain).headroom)
    for refused in (closed_form, thresholds):
        for targets in (np.eye(2)[::-1], [[1, 0], [0.1, 0.9]]):
            with pytest.raises(NoClosedForm, match=r"types.*predict\(problem\) finds its optimum"):
                refused(UFM.from_types([90, 30], targets, 1e-2, 1e-3))
            with pytest.raises(NoClosedForm, match="types"):
                refused(UFM.from_types([90, 30], targets, 1e-2, 1e-3, loss=CrossEntropy(offsets=(0, 1))))


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        ({"counts": [1.5, 2]}, "counts: type 0 has 1.5 samples"),
        ({"counts": [0, 2]}, "counts: type 0 has 0 samples"),
        ({"counts": [[1, 2]]}, r"counts=\[\[1, 2\]\]: give one count a type"),
        ({"counts": [1, 2, 3]}, r"targets: shape \(2, 2\); give one row a type, \(3, K\)"),
        (
            {"targets": [[1, 0.1], [0, 1]]},
            r"targets: type 0 has \[1.0, 0.1\]; give shares of the classes that sum to 1",
        ),
        ({"targets": [[1.5, -0.5], [0, 1]]}, "targets: type 0"),
        ({"targets": [[np.nan, 1], [0, 1]]}, "targets: type 0"),
        ({"targets": [[1, 0], [1, 0]]}, "targets: class 1 has no share of any type; drop the class"),
        ({"loss": MSE()}, "loss=MSE.*labels of types are distributions; give CrossEntropy"),
        ({"loss": CrossEntropy(margins=(1, 2))}, "loss: margins.*leave them out"),
        ({"loss": CrossEntropy(smoothing=0.1)}, "loss: smoothing.*mix it into targets"),
        ({"loss": CrossEntropy(offsets=(1, 2, 3))}, "loss: 3 values .* for 2 classes"),
        ({"lambda_h": [1e-3] * 3}, r"lambda_h: shape \(3,\)"),
    ],
)
def test_misuse(arguments, fragment):
    given = {"counts": [3, 2], "targets": [[1, 0], [0.5, 0.5]], "lambda_w": 1e-2, "lambda_h": 1e-3} | arguments
    with pytest.raises(CollapseError, match=fragment) as error:
        UFM.from_types(**given)
    assert "\n" not in str(error.value)


def test_types_stay_with_the_problem():
    problem = UFM.from_types(*COINCIDING, PENALTY, PENALTY, names=["a", "b", "c"])
    assert replace(problem, lambda_w=1.0).types is problem.types
    assert "4 types" in repr(problem)
    with pytest.raises(CollapseError, match="counts: not those of the types"):
        replace(problem, counts=[1, 2, 3])
    with pytest.raises(CollapseError, match="class_weights"):
        replace(problem, class_weights=[1, 2, 3])
    with pytest.raises(CollapseError, match=r"give \(K, d\) and \(T, d\) with K = 3 and T = 4"):
        problem.objective(np.zeros((3, 2)), np.zeros((3, 2)))
    with pytest.raises(CollapseError, match="features: type 3 has -1"):
        certify(problem, np.zeros((3, 1)), [[0], [0], [0], [-1]])
