"""`collapsekit collect`: one table of all runs below a folder, also while they run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from collapsekit.cli._console import print_json, print_note, print_table
from collapsekit.training import TrainConfig, write_table
from collapsekit.training import collect as collect_rows

COLUMNS = (
    ("step", "step", "d"),
    ("collapsed\npredicted", "predicted_collapsed", "d"),
    ("collapsed\nmeasured", "measured_collapsed", "d"),
    ("never\npredicted", "never_predicted", "d"),
    ("largest\ndeviation", "largest_deviation", ".1e"),
    ("balanced\naccuracy", "balanced_accuracy", ".3f"),
)


def collect(folder: Path, /, *, out: Path | None = None, json: bool = False) -> None:
    """Show every run below a folder, predicted beside measured; also while runs are under way.

    Example: collapsekit collect runs --out runs.csv

    Parameters
    ----------
    folder : Path
        As given to sweep or train as --out.
    out : Path
        Write the whole table here, as .json, .csv or .parquet.
    json : bool
        Print one JSON object.
    """
    rows = collect_rows(folder)
    if out is not None:
        write_table(rows, out)
    if json:
        print_json({"schema": 1, "out": str(folder), "runs": rows})
        return
    readable = [row for row in rows if row["data"] is not None]
    varied = [name for name in TrainConfig.__dataclass_fields__ if len({str(row[name]) for row in readable}) > 1]
    print_rows(rows, varied)
    states = Counter(row["status"] for row in rows)
    print_note("; ".join(f"{number} {status}" for status, number in states.items()) + ".")
    if out is not None:
        print_note(f"table: {out}")


def print_rows(rows: Sequence[dict[str, Any]], varied: Sequence[str]) -> None:
    """Print one row a run: folder, the fields in which runs differ, what was found, status; then the reasons."""
    headers = ("run", *(name.replace("_", "\n") for name in varied), *(header for header, _, _ in COLUMNS), "status")
    muted = [row["status"] != "finished" for row in rows]
    print_table(headers, [_cells(row, varied) for row in rows], muted=muted, drop=headers[-2:0:-1])
    for row in rows:
        if row["reason"] is not None:
            print_note(f"{row['run']} {row['status']}: {row['reason']}")


def _cells(row: dict[str, Any], varied: Sequence[str]) -> list[str]:
    found = ["" if row[key] is None else format(row[key], form) for _, key, form in COLUMNS]
    return [row["run"], *("" if row[name] is None else str(row[name]) for name in varied), *found, row["status"]]
