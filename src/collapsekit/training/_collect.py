"""collect: one row for every run below a folder, finished or not, beside its prediction; as JSON, CSV or Parquet."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from collapsekit import files
from collapsekit.diagnosis import compare
from collapsekit.diagnosis.status import Status
from collapsekit.errors import CollapseError
from collapsekit.training import runs, store
from collapsekit.training._config import TrainConfig
from collapsekit.training._sweep import Outcome
from collapsekit.training.runs import Run
from collapsekit.validation import known, numeric

Row = dict[str, Any]
"""One run: ``run``, ``status``, ``reason``, ``step``, the fields of its configuration, and what was found."""

COMPARED = (
    "objective",
    "predicted_objective",
    "objective_excess",
    "largest_deviation",
    "feature_norm_error",
    "classifier_norm_error",
    "largest_cosine",
    "mean_cosine",
    "train_accuracy",
    "same_classes_collapsed",
    "reached",
    "outside",
)
STATUSES: dict[str, Status] = {"measured_collapsed": "lost", "never_predicted": "never predicted", "weak": "weak"}
"""How many classes have a status, by key."""
FOUND = ("predicted_collapsed", *STATUSES, *COMPARED, "balanced_accuracy", "times_threshold", "basis", "gap", "seconds")
SHOWN: Any = {"encoding": "utf-8", "errors": "backslashreplace"}
"""A path may hold bytes outside UTF-8."""
UNVERIFIABLE = "unverifiable: stored before runs had checksums"
SUFFIXES = (".json", ".csv", ".parquet")


def collect(folder: str | os.PathLike[str]) -> list[Row]:
    """Return one row for every run below a folder; also while runs are under way.

    Parameters
    ----------
    folder : path
        As given to ``sweep`` or ``train`` as `out`.

    Returns
    -------
    list of dict
        In the order of the folders' names, all with the same keys: ``run`` (the folder's name); ``status``
        (``finished``, ``running``, ``stopped``, which can be resumed, ``failed`` or ``damaged``); ``reason`` of the
        last two, or that a finished run is unverifiable, because it was stored without checksums; ``step``, the last
        that was evaluated; the fields of TrainConfig; ``predicted_collapsed``, ``measured_collapsed`` (lost),
        ``never_predicted`` and ``weak``, numbers of classes; those of :class:`Comparison`; ``balanced_accuracy`` on
        held-out samples; ``times_threshold``, λ_W λ_H as a multiple of the smallest threshold; ``basis`` and ``gap``
        of the prediction; ``seconds`` of training since it was last resumed. What a run does not have, or is no finite
        number, is None.

    Raises
    ------
    CollapseError
        If there is no such folder or no run in it.

    Examples
    --------
    >>> import tempfile
    >>> from collapsekit.training import TrainConfig, train
    >>> with tempfile.TemporaryDirectory() as out:
    ...     _ = train(TrainConfig(epochs=2, hidden=(8,), feature_dim=8), out=out)
    ...     [(row["status"], row["step"], row["seed"], row["predicted_collapsed"]) for row in collect(out)]
    [('finished', 2, 0, 2)]
    """
    place = Path(folder)
    if not place.is_dir():
        raise CollapseError(f"folder={str(folder)!r}: there is no such folder; give the one that sweep or train wrote")
    try:
        rows = [_row(path) for path in _run_folders(place)]
    except OSError as error:
        raise CollapseError(f"folder={str(folder)!r}: {error.strerror}; give one that can be read") from None
    if not rows:
        raise CollapseError(f"folder={str(folder)!r}: holds no run; give the one that sweep or train wrote")
    return rows


def write_table(rows: Sequence[Row], path: str | os.PathLike[str]) -> None:
    """Write rows as JSON, CSV or Parquet, by the suffix; a reader sees the old file or the new one, never a part.

    Lists are JSON texts in CSV, where None is an empty cell.

    Raises
    ------
    CollapseError
        If the suffix is another, the file cannot be written, or Parquet lacks its extra.
    """
    target = Path(path)
    if target.suffix not in SUFFIXES:
        raise CollapseError(
            f"out={str(path)!r}: tables are written as {', '.join(SUFFIXES)}; give one of these suffixes"
        )
    if target.suffix == ".parquet":
        content = _parquet(rows)
    else:
        content = (_csv(rows) if target.suffix == ".csv" else json.dumps(rows, indent=1) + "\n").encode(**SHOWN)
    files.replace(target, content)


def _run_folders(place: Path) -> list[Path]:
    """Folders that look like a run's; one that holds nothing but a lock is about to become one."""
    folders = sorted(path for path in place.iterdir() if path.is_dir())
    return [path for path in folders if {entry.name for entry in path.iterdir()}.intersection(store.FILES)]


