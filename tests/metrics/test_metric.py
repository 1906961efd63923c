"""NeuralCollapse keeps every promise of a torchmetrics metric, with a float64 state."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn
from torchmetrics import MetricCollection
from torchmetrics.utilities import dim_zero_cat

from _support import metric_oracles as oracles
from _support.samples import draw_samples
from _support.strategies import examples
from _support.tolerances import EXACT, METRICS
from collapsekit import UFM, CollapseError
from collapsekit.diagnosis import compare
from collapsekit.metrics import NeuralCollapse, measure_features
from collapsekit.prediction import Basis

# torchmetrics' own advice; what `compute` returns without data is tested here.
pytestmark = pytest.mark.filterwarnings("ignore:The ``compute`` method:UserWarning")

K, DIM = 4, 6


def batches(seed=0, sizes=(5, 1, 9, 0, 12)):
    generator = torch.Generator().manual_seed(seed)
    for n in sizes:
        labels = torch.randint(0, K, (n,), generator=generator)
        yield torch.randn(n, DIM, generator=generator) + 3 * torch.eye(K, DIM)[labels], labels


WEIGHT = torch.eye(K, DIM) + torch.randn(K, DIM, generator=torch.Generator().manual_seed(9))
PROBLEM = UFM([10, 8, 5, 4], 1e-2, 1e-3)


def filled(**options):
    metric = NeuralCollapse(K, DIM, **options)
    for features, labels in batches():
        metric.update(features, labels, weight=WEIGHT)
    return metric


def assert_same(a, b, rtol=EXACT):
    assert set(a) == set(b)
    for key in a:
        assert_allclose(a[key], b[key], rtol=rtol, atol=rtol, err_msg=key)


def test_equals_one_measurement_of_everything():
    features, labels = (torch.cat(parts) for parts in zip(*batches(), strict=True))
    measured = measure_features(features, labels, WEIGHT)
    ours, theirs = filled().compute(), measured.metrics()
    assert set(ours) <= set(theirs)
    assert_same(ours, {key: theirs[key] for key in ours})
    assert all(isinstance(value, float) for value in ours.values())
    assert all(key == key.lower() for key in ours)


def test_keys_are_those_that_the_inputs_allow():
    metric = NeuralCollapse(K, DIM)
    assert metric.compute() == {}
    metric.update(*next(batches()))
    bare = set(metric.compute())
    assert bare == {"nc1", "cdnv", "nc2_largest_cosine", "nc2_mean_cosine", "nc2_etf_h", "nc2_norm_spread_h"}
    assert {"nc2_w", "nc3_duality"} <= set(filled().compute()) - bare
    full = filled(problem=PROBLEM).compute()
    assert {"nc2_h", "nc2_wwt", "nc3_wh", "nc2_h_residual", "nc2_w_residual"} <= set(full)
    assert "nc1" not in filled(within="trace").compute()


def test_reset_clone_pickle_and_state_dict():
    metric = filled()
    values = metric.compute()
    assert_same(metric.clone().compute(), values)
    assert_same(pickle.loads(pickle.dumps(metric)).compute(), values)  # noqa: S301  (its own bytes)
    metric.persistent(True)
    other = NeuralCollapse(K, DIM)
    other.persistent(True)
    other.load_state_dict(metric.state_dict())
    assert_same(other.compute(), values)
    metric.reset()
    assert metric.compute() == {}


def test_the_value_of_a_batch_is_refused():
    """The mean of such values over an epoch, which loggers take, is another number; the remedy is the right one."""
    metric = NeuralCollapse(K, DIM)
    for features, labels in batches():
        with pytest.raises(CollapseError, match=r"metric.update.*metric.compute\(\) and metric.reset\(\)"):
            metric(features, labels, weight=WEIGHT)
        metric.update(features, labels, weight=WEIGHT)
    assert_same(metric.compute(), filled().compute())


def test_merge_state_equals_one_stream():
    parts = [NeuralCollapse(K, DIM), NeuralCollapse(K, DIM)]
    for i, (features, labels) in enumerate(batches()):
        parts[i % 2].update(features, labels, weight=WEIGHT)
    parts[0].merge_state(parts[1])
    assert_same(parts[0].compute(), filled().compute(), METRICS)


@pytest.mark.parametrize("change", ["half", "float", "bfloat16"])
def test_the_state_stays_float64(change):
    metric = getattr(filled(), change)()
    assert metric.moments_state.dtype == torch.float64
    assert_same(metric.compute(), filled().compute())


def test_in_a_collection():
    collection = MetricCollection({"a": NeuralCollapse(K, DIM), "b": NeuralCollapse(K, DIM, within="trace")})
    for features, labels in batches():
        collection.update(features, labels, weight=WEIGHT)
    values = collection.compute()
    assert any("nc1" in key for key in values)
    assert all(np.isfinite(value) for value in values.values())


def test_the_last_head_is_kept():
    metric = filled()
    features, labels = next(batches())
    metric.update(features, labels)
    with_bias = metric.clone()
    assert_allclose(metric.compute_per_class()["classifier_sqnorm"], WEIGHT.double().square().sum(1), rtol=EXACT)
    with_bias.update(features, labels, weight=2 * WEIGHT, bias=torch.ones(K))
    assert_allclose(with_bias.compute_per_class()["classifier_sqnorm"], 4 * WEIGHT.double().square().sum(1), rtol=EXACT)


def test_nearest_centres_of_the_previous_pass():
    metric = filled()
    metric.use_centres()
    for features, labels in batches():
        metric.update(features, labels, weight=WEIGHT)
    features, labels = (torch.cat(parts) for parts in zip(*batches(), strict=True))
    centres = np.stack([features[labels == k].double().numpy().mean(axis=0) for k in range(K)])
    nearest = np.array([np.argmin(((x - centres) ** 2).sum(axis=1)) for x in features.double().numpy()])
    named = (features @ WEIGHT.T).argmax(1).numpy()
    values = metric.compute()
    assert_allclose(values["ncc_accuracy"], np.mean(nearest == labels.numpy()), rtol=EXACT)
    assert_allclose(values["ncc"], np.mean(nearest == named), rtol=EXACT)


@pytest.mark.parametrize(
    ("head", "fragment"),
    [
        ({"weight": torch.zeros(K, DIM + 1)}, "weight: shape"),
        ({"weight": torch.zeros(K, DIM), "bias": torch.zeros(3)}, "bias: shape"),
        ({"bias": torch.zeros(K)}, "bias: given without weight"),
        ({"weight": torch.full((K, DIM), torch.nan)}, "not finite"),
    ],
)
def test_misuse_leaves_the_state(head, fragment):
    metric = filled()
    before = metric.moments_state.clone()
    with pytest.raises(CollapseError, match=fragment):
        metric.update(*next(batches()), **head)
    assert_array_equal(metric.moments_state, before)


def test_misuse_of_sizes():
    with pytest.raises(CollapseError, match="num_classes=1"):
        NeuralCollapse(1, 3)
    with pytest.raises(CollapseError, match="dim=0"):
        NeuralCollapse(2, 0)
    with pytest.raises(CollapseError, match="problem: 4 classes"):
        NeuralCollapse(3, 2, problem=PROBLEM)


BARE = {"nc1", "cdnv", "nc2_largest_cosine", "nc2_mean_cosine", "nc2_etf_h", "nc2_norm_spread_h"}
HEAD = {"nc2_w", "nc2_etf_w", "nc2_norm_spread_w", "nc3_duality", "train_accuracy"}
FRAME = {"nc2_h", "nc2_h_residual"}
FRAME_AND_HEAD = FRAME | {"nc2_wwt", "nc2_wwt_residual", "nc3_wh", "nc3_wh_residual", "nc2_w_residual"}


@pytest.mark.parametrize(
    ("options", "head", "centres", "keys"),
    [
        ({}, False, False, BARE),
        ({}, True, False, BARE | HEAD),
        ({"within": "trace"}, True, False, BARE - {"nc1"} | HEAD),
        ({"problem": PROBLEM}, False, False, BARE | FRAME),
        ({"problem": PROBLEM}, True, False, BARE | HEAD | FRAME_AND_HEAD),
        ({}, False, True, BARE | {"ncc_accuracy"}),
        ({}, True, True, BARE | HEAD | {"ncc_accuracy", "ncc"}),
    ],
)
def test_what_cannot_be_known_is_absent_not_nan(options, head, centres, keys):
    metric = NeuralCollapse(K, DIM, **options)
    for round_ in range(2):
        if round_ and centres:
            metric.use_centres()
        for features, labels in batches():
            metric.update(features, labels, **({"weight": WEIGHT} if head else {}))
    values = metric.compute()
    assert set(values) == keys
    assert all(type(value) is float and np.isfinite(value) for value in values.values())


@settings(max_examples=examples(30))
@given(st.integers(0, 2**32 - 1), st.data())
def test_order_and_split_of_the_samples_do_not_matter(seed, data):
    s = draw_samples([12, 7, 1, 0, 4], 5, seed)
    whole, parts = NeuralCollapse(5, 5), NeuralCollapse(5, 5)
    x, y, W, b = s.tensors
    whole.update(x, y, W, b)
    order = torch.tensor(data.draw(st.permutations(range(len(y)))))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(y)), max_size=5)))
    for rows in torch.tensor_split(order, cuts):
        parts.update(x[rows], y[rows], W, b)
    assert_same(parts.compute(), whole.compute(), METRICS)
    assert_same(parts.compute_per_class(), whole.compute_per_class(), METRICS)


def test_per_class_against_the_textbook():
    s = draw_samples([12, 7, 1, 0, 4], 6)
    metric = NeuralCollapse(5, 6)
    metric.update(*s.tensors)
    table = oracles.class_table(*s.labelled)
    norms = np.linalg.norm(s.weight, axis=1) * np.linalg.norm(table.means.astype(float), axis=1)
    expected = {
        "count": table.counts,
        "feature_sqnorm": (table.means**2).sum(axis=1).astype(float),
        "within": np.where(table.counts > 1, table.within.astype(float), np.nan),  # one sample has no spread to know
        "cdnv": oracles.cdnv(*s.labelled)[1],
        "classifier_sqnorm": (s.weight**2).sum(axis=1),
        "margin": oracles.margins(s.features @ s.weight.T + s.bias, s.labels, 5),
        "alignment": (s.weight * table.means.astype(float)).sum(axis=1) / norms,
    }
    logits = s.features @ s.weight.T + s.bias
    expected |= zip(("confidence", "loss", "recall"), oracles.softmax_table(logits, s.labels, 5), strict=True)
    values = metric.compute_per_class()
    assert_same(values, expected, METRICS)
    assert all(value.dtype == torch.float64 and value.shape == (5,) for value in values.values())
    for key in set(expected) - {"count", "classifier_sqnorm"}:
        assert values[key][3].isnan(), key


def test_per_class_before_any_sample():
    values = NeuralCollapse(K, DIM).compute_per_class()
    assert set(values) == {"count", "feature_sqnorm", "within", "cdnv"}
    assert_array_equal(values["count"], np.zeros(K))
    assert all(values[key].isnan().all() for key in set(values) - {"count"})


def test_a_collection_gives_each_metric_its_own_numbers():
    options = {"plain": {}, "traced": {"within": "trace"}, "predicted": {"problem": PROBLEM}}
    collection = MetricCollection({name: NeuralCollapse(K, DIM, **kwargs) for name, kwargs in options.items()})
    for features, labels in batches():
        collection.update(features, labels, weight=WEIGHT)
    values = collection.clone().compute()
    expected = {
        f"{name}_{key}" if f"{name}_{key}" in values else key: value
        for name, kwargs in options.items()
        for key, value in filled(**kwargs).compute().items()
    }
    assert_same(values, expected)
    collection.reset()
    assert collection.compute() == {}


@pytest.mark.parametrize("change", [nn.Module.half, nn.Module.bfloat16, lambda m: m.to(torch.float16)])
def test_the_state_stays_float64_inside_a_converted_model(change):
    model = nn.ModuleDict({"metric": filled()})
    model["metric"].use_centres()
    values, centres = model["metric"].compute(), model["metric"].centres.clone()
    change(model)
    assert model["metric"].moments_state.dtype == torch.float64
    assert_array_equal(model["metric"].centres, centres)
    model["metric"]._computed = None
    assert_same(model["metric"].compute(), values)


def test_half_precision_features_count_as_what_they_are():
    s = draw_samples([12, 7, 4], 5)
    x, y, W, b = s.tensors
    half, exact = NeuralCollapse(3, 5), NeuralCollapse(3, 5)
    half.update(x.half(), y.int(), W.half(), b.half())
    exact.update(x.half().double(), y, W.half().double(), b.half().double())
    assert_same(half.compute(), exact.compute())


def test_the_kept_head_is_a_copy():
    layer, metric = nn.Linear(DIM, K), NeuralCollapse(K, DIM)
    metric.update(*next(batches()), weight=layer.weight, bias=layer.bias)
    before = metric.compute_per_class()["classifier_sqnorm"]
    with torch.no_grad():
        layer.weight.mul_(2)
    assert_array_equal(metric.compute_per_class()["classifier_sqnorm"], before)
    assert not metric.head_state.requires_grad


def test_the_last_of_several_heads_is_kept():
    metric = NeuralCollapse(K, DIM)
    for factor, (features, labels) in enumerate(batches()):
        metric.update(features, labels, weight=factor * WEIGHT)
    expected = 16 * WEIGHT.double().square().sum(1)
    assert_allclose(metric.compute_per_class()["classifier_sqnorm"], expected, rtol=EXACT)


def test_inference_mode_leaves_no_trace():
    """As with torchmetrics' own metrics: Lightning resets in inference mode."""
    metric = filled()
    with torch.inference_mode():
        metric.reset()
        for features, labels in batches():
            metric.update(features, labels, weight=WEIGHT)
        metric.reset()
    for features, labels in batches():
        metric.update(features, labels, weight=WEIGHT)
    assert_same(metric.compute(), filled().compute())


