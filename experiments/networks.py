"""Do other networks land on the closed form too: CNN, VGG11, ResNet18, text transformer?

Run: python experiments/networks.py [--workers 2] [--out FOLDER]       (about 40 core-minutes)
Needs Debian's fortunes, fortunes-min and dataset-fashion-mnist. Writes experiments/results/networks.json.

Explicit penalties on head and features, warm-up, Adam at 3e-3, bias-free head; levels of λ_W λ_H below and above the
smallest class's threshold. CNN of width 8 on all 613 digits and on 1,503 images of Fashion-MNIST (mini-batches of 128,
500 epochs): three levels, three seeds. VGG11 and ResNet18 of width 16 with BatchNorm on 409 digits of 8×8, a
transformer layer of width 64 on texts with a long tail (100 … 10): two levels, one seed, full batch. Reduced to fit the
budget: widths, and 2,500, 1,000 and 600 steps.

The band below was committed before the runs. An earlier version ran at 1e-3, with fewer images and VGG11 without
BatchNorm, and stayed 0.01 to 0.57 off; the learning rate was raised, and BatchNorm added, on seed 100, which is not
among the runs (VGG11 without BatchNorm stayed 0.34 off there). With 1,200 steps one of nine runs of the CNN on digits
was 0.017 off, in a class at headroom 1.25 that was still growing; all nine were run again with 2,500. Texts whose words
are those of a text of another class are left out (experiments/collapse_line.py shows what they do).
"""

import numpy as np

from _tools import datasets, harness
from _tools.harness import line, setting, spread
from collapsekit.training import TrainConfig

FAST = {"learning_rate": 3e-3}
NETWORKS = {  # name: (settings, levels, seeds)
    "CNN × digits": (FAST | {"network": "cnn", "width": 8, "epochs": 2500}, (0.3, 0.8, 1.5), 3),
    "CNN × Fashion-MNIST": (
        FAST
        | {"network": "cnn", "width": 8, "data": "fashion-mnist", "largest": 367, "batch_size": 128, "epochs": 500},
        (0.3, 0.8, 1.5),
        3,
    ),
    "VGG11, width 16 × digits": (
        FAST | {"network": "vgg11", "batchnorm": True, "largest": 100, "epochs": 1000},
        (0.3, 1.5),
        1,
    ),
    "ResNet18, width 16 × digits": (
        FAST | {"network": "resnet18", "batchnorm": True, "largest": 100, "epochs": 1000},
        (0.3, 1.5),
        1,
    ),
    "text transformer × fortunes": (
        FAST
        | {"network": "experiments.nets:text_transformer", "data": datasets.TOKENS, "epochs": 600}
        | {"profile": "long-tail", "largest": 100},
        (0.3, 1.5),
        1,
    ),
}
CONFIGS = [
    TrainConfig(seed=seed, penalty_scale=level, **values)
    for values, levels, seeds in NETWORKS.values()
    for level in levels
    for seed in range(seeds)
]
BANDS = {"largest_deviation": 0.01}
SMOKE = [TrainConfig(network="cnn", width=8, largest=60, ratio=5.0, epochs=600, **FAST)]
SMOKE_BANDS = {"largest_deviation": 0.05}


def name_of(row):
    config = TrainConfig.from_dict(row["config"])
    names = [
        name
        for name, (values, _, _) in NETWORKS.items()
        if config.network == values["network"] and config.data == values.get("data", "digits")
    ]
    return names[0]


def judge(rows, bands):
    groups = {name: [row for row in rows if name_of(row) == name] for name in NETWORKS}
    return [judge_network(name, group, bands) for name, group in groups.items() if group]


def judge_network(name, rows, bands):
    largest = [row["largest_deviation"] for row in rows]
    clear = [row for row in rows if not harness.critical(row)]
    same = sum(row["same_classes_collapsed"] for row in clear)
    all_alive = [row["train_accuracy"] for row in rows if row["predicted_collapsed"] == 0]
    levels, seeds = (len({setting(row, key) for row in rows}) for key in ("penalty_scale", "seed"))
    median = np.median(np.concatenate([harness.deviations(row) for row in rows]))
    inside = sum(value <= bands["largest_deviation"] for value in largest)
    lost = sum(row["spuriously_collapsed"] for row in rows)
    measured = (
        f"median {median:.1g}, largest {spread(largest)}, worst {max(largest):.2g}; inside the band {inside} of "
        f"{len(rows)}; dead classes exact in {same} of {len(clear)}"
    )
    if lost:
        measured += f", {lost} classes dead that the optimum keeps alive"
    if all_alive and min(all_alive) < 1:
        measured += f"; training error {1 - min(all_alive):.1%} where no class is to die"
    return line(
        "other networks: class confidence is 1 − q_k",
        f"{name} × {levels} level{'s' * (levels > 1)} × {seeds} seed{'s' * (seeds > 1)}",
        f"deviation 0 (band {bands['largest_deviation']}), same dead classes",
        measured,
        max(largest) <= bands["largest_deviation"] and same == len(clear),
        headline=name == "CNN × Fashion-MNIST",
    )


EXPERIMENT = harness.Experiment(
    "networks", __doc__, CONFIGS, BANDS, judge, SMOKE, SMOKE_BANDS, prepare=datasets.prepare
)

if __name__ == "__main__":
    harness.main(EXPERIMENT)
