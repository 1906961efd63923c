"""Does a real ReLU network with explicit penalties land on the closed form, below, at and above the threshold?

Run: python experiments/first_light.py [--workers 2] [--out FOLDER]       (about 15 core-minutes)
Writes experiments/results/first_light.json, and the tested range that predictions quote as their scope.

The bands below were committed before the run; nothing was tuned on seed 11, ratio 20 or the scales other than 1.5.
"""

import argparse
import json
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import torch

from collapsekit.diagnosis import compare
from collapsekit.training import TrainConfig, train

SCALES = (0.1, 0.3, 1.5, 2.5)  # λ_W λ_H in multiples of the smallest class's threshold
CONFIGS = [TrainConfig(seed=seed, penalty_scale=scale) for seed in (0, 1, 2, 3, 4, 11) for scale in SCALES]
CONFIGS += [TrainConfig(seed=11, ratio=20, penalty_scale=scale) for scale in SCALES]

DEFAULT_SCALE = TrainConfig().penalty_scale
BANDS = {
    "largest_deviation": 0.002,  # class confidence, at every scale
    "largest_deviation_default": 5e-4,  # class confidence, at the default scale
    "objective_excess_default": 1e-4,  # relative, at the default scale
    "feature_norm_error": 0.01,  # relative, squared norms of surviving class means
    "classifier_norm_error": 0.01,  # relative, squared norms of all classifier rows
    "largest_cosine": 0.01,  # between surviving class means
}

RESULTS = Path(__file__).parent / "results" / "first_light.json"
SCOPE = Path(__file__).parents[1] / "src" / "collapsekit" / "diagnosis" / "scope.json"


def one_run(job):
    config, out = job
    torch.set_num_threads(1)
    run = train(config, out=out, resume=True)
    found = compare(run.frame, run.measured).to_dict()
    del found["classes"], found["schema"]
    dead = int(run.frame.collapsed.sum())
    return {"config": config.to_dict(), "collapsed": dead, **found, "environment": run.environment}


def within_bands(row):
    default = row["config"]["penalty_scale"] == DEFAULT_SCALE
    limits = {key: band for key, band in BANDS.items() if default or not key.endswith("_default")}
    return row["same_classes_collapsed"] and all(
        row[key.removesuffix("_default")] <= band for key, band in limits.items()
    )


def table(rows):
    lines = [
        "| seed | ratio | scale | collapsed | confidence | ‖h‖² | ‖w‖² | cosine | objective | verdict |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        config = row["config"]
        keys = (
            "largest_deviation",
            "feature_norm_error",
            "classifier_norm_error",
            "largest_cosine",
            "objective_excess",
        )
        numbers = " | ".join(f"{row[key]:.1e}" for key in keys)
        verdict = "holds" if within_bands(row) else "fails"
        lines.append(
            f"| {config['seed']} | {config['ratio']:g} | {config['penalty_scale']:g} | {row['collapsed']} | {numbers} "
            f"| {verdict} |"
        )
    return "\n".join(lines)


def tested_range(rows):
    config = replace(TrainConfig(), seed=0)
    widths = "-".join(map(str, (*config.hidden, config.feature_dim)))
    scales = [row["config"]["penalty_scale"] for row in rows]
    seeds = {row["config"]["seed"] for row in rows}
    return {
        "source": "experiments/results/first_light.json",
        "tested_on": f"ReLU MLPs {widths} with bias-free head, explicit penalties on head and features with warm-up, "
        f"full-batch Adam, scikit-learn digits, {len(rows)} runs over {len(seeds)} seeds",
        "num_classes": [10],
        "imbalance": max(row["config"]["ratio"] for row in rows),
        "penalty_scale": [min(scales), max(scales)],
        "largest_deviation": max(row["largest_deviation"] for row in rows),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", help="keep the run folders here, and resume from them")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        jobs = [(config, arguments.out or scratch) for config in CONFIGS]
        rows = []
        with ProcessPoolExecutor(arguments.workers, mp_context=get_context("spawn")) as pool:
            for row in pool.map(one_run, jobs):
                rows.append(row)
                print(table(rows).splitlines()[-1], flush=True)
    verdict = "holds" if all(map(within_bands, rows)) else "fails"
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"schema": 1, "bands": BANDS, "verdict": verdict, "runs": rows}, indent=1) + "\n")
    SCOPE.write_text(json.dumps(tested_range(rows), indent=1, ensure_ascii=False) + "\n")
    print(table(rows), f"\n\n{verdict}")


if __name__ == "__main__":
    main()
