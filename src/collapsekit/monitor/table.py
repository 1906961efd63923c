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
from collapsekit.validation import cell, known, shorten

LINES = (".jsonl", ".ndjson")
COLUMNS = ("epoch", "class", "count", "status", "dying", "recall", "confidence", "margin", "loss")


def checked_path(table: str | os.PathLike[str]) -> Path:
    """Return the path of a table that can be added to, or say why it cannot."""
    try:
        path = Path(table)
    except TypeError:
        raise CollapseError(f"table={shorten(table)}: give a name that ends in .csv or .jsonl") from None
    if path.suffix not in (".csv", *LINES):
        raise CollapseError(f"table={str(path)!r}: give a name that ends in .csv or .jsonl")
    if os.path.lexists(path) and not stat.S_ISREG(path.lstat().st_mode):
        what = files.KINDS.get(stat.S_IFMT(path.lstat().st_mode), "a device, pipe or socket")
        raise CollapseError(f"table={str(path)!r}: is {what}; give the name of a file")
    if not path.parent.is_dir():
        raise CollapseError(f"table={str(path)!r}: there is no folder {str(path.parent)!r}; make it, or give another")
    if path.exists() and not _holds_rows(path):
        raise CollapseError(f"table={str(path)!r}: holds another table; give the name of a new file")
    return path


def _holds_rows(path: Path) -> bool:
    """Whether a file is empty, or begins as one to which an epoch was added."""
    start = b'{"epoch": ' if path.suffix in LINES else ",".join(COLUMNS).encode()
    with files.writing(path), files.opened(path, os.O_RDONLY) as file:
        return file.read(len(start)) in (b"", start)


def _unfinished(path: Path) -> bool:
    """Whether the last line of a file has no end, as a process that was killed may leave it."""
    if not path.exists() or not path.stat().st_size:
        return False
    with files.writing(path), files.opened(path, os.O_RDONLY) as file:
        file.seek(-1, os.SEEK_END)
        return file.read() != b"\n"


def append(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Add rows in one write; numbers that are not known are empty, or null.

    Raises
    ------
    CollapseError
        If the file cannot be written, or is no regular file.
    """
    rows, text = known(list(rows)), io.StringIO()
    if _unfinished(path):
        text.write("\n")
    if path.suffix in LINES:
        text.write("\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    else:
        writer = csv.DictWriter(text, fieldnames=COLUMNS, lineterminator="\n")
        if not path.exists() or not path.stat().st_size:
            writer.writeheader()
        writer.writerows({key: cell(value) for key, value in row.items()} for row in rows)
    files.append(path, text.getvalue().removesuffix("\n"))
