"""One page for whoever owns a model: verdict, classes by name, what to do, pictures, in this order, for every door."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes

from collapsekit import __version__, files
from collapsekit.errors import CollapseError
from collapsekit.report._report import render

IN_SIGHT = 30
"""Rows of a table in sight; more are scrolled to, and printed."""
MOST_ROWS = 1000
"""Rows of a table in the page; what is left out is said."""


@dataclass(frozen=True)
class Table:
    """A table with one row a class or method; `words` are headers of columns of words, `lost` rows that are grey."""

    heading: str
    caption: str
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: Collection[str] = ()
    lost: Collection[int] = ()
    omitted: str = ""


@dataclass(frozen=True)
class Advice:
    """What to do: a sentence, a line to type or paste, and what it rests on."""

    sentence: str
    remedy: str = ""
    severity: str = ""
    more: str = ""


@dataclass(frozen=True)
class Sheet:
    """The words of a page; `missed` where the verdict is bad news."""

    title: str
    verdict: Sequence[str]
    missed: bool
    tables: Sequence[Table]
    notes: Sequence[str] = ()
    advice: Sequence[Advice] = ()


def write(sheet: Sheet, pictures: Iterable[tuple[str, Axes]], path: str | os.PathLike[str]) -> Path:
    """Write a page with its pictures, each a sentence and axes, to a file, and return where it is.

    Raises
    ------
    CollapseError
        If the file cannot be written.
    """
    target = Path(path)
    if target.is_dir():
        raise CollapseError(f"html={str(target)!r}: is a folder; give a file name")
    files.replace(target, render("sheet.html.j2", pictures, sheet=sheet, in_sight=IN_SIGHT, version=__version__))
    return target
