"""Does a real ReLU network with explicit penalties land on the closed form, below, at and above the threshold?

Run: python experiments/first_light.py [--workers 2] [--out FOLDER]       (about 15 core-minutes)
Writes experiments/results/first_light.json.

The bands below were committed before the run; nothing was tuned on seed 11, ratio 20 or the scales other than 1.5.
"""

from _tools import harness
from _tools.harness import line, setting, spread
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
SMOKE = [TrainConfig(**harness.SMALL)]
SMOKE_BANDS = dict.fromkeys(BANDS, 0.02)


def within(row, bands):
    default = setting(row, "penalty_scale") == DEFAULT_SCALE
    limits = {key: band for key, band in bands.items() if default or not key.endswith("_default")}
    return row["same_classes_collapsed"] and all(
        row[key.removesuffix("_default")] <= band for key, band in limits.items()
    )


def judge(rows, bands):
    good = [row for row in rows if within(row, bands)]
    worst = {key: max(row[key] for row in rows) for key in ("feature_norm_error", "classifier_norm_error")}
    seeds = len({setting(row, "seed") for row in rows})
    return [
        line(
            "the whole geometry is the closed form: confidences, norms, angles, objective",
            f"MLP × digits × {len(rows)} runs, {seeds} seeds",
            f"deviation 0 (band {bands['largest_deviation']}; norms 1 %; cosines 0.01), same dead classes",
            f"deviation {spread(row['largest_deviation'] for row in rows)}; ‖h‖² {worst['feature_norm_error']:.1g}, "
            f"‖w‖² {worst['classifier_norm_error']:.1g}; within all bands {len(good)} of {len(rows)}",
            len(good) == len(rows),
        )
    ]


EXPERIMENT = harness.Experiment("first_light", __doc__, CONFIGS, BANDS, judge, SMOKE, SMOKE_BANDS)

if __name__ == "__main__":
    harness.main(EXPERIMENT)
