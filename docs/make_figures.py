"""Draw docs/demo.png from the run that `make demo` stores. Run: make figures."""

from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from collapsekit.diagnosis import compare_run
from collapsekit.report import figures
from collapsekit.training import TrainConfig, load_run


def main():
    run = load_run(Path("runs") / TrainConfig().fingerprint)
    frame = run.frame
    comparison = compare_run(run)
    with mpl.rc_context(figures.STYLE):
        picture = Figure(figsize=(9.6, 3.4))
        left, right = picture.subplots(1, 2)
        figures.collapse_line(frame, comparison, ax=left)
        labels = [c.label for c in comparison.classes]
        figures.confidence_trajectory(run.history, frame.confidences, labels=labels, ax=right)
        picture.savefig(Path("docs") / "demo.png", dpi=130)


if __name__ == "__main__":
    main()
