"""Small networks on digits, healthy or spoiled in one way: what they end with, and what was done to them."""

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

DIGITS = load_digits()
LONG_TAIL = np.round(130 * (6 / 130) ** (np.arange(10) / 9)).astype(int)
NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def digits(counts, held_out=30, seed=0):
    """Training and held-out digits: so many of each class, and `held_out` others."""
    rng = np.random.default_rng(seed)
    rows = [rng.permutation(np.flatnonzero(DIGITS.target == k)) for k in range(10)]
    train = np.concatenate([row[held_out : held_out + n] for row, n in zip(rows, counts, strict=True)])
    test = np.concatenate([row[:held_out] for row in rows])
    inputs = (DIGITS.data / 16).astype(np.float32)
    return inputs[train], DIGITS.target[train], inputs[test], DIGITS.target[test]


def network(dim=64, *, bias=True, act=nn.ReLU, norm=None):
    layers = [nn.Linear(64, 128), act(), nn.Linear(128, dim), *([norm(dim)] if norm else []), act()]
    return nn.Sequential(nn.Sequential(*layers), nn.Linear(dim, 10, bias=bias))


def train(model, inputs, labels, optimizer, *, epochs=60, offsets=0.0, penalties=None):
    """Cosine schedule, batches of 64; returns the mean loss of each epoch."""
    x, y = torch.from_numpy(inputs), torch.from_numpy(labels)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * -(-len(x) // 64))
    losses = []
    for _ in range(epochs):
        total = 0.0
        for rows in torch.randperm(len(x)).split(64):
            features = model[0](x[rows])
            loss = nn.functional.cross_entropy(model[1](features) + offsets, y[rows])
            total += loss.item() * len(rows)
            if penalties:
                weight, feature = penalties
                loss = loss + weight / 2 * model[1].weight.square().sum() + feature / 2 * features.square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        losses.append(total / len(x))
    return losses


def sgd(model, rate=0.1, decay=5e-4):
    return torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, weight_decay=decay)
