"""Early warnings: who is called dying, who is not, and what a warning says."""

import json

import numpy as np
import pytest
import torch
from torch.nn import functional

from collapsekit.monitor import Monitor, alarms
from collapsekit.monitor.alarms import Alarms

K, EPOCHS = 5, 40
HIGH = np.full((EPOCHS, K), 0.95)


def with_class(values):
    """Four steady classes and one with these confidences."""
    found = HIGH.copy()
    found[:, 2] = values
    return found


def called(confidences, recalls=None, warming=None):
    """Who is called dying after each epoch, (epochs, K)."""
    watch, found = Alarms(K), []
    for epoch, now in enumerate(confidences):
        recall = np.ones(K) if recalls is None else recalls[epoch]
        found.append(watch.add(recall, now, warming=bool(warming is not None and warming[epoch])))
    return np.array(found)


FALLING = np.r_[np.full(10, 0.95), np.linspace(0.95, 0.2, 16)[1:], np.full(15, 0.2)]


def test_a_class_that_falls_alone_is_dying_from_the_third_fall_on_and_stays_so_at_chance():
    dying = called(with_class(FALLING))
    assert np.flatnonzero(dying[:, 2])[0] == 12
    assert dying[12:, 2].all()
    assert not np.delete(dying, 2, axis=1).any()


def test_classes_that_fall_together_are_not_dying():
    assert not called(np.repeat(FALLING[:, None], K, axis=1)).any()


@pytest.mark.parametrize("recall", [0.0, 0.4])
def test_a_class_that_was_never_alive_is_not_dying(recall):
    recalls = np.ones((EPOCHS, K))
    recalls[:, 2] = recall
    assert not called(with_class(FALLING), recalls).any()


def test_a_class_that_recovers_is_no_longer_dying():
    dying = called(with_class(np.r_[FALLING[:18], np.linspace(FALLING[18], 0.95, 12), np.full(10, 0.95)]))
    assert dying[17, 2]
    assert np.flatnonzero(dying[:, 2])[-1] <= 17 + alarms.FALLS + alarms.CALM


def test_one_better_epoch_does_not_end_a_warning():
    values = FALLING.copy()
    values[16] = values[15] + 0.01
    dying = called(with_class(values))
    assert dying[12:, 2].all()


def test_noise_is_not_a_fall():
    rng = np.random.default_rng(0)
    noisy = np.clip(0.85 + 0.05 * rng.normal(size=(2000, K)), 0, 1)
    assert called(noisy).mean() < 0.02


def test_silence_at_first_and_while_the_learning_rate_rises():
    falling = with_class(0.2 + 0.6 * 0.9 ** np.arange(EPOCHS))
    assert np.flatnonzero(called(falling)[:, 2])[0] == max(alarms.SILENT, alarms.FALLS)
    warming = np.arange(EPOCHS) < 20
    assert np.flatnonzero(called(falling, warming=warming)[:, 2])[0] == 20


def test_epochs_without_samples_of_a_class_change_nothing():
    values, recalls = with_class(FALLING), np.ones((EPOCHS, K))
    values[14, 2] = recalls[14, 2] = np.nan
    assert called(values, recalls)[:, 2].tolist() == called(with_class(FALLING))[:, 2].tolist()
    values[:, 4] = recalls[:, 4] = np.nan  # never a sample
    assert not called(values, recalls)[:, 4].any()


@pytest.mark.parametrize("stop", [0, 1, 3, 13, 30])
def test_states_go_on(stop):
    confidences = with_class(FALLING)
    watch, found = Alarms(K), []
    for epoch, now in enumerate(confidences):
        if epoch == stop:
            stored, watch = json.loads(json.dumps(watch.state())), Alarms(K)
            watch.load(stored)
        found.append(watch.add(np.ones(K), now, warming=False))
    assert np.array_equal(np.array(found), called(confidences))


RAISED, COUNTS = 40, (40, 30, 20, 4)


def fading(weight_decay, epochs, state=None):
    """A network whose decay is raised after a while, or that goes on with another from a stored state."""
    torch.manual_seed(0)
    labels = torch.repeat_interleave(torch.arange(4), torch.tensor(COUNTS))
    inputs = torch.randn(len(labels), 6) + 4 * torch.eye(6)[labels]
    net = torch.nn.Sequential(torch.nn.Linear(6, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    monitor = Monitor(net, optimizer=optimizer, names=["ant", "bee", "cat", "dog"], every=None)
    kept = []
    if state is not None:
        for part, stored in zip((net, optimizer, monitor), state, strict=True):
            part.load_state_dict(stored)
    for epoch in range(epochs):
        if state is not None or epoch >= RAISED:
            for group in optimizer.param_groups:
                group["weight_decay"] = weight_decay
        for _ in range(2):
            optimizer.zero_grad()
            functional.cross_entropy(net(inputs), labels).backward()
            monitor.update(labels)
            optimizer.step()
        monitor.epoch()
        kept.append((monitor.scalars, monitor.findings))
    return net, optimizer, monitor, kept


def test_a_warning_comes_before_the_loss_and_its_remedy_works():
    """The rarest class dies under a decay that is raised; with a tenth of it, from before the fall, it lives."""
    state = [part.state_dict() for part in fading(1e-4, RAISED)[:3]]
    *_, kept = fading(0.15, 2 * RAISED)
    dying = [i for i, (scalars, _) in enumerate(kept) if scalars["collapse/dying"]]
    gone = [i for i, (scalars, _) in enumerate(kept) if scalars["collapse/worst_recall"] < 0.5 and i > RAISED]
    assert RAISED <= dying[0] < gone[0]
    first = next(one for one in kept[dying[0]][1] if one.code == "dying")
    assert (first.severity, first.classes) == ("warning", ("dog",))
    assert first.remedy.startswith("for group in optimizer.param_groups: group['weight_decay'] /= 10")
    assert first.sentence.startswith("Class 'dog' is dying: the recall of 'dog' was 100%")
    *_, monitor, _ = fading(0.015, RAISED, state)
    assert monitor.scalars["collapse/worst_recall"] > 0.5
