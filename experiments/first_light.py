"""Does a real ReLU network with explicit penalties land on the closed form, below, at and above the threshold?

Run: python experiments/first_light.py [--workers 2] [--out FOLDER]       (about 15 core-minutes)
Writes experiments/results/first_light.json, and the tested range that predictions quote as their scope.

The bands below were committed before the run; nothing was tuned on seed 11, ratio 20 or the scales other than 1.5.
"""

import harness
from collapsekit.training import TrainConfig

SCALES = (0.1, 0.3, 1.5, 2.5)  # λ_W λ_H in multiples of the smallest class's threshold
CONFIGS = [TrainConfig(seed=seed, penalty_scale=scale) for seed in (0, 1, 2, 3, 4, 11) for scale in SCALES]
CONFIGS += [TrainConfig(seed=11, ratio=20, penalty_scale=scale) for scale in SCALES]

DEFAULT_SCALE = TrainConfig().penalty_scale
BANDS = {
    "largest_deviation": 0.002,  # class confidence, at every scale
    "largest_deviation_default": 5e-4,  # class confidence, at the default scale
    "objective_excess_default": 1e-4,  # relative, at the default scale
    "feature_norm_error": 0.01,  # relative, squared norms of surviving class means
    "classifier_norm_error": 0.01,  # relative, squared norms of all classifier rows
    "largest_cosine": 0.01,  # between surviving class means
}

KEYS = ("seed", "ratio", "penalty_scale")
TESTED_ON = (
    "ReLU MLPs 256-256-512 with bias-free head, explicit penalties on head and features with warm-up, full-batch Adam, "
    "scikit-learn digits"
)


def within_bands(row):
    default = row["config"]["penalty_scale"] == DEFAULT_SCALE
    limits = {key: band for key, band in BANDS.items() if default or not key.endswith("_default")}
    return row["same_classes_collapsed"] and all(
        row[key.removesuffix("_default")] <= band for key, band in limits.items()
    )


if __name__ == "__main__":
    rows = harness.main(__doc__, "first_light", CONFIGS, KEYS, BANDS, within_bands)
    harness.write_scope("penalty", "first_light", TESTED_ON, rows)
