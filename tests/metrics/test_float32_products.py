"""What the float32 path promises against extended precision, where it must give way to float64, and random misuse."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from _support import metric_oracles as oracles
from _support.samples import draw_samples
from _support.tolerances import EXACT, FLOAT32, METRICS, MOMENTS_MERGED, PRODUCTS_NC1, PRODUCTS_NORM
from collapsekit import CollapseError, Focal
from collapsekit.metrics import ClassMoments, NeuralCollapse, functional, measure_features
from collapsekit.metrics.decisions import NOBODY, Centres

COUNTS = [9000, 4000, 2000, 1000, 500, 150, 9, 1]


def stored(offset, spread, dim=64, dtype=np.float32, seed=0):
    """Long-tailed clouds as they are stored; more than the 16,384 from which on float32 is used."""
    s = draw_samples(COUNTS, dim, seed, spread)
    return s._replace(features=(s.features + offset).astype(dtype))


def table_of(features, labels, num_classes):
    """As the oracle's table: deviations in extended precision, their products in float64, which is exact to 1e-13."""
    x = np.asarray(features, dtype=np.longdouble)
    counts = np.bincount(labels, minlength=num_classes)
    means = np.stack([x[labels == k].mean(axis=0) if n else np.full(x.shape[1], np.nan) for k, n in enumerate(counts)])
    deviations = x - means[labels]
    largest = float(np.abs(deviations).max(initial=0.0)) or 1.0
    scaled = (deviations / largest).astype(float)
    squares = np.bincount(labels, (scaled**2).sum(axis=1), minlength=num_classes)
    with np.errstate(invalid="ignore"):
        within = squares / counts * np.longdouble(largest) ** 2
    return oracles.Table(counts, means, within, (scaled.T @ scaled) * np.longdouble(largest) ** 2)


def test_the_quick_table_is_the_oracles():
    s = draw_samples([30, 0, 7, 1], 5)
    for quick, slow in zip(table_of(*s.labelled), oracles.class_table(*s.labelled), strict=True):
        assert_allclose(quick.astype(float), slow.astype(float), rtol=EXACT, atol=EXACT)


def largest_singular(matrix):
    return np.linalg.norm(np.asarray(matrix, dtype=float), 2)


@pytest.mark.parametrize(("offset", "spread"), [(0, 1), (0, 0.02), (30, 0.3), (1000, 0.3)])
def test_products_in_float32_keep_seven_digits_of_the_norm_and_eight_of_nc1(offset, spread):
    s = stored(offset, spread)
    moments, table = s.moments(), table_of(*s.labelled)
    assert moments.gram_products(torch.from_numpy(s.features)) == torch.float32
    error = largest_singular(moments.scatter.numpy() - table.scatter) / largest_singular(table.scatter)
    assert 0 < error <= PRODUCTS_NORM
    assert_allclose(moments.within, table.within.astype(float), rtol=PRODUCTS_NORM)
    assert_allclose(moments.means, table.means.astype(float), rtol=EXACT, atol=EXACT)
    nc1 = functional.nc1(moments)
    assert_allclose(nc1, functional.nc1(s.moments(precision="float64")), rtol=PRODUCTS_NC1)


@pytest.mark.parametrize("way", ["precision", "features"])
@pytest.mark.parametrize(("offset", "spread"), [(0, 1), (30, 0.3), (1000, 0.01)])
def test_float64_keeps_its_digits(way, offset, spread):
    s = draw_samples([60, 30, 9, 1], 64, spread=spread)
    s = s._replace(features=(s.features + offset).astype(np.float32))
    s = s._replace(features=s.features.astype(float)) if way == "features" else s
    moments = s.moments(precision="float64" if way == "precision" else "input")
    oracles.assert_moments(moments, *s.labelled[:2], METRICS)
    assert_allclose(functional.nc1(moments), oracles.nc1(*s.labelled), rtol=METRICS)


