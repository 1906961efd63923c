"""Do class weights, LDAM margins and label smoothing move the margins of one network exactly as predicted?

Run: python experiments/weights.py [--workers 2] [--out FOLDER]       (about 10 core-minutes)
Writes experiments/results/weights.json.

Five losses with the same decays on the same network, data and seeds: ω_k ∝ 1 (larger classes have larger margins),
n_k^(−1/2) (all equal), 1/n_k (reversed), LDAM's target margins (rarer classes shifted up), smoothing 0.1 (all capped).
MLP 128-128-512, digits, long tail 60 … 6, full-batch Adam, 1,500 steps. Reduced to fit the budget: hidden layers of
128, 60 samples of the largest class, 1,500 steps; five seeds.

The bands below were committed before the runs.
"""

import numpy as np

from _tools import harness
from _tools.harness import line, setting
from collapsekit.training import TrainConfig

DECAYS = {"weight_decay": 0.08, "feature_decay": 8e-5}  # 0.18 times the smallest class's threshold, unweighted
LOSSES = {
    "ω ∝ 1": {},
    "ω ∝ n^(−1/2)": {"class_weights": "inverse-root"},
    "ω ∝ 1/n": {"class_weights": "inverse"},
    "LDAM 1.0": {"ldam": 1.0},
    "smoothing 0.1": {"smoothing": 0.1},
}
SEEDS = 5
MLP = {"largest": 60, "hidden": (128, 128), "epochs": 1500}
CONFIGS = [TrainConfig(seed=seed, **MLP, **DECAYS, **values) for values in LOSSES.values() for seed in range(SEEDS)]
BANDS = {"margin_error": 0.01}  # largest relative error of a class's margin
SMOKE = [TrainConfig(**harness.SMALL, **DECAYS, **LOSSES[name]) for name in ("ω ∝ n^(−1/2)", "ω ∝ 1/n")]
SMOKE_BANDS = {"margin_error": 0.05}
ORDER = {
    "ω ∝ 1": "larger classes larger margins",
    "ω ∝ n^(−1/2)": "all margins equal",
    "ω ∝ 1/n": "order reversed",
    "LDAM 1.0": "margins of rare classes shifted up",
    "smoothing 0.1": "margins capped, order kept",
}


def loss_of(row):
    """The name of a row's loss."""
    return next(
        name for name, values in reversed(LOSSES.items()) if all(setting(row, k) == v for k, v in values.items())
    )


def slope(margins, counts):
    """Change of margin from the smallest to the largest class, relative to the mean margin."""
    order = np.argsort(counts)
    return float((margins[order[-1]] - margins[order[0]]) / np.mean(margins))


def judge(rows, bands):
    groups = {name: [row for row in rows if loss_of(row) == name] for name in LOSSES}
    return [judge_loss(name, group, bands) for name, group in groups.items() if group]


def judge_loss(name, rows, bands):
    pairs = [(np.array(row["margins"]), np.array(row["predicted_margins"])) for row in rows]
    errors = [float(np.max(np.abs(found - wanted) / wanted)) for found, wanted in pairs]
    found, wanted = (np.mean([slope(m, rows[0]["counts"]) for m in margins]) for margins in zip(*pairs, strict=True))
    return line(
        f"{name}: {ORDER[name]}",
        f"MLP × digits × {len(rows)} seeds",
        f"margins to {bands['margin_error']:.0%}; largest minus smallest class {wanted:+.1%} of the mean",
        f"margin error {harness.spread(errors)}; largest minus smallest class {found:+.1%}",
        max(errors) <= bands["margin_error"],
    )


EXPERIMENT = harness.Experiment("weights", __doc__, CONFIGS, BANDS, judge, SMOKE, SMOKE_BANDS)

if __name__ == "__main__":
    harness.main(EXPERIMENT)
