"""How long must decay act before a class that was learned is lost to it? SGD and AdamW, 0.03 to 20 e-folds.

Run: python experiments/horizon.py [--workers 2] [--out FOLDER] [--reuse]       (about 6 core-minutes)
Writes experiments/results/horizon.json.

Networks that have learned every class (digits, a long tail of 150 … 2 samples, BatchNorm, decay 5e-4) are trained on
with decay 0.165 on head, γ and β, under which the optimum gives up the four rarest classes. The horizon E says over how
many e-folds the decay acts (`Optimizer.horizon`). With SGD (momentum 0.9, cosine) it is set in two ways: by the number
of steps at a learning rate of 0.005, and by the learning rate in 600 steps; with AdamW (cosine from 0.02) by the
number of steps. MLP 64-128, full batch, three seeds. A class is lost as `collapsekit measure` says it: no hit among
its training samples, and no feature of its own or a confidence of at most 1/K + 0.005.

Bands, derived and written before the runs:
- None of the four is lost at E ≤ 1: the decay alone leaves exp(−2E) ≥ 13.5 % of a margin.
- A class of headroom r_k < 1 owns a column w of the head and the γ and β that make its feature. At margin M their
  product, which is M, follows d log M/dE = −2 (1 − √r_k g(M)), g ≤ 1 the force relative to that at equal logits, so
  that log M falls by at least 2 (1 − √r_k) E. Below M_0, the margin of a confidence of 1/K + 0.005 or 1 % of the
  optimum's median lead (less is no hit), the class is lost: from E_k = ½ log(M_start / M_0) / (1 − √r_k) on.
- The mean row of the head shrinks by exp(−E) under SGD: its logarithm is within 10 % of −E where the horizon's
  condition holds (lr·wd ≤ 0.1 (1 − μ)²), from 100 steps (momentum) to E = 5 (single precision).
AdamW has no band: its decoupled decay is no penalty of any objective.

What was changed after looking: a first design trained from a random start. There the four classes are never learned at
any E (seeds 0 at E = 1 and 20, seed 100 at E = 5, 10 and 20), so that nothing can be said of when they are lost. No
network of the present design was seen before its bands were committed.
"""

from pathlib import Path

import numpy as np
from safetensors.torch import load_file, save_file

from _tools import harness
from _tools.harness import NO_CLAIM, line, setting
from collapsekit import predict
from collapsekit.diagnosis.status import CHANCE_BAND, RESOLVED_SHARE, statuses
from collapsekit.recipe import BatchNorm
from collapsekit.training import TrainConfig, load_run, sweep
from collapsekit.training.store import CHECKPOINT, run_folder

LEARNED = Path("experiments/data/learned")
"""The networks to start from."""
DECAY, MOMENTUM, RATE, STEPS, ADAMW_RATE = 0.165, 0.9, 0.005, 600, 0.02
EFOLDS = (0.03, 0.1, 0.3, 1.0, 2.0, 3.0, 5.0, 7.0, 10.0, 20.0)
FEWER = (0.03, 0.1, 0.3, 1.0, 2.0, 3.0, 5.0, 10.0)
SEEDS = 3
SMALL = {"ratio": 100.0, "largest": 150, "hidden": (64,), "feature_dim": 128, "recipe": "batchnorm"}
BASE = SMALL | {"network": "experiments.nets:learned_mlp", "weight_decay": DECAY, "warmup": 0.0}


def steps(efolds, rate, gain):
    """So many steps of a cosine make this horizon."""
    return max(1, round(2 * efolds / (DECAY * rate * gain)))


GAIN = 1 / (1 - MOMENTUM)
WAYS = {
    "SGD, steps varied": [{"learning_rate": RATE, "epochs": steps(efolds, RATE, GAIN)} for efolds in EFOLDS],
    "SGD, learning rate varied": [
        {"learning_rate": 2 * efolds / (DECAY * STEPS * GAIN), "epochs": STEPS} for efolds in FEWER
    ],
    "AdamW, steps varied": [
        {"optimizer": "adamw", "learning_rate": ADAMW_RATE, "epochs": steps(efolds, ADAMW_RATE, 1)} for efolds in FEWER
    ],
}
CONFIGS = [TrainConfig(seed=seed, **BASE | way) for ways in WAYS.values() for way in ways for seed in range(SEEDS)]
BANDS = {
    "no class that the optimum gives up is lost at E up to": 1.0,
    "such a class is lost at E above its own derived E, times": 1.0,
    "mean row of the head: logarithm off −E by at most": 0.1,
    "mean row: E up to": 5.0,
}
SMOKE = [TrainConfig(**BASE | WAYS["SGD, steps varied"][i]) for i in (3, 8)]
SMOKE_BANDS = BANDS


def learned(seed):
    """The configuration of a network to start from."""
    return TrainConfig(seed=seed, weight_decay=5e-4, epochs=1500, **SMALL)


