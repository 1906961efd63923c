"""Does the monitor warn of a dying class in time, and stay silent about healthy ones?

Run: PYTHONPATH=experiments python experiments/early_warning.py [--judge] [--smoke]    (12 core-minutes)
Needs what experiments/diagnosis_suite.py needs to build; nothing to judge.
Writes experiments/results/early_warning/*.npz, one a network, and experiments/results/early_warning.json.

Networks are trained with a monitor that counts their own passes (`_tools/warning_networks.py`): those of the labelled
suite that are healthy or lose classes to their recipe, and others whose penalties or weight decay grow until classes
die that had been learned, since in the suite most lost classes were never alive. Each training is cut into 60 epochs.
A file that is there is not made again; the warnings are those of the rules as they are now, replayed over the epochs.

A class *dies* if its recall was at least one half in a tenth of the epochs on end, falls below half of its peak, and
stays there to the end. Where penalties are raised a hundredfold within an epoch ("at once") classes die within a few
epochs, and no warning can come before its cause: these have a line without a band. A class is *healthy* if it was as
much alive, and from then on keeps 80 % of its peak. Whatever lies between is counted apart. A warning is in time if it
comes, and stays, a tenth of the training before the recall falls below half of its peak; a false alarm is an epoch in
which a healthy class is called dying.

The rules were tried on half A. Half B, of other data, counts and seeds, was looked at after they were frozen. The bands
below were committed before that.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from _tools import harness
from _tools.harness import line
from _tools.warning_networks import EPOCHS, HALVES, SMOKE
from collapsekit.monitor.alarms import Alarms

FILES = harness.RESULTS / "early_warning"
BANDS = {"in time": 0.9, "lead": 0.1, "false alarms": 0.02}
ALIVE, KEPT = 0.5, 0.8


def build(watched, folder=FILES):
    """Train a network and write what the monitor said of its epochs; nothing if that is done."""
    path = folder / f"{watched.made.name.replace(' ', '-').replace(':', '-')}.npz"
    if path.exists():
        return
    start = time.process_time()
    recalls, confidences, warming = watched.run()
    meta = {"name": watched.made.name, "half": watched.made.name[0], "seconds": round(time.process_time() - start, 1)}
    unfinished = path.with_suffix(".unfinished")
    with unfinished.open("wb") as file:
        np.savez_compressed(
            file,
            recalls=recalls.astype(np.float32),
            confidences=confidences.astype(np.float32),
            warming=warming,
            meta=json.dumps(meta),
        )
    unfinished.replace(path)
    print(watched.made.name, meta["seconds"], flush=True)


def row_of(path):
    """What became of each class of a network, and when it was called dying."""
    with np.load(path, allow_pickle=False) as file:
        recalls, confidences, warming = (file[key] for key in ("recalls", "confidences", "warming"))
        meta = json.loads(str(file["meta"]))
    dying = replayed(recalls, confidences, warming)
    classes = [one_class(recalls[:, k], dying[:, k]) for k in range(recalls.shape[1])]
    return meta | {"classes": classes}


def replayed(recalls, confidences, warming):
    """Which classes the rules call dying after each epoch, (epochs, K)."""
    alarms = Alarms(recalls.shape[1])
    epochs = zip(recalls.astype(float), confidences.astype(float), warming, strict=True)
    return np.array([alarms.add(r, c, warming=bool(w)).copy() for r, c, w in epochs])


def one_class(recalls, dying):
    """Fate of a class, the epoch of its death, of the warning that stays until then, and epochs with an alarm."""
    born = first_alive(recalls)
    if born is None:
        return {"fate": "never alive", "alarms": int(dying.sum()), "epochs": len(recalls)}
    after, peak = recalls[born:], float(recalls.max())
    below = after < peak / 2
    if below[-1]:
        death = born + int(np.flatnonzero(~below)[-1]) + 1 if not below.all() else born
        quiet = np.flatnonzero(~dying[:death])
        warned = int(quiet[-1]) + 1 if quiet.size else 0
        return {"fate": "dies", "death": death, "warned": warned if warned < death else None, "peak": peak}
    reached = born + int(np.argmax(after >= KEPT * peak))
    fate = "healthy" if (recalls[reached:] >= KEPT * peak).all() else "between"
    return {"fate": fate, "alarms": int(dying[born:].sum()), "epochs": len(recalls) - born}


def first_alive(recalls):
    """The epoch from which a recall was at least one half for a tenth of the training, or None."""
    need, run = len(recalls) // 10, 0
    for epoch, recall in enumerate(recalls):
        run = run + 1 if recall >= ALIVE else 0
        if run == need:
            return epoch - need + 1
    return None


WHEN = {"A": "half A, on which the rules were tried", "B": "half B, looked at after the rules were frozen"}


def judge(rows, bands):
    """The lines of the evidence table, both halves apart."""
    found = []
    for letter, when in WHEN.items():
        own = [row for row in rows if row["half"] == letter]
        if own:
            found += [
                judge_deaths([row for row in own if not sudden(row)], when, bands),
                judge_sudden([row for row in own if sudden(row)], when),
                judge_alarms(own, when, bands),
                judge_rest(own, when),
            ]
    return found


def sudden(row):
    """Whether the penalties of a network were raised at once."""
    return "-at once-" in row["name"]


def classes(rows, *fates):
    return [(row["name"], entry) for row in rows for entry in row["classes"] if entry["fate"] in fates]


def in_time(entry, bands):
    return entry["warned"] is not None and entry["warned"] <= entry["death"] - bands["lead"] * EPOCHS


def judge_deaths(rows, when, bands):
    dying = classes(rows, "dies")
    right = [in_time(entry, bands) for _, entry in dying]
    leads = [(entry["death"] - entry["warned"]) / EPOCHS for _, entry in dying if entry["warned"] is not None]
    late = sorted({name for (name, _), good in zip(dying, right, strict=True) if not good})
    median = f"median lead {np.median(leads):.0%} of the training" if leads else "no warning"
    return line(
        "the monitor warns of a dying class before its recall falls below half of its peak",
        f"{when}: {len(dying)} dying classes in {len({name for name, _ in dying})} networks",
        f"{bands['lead']:.0%} of the training before, in at least {bands['in time']:.0%}",
        f"{sum(right)} of {len(dying)}, {median}" + (f"; late or never in: {', '.join(late)}" if late else ""),
        sum(right) >= bands["in time"] * len(dying),
    )


def judge_sudden(rows, when):
    dying = [entry for _, entry in classes(rows, "dies")]
    before = sum(entry["warned"] is not None for entry in dying)
    return line(
        "classes that die of penalties raised at once",
        f"{when}: {len(dying)} dying classes in {len(rows)} networks",
        "no band",
        f"{before} of {len(dying)} warnings before the recall fell below half of its peak",
        harness.NO_CLAIM,
    )


def judge_alarms(rows, when, bands):
    well = [entry for _, entry in classes(rows, "healthy")]
    epochs, alarms = sum(entry["epochs"] for entry in well), sum(entry["alarms"] for entry in well)
    loud = {name for name, entry in classes(rows, "healthy") if entry["alarms"]}
    return line(
        "and is silent about healthy classes",
        f"{when}: {epochs} epochs of {len(well)} healthy classes",
        f"alarms in at most {bands['false alarms']:.0%}",
        f"{alarms} ({alarms / max(1, epochs):.2%}), in {len(loud)} of {len(rows)} networks",
        alarms <= bands["false alarms"] * epochs,
    )


def judge_rest(rows, when):
    between, never = ([entry for _, entry in classes(rows, fate)] for fate in ("between", "never alive"))
    called = sum(entry["alarms"] > 0 for entry in between)
    return line(
        "classes that are neither: weakened, risen late, or never alive",
        f"{when}: {len(between)} and {len(never)} classes",
        "no band",
        f"{called} of the first were called dying at some time, {sum(e['alarms'] > 0 for e in never)} of the others",
        harness.NO_CLAIM,
    )


def write(rows):
    lines = judge(rows, BANDS)
    print(harness.table(lines))
    content = {
        "schema": 1,
        "name": "early_warning",
        "planned_runs": sum(len(networks) for networks in HALVES.values()),
        "run_minutes": round(sum(row["seconds"] for row in rows) / 60, 1),
        "bands": BANDS,
        "table": lines,
        "failures": [],
    }
    body = json.dumps(content, indent=1, ensure_ascii=False)[:-2]
    runs = ",\n  ".join(json.dumps(row, ensure_ascii=False) for row in rows)
    path = harness.RESULTS / "early_warning.json"
    path.write_text(f'{body},\n "runs": [\n  {runs}\n ]\n}}\n', encoding="utf-8")


def smoke():
    """Three networks, made and judged; nothing written."""
    with tempfile.TemporaryDirectory() as scratch:
        for watched in SMOKE:
            build(watched, Path(scratch))
        rows = [row_of(path) for path in sorted(Path(scratch).glob("*.npz"))]
    lines = judge(rows, BANDS)
    print(harness.table(lines))
    return len(rows) == len(SMOKE) and all(entry["verdict"] != harness.FAILS for entry in lines)


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
        for watched in [watched for letter in letters for watched in HALVES[letter]]:
            build(watched)
    if not arguments.build:
        write([row_of(path) for path in sorted(FILES.glob("*.npz"))])


if __name__ == "__main__":
    main()
