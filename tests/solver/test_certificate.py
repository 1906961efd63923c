"""Certificates: never above any value found by any means, exact where the optimum is known, wrong ones are caught."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.optimize import minimize

from _support.oracles import brute_force
from _support.oracles import polar as polar_by_loops
from _support.solver_problems import KINDS, perturbed, random_point, random_problem
from _support.strategies import examples
from _support.tolerances import BOUND, DUAL_ROUNDING, EXACT, SOLVED
from collapsekit import (
    MSE,
    UFM,
    CollapseError,
    CrossEntropy,
    Focal,
    Hinge,
    certify,
    long_tail,
    predict,
    solve,
    thresholds,
)
from collapsekit.losses.sums import Dual, SoftmaxSum
from collapsekit.solver import _certify as certificates
from collapsekit.solver import polar
from collapsekit.solver.model import Balanced
from collapsekit.solver.newton import Local


def bounds_and_values(rng, problem):
    """Every lower bound and every objective at hand: of the solver, at random points, near the solution."""
    solution = solve(problem, seed=int(rng.integers(100)), max_steps=400)
    points = [random_point(rng, problem) for _ in range(2)]
    points += [perturbed(rng, problem, solution, scale) for scale in (1e-1, 1e-3)]
    found = [certify(problem, *point) for point in points]
    own = certify(problem, solution.weights, solution.features, solution.bias)
    return [one.lower_bound for one in [*found, own, solution]], [one.objective for one in [*found, own, solution]]


def assert_bounds_hold(rng, problem):
    bounds, values = bounds_and_values(rng, problem)
    assert max(bounds) <= min(values) * (1 + DUAL_ROUNDING), (problem, bounds, values)
    return (min(values) - max(bounds)) / min(values)


@pytest.mark.parametrize("kind", KINDS)
def test_no_lower_bound_is_above_the_best_value(kind):
    rng = np.random.default_rng(KINDS.index(kind))
    for _ in range(examples(130)):  # 8 kinds: 1,040 problems, five certificates each
        assert_bounds_hold(rng, random_problem(rng, kind))


BROKEN = {
    "a free bias whose gradient does not sum to zero": (
        SoftmaxSum,
        "_mended",
        lambda loss, p, apart, most: (apart, 0 * apart),
        {"kind": "plain", "bias": "free"},
    ),
    "a polar a tenth too small": (
        certificates,
        "upper_bound",
        lambda *args: (0.81 * polar.upper_bound(*args)[0], ""),
        {"kind": "plain"},
    ),
    "a polar of the whole sphere's smallest axis": (
        certificates,
        "upper_bound",
        lambda A, *rest: (np.diagonal(A).min(), ""),
        {"kind": "mse"},
    ),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_certificate_fails_the_same_test(fault, monkeypatch):
    owner, name, replacement, restriction = BROKEN[fault]
    rng = np.random.default_rng(1)
    problems = [random_problem(rng, **restriction) for _ in range(20)]
    for problem in problems:
        assert_bounds_hold(np.random.default_rng(2), problem)
    monkeypatch.setattr(owner, name, replacement)
    if name == "_mended":  # the solver's own bias is optimal; that of the points is not, unless it is re-optimised
        monkeypatch.setattr(certificates, "optimal_bias", lambda model, logits, b: b)
    failed = 0
    for problem in problems:
        try:
            assert_bounds_hold(np.random.default_rng(2), problem)
        except AssertionError:
            failed += 1
    assert failed > 0


def test_a_missing_charge_for_a_penalised_bias_is_caught(monkeypatch):
    rng = np.random.default_rng(3)
    problems = [random_problem(rng, "plain", bias=0.01) for _ in range(10)]
    monkeypatch.setattr(certificates, "optimal_bias", lambda model, logits, b: b)
    for problem in problems:
        assert_bounds_hold(np.random.default_rng(4), problem)
    monkeypatch.setattr(Dual, "drift", lambda dual, t: 0 * dual.gradient[0])

    def all_hold():
        for problem in problems:
            assert_bounds_hold(np.random.default_rng(4), problem)

    with pytest.raises(AssertionError):
        all_hold()


@pytest.mark.parametrize("loss", [CrossEntropy(), CrossEntropy(0.1, (0.5, 0.2, 0, 1), 2.0), MSE()], ids=str)
@pytest.mark.parametrize("scale", [1, 30])
def test_the_closed_form_is_certified_to_the_last_digits(loss, scale):
    problem = UFM([500, 300, 40, 10], 3e-2 * scale**0.5, 1e-4 * scale**0.5, loss=loss)
    frame = predict(problem)
    found = certify(problem, *frame.weights_and_features())
    assert found.gap <= BOUND
    assert found.stationarity <= SOLVED
    assert_allclose(found.objective, frame.objective, rtol=EXACT)
    assert found.polar <= 1 + BOUND


def test_the_hinge_in_closed_form_is_nearly_certified_from_the_point_alone():
    problem = UFM([500, 300, 40, 10], 3e-3, 1e-5, loss=Hinge())
    assert certify(problem, *predict(problem).weights_and_features()).gap <= 1


def test_brute_force_lies_between_the_bound_and_the_objective():
    problem = UFM([60, 25, 8], 2e-2, 1e-3, loss=CrossEntropy(0.05))
    found = brute_force(problem)
    certificate = certify(problem, found.weights, found.features)
    assert certificate.gap <= BOUND
    assert_allclose(certificate.objective, found.objective, rtol=EXACT)


def test_focal_has_no_certificate_and_says_so():
    problem = UFM([60, 25, 8], 2e-2, 1e-3, loss=Focal(2.0))
    certificate = certify(problem, *np.zeros((2, 3, 2)))
    assert certificate.lower_bound == -np.inf
    assert certificate.kind == "none (the focal loss is not convex)"
    assert certificate.to_dict()["lower_bound"] is None


def test_stationary_but_spurious_is_told_from_optimal():
    problem = UFM([60, 25, 8], 2e-3, 1e-3)
    zero = certify(problem, *np.zeros((2, 3, 2)))
    assert zero.stationarity == 0
    assert zero.polar > 1.5
    assert zero.gap > 0.1


@pytest.mark.parametrize(
    ("change", "fragment"),
    [
        ({"problem": 3}, "problem=3"),
        ({"weights": np.zeros((2, 2))}, "both must be"),
        ({"features": np.full((3, 2), np.nan)}, "features: not finite"),
        ({"features": np.array([[1.0, 1], [0, -2], [1, 1]])}, "class 1 has -2"),
        ({"bias": np.zeros(3)}, "the problem has none"),
    ],
)
def test_misuse(change, fragment):
    arguments = {"problem": UFM([5, 3, 2], 0.1, 0.1), "weights": np.ones((3, 2)), "features": np.ones((3, 2))} | change
    with pytest.raises(CollapseError, match=fragment):
        certify(**arguments)


# The polar


def random_square(rng, size):
    Y = rng.normal(size=(int(rng.integers(1, size + 2)), size)) + rng.normal()
    return Y, Y.T @ Y


def test_the_exact_polar_is_that_of_all_supports_one_by_one():
    rng = np.random.default_rng(0)
    for _ in range(examples(60)):
        Y, A = random_square(rng, int(rng.integers(1, 8)))
        square, v = polar.by_supports(A)
        assert_allclose(np.sqrt(square), polar_by_loops(Y), rtol=BOUND)
        assert (v >= 0).all()
        assert_allclose([np.linalg.norm(v), np.linalg.norm(Y @ v)], [1, np.sqrt(square)], rtol=BOUND)


def test_polar_bounds_are_upper_bounds_and_ascents_lower_ones():
    rng = np.random.default_rng(1)
    for _ in range(examples(100)):
        Y, A = random_square(rng, int(rng.integers(2, 8)))
        exact = polar_by_loops(Y) ** 2 * (1 - BOUND)
        V = np.maximum(rng.normal(size=(len(A), 3)), 0)
        for target in (1e-3 * exact, exact, np.inf):
            assert polar.upper_bound(A, V, True, target)[0] >= exact
        v = polar.ascents(A, True, np.eye(len(A)))
        assert (v >= 0).all()
        assert np.einsum("ij,jk,ik->i", v, A, v).max() <= exact * (1 + 3 * BOUND)
        assert_allclose(polar.upper_bound(A, None, False, 0.0)[0], np.linalg.norm(Y, 2) ** 2, rtol=BOUND)


@pytest.mark.parametrize("most", [40, 1])
def test_features_of_an_optimum_close_the_gap_without_exact_polar_or_semidefinite_program(most, monkeypatch):
    monkeypatch.setattr(polar, "LARGEST_EXACT", 0)
    monkeypatch.setattr(polar, "LARGEST_SEMIDEFINITE", 0)
    monkeypatch.setattr(polar, "EXACT_LEAST_SQUARES", most)
    penalty = np.sqrt(5 * thresholds(UFM(long_tail(5000, 50, 20), 1, 1)).minority_collapse)
    solution = solve(UFM(long_tail(5000, 50, 20), penalty, penalty, bias="free"))
    assert solution.certificate.kind == polar.COMPLEMENTARY
    assert solution.gap <= SOLVED


def test_the_exact_polar_of_a_multiple_eigenvalue():
    assert_allclose(polar.by_supports(np.eye(6))[0], 1, rtol=EXACT)
    block = np.kron(np.eye(3), np.ones((2, 2)))
    assert_allclose(polar.by_supports(block)[0], 2, rtol=EXACT)


def test_the_semidefinite_bound_is_tighter_than_the_positive_part_and_never_below_the_polar():
    pytest.importorskip("cvxpy")
    rng = np.random.default_rng(2)
    for _ in range(examples(30)):
        A = random_square(rng, 6)[1]
        exact, bound = polar.by_supports(A)[0], polar.semidefinite(A)
        assert exact * (1 - BOUND) <= bound <= polar.largest_eigenvalue(np.maximum(A, 0)) * (1 + 1e-6)


@pytest.mark.parametrize("bias", ["free", 0.003, 0.3])
@pytest.mark.parametrize("seed", range(4))
def test_the_bias_of_a_bound_is_the_best_for_its_logits(bias, seed):
    rng = np.random.default_rng(seed)
    model = Balanced(UFM(np.round(10 ** rng.uniform(1, 3, 5)), 1e-2, 1e-3, bias=bias))
    base, start = rng.normal(0, 3, (5, 5)), rng.normal(0, 2, 5)

    def value(b):
        loss, gradient, _ = model.loss.evaluate(base + b)
        return loss + model.bias_penalty / 2 * (b @ b), gradient.sum(axis=0) + model.bias_penalty * b

    found = certificates.optimal_bias(model, base + start, start)
    expected = minimize(value, np.zeros(5), jac=True, method="BFGS", options={"gtol": 1e-12})
    assert value(found)[0] <= expected.fun * (1 + EXACT)


def test_what_is_left_of_a_faded_coordinate_does_not_loosen_the_bound():
    """Its features are noise, and no certificate of the optimum may hang on them."""
    counts = long_tail(3000, 30, 20)
    problem = UFM(counts, 0.15, 0.15 / counts.sum(), bias="free")
    solution, model = solve(problem, tol=1e-11), Balanced(problem)
    assert solution.certificate.kind == polar.COMPLEMENTARY
    point = model.point(solution.weights, solution.features, solution.bias)
    scaled = Local(model, point).scaled
    noise = np.random.default_rng(0).random((20, 1))
    noise *= np.sqrt(1e-12 * (point.V**2).sum()) / np.linalg.norm(noise)
    target = (model.kappa * (1 + 1e-10)) ** 2
    bound, kind = polar.upper_bound(scaled @ scaled.T, np.hstack([point.V, noise]), True, target)
    assert kind == polar.COMPLEMENTARY
    assert bound <= target
