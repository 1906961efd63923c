"""Measuring: cases that came out wrong once, or were refused, each with siblings of its kind."""

import json
import multiprocessing

import numpy as np
import pytest
import safetensors.torch
import torch
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset, WeightedRandomSampler

from collapsekit import MSE, UFM, CollapseError, Focal, Hinge, predict
from collapsekit.cli import main
from collapsekit.diagnosis import compare
from collapsekit.metrics import NeuralCollapse, measure, measure_features

NOT_REFUSED = pytest.fail.Exception
LABELS = torch.arange(200) % 4
INPUTS = torch.randn(200, 6, generator=torch.Generator().manual_seed(1)) + 2 * nn.functional.one_hot(LABELS, 6)
LOADER = DataLoader(TensorDataset(INPUTS, LABELS), batch_size=64)


def network(*behind):
    """An untrained network of four classes, its head the layer "2"."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 4), *behind)


def own_accuracy(model):
    with torch.no_grad():
        return float((model.eval()(INPUTS).argmax(1) == LABELS).double().mean())


# A9, A10: the head is what maps features to the model's OUTPUT


class TwoHeads(nn.Module):
    """Returns the logits of `main`; `extra` sees the same features, and only a loss behind the scenes sees it."""

    def __init__(self):
        super().__init__()
        self.body, self.main, self.extra = nn.Linear(6, 32), nn.Linear(32, 4), nn.Linear(32, 7)

    def forward(self, x):
        features = self.body(x).relu()
        self.seen = self.extra(features)
        return self.main(features)


@pytest.mark.parametrize(("model", "head"), [(network(), "0"), (TwoHeads(), "body"), (TwoHeads(), "extra")])
def test_a_layer_that_does_not_make_the_output_is_no_head(model, head):
    with pytest.raises(CollapseError, match=r"head.*output"):
        measure(model, LOADER, head=head)


class Scale(nn.Module):
    """A learned factor a class."""

    def __init__(self, *factors):
        super().__init__()
        self.factors = nn.Parameter(torch.tensor(factors))

    def forward(self, logits):
        return logits * self.factors


class Shift(Scale):
    """A learned offset a class."""

    def forward(self, logits):
        return logits + self.factors


class LowRank(nn.Module):
    """A linear layer with an update of rank 2 beside it, as LoRA has it."""

    def __init__(self, base_layer):
        super().__init__()
        self.base_layer = base_layer
        self.down, self.up = nn.Linear(32, 2, bias=False), nn.Linear(2, 4, bias=False)

    def forward(self, features):
        return self.base_layer(features) + 4 * self.up(self.down(features))


@pytest.mark.parametrize("behind", [Scale(9.0, 0.1, -1.0, 2.0), Shift(0.0, 3.0, 0.0, 0.5)], ids=["scale", "shift"])
def test_what_comes_behind_the_head_counts(behind):
    model = network(behind)
    try:
        found = measure(model, LOADER, head="2")
    except CollapseError:
        return  # a refusal is as good
    assert found.metrics()["train_accuracy"] == pytest.approx(own_accuracy(model))


@pytest.mark.parametrize("head", ["2.base_layer", "2"])
def test_an_adapted_head_is_measured_merged(head):
    model = network()
    model[2] = LowRank(model[2])
    try:
        found = measure(model, LOADER, head=head)
    except CollapseError as error:
        assert "merge" in str(error)  # noqa: PT017
        return
    assert found.metrics()["train_accuracy"] == pytest.approx(own_accuracy(model))


# A11: two passes over other samples


class Wide(nn.Module):
    """One-hot inputs as features too wide to be kept, float64, and a perfect head."""

    def __init__(self, dim=512):
        super().__init__()
        self.head = nn.Linear(dim, 3, bias=False, dtype=torch.float64)
        self.head.weight.data = torch.eye(3, dtype=torch.float64).repeat(1, dim // 3 + 1)[:, :dim]

    def forward(self, x):
        return self.head(x.repeat(1, 512 // 3 + 1)[:, :512])


@pytest.mark.parametrize("kind", ["drawn", "shuffled, last batch dropped"])
def test_agreement_is_a_share_of_the_samples_it_was_counted_on(kind):
    labels = torch.arange(33_500) % 3
    data = TensorDataset(nn.functional.one_hot(labels, 3).double(), labels)
    if kind == "drawn":
        how = {"sampler": WeightedRandomSampler(1.0 + labels, len(labels))}
    else:
        how = {"shuffle": True, "drop_last": True}
    agreement = measure(Wide(), DataLoader(data, batch_size=3000, **how)).per_class()["ncc"]
    assert_allclose(agreement, 1, rtol=1e-12)


# A12: what cannot be known is NaN


def completely_collapsed():
    """All features and the head are 0."""
    found = measure_features(np.zeros((75, 4)), np.repeat([0, 1, 2], [50, 20, 5]), np.zeros((3, 4)))
    assert found.recalls[2] == 0
    return found.metrics()


@pytest.mark.parametrize("key", ["nc1", "ncc", "nc2_w", "nc3_duality"])
def test_a_complete_collapse_has_no_perfect_scores(key):
    assert np.isnan(completely_collapsed()[key])


@pytest.mark.parametrize("key", ["nc2_etf_w", "nc2_etf_h"])
def test_a_complete_collapse_has_no_angles(key):
    assert np.isnan(completely_collapsed()[key])


@pytest.mark.parametrize("middle", [4.0, -70.0])
def test_coinciding_means_with_spread_are_not_collapsed(middle):
    half = np.random.default_rng(0).normal(size=(30, 4))
    features, labels = np.concatenate([half, -half]) + middle, np.tile(np.arange(30) % 3, 2)
    assert not measure_features(features, labels).metrics()["nc1"] < 1e6  # infinite, or NaN


# A13, A14: frozen centres


def clouds(seed=0, size=200):
    """Features, labels and a poor head: nearest centres and the head often disagree."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, size)
    features = torch.tensor(3 * np.eye(3, 5)[labels] + rng.normal(size=(size, 5)))
    return features, torch.tensor(labels), torch.tensor(rng.normal(size=(3, 5)))


