"""Write what the results say: the README's table, docs/evidence.md, the collapse line and the predictions' scope.

Run: PYTHONPATH=experiments python -m _tools.summary       (a second; make figures)

Everything comes from experiments/results/*.json; nothing is typed in. The README shows the six
lines that are marked as headlines.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

import batchnorm_law
import collapse_line
from _tools import harness, panels
from _tools.harness import FAILS, HOLDS, deviations, setting
from collapsekit.report.figures import BLUE, GREEN, GREY, ORANGE, STYLE, plain_ticks

ROOT = Path(__file__).parents[2]
README, EVIDENCE, FIGURE = ROOT / "README.md", ROOT / "docs" / "evidence.md", ROOT / "docs" / "collapse_line.png"
OTHERS = ROOT / "docs" / "evidence.png"
BEGIN, END = "<!-- evidence: made by experiments/_tools/summary.py -->", "<!-- end of evidence -->"
ORDER = (
    *("collapse_line", "first_light", "mini_batches", "networks", "batchnorm_law", "effective_penalties", "weights"),
    *("paper_settings", "controls", "optimiser", "revival", "everyday", "generalisation", "every_recipe"),
    *("label_noise", "horizon", "rates", "adjust_heads"),
)
"""Experiments of `collapsekit.training`: each file holds a harness.Experiment."""
SCRIPTS = ("coinciding_texts", "advice_kept", "shipped_models", "rare_rows", "diagnosis_suite", "early_warning")
"""Experiments that do not train with the package: each file holds BANDS and judge(runs, bands)."""
FIGURES = dict.fromkeys(("collapse_line", "networks"), "collapse_line.png") | dict.fromkeys(
    panels.PANELS, "evidence.png"
)
HEAD = ("claim", "networks × data × seeds", "predicted", "measured ± sd", "verdict", "run")


def contents():
    """The results that exist, by name, in the order of the table."""
    found = {name: harness.results(name) for name in ORDER + SCRIPTS}
    return {name: content for name, content in found.items() if content}


def cells(name, entry, below=""):
    """A row of the table; links are relative to the folder `below` the root."""
    up = "../" if below else ""
    file, stored = f"{up}experiments/{name}.py", f"{up}experiments/results/{name}.json"
    links = [f"[`python experiments/{name}.py`]({file})", f"[results]({stored})"]
    if name in FIGURES:
        links.append(f"[figure]({up}docs/{FIGURES[name]})")
    verdict = entry["verdict"] if entry["verdict"] == HOLDS else f"**{entry['verdict']}**"
    return (entry["claim"], entry["tested_on"], entry["predicted"], entry["measured"], verdict, ", ".join(links))


def markdown(rows):
    lines = ["| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def readme_table():
    """The README's part between its markers."""
    rows = [
        cells(name, entry)
        for name, content in contents().items()
        for entry in content["table"]
        if entry.get("headline")
    ]
    return f"{BEGIN}\n\n{markdown(rows)}\n\n{tally()}\n\n{END}"


def tally():
    """How many lines there are of each verdict, and where they are."""
    verdicts = [entry["verdict"] for content in contents().values() for entry in content["table"]]
    kinds = (HOLDS, harness.CORRECTED, FAILS, harness.NO_CLAIM)
    counts = ", ".join(f"{verdicts.count(kind)} {kind}" for kind in kinds)
    minutes = sum(content["run_minutes"] for content in contents().values())
    return (
        f"Six of {len(verdicts)} lines; [docs/evidence.md](docs/evidence.md) has all of them, failures included: "
        f"{counts}. Bands were committed before the runs, verdicts are computed from them, and what earlier settings "
        f"gave is kept. {minutes:.0f} minutes of single-thread runs; `make evidence` repeats them."
    )


def evidence_page():
    """All lines, experiment by experiment, with the question, the runs and the cost."""
    parts = [
        "# Evidence",
        "Made by `experiments/_tools/summary.py` from `experiments/results/*.json`. Every line has its band, committed "
        "before the runs; the verdict is computed from it. Deviations are of class confidences on training samples; "
        "± is the standard deviation over runs or seeds.",
        "![Share of confidence above chance against headroom](collapse_line.png)",
        "![A panel for each of the other experiments](evidence.png)",
    ]
    for name, content in contents().items():
        runs = len(content["runs"])
        planned, failures = content.get("planned_runs", runs), content.get("failures", [])
        done = f"{runs} runs" if runs == planned else f"{runs} of {planned} planned runs"
        failed = f", {len(failures)} of them stopped with an error" if failures else ""
        minutes = f"{content['run_minutes']:.0f} minutes of single-thread runs"
        parts += [
            f"## {question(name)}",
            f"`python experiments/{name}.py`: {done}{failed}, {minutes}.",
            markdown([cells(name, entry, "docs") for entry in content["table"]]),
            *superseded(content),
        ]
    return "\n\n".join(parts) + "\n"