def _row(folder: Path) -> Row:
    row: Row = dict.fromkeys(("run", "status", "reason", "step", *TrainConfig.__dataclass_fields__, *FOUND))
    row["run"] = folder.name
    try:
        config = TrainConfig.from_dict(store.read_json(folder / store.CONFIG))
        runs.require_own_name(folder, config)
        row |= {name: getattr(config, name) for name in TrainConfig.__dataclass_fields__}
        row["step"] = store.last_step(folder)
        row |= _state(folder)
    except Exception as error:  # whatever a file holds, the other rows are shown
        reason = str(error) if isinstance(error, CollapseError) else f"{folder}: {type(error).__name__}: {error}"
        row |= {"status": "running" if store.in_use(folder) else "damaged", "reason": " ".join(reason.split())}
    return {key: known(value) for key, value in row.items()}


def failed_row(outcome: Outcome, row: Row | None = None) -> Row:
    """Return the row of a run that a sweep could not finish: what is stored of it, nothing found, the reason."""
    row = row or dict.fromkeys(("run", "status", "reason", "step"))
    config = {name: known(getattr(outcome.config, name)) for name in TrainConfig.__dataclass_fields__}
    state = {"run": outcome.folder.name, "status": "failed", "reason": outcome.reason}
    return row | config | dict.fromkeys(FOUND) | state


def _state(folder: Path) -> Row:
    if (folder / store.ENVIRONMENT).exists():
        run = runs.load_run(folder)
        return {"status": "finished", "reason": UNVERIFIABLE if run.unverifiable else None} | _found(run)
    if store.in_use(folder):
        return {"status": "running"}
    if (folder / store.FAILURE).exists():
        return {"status": "failed", "reason": store.read_json(folder / store.FAILURE).get("reason")}
    return {"status": "stopped"}


def _found(run: Run) -> Row:
    frame = run.prediction
    comparison = compare(frame, run.measured, test_recalls=run.test_recalls, outside=run.outside or "")
    found = {name: getattr(comparison, name) for name in COMPARED}
    words = [finding.status for finding in comparison.classes]
    found |= {key: words.count(word) for key, word in STATUSES.items()}
    found["balanced_accuracy"], seconds = run.balanced_accuracy, run.environment["seconds"]
    found["seconds"] = None if seconds is None else float(numeric(f"run: {run.folder}: seconds", seconds))
    if frame is not None:
        found["predicted_collapsed"] = int(frame.collapses.sum())
        least = float(frame.headroom.min())
        found["times_threshold"] = None if math.isnan(least) else 1 / least
        found["basis"], found["gap"] = frame.basis.value, frame.gap
    return found


def _shown(value: Any) -> Any:
    return value.encode(**SHOWN).decode() if isinstance(value, str) else value


def _csv(rows: Sequence[Row]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(dict.fromkeys(key for row in rows for key in row)))
    writer.writeheader()
    writer.writerows({key: _cell(value) for key, value in row.items()} for row in rows)
    return text.getvalue()


def _cell(value: Any) -> Any:
    """Lists as JSON; an apostrophe keeps spreadsheets from reading a text as a formula."""
    if isinstance(value, list | dict):
        return json.dumps(value)
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def _parquet(rows: Sequence[Row]) -> bytes:
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError as missing:
        raise CollapseError(
            f"out: {missing.name} is not installed, which Parquet needs; run: pip install 'collapsekit[parquet]'"
        ) from None
    buffer = io.BytesIO()
    shown = [{key: _shown(value) for key, value in row.items()} for row in rows]
    parquet.write_table(pyarrow.Table.from_pylist(shown), buffer)
    return buffer.getvalue()