def centred(num_classes=3):
    """A metric with frozen centres and no samples since."""
    metric = NeuralCollapse(num_classes, 5)
    metric.persistent(True)
    if num_classes == 3:
        metric.update(*clouds())
        metric.use_centres()
        metric.reset()
    return metric


@pytest.mark.parametrize("key", ["ncc", "ncc_accuracy"])
def test_a_saved_metric_goes_on_with_its_centres(key):
    features, labels, weight = clouds(1)
    whole, first, second = centred(), centred(), NeuralCollapse(3, 5)
    second.persistent(True)
    whole.update(features, labels, weight)
    first.update(features[:100], labels[:100], weight)
    second.load_state_dict(first.state_dict())
    second.update(features[100:], labels[100:], weight)
    assert second.compute()[key] == pytest.approx(whole.compute()[key])


@pytest.mark.parametrize("other", [2, 4])
def test_the_state_of_other_classes_is_refused(other):
    with pytest.raises((CollapseError, RuntimeError)):
        centred(other).load_state_dict(centred().state_dict())


@pytest.mark.parametrize("key", ["nc1", "cdnv", "nc2_largest_cosine"])
def test_test_batches_leave_the_moments_of_training_alone(key):
    metric, (features, labels, weight) = NeuralCollapse(3, 5), clouds()
    metric.update(features, labels, weight)
    before = metric.compute()[key]
    metric.use_centres()
    metric.update(3 * features.flip(0), labels, weight)
    assert metric.compute()["ncc"] < 1
    assert metric.compute()[key] == before


# A15: logging a batch's value, averaged over the epoch


@pytest.mark.parametrize("key", ["nc1", "cdnv"])
def test_the_mean_of_what_a_step_returns_is_right_or_refused(key):
    features, labels, weight = clouds()
    metric, whole = NeuralCollapse(3, 5), NeuralCollapse(3, 5)
    whole.update(features, labels, weight)
    try:
        logged = [metric(x, y, weight)[key] for x, y in zip(features.split(20), labels.split(20), strict=True)]
    except CollapseError:
        return  # a refusal is as good
    assert np.mean(logged) == pytest.approx(whole.compute()[key])


