"""Tables with a label column, .csv, .tsv and .parquet; short texts, one `label<TAB>text` a line, as TF-IDF."""

from __future__ import annotations

import csv
import json
import re
import warnings
from array import array
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from collapsekit.data.files import check_size, parsing
from collapsekit.data.labelled import KEEP, MISSING, LabelledData, assemble, is_missing, is_number
from collapsekit.errors import CollapseError
from collapsekit.validation import shorten

LABEL_COLUMNS = ("label", "class", "target", "y", "species")
DELIMITERS = (",", ";", "\t")
SNIFFED = 100  # rows below the header
NAMELESS = re.compile(r"|Unnamed: \d+(\.\d+)?|__index_level_\d+__")  # how pandas writes and reads an index
ENCODE = "drop the column or encode it as numbers"
FILL = "fill it in or drop the row"
BATCH = 256  # rows of Parquet that are Python's numbers at a time
MAX_TERMS = 2000
TEXT_FORMAT = "give one label<TAB>text a line"
COUNTER_ROWS = 20  # fewer rows may grow by chance

Rows = Iterator[tuple[int, list[Any]]]
Table = tuple[list[str], Rows]  # names of the columns; rows with their numbers


def read_table(path: Path, label_column: str | None, delimiter: str | None, keep_na: bool) -> LabelledData:
    """Return the rows of a .csv or .tsv (UTF-8, the first line names the columns) or a .parquet file.

    Columns without a name that come first are pandas' index and left out, as are those without any value. Messages
    count the header of a .csv as row 1. A column of lists in Parquet is as many columns.
    """
    labels, values, numbers = list[str](), array("f"), array("q")
    with _opened(path, delimiter) as (header, rows):
        label_at = label_position(header, label_column)
        nameless = [NAMELESS.fullmatch(name) is not None for name in header]
        spare = [k for k, one in enumerate(nameless) if one and k != label_at and not all(nameless[:k])]
        used = [k for k, one in enumerate(nameless) if not one and k != label_at]
        if not used:
            raise CollapseError(f"{shorten(header[label_at])} is the only column; add columns of features")
        names = [header[k] for k in used]
        columns: Sequence[str] = names
        for number, cells in rows:
            labels.append(_label(cells[label_at], number, header[label_at], keep_na))
            numbers.append(number)
            found = _extend(values, [cells[k] for k in used], names, number)
            columns = columns if len(labels) > 1 else found
            if found != columns:
                raise CollapseError(f"row {number} has a list of another length; give as many numbers in every row")
            if any(cells[k].strip() for k in spare):
                raise CollapseError("a column has values but no name; name it in the first line")
    if not labels:
        raise CollapseError("no rows; give at least two, below a header in a .csv")
    inputs = np.frombuffer(values, np.float32).reshape(-1, len(columns))
    _check_columns(inputs, columns, numbers)
    return assemble(inputs, labels, "table", keep_na=keep_na)


def table_labels(path: Path, label_column: str | None, delimiter: str | None, keep_na: bool) -> list[str]:
    """Return the label of each row; the other columns may hold anything."""
    with _opened(path, delimiter) as (header, rows):
        at = label_position(header, label_column)
        return [_label(cells[at], number, header[at], keep_na) for number, cells in rows]


def _opened(path: Path, delimiter: str | None) -> AbstractContextManager[Table]:
    return (_parquet if path.suffix.lower() == ".parquet" else _csv)(path, delimiter)


@contextmanager
def _csv(path: Path, delimiter: str | None) -> Iterator[Table]:
    with (
        parsing(path.name, "save it as UTF-8 text, one header line first"),
        path.open(encoding="utf-8-sig", newline="") as stream,
    ):
        rows = csv.reader(stream, delimiter=(delimiter or sniffed(path)).replace("\\t", "\t"))
        header = [name.strip() for name in next(rows, [])]
        yield header, _numbered(rows, len(header))


def _numbered(rows: Iterator[list[str]], width: int) -> Rows:
    for number, cells in enumerate(rows, 2):
        if len(cells) == width + 1 and not cells[-1].strip():  # a delimiter ends the row
            cells.pop()
        if cells and len(cells) != width:
            raise CollapseError(f"row {number} has {len(cells)} cells for {width} columns; mend the row")
        if cells:
            yield number, cells


def sniffed(path: Path) -> str:
    """Return the one of comma, semicolon and tab that gives the header and the first rows equally many columns."""
    widths = dict[str, list[int]]()
    for delimiter in DELIMITERS:
        with path.open(encoding="utf-8-sig", newline="") as stream, suppress(csv.Error):  # it is named in the end
            first = islice(csv.reader(stream, delimiter=delimiter), SNIFFED + 1)
            widths[delimiter] = [len(row) for row in first if row]
    split = [delimiter for delimiter, found in widths.items() if max(found[:1], default=0) > 1]
    even = [delimiter for delimiter in split if len(set(widths[delimiter])) == 1]
    own = "\t" if path.suffix.lower() == ".tsv" else ","
    if not even and (own in split or not split):
        return own  # its rows are uneven, or there is one column
    if len(even or split) > 1:
        raise CollapseError(
            "its delimiter is not clear; name it, --delimiter ',', ';' or '\\t', or save it with commas"
        )
    return (even or split)[0]


