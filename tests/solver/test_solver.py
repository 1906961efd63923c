"""solve: certified optima against closed forms, brute force and convex programming; statuses; limits; misuse."""

import math
import time

import numpy as np
import pytest
from numpy.testing import assert_allclose

from _support.oracles import brute_force
from _support.solver_problems import KINDS, random_loss, random_problem
from _support.strategies import examples
from _support.tolerances import BRUTE_GRAM, CONIC, EXACT, LIMIT, SOLVED, SOLVED_BIAS, UNITS
from collapsekit import (
    MSE,
    UFM,
    CollapseError,
    CrossEntropy,
    Focal,
    certify,
    long_tail,
    predict,
    solve,
    thresholds,
)
from collapsekit.solver import Status, newton, search, strips
from collapsekit.solver.model import Balanced, Point
from collapsekit.solver.newton import Face, Local
from collapsekit.solver.polar import complement
from collapsekit.solver.progress import Progress

COUNTS = long_tail(5000, 50, 10)
PRODUCT = float(thresholds(UFM(COUNTS, 1, 1)).minority_collapse)


def trial(scale, **arguments):
    penalty = np.sqrt(scale * PRODUCT)
    return UFM(COUNTS, penalty, penalty, **arguments)


ADJUSTED = {"loss": CrossEntropy(offsets=np.log(COUNTS / COUNTS.sum()))}


@pytest.mark.parametrize("dim", [10, 20, 100])
@pytest.mark.parametrize("scale", [0.5, 1.5])
@pytest.mark.parametrize("head", [{"bias": "free"}, ADJUSTED, {}], ids=["free bias", "adjusted", "bias-free"])
def test_every_random_start_is_certified(head, scale, dim):
    for seed in range(examples(40)):
        solution = solve(trial(scale, dim=dim, **head), seed=seed)
        assert solution.optimal, (seed, solution)
        assert solution.gap <= SOLVED
        assert solution.features.shape == (10, dim)
        assert certify(solution.problem, solution.weights, solution.features, solution.bias).gap <= SOLVED


@pytest.mark.parametrize("scale", [0.5, 1.5])
def test_the_bias_free_optimum_is_that_of_the_closed_form(scale):
    problem = trial(scale, dim=20)
    frame, solution = predict(problem), solve(problem)
    assert_allclose(solution.objective, frame.objective, rtol=EXACT)
    assert (solution.collapses == frame.collapses).all()
    far = solution.geometry().distance(frame.geometry())
    assert max(far.residual.values()) <= BRUTE_GRAM


@pytest.mark.parametrize("kind", ["plain", "smoothed", "margins", "mse", "focal", "hinge"])
def test_random_bias_free_problems_reach_the_closed_form(kind):
    rng = np.random.default_rng(KINDS.index(kind) if kind in KINDS else 99)
    for _ in range(examples(30)):
        problem = random_problem(rng, kind, bias=None, relu=True)
        expected, solution = predict(problem).objective, solve(problem)
        allowed = SOLVED_BIAS if kind == "hinge" else SOLVED  # the hinge is smoothed
        assert solution.objective <= expected * (1 + allowed), (problem, solution)
        if kind != "focal":
            assert solution.lower_bound <= expected * (1 + EXACT)


@pytest.mark.parametrize("bias", ["free", "penalised"])
def test_random_bias_problems_are_certified(bias):
    rng = np.random.default_rng(len(bias))
    kinds = ("plain", "adjusted", "scaled", "smoothed", "margins", "weighted smoothing", "mse")
    for i in range(examples(105)):
        penalty = "free" if bias == "free" else float(10 ** rng.uniform(-3, 0))
        problem = random_problem(rng, kinds[i % len(kinds)], bias=penalty, relu=True, most=8)
        solution = solve(problem, tol=SOLVED_BIAS)
        assert solution.optimal, (i, problem, solution)


def test_brute_force_finds_nothing_below():
    rng = np.random.default_rng(5)
    for _ in range(examples(10)):
        problem = random_problem(rng, "smoothed", bias=None, relu=True, most=4)
        assert solve(problem).objective <= brute_force(problem, starts=1).objective * (1 + SOLVED)


