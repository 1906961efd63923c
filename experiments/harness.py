"""What experiments share: run configurations over two workers, write the rows, print the table and the verdict."""

import argparse
import json
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

from collapsekit.diagnosis import compare_run, effective_penalties
from collapsekit.training import train

RESULTS = Path(__file__).parent / "results"
SCOPE = Path(__file__).parents[1] / "src" / "collapsekit" / "theory" / "scope.json"
COLUMNS = {
    "confidence": "largest_deviation",
    "‖h‖²": "feature_norm_error",
    "‖w‖²": "classifier_norm_error",
    "cosine": "largest_cosine",
    "objective": "objective_excess",
    "λ_W found": "effective_lambda_w_error",
    "λ_H found": "effective_lambda_h_error",
}


def one_run(job):
    config, out = job
    torch.set_num_threads(1)
    run = train(config, out=out, resume=True)
    found = compare_run(run).to_dict()
    del found["classes"], found["schema"]
    counts, frame = run.measured.counts, run.frame
    found |= {"num_classes": len(counts), "imbalance": float(counts.max() / counts.min())}
    if frame is not None:
        found |= {"collapsed": int(frame.collapsed.sum()), "times_threshold": 1 / float(frame.headroom.min())}
        found |= effective_errors(run)
    return {"config": config.to_dict(), **found, "environment": run.environment}


def effective_errors(run):
    """Relative errors of the penalties found from the trained network alone; None where the model does not apply."""
    problem = run.problem
    estimate = effective_penalties(run.measured, class_weights=problem.class_weights)
    errors = {"effective_penalties": estimate.to_dict()}
    for name, found in (("lambda_w", estimate.lambda_w), ("lambda_h", estimate.lambda_h)):
        errors[f"effective_{name}_error"] = None if found is None else abs(found / getattr(problem, name) - 1)
    return errors


def changed(config, keys):
    """The values of a configuration that tell the runs of an experiment apart."""
    return " | ".join(str(config[key]) for key in keys)


def table(rows, keys, within):
    lines = [
        " | ".join(("", *keys, "collapsed", *COLUMNS, "verdict", "")).strip(),
        "|" + "---|" * (len(keys) + len(COLUMNS) + 2),
    ]
    for row in rows:
        numbers = " | ".join("" if row.get(key) is None else f"{row[key]:.1e}" for key in COLUMNS.values())
        verdict = "holds" if within(row) else "fails"
        lines.append(f"| {changed(row['config'], keys)} | {row.get('collapsed', '')} | {numbers} | {verdict} |")
    return "\n".join(lines)


def write_scope(recipe, name, tested_on, rows):
    """Tell the package what its predictions for a recipe rest on."""
    seeds = {row["config"]["seed"] for row in rows}
    scales = [row["times_threshold"] for row in rows]
    content = json.loads(SCOPE.read_text(encoding="utf-8"))
    content[recipe] = {
        "source": f"experiments/results/{name}.json",
        "tested_on": f"{tested_on}, {len(rows)} runs over {len(seeds)} seeds",
        "num_classes": sorted({row["num_classes"] for row in rows}),
        "imbalance": max(row["imbalance"] for row in rows),
        "penalty_scale": [min(scales), max(scales)],
        "largest_deviation": max(row["largest_deviation"] for row in rows),
    }
    SCOPE.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def main(doc, name, configs, keys, bands, within):
    """Run an experiment and write results/NAME.json; returns its rows."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", help="keep the run folders here, and resume from them")
    arguments = parser.parse_args()
    rows = []
    with (
        tempfile.TemporaryDirectory() as scratch,
        ProcessPoolExecutor(arguments.workers, mp_context=get_context("spawn")) as pool,
    ):
        for row in pool.map(one_run, [(config, arguments.out or scratch) for config in configs]):
            rows.append(row)
            print(table(rows, keys, within).splitlines()[-1], flush=True)
    verdict = "holds" if all(map(within, rows)) else "fails"
    RESULTS.mkdir(exist_ok=True)
    content = {"schema": 1, "bands": bands, "verdict": verdict, "runs": rows}
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
    print(table(rows, keys, within), f"\n\n{verdict}")
    return rows
