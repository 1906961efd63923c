"""What every command shares: results on stdout, progress and errors on stderr, one line an error."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from collapsekit.validation import UNPRINTABLE, known, printable, short

stderr = Console(stderr=True)

# seconds after which work shows a bar on a terminal, and between two lines about it elsewhere
SOON, QUIET = 2.0, 30.0
# a table of more classes shows the first, the last, and NEAR rows on both sides of where their status changes
MOST_ROWS, NEAR = 40, 5
GONE = ("collapses", "lost", "never predicted")  # classes of this status are dimmed
Advance = Callable[[float, float, float | str], None]  # what is done, of how much; the objective, or words
Column = tuple[str, Any, str]  # header, one value a class, and how `format` is to write it


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
    task, ended = bar.add_task(what, total=None, note=""), threading.Event()

    def show() -> None:
        if stderr.is_terminal and not ended.wait(SOON):
            bar.start()
        while not (stderr.is_terminal or ended.wait(QUIET)):
            left = bar.tasks[0].time_remaining
            rest = "" if left is None else f", about {left:.0f} s left"
            line = f"{what}{bar.tasks[0].fields['note']}: {bar.tasks[0].elapsed:.0f} s{rest}"
            stderr.print(Text(line), soft_wrap=True)

    shower = threading.Thread(target=show, daemon=True)
    shower.start()
    try:
        yield lambda done, total, what: bar.update(
            task,
            completed=done,
            total=total,
            note=f" {done:.0f}/{total:.0f} {what}"
            if isinstance(what, str)
            else f" step {done}/{total}, objective {what:.6g}",
        )
    finally:
        ended.set()
        shower.join()
        if bar.live.is_started:  # else it would write an empty line
            bar.stop()


def print_json(content: dict[str, Any]) -> None:
    """Print one JSON object on stdout; what is no finite number is null, what steers a terminal is escaped."""
    text = json.dumps(known(content), ensure_ascii=False, allow_nan=False)
    print(UNPRINTABLE.sub(lambda match: f"\\u{ord(match[0]):04x}", text))


def print_error(message: str) -> None:
    """Print one line on stderr, as it stands: user text is never read as markup."""
    stderr.print(Text(printable(" ".join(f"collapsekit: {message}".split()))), soft_wrap=True)


def print_note(message: str, *, whole: bool = False) -> None:
    """Print a sentence on stdout, as it stands; a terminal breaks it between words, unless it is to be pasted whole."""
    console = Console(highlight=False)
    console.print(Text(printable(message)), soft_wrap=whole or not console.is_terminal)


def cells(columns: Sequence[Column], k: int) -> list[str]:
    """Return class k in words."""
    return [format(values[k], form) for _, values, form in columns]


def print_classes(columns: Sequence[Column], drop: Sequence[str] = ()) -> None:
    """Print one row a class on stdout; the last column is its status. `drop`: as for :func:`print_table`."""
    words = columns[-1][1]
    shown, rows = shown_rows(words), list[list[str]]()
    for before, k in zip([-1, *shown], shown, strict=False):
        if k - before > 1:
            rows.append([f"… {k - before - 1} more …", *[""] * (len(columns) - 1)])
        name, *rest = cells(columns, k)
        rows.append([short(name), *rest])
    print_table([header for header, _, _ in columns], rows, muted=[row[-1] in GONE for row in rows], drop=drop)
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
    of_name = {name: [i for i, header in enumerate(headers) if header == name] for name in drop}
    for i in [*(of_name[name].pop() for name in drop if of_name[name]), None]:  # two columns may have one name
        table = _table(headers, rows, muted, hidden)
        needed = Console(width=10_000).measure(table).maximum
        if not console.is_terminal or needed <= console.width or i is None:
            break
        hidden.append(i)
    Console(highlight=False, width=max(console.width, needed)).print(table)
    if hidden:
        words = ", ".join(headers[i].replace("\n", " ") for i in hidden)
        print_note(f"No room for {words}; a wider terminal or --json shows them.")


def _table(
    headers: Sequence[str], rows: Sequence[Sequence[str]], muted: Sequence[bool], hidden: Sequence[int]
) -> Table:
    table, ends = Table(box=None, pad_edge=False, header_style="bold"), (0, len(headers) - 1)
    kept = [i for i in range(len(headers)) if i not in hidden]
    for i in kept:
        table.add_column(Text(headers[i]), justify="left" if i in ends else "right", no_wrap=True)
    for row, is_muted in zip_longest(rows, muted):
        table.add_row(*(Text(printable(row[i])) for i in kept), style="dim" if is_muted else None)
    return table
