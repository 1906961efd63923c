"""How often does ordinary descent end at the global optimum, as width, imbalance, penalty, start and head vary?

Run: python experiments/solver_landscape.py       (about 8 core-minutes, one process)
Writes experiments/results/solver_landscape.json, from which docs/global_or_spurious.md has its figures.

One setting is varied at a time around the base: K = 10, long tail 5000 … 50, dim = 2K, λ_W λ_H half the smallest
bias-free threshold, starts N(0, 0.1²) in balanced variables, no bias. 20 starts each; reached: gap ≤ 1e-4.
A description of the landscape, with no band but one: the certified solver reaches the optimum from every start.
"""

import json
from pathlib import Path

import numpy as np

from collapsekit import UFM, long_tail, thresholds
from collapsekit.solver._landscape import ADAM_STEPS, GRADIENT_STEPS, LBFGS_STEPS, landscape

STARTS = 20
BAND = {"certified_share": 1.0}
BASE = {"dim_per_class": 2.0, "imbalance": 100, "penalty": 0.5, "scale": 0.1, "bias": None}
VARIED = {
    "dim_per_class": (1.0, 1.5, 2.0, 4.0, 8.0, 16.0),
    "imbalance": (1, 10, 100, 1000),
    "penalty": (0.02, 0.1, 0.5, 1.5),
    "scale": (0.01, 0.1, 1.0, 3.0),
    "bias": ("free",),
}
RESULTS = Path(__file__).parent / "results" / "solver_landscape.json"


def one(setting):
    counts = long_tail(5000, round(5000 / setting["imbalance"]), 10)
    penalty = np.sqrt(setting["penalty"] * thresholds(UFM(counts, 1, 1)).minority_collapse)
    problem = UFM(counts, penalty, penalty, dim=round(10 * setting["dim_per_class"]), bias=setting["bias"])
    found = landscape(problem, STARTS, scale=setting["scale"], curvature=False)
    methods = {
        name: {
            "reached": found.reached(name),
            "gaps": [end.gap for end in ends],
            "wrongly_dead": [end.wrongly_dead for end in ends],
            "stationarity": [end.stationarity for end in ends],
        }
        for name, ends in found.outcomes.items()
    }
    shares = ", ".join(f"{name} {values['reached']:.2f}" for name, values in methods.items())
    print(setting, shares, flush=True)
    return {"setting": setting, "methods": methods}


def main():
    settings = [BASE | {key: value} for key, values in VARIED.items() for value in values]
    distinct = list({json.dumps(setting): setting for setting in settings}.values())
    distinct += [BASE | {"bias": "free", "dim_per_class": width} for width in (1.0, 4.0)]
    rows = [one(setting) for setting in distinct]
    held = all(row["methods"]["certified"]["reached"] >= BAND["certified_share"] for row in rows)
    steps = {"gradient descent": GRADIENT_STEPS, "adam": ADAM_STEPS, "bounded L-BFGS": LBFGS_STEPS}
    content = {"schema": 1, "bands": BAND, "verdict": "holds" if held else "fails", "starts": STARTS, "steps": steps}
    content |= {"base": BASE, "runs": rows}
    RESULTS.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(content["verdict"])


if __name__ == "__main__":
    main()