def superseded(content):
    """What earlier settings gave, one line for each but for seed and penalties; nothing if there were none."""
    groups = {}
    for row in content.get("superseded", []):
        varied = ("schema", "seed", "penalty_scale", "weight_decay")
        what = ", ".join(f"{key} {value}" for key, value in row["config"].items() if key not in varied)
        groups.setdefault(what, []).append(row)
    lines = []
    for what, rows in groups.items():
        worst = [row["largest_deviation"] for row in rows if row["largest_deviation"] is not None]
        same = sum(bool(row["same_classes_collapsed"]) for row in rows)
        found = f"largest deviation {max(worst):.2g}, dead classes exact in {same}" if worst else "no prediction"
        lines.append(f"- {what or 'the defaults'}: {len(rows)} runs, {found}")
    return ["Earlier settings, changed since and not in the table:", "\n".join(lines)] if lines else []


def question(name):
    """The first sentence of an experiment's docstring."""
    text = (ROOT / "experiments" / f"{name}.py").read_text(encoding="utf-8")
    return text.split('"""')[1].split("\n")[0]


def with_readme(text):
    """The README with its table and what its commands print replaced."""
    before, rest = text.split(BEGIN)
    return CONSOLE.sub(with_output, before) + readme_table() + rest.split(END)[1]


CONSOLE = re.compile(r"```console\n\$ collapsekit (.*)\n[^`]*```")
"""One command and what it prints."""


