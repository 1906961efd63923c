"""What training frameworks do with a model, without any of them: the monitor and the callbacks' refusals."""

import copy
import importlib
import subprocess
import sys

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn
from torch.nn import functional

from _support.passes import Net, Plain, batches, by_hand, nc1_by_hand
from _support.tolerances import EXACT, FLOAT32
from collapsekit import CollapseError
from collapsekit.monitor import Monitor

HOSTS = {
    "lightning": ["lightning", "lightning.pytorch", "pytorch_lightning"],
    "transformers": ["transformers", "transformers.models.auto.modeling_auto"],
}


@pytest.mark.parametrize("host", HOSTS)
def test_without_its_host_a_callback_says_what_to_install(host, monkeypatch):
    module = f"collapsekit.monitor.{host}"
    monkeypatch.delitem(sys.modules, module, raising=False)
    for name in HOSTS[host]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(CollapseError, match=f"{module}: .* is not installed; run: pip install {host}") as caught:
        importlib.import_module(module)
    assert "\n" not in str(caught.value)


def test_the_monitor_needs_no_host():
    hosts = {"lightning", "pytorch_lightning", "accelerate", "transformers.trainer"}  # torchmetrics takes transformers
    code = f"import sys, collapsekit.monitor; print(sorted({hosts} & sys.modules.keys()))"
    found = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"


def test_a_model_that_returns_its_loss_only():
    class Lossy(Net):
        def forward(self, x, y):
            return functional.cross_entropy(super().forward(x), y)

    net, seen = Lossy(), []
    x, y = next(batches())
    monitor = Monitor(net)
    net(x, y)
    with pytest.raises(CollapseError, match=r"name the head, like Monitor\(model, head='head'\)"):
        monitor.update(y)
    monitor = Monitor(net, "head", every=1)
    for x, y in batches():
        net(x, y)
        monitor.update(y)
        seen.append([net.features.detach().double().numpy(), net.logits.detach().double().numpy(), y.numpy()])
    monitor.epoch()
    assert_allclose(monitor.measured.losses, by_hand(seen)["loss"], rtol=FLOAT32)


def test_parts_that_are_called_after_an_evaluation():
    net = Plain()
    monitor = Monitor(net)
    x, y = next(batches())
    net.eval()(x)
    net.train().head(net.body(x))
    with pytest.raises(CollapseError, match=r"name the head, like Monitor\(model, head='head'\)"):
        monitor.update(y)


class Wrapper(nn.Module):
    """A layer around a trained copy of the head that shows its weight, as adapters keep one."""

    def __init__(self, layer):
        super().__init__()
        self.original, self.trained = copy.deepcopy(layer), layer

    @property
    def weight(self):
        return self.trained.weight

    def forward(self, x):
        return self.trained(x)


def test_a_head_in_a_wrapper_that_shows_its_weight():
    net = Plain()
    net.head = Wrapper(net.head)
    monitor = Monitor(net)
    for x, y in batches():
        net(x)
        monitor.update(y)
    assert monitor.tap.head.name == "head.trained"
    assert monitor.epoch()["collapse/bias_sum"] == net.head.trained.bias.double().sum()


class Picking(nn.Module):
    """Logits at all positions, of which it returns those at one, as classifiers made of language models do."""

    def __init__(self):
        super().__init__()
        self.body, self.score = nn.Sequential(nn.Linear(6, 5), nn.ReLU()), nn.Linear(5, 4, bias=False)

    def forward(self, x, at):
        return {"logits": self.score(self.body(x))[torch.arange(len(x)), at]}


@pytest.mark.parametrize("head", [None, "score"])
def test_rows_at_the_position_that_the_model_picks(head):
    net, seen = Picking(), []
    monitor = Monitor(net, head, every=1)
    for i, (x, y) in enumerate(batches()):
        x, at = torch.stack([x + j for j in range(7)], dim=1), torch.arange(len(x)) % 7
        if i == 3:
            x[4, 4] = torch.nan
        net(x, at)
        monitor.update(y)
        with torch.no_grad():
            h = net.body(x)[torch.arange(len(x)), at]
        kept = h.isfinite().all(1)
        seen.append([v[kept].double().numpy() for v in (h, net.score(h).detach())] + [y[kept].numpy()])
    scalars = monitor.epoch()
    assert scalars["collapse/not_finite"] == 1
    assert_allclose(monitor.measured.losses, by_hand(seen)["loss"], rtol=FLOAT32)
    assert_allclose(monitor.measured.recalls, by_hand(seen)["recall"], rtol=FLOAT32)
    assert_allclose(scalars["collapse/nc1"], nc1_by_hand(seen), rtol=10 * FLOAT32)


class Wrapping(torch.optim.Optimizer):
    """An optimizer around another, which takes the steps."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    def step(self, closure=None):
        self.optimizer.step()


def test_an_optimizer_that_is_wrapped_in_another():
    net = Plain()
    optimizer = Wrapping(torch.optim.SGD(net.parameters(), lr=0.1, weight_decay=0.02))
    monitor = Monitor(net, optimizer=optimizer)
    for x, y in batches():
        functional.cross_entropy(net(x), y).backward()
        monitor.update(y)
        optimizer.step()
    assert_allclose(monitor.epoch()["collapse/horizon"], len(list(batches())) * 0.1 * 0.02, rtol=EXACT)


@pytest.mark.parametrize("every", [1, 2])
def test_rows_that_wait_in_a_restored_state_are_counted_without_another_pass(every):
    net = Plain()
    monitor, other = Monitor(net, every=every), Monitor(net, every=every)
    for x, y in batches():
        net(x)
        monitor.update(y)
        other.tap.take()
    fresh = Plain()
    fresh.load_state_dict(net.state_dict())
    restored = Monitor(fresh, every=every)
    restored.load_state_dict(monitor.state_dict())
    assert restored.epoch() == monitor.epoch()
    assert restored.measured.counts.sum() == np.sum([len(y) for _, y in batches()])
    with pytest.raises(CollapseError, match=r"state: is of head='head'; give that, or no state"):
        Monitor(nn.Sequential(nn.Linear(6, 4))).load_state_dict(monitor.state_dict())