# Facts about a free bias (docs/theory.md)


def bias_geometry(counts, scale=0.2):
    unit = UFM(counts, 1, 1)
    penalty = np.sqrt(scale * thresholds(unit).minority_collapse)
    solution = solve(UFM(counts, penalty, penalty, bias="free"))
    assert solution.optimal, solution
    return solution.geometry()


def cosines(geometry, alive):
    block = geometry.feature_cosines[np.ix_(alive, alive)]
    return block[~np.eye(len(alive), dtype=bool)]


def test_a_free_bias_keeps_the_frame_under_mild_imbalance():
    geometry = bias_geometry([120, 110, 100, 90])
    assert_allclose(cosines(geometry, range(4)), 0, atol=BRUTE_GRAM)
    bias_free = predict(UFM([120, 110, 100, 90], 1e-3, 1e-3))
    assert (bias_free.feature_sqnorms > 0).all()


def test_beyond_it_the_largest_class_goes_to_the_origin():
    norms = {}
    for r in (2, 3, 4, 6):
        problem = UFM([100 * r, 100, 100, 100], 1e-2, 1e-3, bias="free")
        solution = solve(problem)
        assert solution.optimal
        geometry = solution.geometry()
        norms[r] = geometry.feature_sqnorms[0] / geometry.feature_sqnorms.max()
        off = cosines(geometry, [1, 2, 3])
        assert (off.max() <= BRUTE_GRAM) if r == 2 else (r == 3 or 0.1 < off.min() <= off.max() < 0.5)
    assert norms[2] > norms[3] > norms[4]
    assert max(norms[4], norms[6]) <= 1e-8


def test_two_equally_large_classes_both_survive():
    geometry = solve(UFM([600, 600, 100, 100], 1e-2, 1e-3, bias="free")).geometry()
    assert (geometry.feature_sqnorms[:2] > 0.01 * geometry.feature_sqnorms.max()).all()


def test_complete_collapse_with_a_bias_costs_the_entropy_of_the_shares():
    counts = np.array([60, 30, 10])
    solution = solve(UFM(counts, 1.0, 1.0, bias="free"))
    shares = counts / 100
    assert_allclose(solution.objective, -(shares @ np.log(shares)), rtol=SOLVED)
    assert_allclose(solution.bias - solution.bias.mean(), np.log(shares) - np.log(shares).mean(), atol=1e-6)
    assert solution.collapses.all()


# Without ReLU, few dimensions, per-class penalties


def conic_objective(problem):
    """Cross-entropy or squared error with the nuclear norm, by an interior-point method (cvxpy)."""
    cp = pytest.importorskip("cvxpy")
    size, n = problem.num_classes, problem.counts
    lambda_h = np.broadcast_to(problem.lambda_h, size)
    kappa = np.sqrt(problem.lambda_w)
    Z, alpha, loss = cp.Variable((size, size)), problem.loss_weights, problem.loss
    b = cp.Variable(size) if problem.bias is not None else np.zeros(size)
    value = kappa * cp.normNuc(cp.diag(np.sqrt(lambda_h * n)) @ Z)
    if isinstance(problem.bias, float):
        value += 0.5 * problem.bias * cp.sum_squares(b)
    for k in range(size):
        z = Z[k] + b
        if isinstance(loss, MSE):
            value += alpha[k] * 0.5 * cp.sum_squares(z - np.eye(size)[k])
        else:
            scales = np.ones(size) if loss.scales is None else np.array(loss.scales)
            offsets = np.zeros(size) if loss.offsets is None else np.array(loss.offsets)
            u = cp.multiply(scales / loss.temperature, z) + offsets
            y = (1 - loss.smoothing) * np.eye(size)[k] + loss.smoothing / size
            value += alpha[k] * (cp.log_sum_exp(u) - y @ u)
    return cp.Problem(cp.Minimize(value)).solve(solver=cp.CLARABEL)