@pytest.mark.parametrize("rows", [128, 2500])
def test_batches_of_float32_add_up_to_the_whole(rows):
    s = stored(3, 0.3)
    whole, parts = s.moments(precision="float64"), ClassMoments(len(COUNTS), 64)
    for batch in np.split(np.arange(len(s.labels)), range(rows, len(s.labels), rows)):
        parts.update(*s.part(batch).tensors[:2])
    error = (parts.scatter - whole.scatter).norm() / whole.scatter.norm()
    assert error <= PRODUCTS_NORM
    assert_allclose(parts.within, whole.within, rtol=PRODUCTS_NORM)


def test_states_of_float32_batches_merge_as_exactly_as_any():
    s = stored(3, 0.3)
    parts = [s.part(rows).moments() for rows in np.array_split(np.arange(len(s.labels)), 3)]
    left, right = parts[0].merge(parts[1]).merge(parts[2]), parts[2].merge(parts[1].merge(parts[0]))
    assert_allclose(left.state, right.state, rtol=MOMENTS_MERGED, atol=MOMENTS_MERGED * float(left.state.abs().max()))


@pytest.mark.parametrize("scale", [1e-30, 1e-22, 1e-12, 1e12, 1e18, 1e30])
def test_what_float32_cannot_square_is_squared_in_float64(scale):
    s = stored(0, 0.3)
    s = s._replace(features=(s.features * scale).astype(np.float32))
    moments, table = s.moments(), table_of(*s.labelled)
    assert_allclose(moments.within, table.within.astype(float), rtol=PRODUCTS_NORM)
    assert_allclose(moments.scatter, table.scatter.astype(float), atol=PRODUCTS_NORM * largest_singular(table.scatter))


def test_a_class_of_tiny_spread_beside_wide_ones_keeps_its_digits():
    s = stored(0, 1.0)
    s.features[s.labels == 2] = 1e-22 * s.features[s.labels == 2]
    table = table_of(*s.labelled)
    assert_allclose(s.moments().within, table.within.astype(float), rtol=PRODUCTS_NORM)


def test_torch_set_to_short_products_is_not_followed():
    s = stored(0, 0.3)
    torch.set_float32_matmul_precision("medium")
    try:
        assert s.moments().gram_products(torch.from_numpy(s.features)) == torch.float64
    finally:
        torch.set_float32_matmul_precision("highest")


# decisions


