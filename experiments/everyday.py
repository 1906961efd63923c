"""What does the toolkit say of everyday training, is it right, and is it of use?

Run: python experiments/everyday.py [--workers 2] [--out FOLDER]       (about 24 core-minutes)
Needs Debian's dataset-fashion-mnist. Writes experiments/results/everyday.json.

BatchNorm CNN of width 16, Fashion-MNIST with a 100:1 long tail (500 … 5), weight decay 5e-4 on everything, SGD 0.1 with
cosine decay, batch 128, no warm-up of the decay. Four settings: as used every day, with a bias in the head, flips and
shifts; the same with AdamW (decay 0.05); with the bias and without augmentation, where there is no closed form but an
optimum that `solve` certifies; and without both, where the BatchNorm law applies. Reduced to fit the budget: 60 epochs,
three seeds each.

Bands, committed before the runs. (1) "No class is lost to regularisation": the law puts every class far from its
threshold, so no class may be collapsed in any run. (2) The confidences of the law, or of the certified optimum where
the head has a bias, within 0.01; augmentation and AdamW break their conditions. (3) Effective penalties: where a number
is given it is within a factor of 1.5 of λ_W = wd and λ_H = wd/N, otherwise a reason is given instead.
"""

import numpy as np

from _tools import harness
from _tools.harness import line, setting, spread
from collapsekit import predict
from collapsekit.diagnosis import effective_penalties
from collapsekit.recipe import BatchNorm, LastLayer
from collapsekit.training import TrainConfig

COMMON = {
    "data": "fashion-mnist",
    "largest": 500,
    "ratio": 100,
    "recipe": "batchnorm",
    "decay_on": "everything",
    "weight_decay": 5e-4,
    "warmup": 0.0,
    "batch_size": 128,
    "epochs": 60,
}
SETTINGS = {
    "SGD, bias, augmentation": ({"network": "experiments.nets:everyday_cnn"}, 3),
    "AdamW, bias, augmentation": (
        {"network": "experiments.nets:everyday_cnn", "optimizer": "adamw", "weight_decay": 0.05},
        3,
    ),
    "SGD, bias, no augmentation": ({"network": "experiments.nets:biased_cnn"}, 3),
    "SGD, no bias, no augmentation": ({"network": "experiments.nets:plain_cnn"}, 3),
}
CONFIGS = [TrainConfig(seed=seed, **COMMON | values) for values, seeds in SETTINGS.values() for seed in range(seeds)]
BANDS = {"collapsed": 0, "law_deviation": 0.01, "effective_factor": 1.5}
SMOKE = [
    TrainConfig(**COMMON | {"data": "digits", "largest": 100, "ratio": 20} | SETTINGS[name][0])
    for name in ("SGD, bias, no augmentation", "SGD, no bias, no augmentation")
]
SMOKE_BANDS = BANDS | {"law_deviation": 0.03}


def said(run):
    """What the toolkit says of a run: the law as if its conditions held, effective penalties or why there are none."""
    counts = run.measured.counts
    law = predict(BatchNorm(run.config.weight_decay).problem(counts, LastLayer(branches=1)))
    estimate = effective_penalties(run.measured)
    return {
        "law_confidences": law.confidences,
        "law_headroom": float(law.headroom.min()),
        "effective": [estimate.lambda_w, estimate.lambda_h, estimate.reason],
        "wanted": [law.problem.lambda_w, float(np.asarray(law.problem.lambda_h))],
    }


def name_of(row):
    return next(
        name
        for name, (values, _) in SETTINGS.items()
        if setting(row, "network") == values["network"] and setting(row, "optimizer") == values.get("optimizer")
    )


def judge(rows, bands):
    groups = {name: [row for row in rows if name_of(row) == name] for name in SETTINGS}
    groups = {name: group for name, group in groups.items() if group}
    return [
        entry
        for name, group in groups.items()
        for entry in (
            judge_loss(name, group, bands),
            judge_law(name, group, bands),
            judge_effective(name, group, bands),
        )
    ]


def tested(name, rows):
    return f"BatchNorm CNN, {name} × {harness.long_tailed(rows[0])} × {len(rows)} seed{'s' * (len(rows) > 1)}"


def judge_loss(name, rows, bands):
    lost = sum(row["collapsed"] for row in rows)
    headroom = f"{min(row['law_headroom'] for row in rows):.0f}" + " if decay were L2" * ("AdamW" in name)
    return line(
        "everyday settings: no class is lost to regularisation",
        tested(name, rows),
        f"smallest headroom {headroom}: no class collapses",
        f"{lost} collapsed; training fit {spread((100 * row['train_accuracy'] for row in rows), 3)} %, test recall "
        f"of the rarest class {spread(100 * row['recalls'][-1] for row in rows)} %, balanced "
        f"{spread((100 * row['balanced_accuracy'] for row in rows), 3)} %",
        lost <= bands["collapsed"],
        headline=name == "SGD, bias, augmentation",
    )


def judge_law(name, rows, bands):
    solved = all("solved_confidences" in row for row in rows)
    wanted = "solved_confidences" if solved else "law_confidences"
    apart = [np.abs(np.array(row["confidences"]) - row[wanted]) for row in rows]
    broken = [what for what in ("AdamW", "augmentation") if what in name and f"no {what}" not in name]
    conditions = f"its conditions are broken: {', '.join(broken)}" if broken else "predicted"
    worst = int(np.argmax(apart[0]))
    gap = f", certified to {max(row['solved_gap'] for row in rows):.0e}" if solved else ""
    return line(
        "everyday settings: confidences are those of the "
        + ("optimum with the head's bias" if solved else "BatchNorm law"),
        tested(name, rows),
        f"within {bands['law_deviation']}{gap} ({conditions})",
        f"largest deviation {spread(a.max() for a in apart)}, in the class of {rows[0]['counts'][worst]}; median "
        f"{np.median(apart):.1g}",
        max(a.max() for a in apart) <= bands["law_deviation"],
    )


def judge_effective(name, rows, bands):
    given = [(row["effective"], row["wanted"]) for row in rows if row["effective"][0] is not None]
    factors = [max(f / w, w / f) for found, wanted in given for f, w in zip(found, wanted, strict=False)]
    found = f"off by a factor of up to {max(factors):.2g}" if factors else f"refused: {rows[0]['effective'][2]}"
    return line(
        "everyday settings: effective penalties are right, or refused with the reason",
        tested(name, rows),
        f"within a factor of {bands['effective_factor']}, or refused",
        found,
        max(factors) <= bands["effective_factor"] if factors else harness.NO_CLAIM,
    )


EXPERIMENT = harness.Experiment("everyday", __doc__, CONFIGS, BANDS, judge, SMOKE, SMOKE_BANDS, extra=said)

if __name__ == "__main__":
    harness.main(EXPERIMENT)
