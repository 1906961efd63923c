"""Draw the figures of global_or_spurious.md from the experiment's results. Run: python docs/make_solver_figures.py."""

import json
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from collapsekit.report import figures, solver_figures

ROOT = Path(__file__).parents[1]
PANELS = {
    "dim_per_class": "dim / K",
    "imbalance": "largest / smallest count",
    "penalty": "λ_W λ_H / smallest threshold",
    "scale": "scale of the start",
}


def panel(content, key):
    """Values of one setting, all others at the base, and each method's shares."""
    rows = [
        row
        for row in content["runs"]
        if all(row["setting"][other] == value for other, value in content["base"].items() if other != key)
    ]
    rows.sort(key=lambda row: row["setting"][key])
    shares = {name: [row["methods"][name]["reached"] for row in rows] for name in rows[0]["methods"]}
    return [row["setting"][key] for row in rows], shares


def main():
    content = json.loads((ROOT / "experiments" / "results" / "solver_landscape.json").read_text(encoding="utf-8"))
    with mpl.rc_context(figures.STYLE):
        picture = Figure(figsize=(9.6, 6.0))
        for ax, (key, label) in zip(picture.subplots(2, 2).ravel(), PANELS.items(), strict=True):
            values, shares = panel(content, key)
            solver_figures.reached_shares(values, shares, label, ax=ax)
            if key == "dim_per_class":
                ax.legend(frameon=False)
        picture.savefig(ROOT / "docs" / "global_or_spurious.png", dpi=130)


if __name__ == "__main__":
    main()