def test_nearest_centres_of_float32_are_those_of_extended_precision():
    """A thousand samples lie on the border of two classes, but for less than float32 products can tell."""
    s = draw_samples([300] * 10, 64, spread=1.0)
    centres = s.moments().means
    pairs = np.random.default_rng(0).integers(0, 10, (1000, 2))
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    share = 0.5 + 1e-6 * np.random.default_rng(1).normal(size=(len(pairs), 1))
    border = share * centres.numpy()[pairs[:, 0]] + (1 - share) * centres.numpy()[pairs[:, 1]]
    features = np.concatenate([s.features, border]).astype(np.float32)
    votes = oracles.centre_votes(features, centres.numpy())
    found = Centres(centres, torch.float32)
    assert_array_equal(found.nearest(torch.from_numpy(features)), votes)
    plain = (found.points @ torch.from_numpy(features).sub(found.middle).T - found.halves.float()[:, None]).argmax(0)
    assert (plain.numpy() != votes).any()  # without a second look it is wrong


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e15, 1e25])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nearest_centres_at_any_scale(scale, dtype):
    s = draw_samples([60] * 5, 64, spread=1.0)
    centres = s.moments().means
    votes = Centres(centres, torch.float64).nearest(torch.from_numpy(s.features))
    features = torch.from_numpy(scale * s.features).float()
    assert_array_equal(Centres(scale * centres, dtype).nearest(features), votes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_coinciding_and_missing_centres(dtype):
    centres = torch.randn(6, 64, generator=torch.Generator().manual_seed(0)).double()
    centres[4] = centres[1]
    centres[2] = torch.nan
    found = Centres(centres, dtype).nearest(centres[[0, 1, 3, 4, 5]].to(dtype))
    assert found.tolist() == [0, NOBODY, 3, NOBODY, 5]


@pytest.mark.parametrize("loss", [None, Focal(2.0)], ids=["cross-entropy", "focal"])
@pytest.mark.parametrize("scale", [0.1, 0.3])
def test_confidences_and_small_losses_of_float32(loss, scale):
    s = stored(0, 0.3)
    options = {} if loss is None else {"loss": loss}
    low = measure_features(s.features, s.labels, scale * s.weight.astype(np.float32), **options)
    exact = measure_features(
        s.features.astype(float), s.labels, (scale * s.weight.astype(np.float32)).astype(float), **options
    )
    assert (exact.losses > 0).all()
    assert exact.losses.min() < 0.1
    assert_allclose(low.losses, exact.losses, rtol=FLOAT32, atol=0)
    assert_allclose(low.confidences, exact.confidences, rtol=FLOAT32)
    assert_array_equal(low.recalls, exact.recalls)
    assert_allclose(low.centre_agreement, exact.centre_agreement)


def test_logits_beyond_float32_are_formed_in_float64():
    s = stored(0, 0.3)
    x, weight = (1e25 * s.features).astype(np.float32), (1e25 * s.weight).astype(np.float32)
    found = measure_features(x, s.labels, weight)
    expected = measure_features(s.features.astype(float), s.labels, s.weight)
    assert_allclose(found.recalls, expected.recalls, atol=1 / 40)
    assert np.isfinite(found.losses).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_no_numbers_are_refused(value):
    s = draw_samples([5, 4], 3)
    x, y, W, b = s.tensors
    logits = x @ W.T + b
    logits[3, 1] = value
    with pytest.raises(CollapseError, match="logits: the largest of sample 3 is"):
        NeuralCollapse(2, 3).update(x, y, W, b, logits=logits)


def test_a_masked_class_costs_nothing():
    s = draw_samples([5, 4, 3], 3)
    x, y, W, b = s.tensors
    logits = x @ W.T + b
    logits[y != 2, 2] = -torch.inf
    metric = NeuralCollapse(3, 3)
    metric.update(x, y, W, b, logits=logits)
    expected = [torch.nn.functional.cross_entropy(logits[y == k], y[y == k]) for k in range(3)]
    assert_allclose(metric.measurement().losses, expected, rtol=METRICS)


# what storage cannot resolve


@pytest.mark.parametrize(
    ("dtype", "offset", "spread", "known"),
    [
        (torch.float32, 30, 1e-4, True),
        (torch.float32, 1e5, 1e-4, False),
        (torch.float32, 30, 1e-7, False),
        (torch.bfloat16, 30, 0.01, False),
        (torch.bfloat16, 30, 1.0, True),
        (torch.bfloat16, 0, 0.3, True),
        (torch.float16, 30, 1e-3, False),
        (torch.float16, 30, 0.1, True),
        (torch.float64, 1e5, 1e-4, True),
    ],
    ids=str,
)
def test_spread_below_the_storage_is_unknown_and_above_it_right(dtype, offset, spread, known):
    """Class means lie 5 apart; what is measured of the stored values is compared with what was stored."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), [400, 300, 200, 100])
    true = offset + 5 * np.eye(4, 8)[labels] + rng.uniform(0, 1, (4, 8))[labels] + spread * rng.normal(size=(1000, 8))
    measured = measure_features(torch.from_numpy(true).to(dtype), labels)
    exact = measure_features(true, labels)
    values, classes = measured.metrics(), measured.per_class()
    if known:
        assert not measured.reasons
        assert measured.class_reasons == ("",) * 4
        for key in ("nc1", "cdnv"):
            assert_allclose(values[key], exact.metrics()[key], rtol=0.1)
        assert_allclose(classes["within"], exact.per_class()["within"], rtol=0.1)
    else:
        assert measured.reasons == dict.fromkeys(("nc1", "cdnv"), "below resolution")
        assert measured.class_reasons == ("below resolution",) * 4
        assert np.isnan([values["nc1"], values["cdnv"], *classes["within"], *classes["cdnv"]]).all()
        assert np.isfinite(values["nc2_etf_h"])
        stored_variance = measured.moments.within.numpy()
        assert (np.abs(stored_variance / exact.moments.within.numpy() - 1) > 0.1).any()  # it would have been wrong


def test_each_class_says_why_its_spread_is_unknown():
    s = draw_samples([40, 0, 1, 30], 3, spread=1.0)
    features = s.features.astype(np.float32)
    features[s.labels == 3] = 1000 + 1e-6 * features[s.labels == 3]
    measured = measure_features(features, s.labels, num_classes=4)
    assert measured.class_reasons == ("", "unseen", "one sample", "below resolution")
    assert measured.to_dict()["class_reasons"] == list(measured.class_reasons)
    assert_array_equal(np.isnan(measured.per_class()["within"]), [False, True, True, True])


# random cases


def draw_case(rng):
    """A stream of batches of any types and sizes, and a head."""
    classes, dim = int(rng.integers(2, 8)), int(rng.choice([1, 2, 5, 9, 64, 70]))
    size = int(rng.choice([0, 1, 2, 17, 60, 200])) if rng.random() < 0.95 else 2**14 + 40
    dtype = rng.choice(["float16", "bfloat16", "float32", "float64"])
    widest = {"float16": 2, "bfloat16": 30, "float32": 30, "float64": 140}[dtype]
    scale = 10.0 ** (rng.uniform(-widest, widest) if rng.random() < 0.5 else 0)
    labels = rng.choice(classes, size, p=rng.dirichlet(np.full(classes, 0.5)))
    spread, offset = 10.0 ** rng.uniform(-4, 1), 10.0 ** rng.uniform(-1, 3) * (rng.random() < 0.5)
    means = rng.normal(size=(classes, dim)) + offset
    x = scale * (means[labels] + spread * rng.normal(size=(size, dim)))
    x = np.clip(x, *{"float16": (-6e4, 6e4)}.get(dtype, (-3e38, 3e38) if dtype != "float64" else (-1e300, 1e300)))
    features = torch.from_numpy(x).to(getattr(torch, dtype))
    weight = torch.from_numpy(rng.normal(size=(classes, dim)) / (scale * (1 + offset)))
    weight = weight.to(torch.float64 if dtype == "float64" else torch.float32)
    kind = rng.choice(["int64", "int32", "uint8", "int16"])
    cuts = np.sort(rng.integers(0, size + 1, rng.integers(0, 5)))
    return classes, dim, features, torch.from_numpy(labels).to(getattr(torch, kind)), weight, cuts


FAULTS = {
    "nan": lambda x, y, W, i: (x.index_fill(0, i, torch.nan), y, W),
    "infinite": lambda x, y, W, i: (x.index_fill(0, i, -torch.inf), y, W),
    "negative label": lambda x, y, W, i: (x, y.long().index_fill(0, i, -1), W),
    "large label": lambda x, y, W, i: (x, y.long().index_fill(0, i, len(W)), W),
    "huge label": lambda x, y, W, i: (x, y.long().index_fill(0, i, 2**62), W),
    "float labels": lambda x, y, W, i: (x, y.double(), W),
    "bool labels": lambda x, y, W, i: (x, y > 0, W),
    "labels missing": lambda x, y, W, i: (x, y[1:], W),
    "labels in a column": lambda x, y, W, i: (x, y[:, None], W),
    "whole numbers": lambda x, y, W, i: (x.nan_to_num(0, 0, 0).clamp(-1, 1).long(), y, W),
    "wide": lambda x, y, W, i: (torch.cat([x, x], dim=1), y, W),
    "a row": lambda x, y, W, i: (x[0], y, W),
    "nothing": lambda x, y, W, i: (None, y, W),
    "words": lambda x, y, W, i: ([["a"]] * len(y), y, W),
    "ragged": lambda x, y, W, i: ([[1.0], [1.0, 2.0]], y, W),
    "head of others": lambda x, y, W, i: (x, y, torch.cat([W, W])),
    "diverged head": lambda x, y, W, i: (x, y, W * torch.nan),
    "complex": lambda x, y, W, i: (x.to(torch.complex64), y, W),
}


def states(metric):
    return {
        name: torch.cat([torch.empty(0), *value]) if isinstance(value, list) else value.clone()
        for name, value in metric.metric_state.items()
    }


def assert_refused(metric, case, rng):
    """One of the faults leaves a state unchanged, and says what it is."""
    _, _, x, y, weight, _ = case
    before = states(metric)
    fault = str(rng.choice(list(FAULTS)))
    wrong = FAULTS[fault](x, y, weight, torch.tensor([int(rng.integers(len(y)))]))
    with pytest.raises(CollapseError):
        metric.update(*wrong)
    for name, value in states(metric).items():
        assert_array_equal(value, before[name], err_msg=fault)


def assert_right(metric, case):
    """Moments against extended precision, down to the rounding of float64 features; class sums against a softmax."""
    classes, _, features, labels, weight, _ = case
    x, y = features.double().numpy(), labels.long().numpy()
    table = table_of(x, y, classes)
    seen = table.counts > 0
    assert_array_equal(metric.moments.counts, table.counts)
    size = np.abs(x).max(initial=0.0)
    floor = 8 * np.finfo(float).eps * size * np.sqrt(x.shape[1])
    if not seen.any():
        return
    assert_allclose(metric.moments.means[seen], table.means[seen].astype(float), rtol=EXACT, atol=EXACT * size)
    error = np.abs(metric.moments.within.numpy()[seen] - table.within[seen])
    allowed = PRODUCTS_NORM * table.within[seen] + 2 * np.sqrt(table.within[seen]) * floor + floor**2
    assert (error <= allowed).all()
    norm, number = np.sqrt((table.scatter**2).sum()), len(y)
    error = np.sqrt(((metric.moments.scatter.numpy() - table.scatter) ** 2).sum())
    assert error <= 2 * PRODUCTS_NORM * norm + 2 * np.sqrt(norm * number) * floor + number * floor**2
    logits = x.astype(np.longdouble) @ weight.double().numpy().astype(np.longdouble).T
    rounding = (1e-15 if features.dtype == torch.float64 else FLOAT32) * (1 + np.abs(logits).max())
    highest = logits.max(axis=1, keepdims=True)
    shares = np.exp(logits - highest) / np.exp(logits - highest).sum(axis=1, keepdims=True)
    found = metric.measurement()
    for k in np.flatnonzero(seen):
        expected = float(shares[y == k, k].mean())
        assert_allclose(found.confidences[k], expected, atol=float(rounding) + METRICS)


def fuzz(seed):
    rng = np.random.default_rng(seed)
    case = draw_case(rng)
    classes, dim, x, y, weight, cuts = case
    metric = NeuralCollapse(classes, dim, precision=str(rng.choice(["input", "float64"])))
    for part, own in zip(np.split(np.arange(len(y)), cuts), np.split(np.arange(len(y)), cuts), strict=True):
        if len(y) > 1 and rng.random() < 0.3:
            assert_refused(metric, case, rng)
        metric.update(x[part], y[own], weight)
    assert_right(metric, case)
    for value in (metric.compute(), metric.compute_per_class()):
        assert all(np.asarray(one).dtype == np.float64 for one in value.values())


@pytest.mark.parametrize("block", range(4))
def test_random_streams(block):
    for seed in range(50 * block, 50 * (block + 1)):
        fuzz(seed)


@pytest.mark.heavy
@pytest.mark.parametrize("block", range(50))
def test_many_random_streams(block):
    for seed in range(1000 + 100 * block, 1000 + 100 * (block + 1)):
        fuzz(seed)
