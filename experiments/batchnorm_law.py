"""Does ordinary weight decay with BatchNorm, and no feature penalty, obey the BatchNorm law with no fitted constant?

Run: python experiments/batchnorm_law.py [--workers 2] [--out FOLDER]       (about 15 core-minutes)
Writes experiments/results/batchnorm_law.json.

The bands below were committed before the run.
"""

import harness
from collapsekit.training import TrainConfig

LAW = {"recipe": "batchnorm"}
SETTINGS = {  # settings and band of class confidences
    "last-layer 0.1": (LAW | {"weight_decay": 0.1}, 0.005),
    "last-layer 0.2": (LAW | {"weight_decay": 0.2}, 0.01),  # three classes dead
    "everything 0.02": (LAW | {"weight_decay": 0.02, "decay_on": "everything"}, 0.01),
    "three branches 0.1": (LAW | {"weight_decay": 0.1, "network": "residual-mlp"}, 0.01),
}
RUNS = {
    TrainConfig(seed=seed, **values): band
    for values, band in SETTINGS.values()
    for seed in (range(5) if values.get("network") is None else range(3))
}
BANDS = {name: band for name, (_, band) in SETTINGS.items()}
TESTED_ON = (
    "ReLU MLPs 256-256-512 and a residual one, BatchNorm before every ReLU, bias-free head, weight decay with warm-up, "
    "full-batch SGD, scikit-learn digits"
)
KEYS = ("network", "weight_decay", "decay_on", "seed")


def within(row):
    band = RUNS[TrainConfig.from_dict(row["config"])]
    return row["same_classes_collapsed"] and row["largest_deviation"] <= band


if __name__ == "__main__":
    rows = harness.main(__doc__, "batchnorm_law", list(RUNS), KEYS, BANDS, within)
    harness.write_scope("batchnorm", "batchnorm_law", TESTED_ON, rows)
