"""The solver: cases that came out wrong once, each with siblings of its kind."""

from functools import cache

import mpmath
import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax

from collapsekit import MSE, UFM, CrossEntropy, Hinge, certify, predict, solve
from collapsekit.solver import landscape

NO_WORSE = 1e-7
"""Relative, of an objective beside that of a plain descent."""

# A4: fewer dimensions than classes


def descended(problem, rng):
    """Objective, weights and features of plain cross-entropy after bounded L-BFGS from one random start."""
    size, shape = problem.num_classes, (problem.num_classes, problem.dim)
    alpha, cost = problem.loss_weights[:, None], (problem.lambda_h * problem.counts)[:, None]
    units = problem.lambda_w**-0.5, cost**-0.5  # of W and H in balanced variables
    free = size if problem.bias == "free" else 0

    def parts(x):
        U, V = x[free:].reshape(2, *shape)
        return U * units[0], V * units[1], x[:free] if free else np.zeros(size)

    def objective(x):
        W, H, b = parts(x)
        logs = log_softmax(H @ W.T + b, axis=1)
        G = alpha * (np.exp(logs) - np.eye(size))
        slopes = G.sum(axis=0)[:free], G.T @ H * units[0], G @ W * units[1]
        rest = x * (np.arange(x.size) >= free)
        return 0.5 * rest @ rest - alpha[:, 0] @ np.diagonal(logs), np.concatenate([s.ravel() for s in slopes]) + rest

    scale = (problem.lambda_w * cost.max()) ** 0.25
    signed, positive = rng.normal(size=(2, size * problem.dim))
    start = np.concatenate([np.zeros(free), scale * signed, scale * np.abs(positive)])
    bounds = [(None, None)] * (free + signed.size) + [(0, None)] * positive.size
    options = {"maxiter": 3000, "maxfun": 6000, "ftol": 1e-15, "gtol": 1e-10}
    found = minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    return found.fun, *parts(found.x)[: 3 if free else 2]


@cache
def best_descent(problem, starts=10):
    """The best of some descents: an upper bound on the optimum."""
    rng = np.random.default_rng(0)
    return min((descended(problem, rng) for _ in range(starts)), key=lambda found: found[0])


def narrow_problem(seed):
    """A random problem of plain cross-entropy with fewer dimensions than classes, far from its thresholds or not."""
    rng = np.random.default_rng([11, seed])
    size = int(rng.integers(3, 11))
    dim = int(rng.integers(1, size))
    counts = np.full(size, 100) if rng.random() < 0.3 else np.round(10 ** rng.uniform(1, 3, size)).astype(int)
    product = np.median(counts) / counts.sum() ** 2 * 10 ** rng.uniform(-4, -0.3)
    ratio = 10 ** rng.uniform(-1, 1)
    bias = "free" if rng.random() < 0.5 else None
    return UFM(counts, (product * ratio) ** 0.5, (product / ratio) ** 0.5, bias=bias, dim=dim)


NARROW = {
    "four in two": (UFM([100] * 4, 1e-3, 1e-3, dim=2), 0.5013),
    "four in three": (UFM([100] * 4, 1e-3, 1e-3, dim=3), 0.2709),
    "five in two, free bias": (UFM([100] * 5, 1e-4, 1e-4, bias="free", dim=2), 0.0654),
}


@pytest.mark.parametrize(("problem", "value"), NARROW.values(), ids=NARROW)
def test_a_plain_descent_finds_the_known_values(problem, value):
    found = best_descent(problem, 20)
    assert found[0] <= value + 5e-5
    assert problem.objective(*found[1:]) == pytest.approx(found[0], rel=1e-12)


@pytest.mark.parametrize(("problem", "value"), NARROW.values(), ids=NARROW)
def test_narrow_features_are_solved_as_well_as_by_a_plain_descent(problem, value):
    solution = solve(problem)
    assert solution.objective <= value + 5e-5
    assert not solution.collapses.any()


@pytest.mark.parametrize("name", NARROW)
def test_a_solution_is_no_worse_than_its_start(name):
    problem = NARROW[name][0]
    objective, *start = best_descent(problem, 20)
    assert solve(problem, start=tuple(start)).objective <= objective * (1 + NO_WORSE)


def worse_than_descent(seeds):
    """The seeds of narrow problems whose solution is worse than the best of ten descents, with both objectives."""
    pairs = {seed: (solve(narrow_problem(seed)).objective, best_descent(narrow_problem(seed))[0]) for seed in seeds}
    return {seed: (mine, plain) for seed, (mine, plain) in pairs.items() if mine > plain * (1 + NO_WORSE)}


def test_random_narrow_problems_are_solved_as_well_as_by_plain_descents():
    assert worse_than_descent(range(6)) == {}


@pytest.mark.heavy
def test_two_hundred_random_narrow_problems_are_solved_as_well_as_by_plain_descents():
    assert worse_than_descent(range(200)) == {}


# A5: bounds and objectives where 1 - p is small


def exact_optimum(counts, lambda_w, lambda_h):
    """The optimal objective of plain cross-entropy to 50 digits, by the closed form."""
    with mpmath.workdps(50):
        size, total, product = len(counts), mpmath.mpf(sum(counts)), mpmath.mpf(lambda_w) * mpmath.mpf(lambda_h)
        value = mpmath.mpf(0)
        for n in counts:
            error = total * mpmath.sqrt(product * (size - 1) / (size * mpmath.mpf(n)))
            margin = max(mpmath.mpf(0), mpmath.log((size - 1) * (1 - error) / error)) if error < 1 else mpmath.mpf(0)
            price = mpmath.sqrt(product * n * (size - 1) / mpmath.mpf(size))
            value += n / total * mpmath.log(1 + (size - 1) * mpmath.exp(-margin)) + price * margin
        return value