@pytest.mark.parametrize("kind", ["plain", "adjusted", "scaled", "smoothed", "mse"])
def test_without_relu_the_optimum_is_that_of_the_nuclear_norm(kind):
    rng = np.random.default_rng(KINDS.index(kind) + 50)
    for _ in range(examples(10)):
        problem = random_problem(rng, kind, relu=False, most=5)
        solution = solve(problem)
        assert solution.optimal, solution
        assert_allclose(solution.objective, conic_objective(problem), rtol=CONIC)


def test_each_dimension_too_small_is_honest_about_it():
    objectives = []
    for dim in range(1, 10):
        solution = solve(trial(0.5, dim=dim), starts=2)
        assert solution.features.shape == (10, dim)
        assert solution.status is Status.NARROW
        assert solution.needed == 10
        assert solution.certificate.stationarity <= 1e-6
        assert solution.lower_bound <= predict(trial(0.5)).objective * (1 + EXACT) <= solution.objective
        objectives.append(solution.objective)
    assert (np.diff(objectives) < 0).all()


def test_a_small_dimension_that_suffices_is_certified():
    problem = trial(400, dim=3)
    assert predict(problem).collapses.sum() >= 7
    assert solve(problem).optimal


def test_penalties_per_class_equal_merged_counts_of_the_same_product():
    lambda_h = np.array([2e-3, 1e-3, 4e-3])
    problem = UFM([200, 100, 25], 1e-2, lambda_h, bias="free")
    solution = solve(problem)
    assert solution.optimal
    assert_allclose(
        predict(UFM([200, 100, 25], 1e-2, lambda_h)).objective,
        solve(UFM([200, 100, 25], 1e-2, lambda_h)).objective,
        rtol=SOLVED,
    )
    scaled = UFM([200, 100, 25], 4e-2, lambda_h / 4, bias="free")  # only products matter
    assert_allclose(solve(scaled).objective, solution.objective, rtol=SOLVED)


@pytest.mark.parametrize("kind", ["scaled", "weighted smoothing"])
def test_scales_and_weighted_smoothing_are_certified_at_any_bias(kind):
    loss = random_loss(np.random.default_rng(0), kind, COUNTS)
    for bias in (None, "free", 0.01):
        assert solve(trial(0.5, loss=loss, bias=bias)).optimal


# The Newton step's products


@pytest.mark.parametrize("kind", [*KINDS, "focal"])
@pytest.mark.parametrize("parts", ["", "sparse", "strips"])
def test_hessian_products_are_differences_of_gradients(kind, parts, monkeypatch):
    monkeypatch.setattr(strips, "SMALL", 0 if parts else 99)
    monkeypatch.setattr(strips, "DENSE", 0)
    monkeypatch.setattr(strips, "FEW", {"sparse": 99, "strips": 1}.get(parts, 0))
    rng = np.random.default_rng(0)
    problem = random_problem(rng, kind, bias=0.3, relu=True)
    model, size = Balanced(problem, smoothing=0.3), problem.num_classes
    point = Point(*rng.normal(size=(2, size, 4)), rng.normal(size=size))
    point = Point(point.U, np.maximum(point.V, 0), point.b)
    face = Face(Local(model, point))
    step = rng.normal(size=face.lower.size)
    step[: point.U.size + face.pattern.rows.size][point.U.size :] = np.abs(
        step[point.U.size :][: face.pattern.rows.size]
    )  # into the orthant
    tiny = 1e-6

    def slope(at):
        from collapsekit.solver.newton import unpack

        return face.reduced(*unpack(Local(model, at).gradient, point.V.shape))

    difference = (slope(face.moved(tiny * step)) - slope(point)) / tiny
    half = (slope(face.moved(0.5 * tiny * step)) - slope(point)) / (0.5 * tiny)
    expected = 2 * half - difference  # second order
    assert_allclose(face.curve(step), expected, rtol=0, atol=100 * UNITS * np.abs(expected).max())
    assert (face.metric().diagonal > 0).all()


