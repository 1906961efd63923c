"""The monitor against numbers counted by hand from what the training passes had, and without a trace in training."""

import copy
import csv
import json
import math
import pickle

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from _support.passes import COUNTS, Net, Plain, batches, by_hand, nc1_by_hand, trained
from _support.tolerances import EXACT, FLOAT32
from collapsekit import CollapseError, predict
from collapsekit.diagnosis import diagnose
from collapsekit.monitor import Monitor, stream
from collapsekit.recipe import LastLayer, Penalty


@pytest.mark.parametrize("every", [1, 3, None])
@pytest.mark.parametrize("bias", [True, False])
def test_numbers_are_those_of_the_passes(bias, every, tmp_path):
    net, seen = Net(bias=bias), []
    monitor = Monitor(net, every=every, table=tmp_path / "classes.jsonl")
    trained(net, monitor, seen=seen)
    expected, scalars, measured = by_hand(seen), monitor.scalars, monitor.measured
    assert measured.counts.tolist() == list(COUNTS)
    for key, found in (("confidence", measured.confidences), ("recall", measured.recalls), ("loss", measured.losses)):
        assert_allclose(found, expected[key], rtol=FLOAT32, err_msg=key)
    table = [json.loads(line) for line in (tmp_path / "classes.jsonl").read_text().splitlines()]
    assert_allclose([row["margin"] for row in table], expected["margin"], rtol=FLOAT32)
    assert_allclose(scalars["collapse/worst_confidence"], expected["confidence"].min(), rtol=FLOAT32)
    assert_allclose(scalars["collapse/worst_recall"], expected["recall"].min(), rtol=FLOAT32)
    assert scalars["collapse/never_predicted"] == (expected["recall"] == 0).sum()
    W = net.head.weight.detach().double().numpy()
    assert_allclose(scalars["collapse/nc0"], np.linalg.norm(W.sum(0)) / np.linalg.norm(W), rtol=FLOAT32)
    if bias:
        assert_allclose(scalars["collapse/bias_sum"], net.head.bias.detach().double().sum().item(), rtol=FLOAT32)
    assert ("collapse/bias_sum" in monitor.reasons) is not bias
    if every:
        kept = None if every == 1 else range(0, len(seen), every)
        assert_allclose(scalars["collapse/nc1"], nc1_by_hand(seen, kept), rtol=FLOAT32)
        assert scalars["collapse/nc1_error"] == 0 if every == 1 else scalars["collapse/nc1_error"] > 0
    assert set(scalars).isdisjoint(monitor.reasons)
    assert all(type(value) is float and math.isfinite(value) for value in scalars.values())


