"""`collapsekit train`: train a network on imbalanced data and lay it beside the prediction."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from collapsekit.cli._console import Column, print_classes, print_json, print_note, progress, stderr
from collapsekit.diagnosis import Comparison
from collapsekit.recipe import horizon_sentence
from collapsekit.training import Run, TrainConfig, compare_run
from collapsekit.training import train as run_training


def train(
    *,
    config: Annotated[TrainConfig | None, Parameter(name="*")] = None,
    out: Path = Path("runs"),
    resume: bool = False,
    device: str = "cpu",
    json: bool = False,
) -> None:
    """Train a network on imbalanced data, measure its last layer, and lay it beside the predicted geometry.

    --network module:function runs that function, and so whatever code its module holds: name only what you trust.

    Example: collapsekit train --ratio 20 --penalty-scale 0.5 --seed 1

    Parameters
    ----------
    out : Path
        Folder of runs; each run has its own below it, named by the hash of its configuration.
    resume : bool
        Go on from the last checkpoint of the same configuration.
    device : str
        Where to train, e.g. cpu or cuda.
    json : bool
        Print one JSON object on stdout; progress stays on stderr.
    """
    from collapsekit.report import report  # before training starts, so that a missing extra is named at once

    config = config or TrainConfig()
    try:
        with progress("training") as show:
            run = run_training(config, out=out, resume=resume, device=device, progress=show)
    except KeyboardInterrupt:
        stderr.print("The run can be resumed: repeat the command with --resume.", highlight=False)
        raise
    page, comparison = report(run), compare_run(run)
    if json:
        print_json(as_dict(run, comparison, page))
    else:
        print_comparison(comparison)
        print_note(comparison.verdict)
        if not math.isnan(run.horizon):
            print_note(f"With these steps {horizon_sentence(run.horizon)}.")
        print_note(f"report: {page}")


def as_dict(run: Run, comparison: Comparison, page: Path) -> dict[str, Any]:
    """Return what `--json` prints."""
    return comparison.to_dict() | {"run": str(run.folder), "report": str(page), "horizon": run.horizon}


def print_comparison(comparison: Comparison) -> None:
    """Print one row a class, predicted beside measured; without a prediction the measured columns alone."""
    classes, columns = comparison.classes, list[Column]()
    for header, key, form in NUMBERS:
        values = [getattr(finding, key) for finding in classes]
        words = [format(value, form) if math.isfinite(value) else "" for value in values]
        if any(words):  # else there is no prediction, or no held-out set
            columns.append((header if comparison.outside is None else header.removesuffix("\nmeasured"), words, ""))
    if comparison.outside is None:
        columns.append(("prediction", [one.agreement.removesuffix(" the prediction") for one in classes], ""))
    labels, statuses = [one.label for one in classes], [one.status for one in classes]
    print_classes([("class", labels, ""), *columns, ("status", statuses, "")], DROP)


NUMBERS = (  # z: no minus before nothing
    ("count", "count", "d"),
    ("confidence\npredicted", "predicted_confidence", "z.4f"),
    ("confidence\nmeasured", "measured_confidence", "z.4f"),
    ("margin\npredicted", "predicted_margin", "z.3f"),
    ("margin\nmeasured", "margin", "z.3f"),
    ("‖h‖²\npredicted", "predicted_feature_sqnorm", "z.4g"),
    ("‖h‖²\nmeasured", "feature_sqnorm", "z.4g"),
    ("‖w‖²\npredicted", "predicted_classifier_sqnorm", "z.4g"),
    ("‖w‖²\nmeasured", "classifier_sqnorm", "z.4g"),
    ("recall", "recall", "z.3f"),
    ("held-out\nrecall", "test_recall", "z.3f"),
)
LENGTHS = [f"{what}{side}" for what in ("‖w‖²", "‖h‖²", "margin") for side in ("\npredicted", "\nmeasured", "")]
# what a narrow terminal goes without, in this order; never class, count, measured confidence and status
DROP = (*LENGTHS, "recall", "held-out\nrecall", "confidence\npredicted", "prediction")