def prepare():
    """Train the networks to start from, where they are not there yet, and write their parameters for the factory."""
    missing = [seed for seed in range(SEEDS) if not (LEARNED / f"{seed}.safetensors").exists()]
    if not missing:
        return
    sweep([learned(seed) for seed in missing], out=LEARNED, workers=1)
    for seed in missing:
        tensors = load_file(run_folder(LEARNED, learned(seed)) / CHECKPOINT)
        state = {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
        save_file(state, LEARNED / "unfinished")
        (LEARNED / "unfinished").replace(LEARNED / f"{seed}.safetensors")


def found(run):
    """Which classes are lost, when each should be, and what is left of the head's mean row."""
    measured, start = run.measured, load_run(run_folder(LEARNED, learned(run.config.seed))).measured
    optimum = predict(BatchNorm(weight_decay=DECAY).problem(measured.counts, run.last_layer))  # under AdamW: if it were
    lost = np.array([status == "lost" for status in statuses(measured)])
    return {
        "efolds": run.horizon,
        "given_up": optimum.collapses.tolist(),
        "lost": lost.tolist(),
        "lost_at_start": [status == "lost" for status in statuses(start)],
        "start_margins": start.margins,
        "derived_efolds": derived(optimum, start.margins),
        "mean_row_left": mean_row(measured.weight) / mean_row(start.weight),
    }


def derived(optimum, margins):
    """E_k of each class that the optimum gives up, NaN of the others."""
    size = len(margins)
    chance = 1 / size + CHANCE_BAND
    lead = np.median(np.repeat(optimum.margins, optimum.problem.counts.astype(int)))
    least = min(np.log((size - 1) * chance / (1 - chance)), RESOLVED_SHARE * lead)
    with np.errstate(invalid="ignore", divide="ignore"):
        needed = 0.5 * np.log(margins / least) / (1 - np.sqrt(optimum.headroom))
    return np.where(optimum.collapses, needed, np.nan)


def mean_row(weight):
    """Norm of the mean row of a head."""
    return float(weight.double().mean(dim=0).norm())


def way(row):
    """How the row's horizon was set."""
    if setting(row, "optimizer") == "adamw":
        return "AdamW, steps varied"
    return "SGD, steps varied" if setting(row, "learning_rate") == RATE else "SGD, learning rate varied"


def judge(rows, bands):
    groups = {name: [row for row in rows if way(row) == name] for name in WAYS}
    lines = [judge_deaths(name, own, bands) for name, own in groups.items() if own]
    return [*lines, judge_mean_row([row for row in rows if setting(row, "optimizer") != "adamw"], bands)]


def judge_deaths(name, rows, bands):
    early, factor = list(bands.values())[:2]
    soon = sum(lost(row) for row in rows if row["efolds"] <= 1.01 * early)
    due = [row["lost"][k] for row in rows for k in overdue(row, factor)]
    derived_efolds = [e for row in rows for e in row["derived_efolds"] if e is not None]
    banded = name.startswith("SGD")
    expected = (
        f"of {sum(rows[0]['given_up'])} classes that the optimum gives up none lost at E ≤ {early:g}, each lost from "
        f"its own derived E on ({min(derived_efolds):.1f} … {max(derived_efolds):.1f})"
    )
    broken = f"; {soon} lost too soon, {due.count(False)} of {len(due)} still there when due" if banded else ""
    return line(
        f"a class that was learned is lost to decay only once the decay has acted: {name}",
        f"BatchNorm MLP × digits 75:1 × {len(by_efolds(rows))} horizons × {len({setting(r, 'seed') for r in rows})} "
        "seeds",
        expected if banded else "none: decoupled decay is no penalty of any objective",
        f"lost of those given up, by E: {counted(rows, lost)}; of those kept: {counted(rows, spurious)}; {rarest(rows)}"
        f"{broken}",
        (soon == 0 and all(due)) if banded else NO_CLAIM,
    )


def rarest(rows):
    """Confidence of the rarest class at the shortest and at the longest horizon."""
    groups = list(by_efolds(rows).items())
    ends = [f"{np.mean([row['confidences'][-1] for row in own]):.2g} at {e}" for e, own in (groups[0], groups[-1])]
    return f"confidence of the rarest {' and '.join(ends)}"


def overdue(row, factor):
    """Classes that the optimum gives up and whose derived horizon is over."""
    return [k for k, e in enumerate(row["derived_efolds"]) if e is not None and row["efolds"] > factor * e]


def lost(row):
    """How many of the classes that the optimum gives up are lost."""
    return sum(gone and given for gone, given in zip(row["lost"], row["given_up"], strict=True))


def spurious(row):
    """How many of the others are."""
    return sum(row["lost"]) - lost(row)


def by_efolds(rows):
    """Rows of each horizon, from the shortest."""
    nearest = [min(EFOLDS, key=lambda efolds: abs(row["efolds"] - efolds)) for row in rows]
    return {f"{e:g}": [row for row, own in zip(rows, nearest, strict=True) if own == e] for e in sorted({*nearest})}


def counted(rows, count):
    """A number of classes at each horizon, as mean over the seeds; horizons of equal numbers together."""
    spans = []
    for efolds, own in by_efolds(rows).items():
        mean = float(np.mean([count(row) for row in own]))
        if spans and spans[-1][2] == mean:
            spans[-1][1] = efolds
        else:
            spans.append([efolds, efolds, mean])
    return ", ".join(f"{mean:.2g} at {low if low == high else f'{low} … {high}'}" for low, high, mean in spans)


def judge_mean_row(rows, bands):
    band, most = list(bands.values())[2:]
    kept = [row for row in rows if setting(row, "epochs") >= 100 and row["efolds"] <= 1.01 * most]
    kept = [row for row in kept if setting(row, "learning_rate") * DECAY <= 0.1 * (1 - MOMENTUM) ** 2]
    off = [abs(-np.log(row["mean_row_left"]) / row["efolds"] - 1) for row in kept]
    return line(
        "under SGD the mean row of a head shrinks by exp(−E), so that weights alone tell the horizon",
        f"BatchNorm MLP × digits 75:1 × {len(off)} runs of at least 100 steps, E up to {most:g}",
        f"logarithm within {band:.0%} of −E",
        f"off by {np.median(off):.1%} in the median, {max(off):.1%} at most",
        max(off) <= band,
    )


EXPERIMENT = harness.Experiment(
    "horizon", __doc__, CONFIGS, BANDS, judge, SMOKE, SMOKE_BANDS, extra=found, prepare=prepare
)

if __name__ == "__main__":
    harness.main(EXPERIMENT)
