"""`collapsekit train`: train a network on imbalanced data and lay it beside the prediction."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from collapsekit.cli._console import print_classes, print_json, print_note, progress, stderr
from collapsekit.diagnosis import ClassFinding, Comparison
from collapsekit.training import Run, TrainConfig, compare_run
from collapsekit.training import train as run_training

Column = tuple[str, Callable[[ClassFinding], str], bool]
"""Header, how to print a class, and whether it is a prediction."""


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
    config = config or TrainConfig()
    report = _report_writer()
    try:
        run = _trained(config, out, resume, device)
    except KeyboardInterrupt:
        stderr.print("The run can be resumed: repeat the command with --resume.", highlight=False)
        raise
    page = report(run)
    comparison = compare_run(run)
    if json:
        print_json(as_dict(run, comparison, page))
    else:
        print_comparison(comparison)
        print_note(comparison.verdict)
        print_note(f"report: {page}")


def as_dict(run: Run, comparison: Comparison, page: Path) -> dict[str, Any]:
    """Return what `--json` prints."""
    return comparison.to_dict() | {"run": str(run.folder), "report": str(page)}


def _report_writer() -> Any:
    """The report is imported before training starts, so that a missing extra is named at once."""
    from collapsekit.report import report

    return report


def _trained(config: TrainConfig, out: Path, resume: bool, device: str) -> Run:
    with progress("training") as show:

        def advance(step: int, total: int, objective: float) -> None:
            show(step, total, f"step {step}/{total}, objective {objective:.6g}")

        return run_training(config, out=out, resume=resume, device=device, progress=advance)


def print_comparison(comparison: Comparison) -> None:
    """Print one row a class, predicted beside measured; without a prediction the measured columns alone."""
    predicted, classes = comparison.outside is None, comparison.classes
    columns = [column for column in COLUMNS if predicted or not column[2]]
    if all(math.isnan(finding.test_recall) for finding in classes):
        columns.remove(TEST_RECALL)
    # Without a prediction "measured" says nothing.
    headers = [name if predicted else name.replace("\nmeasured", "") for name, *_ in columns]
    statuses, drop = [finding.status for finding in classes], [header for header in DROP if header in headers]
    print_classes(headers, lambda k: [show(classes[k]) for _, show, _ in columns], statuses, drop)


def _number(value: float, form: str) -> str:
    return format(value, f"z{form}") if math.isfinite(value) else ""  # z: no minus before nothing


def _column(header: str, key: str, form: str, *, prediction: bool = False) -> Column:
    return header, lambda finding: _number(getattr(finding, key), form), prediction


TEST_RECALL = _column("held-out\nrecall", "test_recall", ".3f")
COLUMNS: list[Column] = [
    ("class", lambda finding: finding.label, False),
    ("count", lambda finding: str(finding.count), False),
    _column("confidence\npredicted", "predicted_confidence", ".4f", prediction=True),
    _column("confidence\nmeasured", "measured_confidence", ".4f"),
    _column("margin\npredicted", "predicted_margin", ".3f", prediction=True),
    _column("margin\nmeasured", "margin", ".3f"),
    _column("‖h‖²\npredicted", "predicted_feature_sqnorm", ".4g", prediction=True),
    _column("‖h‖²\nmeasured", "feature_sqnorm", ".4g"),
    _column("‖w‖²\npredicted", "predicted_classifier_sqnorm", ".4g", prediction=True),
    _column("‖w‖²\nmeasured", "classifier_sqnorm", ".4g"),
    _column("recall", "recall", ".3f"),
    TEST_RECALL,
    ("prediction", lambda finding: finding.agreement.removesuffix(" the prediction"), True),
    ("status", lambda finding: finding.status, False),
]
LENGTHS = [f"{what}{side}" for what in ("‖w‖²", "‖h‖²", "margin") for side in ("\npredicted", "\nmeasured", "")]
DROP = (*LENGTHS, "recall", "held-out\nrecall", "confidence\npredicted", "prediction")
"""What a narrow terminal goes without, in this order; never class, count, measured confidence and status."""
