"""Controls: balanced classes give the symmetric geometry; a plain MLP with ordinary decay gives no collapse at all.

Run: python experiments/controls.py [--workers 2] [--out FOLDER]       (about 6 core-minutes)
Writes experiments/results/controls.json.

Balanced: 40 digits a class, explicit penalties at 0.2 times the threshold: class means must be orthogonal and equally
long, the classifier a simplex ETF (cosines −1/(K−1)). Plain: long tail 10, decay 5e-4 on all layers, no BatchNorm, no
feature penalty, SGD: the network must fit its training samples and still NOT reach the orthogonal frame, and the
toolkit must say so. MLP 128-128-512, 1,500 steps. Reduced to fit the budget: hidden layers of 128, 1,500 steps; five
seeds.

The bands below were committed before the runs.
"""

from _tools import harness
from _tools.harness import line, setting, spread
from collapsekit.training import TrainConfig

BALANCED = {"profile": "long-tail", "ratio": 1, "largest": 40, "penalty_scale": 0.2}
PLAIN = {"recipe": "plain", "weight_decay": 5e-4}
SEEDS = 5
MLP = {"hidden": (128, 128), "epochs": 1500}
CONFIGS = [TrainConfig(seed=seed, **MLP, **values) for values in (BALANCED, PLAIN) for seed in range(SEEDS)]
BANDS = {
    "balanced": {"nc2_mean_cosine": 0.01, "nc2_etf_w": 0.01, "nc2_norm_spread_h": 0.01, "nc2_norm_spread_w": 0.01},
    "plain": {"train_accuracy": 1.0, "least_mean_cosine": 0.3},
}
SMOKE = [TrainConfig(**BALANCED, hidden=(128,), epochs=800), TrainConfig(**PLAIN, epochs=400)]
SMOKE_BANDS = {"balanced": dict.fromkeys(BANDS["balanced"], 0.05), "plain": {**BANDS["plain"], "train_accuracy": 0.95}}


def geometry(run):
    """The metrics that tell the geometries apart."""
    scalars = run.measured.metrics()
    return {key: scalars[key] for key in ("nc1", *BANDS["balanced"])}


def judge(rows, bands):
    groups = {True: [], False: []}
    for row in rows:
        groups[setting(row, "recipe") == "plain"].append(row)
    lines = [judge_balanced(groups[False], bands["balanced"])] if groups[False] else []
    return lines + ([judge_plain(groups[True], bands["plain"])] if groups[True] else [])


def judge_balanced(rows, bands):
    worst = {key: max(row[key] for row in rows) for key in bands}
    return line(
        "balanced classes: orthogonal equal means, simplex ETF classifier",
        f"MLP × digits, 40 a class × {len(rows)} seeds",
        f"cosines of means 0, of rows −1/(K−1), norms equal (band {max(bands.values())})",
        f"mean cosine {spread(row['nc2_mean_cosine'] for row in rows)}, ETF error {worst['nc2_etf_w']:.1g}, spread of "
        f"norms {max(worst['nc2_norm_spread_h'], worst['nc2_norm_spread_w']):.1g}",
        all(worst[key] <= band for key, band in bands.items()),
    )


def judge_plain(rows, bands):
    fitted = all(row["train_accuracy"] >= bands["train_accuracy"] for row in rows)
    far = all(row["mean_cosine"] >= bands["least_mean_cosine"] for row in rows)
    silent = all(row["outside"] for row in rows)
    return line(
        "negative control: a plain MLP with decay on all layers fits but does not collapse; no prediction is given",
        f"MLP without BatchNorm × digits × {len(rows)} seeds",
        f"fits, mean cosine of class means above {bands['least_mean_cosine']}",
        f"fits {spread((100 * row['train_accuracy'] for row in rows), 4)} %, mean cosine "
        f"{spread(row['mean_cosine'] for row in rows)}",
        fitted and far and silent,
        headline=True,
    )


EXPERIMENT = harness.Experiment("controls", __doc__, CONFIGS, BANDS, judge, SMOKE, SMOKE_BANDS, extra=geometry)

if __name__ == "__main__":
    harness.main(EXPERIMENT)
