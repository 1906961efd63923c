"""`collapsekit train`: train a network on imbalanced data and lay it beside the prediction."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from collapsekit.cli.console import print_json, print_note, print_table, stderr
from collapsekit.diagnosis import Comparison, compare_run
from collapsekit.training import Run, TrainConfig
from collapsekit.training import train as run_training

HEADERS = (
    "class",
    "count",
    "confidence\npredicted",
    "\nmeasured",
    "margin\npredicted",
    "\nmeasured",
    "‖h‖²\npredicted",
    "\nmeasured",
    "‖w‖²\npredicted",
    "\nmeasured",
    "test\nrecall",
    "status",
)


def train(
    *,
    config: Annotated[TrainConfig | None, Parameter(name="*")] = None,
    out: Path = Path("runs"),
    resume: bool = False,
    device: str = "cpu",
    json: bool = False,
) -> None:
    """Train a network on imbalanced data, measure its last layer, and lay it beside the predicted geometry.

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
        _print(run, comparison, page)


def as_dict(run: Run, comparison: Comparison, page: Path) -> dict[str, Any]:
    """Return what `--json` prints."""
    return comparison.to_dict() | {"run": str(run.folder), "report": str(page)}


def _report_writer() -> Any:
    """The report is imported before training starts, so that a missing extra is named at once."""
    from collapsekit.report import report

    return report


def _trained(config: TrainConfig, out: Path, resume: bool, device: str) -> Run:
    columns = (
        TextColumn("training"),
        BarColumn(),
        TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
        TextColumn("{task.fields[objective]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    # Without a terminal a bar would be written once, at its end: nothing is better.
    bar = Progress(*columns, console=stderr) if stderr.is_terminal else None
    with bar or nullcontext():
        task = bar.add_task("training", total=config.epochs, objective="") if bar else None

        def advance(step: int, total: int, objective: float) -> None:
            if bar is not None and task is not None:
                bar.update(task, completed=step, total=total, objective=f"objective {objective:.6g}")

        return run_training(config, out=out, resume=resume, device=device, progress=advance)


def _print(run: Run, comparison: Comparison, page: Path) -> None:
    rows = [
        (
            c.label,
            str(c.count),
            f"{c.predicted_confidence:.4f}",
            f"{c.measured_confidence:.4f}",
            f"{c.predicted_margin:.3f}",
            f"{c.margin:.3f}",
            f"{c.predicted_feature_sqnorm:.4g}",
            f"{c.feature_sqnorm:.4g}",
            f"{c.predicted_classifier_sqnorm:.4g}",
            f"{c.classifier_sqnorm:.4g}",
            "" if c.test_recall is None else f"{c.test_recall:.3f}",
            c.status,
        )
        for c in comparison.classes
    ]
    print_table(HEADERS, rows, muted=[c.status != "alive" for c in comparison.classes])
    print_note(comparison.verdict)
    print_note(f"report: {page}")