def test_the_metric_of_steps_is_positive_and_inverted():
    counts = long_tail(3000, 40, 40)
    model = Balanced(UFM(counts, 0.02, 0.02 / counts.sum(), bias="free"))
    rng = np.random.default_rng(0)
    point = Point(rng.normal(size=(40, 40)), np.tril(rng.random((40, 40))), rng.normal(size=40))
    here = search.descend(model, point, newton.PAIRED, Progress(500))
    metric = Face(here).metric()
    assert isinstance(metric, newton.Coupled)
    matrix = np.stack([metric.times(axis) for axis in np.eye(metric.diagonal.size)])
    assert_allclose(matrix, matrix.T, rtol=0, atol=1e-15)
    free = rng.random(len(matrix)) < 0.7
    free[metric.one] = True
    solve_with, x = metric.inverse(free), rng.normal(size=len(matrix))
    expected = np.zeros(len(matrix))
    expected[free] = np.linalg.solve(matrix[np.ix_(free, free)], x[free])
    assert_allclose(solve_with(x), expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max())
    assert np.linalg.eigvalsh(matrix).min() > 0


# Statuses, limits, misuse


def test_the_focal_loss_is_solved_without_certificate():
    problem = trial(0.5, loss=Focal(2.0), dim=20)
    solution = solve(problem)
    assert solution.status is Status.NO_CERTIFICATE
    assert_allclose(solution.objective, predict(problem).objective, rtol=SOLVED)


def test_a_step_limit_keeps_the_best_point():
    problem = trial(0.5, dim=20, bias="free")
    solution = solve(problem, max_steps=3)
    assert solution.status is Status.STEP_LIMIT
    assert solution.steps == 3
    assert solution.objective < 2
    assert_allclose(
        solution.objective, problem.objective(solution.weights, solution.features, solution.bias), rtol=EXACT
    )


def test_a_time_limit_keeps_the_best_point():
    problem = UFM(long_tail(5000, 50, 300), 1e-3, 1e-6, bias="free", dim=450)
    solution = solve(problem, time_limit=0.05)
    assert solution.status is Status.TIME_LIMIT
    assert np.isfinite(solution.objective)


def test_after_the_deadline_a_step_ends_within_a_few_products(monkeypatch):
    """A clock that shows the products so far: however long one takes, what is left after the deadline is bounded."""
    products, original = [0], Face.curve

    def counted(self, step):
        products[0] += 1
        return original(self, step)

    monkeypatch.setattr(Face, "curve", counted)
    monkeypatch.setattr(time, "monotonic", lambda: float(products[0]))
    counts = long_tail(5000, 50, 60)
    for limit in (20, 60, 120):
        products[0] = 0
        solution = solve(UFM(counts, 5e-4, 5e-4 / counts.sum(), bias="free"), time_limit=limit)
        assert limit < products[0] <= limit + 14  # one of conjugate gradients, and at most 12 of the search along them
        assert solution.status is Status.TIME_LIMIT
        assert solution.lower_bound < solution.objective < np.log(60)


def test_after_the_deadline_a_bound_is_not_sharpened_any_more(monkeypatch):
    rng, calls = np.random.default_rng(0), [0]
    Y, V = rng.normal(size=(60, 60)), np.kron(np.eye(30), np.ones((2, 1))) * rng.random((60, 1))

    def clock():
        calls[0] += 1
        return float(calls[0])

    monkeypatch.setattr(time, "monotonic", clock)
    complement(Y @ Y.T / 240, V, until=3.0)
    assert calls[0] <= 5


@pytest.mark.parametrize("dim", [None, 5, 20])
def test_ctrl_c_keeps_the_best_point(dim, monkeypatch):
    original, calls = search.Search.offer, []

    def interrupted(self, model, here):
        if not calls:
            calls.append(1)
            raise KeyboardInterrupt
        original(self, model, here)

    monkeypatch.setattr(search.Search, "offer", interrupted)
    solution = solve(trial(0.5, dim=dim), max_steps=50)
    assert solution.status is Status.INTERRUPTED or solution.optimal
    assert solution.objective < np.log(10)


def test_a_start_is_used_and_an_optimal_one_kept():
    problem = trial(1.5, dim=12)
    frame = predict(problem)
    solution = solve(problem, start=frame.weights_and_features())
    assert solution.optimal
    assert_allclose(solution.objective, frame.objective, rtol=EXACT)


