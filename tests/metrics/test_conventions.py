"""Conventions of papers and scripts: each against its definition in numpy, its symmetries, few samples, the page."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from torch.autograd.profiler import profile

from _support import convention_oracles as oracles
from _support.samples import Samples, draw_samples, rotation, samples
from _support.strategies import examples
from _support.tolerances import EXACT, METRICS, PEERS
from collapsekit import UFM, long_tail, predict
from collapsekit.errors import CollapseError
from collapsekit.metrics import ClassMoments, NeuralCollapse, measure_features
from collapsekit.metrics import conventions as C
from collapsekit.metrics import functional as F

TRACE = {"within": "trace"}
"""What keeps the trace of the scatter only."""
OUTSIDE = np.array([1.0, -2.0, 0.5, 0.25, 3.0, -1.0, 2.0, 0.125])


def outside(s):
    """An out-of-distribution mean of the width of the samples, turned with them."""
    return s.features.sum(axis=0) + s.weight.sum(axis=0)


def rows(s, centre="classes"):
    return C.means_about(s.moments(), centre)


def middle_of(s, centre):
    """What `centre` subtracts."""
    means = oracles.about(*s.labelled, None)
    return 0.0 if centre is None else oracles.global_mean(s.features, s.labels, means, centre)


def options(name, metric, oracle, **values):
    """One claim a value of an option: src and oracle call it by the same name."""
    return {
        f"{name}, {key}={value}": (
            lambda s, kw={key: value}: metric(s, **kw),
            lambda s, kw={key: value}: oracle(s, **kw),
        )
        for key, choices in values.items()
        for value in choices
    }


def of_measured(s, **kwargs):
    measured = measure_features(*s.tensors[:2], s.tensors.weight, s.tensors.bias)
    return C.nc4(measured, **kwargs)


def votes_of(s, *, average="samples", mismatch=False):
    means = oracles.about(s.features, s.labels, s.num_classes, None)
    hits = oracles.votes(s.features, s.labels, s.weight, s.bias, means)
    hits = ~hits if mismatch else hits
    found = [hits[s.labels == k].mean() if (s.labels == k).any() else np.nan for k in range(s.num_classes)]
    return (hits.mean() if average == "samples" else np.nanmean(found)), np.array(found)


CLAIMS = {  # name: (reading or number of samples, oracle of samples)
    **options(
        "trace_ratio",
        lambda s, **kw: C.trace_ratio(s.moments(**TRACE), **kw),
        lambda s, **kw: oracles.trace_ratio(*s.labelled, **kw),
        within=["samples", "classes"],
        centre=["classes"],
        unbiased=[True],
    ),
    "trace_ratio, unbiased, centre=classes": (
        lambda s: C.trace_ratio(s.moments(), unbiased=True, centre="classes"),
        lambda s: oracles.trace_ratio(*s.labelled, unbiased=True, centre="classes"),
    ),
    **options(
        "nc1_by_class",
        lambda s, **kw: C.nc1_by_class(s.moments(**TRACE), *s.tensors[:2], **kw),
        lambda s, **kw: oracles.nc1_by_class(*s.labelled, **kw),
        within=["samples", "classes"],
        centre=["classes"],
        per_class=[False],
    ),
    "cdnv_corrected": (lambda s: C.cdnv_corrected(s.moments()), lambda s: oracles.cdnv_corrected(*s.labelled)),
    "cdnv_pooled": (
        lambda s: C.cdnv_pooled(s.moments()),
        lambda s: oracles.cdnv_directional(*s.labelled, pooled=True),
    ),
    "cdnv_directional": (
        lambda s: C.cdnv_directional(s.moments(**TRACE), *s.tensors[:2]),
        lambda s: oracles.cdnv_directional(*s.labelled),
    ),
    **options(
        "equinorm",
        lambda s, **kw: C.equinorm(rows(s, **kw)),
        lambda s, **kw: oracles.equinorm(oracles.about(*s.labelled, **kw)),
        centre=["samples", "classes", None],
    ),
    "equiangularity": (
        lambda s: C.equiangularity(rows(s)),
        lambda s: oracles.equiangularity(oracles.about(*s.labelled)),
    ),
    "etf_error of means": (
        lambda s: C.etf_error(rows(s)),
        lambda s: oracles.structure_error(*[oracles.about(*s.labelled)] * 2),
    ),
    "etf_error of the head": (
        lambda s: C.etf_error(s.tensors.weight),
        lambda s: oracles.structure_error(s.weight, s.weight),
    ),
    **options(
        "structure_error",
        lambda s, **kw: C.structure_error(s.tensors.weight, rows(s, **kw)),
        lambda s, **kw: oracles.structure_error(s.weight, oracles.about(*s.labelled, **kw)),
        centre=["samples", "classes"],
    ),
    **options(
        "duality_direct",
        lambda s, **kw: C.duality_direct(s.tensors.weight, s.moments(), **kw),
        lambda s, centre="classes", **kw: oracles.duality_direct(s.weight, oracles.about(*s.labelled, centre), **kw),
        centre=["samples", "classes"],
        squared=[True],
    ),
    "duality_generalised": (
        lambda s: C.duality_generalised(s.tensors.weight, s.moments()),
        lambda s: oracles.duality_generalised(s.features, s.labels, s.weight),
    ),
    **options(
        "alignment",
        lambda s, **kw: C.alignment(s.tensors.weight, s.moments(), **kw),
        lambda s, centre="classes", **kw: oracles.alignment(s.weight, oracles.about(*s.labelled, centre), **kw),
        centre=["samples", None],
        normalised=[True, False],
    ),
    **options(
        "bias_residual",
        lambda s, **kw: C.bias_residual(s.tensors.weight, s.tensors.bias, s.moments(), **kw),
        lambda s, centre: oracles.bias_residual(s.weight, s.bias, middle_of(s, centre)),
        centre=["samples", "classes"],
    ),
    **options(
        "uniformity",
        lambda s, **kw: C.uniformity(rows(s), **kw),
        lambda s, **kw: oracles.uniformity(oracles.about(*s.labelled), **kw),
        potential=["distance", "log", "riesz", "gaussian"],
    ),
    **options(
        "uniformity_variance",
        lambda s, **kw: C.uniformity_variance(rows(s), **kw),
        lambda s, **kw: oracles.uniformity_variance(oracles.about(*s.labelled), **kw),
        potential=["distance", "log", "riesz", "gaussian"],
    ),
    "uniformity, riesz, exponent=0.5": (
        lambda s: C.uniformity(s.tensors.weight, potential="riesz", exponent=0.5),
        lambda s: oracles.uniformity(s.weight, potential="riesz", exponent=0.5),
    ),
    "nc0": (
        lambda s: C.nc0(s.tensors.weight),
        lambda s: np.linalg.norm(s.weight.sum(axis=0)) / np.linalg.norm(s.weight),
    ),
    "effective_rank of features": (
        lambda s: C.effective_rank(C.singular_values(s.moments())),
        lambda s: oracles.effective_rank(oracles.spectrum(s.features)),
    ),
    "stable_rank of centred features": (
        lambda s: C.stable_rank(C.singular_values(s.moments(), centre="samples")),
        lambda s: oracles.stable_rank(oracles.spectrum(s.features, s.features.mean(axis=0))),
    ),
    "effective_rank of the head": (
        lambda s: C.effective_rank(s.tensors.weight),
        lambda s: oracles.effective_rank(oracles.spectrum(s.weight)),
    ),
    **options("nc4", of_measured, votes_of, average=["samples", "classes"], mismatch=[True]),
    **options(
        "nc5",
        lambda s, centre: C.nc5(s.moments(), outside(s), centre=centre),
        lambda s, centre: oracles.nc5(oracles.about(*s.labelled, centre), outside(s) - middle_of(s, centre)),
        centre=[None, "samples"],
    ),
}
claims = pytest.mark.parametrize("claim", CLAIMS)
LOOSE = {"effective_rank of features": 1e-6, "stable_rank of centred features": METRICS}
"""Singular values from a d × d matrix are roots: those below 1e-8 of the largest are rounding."""


def assert_same(actual, expected, rtol=METRICS, atol=EXACT):
    """Readings, (number, vector) pairs or numbers; a reading names its own worst class."""
    if isinstance(actual, C.Reading) and isinstance(expected, C.Reading):
        expected = expected[:2]
    if not isinstance(actual, tuple):
        actual = (actual,)
    if not isinstance(expected, tuple):
        expected = (expected,)
    for a, b in zip(actual, expected, strict=False):
        assert_allclose(a, b, rtol=rtol, atol=atol)


# against the definitions


@claims
@settings(max_examples=examples(60))
@given(s=samples())
def test_convention_equals_its_definition(claim, s):
    metric, oracle = CLAIMS[claim]
    assert_same(metric(s), oracle(s), LOOSE.get(claim, METRICS))


def test_each_oracle_tells_the_options_apart():
    """No claim gives the number of another."""
    s = draw_samples([30, 9, 4, 2], 5, seed=4, spread=0.8)
    found, expected = {}, {}
    for claim, (metric, oracle) in CLAIMS.items():
        results = metric(s), oracle(s)
        found[claim], expected[claim] = (float(one[0] if isinstance(one, tuple) else one) for one in results)
    for claim, value in expected.items():
        for other in set(CLAIMS) - {claim}:
            assert found[other] != pytest.approx(value, rel=METRICS), (claim, other)


# symmetries


@claims
@settings(max_examples=examples(20))
@given(s=samples(), seed=st.integers(0, 2**32 - 1))
def test_rotation_order_and_relabelling_change_nothing(claim, s, seed):
    metric, _ = CLAIMS[claim]
    before, rtol = metric(s), LOOSE.get(claim, METRICS)
    turn = rotation(s.weight.shape[1], seed)
    assert_same(metric(s._replace(features=s.features @ turn, weight=s.weight @ turn)), before, rtol)
    rng = np.random.default_rng(seed)
    assert_same(metric(s.part(rng.permutation(len(s.labels)))), before, rtol)
    order = rng.permutation(s.num_classes)  # class order[k] becomes class k
    named = metric(Samples(s.features, np.argsort(order)[s.labels], s.weight[order], s.bias[order]))
    if isinstance(before, C.Reading):
        before = before.value, before.per_class[order]
    assert_same(named, before, rtol)


SCALED = {"alignment, normalised=False": 1, "bias_residual": 1}
"""The power of the scale of features that a metric carries; 0 for all others."""


@claims
def test_scale_changes_nothing_or_what_is_said(claim):
    s = draw_samples([30, 9, 4, 2], 5, seed=4)
    power = next((power for name, power in SCALED.items() if claim.startswith(name)), 0)
    scaled = s._replace(features=8 * s.features, weight=s.weight if power else s.weight * 0.25, bias=s.bias * 8)
    scaled = scaled if power else scaled._replace(bias=s.bias * 2)  # logits keep their order
    if claim.startswith("nc5"):
        scaled = scaled._replace(weight=8 * s.weight)
    before = CLAIMS[claim][0](s)
    before = before[:2] if isinstance(before, C.Reading) else (before,)
    assert_same(CLAIMS[claim][0](scaled), tuple(8**power * one for one in before))


# row blocks


@claims
@pytest.mark.parametrize("entries", [1, 20])
def test_row_blocks_give_the_same_numbers(claim, entries, monkeypatch):
    s = draw_samples([9, 5, 2, 0, 4, 3, 2], 3)
    whole = CLAIMS[claim][0](s)
    monkeypatch.setattr(F, "BLOCK_ENTRIES", entries)
    assert_same(CLAIMS[claim][0](s), whole)


@pytest.mark.parametrize(
    "metric",
    [
        lambda m, x, y, W: C.trace_ratio(m, unbiased=True),
        lambda m, x, y, W: C.nc1_by_class(m, x, y),
        lambda m, x, y, W: C.cdnv_corrected(m),
        lambda m, x, y, W: C.cdnv_pooled(m),
        lambda m, x, y, W: C.cdnv_directional(m, x, y),
        lambda m, x, y, W: C.equiangularity(W),
        lambda m, x, y, W: C.structure_error(W, C.means_about(m)),
        lambda m, x, y, W: C.uniformity(W),
        lambda m, x, y, W: C.uniformity_variance(W, potential="gaussian"),
        lambda m, x, y, W: C.duality_direct(W, m),
        lambda m, x, y, W: C.alignment(W, m),
    ],
)
def test_no_matrix_of_all_pairs_of_classes_is_made(metric, monkeypatch):
    size, dim = 100, 4
    monkeypatch.setattr(F, "BLOCK_ENTRIES", 20 * size)
    features, labels = torch.randn(2 * size, dim), torch.arange(2 * size) % size
    moments = ClassMoments(size, dim)
    moments.update(features, labels)
    weight = torch.randn(size, dim)
    with profile(use_cpu=True, profile_memory=True) as seen:
        metric(moments, features, labels, weight)
    largest = max(event.cpu_memory_usage for event in seen.function_events)
    assert 0 < largest <= 8 * 40 * size < 8 * size**2


# published numbers


def head_and_samples(seed, spread=0.8):
    s = draw_samples([60, 25, 10, 6, 3], 9, seed=seed, spread=spread)
    outside_mean = np.random.default_rng(seed).normal(size=9)
    return s, s.moments(), s.tensors.weight, s.tensors.bias, outside_mean


@pytest.mark.parametrize("seed", range(3))
def test_the_eleven_numbers_of_the_best_known_library(seed):
    s, m, W, _, outside_mean = head_and_samples(seed)
    M = C.means_about(m)
    ours = {
        "nc1_pinv": F.nc1(m, centre="classes"),
        "nc1_svd": F.nc1(m, centre="classes"),
        "nc1_quot": C.trace_ratio(m, centre="classes").value,
        "nc1_cdnv": F.cdnv(m)[0],
        "nc2_etf_err": C.etf_error(M).value,
        "nc2g_dist": C.uniformity_variance(M, potential="distance"),
        "nc2g_log": C.uniformity_variance(M),
        "nc3_dual_err": C.structure_error(W, M).value,
        "nc3u_uni_dual": float(C.alignment(W, m, normalised=False).per_class.var()),
        "nc4_agree": C.nc4(measure_features(*s.tensors[:2], W)).value,
        "nc5_ood_dev": C.nc5(m, outside_mean).value,
    }
    theirs = oracles.library_numbers(s.features, s.labels, s.weight, outside_mean)
    assert ours.keys() == theirs.keys()
    assert_allclose(list(ours.values()), list(theirs.values()), rtol=PEERS, atol=0)


@pytest.mark.parametrize("seed", range(3))
def test_the_numbers_of_the_classic_script_and_of_the_first_paper(seed):
    s, m, W, b, _ = head_and_samples(seed)
    M = C.means_about(m, "samples")
    ours = {
        "collapse_metric": F.nc1(m),
        "ETF_metric": C.etf_error(W).value,
        "WH_relation_metric": C.structure_error(W, M).value,
        "Wh_b_relation_metric": C.bias_residual(W, b, m).value,
        "equinorm, means": C.equinorm(M).value,
        "equinorm, classifier": C.equinorm(W).value,
        "equiangular, means": C.equiangularity(M).value,
        "equiangular, classifier": C.equiangularity(W).value,
        "maximal angle, means": F.etf_angles(M),
        "maximal angle, classifier": F.etf_angles(W),
        "self-duality": C.duality_direct(W, m, centre="samples", squared=True).value,
    }
    theirs = oracles.script_numbers(s.features, s.labels, s.weight, s.bias)
    theirs |= oracles.papyan_numbers(s.features, s.labels, s.weight)
    assert ours.keys() == theirs.keys()
    assert_allclose(list(ours.values()), list(theirs.values()), rtol=PEERS, atol=0)


def test_the_five_published_metrics_of_the_imbalanced_frame():
    s = draw_samples([60, 25, 10, 6], 9)
    s = s._replace(features=abs(s.features))
    metric = NeuralCollapse(4, 9, problem=UFM([60, 25, 10, 6], 1e-3, 1e-4))
    metric.update(*s.tensors[:2], weight=s.tensors.weight)
    theirs = oracles.published_five(s.features, s.labels, s.weight, metric.prediction.margins)
    found = metric.compute()
    assert_allclose([found[key] for key in theirs], list(theirs.values()), rtol=PEERS)


def test_where_published_code_misleads():
    """The figures of the page: an unseen class counts as a mean of 0, and the bias is left out of decisions."""
    s = draw_samples([40, 25, 10, 6], 9, seed=1)
    fifth = s._replace(weight=np.vstack([s.weight, np.ones(9)]), bias=np.zeros(5))
    theirs = [oracles.library_numbers(one.features, one.labels, one.weight, np.ones(9)) for one in (s, fifth)]
    for key, before, after in (("nc1_pinv", 0.0895, 1.11), ("nc1_quot", 0.0975, 0.121), ("nc2_etf_err", 0.725, 0.848)):
        assert [one[key] for one in theirs] == pytest.approx([before, after], rel=0.006), key
    ours = [(F.nc1(m, centre="classes"), C.etf_error(C.means_about(m)).value) for m in (s.moments(), fifth.moments())]
    assert_same(ours[1], ours[0])
    assert theirs[0]["nc4_agree"] == pytest.approx(0.9506, abs=1e-4)
    assert of_measured(s._replace(bias=3 * s.bias)).value == pytest.approx(0.5802, abs=1e-4)


# few samples


def test_corrected_parts_have_the_right_expectation():
    """Monte Carlo against known means and covariances; every mean within four standard errors, and biased without."""
    rng = np.random.default_rng(0)
    counts, dim, draws = np.array([20, 5, 3, 2]), 3, 250
    means = rng.normal(size=(4, dim))
    roots = rng.normal(size=(4, dim, dim)) * np.array([0.4, 0.6, 0.3, 0.5])[:, None, None]
    labels = np.repeat(np.arange(4), counts)
    corrected, plain = [], []
    for _ in range(draws):
        features = means[labels] + np.einsum("nij,nj->ni", roots[labels], rng.normal(size=(len(labels), dim)))
        m = Samples(features, labels, np.zeros((4, dim)), np.zeros(4)).moments(**TRACE)
        rare = ClassMoments(2, dim, **TRACE)
        rare.update(torch.from_numpy(features[labels >= 2]), torch.from_numpy(labels[labels >= 2] - 2))
        v = m.within * m.counts / (m.counts - 1)
        corrected.append([*v, *between(m, v, unbiased=True), v[2:].sum() / 2 / C.cdnv_corrected(rare).value])
        plain.append([*m.within, *between(m, m.within), m.within[2:].sum() / 2 / F.cdnv(rare)[0]])
    truth = [
        *(roots**2).sum(axis=(1, 2)),
        *(((means - b @ means) ** 2).sum() / 4 for b in (counts / counts.sum(), np.ones(4) / 4)),
        ((means[2] - means[3]) ** 2).sum(),
    ]
    error = np.std(corrected, axis=0) / np.sqrt(draws)
    assert (abs(np.mean(corrected, axis=0) - truth) < 4 * error).all()
    assert (abs(np.mean(plain, axis=0) - truth) > 4 * error)[1:].all()


def between(moments, variances, **kwargs):
    """``tr Σ_B`` about both centres, from the ratio of the first class."""
    return [variances[0] / C.trace_ratio(moments, centre=c, **kwargs).per_class[0] for c in ("samples", "classes")]


def test_uncorrected_metrics_call_noise_of_few_samples_separation():
    """Two classes with one and the same mean: no metric should find them apart."""
    rng = np.random.default_rng(1)
    plain, corrected = [], []
    for _ in range(200):
        s = Samples(rng.normal(size=(6, 20)), np.repeat([0, 1], 3), np.zeros((2, 20)), np.zeros(2))
        plain.append(F.cdnv(s.moments())[0])
        corrected.append(C.cdnv_corrected(s.moments()).value)
    assert np.median(plain) < 1.2  # reads as well apart: as much between as within
    assert np.mean(np.isinf(corrected)) > 0.4
    assert np.median(corrected) > 5


# limits


def test_directional_variance_between_two_classes_of_one_size_needs_no_samples():
    s = draw_samples([12, 12], 5, spread=0.7)
    assert_same(C.cdnv_pooled(s.moments()), C.cdnv_directional(s.moments(), *s.tensors[:2]))


def test_spread_across_the_line_between_means_does_not_count():
    features = torch.tensor([[0.0, 3.0], [0.0, -3.0], [1.0, 3.0], [1.0, -3.0]])
    labels = torch.tensor([0, 0, 1, 1])
    moments = ClassMoments(2, 2)
    moments.update(features, labels)
    assert C.cdnv_directional(moments, features, labels).value == 0
    assert_allclose(C.cdnv_pooled(moments).value, 0, atol=EXACT)
    assert F.cdnv(moments)[0] == 9


def test_samples_average_of_nc1_by_class_is_nc1():
    s = draw_samples([30, 9, 4, 2, 1], 7)
    for centre in ("samples", "classes"):
        found = C.nc1_by_class(s.moments(), *s.tensors[:2], centre=centre)
        assert_same(found.value, F.nc1(s.moments(), centre=centre))


def test_values_are_those_of_the_metrics_that_the_toolkit_reports():
    s = draw_samples([30, 9, 0, 4, 2], 7)
    m, W = s.moments(), s.tensors.weight
    assert_same(C.duality_direct(W, m).value, F.duality(W, m))
    assert_same(C.duality_generalised(W, m).value, F.generalised_duality(W, m))
    assert_same(C.equinorm(W).value, F.norm_spread(W))


def test_the_simplex_frame_has_the_least_energy_of_all():
    etf = torch.eye(5, dtype=torch.float64) - 0.2
    for potential in ("log", "riesz", "gaussian"):
        least = C.uniformity(etf, potential=potential).value
        for seed in range(20):
            drawn = torch.randn(5, 9, generator=torch.Generator().manual_seed(seed))
            assert C.uniformity(drawn, potential=potential).value > least
    assert_allclose([C.etf_error(etf).value, C.equiangularity(etf).value, C.nc0(etf)], 0, atol=EXACT)


def test_the_worst_class_is_named():
    s = draw_samples([30, 30, 30], 6, spread=0.1)
    noisy = np.where((s.labels == 1)[:, None], s.features + np.random.default_rng(0).normal(size=s.features.shape), 0)
    s = s._replace(features=np.where((s.labels == 1)[:, None], noisy, s.features))
    found = [
        C.trace_ratio(s.moments()),
        C.nc1_by_class(s.moments(), *s.tensors[:2]),
        C.cdnv_directional(s.moments(), *s.tensors[:2]),
    ]
    assert [one.worst_class for one in found] == [1, 1, 1]
    assert all(one.worst == one.per_class.max() > one.value for one in found)
    turned = s.weight * np.array([[1], [1], [-1]])
    least = C.alignment(torch.from_numpy(turned), s.moments())
    assert (least.worst_class, least.worst) == (2, float(least.per_class.min()))


def test_what_cannot_be_known_is_nan():
    one, single, empty = draw_samples([5, 0, 0], 4), draw_samples([1, 1, 1], 4), Samples(*np.zeros((4, 0)))
    found = [metric(s.moments(**TRACE)) for s in (one, single) for metric in (C.trace_ratio, C.cdnv_corrected)]
    found += [C.cdnv_pooled(one.moments()), C.cdnv_pooled(draw_samples([4, 4], 2).moments(**TRACE))]
    found += [C.cdnv_directional(s.moments(), *s.tensors[:2]) for s in (one, single)]
    found += [C.nc1_by_class(s.moments(), *s.tensors[:2]) for s in (one, single)]
    nothing = ClassMoments(3, 4)
    found += [C.trace_ratio(nothing), C.cdnv_corrected(nothing), C.nc5(nothing, OUTSIDE[:4]), C.equinorm(nothing.means)]
    found += [C.etf_error(nothing.means), C.structure_error(torch.zeros(3, 4), torch.ones(3, 4))]
    found += [C.uniformity(nothing.means), C.equiangularity(rows(one)), C.nc4(measure_features(*one.tensors[:2]))]
    assert len(empty) == 4
    for reading in found:
        assert np.isnan(reading.value)
        assert reading.per_class.isnan().all()
        assert (reading.worst_class, np.isnan(reading.worst)) == (None, True)
    numbers = [C.uniformity_variance(nothing.means), C.effective_rank(torch.zeros(3)), C.stable_rank(torch.zeros(2, 2))]
    numbers += [C.effective_rank(C.singular_values(one.moments(**TRACE)))]
    assert np.isnan(numbers).all()
    assert C.neco(one.moments(**TRACE), one.tensors.features, dim=2).isnan().all()


def test_coinciding_means_are_infinitely_variable():
    s = draw_samples([4, 4, 4], 3)
    s = s._replace(features=np.where((s.labels == 2)[:, None], s.features[s.labels == 1][[0, 1, 2, 3] * 3], s.features))
    s = s._replace(labels=np.sort(s.labels), features=np.concatenate([s.features[:4], s.features[:4], s.features[4:8]]))
    for found in (C.cdnv_directional(s.moments(), *s.tensors[:2]), C.cdnv_pooled(s.moments())):
        assert found.value == np.inf
        assert torch.isinf(found.per_class).tolist() == [True, True, False]


def test_a_class_whose_logits_tie_does_not_count_by_the_order_of_the_classes():
    """Scripts that take the first of equal logits give a lost class full or no agreement, by its place."""
    features = np.repeat(np.array([[2.0, 0.0], [0.0, 2.0], [0.0, 0.0]]), 4, axis=0)
    weight = np.array([[1.0, -0.5], [-0.5, 1.0], [-0.25, -0.25]])
    found = C.nc4(measure_features(features, np.repeat(np.arange(3), 4), weight))
    assert found.per_class[:2].tolist() == [1, 1]
    assert found.per_class[2].isnan()
    assert found.value == 1


def test_neco_is_the_share_in_the_principal_directions():
    s = draw_samples([30, 9, 4], 6)
    others = np.random.default_rng(0).normal(size=(20, 6))
    for dim in (1, 3, 6):
        assert_same(C.neco(s.moments(), others, dim=dim), oracles.neco(s.features, others, dim))
        middle = s.features.mean(axis=0)
        found = C.neco(s.moments(), others, dim=dim, centre="samples")
        assert_same(found, oracles.neco(s.features, others, dim, middle))


def test_inputs_stay_as_they_are_and_a_trainable_head_may_be_given():
    s = draw_samples([9, 5, 2], 4)
    moments, weight = s.moments(), torch.nn.Parameter(s.tensors.weight.clone())
    state, features = moments.state.clone(), s.features.copy()
    for name in ("duality_direct", "alignment"):
        getattr(C, name)(weight, moments)
    C.bias_residual(weight, torch.nn.Parameter(s.tensors.bias.clone()), moments)
    for of in (C.etf_error, C.equinorm, C.equiangularity, C.uniformity, C.nc0, C.effective_rank):
        of(weight)
    C.cdnv_directional(moments, *s.tensors[:2])
    C.neco(moments, s.features, dim=2)
    assert torch.equal(moments.state, state)
    assert torch.equal(weight.data, s.tensors.weight)
    assert (s.features == features).all()


# bootstrap


@pytest.mark.heavy
def test_bootstrap_covers_what_is_true():
    """Of 200 training sets, about nine tenths of the 90 % intervals hold the ratio of the distribution."""
    rng = np.random.default_rng(0)
    means, labels = np.array([[0.0, 0, 0], [3, 0, 0], [0, 3, 0]]), np.repeat(np.arange(3), [40, 20, 12])
    truth = 3 * 0.25 / (((means - means.mean(axis=0)) ** 2).sum() / 3)
    hits = 0
    for seed in range(200):
        features = torch.from_numpy(means[labels] + 0.5 * rng.normal(size=(len(labels), 3)))
        moments = ClassMoments(3, 3, **TRACE)
        moments.update(features, torch.from_numpy(labels))
        found = C.bootstrap(
            lambda m: C.trace_ratio(m, within="classes", centre="classes", unbiased=True).value,
            moments,
            features,
            torch.from_numpy(labels),
            draws=200,
            level=0.9,
            seed=seed,
        )
        hits += bool(found.low <= truth <= found.high)
    assert 160 <= hits <= 195  # 0.8 to 0.975: the bootstrap is itself an approximation at 12 samples


def test_bootstrap_draws_within_classes_and_by_its_seed():
    s = draw_samples([9, 4, 1], 3)
    x, y = s.tensors[:2]
    counts = C.bootstrap(lambda m: m.counts, s.moments(), x, y, draws=5)
    assert counts.low.tolist() == counts.high.tolist() == [9, 4, 1]
    first, again, other = (C.bootstrap(C.trace_ratio, s.moments(), x, y, draws=20, seed=i) for i in (1, 1, 2))
    assert torch.equal(first.low, again.low)
    assert not torch.equal(first.low, other.low)
    assert first.value.shape == first.low.shape == (4,)
    single = C.bootstrap(lambda m: m.means[2], s.moments(), x, y, draws=20)
    assert_allclose(single.low, single.high, rtol=EXACT)


# mistakes


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, x, y: C.trace_ratio(m, centre="mean"), "'mean': give 'samples' or 'classes'"),
        (lambda m, x, y: C.means_about(m, "sample"), "'sample': give 'samples' or 'classes'"),
        (lambda m, x, y: C.cdnv_directional(m, x[1:], y[1:]), "features: 15 samples whose classes are not those"),
        (lambda m, x, y: C.nc1_by_class(m, x, y.flip(0) * 0), "give the samples that moments were updated with"),
        (lambda m, x, y: C.uniformity(m.means, potential="cosine"), "potential='cosine': give one of distance, log"),
        (lambda m, x, y: C.uniformity(m.means, exponent=0), "exponent=0: give a positive number"),
        (lambda m, x, y: C.nc5(m, torch.zeros(3, 9)), r"features: shape (3, 9); expected (n, 4)"),
        (lambda m, x, y: C.nc5(m, torch.full((2, 4), torch.nan)), "features: sample 0 holds nan"),
        (lambda m, x, y: C.neco(m, x, dim=5), "dim=5: features have 4 dimensions; give at most that"),
        (lambda m, x, y: C.neco(m, x, dim=0), "dim=0"),
        (lambda m, x, y: C.bootstrap(C.trace_ratio, m, x, y, draws=1), "draws=1"),
        (lambda m, x, y: C.bootstrap(C.trace_ratio, m, x, y, level=95), "level=95: give a number between 0 and 1"),
    ],
)
def test_mistakes_are_named(call, message):
    s = draw_samples([9, 5, 2], 4)
    with pytest.raises(CollapseError, match=re.escape(message)) as caught:
        call(s.moments(), *s.tensors[:2])
    assert "\n" not in str(caught.value)


# the page


def optimum(counts):
    """What the calls of the page are about: the exact optimum for these counts, one feature a class."""
    frame = predict(UFM(counts, 1e-3, 1e-7))
    weight, features = frame.weights_and_features(12)
    y = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    x, W, m = torch.from_numpy(features)[y], torch.from_numpy(weight), ClassMoments(*weight.shape)
    m.update(x, y)
    measured = measure_features(x, y, W)
    return {"C": C, "F": F, "m": m, "M": C.means_about(m), "x": x, "y": y, "W": W, "frame": frame, "measured": measured}


def shown(call, names):
    value = eval(call, dict(names))
    value = float(value.value if isinstance(value, C.Reading) else value)
    return "0" if abs(value) < 1e-9 else f"{value:.3g}"


def test_the_page_prints_what_each_call_gives_at_both_optima():
    page = (Path(__file__).parents[2] / "docs" / "conventions.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\|.*\| `(.+?)` \| (\S+) \| (\S+) \| (yes|no) \|$", page, re.MULTILINE)
    balanced, tail = optimum([1300] * 10), optimum(long_tail(5000, 50, 10).astype(int).tolist())
    assert len(rows) > 40
    for call, even, uneven, read in rows:
        found = shown(call, balanced), shown(call, tail)
        assert (even, uneven) == found, call
        assert read == ("yes" if found[0] == found[1] else "no"), call
    for name in C.__all__ if hasattr(C, "__all__") else dir(C):
        if callable(getattr(C, name)) and name[0].islower():
            assert f"C.{name}(" in page, name


def test_readings_of_a_measurement_name_values_and_worst_classes():
    s = draw_samples([30, 9, 0, 4, 2], 7)
    measured = measure_features(*s.tensors)
    found = C.readings(measured)
    assert found["CDNV"].value == measured.metrics()["cdnv"]
    assert found["NC1, about samples"].value == measured.metrics()["nc1"]
    assert_same(found["NC2-W, generalised duality"].value, measured.metrics()["nc2_w"])
    assert found["NC4, agreement"].value == measured.metrics()["ncc"]
    assert {len(one.per_class) for one in found.values()} == {5}
    without = C.readings(measure_features(*s.tensors[:2], num_classes=5))
    assert list(without) == list(found)[: len(without)]
    assert 2 not in {one.worst_class for one in without.values()}  # nothing is known of a class without samples


@pytest.mark.parametrize("centre", ["sample", None])
def test_an_unknown_centre_of_the_bias_is_refused(centre):
    moments = ClassMoments(2, 2)
    assert np.isnan(C.bias_residual(torch.eye(2), None, moments).value)
    moments.update(torch.eye(2), torch.tensor([0, 1]))
    with pytest.raises(CollapseError, match="give 'samples' or 'classes'"):
        C.bias_residual(torch.eye(2), None, moments, centre=centre)
