"""The landscape, its figures and the two commands."""

import json

import matplotlib.pyplot as plt
import numpy as np
import pytest
from numpy.testing import assert_allclose

from _support.strategies import examples
from _support.tolerances import EXACT, SOLVED
from collapsekit import UFM, CollapseError, Focal, long_tail, predict, thresholds
from collapsekit.cli import main
from collapsekit.diagnosis import certify_network
from collapsekit.metrics import measure_features
from collapsekit.report import solver_figures
from collapsekit.solver import landscape, solve
from collapsekit.solver._landscape import smallest_curvature
from collapsekit.solver.model import Balanced, Point
from collapsekit.solver.newton import Face, Local

COUNTS = long_tail(5000, 50, 10)
PENALTY = float(np.sqrt(0.5 * thresholds(UFM(COUNTS, 1, 1)).minority_collapse))


@pytest.fixture(scope="module")
def narrow():
    return landscape(UFM(COUNTS, PENALTY, PENALTY, dim=10), examples(40))


def test_at_dim_k_descent_ends_above_the_optimum_with_classes_dead_that_live(narrow):
    """Published here first (docs/theory.md, section 5): bounded L-BFGS never gets there at dim = K."""
    ends = narrow.outcomes["bounded L-BFGS"]
    assert narrow.reached("bounded L-BFGS") == 0
    assert all(0.005 < end.gap < 0.3 and end.wrongly_dead > 0 for end in ends)
    assert narrow.reached("certified") == 1
    assert all(end.gap <= SOLVED and end.wrongly_dead == 0 for end in narrow.outcomes["certified"])


def test_gaps_are_relative_to_a_bound_that_holds(narrow):
    optimum = predict(narrow.problem).objective
    assert optimum * (1 - SOLVED) <= narrow.lower_bound <= optimum * (1 + EXACT)
    for ends in narrow.outcomes.values():
        for end in ends:
            assert end.objective >= optimum * (1 - EXACT)
            assert_allclose(end.gap, (end.objective - narrow.lower_bound) / end.objective, atol=EXACT)


def test_curvature_is_the_smallest_eigenvalue_and_negative_at_a_saddle():
    rng = np.random.default_rng(0)
    model = Balanced(UFM([50, 20, 10], 1e-2, 1e-3))
    for scale in (0.1, 3.0):
        here = Local(
            model, Point(scale * rng.normal(size=(3, 4)), scale * np.abs(rng.normal(size=(3, 4))), np.zeros(3))
        )
        face = Face(here)
        dense = np.stack([face.curve(row) for row in np.eye(face.lower.size)]) / model.kappa
        assert_allclose(smallest_curvature(here), np.linalg.eigvalsh(dense)[0], rtol=1e-3)
    assert smallest_curvature(here) < 0


def test_the_landscape_reads_as_what_it_is(narrow):
    content = narrow.to_dict()
    assert content["methods"]["certified"]["reached"] == 1
    json.dumps(content)
    assert "certified 100%" in repr(narrow)


def test_a_focal_landscape_is_held_against_the_best_value():
    found = landscape(UFM([50, 20, 10], 1e-2, 1e-3, loss=Focal(2.0), dim=8), 2, methods=("bounded L-BFGS",))
    assert np.isnan(found.lower_bound)
    assert list(found.outcomes) == ["bounded L-BFGS", "certified"]
    assert min(end.gap for ends in found.outcomes.values() for end in ends) == 0


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        ({"problem": 1}, "problem=1"),
        ({"problem": UFM([5, 3], 0.1, 0.1)}, "dim=None"),
        ({"starts": 0}, "starts=0"),
        ({"scale": -1}, "scale=-1"),
        ({"tol": 0}, "tol=0"),
        ({"methods": ("newton",)}, "methods: 'newton' is none of"),
    ],
)
def test_misuse(arguments, fragment):
    with pytest.raises(CollapseError, match=fragment):
        landscape(**({"problem": UFM([5, 3], 0.1, 0.1, dim=2)} | arguments))


