"""`collapsekit predict`: which classes a recipe will lose, from counts alone; never imports torch."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from cyclopts import Parameter

import collapsekit
from collapsekit import UFM, CollapseError
from collapsekit.cli._console import print_json, print_note, print_table, shown_rows
from collapsekit.cli._inputs import Penalties
from collapsekit.evidence import scope
from collapsekit.prediction import from_solution
from collapsekit.prediction._predict import predicted
from collapsekit.profiles import long_tail as long_tail_counts
from collapsekit.recipe import Penalty
from collapsekit.validation import shorten

NO_ACCURACY = "The prediction describes the training geometry; what it means for test accuracy has to be measured."


def predict(
    counts: Annotated[tuple[str, ...], Parameter(help="One count a class, or one file.")] = (),
    /,
    *,
    long_tail: str | None = None,
    label_column: str | None = None,
    penalties: Annotated[Penalties | None, Parameter(name="*")] = None,
    html: Path | None = None,
    json: bool = False,
) -> None:
    """Say which classes a recipe will lose, with each class's threshold and headroom.

    Give counts, and either the theory's penalties (--lambda-w, --lambda-h) or the recipe's own units
    (--weight-decay with --feature-decay or --batchnorm-branches). Without penalties only thresholds are printed.

    Example: collapsekit predict 500 300 40 10 --lambda-w 0.03 --lambda-h 0.001

    Example: collapsekit predict --long-tail 5000:50:100 --weight-decay 0.1 --batchnorm-branches 1

    Example: collapsekit predict labels.csv --label-column species --weight-decay 0.05 --batchnorm-branches 1

    Parameters
    ----------
    counts : tuple of str
        One count a class, or one file: a count a line, `name,count` a line, or a CSV with --label-column.
    long_tail : str
        LARGEST:SMALLEST:CLASSES, an exponential long tail, e.g. 5000:50:100.
    label_column : str
        Column of the CSV file whose values are the class labels; they are counted.
    html : Path
        Write a page with the table and figures, too (needs the extras report and torch).
    json : bool
        Print one JSON object.
    """
    sizes = class_sizes(counts, long_tail, label_column)
    penalties = penalties or Penalties()
    names = list(sizes) if isinstance(sizes, dict) else [str(k) for k in range(len(sizes))]
    if penalties.given:
        _print_prediction(penalties, penalties.problem(sizes), names, html, json)
    elif html is not None:
        raise CollapseError("--html: a page needs penalties; give --lambda-w and --lambda-h, or the recipe's own units")
    else:
        unit = Penalty(1.0, 1.0).problem(sizes, class_weights=penalties.class_weights, loss=penalties.loss)
        _print_thresholds(unit, names, json)


def class_sizes(words: tuple[str, ...], long_tail: str | None, label_column: str | None) -> Any:
    """Return the counts that the command line names: an array, a list, or a mapping of name to count."""
    if (long_tail is None) == (not words):
        raise CollapseError("counts: give one count a class, one file, or --long-tail LARGEST:SMALLEST:CLASSES")
    if long_tail is not None:
        parts = long_tail.split(":")
        if len(parts) != 3 or not all(part.isdecimal() for part in parts):
            raise CollapseError(f"--long-tail={shorten(long_tail)}: give LARGEST:SMALLEST:CLASSES, three whole numbers")
        return long_tail_counts(*map(int, parts))
    if label_column is not None:
        if len(words) != 1:
            raise CollapseError("--label-column: give one CSV file")
        return _label_counts(_text(words[0]), words[0], label_column)
    if len(words) == 1 and not _is_number(words[0]):
        return _file_counts(_text(words[0]), words[0])
    return [_number(word, "counts") for word in words]


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise CollapseError(f"counts={shorten(path)}: not UTF-8 text ({error.reason}); save it as UTF-8") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise CollapseError(f"counts={shorten(path)}: {reason}; give counts or a file of counts") from None


def _file_counts(text: str, path: str) -> Any:
    """A count a line, or `name,count` a line; the name may hold commas."""
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise CollapseError(f"counts={shorten(path)}: the file is empty; give a count a line")
    if any("," in line for line in lines):
        table: dict[str, float] = {}
        for number, row in enumerate(_rows(lines, path), 1):
            name, count = ",".join(row[:-1]).strip(), row[-1].strip()
            if name in table:
                raise CollapseError(f"counts={shorten(path)}, line {number}: class {shorten(name)} occurs twice")
            table[name] = _number(count, f"counts={shorten(path)}, line {number}")
        return table
    return [_number(line.strip(), f"counts={shorten(path)}, line {i}") for i, line in enumerate(lines, 1)]


def _label_counts(text: str, path: str, column: str) -> dict[str, int]:
    rows = _rows(text.splitlines(), path)
    header = rows[0] if rows else []
    if column not in header:
        raise CollapseError(
            f"--label-column={shorten(column)}: not in {shorten(path)}; its columns are {shorten(header)}"
        )
    where = header.index(column)
    labels: Counter[str] = Counter()
    for number, row in enumerate(rows[1:], 2):
        if not row:
            continue
        label = row[where].strip() if where < len(row) else ""
        if not label:
            raise CollapseError(f"--label-column={shorten(column)}: row {number} of {shorten(path)} has no label")
        labels[label] += 1
    return dict(labels.most_common())


def _rows(lines: list[str], path: str) -> list[list[str]]:
    try:
        return list(csv.reader(lines))
    except csv.Error as error:
        raise CollapseError(f"counts={shorten(path)}: not a CSV file ({error})") from None


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _number(word: str, where: str) -> float:
    if not _is_number(word):
        raise CollapseError(f"{where}: {shorten(word)} is not a number; give one count a class")
    return float(word)


def _print_thresholds(unit: UFM, names: list[str], json: bool) -> None:
    limits = collapsekit.thresholds(unit)
    if json:
        content = limits.to_dict()
        for key in ("headroom", "critical_count"):  # they depend on penalties, and none were given
            del content[key]
        print_json(content | {"labels": names, "counts": unit.counts.astype(int).tolist()})
        return
    print_table(
        ("class", "count", "dies at λ_W λ_H ≥", ""),
        [
            (names[k], f"{unit.counts[k]:.0f}", f"{limits.critical_product[k]:.6g}", "")
            for k in shown_rows(unit.num_classes)
        ],
    )
    print_note(
        f"The first class dies at λ_W λ_H = {limits.minority_collapse:.6g}, the last at "
        f"{limits.complete_collapse:.6g}. Give penalties to see confidences and headroom."
    )


def _print_prediction(penalties: Penalties, problem: UFM, names: list[str], html: Path | None, json: bool) -> None:
    frame = predicted(problem)
    if isinstance(frame, str):
        _print_solved(frame, problem, names, html, json)
        return
    limits = collapsekit.thresholds(problem, hold=penalties.recipe)
    ground = scope(problem, penalties.recipe)
    table = PredictionTable(frame, limits, names, penalties.weight_decay)
    summary = _summary(frame, limits, problem)
    if html is not None:
        page = pages().prediction_page
        sheet = pages().Sheet(
            title="Which classes this recipe will lose",
            verdict=[summary],
            missed=bool(frame.collapses.any()),
            caption="Each class on its training samples, predicted",
            headers=table.headers,
            rows=[table.row(k) for k in range(problem.num_classes)],
            lost=frame.collapses.tolist(),
            notes=[str(ground), NO_ACCURACY],
        )
        written = page(problem, sheet, html)
    if json:
        content = frame.to_dict() | {"labels": names, "thresholds": limits.to_dict(), "scope": ground.to_dict()}
        print_json(content | ({} if html is None else {"page": str(written)}))
        return
    shown = shown_rows(problem.num_classes)
    print_table(table.headers, [table.row(k) for k in shown], muted=[bool(frame.collapses[k]) for k in shown])
    if len(shown) < problem.num_classes:
        print_note(f"… {problem.num_classes - len(shown)} classes between are not shown; --json prints all.")
    print_note(summary)
    print_note(str(ground))
    if html is not None:
        print_note(f"page: {written}")


def _print_solved(reason: str, problem: UFM, names: list[str], html: Path | None, json: bool) -> None:
    """The prediction of what has no closed form: a certified optimum, without thresholds."""
    if html is not None:
        raise CollapseError(f"--html: a page needs thresholds; {reason}")
    found = from_solution(collapsekit.solve(problem))
    if json:
        print_json(found.to_dict() | {"labels": names, "thresholds": None, "scope": None})
        return
    table, shown = PredictionTable(found, None, names, None), shown_rows(problem.num_classes)
    print_table(table.headers, [table.row(k) for k in shown], muted=[bool(found.collapses[k]) for k in shown])
    print_note(
        f"{int(found.collapses.sum())} of {problem.num_classes} classes collapse. No thresholds ({reason}); shown is "
        f"{found.basis.value} (relative gap {found.gap:.1e})."
    )


class PredictionTable:
    """One row a class, of words."""

    def __init__(self, frame: Any, limits: Any, names: list[str], weight_decay: float | None) -> None:
        self.frame, self.limits, self.names, self.weight_decay = frame, limits, names, weight_decay

    @property
    def headers(self) -> list[str]:
        """What the columns are; a death in units of the recipe where it is given in them."""
        columns = ["class", "count", "confidence", "margin", "‖h‖²", "‖w‖²"]
        if self.limits is None:
            return [*columns, "status"]
        own = [] if self.weight_decay is None else ["dies at weight decay"]
        return [*columns, "headroom", *own, "dies at count", "status"]

    def row(self, k: int) -> list[str]:
        """Class k in words."""
        frame, limits = self.frame, self.limits
        ends = []
        if limits is not None:
            own = [] if self.weight_decay is None else [f"{self.weight_decay * limits.decay_factor[k]:.4g}"]
            ends = [f"{frame.headroom[k]:.4g}", *own, f"{limits.critical_count[k]:.4g}"]
        return [
            self.names[k],
            f"{frame.problem.counts[k]:.0f}",
            f"{frame.confidences[k]:.4f}",
            f"{frame.margins[k]:.4f}",
            f"{frame.feature_sqnorms[k]:.4g}",
            f"{frame.classifier_sqnorms[k]:.4g}",
            *ends,
            "collapses" if frame.collapses[k] else "survives",
        ]


def pages() -> Any:
    """Return the module that writes pages, or say what it needs."""
    try:
        from collapsekit.report import theory_page
    except ModuleNotFoundError as missing:
        raise CollapseError(
            f"--html: {missing.name} is not installed; run: pip install 'collapsekit[report,torch]'"
        ) from None
    return theory_page


def _summary(frame: Any, limits: Any, problem: UFM) -> str:
    dead, products = int(frame.collapses.sum()), problem.lambda_w * np.unique(problem.lambda_h)
    product = " to ".join(f"{p:.4g}" for p in dict.fromkeys((products[0], products[-1])))
    fate = f"{dead} of {problem.num_classes} classes collapse" if dead else "No class collapses"
    factor = float(np.sqrt(frame.headroom.min()))
    change = (
        f"divide both decays by more than {1 / factor:.3g} to keep every class"
        if dead
        else f"both decays may grow by a factor below {factor:.3g}"
    )
    return (
        f"{fate} at λ_W λ_H = {product} (first class dies at {limits.minority_collapse:.4g}, the last at "
        f"{limits.complete_collapse:.4g}); {change}."
    )
