"""Networks of the labelled suite: how one is described, made and trained (small, single thread, seconds)."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from _tools import suite_bodies, suite_data

POINTS = 40
"""Entries of a history, evenly over the steps."""
DROP = (0.1, 0.01)
"""The schedule "step": after this share of the steps the rate is multiplied by that."""
DECAYING = 0.3
"""Share of the steps over which explicit penalties grow where they are warmed up."""


@dataclass(frozen=True)
class Made:
    """A network of the suite: everything that makes it, and what is told about it.

    Penalties are of the theory's units: ``product`` is λ_W λ_H in units of N⁻²·(K−1)/K, so that a class dies of it
    without a bias if its count is below; ``ratio`` is λ_W/λ_H.
    """

    name: str
    cause: str | None
    data: str
    counts: tuple[int, ...]
    seed: int
    dim: int = 24
    hidden: tuple[int, ...] = (64,)
    conv: bool = False
    body: str = ""  # attention, residual, resnet: see suite_bodies
    norm: str = ""  # batch, layer; behind another body layer, rms; unit: features and rows of the head have fixed norms
    scale: float = 8.0  # of logits where norms are fixed
    rank: int = 0  # of a linear bottleneck before the features
    act: str = "relu"
    dropout: float = 0.0
    bias: bool = True
    optimizer: str = "adam"
    rate: float = 3e-3
    steps: int = 600
    batch: int | None = None
    momentum: float = 0.0
    schedule: str = "cosine"
    cut: float = 1.0  # share of the schedule that was run
    late: tuple[int, float] | None = None  # last steps at a rate of their own: steps, times the rate
    noise: float = 0.0  # standard deviation of what is added to inputs at every step
    decay: float = 0.0
    law: bool = False  # decay on the head and the last BatchNorm only
    product: float | None = None
    ratio: float = 100.0
    warmup: bool = True
    early: tuple[int, float, float] | None = None  # first steps with other rates and penalties: steps, two factors
    loss: str = "ce"  # mse
    smoothing: float = 0.0
    weighted: bool = False
    change: str = ""  # of data or head: see the suite
    pairs: tuple[tuple[int, int], ...] = ()
    strength: float = 1.0
    twin: int = 0  # times as many steps, another width or count: what the check of the label compares with
    told: tuple[str, ...] = ()
    held_out: int = 25

    @property
    def penalties(self):
        """λ_W and λ_H of the explicit penalties, or None."""
        if self.product is None:
            return None
        classes, total = len(self.counts), sum(self.counts)
        both = self.product / total**2 * ((classes - 1) / classes if self.loss == "ce" else 1.0)
        return math.sqrt(both * self.ratio), math.sqrt(both / self.ratio)


def data_of(made):
    """Training and held-out samples after what is done to them on purpose: X, y, Xt, yt, names."""
    X, y, Xt, yt, names = suite_data.cut(made.data, made.counts, made.held_out, made.seed)
    rng = np.random.default_rng([made.seed, 1])
    if made.change == "coinciding":
        X, y = suite_data.coinciding(X, y, made.pairs, rng)
    elif made.change == "inseparable":
        X, y = suite_data.inseparable(X, y, made.pairs, rng, made.data)
    elif made.change == "mislabelled":
        X, y = suite_data.mislabelled(X, y, made.pairs, rng, made.data, made.strength)
    elif made.change == "mixed":
        X, y = suite_data.mixed(X, y, made.pairs, rng, made.data)
    elif made.change == "blank":
        X, y = suite_data.blank(X, y, made.pairs)
    return X, y, Xt, yt, names


class Net(nn.Module):
    """A body that ends in the features, and a linear head."""

    def __init__(self, made, shape):
        super().__init__()
        self.body = suite_bodies.body(made, shape) if made.body else plain_body(made, shape)
        self.head = nn.Linear(made.dim, len(made.counts), bias=made.bias)
        if made.change == "frozen":
            prior = torch.tensor(made.counts) / sum(made.counts)
            self.head.bias.data = made.strength * (prior.flip(0) / prior).log()
            self.head.bias.requires_grad = False
        if made.norm == "unit":
            parametrize.register_parametrization(self.head, "weight", Unit(made.scale))


class Unit(nn.Module):
    """Rows of a fixed norm."""

    def __init__(self, norm=1.0):
        super().__init__()
        self.norm = norm

    def forward(self, rows):
        return self.norm * F.normalize(rows, dim=1)


def plain_body(made, shape):
    """Convolutions where asked for, then fully connected layers with their norms."""
    width, layers = math.prod(shape), [nn.Flatten()]
    if made.conv:
        layers = [nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(), nn.Flatten()]
        width = 16 * math.prod(-(-side // 4) for side in shape[1:])
    for size in (*made.hidden, *([] if made.rank else [made.dim])):
        layers += [nn.Linear(width, size), *norms(made, size), *acts(made)]
        layers += [nn.Dropout(made.dropout)] if made.dropout else []
        width = size
    if made.rank:
        layers += [nn.Linear(width, made.rank), nn.Linear(made.rank, made.dim)]
    layers += {"layer": [nn.LayerNorm(made.dim)], "unit": [nn.Linear(made.dim, made.dim), Unit()]}.get(made.norm, [])
    return nn.Sequential(*layers)


def norms(made, size):
    return {"batch": [nn.BatchNorm1d(size)], "layer": [nn.LayerNorm(size)]}.get(made.norm, [])


def acts(made):
    return {"relu": [nn.ReLU()], "gelu": [nn.GELU()], "tanh": [nn.Tanh()], "silu": [nn.SiLU()]}.get(made.act, [])


def optimizer_of(made, net):
    """torch's optimiser; with the BatchNorm law the decay is that of head, gain and shift only."""
    last = [m for m in net.modules() if isinstance(m, nn.BatchNorm1d)][-1:] if made.law else []
    decayed = [p for m in (net.head, *last) for p in m.parameters()] if made.law else list(net.parameters())
    chosen = {id(p) for p in decayed}
    groups = [
        {"params": decayed, "weight_decay": made.decay},
        {"params": [p for p in net.parameters() if id(p) not in chosen], "weight_decay": 0.0},
    ]
    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[made.optimizer]
    extra = {"momentum": made.momentum} if made.optimizer == "sgd" else {}
    return kind([g for g in groups if g["params"]], lr=made.rate, **extra)