def test_figures_draw_every_start_and_close(narrow):
    ax = solver_figures.landscape_gaps(narrow)
    assert sum(len(line.get_xdata()) for line in ax.lines if line.get_linestyle() == "None") == 4 * len(
        narrow.outcomes["certified"]
    )
    ax = solver_figures.reached_shares([1, 2], {"adam": [0.0, 0.5]}, "dim / K")
    assert_allclose(ax.lines[0].get_ydata(), [0, 0.5])
    ax = solver_figures.solution_features(solve(UFM([50, 20, 10], 1e-2, 1e-3, bias="free")))
    assert ax.images[0].get_array().shape == (3, 3)
    assert not plt.get_fignums()


# Commands

TAIL = ["--long-tail", "5000:50:10", "--lambda-w", "0.002", "--lambda-h", "0.0002"]


def run(capsys, *words):
    code = main(list(words))
    out = capsys.readouterr()
    return code, out.out, out.err


def test_solve_prints_classes_and_the_verdict(capsys, tmp_path):
    figure = tmp_path / "cosines.svg"
    code, out, _ = run(capsys, "solve", *TAIL, "--bias", "free", "--figure", str(figure))
    assert code == 0
    assert "Globally optimal: the gap is at most the tolerance (gap " in " ".join(out.split())
    assert "lower bound" in out
    assert figure.read_text(encoding="utf-8").startswith("<?xml")


def test_solve_as_json_is_the_solution(capsys):
    code, out, _ = run(capsys, "solve", *TAIL, "--logit-adjustment", "1", "--cdt", "0.1", "--dim", "3", "--json")
    content = json.loads(out)
    assert code == 0
    assert "any dimension uses more coordinates" in content["status"]
    assert content["needed"] > 3
    assert np.shape(content["weights"]) == (10, 3)
    assert content["problem"]["loss"]["offsets"][0] == pytest.approx(np.log(COUNTS[0] / COUNTS.sum()))


def test_landscape_prints_a_row_a_method(capsys, tmp_path):
    figure = tmp_path / "gaps.png"
    words = ("landscape", "50", "20", "10", "--lambda-w", "0.01", "--lambda-h", "0.001", "--dim", "4", "--starts", "2")
    code, out, _ = run(capsys, *words, "--figure", str(figure))
    assert code == 0
    assert all(name in out for name in ("gradient descent", "adam", "bounded L-BFGS", "certified"))
    assert figure.stat().st_size > 0
    assert json.loads(run(capsys, *words, "--json")[1])["methods"]["certified"]["reached"] == 1


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        (["solve", "5", "3"], "--lambda-w: missing"),
        (["solve", "5", "3", "--lambda-w", "1", "--lambda-h", "1", "--bias", "x"], "--bias='x'"),
        (["solve", "5", "3", "--lambda-w", "1", "--lambda-h", "1", "--loss", "mse", "--cdt", "1"], "--loss=mse"),
        (["landscape", "5", "3", "--lambda-w", "1", "--lambda-h", "1"], "--dim: missing"),
        (["solve", "5", "3", "--lambda-w", "1", "--lambda-h", "1", "--figure", "no/such/dir.png"], "--figure="),
    ],
)
def test_misuse_of_the_commands_is_one_line(words, fragment, capsys):
    code, _, err = run(capsys, *words)
    assert code == 2
    assert fragment in err
    assert len(err.strip().splitlines()) == 1


# A trained network


def test_a_network_is_held_against_the_bound_with_all_its_samples():
    problem = UFM([60, 30, 10], 0.01, 0.0002, bias="free")
    solution, labels = solve(problem), np.repeat([0, 1, 2], [60, 30, 10])
    noise = np.abs(np.random.default_rng(0).normal(0, 0.1, (100, solution.features.shape[1])))
    for scatter in (0.0, 1.0):
        features = solution.features[labels] + scatter * noise
        measured = measure_features(features, labels, solution.weights, solution.bias)
        found = certify_network(measured, problem)
        assert found.means.lower_bound <= solution.objective * (1 + EXACT)
        if scatter:
            assert found.gap > found.means.gap > SOLVED
        else:
            assert_allclose([found.gap, found.means.gap], 0, atol=SOLVED)
        assert_allclose(found.objective, measured.objective(problem), rtol=EXACT)
    assert found.to_dict()["gap"] == found.gap
