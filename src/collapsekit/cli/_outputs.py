"""What a command writes is checked before the work: it replaces nothing that the command reads, and can be written."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any

from collapsekit import CollapseError, files


def check_output(flag: str, path: Path, read: Iterable[str | Path | None]) -> None:
    """Refuse the name of an output that is one of the files read, no file, or in no folder that can be written.

    Parameters
    ----------
    flag : str
        What the output is named with, with its dashes.
    path : Path
        The output.
    read : iterable of path
        What is read; a folder stands for the files in it, None for nothing.

    Raises
    ------
    CollapseError
        In one line that names the flag.
    """
    if any(_same(path, one) for one in read if one is not None):
        raise CollapseError(f"{flag}={str(path)!r}: is read by this command and would be lost; give another name")
    mode = path.lstat().st_mode if os.path.lexists(path) else None
    if mode is not None and not stat.S_ISREG(mode):
        what = files.KINDS.get(stat.S_IFMT(mode), "a device, pipe or socket")
        raise CollapseError(f"{flag}={str(path)!r}: is {what}; give the name of a file")
    if not path.parent.is_dir():
        raise CollapseError(f"{flag}={str(path)!r}: there is no folder {str(path.parent)!r}; make it, or give another")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise CollapseError(f"{flag}={str(path)!r}: nothing can be written in that folder; give another")


def same(one: str | Path, other: str | Path) -> bool:
    """Return whether two names are those of one file, also of one that is not there yet."""
    if os.path.exists(one) and os.path.exists(other):
        return os.path.samefile(one, other)
    return os.path.realpath(one) == os.path.realpath(other)


def pages(name: str) -> Any:
    """Return the module of `report` that writes a page, or say what it needs."""
    try:
        return import_module(f"collapsekit.report.{name}")
    except ModuleNotFoundError as missing:
        raise CollapseError(
            f"--html: {missing.name} is not installed; run: pip install 'collapsekit[report,torch]'"
        ) from None


def fresh(name: str) -> str:
    """Return a name like this one of a file that is not there yet: what is advised replaces nothing."""
    stem, end = os.path.splitext(name)
    return next(one for i in count(1) if not os.path.lexists(one := name if i == 1 else f"{stem}-{i}{end}"))


def _same(path: Path, read: str | Path) -> bool:
    return same(path, read) or (os.path.isdir(read) and path.exists() and same(path.parent, read))
