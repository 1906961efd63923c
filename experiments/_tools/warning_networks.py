"""Networks for the early warnings: classes that live and then die, under penalties that grow, and healthy company.

Half A is what the rules were tried on. Half B, of other data, counts and seeds, was trained after they were frozen.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch

from _tools import suite_networks as suite
from _tools.suite_training import Made, Run, factors, optimizer_of
from collapsekit.losses import MSE, CrossEntropy
from collapsekit.monitor import Monitor

EPOCHS = 60
"""What is called an epoch: so many, of equally many steps."""


@dataclass(frozen=True)
class Watched:
    """A network of the suite, trained while its penalties (or its weight decay) go their way.

    The penalties are what `made` says times ``factor ** -1`` up to the share `begin` of the training, and grow, as
    `shape` says, to what `made` says at the share `end`; without a shape they are as the suite has them.
    """

    made: Made
    shape: str = ""
    begin: float = 0.0
    end: float = 1.0
    factor: float = 100.0

    def penalty(self, share):
        """What the penalties are multiplied by."""
        way = min(1.0, max(0.0, (share - self.begin) / (self.end - self.begin)))
        return {"linear": 1 / self.factor + way * (1 - 1 / self.factor), "geometric": self.factor ** (way - 1)}[
            self.shape
        ]

    def run(self):
        """Train with a monitor; return what it counted: recalls and confidences (epochs, K), warming (epochs,)."""
        made, run = self.made, Run(self.made)
        optimizer, net = optimizer_of(made, run.net), run.net
        loss = MSE() if made.loss == "mse" else CrossEntropy(smoothing=made.smoothing)
        monitor = Monitor(net, "head", every=None, optimizer=optimizer, loss=loss)
        ends = {round((i + 1) * made.steps / EPOCHS) for i in range(EPOCHS)}
        seen = []
        for step in range(made.steps):
            rate, penalty = factors(made, step, made.steps)
            penalty = self.penalty(step / made.steps) if self.shape else penalty
            decays = penalty if self.shape or made.law else 1.0
            for group, decay in zip(optimizer.param_groups, (made.decay, 0.0), strict=False):
                group["lr"], group["weight_decay"] = made.rate * rate, decay * decays
            rows = slice(None)
            if made.batch:
                rows = torch.randint(len(run.y), (made.batch,), generator=run.rng)
            net.train()
            optimizer.zero_grad()
            run.objective(run.X[rows], run.y[rows], penalty).backward()
            monitor.update(run.y[rows])
            optimizer.step()
            if step + 1 in ends:
                monitor.epoch()
                measured = monitor.measured
                seen.append((measured.recalls, measured.confidences, monitor.horizon.warming))
        monitor.close()
        return [np.array(part) for part in zip(*seen, strict=True)]


FADING = {
    "growing": ("linear", 0.0, 1.0, suite.RICH | {"product": 12.0}),
    "growing with a bias": ("linear", 0.0, 0.7, suite.RICH | {"product": 12.0, "bias": True}),
    "raised": ("geometric", 0.4, 0.8, suite.RICH | {"product": 14.0}),
    "raised in mini-batches": ("geometric", 0.4, 0.9, suite.RICH | {"product": 12.0, "batch": 32}),
    "raised for good": ("geometric", 0.3, 0.9, suite.RICH | {"product": 12.0, "schedule": "constant", "bias": True}),
    "decay of everything": ("geometric", 0.3, 0.9, suite.SGD | {"decay": 0.1, "steps": 1500, "schedule": "constant"}),
    "cosine": ("geometric", 0.1, 0.6, suite.SGD | {"decay": 0.1, "steps": 1500}),
    "law": ("geometric", 0.3, 0.9, suite.LAW | {"decay": 0.25, "bias": False}),
    "adamw": ("geometric", 0.3, 0.9, {"optimizer": "adamw", "decay": 20.0, "steps": 1200, "schedule": "constant"}),
    "squared error": ("geometric", 0.3, 0.9, suite.RICH | suite.MSE | {"product": 12.0}),
    "at once": ("geometric", 0.5, 0.52, suite.RICH | {"product": 12.0}),
    "from the start": ("", 0.0, 1.0, suite.RICH | {"product": 8.0, "warmup": False}),
}
"""How classes come to die: shape, begin and end of the growth, and the recipe."""
WEAK = {
    "growing": suite.RICH | {"product": 0.6},
    "raised": suite.RICH | {"product": 0.6, "bias": True, "schedule": "constant"},
    "raised in mini-batches": suite.RICH | {"product": 0.6, "batch": 16},
    "decay of everything": suite.SGD | {"decay": 5e-3, "steps": 1500, "schedule": "constant", "batch": 16},
    "adamw": {"optimizer": "adamw", "decay": 0.3, "steps": 1200, "batch": 16},
}
"""The same growth to penalties that every class survives."""
BASES = {
    "A": [
        ("digits", suite.STEEP),
        ("mixture:6:10:5", (100, 80, 60, 50, 6, 4)),
        ("fashion-mnist", (80, 70, 60, 60, 6, 4)),
        ("olive", (150, 45, 40, 36, 35, 35, 25, 4, 3)),
    ],
    "B": [
        ("mnist-5k", suite.CLIFF),
        ("mixture:15:12:7", (30,) * 11 + (3,) * 4),
        ("storms", (120, 90, 70, 5, 4)),
        ("penguins", (110, 90, 4)),
        ("mixture:4:6:5", (200, 100, 5, 4)),
    ],
}
EVENER = {
    "A": [("digits", suite.TAIL), ("mixture:6:10:5", suite.SIX), ("fashion-mnist", suite.CLOTHES)],
    "B": [("mnist-5k", suite.MNIST), ("mixture:4:6:5", suite.FOUR), ("penguins", suite.BIRDS)],
}


def half(letter, first_seed):
    """All networks of a half: the suite's own that are healthy or lost to their recipe, and those that fade."""
    own = [made for made in suite.HALVES[letter] if made.cause in (None, "regularisation")]
    found = [Watched(replace(made, steps=max(made.steps, EPOCHS))) for made in own]
    for kind, (shape, begin, end, values) in FADING.items():
        for data, counts in BASES[letter]:
            name, seed = f"{letter}-fading-{kind}-{data}", first_seed + len(found)
            shorter = {"steps": 900} if letter == "B" else {}
            found.append(
                Watched(Made(name, "fading", data, tuple(counts), seed, **(values | shorter)), shape, begin, end)
            )
    for kind, values in WEAK.items():
        for data, counts in EVENER[letter]:
            name, seed = f"{letter}-weak-{kind}-{data}", first_seed + len(found)
            shape, begin, end, _ = FADING[kind]
            found.append(Watched(Made(name, None, data, tuple(counts), seed, **values), shape, begin, end))
    return found


HALVES = {"A": half("A", 5000), "B": half("B", 6000)}
SMOKE = [
    watched
    for watched in HALVES["A"]
    if watched.made.name in ("A-healthy-olive-adamw", "A-fading-raised-digits", "A-weak-growing-mixture:6:10:5")
]