def label_position(names: Sequence[str], label_column: str | None, argument: str = "label_column") -> int:
    """Return which column holds the labels: the one that is named by the argument, or the first of the usual names."""
    if not any(names):
        raise CollapseError("no columns; name them in the first line")
    listed = shorten(", ".join(names), 200)
    hint = " (or another delimiter: --delimiter ';')" if len(names) == 1 else ""
    if label_column is not None and names.count(label_column) != 1:
        often = "more than once among" if label_column in names else "not among"
        raise CollapseError(f"{argument}={shorten(label_column)}: {often} its columns {listed}; give one of them{hint}")
    if label_column is not None:
        return names.index(label_column)
    lowered = [name.lower() for name in names]
    found = [name for name in LABEL_COLUMNS if lowered.count(name) == 1]
    if not found:
        raise CollapseError(
            f"no column {', '.join(LABEL_COLUMNS)}; name one of its columns {listed} as {argument}{hint}"
        )
    return lowered.index(found[0])


def _label(cell: Any, number: int, column: str, keep_na: bool) -> str:
    if not isinstance(cell, str | int | float | None):
        raise CollapseError(f"the labels are of type {type(cell).__name__}; give whole numbers or strings")
    label = "" if cell is None else str(cell).strip()
    if is_missing(label, keep_na):
        what = f" ({shorten(label)} counts as missing)" if label else ""
        raise CollapseError(f"row {number} has no label in column {shorten(column)}{what}; {KEEP if label else FILL}")
    return label


def _extend(values: array[float], cells: Sequence[Any], names: Sequence[str], number: int) -> Sequence[str]:
    """Append the numbers of a row and return their names: of a list its own with positions."""
    try:
        values.extend([float(cell) for cell in cells])
    except (TypeError, ValueError):
        if any(isinstance(cell, list) for cell in cells):
            parts = [cell if isinstance(cell, list) else [cell] for cell in cells]
            longer = [f"{name}[{i}]" for name, part in zip(names, parts, strict=True) for i in range(len(part))]
            return _extend(values, [one for part in parts for one in part], longer, number)
        name, cell = next((name, cell) for name, cell in zip(names, cells, strict=True) if not is_number(cell))
        text = "" if cell is None else str(cell).strip()
        what, remedy = f": {shorten(cell)} is not a number", ENCODE
        if text.lower() in MISSING:
            what, remedy = f" has {shorten(text)}, which counts as missing" if text else " is empty", FILL
        raise CollapseError(f"column {shorten(name)}, row {number}{what}; {remedy}") from None
    return names


def _check_columns(inputs: NDArray[np.float32], names: Sequence[str], numbers: Sequence[int]) -> None:
    if not (np.isfinite(inputs.min()) and np.isfinite(inputs.max())):
        row, column = np.argwhere(~np.isfinite(inputs))[0]
        value = f"{inputs[row, column]:g}"
        raise CollapseError(
            f"column {shorten(names[column])}, row {numbers[row]}: {value} is missing or beyond float32; {FILL}"
        )
    for name, column in zip(names, inputs.T, strict=True):
        if len(column) >= COUNTER_ROWS and (np.diff(column) > 0).all() and (column == np.floor(column)).all():
            warnings.warn(
                f"column {shorten(name)} counts the rows: where they are sorted by class it tells the labels; drop it "
                "if it is no measurement",
                stacklevel=2,
            )


@contextmanager
def _parquet(path: Path, delimiter: str | None) -> Iterator[Table]:
    """Columns that pandas' metadata name as index are left out."""
    if delimiter is not None:
        raise CollapseError("delimiter: a Parquet file has none; leave it out")
    try:
        import pyarrow.parquet as pq
    except ImportError:
        raise CollapseError("reading Parquet needs pyarrow; pip install 'collapsekit[parquet]'") from None
    with parsing(path.name, "give an intact Parquet file"), path.open("rb") as stream, pq.ParquetFile(stream) as file:
        schema = file.schema_arrow
        index = json.loads((schema.metadata or {}).get(b"pandas", b"{}")).get("index_columns", [])
        kept = [k for k, name in enumerate(schema.names) if name not in index]
        check_size((file.metadata.num_rows, len(kept)), 4, "rows and columns")
        batches = file.iter_batches(BATCH, use_threads=False)
        rows = (row for batch in batches for row in zip(*(batch.column(k).to_pylist() for k in kept), strict=True))
        yield [schema.names[k] for k in kept], ((number, list(row)) for number, row in enumerate(rows, 1))


def read_text(path: Path, keep_na: bool = False) -> LabelledData:
    """Return TF-IDF rows of unit length over the (at most) 2,000 most frequent terms, with sublinear term frequency.

    Document frequencies are those of the whole file. A text without any of the terms is a row of zeros.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    labels, texts = labels_and_texts(path)
    with parsing(path.name, f"{TEXT_FORMAT}, with words of two letters or more"):
        rows = TfidfVectorizer(max_features=MAX_TERMS, sublinear_tf=True, dtype=np.float32).fit_transform(texts)
    check_size(rows.shape, 4, "texts and terms")
    return assemble(rows.toarray(), labels, "text", keep_na=keep_na)


def labels_and_texts(path: Path) -> tuple[list[str], list[str]]:
    """Return the two halves of every line that is not blank."""
    labels, texts = list[str](), list[str]()
    with parsing(path.name, "save it as UTF-8 text"), path.open(encoding="utf-8-sig") as stream:
        for number, line in enumerate(stream, 1):
            label, _, text = (part.strip() for part in line.partition("\t"))
            if not line.strip():
                continue
            missing = "TAB" * ("\t" not in line) or "label before its TAB" * (not label) or "text" * (not text)
            if missing:
                raise CollapseError(f"line {number} has no {missing}; {TEXT_FORMAT}")
            labels.append(label)
            texts.append(text)
    if not labels:
        raise CollapseError(f"no lines; {TEXT_FORMAT}")
    return labels, texts