@pytest.mark.parametrize("owner", [0, 1])
def test_merge_state_keeps_the_head_of_whichever_has_one(owner):
    parts = [NeuralCollapse(K, DIM), NeuralCollapse(K, DIM)]
    for i, (features, labels) in enumerate(batches()):
        parts[i % 2].update(features, labels, **({"weight": WEIGHT} if i % 2 == owner else {}))
    parts[0].merge_state(parts[1])
    merged, whole = parts[0].compute(), filled().compute()
    del merged["train_accuracy"], whole["train_accuracy"]  # of the samples that came with a head
    assert_same(merged, whole, METRICS)


def test_a_result_does_not_outlive_a_merge():
    metric = filled()
    before = metric.compute()
    metric.merge_state(filled())
    assert_array_equal(metric.compute_per_class()["count"], 2 * filled().compute_per_class()["count"])
    other = filled()
    for features, labels in batches(seed=1):
        other.update(features, labels)
    metric.merge_state(other)
    assert metric.compute()["nc1"] != before["nc1"]


# nearest centres


def test_centres_of_the_previous_epoch_outlive_reset():
    first, second = draw_samples([9, 6, 4, 0], 5, seed=1), draw_samples([7, 3, 5, 4], 5, seed=2, spread=2.0)
    metric = NeuralCollapse(4, 5)
    metric.update(*first.tensors)
    metric.use_centres()
    metric.reset()
    assert "ncc" not in metric.compute()
    for rows in np.array_split(np.arange(19), 4):
        metric.update(*second.part(rows).tensors)
    centres = oracles.class_table(*first.labelled).means  # the last class has none
    votes = oracles.centre_votes(second.features, centres)
    named = (second.features @ second.weight.T + second.bias).argmax(axis=1)
    values, per_class = metric.compute(), metric.compute_per_class()
    assert_allclose(values["ncc"], (votes == named).mean(), rtol=EXACT)
    assert_allclose(values["ncc_accuracy"], (votes == second.labels).mean(), rtol=EXACT)
    for k in range(4):
        own = second.labels == k
        assert_allclose(per_class["ncc"][k], (votes == named)[own].mean(), rtol=EXACT)
        assert_allclose(per_class["ncc_accuracy"][k], (votes == second.labels)[own].mean(), rtol=EXACT)
    assert_same(pickle.loads(pickle.dumps(metric)).compute(), values)  # noqa: S301  (its own bytes)