def with_output(block):
    """The block with the command's output of today, tables of 80 columns or as wide as they must be."""
    command = [sys.executable, "-m", "collapsekit.cli", *shlex.split(block[1])]
    environment = os.environ | {"COLUMNS": "80"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    lines = [text.rstrip() for text in done.stdout.splitlines()]
    return "\n".join([f"```console\n$ collapsekit {block[1]}", *lines, "```"])


MARKS = {
    "digits": ("o", ORANGE),
    "MNIST-5k": ("s", BLUE),
    "Fashion-MNIST": ("D", GREEN),
    "olive oils (table)": ("^", "#CC79A7"),
    "fortunes, none shared (text)": ("P", "#56B4E9"),
    "fortunes (text)": ("x", "#56B4E9"),
    "storms (table)": ("+", "#E69F00"),
    "other networks": ("v", "black"),
}


def points():
    """Headroom, share of the confidence above chance, and deviation of every class of every run, by data set."""
    groups = collapse_line.grouped(harness.stored("collapse_line"))
    groups["other networks"] = harness.stored("networks")
    return {name: np.concatenate([class_points(row) for row in rows]) for name, rows in groups.items() if rows}


def class_points(row):
    chance = 1 / len(row["counts"])
    share = (np.array(row["confidences"]) - chance) / (1 - chance)
    return np.stack([row["headroom"], share, deviations(row)], axis=1)


def draw():
    """The collapse line: on the left all classes of all runs on one curve, on the right how far off they are."""
    found = points()
    with mpl.rc_context(STYLE):
        picture = Figure(figsize=(9.6, 3.7))
        left, right = picture.subplots(1, 2)
        headroom = np.concatenate([*found.values()])[:, 0]
        low, high = headroom.min() / 1.2, headroom.max() * 1.2
        x = np.geomspace(low, high, 600)
        left.plot(x, 1 - np.minimum(1, x**-0.5), color="0.2", lw=1.2, label="predicted", zorder=3)
        for name, values in found.items():
            marker, colour = MARKS[name]
            style = {"ls": "", "marker": marker, "ms": 4, "color": colour, "alpha": 0.7, "mew": 0.8}
            if marker not in "x+":
                style |= {"mfc": "none"}
            left.plot(values[:, 0], values[:, 1], label=f"{name} ({len(values)})", **style)
            right.plot(values[:, 0], np.maximum(values[:, 2], 1e-6), **style)
        for ax in (left, right):
            ax.axvspan(low, 1, color="0.92", lw=0, zorder=0)
            ax.set(xscale="log", xlim=(low, high), xlabel="headroom: class size / critical size")
            plain_ticks(ax)
        left.text(low * 1.1, 0.96, "collapsed", va="top", color=GREY)
        left.set(ylim=(-0.03, 1.0), ylabel="training confidence above chance")
        left.legend(frameon=False, fontsize=7, loc="lower right")
        band = collapse_line.BANDS["largest_deviation"]
        right.axhline(band, color=GREY, lw=0.8, ls="--")
        right.text(high, 1.12 * band, "band", ha="right", va="bottom", color=GREY)
        right.set(yscale="log", ylim=(8e-7, 1), ylabel="|measured − predicted| confidence")
        picture.savefig(FIGURE, dpi=130)


def draw_others():
    """One panel for each experiment that has more to show than a deviation."""
    with mpl.rc_context(STYLE | {"font.size": 7, "axes.titlesize": 8}):
        picture = Figure(figsize=(9.6, 11.6))
        panels.draw(picture.subplots(4, 3).flat)
        picture.savefig(OTHERS, dpi=130)


def scope(names, rows, tested_on):
    """What predictions quote as the range in which they were tested."""
    return {
        "source": ", ".join(f"experiments/results/{name}.json" for name in names if harness.stored(name)),
        "tested_on": tested_on,
        "num_classes": sorted({len(row["counts"]) if "counts" in row else row["num_classes"] for row in rows}),
        "imbalance": max(imbalance(row) for row in rows),
        "penalty_scale": [f(row["times_threshold"] for row in rows) for f in (min, max)],
        "largest_deviation": max(row["largest_deviation"] for row in rows),
    }


def imbalance(row):
    return max(row["counts"]) / min(row["counts"]) if "counts" in row else row["imbalance"]


def write_scopes():
    """Write scope.json from the results."""
    content = json.loads(harness.SCOPE.read_text(encoding="utf-8"))
    content["penalty"] = penalty_scope()
    content["batchnorm"] = batchnorm_scope()
    harness.SCOPE.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def penalty_scope():
    """The scope of explicit penalties: networks on data that they fit; all else is named with its deviation."""
    names = ["collapse_line", "first_light", "mini_batches", "networks"]
    groups = collapse_line.grouped(harness.stored("collapse_line"))
    apart = {name: rows for name, rows in groups.items() if collapse_line.misfit(rows)}
    rows = [row for name, group in groups.items() if name not in apart for row in group]
    rows += [row for name in names[1:] for row in harness.stored(name)]
    data = ", ".join(name for name in groups if name not in apart)
    text = (
        "ReLU MLPs, CNNs, VGG11, ResNet18 and a text transformer with bias-free head, explicit penalties on head and "
        f"features with warm-up, Adam; {data}; {len(rows)} runs"
    )
    for what, own in apart.items():
        text += f"; not counted: {what}, deviations up to {max(row['largest_deviation'] for row in own):.2f}"
    return scope(names, rows, text)


def batchnorm_scope():
    """The scope of the BatchNorm law; strong decay of all layers is named with its deviation, not mixed in."""
    rows = [row for row in harness.stored("batchnorm_law") if row.get("largest_deviation") is not None]
    bound = [row for row in rows if batchnorm_law.condition(row) in batchnorm_law.BEYOND]
    lawful = [row for row in rows if row not in bound]
    text = (
        "ReLU MLPs and a residual one, BatchNorm before every ReLU, bias-free head, weight decay with "
        f"warm-up, SGD; digits, MNIST, Fashion-MNIST; {len(lawful)} runs"
    )
    strong = [row for row in bound if setting(row, "decay_on") == "everything"]
    if strong:
        worst = max(row["largest_deviation"] for row in strong)
        text += f"; with decay 0.1 on all layers deviations were up to {worst:.2f}"
    return scope(["batchnorm_law"], lawful, text)


def main():
    README.write_text(with_readme(README.read_text(encoding="utf-8")), encoding="utf-8")
    EVIDENCE.write_text(evidence_page(), encoding="utf-8")
    if harness.stored("collapse_line"):
        draw()
        write_scopes()
    draw_others()


if __name__ == "__main__":
    main()
