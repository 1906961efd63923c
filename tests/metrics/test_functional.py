"""Every neural-collapse metric against its textbook formula on raw samples; symmetries, limits, row blocks."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from _support import metric_oracles as oracles
from _support.samples import Samples, draw_samples, rotation, samples
from _support.strategies import examples, problems
from _support.tolerances import COLLAPSED_NC1, EXACT, METRICS
from collapsekit import MSE, UFM, CrossEntropy, predict, solve
from collapsekit.metrics import functional as F
from collapsekit.prediction import from_solution


def head(s):
    return torch.from_numpy(s.weight)


def centred(means):
    return means - means.mean(axis=0)


def seen_means(m):
    return m.means[m.seen]


def frame_for(s):
    """A prediction over the same classes; an unseen class still has a count in the problem."""
    counts = np.maximum(1, np.bincount(s.labels, minlength=s.num_classes))
    return predict(UFM(counts, 1e-2, 1e-3))


def options(function, name, **values):
    """One claim a value of an option: src and oracle call it by the same name."""
    return {
        f"{name}, {key}={value}": (
            lambda m, s, kw={key: value}: getattr(F, function)(m, **kw),
            lambda s, kw={key: value}: getattr(oracles, function)(*s.labelled, **kw),
        )
        for key, choices in values.items()
        for value in choices
    }


CLAIMS = {  # name: (metric of moments and samples, oracle of samples)
    **options("nc1", "nc1", centre=["samples", "classes"], per_class=[True, False]),
    **options("cdnv", "cdnv", exponent=[2, 4], unbiased=[False, True]),
    "largest_cosine": (
        lambda m, s: F.largest_cosine(m),
        lambda s: oracles.largest_cosine(oracles.seen_means(*s.labelled)),
    ),
    "etf_angles of means": (
        lambda m, s: F.etf_angles(centred(seen_means(m))),
        lambda s: oracles.etf_angles(centred(oracles.seen_means(*s.labelled))),
    ),
    "etf_angles of the head": (lambda m, s: F.etf_angles(head(s)), lambda s: oracles.etf_angles(s.weight)),
    "norm_spread of means": (
        lambda m, s: F.norm_spread(seen_means(m)),
        lambda s: oracles.norm_spread(oracles.seen_means(*s.labelled)),
    ),
    "norm_spread of the head": (lambda m, s: F.norm_spread(head(s)), lambda s: oracles.norm_spread(s.weight)),
    "duality": (lambda m, s: F.duality(head(s), m), lambda s: oracles.duality(s.weight, s.features, s.labels)),
    "generalised_duality": (
        lambda m, s: F.generalised_duality(head(s), m),
        lambda s: oracles.generalised_duality(s.weight, s.features, s.labels),
    ),
    "frame_metrics": (
        lambda m, s: F.frame_metrics(m, head(s), frame_for(s)),
        lambda s: oracles.against_frame(s.weight, s.features, s.labels, frame_for(s)),
    ),
}
claims = pytest.mark.parametrize("claim", CLAIMS)


def assert_same(actual, expected, rtol=METRICS):
    """Numbers, (number, vector) pairs or dicts of numbers."""
    if isinstance(expected, dict):
        assert actual.keys() == expected.keys()
        actual, expected = list(actual.values()), [expected[key] for key in actual]
    elif not isinstance(expected, tuple):
        actual, expected = (actual,), (expected,)
    for a, b in zip(actual, expected, strict=True):
        assert_allclose(a, b, rtol=rtol, atol=EXACT)


# against the textbook


@claims
@settings(max_examples=examples(100))
@given(s=samples())
def test_metric_equals_the_textbook_formula(claim, s):
    metric, oracle = CLAIMS[claim]
    assert_same(metric(s.moments(), s), oracle(s))


WRONG = {  # what a plausible mistake would compute
    "nc1, centre=samples": lambda m, s: F.nc1(m, centre="classes"),
    "nc1, centre=classes": lambda m, s: F.nc1(m),
    "nc1, per_class=True": lambda m, s: F.nc1(m, per_class=False),
    "nc1, per_class=False": lambda m, s: F.nc1(m),
    "cdnv, exponent=2": lambda m, s: F.cdnv(m, exponent=4),
    "cdnv, exponent=4": lambda m, s: F.cdnv(m),
    "cdnv, unbiased=False": lambda m, s: F.cdnv(m, unbiased=True),
    "cdnv, unbiased=True": lambda m, s: F.cdnv(m),
    "largest_cosine": lambda m, s: max(map(abs, oracles.cosines(centred(m.means)))),
    "etf_angles of means": lambda m, s: F.etf_angles(m.means),  # not centred
    "etf_angles of the head": lambda m, s: abs(np.mean(oracles.cosines(s.weight)) + 1 / (len(s.weight) - 1)),
    "norm_spread of means": lambda m, s: float(m.means.norm(dim=1).std() / m.means.norm(dim=1).mean()),  # over K − 1
    "norm_spread of the head": lambda m, s: float(head(s).norm(dim=1).std() / head(s).norm(dim=1).mean()),
    "duality": lambda m, s: oracles.apart(s.weight, m.means.numpy()),  # not centred
    "generalised_duality": lambda m, s: F.duality(head(s), m),  # without √n
    "frame_metrics": lambda m, s: F.frame_metrics(m, head(s), predict(UFM(m.counts.numpy(), 1e-2, 1.01e-3))),
}


@claims
def test_each_oracle_rejects_a_wrong_answer(claim):
    s = draw_samples([30, 9, 4, 2], 5, seed=4)
    wrong, right = WRONG[claim](s.moments(), s), CLAIMS[claim][1](s)
    if isinstance(right, dict):
        assert wrong.keys() == right.keys()
        for key in right:
            if key != "nc2_wwt_residual":
                assert wrong[key] != pytest.approx(right[key], rel=METRICS), key
    with pytest.raises(AssertionError):
        assert_same(wrong, right)


# symmetries


@claims
@settings(max_examples=examples(30))
@given(s=samples(), seed=st.integers(0, 2**32 - 1))
def test_rotation_and_relabelling_change_nothing(claim, s, seed):
    metric, _ = CLAIMS[claim]
    turn = rotation(s.weight.shape[1], seed)
    turned = s._replace(features=s.features @ turn, weight=s.weight @ turn)
    assert_same(metric(turned.moments(), turned), metric(s.moments(), s))
    order = np.random.default_rng(seed).permutation(s.num_classes)  # class order[k] becomes class k
    named = Samples(s.features, np.argsort(order)[s.labels], s.weight[order], s.bias[order])
    before, after = metric(s.moments(), s), metric(named.moments(), named)
    if claim.startswith("cdnv"):
        before = before[0], before[1][order]
    assert_same(after, before)


@claims
@pytest.mark.parametrize("entries", [1, 7, 20])
def test_row_blocks_give_the_same_numbers(claim, entries, monkeypatch):
    s = draw_samples([9, 5, 1, 0, 4, 3, 2], 3)
    metric, _ = CLAIMS[claim]
    whole = metric(s.moments(), s)
    monkeypatch.setattr(F, "BLOCK_ENTRIES", entries)
    assert_same(metric(s.moments(), s), whole, EXACT)


# NC1


@pytest.mark.parametrize("centre", ["samples", "classes"])
def test_nc1_of_collapsed_features_is_zero(centre):
    s = draw_samples([7, 3, 1], 4, spread=0)
    assert 0 <= F.nc1(s.moments(), centre=centre) < COLLAPSED_NC1
    dyadic = s._replace(features=np.round(s.features * 8) / 8)  # sums of these are exact
    assert F.nc1(dyadic.moments(), centre=centre) == 0


@pytest.mark.parametrize("offset", [0.0, 1e3, 1e5])
def test_nc1_of_means_on_a_line_far_from_the_origin(offset):
    """Means on a line have one direction between them; the rounding of the others must not count."""
    rng = np.random.default_rng(0)
    position, labels = np.array([0.0, 1.0, 3.0, 3.5]), rng.permutation(np.repeat(np.arange(4), [20, 10, 5, 5]))
    noise = rng.normal(size=(40, 6))
    for k in range(4):
        noise[labels == k] -= noise[labels == k].mean(axis=0)
    line, away = rotation(6)[:2]
    features = position[labels][:, None] * line + offset * away + 0.1 * noise
    s = Samples(features, labels, np.zeros((4, 6)), np.zeros(4))
    along = s._replace(features=position[labels][:, None] + 0.1 * noise @ line[:, None], weight=np.zeros((4, 1)))
    assert_same(F.nc1(s.moments()), oracles.nc1(*along.labelled))


def test_nc1_of_two_classes_with_one_mean_is_that_of_the_others():
    s = draw_samples([8, 8, 8], 2, spread=0)
    s = s._replace(features=np.where((s.labels == 2)[:, None], s.features[s.labels == 1][0], s.features))
    s = s._replace(features=s.features + 0.1 * np.random.default_rng(0).normal(size=s.features.shape))
    assert_same(F.nc1(s.moments()), oracles.nc1(*s.labelled))


# against a prediction


@settings(max_examples=examples(100))
@given(problem=problems())
def test_frame_metrics_vanish_at_the_predicted_optimum(problem):
    frame = predict(problem)
    weight, features = frame.weights_and_features()
    labels = np.repeat(np.arange(problem.num_classes), problem.counts.astype(int))
    s = Samples(features[labels], labels, weight, np.zeros(len(weight)))
    result = F.frame_metrics(s.moments(), head(s), frame)
    expected = (
        0 if frame.collapses.sum() < problem.num_classes else np.nan
    )  # where every class is dead there is no frame
    assert_allclose(list(result.values()), expected, atol=EXACT)
    assert len(result) == 7


@pytest.mark.parametrize(
    "problem",
    [
        UFM([50, 30, 10], 5e-3, 1e-3),
        UFM([100, 30, 10], 3e-3, 1e-3, bias="free"),
        UFM([100, 30, 10], 3e-3, 1e-3, loss=CrossEntropy(offsets=np.log([100 / 140, 30 / 140, 1 / 14]))),
        UFM([100, 30, 10], 1e-2, 1e-3, loss=MSE(), bias="free"),
    ],
    ids=["plain", "bias", "offsets", "squared error with a bias"],
)
def test_frame_metrics_vanish_at_a_solved_optimum(problem):
    solution = solve(problem)
    labels = np.repeat(np.arange(3), problem.counts.astype(int))
    s = Samples(solution.features[labels], labels, solution.weights.copy(), np.zeros(3))
    result = F.frame_metrics(s.moments(), head(s), from_solution(solution))
    assert_allclose(list(result.values()), 0, atol=1e-6)
    doubled = F.frame_metrics(s.moments(), 2 * head(s), from_solution(solution))
    assert_allclose(
        [doubled["nc2_w_residual"], doubled["nc3_wh_residual"], doubled["nc2_wwt_residual"]], [1, 1, 3], 1e-4
    )


def test_residuals_see_the_pure_error_of_scale_that_normalised_metrics_hide():
    frame = predict(UFM([50, 30, 8], 1e-3, 1e-3))
    assert not frame.collapses.any()
    weight, features = frame.weights_and_features(4)
    labels = np.repeat(np.arange(3), [50, 30, 8])
    s = Samples(1.5 * features[labels], labels, 2 * weight, np.zeros(3))
    expected = {
        "nc2_h": 0.0,
        "nc2_h_residual": 1.5**2 - 1,
        "nc2_wwt": 0.0,
        "nc2_wwt_residual": 2.0**2 - 1,
        "nc3_wh": 0.0,
        "nc3_wh_residual": 2 * 1.5 - 1,
        "nc2_w_residual": (2 - 1.5) / 1.5,
    }
    assert_same(F.frame_metrics(s.moments(), head(s), frame), expected)


def test_frame_metrics_without_a_head():
    s = draw_samples([9, 5, 2], 4)
    result = F.frame_metrics(s.moments(), None, frame_for(s))
    full = F.frame_metrics(s.moments(), head(s), frame_for(s))
    assert result == {key: full[key] for key in ("nc2_h", "nc2_h_residual")}


# limits


def test_simplex_etf_and_orthogonal_frame_by_hand():
    etf = torch.eye(4, dtype=torch.float64) - 0.25
    assert_allclose([F.etf_angles(etf), F.norm_spread(3 * etf)], 0, atol=EXACT)
    s = Samples(np.repeat(np.diag([1.0, 2, 3, 4]), 2, axis=0), np.repeat(np.arange(4), 2), etf.numpy(), np.zeros(4))
    assert F.largest_cosine(s.moments()) == 0
    balanced = s._replace(features=np.sign(s.features))
    assert_allclose(F.duality(etf, balanced.moments()), 0, atol=EXACT)
    assert_allclose(F.generalised_duality(etf, balanced.moments()), 0, atol=EXACT)


def test_coinciding_means_are_infinitely_variable():
    s = draw_samples([4, 4], 3, spread=0)
    s = s._replace(features=np.ones_like(s.features))
    mean, per_class = F.cdnv(s.moments())
    assert mean == np.inf
    assert torch.isinf(per_class).all()


def test_close_means_far_from_the_centroid_keep_their_digits():
    """Products alone would lose half the digits of this distance."""
    means = np.array([[1.0, 0.0], [1.0, 1e-7], [-2.0, 0.0]])
    labels = np.repeat(np.arange(3), 2)
    features = means[labels] + np.array([1e-8, 0]) * np.tile([1, -1], 3)[:, None]
    s = Samples(features, labels, np.zeros((3, 2)), np.zeros(3))
    assert_same(F.cdnv(s.moments()), oracles.cdnv(*s.labelled))


def test_dead_classes_do_not_count_for_the_largest_cosine():
    features = np.array([[1.0, 0.0], [0.0, 1.0], [0.05, 0.05], [0.0, 0.0]])
    s = Samples(features, np.arange(4), np.zeros((4, 2)), np.zeros(4))
    assert F.largest_cosine(s.moments()) == 0


def test_what_cannot_be_known_is_nan():
    s = draw_samples([5, 0, 0], 4)
    mean, per_class = F.cdnv(s.moments())
    single = draw_samples([5, 1, 1], 4).moments()
    numbers = [F.nc1(s.moments()), mean, F.largest_cosine(s.moments()), F.etf_angles(seen_means(s.moments()))]
    numbers += [F.nc1(draw_samples([5, 4], 3).moments(within="trace")), F.cdnv(single, unbiased=True)[0]]
    assert np.isnan(numbers).all()
    assert per_class.isnan().all()


@pytest.fixture
def _warn_always():
    torch.set_warn_always(True)
    yield
    torch.set_warn_always(False)


@pytest.mark.usefixtures("_warn_always")
@pytest.mark.parametrize("claim", ["duality", "generalised_duality", "etf_angles", "norm_spread", "frame_metrics"])
def test_a_trainable_head_may_be_given_as_it_is(claim):
    s = draw_samples([9, 5, 2], 4)
    metric = {
        "duality": lambda W: F.duality(W, s.moments()),
        "generalised_duality": lambda W: F.generalised_duality(W, s.moments()),
        "etf_angles": F.etf_angles,
        "norm_spread": F.norm_spread,
        "frame_metrics": lambda W: F.frame_metrics(s.moments(), W, frame_for(s)),
    }[claim]
    assert_same(metric(torch.nn.Parameter(head(s))), metric(head(s)))
