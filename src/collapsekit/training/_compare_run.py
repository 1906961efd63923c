"""compare_run: a training run laid beside its prediction, and what that prediction rests on."""

from __future__ import annotations

from collapsekit.diagnosis import Comparison, compare
from collapsekit.evidence import scope
from collapsekit.training.runs import Run


def compare_run(run: Run) -> Comparison:
    """Return a training run laid beside its prediction, or beside none with the reason."""
    return compare(run.prediction, run.measured, test_recalls=run.test_recalls, outside=run.outside or "")


def run_scope(run: Run) -> str:
    """Return in a sentence or two what a run's prediction rests on, or that there is none."""
    if run.prediction is None:
        return f"Scope: no prediction, because {run.outside}."
    extras = []
    if run.last_layer.pooled and run.config.recipe == "batchnorm":
        extras.append(
            "features are averaged over positions, which makes the law a lower bound on the penalty: 1 − confidence "
            "comes out larger"
        )
    return scope(run.prediction.problem, run.recipe, extras).details
