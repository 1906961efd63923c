"""What every command shares: results on stdout, progress and errors on stderr, one line an error."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from collapsekit.validation import UNPRINTABLE, printable

stderr = Console(stderr=True)

MOST_ROWS = 40
"""A table of more classes shows its head and its tail; --json has all."""


def shown_rows(num_classes: int) -> list[int]:
    """Return which classes a table shows."""
    if num_classes <= MOST_ROWS:
        return list(range(num_classes))
    half = MOST_ROWS // 2
    return [*range(half), *range(num_classes - half, num_classes)]


def print_json(content: dict[str, Any]) -> None:
    """Print one JSON object on stdout; what is no finite number is null, what steers a terminal is escaped."""
    text = json.dumps(_finite(content), ensure_ascii=False, allow_nan=False)
    print(UNPRINTABLE.sub(lambda match: f"\\u{ord(match[0]):04x}", text))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_error(message: str) -> None:
    """Print one line on stderr, as it stands: user text is never read as markup."""
    stderr.print(Text(printable(" ".join(f"collapsekit: {message}".split()))), soft_wrap=True)


def print_note(message: str) -> None:
    """Print a sentence on stdout, as it stands."""
    Console(highlight=False).print(Text(printable(message)), soft_wrap=True)


def print_table(headers: Sequence[str], rows: Sequence[Sequence[str]], *, muted: Sequence[bool] = ()) -> None:
    """Print a table on stdout: the first and the last column are words, the others numbers; muted rows are dimmed.

    Redirected output is as wide as it needs to be, so that nothing is cut.
    """
    table = _table(headers, rows, muted)
    console = Console(highlight=False)
    needed = console.measure(table).maximum if console.is_terminal else _width(table)
    Console(highlight=False, width=max(console.width, needed)).print(table)


def fitting(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> list[int]:
    """Return which columns of a table a terminal has room for: first and last always, of the others the first ones."""
    kept = list(range(len(headers)))
    console = Console()
    while console.is_terminal and len(kept) > 2:
        shown = _table([headers[i] for i in kept], [[row[i] for i in kept] for row in rows])
        if _width(shown) <= console.width:
            break
        del kept[-2]
    return kept


def _width(table: Table) -> int:
    return Console(width=10_000).measure(table).maximum


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]], muted: Sequence[bool] = ()) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    last = len(headers) - 1
    for i, header in enumerate(headers):
        table.add_column(Text(header), justify="left" if i in (0, last) else "right", no_wrap=i != last)
    for i, row in enumerate(rows):
        table.add_row(*(Text(printable(cell)) for cell in row), style="dim" if i < len(muted) and muted[i] else None)
    return table
