"""Does the certified solver reach the global optimum from every random start, where bounded L-BFGS does not?

Run: python experiments/solver_certified.py [--quick]       (about 5 core-minutes, one process)
Writes experiments/results/solver_certified.json.

K = 10, counts 5000 … 50, penalties (λ_W = λ_H) at half and 1.5 times the smallest bias-free threshold; starts with
N(0, 0.1²) in balanced variables. Certified: relative duality gap. Bounded L-BFGS starts from the same points, in the
same variables, and is held against the same bound.

The bands below were committed before the run.
"""

import argparse
import json
import platform
from pathlib import Path

import numpy as np
import scipy

import collapsekit
from collapsekit import UFM, CrossEntropy, long_tail, thresholds
from collapsekit.solver._landscape import landscape
from collapsekit.solver.model import Balanced

STARTS = 40
BAND = {"gap": 1e-8, "share": 1.0}  # of the certified solver, in every row
COUNTS = long_tail(5000, 50, 10)
PRIOR = COUNTS / COUNTS.sum()
HEADS = {
    "free bias": {"bias": "free"},
    "logit adjustment, τ = 1": {"loss": CrossEntropy(offsets=np.log(PRIOR))},
    "bias-free": {},
}
SCALES, DIMS = (0.5, 1.5), (10, 20, 40, 100)
RESULTS = Path(__file__).parent / "results" / "solver_certified.json"


def row(head, scale, dim, starts):
    penalty = np.sqrt(scale * thresholds(UFM(COUNTS, 1, 1)).minority_collapse)
    problem = UFM(COUNTS, penalty, penalty, dim=dim, **HEADS[head])
    found = landscape(problem, starts, tol=BAND["gap"], curvature=False, methods=("bounded L-BFGS", "certified"))
    columns = {"head": head, "times_threshold": scale, "dim": dim, "kappa": Balanced(problem).kappa}
    for name, key in (("certified", "certified"), ("bounded L-BFGS", "lbfgs")):
        ends = found.outcomes[name]
        columns |= {
            f"{key}_reached": sum(one.gap <= BAND["gap"] for one in ends),
            f"{key}_largest_gap": max(one.gap for one in ends),
            f"{key}_median_gap": float(np.median([one.gap for one in ends])),
            f"{key}_wrongly_dead": max(one.wrongly_dead for one in ends),
            f"{key}_mean_seconds": float(np.mean([one.seconds for one in ends])),
        }
    return columns | {"starts": starts}


def line(one):
    shown = [
        one["head"],
        str(one["times_threshold"]),
        str(one["dim"]),
        f"{one['certified_reached']}/{one['starts']}",
        f"{one['certified_largest_gap']:.1e}",
        f"{one['lbfgs_reached']}/{one['starts']}",
        f"{one['lbfgs_largest_gap']:.1e}",
        str(one["lbfgs_wrongly_dead"]),
        f"{one['certified_mean_seconds']:.3f}",
        f"{one['lbfgs_mean_seconds']:.3f}",
    ]
    return "| " + " | ".join(shown) + " |"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="4 starts a row, nothing written")
    starts = 4 if parser.parse_args().quick else STARTS
    rows = []
    print("| head | × threshold | dim | certified | largest gap | L-BFGS | largest gap | wrongly dead | s | L-BFGS s |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for head in HEADS:
        for scale in SCALES:
            for dim in DIMS:
                rows.append(row(head, scale, dim, starts))
                print(line(rows[-1]), flush=True)
    verdict = "holds" if all(one["certified_reached"] >= BAND["share"] * one["starts"] for one in rows) else "fails"
    print(f"\n{verdict}")
    if starts == STARTS:
        versions = {"python": platform.python_version(), "numpy": np.__version__, "scipy": scipy.__version__}
        content = {"schema": 1, "bands": BAND, "verdict": verdict, "counts": COUNTS.astype(int).tolist(), "runs": rows}
        content["environment"] = versions | {"collapsekit": collapsekit.__version__}
        RESULTS.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
