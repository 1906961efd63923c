"""A small network in training whose passes are recorded, and what the monitor should say of them, counted by hand."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional

COUNTS = (40, 25, 12, 3)


class Plain(nn.Module):
    """A body and a head."""

    def __init__(self, *, bias=True, dropout=0.0, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 5), nn.ReLU())
        self.head = nn.Linear(5, len(COUNTS), bias=bias)

    def forward(self, x):
        return self.head(self.body(x))


class Net(Plain):
    """What went into the head and came out of it stands beside it."""

    def forward(self, x):
        self.features = self.body(x)
        self.logits = self.head(self.features)
        return self.logits


def batches(seed=0, size=16):
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.repeat(np.arange(len(COUNTS)), COUNTS))
    x = rng.normal(size=(len(y), 6)) + 2 * np.eye(6)[y]
    for start in range(0, len(y), size):
        yield torch.tensor(x[start : start + size], dtype=torch.float32), torch.tensor(y[start : start + size])


def trained(net, monitor=None, epochs=1, optimizer=None, seen=None):
    optimizer = optimizer or torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for epoch in range(epochs):
        for x, y in batches(epoch):
            optimizer.zero_grad()
            loss = functional.cross_entropy(net(x), y)
            if seen is not None:
                seen.append(
                    [v.detach().double().numpy().copy() for v in (net.features, net.logits)] + [y.numpy().copy()]
                )
            if monitor is not None:
                monitor.update(y)
            loss.backward()
            optimizer.step()
        if monitor is not None:
            monitor.epoch()
    return net


def by_hand(seen):
    """Class numbers of recorded passes, by loops over samples."""
    _, z, y = (np.concatenate(parts) for parts in zip(*seen, strict=True))
    K = len(COUNTS)
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    ordered = np.sort(z, axis=1)
    lead = ordered[:, -1] - ordered[:, -2]
    right = (z.argmax(1) == y) & (lead > 0.01 * np.median(lead))
    found = {key: np.full(K, np.nan) for key in ("confidence", "recall", "loss", "margin")}
    for k in range(K):
        own = np.flatnonzero(y == k)
        if own.size:
            found["confidence"][k] = np.mean([p[i, k] for i in own])
            found["loss"][k] = np.mean([-np.log(p[i, k]) for i in own])
            found["recall"][k] = np.mean([right[i] for i in own])
            found["margin"][k] = np.mean([z[i, k] - np.delete(z[i], k).mean() for i in own])
    return found


def nc1_by_hand(seen, kept=None):
    """Trace of Σ_W Σ_B† over K with dense matrices; Σ_W of the rows of the kept steps around the means of all."""
    h, y = np.concatenate([s[0] for s in seen]), np.concatenate([s[2] for s in seen])
    classes = np.unique(y)
    means = {k: h[y == k].mean(0) for k in classes}
    between = sum(np.outer(means[k] - h.mean(0), means[k] - h.mean(0)) for k in classes) / len(classes)
    chosen = seen if kept is None else [seen[i] for i in kept]
    h, y = np.concatenate([s[0] for s in chosen]), np.concatenate([s[2] for s in chosen])
    residuals = np.array([h[i] - means[y[i]] for i in range(len(y))])
    return np.trace(residuals.T @ residuals / len(y) @ np.linalg.pinv(between, rcond=1e-12)) / len(classes)
