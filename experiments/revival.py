"""What brings back a class that the optimiser lost and the theory keeps alive?

Run: python experiments/revival.py [--workers 2] [--out FOLDER]       (about 2 core-minutes)
Writes experiments/results/revival.json.

The start are networks of experiments/optimiser.py without warm-up: at half of the smallest class's threshold, where no
class dies at the optimum, they have lost some. Each is trained for as many steps again, after one change: none; the
head drawn anew; the penalties released and grown again over the first 30 % (a second warm-up); the last hidden layer
and the head drawn anew, without and with that warm-up. MLP 128-128-512, digits, long tail 60 … 6, full-batch Adam,
1,000 steps; five seeds.

Expected, written before the runs: where the features of a class are zero behind the ReLU no gradient reaches them, so
that neither training on nor a new head revives anything; the second warm-up, a new last layer, and both together
revive every class that was lost.
"""

from pathlib import Path

from safetensors.torch import load_file, save_file

import optimiser
from _tools import harness
from _tools.harness import FAILS, HOLDS, NO_CLAIM, line, setting
from _tools.harness import lost_against_the_prediction as lost
from collapsekit.training import TrainConfig, load_run, sweep
from collapsekit.training.store import CHECKPOINT, run_folder

LOST = Path("experiments/data/lost")
"""The networks to start from."""
CHANGES = {  # what is changed: (factory in experiments/nets.py, warm-up, whether it is to revive)
    "nothing, trained on": ("lost_mlp", 0.0, False),
    "a new head": ("lost_mlp_new_head", 0.0, False),
    "penalties released and grown again": ("lost_mlp", 0.3, True),
    "a new last layer and head": ("lost_mlp_new_last_layer", 0.0, True),
    "a new last layer and head, penalties grown again": ("lost_mlp_new_last_layer", 0.3, True),
}
SEEDS = 5
CONFIGS = [
    TrainConfig(seed=seed, network=f"experiments.nets:{network}", warmup=warmup, **optimiser.BASE)
    for network, warmup, _ in CHANGES.values()
    for seed in range(SEEDS)
]
BANDS = {"revives": 1.0, "revives nothing": 0.0}  # share of the lost classes that come back: at least, at most
SMOKE = [config for config in CONFIGS if config.seed == 0][2:3]
SMOKE_BANDS = BANDS


def start(seed):
    """The configuration that loses classes."""
    return TrainConfig(seed=seed, warmup=0.0, **optimiser.BASE)


def prepare():
    """Train the networks to start from, where they are not there yet, and write their parameters for the factories."""
    sweep([start(seed) for seed in range(SEEDS)], out=LOST)
    for seed in range(SEEDS):
        tensors = load_file(run_folder(LOST, start(seed)) / CHECKPOINT)
        state = {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
        save_file(state, LOST / "unfinished")
        (LOST / "unfinished").replace(LOST / f"{seed}.safetensors")


def before_and_after(run):
    """The classes that the start had lost, and those that are lost now."""
    return {"lost_before": lost(load_run(run_folder(LOST, start(run.config.seed)))), "lost_after": lost(run)}


def change_of(row):
    network, warmup = setting(row, "network"), setting(row, "warmup")
    return next(name for name, (own, w, _) in CHANGES.items() if network.endswith(f":{own}") and warmup == w)


def judge(rows, bands):
    groups = {name: [row for row in rows if change_of(row) == name] for name in CHANGES}
    return [judge_change(name, group, bands) for name, group in groups.items() if group]


def came_back(rows):
    """How many classes were lost before, how many of them are back, and how many others are lost now."""
    pairs = [(set(row["lost_before"]), set(row["lost_after"])) for row in rows]
    return tuple(sum(map(len, sets)) for sets in zip(*((b, b - a, a - b) for b, a in pairs), strict=True))


def judge_change(name, rows, bands):
    revives = CHANGES[name][2]
    before, back, new = came_back(rows)
    good = back >= bands["revives"] * before and not new if revives else back <= bands["revives nothing"] * before
    excess = harness.spread(100 * row["objective_excess"] for row in rows)
    return line(
        f"a class lost by the optimiser: {name}",
        f"MLP × digits × {len(rows)} seeds",
        "every lost class comes back" if revives else "no lost class comes back",
        f"of {before} lost classes {back} came back, {new} others died; objective {excess} % above the optimum",
        (HOLDS if good else FAILS) if before else NO_CLAIM,
    )


EXPERIMENT = harness.Experiment(
    "revival", __doc__, CONFIGS, BANDS, judge, SMOKE, SMOKE_BANDS, extra=before_and_after, prepare=prepare
)

if __name__ == "__main__":
    harness.main(EXPERIMENT)
