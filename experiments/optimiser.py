"""How often does the optimiser lose a class that the theory keeps alive, and what prevents it?

Run: python experiments/optimiser.py [--workers 2] [--out FOLDER]       (about 14 core-minutes)
Writes experiments/results/optimiser.json.

Explicit penalties at half of the smallest class's threshold, so that no class dies at the optimum. From a base (Adam at
1e-3, d = 512 = 51 K, λ_W/λ_H = 900) one thing is changed at a time, each with a warm-up of the penalties over 30 % of
the steps and without: d from K to 50 K; λ_W/λ_H from 1 to 1e4; SGD, AdamW (whose own decay is off: the penalties are in
the loss) and a higher learning rate. MLP 128-128-d, digits, long tail 60 … 6, full batch, 1,000 steps. Reduced to fit
the budget: hidden layers of 128, 60 samples of the largest class, 1,000 steps; five seeds. What revives a class:
experiments/revival.py.

Verdicts, written before the runs: "holds" where no class dies against the theory, "holds with correction" where the
warm-up is what keeps them alive, "fails" where classes die in spite of it. With the base and its warm-up none may die;
at d = K with λ_W = λ_H and no warm-up at least one does in every run (the failure that the theory page warns of).
"""

from _tools import harness
from _tools.harness import CORRECTED, FAILS, HOLDS, line, setting
from collapsekit.training import TrainConfig

BASE = {"largest": 60, "hidden": (128, 128), "epochs": 1000, "penalty_scale": 0.5}
CHANGES = {
    "base": [{}],
    "d": [{"feature_dim": dim} for dim in (10, 20, 50, 100)],
    "λ_W/λ_H": [{"penalty_ratio": ratio} for ratio in (1.0, 30.0, 1e4)],
    "optimiser": [{"optimizer": "sgd", "learning_rate": rate} for rate in (0.05, 0.2)]
    + [{"optimizer": "adamw"}, {"learning_rate": 3e-3}],
    "d = K and λ_W = λ_H": [{"feature_dim": 10, "penalty_ratio": 1.0}],
}
SEEDS = 5
CONFIGS = [
    TrainConfig(seed=seed, warmup=warmup, **BASE, **values)
    for changes in CHANGES.values()
    for values in changes
    for warmup in (0.3, 0.0)
    for seed in range(SEEDS)
]
BANDS = {"spurious deaths with warm-up": 0, "d = K and λ_W = λ_H, no warm-up: least spurious deaths a run": 1}
SMOKE = [TrainConfig(warmup=0.3, penalty_scale=0.5, **harness.SMALL)]
SMOKE_BANDS = BANDS


def judge(rows, bands):
    groups = {}
    for row in rows:
        groups.setdefault(change_of(row), []).append(row)
    return [judge_change(change, group, bands) for change, group in groups.items()]


def change_of(row):
    """What a row changes of the base, as the table says it."""
    dim, ratio = setting(row, "feature_dim"), setting(row, "penalty_ratio")
    optimizer = {"sgd": "SGD", "adamw": "AdamW"}.get(setting(row, "optimizer"), "Adam")
    if setting(row, "learning_rate") is not None:
        optimizer += f" {setting(row, 'learning_rate'):g}"
    return f"{optimizer}, d = {dim}, λ_W/λ_H = {ratio:g}"


def judge_change(change, rows, bands):
    warm, cold = ([row for row in rows if (setting(row, "warmup") > 0) == wanted] for wanted in (True, False))
    most = bands["spurious deaths with warm-up"]
    verdict = FAILS if dead(warm) > most else (CORRECTED if dead(cold) > most else HOLDS)
    expected = "no class dies against the theory"
    if change == "Adam, d = 10, λ_W/λ_H = 1":
        least = bands["d = K and λ_W = λ_H, no warm-up: least spurious deaths a run"]
        expected = f"without warm-up at least {least} dies in every run"
        verdict = all(row["spuriously_collapsed"] >= least for row in cold)
    return line(
        f"what the optimiser loses: {change}",
        f"MLP × digits × {len(warm)} seeds × warm-up or none",
        expected,
        f"with warm-up {described(warm)}; without {described(cold)}",
        verdict,
        headline=change == "Adam, d = 10, λ_W/λ_H = 900",
    )


def dead(rows):
    return sum(row["spuriously_collapsed"] for row in rows)


def described(rows):
    if not rows:
        return "not run"
    classes = sum(len(row["counts"]) for row in rows)
    excess = harness.spread(100 * row["objective_excess"] for row in rows)
    return f"{dead(rows)} of {classes} classes dead, objective {excess} % above the optimum"


EXPERIMENT = harness.Experiment("optimiser", __doc__, CONFIGS, BANDS, judge, SMOKE, SMOKE_BANDS)

if __name__ == "__main__":
    harness.main(EXPERIMENT)