@pytest.mark.parametrize("head", [None, "head", "module"])
@pytest.mark.parametrize("every", [1, 2])
def test_training_is_bit_for_bit_as_without_a_monitor(head, every):
    plain = trained(Net(dropout=0.3), epochs=3)
    state = torch.get_rng_state()
    net = Net(dropout=0.3)
    monitor = Monitor(net, net.head if head == "module" else head, every=every)
    trained(net, monitor, epochs=3)
    for (name, one), other in zip(plain.state_dict().items(), net.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
    assert torch.equal(state, torch.get_rng_state())
    monitor.close()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


@pytest.mark.parametrize("head", [None, "head"])
def test_a_parametrised_head_stays_as_it_is(head):
    """Spectral norm takes a step of its power iteration whenever its weight is looked at in training mode."""

    def train(watched):
        net = Plain()
        nn.utils.parametrizations.spectral_norm(net.head)
        monitor = Monitor(net, head) if watched else None
        return trained(net, monitor, epochs=3).state_dict()

    for (name, one), other in zip(train(False).items(), train(True).values(), strict=True):
        assert torch.equal(one, other), name


def test_evaluation_and_passes_without_labels_do_not_count():
    net, seen = Net(), []
    monitor = Monitor(net)
    for x, y in batches():
        net.eval()
        net(x + 1)
        net.train()
        net(x - 1)
        net(x)
        seen.append([v.detach().double().numpy().copy() for v in (net.features, net.logits)] + [y.numpy().copy()])
        with torch.no_grad():
            net.eval()(x)
        monitor.update(y)
        net.train()
    monitor.epoch()
    assert_allclose(monitor.measured.confidences, by_hand(seen)["confidence"], rtol=FLOAT32)
    assert monitor.measured.counts.sum() == sum(COUNTS)
    assert monitor.reasons["updates"].startswith(f"{len(seen)} training passes had no update")


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("late", [True, False])
def test_checkpointed_parts_are_counted_once(reentrant, late):
    net, seen = Net(), []
    monitor = Monitor(net, "head")
    for x, y in batches():
        x.requires_grad_()
        out = checkpoint(net, x, use_reentrant=reentrant)
        seen.append([v.detach().double().numpy().copy() for v in (net.features, net.logits)] + [y.numpy().copy()])
        for one in (lambda y=y: monitor.update(y), functional.cross_entropy(out, y).backward)[:: -1 if late else 1]:
            one()
    monitor.epoch()
    assert monitor.measured.counts.tolist() == list(COUNTS)
    assert_allclose(monitor.measured.losses, by_hand(seen)["loss"], rtol=FLOAT32)
    assert "updates" not in monitor.reasons


def test_logits_that_are_changed_in_place_are_counted_as_the_head_made_them():
    net, seen = Net(), []
    monitor = Monitor(net)
    for x, y in batches():
        out = net(x)
        seen.append([v.detach().double().numpy().copy() for v in (net.features, net.logits)] + [y.numpy().copy()])
        with torch.no_grad():
            out.mul_(100)
            net.features.zero_()
        monitor.update(y)
        y.zero_()
    monitor.epoch()
    assert_allclose(monitor.measured.confidences, by_hand(seen)["confidence"], rtol=FLOAT32)
    assert monitor.measured.counts.tolist() == list(COUNTS)


def test_half_precision_passes():
    net, seen = Net(), []
    monitor = Monitor(net, every=1)
    for x, y in batches():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = functional.cross_entropy(net(x), y)
            seen.append([v.detach().double().numpy().copy() for v in (net.features, net.logits)] + [y.numpy().copy()])
            monitor.update(y)
        loss.backward()
    assert net.logits.dtype == torch.bfloat16
    scalars = monitor.epoch()
    assert_allclose(monitor.measured.losses, by_hand(seen)["loss"], rtol=FLOAT32)
    assert_allclose(scalars["collapse/nc1"], nc1_by_hand(seen), rtol=FLOAT32)


@pytest.mark.parametrize("frozen", ["body", "head", "everything but a bias"])
def test_frozen_parts(frozen):
    net, seen = Net(), []
    for name, parameter in net.named_parameters():
        kept = frozen == "everything but a bias" and name == "body.0.bias"
        parameter.requires_grad_(kept or not (frozen in name or frozen.startswith("everything")))
    if frozen == "body":
        net.body.eval()
    monitor = Monitor(net)
    trained(net, monitor, seen=seen, optimizer=torch.optim.SGD(net.parameters(), 0.1))
    assert_allclose(monitor.measured.losses, by_hand(seen)["loss"], rtol=FLOAT32)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # of torch.compile, which hides it itself
@pytest.mark.parametrize("backend", ["eager", pytest.param("aot_eager", marks=pytest.mark.heavy)])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("head", [None, "head"])
def test_compiled_models(backend, when, head):
    torch.compiler.reset()
    net, twin = Plain(), Plain()
    plain = Monitor(twin, head)
    trained(twin, plain)
    if when == "before":
        monitor = Monitor(net, head)
        compiled = torch.compile(net, backend=backend, fullgraph=True)
    else:
        compiled = torch.compile(net, backend=backend, fullgraph=True)
        monitor = Monitor(compiled, head)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for x, y in batches():
        optimizer.zero_grad()
        loss = functional.cross_entropy(compiled(x), y)
        monitor.update(y)
        loss.backward()
        optimizer.step()
        compiled.eval()
        compiled(x)
        compiled.train()
    scalars = monitor.epoch()
    assert scalars.keys() == plain.scalars.keys()
    for key, value in scalars.items():
        assert_allclose(value, plain.scalars[key], rtol=FLOAT32, atol=FLOAT32, err_msg=key)


@pytest.mark.parametrize("kind", ["tokens", "pixels", "averaged pixels", "averaged tokens"])
def test_heads_at_positions(kind):
    torch.manual_seed(0)
    pixels, averaged = "pixels" in kind, "averaged" in kind
    layers = (nn.Conv2d(3, 5, 1), nn.ReLU(), nn.Conv2d(5, 4, 1)) if pixels else (nn.Linear(3, 5), nn.Linear(5, 4))
    body, head = nn.Sequential(*layers[:-1]), layers[-1]

    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = body, head

        def forward(self, x):
            out = self.head(self.body(x))
            return out.flatten(2).mean(2) if averaged and pixels else out.mean(1) if averaged else out

    net = Whole()
    monitor, seen = Monitor(net, every=1), []
    for _ in range(5):
        x = torch.randn(6, 3, 2, 3) if pixels else torch.randn(6, 7, 3)
        shape = (6,) if averaged else (6, 2, 3) if pixels else (6, 7)
        y = torch.randint(4, shape)
        if not averaged:
            y[torch.rand(shape) < 0.3] = -100
        with torch.no_grad():
            h = body(x).movedim(1, -1) if pixels else body(x)
            z = net(x).movedim(1, -1) if pixels and not averaged else net(x)
            h = h.flatten(1, -2).mean(1) if averaged else h
        net(x)
        monitor.update(y)
        kept = y.flatten() != -100
        seen.append([v.flatten(0, -2)[kept].double().numpy() for v in (h, z)] + [y.flatten()[kept].numpy()])
    scalars = monitor.epoch()
    expected = by_hand(seen)
    assert_allclose(monitor.measured.losses, expected["loss"], rtol=FLOAT32)
    assert_allclose(monitor.measured.recalls, expected["recall"], rtol=FLOAT32)
    assert_allclose(scalars["collapse/nc1"], nc1_by_hand(seen), rtol=FLOAT32)


def test_parts_of_a_model_that_are_called_alone():
    net, seen = Net(), []
    monitor = Monitor(net, "head")
    for x, y in batches():
        logits = net.head(net.body(x))
        seen.append([net.body(x).detach().double().numpy(), logits.detach().double().numpy(), y.numpy().copy()])
        monitor.update(y)
    monitor.epoch()
    assert_allclose(monitor.measured.losses, by_hand(seen)["loss"], rtol=FLOAT32)


def test_copies_and_pickled_models_have_silent_hooks():
    net = Net()
    monitor = Monitor(net)
    twin, stored = copy.deepcopy(net), pickle.loads(pickle.dumps(net))  # noqa: S301  (our own)
    x, y = next(batches())
    net(x)
    for other in (twin, stored):
        other.train()(x)
        assert torch.equal(other(x), net(x))
    monitor.update(y)
    assert monitor.tap.calls == {}


SCHEDULE = [0.05, 0.1, 0.1, 0.02]
HORIZONS = {
    "sgd": (torch.optim.SGD, {"momentum": 0.9, "dampening": 0.2}, (1 - 0.2) / (1 - 0.9)),
    "plain sgd": (torch.optim.SGD, {}, 1.0),
    "adamw": (torch.optim.AdamW, {}, 1.0),
}


@pytest.mark.parametrize("name", HORIZONS)
@pytest.mark.parametrize("accumulated", [1, 3])
def test_horizon_sums_what_the_optimizer_does(name, accumulated):
    kind, options, gain = HORIZONS[name]
    net = Plain()
    groups = [{"params": net.body.parameters(), "weight_decay": 0.5}, {"params": net.head.parameters()}]
    optimizer = kind(groups, lr=SCHEDULE[0], weight_decay=0.03, **options)
    monitor = Monitor(net, optimizer=optimizer)
    for rate in SCHEDULE:
        for group in optimizer.param_groups:
            group["lr"] = rate
        for x, y in list(batches())[:accumulated]:
            functional.cross_entropy(net(x), y).backward()
            monitor.update(y)
        optimizer.step()
    scalars = monitor.epoch()
    assert_allclose(scalars["collapse/horizon"], sum(SCHEDULE) * 0.03 * gain, rtol=EXACT)


@pytest.mark.parametrize("case", ["adam", "other", "without the head", "none"])
def test_a_horizon_that_is_not_known_is_absent_with_its_reason(case):
    net = Plain()
    optimizer = {
        "adam": lambda: torch.optim.Adam(net.parameters(), weight_decay=0.1),
        "other": lambda: torch.optim.RMSprop(net.parameters(), weight_decay=0.1),
        "without the head": lambda: torch.optim.SGD(net.body.parameters(), 0.1),
        "none": lambda: None,
    }[case]()
    monitor = Monitor(net, optimizer=optimizer)
    scalars = trained(net, monitor, optimizer=optimizer) and monitor.scalars
    words = {"adam": "no horizon", "other": "RMSprop", "without the head": "does not move", "none": "optimizer="}
    assert "collapse/horizon" not in scalars
    assert words[case] in monitor.reasons["collapse/horizon"]


def test_headroom_is_that_of_the_recipe():
    net = Plain(bias=False)
    recipe = Penalty(weight_decay=2e-3, feature_decay=1e-4)
    monitor = Monitor(net, recipe=recipe)
    trained(net, monitor)
    expected = predict(recipe.problem(COUNTS, LastLayer(biased=False))).headroom.min()
    assert_allclose(monitor.scalars["collapse/min_headroom"], expected, rtol=EXACT)
    biased = Plain()
    monitor = Monitor(biased, recipe=recipe)
    trained(biased, monitor)
    assert "no headroom" in monitor.reasons["collapse/min_headroom"]


def test_findings_are_those_of_diagnose_and_silent_at_first():
    net = Plain()
    monitor = Monitor(net, names=["ant", "bee", "cat", "dog"])
    with torch.no_grad():
        net.head.bias[3] = -50.0
    trained(net, monitor, epochs=3, optimizer=torch.optim.SGD(net.body.parameters(), 0.1))
    assert monitor.findings == ()
    assert "warm-up" in monitor.reasons["findings"]
    trained(net, monitor, epochs=1, optimizer=torch.optim.SGD(net.body.parameters(), 0.1))
    history = {"loss": monitor.losses, "recalls": monitor.recalls, "steps": monitor.updates}
    expected = diagnose(monitor.measured, history=history).findings
    assert [one.to_dict() for one in monitor.findings] == [one.to_dict() for one in expected]
    assert monitor.findings[0].severity == "error"
    assert "dog" in monitor.findings[0].classes
    assert monitor.scalars["collapse/never_predicted"] == (monitor.measured.recalls == 0).sum()


def test_samples_that_are_not_finite_are_left_out_and_counted():
    net, seen = Net(), []
    monitor = Monitor(net, every=1)
    for i, (x, y) in enumerate(batches()):
        if i == 2:
            x[[1, 4]] = torch.nan
        net(x)
        monitor.update(y)
        kept = np.isfinite(x.numpy()).all(1)
        seen.append([v.detach().double().numpy()[kept] for v in (net.features, net.logits)] + [y.numpy()[kept]])
    scalars = monitor.epoch()
    assert scalars["collapse/not_finite"] == 2
    assert_allclose(monitor.measured.losses, by_hand(seen)["loss"], rtol=FLOAT32)
    with torch.no_grad():
        net.head.weight.fill_(torch.inf)
    for x, y in batches():
        net(x)
        monitor.update(y)
    assert monitor.epoch() == {"collapse/not_finite": sum(COUNTS)}
    assert "diverged" in monitor.reasons["findings"]
    assert monitor.findings == ()


@pytest.mark.parametrize("every", [1, 2, None])
@pytest.mark.parametrize("stop", [0, 1, 3])
def test_resuming_in_the_middle_of_an_epoch_is_never_having_stopped(every, stop, tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "BLOCK_ROWS", 30)  # so that some rows wait and some are counted

    def run(stop=None):
        net = Plain()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
        monitor = Monitor(net, every=every, optimizer=optimizer)
        for epoch in range(6):
            for step, (x, y) in enumerate(batches(epoch)):
                if (epoch, step) == (5, stop):
                    parts = {"net": net.state_dict(), "steps": optimizer.state_dict(), "monitor": monitor.state_dict()}
                    torch.save(parts, tmp_path / "state.pt")
                    stored = torch.load(tmp_path / "state.pt", weights_only=True)
                    net = Plain(seed=1)
                    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
                    monitor = Monitor(net, every=every, optimizer=optimizer)
                    net.load_state_dict(stored["net"])
                    optimizer.load_state_dict(stored["steps"])
                    monitor.load_state_dict(stored["monitor"])
                optimizer.zero_grad()
                functional.cross_entropy(net(x), y).backward()
                monitor.update(y)
                optimizer.step()
            scalars = monitor.epoch()
        return scalars, monitor

    (scalars, monitor), (expected, never_stopped) = run(stop), run()
    assert scalars == expected
    assert monitor.reasons == never_stopped.reasons
    assert [one.to_dict() for one in monitor.findings] == [one.to_dict() for one in never_stopped.findings]
    assert torch.equal(monitor.measured.moments.state, never_stopped.measured.moments.state)


def test_the_table_has_a_row_a_class_and_an_epoch(tmp_path):
    net = Plain()
    path = tmp_path / "classes.csv"
    monitor = Monitor(net, names=["=ant", "bee", "cat, big", "dog"], table=path)
    trained(net, monitor, epochs=2)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1"] * 4 + ["2"] * 4
    assert [row["class"] for row in rows[:4]] == ["'=ant", "bee", "cat, big", "dog"]
    assert [int(row["count"]) for row in rows[4:]] == list(COUNTS)
    assert_allclose([float(row["recall"]) for row in rows[4:]], monitor.measured.recalls)


def test_a_table_never_takes_the_place_of_another_thing(tmp_path):
    (tmp_path / "link.csv").symlink_to(tmp_path / "elsewhere.csv")
    (tmp_path / "folder.csv").mkdir()
    for name, words in (("link.csv", "symbolic link"), ("folder.csv", "a folder"), ("x.txt", ".csv or .jsonl")):
        with pytest.raises(CollapseError, match=words):
            Monitor(Plain(), table=tmp_path / name)
    with pytest.raises(CollapseError, match="no folder"):
        Monitor(Plain(), table=tmp_path / "none" / "x.csv")
    assert not (tmp_path / "elsewhere.csv").exists()


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_a_table_of_another_kind_is_left_alone_and_a_torn_line_stays_its_own(ending, tmp_path):
    other, torn = tmp_path / f"other.{ending}", tmp_path / f"torn.{ending}"
    other.write_text('name,age\n"a",1\n' if ending == "csv" else '{"name": "a"}\n')
    with pytest.raises(CollapseError, match=r"holds another table; give the name of a new file"):
        Monitor(Plain(), table=other)
    net = Plain()
    trained(net, Monitor(net, table=torn), epochs=1)
    before = torn.read_text()
    torn.write_text(before[:-1])
    trained(net, Monitor(net, table=torn), epochs=1)
    lines = before.splitlines()
    assert torn.read_text().splitlines()[: len(lines)] == lines
    assert len(torn.read_text().splitlines()) == len(lines) + 4


def test_the_error_of_a_sample_is_as_large_as_it_says():
    """Steps of other spread each, every third kept: over 400 orders the error is the standard deviation."""
    rng, values, claims = np.random.default_rng(0), [], []
    sizes = rng.integers(5, 20, size=60)
    sums = sizes * rng.gamma(4.0, size=60)
    for _ in range(400):
        order = rng.permutation(60)
        value, error = stream.estimate([(sizes[i], sums[i]) for i in order[::3]], 60)
        values.append(value)
        claims.append(error)
    truth = sums.sum() / sizes.sum()
    assert_allclose(np.sqrt(np.mean((np.array(values) - truth) ** 2)), np.sqrt(np.mean(np.square(claims))), rtol=0.1)


def test_what_is_kept_for_nc1_stays_small(monkeypatch):
    monkeypatch.setattr(stream, "SAMPLE_BYTES", 1600)
    net, seen = Net(), []
    monitor = Monitor(net, every=2)
    for epoch in range(4):
        for x, y in batches(epoch):
            net(x)
            monitor.update(y)
            seen.append([v.detach().double().numpy() for v in (net.features, net.logits)] + [y.numpy().copy()])
    assert sum(x.nbytes for x, _ in monitor._stream.sample) <= 1600
    kept = range(0, len(seen), monitor._stream.stride)
    assert monitor._stream.stride == 4
    assert_allclose(monitor.epoch()["collapse/nc1"], nc1_by_hand(seen, kept), rtol=FLOAT32)