SMALL = {
    "1e-1": ([500, 300, 40, 10], 1e-1, 1e-1 / 850),
    "1e-3": ([500, 300, 40, 10], 1e-3, 1e-3 / 850),
    "six": ([300, 200, 100, 50, 20, 10], 1e-8, 1e-9),
    "1e-6": ([500, 300, 40, 10], 1e-6, 1e-6 / 850),
    "1e-9": ([500, 300, 40, 10], 1e-9, 1e-9 / 850),
    "1e-12": ([500, 300, 40, 10], 1e-12, 1e-12 / 850),
}


@pytest.mark.parametrize("problem", SMALL.values(), ids=SMALL)
def test_the_closed_form_keeps_its_digits_at_small_penalties(problem):
    assert abs(mpmath.mpf(predict(UFM(*problem)).objective) / exact_optimum(*problem) - 1) < 1e-15


@pytest.mark.parametrize("problem", SMALL.values(), ids=SMALL)
def test_no_lower_bound_lies_above_the_optimum(problem):
    exact = exact_optimum(*problem)
    excesses = [mpmath.mpf(solve(UFM(*problem), seed=seed).lower_bound) / exact - 1 for seed in range(6)]
    assert max(excesses) <= 0


@pytest.mark.parametrize("problem", [SMALL["1e-9"], ([80, 20], 1e-8, 1e-10)], ids=["1e-9", "two classes"])
def test_no_objective_lies_below_the_optimum(problem):
    exact = exact_optimum(*problem)
    weights, features = predict(UFM(*problem)).weights_and_features()
    objectives = [solve(UFM(*problem), seed=seed).objective for seed in range(6)]
    objectives.append(UFM(*problem).objective(weights, features))
    assert min(mpmath.mpf(value) / exact - 1 for value in objectives) >= -1e-13


@pytest.mark.parametrize("problem", [SMALL["1e-6"], SMALL["1e-12"]], ids=["1e-6", "1e-12"])
def test_the_gap_of_the_exact_point_is_rounding(problem):
    weights, features = predict(UFM(*problem)).weights_and_features()
    found = certify(UFM(*problem), weights, features)
    assert mpmath.mpf(found.lower_bound) <= exact_optimum(*problem)
    assert 0 <= found.gap < 1e-12


# A6: remnants of a complete collapse are nothing

DEAD = {
    "plain": UFM([50, 20, 10], 1.0, 1.0),
    "balanced": UFM([100] * 5, 2.0, 0.5),
    "mse": UFM([50, 20, 10], 1.0, 1.0, loss=MSE()),
    "hinge": UFM([50, 20, 10], 1.0, 1.0, loss=Hinge()),
    "smoothed": UFM([50, 20, 10], 0.5, 0.9, loss=CrossEntropy(smoothing=0.1)),
    "without relu": UFM([7, 3, 3, 1], 3.0, 0.7, relu=False),
}


@pytest.mark.parametrize("problem", DEAD.values(), ids=DEAD)
def test_a_complete_collapse_leaves_no_class_alive(problem):
    found = [solve(problem, seed=seed) for seed in range(4)]
    assert all(np.linalg.norm(solution.features) < 1e-12 for solution in found)
    assert all(solution.collapses.all() for solution in found)


def test_a_complete_collapse_is_nothing_at_all():
    solution = solve(DEAD["plain"])
    assert not solution.features.any()
    assert not solution.margins.any()
    assert solution.confidences == pytest.approx(1 / 3, rel=1e-12)


def test_with_a_bias_the_class_at_the_origin_lives_unless_all_collapse():
    alive = solve(UFM([600, 100, 100, 100], 1e-2, 1e-3, bias="free"))
    assert alive.features[0].max() < 1e-4
    assert not alive.collapses.any()
    assert solve(UFM([600, 100, 100, 100], 1.0, 1.0, bias="free")).collapses.all()


@pytest.mark.parametrize("bias", [None, "free"])
def test_later_starts_differ_from_the_first(bias, monkeypatch):
    from collapsekit.solver import search

    begun, original = [], search.Search._any_dimension

    def noted(self, model, start):
        begun.append(start)
        return original(self, model, start)

    monkeypatch.setattr(search.Search, "_any_dimension", noted)
    problem = UFM([100] * 4, 1e-3, 1e-3, bias=bias, dim=8)
    solve(problem, starts=3, tol=1e-300)
    whole = [start for start in begun if start.V.shape[1] == 8]
    assert len(whole) >= 2
    assert not np.allclose(whole[0].V, whole[-1].V)


def test_solve_certify_and_landscape_do_not_depend_on_numpys_error_state():
    problem = UFM([500, 40, 10], 1e-9, 1e-12, bias="free", dim=5)
    with np.errstate(all="raise"):
        solution = solve(problem)
        certify(problem, solution.weights, solution.features, solution.bias)
        assert not solution.collapses.any()
        landscape(UFM([50, 20, 10], 1e-2, 1e-3, dim=4), 1, methods=("bounded L-BFGS",))