def test_the_centre_oracle_rejects_votes_by_scalar_product():
    s = draw_samples([9, 6, 4], 5, spread=1.0)
    centres = oracles.class_table(*s.labelled).means
    by_product = (s.features @ centres.T.astype(float)).argmax(axis=1)
    assert (by_product != oracles.centre_votes(s.features, centres)).any()


def test_agreement_counts_only_samples_that_came_with_a_head():
    """As documented: "each update with a head also counts how often …"."""
    metric = filled()
    metric.use_centres()
    metric.reset()
    parts = list(batches())
    metric.update(*parts[0])  # no head yet
    for features, labels in parts[1:]:
        metric.update(features, labels, weight=WEIGHT)
    other = filled()
    other.use_centres()
    other.reset()
    for features, labels in parts[1:]:
        other.update(features, labels, weight=WEIGHT)
    assert 0 < other.compute()["ncc"] < 1
    assert_allclose(metric.compute()["ncc"], other.compute()["ncc"], rtol=EXACT)


def test_moments_stand_still_from_use_centres_to_reset():
    metric = filled()
    metric.use_centres()
    before = metric.measurement()
    for features, labels in batches(seed=1):
        metric.update(features, labels, weight=2 * WEIGHT)
    after = metric.measurement()
    assert_array_equal(after.moments.state, before.moments.state)
    for name in ("confidences", "losses", "recalls", "weight"):
        assert_array_equal(getattr(after, name), getattr(before, name))
    metric.reset()
    for features, labels in batches(seed=1):
        metric.update(features, labels, weight=WEIGHT)
    assert metric.moments.counts.sum() == sum(len(labels) for _, labels in batches(seed=1))
    assert 0 < metric.compute()["ncc"] < 1


