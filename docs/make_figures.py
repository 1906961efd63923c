"""Draw docs/demo.png, from the run that `make demo` stores, and docs/theory.png. Run: make figures."""

from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from collapsekit import long_tail
from collapsekit.prediction import phase_diagram
from collapsekit.recipe import BatchNorm, LastLayer
from collapsekit.report import figures, theory_figures
from collapsekit.report.theory_page import FAMILIES
from collapsekit.training import TrainConfig, compare_run, load_run


def main():
    run = load_run(Path("runs") / TrainConfig().fingerprint)
    frame = run.prediction
    comparison = compare_run(run)
    with mpl.rc_context(figures.STYLE):
        picture = Figure(figsize=(9.6, 3.4))
        left, right = picture.subplots(1, 2)
        figures.collapse_line(frame, comparison, ax=left)
        labels = [c.label for c in comparison.classes]
        figures.confidence_trajectory(run.history, frame.confidences, labels=labels, ax=right)
        picture.savefig(Path("docs") / "demo.png", dpi=130)


def theory():
    problem = BatchNorm(0.05).problem(long_tail(5000, 50, 10), LastLayer(branches=1))
    diagram = phase_diagram(10, 5000, ratios=np.geomspace(1, 1000, 120), products=np.geomspace(1e-8, 1e-4, 160))
    with mpl.rc_context(figures.STYLE):
        picture = Figure(figsize=(12.6, 7.0))
        axes = picture.subplots(2, 3).ravel()
        theory_figures.predicted_line(problem, ax=axes[0])
        theory_figures.norm_regimes(problem, ax=axes[1])
        theory_figures.phase(diagram, point=(problem.lambda_w * problem.lambda_h, 100), ax=axes[2])
        theory_figures.confidence_map(problem, ax=axes[3])
        theory_figures.loss_families(problem, FAMILIES, ax=axes[4])
        theory_figures.price_of_relu(ax=axes[5])
        picture.savefig(Path("docs") / "theory.png", dpi=110)


if __name__ == "__main__":
    theory()
    main()