# A16: two processes


SIZES = (200, 101)
"""Of the second, a sampler for two processes repeats one sample."""


def measured_on(rank, place, answers):
    """Measure shards in one of two processes; put what is found into a queue."""
    torch.distributed.init_process_group("gloo", init_method=place, rank=rank, world_size=2)
    for size in SIZES:
        data = TensorDataset(INPUTS[:size], LABELS[:size])
        loader = DataLoader(data, batch_size=16, sampler=DistributedSampler(data, shuffle=False))
        try:
            found = measure(network(), loader)
            answers.put((size, found.metrics()["train_accuracy"], found.counts.tolist()))
        except CollapseError:
            answers.put((size, None, None))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_two_processes_measure_the_whole_or_refuse(tmp_path):
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    place = f"file://{tmp_path / 'rendezvous'}"
    ranks = [context.Process(target=measured_on, args=(rank, place, answers), daemon=True) for rank in range(2)]
    for rank in ranks:
        rank.start()
    found = [answers.get(timeout=100) for _ in range(2 * len(SIZES))]
    for rank in ranks:
        rank.join(60)
    for size, accuracy, counts in found:
        whole = measure(network(), [(INPUTS[:size], LABELS[:size])])
        assert counts in (None, whole.counts.tolist())
        assert accuracy in (None, pytest.approx(whole.metrics()["train_accuracy"]))


# B5: other losses

LOSSES = {
    "mse": (MSE(), lambda z, y: 0.5 * (z - nn.functional.one_hot(y, 4)).square().sum(1)),
    "focal": (Focal(2.0), lambda z, y: -((1 - z.softmax(1)) ** 2 * z.log_softmax(1)).gather(1, y[:, None])[:, 0]),
    "hinge": (Hinge(), lambda z, y: (z - z.gather(1, y[:, None]) + 1 - nn.functional.one_hot(y, 4)).amax(1).relu()),
}


@pytest.mark.parametrize(("loss", "by_hand"), LOSSES.values(), ids=LOSSES)
def test_other_losses_are_measured(loss, by_hand):
    model = network()
    found = measure(model, LOADER, loss=loss)
    with torch.no_grad():
        samples = by_hand(model(INPUTS), LABELS)
    assert_allclose(found.losses, [float(samples[k == LABELS].mean()) for k in range(4)], rtol=1e-5)


@pytest.mark.parametrize("loss", [MSE(), Focal(2.0), Hinge()], ids=LOSSES)
def test_networks_under_other_losses_are_compared(loss):
    prediction = predict(UFM([30, 20, 10], 1e-3, 1e-4, loss=loss))
    weights, features = prediction.weights_and_features()
    labels = np.repeat([0, 1, 2], [30, 20, 10])
    found = compare(prediction, measure_features(features[labels], labels, weights, loss=loss))
    assert found.objective == pytest.approx(prediction.objective, rel=1e-9)


# B6: models that are wrapped


@pytest.mark.parametrize("head", [None, "2", "_orig_mod.2"])
def test_a_compiled_model_that_has_run_is_measured(head):
    model = network()
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        compiled.eval()(INPUTS[:64])  # the shape of a batch: nothing is compiled again
    assert measure(compiled, LOADER, head=head).metrics()["train_accuracy"] == pytest.approx(own_accuracy(model))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("head", [None, "2"])
def test_a_traced_model_is_measured_or_sent_where_it_can_be(head):
    model = network().eval()
    traced = torch.jit.trace(model, INPUTS[:2])
    try:
        found = measure(traced, LOADER, head=head)
    except CollapseError as error:
        assert "measure_features" in str(error)  # noqa: PT017
        return
    assert found.metrics()["train_accuracy"] == pytest.approx(own_accuracy(model))


# B7: heads as they are shipped


