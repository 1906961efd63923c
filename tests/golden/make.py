"""What the golden files hold: problems, command lines, and how their answers are written down.

``python tests/golden/make.py`` writes problems.json and commands.json again; tests/test_golden.py compares with them.
Only public packages are imported, so that the inside of the library may change.
"""

import contextlib
import io
import json
import math
import os
import random
import re
import shlex
import struct
import tempfile
import warnings
from pathlib import Path

import numpy as np

from collapsekit import MSE, UFM, CollapseError, CrossEntropy, Focal, Hinge, long_tail, predict, solve, step, thresholds
from collapsekit.cli import main
from collapsekit.prediction._predict import from_closed_form

HERE = Path(__file__).parent
PROBLEMS, COMMANDS = HERE / "problems.json", HERE / "commands.json"
DIGITS = 10
"""Significant digits that are kept; comparisons are coarser."""
ENDS = 5
"""Of a long list the first and the last entries are kept, with the sum and the sum of squares of all."""
NUM_DRAWN, NUM_SOLVED = 500, 60


# Writing down


def compact(value):
    """Plain values: numbers rounded, lists of truth values as digits, long lists as a summary."""
    if isinstance(value, dict):
        return {key: compact(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return _compact_list(list(value))
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else str(value)
    return value


def _compact_list(values):
    if values and all(isinstance(one, bool) for one in values):
        return "".join(str(int(one)) for one in values)
    kept = [compact(one) for one in values]
    if len(values) <= 2 * ENDS + 2 or any(isinstance(one, dict | list | tuple) for one in values):
        return kept
    summary = {"entries": len(values), "first": kept[:ENDS], "last": kept[-ENDS:]}
    numbers = [float(one) for one in values if isinstance(one, int | float)]
    return summary | (sums(numbers) if len(numbers) == len(values) else {})


def sums(numbers):
    return {"sum": compact(float(sum(numbers))), "squares": compact(float(sum(one * one for one in numbers)))}


def answer(function):
    """What a function returns, or why it refuses."""
    try:
        return function()
    except CollapseError as error:
        return {"refused": str(error)}


# Problems

LOSSES = (
    "plain",
    "smoothing",
    "margins",
    "temperature",
    "everything",
    "focal",
    "hinge",
    "mse",
    "plain",
    "smoothing",
    "focal",
    "no scalar form",
)
LEVELS = ("below", "below", "at", "near", "above", "extreme")
WRONG = {
    "one class": {"counts": [5]},
    "no samples": {"counts": [5, 0]},
    "half a sample": {"counts": [5, 2.5]},
    "words": {"counts": ["a", "b"]},
    "a name twice": {"counts": [5, 3], "names": ["a", "a"]},
    "too few names": {"counts": [5, 3], "names": ["a"]},
    "no lambda_w": {"counts": [5, 3], "lambda_w": 0.0},
    "infinite lambda_w": {"counts": [5, 3], "lambda_w": math.inf},
    "negative lambda_h": {"counts": [5, 3], "lambda_h": -1.0},
    "lambda_h of three classes": {"counts": [5, 3], "lambda_h": [1.0, 1.0, 1.0]},
    "nan in lambda_h": {"counts": [5, 3], "lambda_h": [1.0, math.nan]},
    "weights of three classes": {"counts": [5, 3], "class_weights": [1.0, 1.0, 1.0]},
    "a weight of 0": {"counts": [5, 3], "class_weights": [1.0, 0.0]},
    "a bias of -1": {"counts": [5, 3], "bias": -1.0},
    "bias as a word": {"counts": [5, 3], "bias": "fixed"},
    "relu=1": {"counts": [5, 3], "relu": 1},
    "dim=0": {"counts": [5, 3], "dim": 0},
    "loss as a word": {"counts": [5, 3], "loss": "focal"},
    "margins of three classes": {"counts": [5, 3], "loss": CrossEntropy(margins=(0.0, 0.0, 0.0))},
    "penalties at the end of float64": {"counts": [5, 3], "lambda_w": 1e-300, "lambda_h": 1e-3},
}


def drawn_problems():
    """Every problem by its name, as arguments of UFM."""
    wrong = {f"wrong: {name}": {"lambda_w": 0.1, "lambda_h": 0.1} | given for name, given in WRONG.items()}
    return dict(_drawn(i) for i in range(NUM_DRAWN - len(wrong))) | wrong


def _drawn(i):
    rng = random.Random(f"problem {i}")
    size = {0: 2, 1: 200}.get(i) or (rng.randint(2, 6) if i % 4 < 3 else _whole(rng, 7, 200))
    kind, counts = _counts(rng, size)
    loss_kind, level = LOSSES[i % len(LOSSES)], LEVELS[rng.randrange(len(LEVELS))]
    given = {"counts": counts, "loss": _loss(loss_kind, rng, size)}
    if rng.random() < 0.3:
        given["class_weights"] = [_digits(math.exp(rng.uniform(-1.5, 1.5))) for _ in counts]
    ratios = [_digits(math.exp(rng.uniform(-1, 1))) for _ in counts] if rng.random() < 0.25 else None
    given |= _penalties(rng, given, level, ratios) | _extras(rng, size)
    return f"{i}: K={size}, {kind}, {loss_kind}, {level}", given


def _digits(value):
    return float(f"{value:.6g}")


def _whole(rng, least, most):
    return round(math.exp(rng.uniform(math.log(least), math.log(most))))


def _counts(rng, size):
    kind = rng.choice(("long-tail", "step", "random", "one-sample", "balanced"))
    largest = _whole(rng, 20, 100_000)
    smallest = _whole(rng, 1, largest)
    if kind == "long-tail":
        return kind, [int(n) for n in long_tail(largest, smallest, size)]
    if kind == "step":
        return kind, [int(n) for n in step(largest, smallest, size, rng.randint(0, size))]
    if kind == "balanced":
        return kind, [largest] * size
    lonely = kind == "one-sample"
    return kind, [1 if lonely and rng.random() < 0.4 else _whole(rng, 1, largest) for _ in range(size)]


def _loss(kind, rng, size):
    smoothing, temperature = _digits(rng.choice((0.01, 0.1, rng.uniform(0, 0.6)))), _digits(math.exp(rng.gauss(0, 1)))
    margins = tuple(_digits(rng.uniform(-1, 3)) for _ in range(size))
    factors = tuple(_digits(math.exp(rng.uniform(-1, 1))) for _ in range(size))
    strange = {"offsets": margins}, {"scales": factors}, {"smoothing_weights": factors, "smoothing": 0.1}
    return {
        "plain": lambda: CrossEntropy(),
        "smoothing": lambda: CrossEntropy(smoothing=smoothing),
        "margins": lambda: CrossEntropy(margins=margins),
        "temperature": lambda: CrossEntropy(temperature=temperature),
        "everything": lambda: CrossEntropy(smoothing=smoothing, margins=margins, temperature=temperature),
        "focal": lambda: Focal(rng.choice((0.0, 0.5, 1.0, 2.0, 5.0, _digits(rng.uniform(0, 10))))),
        "hinge": Hinge,
        "mse": MSE,
        "no scalar form": lambda: CrossEntropy(**rng.choice(strange)),
    }[kind]()


def _critical_price(loss, size, k):
    """The price of margin from which class k keeps none (a bound where focal loss jumps), apart from the library."""
    if isinstance(loss, Focal):
        wrong = (size - 1) / size
        return wrong**loss.gamma * (wrong + loss.gamma / size * math.log(size))
    if not isinstance(loss, CrossEntropy):
        return 1.0
    shift = 0.0 if loss.margins is None else loss.margins[k]
    price = (size - 1) / (size - 1 + math.exp(-shift)) - loss.smoothing * (size - 1) / size
    return max(price, 0.01) / loss.temperature


def _penalties(rng, given, level, ratios):
    """λ_W and λ_H: their product is at, near, below or above the threshold of one of the classes."""
    counts, loss, weights = given["counts"], given["loss"], given.get("class_weights")
    size, k = len(counts), rng.randrange(len(counts))
    weight, ratio = 1.0 if weights is None else weights[k], 1.0 if ratios is None else ratios[k]
    share = 1.0 if isinstance(loss, MSE) else (size - 1) / size
    price = _critical_price(loss, size, k) * weight * counts[k] / sum(counts)
    factor = {
        "below": 10 ** -rng.uniform(0, 8),
        "at": 1.0,
        "near": 1 + rng.choice((-1, 1)) * rng.choice((1e-3, 1e-6, 1e-9)),
        "above": 10 ** rng.uniform(0, 4),
        "extreme": 1.0,
    }[level]
    lambda_w = _digits(10 ** rng.uniform(-5, 2))
    lambda_h = price**2 / (counts[k] * share) / ratio * factor / lambda_w
    if level == "extreme":
        lambda_w, lambda_h = _digits(10 ** rng.uniform(-40, 20)), _digits(10 ** rng.uniform(-40, 20))
    if level != "at":
        lambda_h = float(f"{lambda_h:.12g}")  # the same on every machine
    return {"lambda_w": lambda_w, "lambda_h": lambda_h if ratios is None else [lambda_h * one for one in ratios]}


def _extras(rng, size):
    extras = {}
    if rng.random() < 0.15:
        extras["dim"] = rng.choice((1, max(1, size // 2), size, size + 5))
    if rng.random() < 0.15:
        extras["names"] = [f"κλάση {k}" for k in range(size)]
    if rng.random() < 0.05:
        extras |= rng.choice(({"relu": False}, {"bias": "free"}, {"bias": 0.25}))
    return extras


def problem_record(given):
    """The problem, its prediction and its thresholds, or the refusals."""
    try:
        problem = UFM(**given)
    except CollapseError as error:
        return {"refused": str(error)}
    prediction = answer(lambda: from_closed_form(problem).to_dict())
    limits = answer(lambda: thresholds(problem).to_dict())
    prediction.pop("problem", None)
    # these are known from other vectors: their sums are enough
    for content, key in ((prediction, "headroom"), (limits, "decay_factor"), (limits, "critical_count")):
        if key in content:
            content[key] = sums(content[key])
    return compact({"problem": problem.to_dict(), "prediction": prediction, "thresholds": limits})


# Problems without a closed form

HEADS = ("bias", "penalised bias", "logit adjustment", "scales", "no relu", "dim", "adjusted bias", "closed form")


def solved_problems():
    """Every small problem for the solver by its name, as arguments of UFM."""
    return dict(_small(i) for i in range(NUM_SOLVED))


def _small(i):
    rng = random.Random(f"solve {i}")
    size, head = rng.randint(2, 6), HEADS[i % len(HEADS)]
    counts = [_whole(rng, 1, 500) for _ in range(size)]
    shares = [n / sum(counts) for n in counts]
    losses = {"plain": CrossEntropy(), "smoothing": CrossEntropy(smoothing=0.1), "hinge": Hinge(), "mse": MSE()}
    losses |= {"focal": Focal(2.0), "margins": CrossEntropy(margins=[0.5] * size)}
    name = rng.choice(list(losses))
    given = {"counts": counts, "loss": losses[name]}
    if head in ("logit adjustment", "adjusted bias"):
        name, given["loss"] = "adjusted", CrossEntropy(offsets=[_digits(math.log(share)) for share in shares])
    if head == "scales":
        name, given["loss"] = "scaled", CrossEntropy(scales=[_digits((n / max(counts)) ** 0.2) for n in counts])
    if rng.random() < 0.3:
        given["class_weights"] = [_digits((max(counts) / n) ** 0.5) for n in counts]
    product = min(share**2 / n for share, n in zip(shares, counts, strict=True)) * 10 ** rng.uniform(-3, 1.5)
    given["lambda_w"] = _digits(10 ** rng.uniform(-3, -1))
    given["lambda_h"] = _digits(product / given["lambda_w"])
    given |= {
        "bias": {"bias": "free"},
        "adjusted bias": {"bias": "free"},
        "penalised bias": {"bias": _digits(10 ** rng.uniform(-3, 0))},
        "no relu": {"relu": False},
        "dim": {"dim": max(1, size - 1)},
    }.get(head, {})
    return f"solve {i}: K={size}, {head}, {name}", given


def solution_record(given):
    """Where the solver ends; what is mere rounding of a closed gap is left out."""
    problem = UFM(**given)
    found = solve(problem)
    ends = {"objective": found.objective, "lower_bound": found.lower_bound, "collapses": found.collapses.tolist()}
    return compact({"problem": problem.to_dict(), "status": found.status.value} | ends)


def without_gaps(status):
    return re.sub(r"(gap|stationarity) [0-9.e+-]+", r"\1 …", status)


def problem_records():
    drawn = {name: problem_record(given) for name, given in drawn_problems().items()}
    return {"predicted": drawn, "solved": {name: solution_record(given) for name, given in solved_problems().items()}}


# Command lines

TINY = "--epochs 3 --hidden 6 --feature-dim 8"
ENTRIES = "--weight-decay 0.01 --feature-decay 0.1 --feature-reduction entry_mean --feature-dim 8"
FROZEN = "--weight-decay 0.1 --batchnorm-branches 1 --batchnorm-decay gain_frozen_shift"
NAMED = "--data all.npz --out one --weight-decay 0.01 --feature-decay 0.001 --class-names ant bee cat"
OWN = "--lambda-w 0.03 --lambda-h 0.001"
GROUPS = {
    "predict": [
        f"predict 500 300 40 10 {OWN}",
        f"predict 500 300 40 10 {OWN} --smoothing 0.1",
        f"predict 500 300 40 10 {OWN} --class-weights 1 1 3 5",
        "predict 500 300 40 10",
        "predict 500 300 40 10 --class-weights 1 1 3 5",
        "predict --long-tail 5000:50:100 --weight-decay 0.1 --batchnorm-branches 1",
        "predict --long-tail 50:5:3",
        "predict --long-tail 500:200:7 --weight-decay 0.01 --batchnorm-branches 2 --batchnorm-decay gain_frozen_shift",
        "predict step.txt --lines counts --weight-decay 0.01 --feature-decay 0.0001",
        "predict step.txt --lines counts --weight-decay 0.01 --feature-decay 0.001 --batch-size 32",
        "predict step.txt --lines counts --weight-decay 0.01 --feature-decay 0.001 --batch-size 32 --drop-last",
        "predict step.txt --lines counts --weight-decay 0.01 --feature-decay 0.1 --feature-reduction batch_mean",
        "predict step.txt --lines counts --weight-decay 0.01 --feature-decay 9 --feature-reduction entry_mean"
        " --feature-dim 64",
        "predict step.txt --lines counts --weight-decay 0.01 --feature-decay 0.0001 --feature-reduction full_sum",
        "predict named.csv --weight-decay 0.01 --feature-decay 0.0001 --loss-factor 0.5 --optimizer adam",
        "predict named.csv --weight-decay 0.01 --feature-decay 0.0001 --class-weights 1 2 3",
        "predict labels.csv --label-column species --weight-decay 0.05 --batchnorm-branches 1",
        f"predict labels.csv --label-column species {OWN} --html page.html",
    ],
    "predict refuses": [
        "predict",
        "predict 5",
        "predict 5 0",
        "predict 5 3 --lambda-w 1",
        "predict 5 3 --weight-decay 1 --feature-decay 1 --optimizer adamw",
        "predict 5 3 --weight-decay 1 --batchnorm-branches 1 --batchnorm-decay gain",
        "predict 5 3 --lambda-w 1 --lambda-h 1 --class-weights 1",
        "predict --long-tail 3:5:2",
        "predict nowhere.csv",
        "predict labels.csv --label-column kind",
        "predict 5 3 --weight-decay 0.1 --batchnorm-branches 1 --class-weights 1 2 --smoothing 0.1",
    ],
    "advise": [
        f"advise 500 300 40 10 {OWN}",
        f"advise 500 300 40 10 {OWN} --margins ldam --keep 2",
        "advise --long-tail 5000:50:10 --weight-decay 0.1 --batchnorm-branches 1 --margins ldam",
        "advise --long-tail 500:200:6 --weight-decay 0.01 --batchnorm-branches 2 --batchnorm-decay gain_frozen_shift",
        "advise named.csv --weight-decay 0.01 --feature-decay 0.0001 --batch-size 32 --drop-last --keep cat",
        "advise named.csv --weight-decay 0.01 --feature-decay 0.01 --feature-reduction entry_mean --feature-dim 8",
        "advise labels.csv --label-column species --weight-decay 0.05 --feature-decay 0.0001 --loss-factor 2",
        f"advise step.txt --lines counts {OWN} --smoothing 0.1 --html page.html",
        f"advise step.txt --lines counts {OWN} --class-weights 1 1 1 2 2 2",
        "advise 5 3 --weight-decay 0.1 --feature-decay 0.001 --optimizer adam",
        "advise 5 3",
        "advise 5 3 --lambda-w 1 --lambda-h 1 --keep x",
        "advise 500 300 40 10 --lambda-w 1 --lambda-h 1",
    ],
    "solve": [
        f"solve 500 300 40 10 {OWN}",
        f"solve 500 300 40 10 {OWN} --bias free",
        f"solve 500 300 40 10 {OWN} --bias 0.1 --seed 3 --starts 2",
        f"solve 500 300 40 10 {OWN} --logit-adjustment 1 --bias free",
        f"solve 500 300 40 10 {OWN} --cdt 0.2",
        f"solve 500 300 40 10 {OWN} --no-relu",
        f"solve 500 300 40 10 {OWN} --dim 2 --time-limit 60",
        f"solve 500 300 40 10 {OWN} --loss focal",
        f"solve 500 300 40 10 {OWN} --loss hinge --tol 1e-6",
        f"solve 500 300 40 10 {OWN} --loss mse --class-weights 1 1 2 4",
        f"solve named.csv {OWN} --smoothing 0.1 --bias free --figure features.png",
        "solve labels.csv --label-column species --weight-decay 0.05 --batchnorm-branches 1 --bias free",
        "solve --long-tail 500:50:4 --weight-decay 0.05 --feature-decay 0.001 --batch-size 50 --bias free",
        f"solve 60 30 30 {FROZEN} --bias free",
        f"solve step.txt --lines counts {ENTRIES} --batch-size 32 --drop-last --loss-factor 2 --optimizer adam"
        " --bias free",
        f"solve 5 3 {OWN} --bias much",
        f"solve 5 3 {OWN} --loss mse --cdt 1",
        "solve 5 3",
        f"solve 5 3 {OWN} --figure nowhere/features.png",
    ],
    "landscape": [
        "landscape 60 30 10 --lambda-w 0.01 --lambda-h 0.0001 --dim 3 --starts 2 --seed 1 --scale 0.2",
        "landscape named.csv --weight-decay 0.01 --batchnorm-branches 1 --dim 2 --bias free --starts 1",
        "landscape --long-tail 60:10:3 --lambda-w 0.01 --lambda-h 0.0001 --dim 3 --starts 1 --figure gaps.png",
        "landscape labels.csv --label-column species --lambda-w 0.01 --lambda-h 0.001 --dim 2 --loss mse --starts 1",
        f"landscape 60 30 10 {ENTRIES} --batch-size 32 --drop-last --loss-factor 2 --optimizer adam --dim 3 --starts 1",
        f"landscape 60 30 30 {FROZEN} --dim 3 --starts 1",
        "landscape 60 30 10 --lambda-w 0.01 --lambda-h 0.0001 --dim 3 --logit-adjustment 1 --smoothing 0.1 --starts 1",
        f"landscape 60 30 10 {OWN} --dim 3 --cdt 0.2 --no-relu --class-weights 1 1 2 --starts 1",
        "landscape 60 30 10 --lambda-w 0.01 --lambda-h 0.0001",
        "landscape 60 30 10 --dim 3",
    ],
    "measure": [
        "measure all.npz",
        "measure all.npz --lambda-w 0.01 --lambda-h 0.0002",
        "measure all.npz --weight-decay 0.1 --batchnorm-branches 1 --class-names ant bee cat",
        "measure all.npz --weight-decay 0.01 --feature-decay 0.01 --class-weights 1 2 3",
        "measure all.npz --weight-decay 0.01 --feature-decay 0.01 --smoothing 0.1 --batch-size 30 --loss-factor 2",
        "measure all.safetensors --weight-decay 0.1 --feature-decay 9 --feature-reduction entry_mean --feature-dim 4",
        "measure all.npz --weight-decay 0.01 --feature-decay 0.01 --batch-size 30 --drop-last --optimizer adam",
        f"measure all.npz {FROZEN}",
        "measure x.npy --head head.npz",
        "measure table.csv --head weight.npy --lambda-w 0.01 --lambda-h 0.0002",
        "measure kinds.csv --label-column kind",
        "measure table.tsv",
        "measure table.parquet --label-column label",
        "measure biased.npz",
        "measure biased.npz --lambda-w 0.01 --lambda-h 0.0002",
        "measure exact.npz --lambda-w 0.01 --lambda-h 0.0002",
        "measure part.npz",
        "measure part.npz --lambda-w 0.01 --lambda-h 0.0002",
        "measure nan.npz",
        "measure x.npy --weight-decay 0.1 --batchnorm-branches 1",
        "measure all.npz --head wide.npz",
        "measure nowhere.npz",
    ],
    "train": [
        f"train {TINY} --seed 1",
        f"train {TINY} --data all.npz --recipe batchnorm --decay-on everything --batchnorm-decay gain --seed 2",
        f"train {TINY} {NAMED}",
        f"train {TINY} {NAMED} --resume",
        "report one/{run}",
        "report one/{run} --out again.html",
        "collect one --out rows.csv",
        f"train {TINY} --data table.csv --label-column label --profile step --ratio 4 --largest 20 --device cpu",
        f"train {TINY} --data images.npz --network cnn --width 2 --batch-size 20 --optimizer sgd --learning-rate 0.01",
        f"train {TINY} --data all.npz --ldam 0.5 --penalty-scale 0.1 --penalty-ratio 100 --warmup 0.2 --batch-size 30 "
        "--class-weights inverse-root --resampling none --seed 5",
        f"train {TINY} --data all.npz --logit-adjustment 1 --resampling balanced --penalty-scale 0.1",
        f"train {TINY} --data all.npz --recipe batchnorm --batchnorm --branches 2 --smoothing 0.1 --seed 6",
        f"train {TINY} --data all.npz --network golden_network:small --head out --drop-bias --branches 1",
    ],
    "train refuses": [
        "train --data nowhere",
        "train --epochs 0",
        "train --recipe batchnorm --feature-decay 1",
        "train --network cnn --data all.npz",
        "train --network vgg19 --data all.npz",
        "report nowhere",
        "collect nowhere",
        "frobnicate",
    ],
    "sweep": [
        "sweep grid.json --out runs --workers 1 --device cpu",
        "collect runs",
        "collect runs --out table.json",
        f"sweep {TINY} --data all.npz --penalty-scale 0.5 --seed 0,1 --out runs --part 2/2",
        f"sweep {TINY} --data all.npz --penalty-scale 0.5 --seeds 0:2 --out runs --part 3/4",
        "sweep",
        "sweep --colour 1",
        "sweep --seeds 0:2 --part 3/2",
        "sweep --seeds 0:2 --out named.csv",
        "sweep --seeds 0:2 --scheduler nonsense://",
    ],
}
GRID = [
    {"data": "all.npz", "penalty_scale": 0.5, "seed": 0},
    {"data": "all.npz", "penalty_scale": 0.5, "seed": 1},
    {"data": "digits", "ratio": 20, "penalty_ratio": 100},
    {"data": "digits", "profile": "paper", "smoothing": 0.1},
    {"data": "all.npz", "recipe": "plain", "optimizer": "adamw"},
    {"data": "digits", "recipe": "batchnorm", "branches": 2, "batchnorm_decay": "gain_frozen_shift"},
    {"data": "all.npz", "class_weights": "inverse", "warmup": 0.1},
    {"data": "all.npz", "class_weights": "inverse-root", "penalty_scale": 0.1},
    {"data": "all.npz", "ldam": 0.5, "penalty_scale": 0.1},
    {"data": "all.npz", "logit_adjustment": 1.0},
    {"data": "all.npz", "resampling": "balanced", "batch_size": 30},
    {"data": "all.npz", "network": "residual-mlp", "batchnorm": True},
    {"data": "images.npz", "network": "vgg11", "width": 2},
    {"data": "images.npz", "network": "resnet18", "width": 2},
    {"data": "images", "network": "cnn", "width": 2},
    {"data": "idx"},
    {"data": "cifar"},
    {"data": "x.npy"},
    {"data": "words.txt"},
    {"data": "table.tsv"},
    {"data": "table.parquet", "label_column": "label"},
    {"data": "all.safetensors"},
    {"data": "nowhere.npz"},
]
DROPPED = {
    "run",  # the hash of a configuration
    "report",  # its path has that hash
    "seconds",
    "stationarity",  # rounding
    "polar",  # 1 up to rounding
    "curvature",
    "steps",
    "coordinates",
}
"""Keys whose values are no part of the behaviour, or differ from machine to machine."""
ROTATED = {"weights", "features"}
"""Matrices known up to a rotation: the squared norms of their rows are kept."""


def command_records(group, folder):
    """Run the commands of a group one after the other in a folder of their own."""
    with contextlib.chdir(folder):
        write_inputs(Path())
        return [command_record(line, Path(folder)) for line in GROUPS[group]]


def command_record(line, folder):
    """What a command prints and its exit code; an error line if that is 2."""
    words = [_found(word) for word in shlex.split(line)] + ([] if line == "frobnicate" else ["--json"])
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(words)
    record = {"command": line, "exit": code}
    if code == 2:
        return record | {"error": _masked(err.getvalue().strip(), folder), "printed": out.getvalue()}
    return record | {"output": compact(cleaned(json.loads(out.getvalue()), folder))}


def _found(word):
    """A word of a command, {run} standing for the name of the one run in that folder."""
    place, mark, _ = word.partition("{run}")
    return str(next(path for path in Path(place).iterdir() if path.is_dir())) if mark else word


def _masked(text, folder):
    text = re.sub(r"known schemes: \[.*?\]", "known schemes: …", text)  # as dask is installed
    return re.sub(r"\b[0-9a-f]{12}\b", "<run>", text.replace(str(folder), "<folder>"))


def cleaned(value, folder):
    """Without what is volatile; runs in the order of their configurations."""
    if isinstance(value, dict):
        kept = {key: one for key, one in value.items() if key not in DROPPED}
        return {key: _norms(one) if key in ROTATED else _cleaned_entry(key, one, folder) for key, one in kept.items()}
    if isinstance(value, list):
        return [cleaned(one, folder) for one in value]
    return _masked(value, folder) if isinstance(value, str) else value


def _cleaned_entry(key, value, folder):
    if key == "status":
        return without_gaps(value)
    if key == "runs":
        return sorted(cleaned(value, folder), key=lambda row: json.dumps([row.get(name) for name in _ORDER]))
    return cleaned(value, folder)


_ORDER = (
    "data",
    "network",
    "recipe",
    "seed",
    "class_weights",
    "resampling",
    "ldam",
    "logit_adjustment",
    "penalty_scale",
    "profile",
)


def _norms(rows):
    if not (isinstance(rows, list) and rows and isinstance(rows[0], list)):
        return rows
    return [sum(one * one for one in row) for row in rows]


# What the commands read


def write_inputs(folder):
    """Write every file that the commands name."""
    texts = {
        "step.txt": "500\n500\n500\n5\n5\n5\n",
        "named.csv": "ant,60\nbee,30\ncat,10\n",
        "labels.csv": "id,species\n" + "".join(f"{i},{'ab'[i % 3 == 0]}\n" for i in range(30)),
        "words.txt": "".join(f"{'good' if i % 3 else 'bad'}\tword{i % 5} other{i % 7}\n" for i in range(30)),
        "grid.json": json.dumps([{"epochs": 3, "hidden": [6], "feature_dim": 8} | given for given in GRID]),
        "golden_network.py": NETWORK,
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    _write_features(folder)
    _write_images(folder)


NETWORK = """
from torch import nn


def small(shape, num_classes):
    body = nn.Sequential(nn.Flatten(), nn.Linear(shape[0], 6), nn.BatchNorm1d(6), nn.ReLU())
    model = nn.Sequential()
    model.add_module("body", body)
    model.add_module("out", nn.Linear(6, num_classes))
    return model
"""


def _write_features(folder):
    import pyarrow
    from pyarrow import parquet
    from safetensors.numpy import save_file

    rng = random.Random("features")
    labels = np.repeat([0, 1, 2], [40, 28, 14])
    means = np.array([[2.0, 0, 0.5, 0], [0, 2.0, 0, 0.5], [0.5, 0, 2.0, 0]])
    noise = np.array([[0.3 * abs(rng.gauss(0, 1)) for _ in range(4)] for _ in labels])
    features, weight = means[labels] + noise, means - means.mean(axis=0)
    whole = {"features": features, "labels": labels, "weight": weight}
    np.savez(folder / "all.npz", **whole)
    save_file({key: np.ascontiguousarray(array) for key, array in whole.items()}, folder / "all.safetensors")
    np.savez(folder / "biased.npz", **whole, bias=np.array([0.1, 0.0, -0.1]))
    np.savez(folder / "part.npz", features=features[labels != 1], labels=labels[labels != 1], weight=weight)
    np.savez(folder / "nan.npz", features=np.where(features == features[3, 0], np.nan, features), labels=labels)
    np.savez(folder / "head.npz", weight=weight)
    np.savez(folder / "wide.npz", weight=np.ones((3, 9)))
    np.save(folder / "weight.npy", weight)
    np.save(folder / "x.npy", features)
    np.save(folder / "x_labels.npy", labels)
    exact_weight, exact = predict(UFM([60, 30, 10], 0.01, 0.0002)).weights_and_features()
    sure = np.repeat([0, 1, 2], [60, 30, 10])
    np.savez(folder / "exact.npz", features=exact[sure], labels=sure, weight=exact_weight)
    names = ["ant", "bee", "cat"]
    rows = [[*map(repr, row), names[k]] for row, k in zip(features.tolist(), labels, strict=True)]
    for name, mark, label in (("table.csv", ",", "label"), ("table.tsv", "\t", "label"), ("kinds.csv", ",", "kind")):
        lines = [mark.join(row) for row in [["a", "b", "c", "d", label], *rows]]
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    columns = {key: features[:, i] for i, key in enumerate("abcd")} | {"label": [names[k] for k in labels]}
    parquet.write_table(pyarrow.table(columns), folder / "table.parquet")


def _write_images(folder):
    from PIL import Image

    rng = random.Random("images")
    labels = [0] * 30 + [1] * 20 + [2] * 10
    pixels = np.array([rng.randrange(100) + 70 * k for k in labels for _ in range(64)], dtype=np.uint8)
    images = pixels.reshape(-1, 8, 8)
    np.savez(folder / "images.npz", X=images, y=np.array(labels))
    for place in ("idx", "cifar", *(f"images/{name}" for name in ("ant", "bee", "cat"))):
        (folder / place).mkdir(parents=True)
    kind, count = bytes([0, 0, 8, 3]), len(labels)
    (folder / "idx/train-images-idx3-ubyte").write_bytes(kind + struct.pack(">3I", count, 8, 8) + images.tobytes())
    start = bytes([0, 0, 8, 1]) + struct.pack(">I", count)
    (folder / "idx/train-labels-idx1-ubyte").write_bytes(start + bytes(labels))
    records = b"".join(bytes([k]) + (images[i].tobytes() * 48) for i, k in enumerate(labels))
    (folder / "cifar/data_batch_1.bin").write_bytes(records)
    for i, k in enumerate(labels):
        Image.fromarray(images[i]).save(folder / "images" / ("ant", "bee", "cat")[k] / f"{i}.png")


def all_command_records():
    records = {}
    for group in GROUPS:
        with tempfile.TemporaryDirectory() as folder:
            records[group] = command_records(group, folder)
    return records


def write(path, content):
    """One line for each record, so that a change shows which one it is."""
    groups = [f"{json.dumps(name)}: {_lines(records)}" for name, records in content.items()]
    path.write_text("{\n" + ",\n".join(groups) + "\n}\n", encoding="utf-8")


def _lines(records):
    def plain(one):
        return json.dumps(one, ensure_ascii=False, allow_nan=False, separators=(",", ":"))

    if isinstance(records, list):
        return "[\n" + ",\n".join(map(plain, records)) + "\n]"
    return "{\n" + ",\n".join(f"{plain(name)}:{plain(record)}" for name, record in records.items()) + "\n}"


def remake():
    import torch

    os.environ["MPLBACKEND"] = "Agg"
    warnings.simplefilter("error")  # as in the tests
    torch.set_num_threads(1)
    write(PROBLEMS, problem_records())
    write(COMMANDS, all_command_records())


if __name__ == "__main__":
    remake()