class Run:
    """A network in training; `go` takes more steps and continues where the last call ended."""

    def __init__(self, made):
        torch.manual_seed(made.seed)
        self.made = made
        X, y, Xt, yt, self.names = data_of(made)
        self.X, self.y, self.Xt, self.yt = (torch.as_tensor(v) for v in (X, y, Xt, yt))
        self.net = Net(made, X.shape[1:])
        self.rng = torch.Generator().manual_seed(made.seed)
        self.history = {"loss": [], "recalls": []}

    def go(self, steps, made=None):
        """Train as `made` says, warm-up and schedule included; the history goes on."""
        made = self.made = made or self.made
        optimizer, every = optimizer_of(made, self.net), max(1, steps // POINTS)
        for step in range(round(made.cut * steps)):
            rate, penalty = factors(made, step, steps)
            for group, decay in zip(optimizer.param_groups, (made.decay, 0.0), strict=False):
                group["lr"], group["weight_decay"] = made.rate * rate, decay * (penalty if made.law else 1.0)
            rows = slice(None)
            if made.batch:
                rows = torch.randint(len(self.y), (made.batch,), generator=self.rng)
            self.net.train()
            optimizer.zero_grad()
            self.objective(self.noisy(self.X[rows]), self.y[rows], penalty).backward()
            optimizer.step()
            if (step + 1) % every == 0:
                self.record()
        return self

    def noisy(self, X):
        return X + self.made.noise * torch.randn(X.shape, generator=self.rng) if self.made.noise else X

    def objective(self, X, y, penalty=1.0):
        """The loss and, where they are explicit, the penalties: those of features as for the full batch."""
        made, features = self.made, self.net.body(X)
        total = self.fit(self.net.head(features), y)
        if made.product is not None:
            lw, lh = made.penalties
            scale = len(self.y) / len(y)
            total = (
                total + penalty * (lw * self.net.head.weight.square().sum() + scale * lh * features.square().sum()) / 2
            )
        return total

    def fit(self, logits, y):
        if self.made.loss == "mse":
            return (logits - F.one_hot(y, logits.shape[1])).square().sum(1).mean() / 2
        weight = None
        if self.made.weighted:
            weight = len(self.y) / (logits.shape[1] * torch.bincount(self.y).float())
        return F.cross_entropy(logits, y, weight=weight, label_smoothing=self.made.smoothing)

    def record(self):
        with torch.no_grad():
            self.net.eval()
            logits = self.net.head(self.net.body(self.X))
            right = (logits.argmax(1) == self.y).double()
            recalls = [round(right[self.y == k].mean().item(), 3) for k in range(logits.shape[1])]
            self.history["loss"].append(float(f"{self.objective(self.X, self.y).item():.5g}"))
            self.history["recalls"].append(recalls)

    @torch.no_grad()
    def features(self, X):
        """Features of the network as it is deployed, (n, d)."""
        self.net.eval()
        return self.net.body(X).numpy()

    def head(self):
        """W and b (None without) as arrays."""
        bias = self.net.head.bias
        return self.net.head.weight.detach().numpy().copy(), None if bias is None else bias.detach().numpy().copy()


def factors(made, step, steps):
    """What the learning rate and the penalties are multiplied by at a step."""
    rate = 0.5 * (1 + math.cos(math.pi * step / steps)) if made.schedule == "cosine" else 1.0
    if made.schedule == "step" and step >= DROP[0] * steps:
        rate = DROP[1]
    penalty = min(1.0, (step + 1) / (DECAYING * steps)) if made.warmup and (made.product or made.law) else 1.0
    if made.early and step < made.early[0]:
        return rate * made.early[1], made.early[2]
    if made.late and step >= steps - made.late[0]:
        return made.late[1], penalty
    return rate, penalty
