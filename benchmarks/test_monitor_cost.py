"""What the monitor costs a training, in shares of an epoch without it.

Run: make bench. Epochs with and without it take turns in one process, and the least of each counts: 5,000 images of
28 × 28 random pixels, batches of 128, SGD with momentum, one thread.
"""

import os
import time
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from collapsekit.monitor import Monitor

FULL = int(os.environ.get("COLLAPSEKIT_BENCH_CLASSES", 1_000_000)) >= 1_000_000  # smaller: tests/test_benchmarks.py
IMAGES, EPOCHS, BATCH = (5000, 7, 128) if FULL else (256, 1, 64)
KINDS = {"statistics and trace": None, "scatter of every 8th step": 8, "full scatter": 1}
MOST = {
    "mlp": {"statistics and trace": 0.04, "scatter of every 8th step": 0.06, "full scatter": 0.25},
    "cnn": {"statistics and trace": 0.02, "scatter of every 8th step": 0.02},
    "transformer": {"statistics and trace": 0.02, "scatter of every 8th step": 0.02},
}
"""The claim, as shares of an epoch."""


def mlp():
    sizes = (784, 512, 512, 512)
    layers = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(512, 10))


def cnn():
    sizes = (1, 32, 64, 128)
    layers = [part for a, b in pairwise(sizes) for part in (nn.Conv2d(a, b, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))


class Transformer(nn.Module):
    """Rows of an image as 28 tokens, two layers of width 64, the mean over tokens."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(28, 64)
        layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(64, 10)

    def forward(self, x):
        return self.head(self.encoder(self.embed(x[:, 0])).mean(1))


NETWORKS = {"mlp": mlp, "cnn": cnn, "transformer": Transformer}


class Training:
    """One network in training, with or without a monitor."""

    def __init__(self, network, *keys):
        torch.manual_seed(0)
        self.net = NETWORKS[network]()
        self.images, self.labels = torch.rand(IMAGES, 1, 28, 28), torch.randint(10, (IMAGES,))
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.01, momentum=0.9)
        self.monitor = Monitor(self.net, optimizer=self.optimizer, every=keys[0]) if keys else None

    def epoch(self):
        """Train one epoch; return its processor time."""
        start = time.process_time()
        for first in range(0, IMAGES, BATCH):
            labels = self.labels[first : first + BATCH]
            loss = nn.functional.cross_entropy(self.net(self.images[first : first + BATCH]), labels)
            if self.monitor is not None:
                self.monitor.update(labels)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        if self.monitor is not None:
            self.monitor.epoch()
        return time.process_time() - start


@pytest.mark.parametrize("network", NETWORKS)
def test_shares_of_an_epoch(benchmark, network):
    torch.set_num_threads(1)
    trainings = {"nothing": Training(network)} | {
        kind: Training(network, every) for kind, every in KINDS.items() if kind in MOST[network]
    }
    seconds = np.array([[training.epoch() for training in trainings.values()] for _ in range(EPOCHS)])
    benchmark.pedantic(trainings["statistics and trace"].epoch, rounds=1)
    shares = dict(zip(trainings, seconds.min(axis=0) / seconds[:, 0].min() - 1, strict=True))
    benchmark.extra_info |= {kind: round(float(shares[kind]), 3) for kind in MOST[network]}
    if FULL:
        assert {kind: shares[kind] for kind, most in MOST[network].items() if shares[kind] > most} == {}