def test_more_starts_never_raise_the_objective():
    problem = trial(0.5, dim=4, bias="free")
    one, three = solve(problem, starts=1), solve(problem, starts=3)
    assert three.objective <= one.objective * (1 + EXACT)
    assert three.steps > one.steps


def test_a_solution_says_what_it_is():
    solution = solve(UFM([50, 20, 10], 1e-2, 1e-3, bias="free", names=["a", "b", "c"]))
    assert "\n" not in repr(solution)
    assert solution.geometry().names == ("a", "b", "c")
    content = solution.to_dict()
    assert content["status"] == "globally optimal: the gap is at most the tolerance"
    assert content["certificate"]["objective"] == solution.objective
    assert solve(UFM([50, 20, 10], 1e-2, 1e-3)).bias is None


@pytest.mark.parametrize("bias", [None, 0.1, "free"])
def test_confidences_and_margins_are_those_of_the_head_on_the_features(bias):
    solution = solve(UFM([50, 20, 10], 1e-2, 1e-3, bias=bias))
    for k, h in enumerate(solution.features):
        logits = [float(w @ h) for w in solution.weights]
        if bias is not None:
            logits = [z + float(b) for z, b in zip(logits, solution.bias, strict=True)]
        odds = sum(math.exp(z - logits[k]) for z in logits)
        assert_allclose(solution.confidences[k], 1 / odds, rtol=EXACT)
        others = [z for j, z in enumerate(logits) if j != k]
        assert_allclose(solution.margins[k], logits[k] - sum(others) / len(others), rtol=EXACT, atol=EXACT)
    if bias is None:
        assert_allclose(solution.margins, solution.geometry().margins, rtol=EXACT)


def test_confidences_are_those_of_the_closed_form_at_any_temperature():
    problem = UFM([50, 20, 10], 1e-2, 1e-3, loss=CrossEntropy(temperature=2.0, smoothing=0.1))
    assert_allclose(solve(problem).confidences, predict(problem).confidences, rtol=1e-6)


def test_permuted_classes_give_the_permuted_solution():
    order = np.random.default_rng(0).permutation(10)
    problem = trial(0.5, bias="free")
    one, two = solve(problem), solve(UFM(COUNTS[order], problem.lambda_w, problem.lambda_h, bias="free"))
    assert_allclose(two.objective, one.objective, rtol=SOLVED)
    assert_allclose(two.geometry().feature_sqnorms, one.geometry().feature_sqnorms[order], rtol=LIMIT)


def test_extreme_penalties_do_not_crash():
    for product in (1e-12, 1e6):
        assert solve(UFM([50, 20], product, product), max_steps=200).status
    far = UFM([50, 20], 1e-3, 1e-3)
    start = (np.full((2, 2), 1e160), np.full((2, 2), 1e160))
    lost = solve(far, start=start, max_steps=50)
    assert lost.status is Status.NOT_FINITE
    assert_allclose(lost.objective, np.log(2), rtol=EXACT)


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        ({"problem": "x"}, "problem='x'"),
        ({"tol": 0}, "tol=0"),
        ({"starts": 0}, "starts=0"),
        ({"seed": -1}, "seed=-1"),
        ({"max_steps": 0.5}, "max_steps=0.5"),
        ({"time_limit": -1}, "time_limit=-1"),
        ({"start": 3}, "start=3"),
        ({"start": (np.ones((2, 2)), -np.ones((2, 2)))}, "class 0 has -1"),
        ({"start": (np.ones((2, 2)), np.full((2, 2), np.nan))}, "features: not finite"),
        ({"start": (np.ones((2, 2)), np.ones((2, 2)), np.zeros(2))}, "the problem has none"),
    ],
)
def test_misuse(arguments, fragment):
    with pytest.raises(CollapseError, match=fragment):
        solve(**({"problem": UFM([5, 3], 0.1, 0.1)} | arguments))


def test_progress_ends_once():
    progress = Progress(2)
    assert not progress.spent()
    progress.taken = 2
    assert progress.spent()
    assert progress.ended is Status.STEP_LIMIT