def test_coinciding_centres_name_no_class():
    features = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]).double()
    metric = NeuralCollapse(3, 2)
    for _ in range(2):
        metric.update(features, torch.arange(3), torch.randn(3, 2, generator=torch.Generator().manual_seed(0)))
        metric.use_centres()
    assert_array_equal(metric.centre_hits[0], [0, 0, 1])


def test_centres_of_nothing_are_refused():
    metric = NeuralCollapse(K, DIM)
    with pytest.raises(CollapseError, match="centres"):
        metric.use_centres()


# misuse


@pytest.mark.parametrize(
    ("features", "labels", "fragment"),
    [
        (torch.zeros(2, DIM), torch.tensor([0, K]), f"sample 1 has label {K}; expected 0 to {K - 1}"),
        (torch.zeros(2, DIM), torch.tensor([-1, 0]), "sample 0 has label -1"),
        (torch.full((2, DIM), torch.nan), torch.tensor([0, 1]), "sample 0 holds nan"),
        (torch.zeros(2, DIM + 1), torch.tensor([0, 1]), r"features: shape \(2, 7\)"),
        (torch.zeros(2, DIM), torch.tensor([[0], [1]]), "labels: shape"),
    ],
)
def test_a_refused_batch_leaves_every_state(features, labels, fragment):
    metric = filled()
    metric.use_centres()
    before = {name: dim_zero_cat(value).clone() for name, value in metric.metric_state.items()}
    with pytest.raises(CollapseError, match=fragment):
        metric.update(features, labels, weight=2 * WEIGHT)
    for name, value in metric.metric_state.items():
        assert_array_equal(dim_zero_cat(value), before[name])


