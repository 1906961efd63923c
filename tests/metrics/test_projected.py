"""The scatter projected on the span of class means: NC1 without d × d numbers, in any split, from two passes."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn

from _support import metric_oracles as oracles
from _support.samples import draw_samples, rotation
from _support.tolerances import METRICS, MOMENTS_MERGED
from collapsekit import CollapseError
from collapsekit.metrics import ClassMoments, NeuralCollapse, functional, measure, measure_features


@pytest.fixture
def s():
    return draw_samples([30, 12, 0, 5, 1], 20, spread=1.0)


def test_moments_keep_the_projection_of_their_scatter_in_any_split(s):
    basis = rotation(20)[:6]
    whole = s.moments().scatter.numpy()
    parts = [s.part(rows).moments(within="projected", basis=basis) for rows in np.array_split(np.arange(48), 3)]
    merged = parts[0].merge(parts[1]).merge(parts[2])
    for moments in (s.moments(within="projected", basis=basis), merged):
        assert moments.scatter.shape == (6, 6)
        assert moments.state.numel() == 5 * 22 + 36
        assert_allclose(moments.scatter, basis @ whole @ basis.T, rtol=METRICS, atol=MOMENTS_MERGED * whole.max())
        assert "projected scatter" in repr(moments)


def test_nc1_needs_a_basis_that_spans_the_class_means(s):
    means = oracles.seen_means(*s.labelled)
    spanning = np.linalg.qr((means - means[0])[1:].T)[0].T
    found = functional.nc1(s.moments(within="projected", basis=spanning))
    assert_allclose(found, oracles.nc1(*s.labelled), rtol=METRICS)
    assert np.isnan(functional.nc1(s.moments(within="projected", basis=rotation(20)[:6])))


@pytest.mark.parametrize("dim", [2, 20, 70])
def test_measured_features_have_the_same_numbers(dim):
    s = draw_samples([30, 12, 5, 1], dim, spread=1.0)
    full, projected = measure_features(*s), measure_features(*s, within="projected")
    assert projected.metrics().keys() == full.metrics().keys()
    for key, value in full.metrics().items():
        assert_allclose(projected.metrics()[key], value, rtol=METRICS, err_msg=key)
    assert projected.moments.scatter.shape == (min(3, dim), min(3, dim))
    assert measure_features(*s[:2], within="projected").metrics()["nc1"] == projected.metrics()["nc1"]


def test_of_a_network_and_not_from_a_single_pass(s):
    head = nn.Linear(20, 5).double()
    batches = [s.part(rows).tensors[:2] for rows in np.array_split(np.arange(48), 4)]
    expected = measure(head, batches).metrics()["nc1"]
    assert_allclose(measure(head, batches, within="projected").metrics()["nc1"], expected, rtol=METRICS)
    assert "nc1" not in measure(head, iter(batches), within="projected").metrics()


def test_a_stream_has_nc1_once_the_second_pass_is_complete(s):
    metric = NeuralCollapse(5, 20, within="projected")
    metric.update(*s.tensors)
    metric.use_centres()
    for rows in np.array_split(np.arange(48), 3):
        assert "nc1" not in metric.compute()
        metric.update(*s.part(rows).tensors)
    assert_allclose(metric.compute()["nc1"], oracles.nc1(*s.labelled), rtol=METRICS)
    halves = [NeuralCollapse(5, 20, within="projected") for _ in range(2)]
    for half, rows in zip(halves, np.array_split(np.arange(48), 2), strict=True):
        half.update(*s.tensors)
        half.use_centres()
        half.moments_state.zero_()
        half.phase.zero_()
        half.update(*s.part(rows).tensors)
        half.phase.fill_(2)
        half.centre_hits.zero_()
        half.update(*s.part(rows).tensors)
    halves[0].merge_state(halves[1])
    assert_allclose(halves[0].compute()["nc1"], metric.compute()["nc1"], rtol=METRICS)
    metric.reset()
    metric.update(*s.tensors)
    assert "nc1" not in metric.compute()


@pytest.mark.parametrize(
    ("options", "fragment"),
    [
        ({"within": "projected"}, "give basis="),
        ({"basis": np.eye(2, 3)}, "only with it"),
        ({"within": "projected", "basis": np.eye(2, 4)}, r"basis: shape \(2, 4\)"),
        ({"within": "projected", "basis": np.ones((2, 3))}, "not orthonormal"),
        ({"within": "projected", "basis": [[np.nan, 0, 0]]}, "not orthonormal"),
        ({"within": "some"}, "within='some': give one of 'full', 'trace', 'projected'"),
        ({"precision": "float16"}, "precision='float16': give one of 'input', 'float64'"),
        ({"precision": ["float64"]}, "precision"),
    ],
    ids=str,
)
def test_misuse(options, fragment):
    with pytest.raises(CollapseError, match=fragment):
        ClassMoments(4, 3, **options)
    if "basis" not in options and options != {"within": "projected"}:
        with pytest.raises(CollapseError, match=fragment):
            NeuralCollapse(4, 3, **options)


def test_other_projections_do_not_join():
    one, other = (ClassMoments(4, 3, within="projected", basis=basis) for basis in (np.eye(2, 3), np.eye(3)[1:]))
    for pair in ((one, other), (one, ClassMoments(4, 3)), (ClassMoments(4, 3, within="trace"), one)):
        with pytest.raises(CollapseError, match="cannot join"):
            pair[0].merge(pair[1])


@pytest.mark.heavy
def test_memory_of_many_classes_is_the_state_and_a_block():
    """K = 50,000, d = 256, the trace: 98.4 MiB of state; beside it what a batch of 4096 samples takes."""
    import resource

    def peak():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    generator = torch.Generator().manual_seed(0)
    metric = NeuralCollapse(1000, 256, within="trace")
    metric.update(torch.randn(4096, 256, generator=generator), torch.arange(4096) % 1000)
    before = peak()
    metric = NeuralCollapse(50_000, 256, within="trace")
    for start in range(0, 100_000, 4096):
        metric.update(torch.randn(4096, 256, generator=generator), (torch.arange(4096) + start) % 50_000)
    state = sum(value.nbytes for value in metric.metric_state.values() if isinstance(value, torch.Tensor)) / 2**20
    assert state == pytest.approx(50_000 * (258 + 3 + 4) * 8 / 2**20, rel=0.01)
    assert peak() - before < state + 40
    metric.reset()
    assert peak() - before < state + 40
    assert metric.compute() == {}