@pytest.fixture
def stored(tmp_path):
    """A folder with features.npz and a whole network's tensors, its head called fc, as .pt and .safetensors."""
    model = network()
    with torch.no_grad():
        features = model[:2](INPUTS)
    np.savez(tmp_path / "features.npz", features=features.numpy(), labels=LABELS.numpy())
    tensors = {"fc.weight": model[2].weight.data, "fc.bias": model[2].bias.data, "body.weight": model[0].weight.data}
    safetensors.torch.save_file(tensors, tmp_path / "ck.safetensors")
    torch.save(tensors, tmp_path / "ck.pt")
    torch.save({"features": features, "labels": LABELS} | tensors, tmp_path / "all.pt")
    return tmp_path


@pytest.mark.parametrize(
    "words",
    [
        "features.npz --head ck.safetensors",
        "features.npz --head ck.safetensors:fc",
        "features.npz --head ck.pt",
        "features.npz --head ck.pt:fc",
        "all.pt --head ck.pt:fc",
    ],
)
def test_heads_in_checkpoints_are_found(words, stored, monkeypatch, capsys):
    monkeypatch.chdir(stored)
    code = main(["measure", *words.split(), "--json"])
    out, err = capsys.readouterr()
    assert code == 0, err
    found = json.loads(out)["measurement"]["metrics"]["train_accuracy"]
    assert found == pytest.approx(own_accuracy(network()), abs=0.011)  # a tie may be rounded


# B8: tokens are samples


def test_tokens_are_samples_and_those_without_a_label_are_left_out():
    tokens, labels = INPUTS.reshape(40, 5, 6), LABELS.reshape(40, 5).clone()
    labels[:, 3:] = -100
    kept = labels.flatten() >= 0
    whole = measure(network(), [(INPUTS[kept], LABELS[kept])])
    found = measure(network(), [(tokens, labels)])
    assert_array_equal(found.counts, whole.counts)
    assert_allclose(found.confidences, whole.confidences, rtol=1e-6)


def test_stored_features_may_have_any_leading_shape():
    labels = LABELS.reshape(4, 10, 5).clone()
    labels[0] = -100
    found = measure_features(INPUTS.reshape(4, 10, 5, 6), labels, torch.eye(4, 6))
    whole = measure_features(INPUTS[50:], LABELS[50:], torch.eye(4, 6))
    assert_array_equal(found.recalls, whole.recalls)


# B12: arrays as other libraries give them

NAMES = ("zebra", "ant", "mouse")


@pytest.mark.parametrize("given", [None, NAMES, ("mouse", "zebra", "ant")], ids=["met", "as met", "another order"])
def test_labels_may_be_strings_and_rows_follow_the_names(given):
    labels = np.repeat(np.array(NAMES), [50, 20, 5])
    order = given or NAMES  # left out: as first met
    features = np.eye(3)[[order.index(label) for label in labels]]
    found = measure_features(features, labels, np.eye(3), **({} if given is None else {"names": given}))
    assert found.names == order
    assert dict(zip(found.names, found.counts, strict=True)) == {"zebra": 50, "ant": 20, "mouse": 5}
    assert_array_equal(found.recalls, [1, 1, 1])


@pytest.mark.parametrize("seed", [0, 1])
def test_a_binary_model_of_scikit_learn_is_a_head(seed):
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(seed)
    y = np.repeat([0, 1], [80, 20])
    X = rng.normal(size=(100, 3)) + y[:, None]
    fitted = LogisticRegression().fit(X, y)
    found = measure_features(X, y, fitted.coef_, fitted.intercept_)
    own = fitted.predict_proba(X)[np.arange(100), y]
    assert_allclose(found.confidences, [own[:80].mean(), own[80:].mean()], rtol=1e-9)


@pytest.mark.parametrize("dtype", [">f4", ">f8"])
def test_arrays_of_the_other_byte_order_are_read(dtype):
    features, weight = INPUTS.numpy().astype(dtype), np.eye(4, 6).astype(dtype)
    found = measure_features(features, LABELS.numpy().astype(">i8"), weight)
    whole = measure_features(INPUTS, LABELS, np.eye(4, 6))
    assert_allclose(found.confidences, whole.confidences, rtol=1e-6)
