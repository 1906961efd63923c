"""measure on real networks against textbook formulas on the features that a hand-made forward pass gives."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from _support import metric_oracles as oracle
from _support.samples import draw_samples, samples
from _support.strategies import examples
from _support.tolerances import EXACT, FLOAT32, METRICS
from collapsekit import UFM, CollapseError, predict
from collapsekit.metrics import _measure as measurement
from collapsekit.metrics import functional as F
from collapsekit.metrics import measure, measure_features

K = 4


class Network(nn.Module):
    def __init__(self, bias=False):
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(5, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.ReLU(), nn.Linear(16, 8), nn.ReLU()
        )
        self.fc = nn.Linear(8, K, bias=bias)

    def forward(self, inputs):
        return self.fc(self.body(inputs))


@pytest.fixture(params=[False, True], ids=["no bias", "bias"])
def case(request):
    model = Network(request.param).double()
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(50, 5, dtype=torch.float64, generator=generator)
    labels = torch.randint(0, K, (50,), generator=generator)
    model.train()
    model(inputs)  # running statistics
    model.eval()
    with torch.no_grad():
        features = model.body(inputs).numpy()
    model.train()
    loader = list(zip(inputs.split(12), labels.split(12), strict=True))
    return model, loader, features, labels.numpy()


@pytest.mark.parametrize("name", ["fc", "module", None])
def test_measures_what_the_network_computes(case, name):
    model, loader, features, labels = case
    measured = measure(model, loader, model.fc if name == "module" else name)
    weight = model.fc.weight.detach().numpy()
    bias = None if model.fc.bias is None else model.fc.bias.detach().numpy()
    logits = features @ weight.T + (0 if bias is None else bias)
    confidences, losses, recalls = oracle.softmax_table(logits, labels, K)
    assert_allclose(measured.confidences, confidences, rtol=METRICS)
    assert_allclose(measured.losses, losses, rtol=METRICS)
    assert_allclose(measured.recalls, recalls, rtol=METRICS)
    assert_allclose(measured.margins, oracle.margins(logits, labels, K), rtol=METRICS, atol=METRICS)
    oracle.assert_moments(measured.moments, features, labels, METRICS)
    votes = oracle.centre_votes(features, measured.moments.means.numpy()) == logits.argmax(axis=1)
    assert_allclose(measured.centre_agreement, [votes[labels == k].mean() for k in range(K)], rtol=METRICS)
    problem = UFM(measured.counts, 0.1, 0.2, bias=None if bias is None else 0.3)
    expected = oracle.objective(problem, features, labels, weight, bias)
    assert_allclose(measured.objective(problem), expected, rtol=METRICS)


def test_the_network_is_left_as_it_was(case):
    model, loader, _, _ = case
    model.body[2].eval()
    modes = [module.training for module in model.modules()]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    measure(model, loader, "fc")
    with pytest.raises(CollapseError):
        measure(model, [(torch.full((2, 5), torch.nan, dtype=torch.float64), torch.tensor([0, 1]))], "fc")
    assert [module.training for module in model.modules()] == modes
    assert not model.fc._forward_hooks
    for key, value in model.state_dict().items():
        assert_array_equal(value, state[key])


def test_a_loader_that_runs_once_gets_one_pass(case):
    model, loader, _, _ = case
    measured = measure(model, iter(loader), "fc")
    assert measured.centre_agreement is None
    assert_array_equal(measured.moments.state, measure(model, loader, "fc").moments.state)


class RefilledLoader:
    """Every batch comes in the same two buffers, as loaders that reuse memory give them; counts its passes."""

    def __init__(self, loader):
        self.loader, self.passes = loader, 0
        self.inputs, self.labels = (torch.empty_like(tensor) for tensor in loader[0])

    def __iter__(self):
        self.passes += 1
        for inputs, labels in self.loader:
            rows = len(labels)
            yield self.inputs[:rows].copy_(inputs), self.labels[:rows].copy_(labels)


@pytest.mark.parametrize(("limit", "passes"), [(10**6, 2), (100, 3)])  # one of them to find the head
def test_features_are_kept_for_the_nearest_centres_while_they_are_small(case, limit, passes, monkeypatch):
    _, loader, _, _ = case
    head = nn.Linear(5, K).double()  # its features are the buffers themselves
    wanted = measure(head, list(loader))
    monkeypatch.setattr(measurement, "LARGEST_KEPT_BYTES", limit)
    refilled = RefilledLoader(list(loader))
    found = measure(head, refilled)
    assert refilled.passes == passes
    assert_array_equal(found.centre_agreement, wanted.centre_agreement)
    assert_array_equal(found.moments.state, wanted.moments.state)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
def test_stored_features_of_any_precision(case, dtype):
    model, _, features, labels = case
    stored = torch.from_numpy(features).to(dtype)
    measured = measure_features(stored, labels, model.fc.weight, model.fc.bias)
    exact = measure_features(stored.double(), labels, model.fc.weight, model.fc.bias)
    assert_array_equal(measured.moments.state, exact.moments.state)
    assert_allclose(measured.confidences, exact.confidences, rtol=FLOAT32)


def test_a_frame_is_measured_as_predicted():
    frame = predict(UFM([6, 5, 3, 1], 0.02, 0.003, names=["a", "b", "c", "d"]))
    weights, features = frame.weights_and_features(6)
    labels = np.repeat(np.arange(4), [6, 5, 3, 1])
    measured = measure_features(features[labels], labels, weights, names=["a", "b", "c", "d"])
    assert_allclose(measured.confidences, frame.confidences, rtol=METRICS)
    assert_allclose(measured.margins, frame.margins, rtol=METRICS, atol=METRICS)
    assert_allclose(measured.objective(frame.problem), frame.objective, rtol=METRICS)
    distance = measured.geometry().distance(frame.geometry())
    for part in (distance.shape, distance.residual):
        assert_allclose(list(part.values()), 0, atol=METRICS)
    assert measured.names == ("a", "b", "c", "d")
    assert measured.moments.singletons == [3]


def test_unseen_classes_are_nan_and_named():
    measured = measure_features(np.eye(3)[:2], [0, 2], np.eye(3))
    assert "unseen classes [1]" in repr(measured)
    assert np.isnan(measured.confidences[1])
    assert np.isfinite(measured.confidences[[0, 2]]).all()


@pytest.mark.parametrize(
    ("head", "fragment"),
    [("fd", "no module of the model.*fc"), ("body", "is a Sequential"), (nn.ReLU(), "a ReLU, is no module")],
)
def test_a_wrong_head_names_the_right_ones(case, head, fragment):
    model, loader, _, _ = case
    with pytest.raises(CollapseError, match=fragment):
        measure(model, loader, head)


@pytest.mark.parametrize(
    ("loader", "fragment"),
    [
        ([], "no batches"),
        ([torch.zeros(2, 5)], "expected a pair"),
        ([(torch.zeros(2, 5, dtype=torch.float64), torch.tensor([0, K]))], f"sample 1 has label {K}"),
        ([(torch.full((2, 5), torch.inf, dtype=torch.float64), torch.tensor([0, 1]))], "sample 0 holds"),
    ],
)
def test_misuse_of_the_loader(case, loader, fragment):
    with pytest.raises(CollapseError, match=fragment):
        measure(case[0], loader, "fc")


def test_misuse_of_features():
    with pytest.raises(CollapseError, match="no samples"):
        measure_features(np.zeros((0, 3)), [])
    with pytest.raises(CollapseError, match=r"features: shape \(3,\)"):
        measure_features(np.zeros(3), [0, 1, 2])
    with pytest.raises(CollapseError, match="problem: its counts"):
        measure_features(np.eye(2), [0, 1], np.eye(2)).objective(UFM([2, 1], 1, 1))
    with pytest.raises(CollapseError, match="weight=None"):
        measure_features(np.eye(2), [0, 1]).geometry()


# stored features


def assert_per_class(values, labels, expected):
    for k in range(len(expected)):
        own = labels == k
        assert_allclose(expected[k], values[own].mean() if own.any() else np.nan, rtol=METRICS)


@settings(max_examples=examples(60))
@given(s=samples())
def test_stored_features_against_the_textbook(s):
    measured = measure_features(*s)
    logits = s.features @ s.weight.T + s.bias
    confidences, losses, recalls = oracle.softmax_table(logits, s.labels, s.num_classes)
    assert_allclose(measured.confidences, confidences, rtol=METRICS)
    assert_allclose(measured.losses, losses, rtol=METRICS, atol=EXACT)
    assert_array_equal(measured.recalls, recalls)
    assert_allclose(measured.margins, oracle.margins(logits, s.labels, s.num_classes), rtol=METRICS, atol=METRICS)
    agree = oracle.centre_votes(s.features, oracle.class_table(*s.labelled).means) == logits.argmax(axis=1)
    assert_per_class(agree, s.labels, measured.centre_agreement)
    means = oracle.seen_means(*s.labelled)
    expected = {
        "nc1": oracle.nc1(*s.labelled),
        "cdnv": oracle.cdnv(*s.labelled)[0],
        "nc2_largest_cosine": oracle.largest_cosine(means),
        "nc2_mean_cosine": oracle.mean_cosine(means),
        "nc2_etf_h": oracle.etf_angles(means - means.mean(axis=0)),
        "nc2_norm_spread_h": oracle.norm_spread(means - means.mean(axis=0)),
        "nc2_w": oracle.generalised_duality(s.weight, s.features, s.labels),
        "nc2_etf_w": oracle.etf_angles(s.weight - s.weight.mean(axis=0)),
        "nc2_norm_spread_w": oracle.norm_spread(s.weight),
        "nc3_duality": oracle.duality(s.weight, s.features, s.labels),
        "ncc": agree.mean(),
        "train_accuracy": np.nansum(recalls * np.bincount(s.labels, minlength=s.num_classes)) / len(s.labels),
    }
    metrics = measured.metrics()
    assert metrics.keys() == expected.keys()
    for key, value in expected.items():
        assert_allclose(metrics[key], value, rtol=METRICS, atol=EXACT, err_msg=key)


@pytest.mark.parametrize(
    "options",
    [{}, {"class_weights": [0.5, 1, 4]}, {"bias": 0.3}, {"bias": "free"}, {"lambda_h": [0.2, 0.1, 0.4]}],
    ids=str,
)
def test_objective_is_a_sum_over_samples(options):
    s = draw_samples([20, 8, 3], 5, spread=1.0)
    problem = UFM(**{"counts": [20, 8, 3], "lambda_w": 0.1, "lambda_h": 0.02} | options)
    bias = s.bias if "bias" in options else None
    measured = measure_features(s.features, s.labels, s.weight, bias)
    expected = oracle.objective(problem, s.features, s.labels, s.weight, bias)
    assert_allclose(measured.objective(problem), expected, rtol=METRICS)
    collapsed_only = problem.objective(s.weight, measured.moments.means.numpy(), bias)
    assert collapsed_only < expected * (1 - METRICS)  # the objective of the means alone is another number


def test_the_oracles_reject_wrong_answers():
    s = draw_samples([20, 8, 3], 5, spread=1.0)
    logits = s.features @ s.weight.T
    confidences, losses, recalls = oracle.softmax_table(logits, s.labels, 3)
    overall = np.array(
        [oracle.softmax_table(logits[s.labels == k], s.labels[s.labels == k], 3)[:, k] for k in range(3)]
    )
    assert_allclose(overall.T, [confidences, losses, recalls], rtol=METRICS)
    wrong = {
        "confidence of the mean loss": (np.exp(-losses), confidences),
        "recall of the wrong class": (recalls[::-1], recalls),
        "margin to the runner-up": (
            [np.mean([z[k] - np.delete(z, k).max() for z in logits[s.labels == k]]) for k in range(3)],
            oracle.margins(logits, s.labels, 3),
        ),
        "feature penalty as a mean": (
            oracle.objective(UFM([20, 8, 3], 0.1, 0.02 / 31), s.features, s.labels, s.weight),
            oracle.objective(UFM([20, 8, 3], 0.1, 0.02), s.features, s.labels, s.weight),
        ),
    }
    for name, (answer, right) in wrong.items():
        with pytest.raises(AssertionError):
            assert_allclose(answer, right, rtol=METRICS, err_msg=name)


def test_stored_features_equal_the_network_that_made_them(case):
    model, loader, features, labels = case
    stored = measure_features(features, labels, model.fc.weight, model.fc.bias)
    live = measure(model, loader, "fc")
    assert_allclose(live.moments.state, stored.moments.state, rtol=METRICS, atol=EXACT)
    for key, value in stored.per_class().items():
        assert_allclose(live.per_class()[key], value, rtol=METRICS, err_msg=key)
    for key, value in stored.metrics().items():
        assert_allclose(live.metrics()[key], value, rtol=METRICS, err_msg=key)


@pytest.mark.parametrize("kind", ["list", "tensors", "parameter", "reversed", "read-only", "strided"])
def test_arrays_of_any_kind(kind):
    s = draw_samples([9, 5, 2], 4)
    expected = measure_features(*s)
    torch.set_warn_always(True)
    readonly = s.features.copy()
    readonly.flags.writeable = False
    given_ = {
        "list": [value.tolist() for value in s],
        "tensors": (s.features, s.labels, torch.from_numpy(s.weight), torch.from_numpy(s.bias)),
        "parameter": (s.features, s.labels, nn.Parameter(torch.from_numpy(s.weight)), s.bias),
        "reversed": (s.features[::-1], s.labels[::-1], s.weight, s.bias),
        "read-only": (readonly, s.labels, s.weight, s.bias),
        "strided": (np.repeat(s.features, 2, axis=1)[:, ::2], s.labels, s.weight, s.bias),
    }[kind]
    try:
        measured = measure_features(*given_)
    finally:
        torch.set_warn_always(False)
    assert_allclose(measured.confidences, expected.confidences, rtol=EXACT)
    assert_allclose(measured.moments.state, expected.moments.state, rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"])
@pytest.mark.parametrize("with_head", [True, False])
def test_labels_of_every_integer_type(dtype, with_head):
    s = draw_samples([9, 5, 2], 4)
    measured = measure_features(s.features, s.labels.astype(dtype), s.weight if with_head else None)
    assert_array_equal(measured.moments.state, s.moments().state)


# what a measurement says

WITHOUT_HEAD = {"count", "feature_sqnorm", "within", "cdnv"}
WITH_HEAD = WITHOUT_HEAD | {"classifier_sqnorm", "margin", "alignment", "confidence", "loss", "recall", "ncc"}
NAMES = ("cat", "dog", "eel", "fox")


def test_keys_names_and_json():
    s = draw_samples([12, 7, 0, 1], 5)
    measured = measure_features(*s, names=NAMES)
    assert set(measured.per_class()) == WITH_HEAD
    assert measured.geometry().names == measured.names == NAMES
    content = json.loads(json.dumps(measured.to_dict()))
    assert content["names"] == list(NAMES)
    assert content["unseen"] == [2]
    assert content["singletons"] == [3]
    assert content["metrics"] == measured.metrics()
    assert set(content["per_class"]) == WITH_HEAD
    assert content["schema"] == 1
    for key, value in measured.per_class().items():
        assert value.dtype == np.float64
        assert value.shape == (4,)
        if key not in {"count", "classifier_sqnorm"}:
            assert np.isnan(value[2]), key


def test_without_a_head():
    s = draw_samples([12, 7, 3], 5)
    measured = measure_features(s.features, s.labels)
    assert set(measured.per_class()) == WITHOUT_HEAD
    assert set(measured.metrics()) == {
        "nc1",
        "cdnv",
        "nc2_largest_cosine",
        "nc2_mean_cosine",
        "nc2_etf_h",
        "nc2_norm_spread_h",
    }
    assert measured.confidences is measured.losses is measured.recalls is measured.centre_agreement is None
    assert np.isnan(measured.margins).all()
    assert "no head" in repr(measured)
    assert measured.moments.num_classes == 3
    assert measure_features(s.features, s.labels, num_classes=5).moments.unseen == [3, 4]
    with pytest.raises(CollapseError, match="weight=None"):
        measured.objective(UFM([12, 7, 3], 0.1, 0.1))
    json.dumps(measured.to_dict())


def test_metrics_against_a_frame():
    s = draw_samples([12, 7, 3], 5)
    measured, frame = measure_features(*s), predict(UFM([12, 7, 3], 1e-2, 1e-3))
    expected = oracle.against_frame(s.weight, s.features, s.labels, frame)
    values = measured.metrics(frame)
    assert set(values) == set(measured.metrics()) | set(expected)
    for key, value in expected.items():
        assert_allclose(values[key], value, rtol=METRICS, err_msg=key)
    assert F.frame_metrics(measured.moments, measured.weight, frame).keys() == expected.keys()


def test_geometry_is_made_of_means_and_head():
    s = draw_samples([12, 7, 0, 3], 5)
    geometry = measure_features(*s).geometry()
    means = oracle.class_table(*s.labelled).means.astype(float)
    assert_allclose(geometry.gram_h, means @ means.T, rtol=METRICS)
    assert_allclose(geometry.gram_w, s.weight @ s.weight.T, rtol=METRICS)
    assert_allclose(geometry.cross, s.weight @ means.T, rtol=METRICS)
    assert_array_equal(geometry.counts, [12, 7, 0, 3])
    assert np.isnan(geometry.gram_h[2]).all()
    assert np.isnan(geometry.cross[:, 2]).all()
    other = predict(UFM([12, 7, 1, 3], 1e-3, 1e-3)).geometry()
    assert np.isfinite(list(geometry.distance(other).residual.values())).all()


# networks and loaders


@pytest.mark.parametrize("head", ["fc", None])
def test_loaders_of_any_kind(case, head):
    model, loader, features, labels = case
    inputs = torch.cat([x for x, _ in loader])
    shuffled = DataLoader(TensorDataset(inputs, torch.from_numpy(labels)), batch_size=7, shuffle=True)
    for form in (shuffled, [[x, y.tolist(), "index"] for x, y in loader]):
        measured = measure(model, form, head)
        oracle.assert_moments(measured.moments, features, labels, METRICS)
        assert_allclose(measured.confidences, measure(model, loader, "fc").confidences, rtol=METRICS)
        assert measured.centre_agreement is not None


def test_a_generator_loses_no_batch_while_the_head_is_sought(case):
    model, loader, features, labels = case
    measured = measure(model, (batch for batch in loader))
    oracle.assert_moments(measured.moments, features, labels, METRICS)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_networks_of_any_precision(case, dtype):
    model, loader, _, labels = case
    model.to(dtype)
    model.eval()
    inputs = torch.cat([x for x, _ in loader]).to(dtype)
    with torch.no_grad():
        features, logits = model.body(inputs), model(inputs)
    measured = measure(model.train(), [(inputs, torch.from_numpy(labels))], "fc")
    oracle.assert_moments(measured.moments, features.double().numpy(), labels, METRICS)
    assert_allclose(measured.losses, oracle.softmax_table(logits.double().numpy(), labels, K)[1], rtol=METRICS)
    assert measured.weight.dtype == torch.float64


class Failing(Network):
    """Breaks at its second batch, after the head has run."""

    calls = 0

    def forward(self, inputs):
        self.calls += 1
        logits = super().forward(inputs)
        if self.calls == self.fails_at:
            raise RuntimeError("out of memory")
        return logits


@pytest.mark.parametrize("fails_at", [1, 2])
@pytest.mark.parametrize("head", ["fc", None])
def test_a_network_that_fails_is_left_without_hooks(head, fails_at):
    model = Failing()
    model.fails_at = fails_at
    model.body[1].eval()
    modes = [module.training for module in model.modules()]
    with pytest.raises(RuntimeError, match="out of memory"):
        measure(model, [(torch.randn(3, 5), torch.tensor([0, 1, 2]))] * 3, head)
    assert not any(module._forward_hooks for module in model.modules())
    assert [module.training for module in model.modules()] == modes
    assert torch.is_grad_enabled()
    assert all(parameter.grad is None for parameter in model.parameters())


class Twice(Network):
    def forward(self, inputs):
        return self.fc(self.body(inputs)) + self.fc(self.body(2 * inputs))


def test_heads_that_cannot_be_used():
    batch = [(torch.randn(3, 5), torch.tensor([0, 1, 2]))]
    with pytest.raises(CollapseError, match="called 2 times"):
        measure(Twice(), batch, "fc")
    with pytest.raises(CollapseError, match=r"head=None: no linear layer makes .*'fc'"):
        measure(Twice(), batch)
    with pytest.raises(CollapseError, match=r"no linear layer makes .*'0'"):
        measure(nn.Sequential(nn.Linear(5, 3), nn.Tanh()), batch)
    with pytest.raises(CollapseError, match=r"head=.*single logit"):  # one logit for two classes
        measure(nn.Linear(5, 1), [(torch.randn(3, 5), torch.tensor([0, 1, 1]))])
    foreign = Network()
    with pytest.raises(CollapseError, match="head"):
        measure(foreign, batch, Network().fc)
    assert not foreign.fc._forward_hooks


def test_a_diverged_network_is_named():
    model = Network()
    with torch.no_grad():
        model.fc.weight.fill_(torch.nan)
    with pytest.raises(CollapseError, match="diverged"):
        measure(model, [(torch.randn(3, 5), torch.tensor([0, 1, 2]))], "fc")


@pytest.mark.parametrize(
    ("batch", "fragment"),
    [
        ({"inputs": torch.zeros(2, 5)}, r"keys \['inputs'\]; expected labels"),
        ((np.zeros((2, 5)), np.array([0, 1])), "inputs of a batch are a ndarray"),
        ((torch.zeros(2, 5), torch.eye(2)), "one-hot rows.*argmax"),
        ((torch.zeros(2, 5), torch.ones(2, 2)), "several labels a sample"),
        ((torch.zeros(2, 5), torch.zeros(2)), "labels: dtype torch.float32"),
        ((torch.zeros(2, 5), torch.tensor([0])), r"labels: shape \(1,\) for 2 features"),
        ((torch.zeros(2, 7, 5), torch.tensor([0, 1])), "applied at every position"),
    ],
)
def test_misuse_of_a_batch(batch, fragment):
    model = Network()
    model.body = nn.Linear(5, 8)
    with pytest.raises(CollapseError, match=fragment):
        measure(model, [batch], "fc")


def test_a_bad_sample_of_a_later_batch_can_be_found(case):
    model, loader, _, _ = case
    inputs = loader[2][0].clone()
    inputs[5] = torch.nan
    with pytest.raises(CollapseError, match=r"sample 29 holds nan|batch 2: .*sample 5 holds nan"):
        measure(model, [*loader[:2], (inputs, loader[2][1])], "fc")


def test_names_are_checked(case):
    model, loader, _, _ = case
    assert measure(model, loader, "fc", names=NAMES).names == NAMES
    with pytest.raises(CollapseError, match="3 names for 4 classes"):
        measure(model, loader, "fc", names=NAMES[:3])
    with pytest.raises(CollapseError, match="'cat' stands for two classes"):
        measure(model, loader, "fc", names=["cat", "cat", "a", "b"])


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        ({"features": np.full((4, 3), np.nan)}, "features: sample 0 holds nan"),
        ({"features": np.r_[np.zeros((3, 3)), [[0, np.inf, 0]]]}, "features: sample 3 holds inf"),
        ({"features": np.zeros((4, 3), dtype=int)}, "features: dtype"),
        ({"features": "abc"}, "features"),
        ({"labels": [0, 1, 0]}, "labels: shape"),
        ({"labels": []}, "labels"),
        ({"labels": [0.0, 1.0, 0.0, 1.0]}, "labels: dtype"),
        ({"labels": [np.nan] * 4}, "labels: dtype"),
        ({"labels": [1j] * 4}, "labels: dtype"),
        ({"labels": [True, False, True, False]}, "labels: dtype"),
        ({"labels": [0, 1, 0, -1]}, "sample 3 has label -1"),
        ({"labels": [0, 1, 0, 2], "num_classes": 2}, "sample 3 has label 2"),
        ({"num_classes": 0}, "num_classes"),
        ({"num_classes": 2.5}, "num_classes"),
        ({"num_classes": "two"}, "num_classes"),
        ({"labels": [0] * 4, "num_classes": 1}, "num_classes"),
        ({"bias": [0.0, 0.0]}, "bias: given without weight"),
        ({"weight": np.zeros((2, 4))}, "weight: shape"),
        ({"weight": 3.0}, "weight: shape"),
        ({"weight": np.zeros((2, 3)), "bias": np.zeros(3)}, "bias: shape"),
        ({"weight": np.zeros((2, 3)), "num_classes": 3}, "weight: shape"),
        ({"weight": np.full((2, 3), np.nan)}, "diverged"),
        ({"names": ["a"]}, "1 names for 2 classes"),
    ],
    ids=str,
)
def test_misuse_of_stored_features(arguments, fragment):
    with pytest.raises(CollapseError, match=fragment):
        measure_features(**{"features": np.ones((4, 3)), "labels": [0, 1, 0, 1]} | arguments)


def test_a_frame_of_other_classes_is_refused():
    s = draw_samples([9, 5], 4)
    with pytest.raises(CollapseError, match="classes"):
        measure_features(*s).metrics(predict(UFM([3, 3, 3], 1e-3, 1e-3)))


# recall


@pytest.mark.parametrize(("lead", "right"), [(0.0101, 1.0), (0.0099, 0.0), (0.0, 0.0), (-1.0, 0.0)])
def test_a_sample_is_right_if_its_logit_leads_by_a_hundredth_of_the_median_lead(lead, right):
    logits = np.array([[3.0, 2.0, 0.0]] * 5 + [[0.0, 4.0, 4.0 + lead]])
    found = measure_features(np.eye(6), [0] * 5 + [2], logits.T)
    assert_array_equal(found.recalls, [1, np.nan, right])
    assert_allclose(found.metrics()["train_accuracy"], (5 + right) / 6)


def test_reasons_are_given_for_what_cannot_be_known():
    lost = measure_features(np.zeros((6, 2)), [0, 0, 1, 1, 2, 2], np.zeros((3, 2)))
    assert set(lost.reasons) == {key for key, value in lost.metrics().items() if np.isnan(value)} >= {"nc1", "ncc"}
    assert lost.to_dict()["reasons"]["nc1"] == "all class means coincide"
    single = measure_features(np.eye(3), [0, 1, 2])
    assert single.reasons == dict.fromkeys(("nc1", "cdnv"), "no class has two samples")
    assert measure_features(np.eye(2), [1, 1]).reasons["nc1"] == "fewer than two classes have samples"
    s = draw_samples([12, 7, 3], 5)
    assert measure_features(*s).reasons == {}


def test_pixels_are_samples():
    conv = nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, K, 1))
    images = torch.randn(3, 2, 5, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(75).reshape(3, 5, 5) % K
    labels[0, :2] = 255
    with torch.no_grad():
        features = conv[:2](images).movedim(1, -1)
    head = conv[2].weight.flatten(1), conv[2].bias
    found = measure(conv, [(images, labels)], ignore_index=255)
    assert found.counts.sum() == 65
    for one in (
        measure_features(features, labels, *head, ignore_index=255),
        measure(conv, [(images, labels)], "2", ignore_index=255),
    ):
        assert_array_equal(found.counts, one.counts)
        assert_allclose(found.confidences, one.confidences, rtol=FLOAT32)