@pytest.mark.parametrize("other", [NeuralCollapse(K, DIM + 1), NeuralCollapse(K, DIM, within="trace")], ids=["d", "S"])
def test_states_of_other_sizes_are_not_merged(other):
    metric = filled()
    before = metric.moments_state.clone()
    with pytest.raises(CollapseError, match="within must agree"):
        metric.merge_state(other)
    assert_array_equal(metric.moments_state, before)


def test_what_is_no_problem_is_refused():
    with pytest.raises(CollapseError, match="problem"):
        NeuralCollapse(K, DIM, problem="no")


def test_a_problem_with_a_bias_is_predicted_by_its_certified_optimum():
    metric = NeuralCollapse(K, DIM, problem=UFM([3, 2, 2, 2], 1e-2, 1e-3, bias="free"))
    assert metric.prediction.basis is Basis.CERTIFIED


def test_a_metric_is_compared_as_its_measurement_is():
    metric, (features, labels) = filled(), (torch.cat(parts) for parts in zip(*batches(), strict=True))
    found = compare(None, metric).to_dict()
    assert found == compare(None, metric.measurement()).to_dict()
    by_measure = compare(None, measure_features(features, labels, WEIGHT)).to_dict()
    assert [c["status"] for c in found["classes"]] == [c["status"] for c in by_measure["classes"]]


@pytest.mark.parametrize(
    "options", [{"loss": "focal"}, {"loss": None}, {"ignore_index": "none"}, {"ignore_index": True}]
)
def test_what_is_no_loss_and_no_label_is_refused_at_once(options):
    (name, value), *_ = options.items()
    with pytest.raises(CollapseError, match=f"{name}={value!r}: give "):
        NeuralCollapse(K, DIM, **{name: value})
