"""measure on real networks against textbook formulas on the features that a hand-made forward pass gives."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn

import metric_oracles as oracle
from collapsekit import UFM, CollapseError, predict
from collapsekit.metrics import measure, measure_features
from tolerances import FLOAT32, METRICS

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
    [("fd", "no module of the model.*fc"), ("body", "is a Sequential"), (nn.ReLU(), "is a ReLU")],
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
