"""The table of an epoch, one row a class, added to a CSV or JSONL file."""

from __future__ import annotations

import csv
import io
import json
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from collapsekit import files
from collapsekit.errors import CollapseError
from collapsekit.validation import cell, known

LINES = (".jsonl", ".ndjson")


def checked_path(table: str | os.PathLike[str]) -> Path:
    """Return the path of a table that can be added to, or say why it cannot."""
    path = Path(table)
    if path.suffix not in (".csv", *LINES):
        raise CollapseError(f"table={str(path)!r}: give a name that ends in .csv or .jsonl")
    if os.path.lexists(path) and not stat.S_ISREG(path.lstat().st_mode):
        what = files.KINDS.get(stat.S_IFMT(path.lstat().st_mode), "a device, pipe or socket")
        raise CollapseError(f"table={str(path)!r}: is {what}; give the name of a file")
    if not path.parent.is_dir():
        raise CollapseError(f"table={str(path)!r}: there is no folder {str(path.parent)!r}; make it, or give another")
    return path


def append(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Add rows in one write; numbers that are not known are empty, or null.

    Raises
    ------
    CollapseError
        If the file cannot be written, or is no regular file.
    """
    rows = known(list(rows))
    if path.suffix in LINES:
        files.append(path, "\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
        return
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    if not path.exists() or not path.stat().st_size:
        writer.writeheader()
    writer.writerows({key: cell(value) for key, value in row.items()} for row in rows)
    files.append(path, text.getvalue().rstrip("\n"))
