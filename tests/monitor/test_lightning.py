"""The Lightning callback against passes counted by hand, in one process and in two; whatever training_step does.

This file is also the program of the processes: ``python test_lightning.py FOLDER`` writes FOLDER/RANK.pt.
"""

import importlib
import json
import os
import subprocess
import sys
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn
from torch.nn import functional

from _support.passes import COUNTS, Net, batches, by_hand, nc1_by_hand
from _support.tolerances import EXACT, FLOAT32, MOMENTS_MERGED
from collapsekit import CollapseError
from collapsekit.metrics import NeuralCollapse, measure_features

heavy = pytest.mark.heavy
pytestmark = [
    pytest.mark.filterwarnings("ignore::Warning:lightning"),
    pytest.mark.filterwarnings("ignore::Warning:pytorch_lightning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec:Warning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor"),  # of torch.compile, which hides it itself
]
FOLDED = {"collapse/nc1", "collapse/nc1_error", "collapse/cdnv"}


class Loader:
    """Batches of an epoch, resumable in its middle, each rank with its own part of every batch."""

    def __init__(self, part=slice(None), shape=lambda x, y: (x, y)):
        self.epoch, self.done, self.part, self.shape = 0, 0, part, shape

    def __iter__(self):
        for x, y in list(batches(self.epoch))[self.done :]:
            self.done += 1
            if self.done == len(self):
                self.epoch, self.done = self.epoch + 1, 0
            yield self.shape(x[self.part], y[self.part])

    def __len__(self):
        return len(list(batches()))

    def state_dict(self):
        return {"epoch": self.epoch, "done": self.done}

    def load_state_dict(self, state):
        self.epoch, self.done = state["epoch"], state["done"]


def module(hosts, kind="itself", rate=0.1):
    """A LightningModule of one kind, which records its passes."""

    class Module(hosts.LightningModule):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = kind != "manual"
            self.net = torch.compile(Net(), backend="eager") if kind == "compiled" else Net()
            if kind == "parts":
                self.body, self.head = self.net.body, self.net.head
                del self.net
            self.seen = []

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, index):
            x, y = batch.values() if isinstance(batch, dict) else batch[:2]
            if kind == "parts":
                h = self.body(x)
                z = self.head(h)
            else:
                if kind == "twice":
                    self.net(x + 1)
                z = self(x) if kind in ("itself", "manual") else self.net(x)
                h = getattr(self.net, "_orig_mod", self.net).features
            self.seen.append([v.detach().double().cpu().numpy().copy() for v in (h, z)] + [y.cpu().numpy().copy()])
            loss = functional.cross_entropy(z, y)
            if kind == "manual":
                optimizer = self.optimizers()
                optimizer.zero_grad()
                self.manual_backward(loss)
                optimizer.step()
                return None
            return loss

        def validation_step(self, batch, index):
            if kind != "parts":
                self(batch[0])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=rate, momentum=0.9, weight_decay=1e-3)

    return Module()


def trainer(hosts, *callbacks, **options):
    given = {"max_epochs": 2, "accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False}
    given |= {"enable_progress_bar": False, "enable_model_summary": False, "callbacks": list(callbacks)}
    return hosts.Trainer(**given | options)


@pytest.fixture(scope="module")
def hosts():
    return importlib.import_module("lightning.pytorch")


@pytest.fixture(scope="module")
def callback(hosts):
    return importlib.import_module("collapsekit.monitor.lightning").CollapseCallback


def check(cb, logged, seen):
    """Measured and logged are the numbers of these passes."""
    expected = by_hand(seen)
    assert cb.monitor.measured.counts.tolist() == [(np.concatenate([s[2] for s in seen]) == k).sum() for k in range(4)]
    assert_allclose(cb.monitor.measured.confidences, expected["confidence"], rtol=FLOAT32)
    assert_allclose(cb.monitor.measured.losses, expected["loss"], rtol=FLOAT32)
    assert_allclose(cb.monitor.measured.recalls, expected["recall"], rtol=FLOAT32)
    assert_allclose(logged["collapse/worst_confidence"], expected["confidence"].min(), rtol=FLOAT32)
    assert_allclose(logged["collapse/nc1"], nc1_by_hand(seen), rtol=10 * FLOAT32)
    assert {key for key in logged if key.startswith("collapse/")} == cb.monitor.scalars.keys()


KINDS = {
    "itself": {},
    "a part": {},
    "parts": {"head": "head"},
    "manual": {},
    "twice": {},
    "compiled": {},
}
OPTIONS = {
    "plain": {"num_sanity_val_steps": 2, "val_check_interval": 2},
    "accumulated": {"accumulate_grad_batches": 2},
    "bfloat16": {"precision": "bf16-mixed"},
}


@heavy
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", OPTIONS)
def test_numbers_are_those_of_the_passes_of_the_last_epoch(hosts, callback, kind, name):
    if kind == "manual" and name == "accumulated":
        name = "plain"  # Lightning refuses it
    torch.compiler.reset()
    cb, model = callback(every=1, **KINDS[kind]), module(hosts, kind)
    run = trainer(hosts, cb, **OPTIONS[name])
    run.fit(model, Loader(), Loader())
    check(cb, run.callback_metrics, model.seen[len(model.seen) // 2 :])
    steps = len(model.seen) // OPTIONS[name].get("accumulate_grad_batches", 1) + (name == "accumulated")
    assert_allclose(run.callback_metrics["collapse/horizon"], 0.1 * 1e-3 * 10 * steps, rtol=FLOAT32)
    dropped = {"updates"} if kind == "twice" else set()
    assert {"updates"} & cb.monitor.reasons.keys() == dropped
