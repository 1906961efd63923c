"""Are wd and wd/(mN) found again from the last layer of a trained BatchNorm network alone?

Run: python experiments/effective_penalties.py [--workers 2] [--out FOLDER]       (about 15 core-minutes; none where
FOLDER holds the runs of batchnorm_law.py). Writes experiments/results/effective_penalties.json.

The band below was committed before the run. Decay on everything is expected to fail it: what the decay of earlier
layers adds looks like a larger feature penalty, 7.5 % in a trial.
"""

import batchnorm_law
from _tools import harness
from _tools.harness import FAILS, HOLDS, line, setting, spread
from collapsekit.diagnosis import effective_penalties
from collapsekit.training import TrainConfig

BANDS = {"effective_lambda_w_error": 0.05, "effective_lambda_h_error": 0.05}  # relative error of either penalty
LAWFUL = ({"weight_decay": 0.1}, {"weight_decay": 0.2})
GROUPS = {
    "decay on head, γ and β": [(values, 5) for values in LAWFUL],
    "three branches": [({"weight_decay": 0.1, "network": "residual-mlp"}, 3)],
    "decay on everything": [({"weight_decay": 0.02, "decay_on": "everything"}, 5)],
}
CONFIGS = [
    TrainConfig(seed=seed, **batchnorm_law.LAW, **values)
    for settings in GROUPS.values()
    for values, seeds in settings
    for seed in range(seeds)
]
SMOKE = [TrainConfig(**batchnorm_law.LAW, weight_decay=0.1, **harness.SMALL)]
SMOKE_BANDS = dict.fromkeys(BANDS, 0.15)


def effective_errors(run):
    """Relative errors of the penalties found from the trained network alone; None where the model does not apply."""
    problem = run.problem
    estimate = effective_penalties(run.measured, class_weights=problem.class_weights)
    pairs = (("lambda_w", estimate.lambda_w), ("lambda_h", estimate.lambda_h))
    errors = {
        f"effective_{name}_error": None if found is None else abs(found / getattr(problem, name) - 1)
        for name, found in pairs
    }
    return errors | {"effective_reason": estimate.reason}


def group_of(row):
    if setting(row, "network") == "residual-mlp":
        return "three branches"
    return "decay on everything" if setting(row, "decay_on") == "everything" else "decay on head, γ and β"


def judge(rows, bands):
    groups = {name: [row for row in rows if group_of(row) == name] for name in GROUPS}
    return [judge_group(name, group, bands) for name, group in groups.items() if group]


def judge_group(name, rows, bands):
    refused = [row["effective_reason"] for row in rows if any(row[key] is None for key in bands)]
    found = [row for row in rows if all(row[key] is not None for key in bands)]
    good = not refused and all(row[key] <= band for row in found for key, band in bands.items())
    numbers = "; ".join(
        f"{symbol} off by {spread(100 * row[key] for row in found)} %"
        for symbol, key in zip(("λ_W", "λ_H"), bands, strict=True)
        if found
    )
    return line(
        f"effective penalties found from the trained network alone, {name}",
        f"BatchNorm MLP × digits × {len(rows)} runs",
        f"wd and wd/(mN), within {max(bands.values()):.0%}",
        numbers + (f"; refused in {len(refused)} ({refused[0]})" if refused else ""),
        HOLDS if good else FAILS,
    )


EXPERIMENT = harness.Experiment(
    "effective_penalties", __doc__, CONFIGS, BANDS, judge, SMOKE, SMOKE_BANDS, extra=effective_errors
)

if __name__ == "__main__":
    harness.main(EXPERIMENT)
