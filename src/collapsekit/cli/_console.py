"""What every command shares: results on stdout, progress and errors on stderr, one line an error."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, Task, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from collapsekit.validation import UNPRINTABLE, printable, short

stderr = Console(stderr=True)

SOON, QUIET = 2.0, 30.0
"""Seconds after which work shows a bar on a terminal, and between two lines about it elsewhere."""
Advance = Callable[[float, float, str], None]
"""Called as ``advance(done, total, note)``."""
MOST_ROWS = 40
"""A table of more classes shows the first, the last, and both sides of where their status changes."""
GONE = ("collapses", "lost", "never predicted")
"""Classes of this status are dimmed."""
NEAR = 5
"""So many rows before and after such a boundary are shown."""


def shown_rows(words: Sequence[str]) -> list[int]:
    """Return which classes a table shows; of more than two changes of their status the first and the last."""
    size = len(words)
    if size <= MOST_ROWS:
        return list(range(size))
    borders = [k for k in range(1, size) if words[k] != words[k - 1]]
    inner = [k for border in {*borders[:1], *borders[-1:]} for k in range(border - NEAR, border + NEAR)]
    end = (MOST_ROWS - len(inner)) // 2
    return sorted({*range(end), *range(size - end, size), *(k for k in inner if 0 <= k < size)})


@contextmanager
def progress(what: str) -> Iterator[Advance]:
    """Show on stderr how far work is: a bar with the remaining time on a terminal, a line now and then elsewhere."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"))
    bar = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=stderr, transient=True)
    task = bar.add_task(what, total=None, note="")
    ended = threading.Event()

    def show() -> None:
        if stderr.is_terminal:
            if not ended.wait(SOON):
                bar.start()
        else:
            while not ended.wait(QUIET):
                stderr.print(Text(_line(bar.tasks[0])), soft_wrap=True)

    shower = threading.Thread(target=show, daemon=True)
    shower.start()
    try:
        yield lambda done, total, note: bar.update(task, completed=done, total=total, note=note)
    finally:
        ended.set()
        shower.join()
        if bar.live.is_started:  # else it would write an empty line
            bar.stop()


def _line(task: Task) -> str:
    """One line about work under way: what, how far, how long it took and will take."""
    left = "" if task.time_remaining is None else f", about {task.time_remaining:.0f} s left"
    return f"{task.description}{' ' * bool(task.fields['note'])}{task.fields['note']}: {task.elapsed:.0f} s{left}"


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
    """Print a sentence on stdout, as it stands; a terminal breaks it between words."""
    console = Console(highlight=False)
    console.print(Text(printable(message)), soft_wrap=not console.is_terminal)


def print_classes(
    headers: Sequence[str], row: Callable[[int], Sequence[str]], words: Sequence[str], drop: Sequence[str] = ()
) -> None:
    """Print one row a class, `row(k)`, on stdout; `words` are their statuses. `drop`: as for :func:`print_table`."""
    shown = shown_rows(words)
    cells, muted, empty = [], [], [""] * (len(headers) - 1)
    for before, k in zip([-1, *shown], shown, strict=False):
        if k - before > 1:
            cells.append([f"… {k - before - 1} more …", *empty])
            muted.append(False)
        name, *rest = row(k)
        cells.append([short(name), *rest])
        muted.append(words[k] in GONE)
    print_table(headers, cells, muted=muted, drop=drop)
    if len(shown) < len(words):
        print_note(f"{len(shown)} of {len(words)} classes are shown; --json prints all.")


def print_table(
    headers: Sequence[str], rows: Sequence[Sequence[str]], *, muted: Sequence[bool] = (), drop: Sequence[str] = ()
) -> None:
    """Print a table on stdout: the first and the last column are words, the others numbers; muted rows are dimmed.

    A terminal that is too narrow is spared the columns of `drop`, in their order, and told so. Redirected output is as
    wide as it needs to be, so that nothing is cut.
    """
    console, hidden = Console(highlight=False), list[int]()
    order = [headers.index(name) for name in drop]
    while True:
        kept = [i for i in range(len(headers)) if i not in hidden]
        table = _table([headers[i] for i in kept], [[row[i] for i in kept] for row in rows], muted)
        needed = Console(width=10_000).measure(table).maximum
        if not console.is_terminal or needed <= console.width or len(hidden) == len(order):
            break
        hidden.append(order[len(hidden)])
    Console(highlight=False, width=max(console.width, needed)).print(table)
    if hidden:
        words = ", ".join(headers[i].replace("\n", " ") for i in hidden)
        print_note(f"No room for {words}; a wider terminal or --json shows them.")


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]], muted: Sequence[bool]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    last = len(headers) - 1
    for i, header in enumerate(headers):
        table.add_column(Text(header), justify="left" if i in (0, last) else "right", no_wrap=True)
    for i, row in enumerate(rows):
        table.add_row(*(Text(printable(cell)) for cell in row), style="dim" if i < len(muted) and muted[i] else None)
    return table
