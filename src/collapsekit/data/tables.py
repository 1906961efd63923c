"""Tables with a label column: .csv, .tsv and .parquet."""

from __future__ import annotations

import csv
import json
import re
import warnings
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from collapsekit.data.files import check_size, parsing
from collapsekit.data.labelled import KEEP, MISSING, LabelledData, RawLabels, assemble, is_missing, typed
from collapsekit.errors import CollapseError
from collapsekit.validation import printable, shorten

if TYPE_CHECKING:
    import pyarrow as pa

LABEL_COLUMNS = ("label", "class", "target", "y", "species")
DELIMITERS = (",", ";", "\t")
SNIFFED = 100  # rows below the header
NAMELESS = re.compile(r"|Unnamed: \d+(\.\d+)?|__index_level_\d+__")  # how pandas writes and reads an index
ENCODE = "drop the column or encode it as numbers"
FILL = "fill it in or drop the row"
COUNTER_ROWS = 20  # fewer rows may grow by chance

Numbered = Iterator[tuple[int, list[str]]]


def read_csv(path: Path, label_column: str | None, delimiter: str | None, keep_na: bool) -> LabelledData:
    """Return the rows of a UTF-8 file whose first line names the columns; messages count that line as row 1.

    Columns without a name that come first are pandas' index and left out, as are those without any value.
    """
    labels, values, numbers = list[str](), array("f"), array("q")
    with _csv_rows(path, delimiter) as (header, rows):
        label_at = label_position(header, label_column)
        used = [k for k, name in enumerate(header) if k != label_at and not NAMELESS.fullmatch(name)]
        names = [header[k] for k in used]
        nameless = [k for k in _spare(header) if k != label_at]
        if not used:
            raise CollapseError(f"{shorten(header[label_at])} is the only column; add columns of features")
        for number, cells in rows:
            labels.append(_label(cells[label_at], number, header[label_at], keep_na))
            try:
                values.extend([float(cells[k]) for k in used])
            except ValueError:
                _explain_cell([cells[k] for k in used], names, number)
            for k in nameless:
                if cells[k].strip():
                    raise CollapseError(f"column {k + 1} has values but no name; name it in the first line")
            numbers.append(number)
    if not labels:
        raise CollapseError("no rows below the header; give at least two")
    inputs = np.frombuffer(values, np.float32).reshape(-1, len(names))
    _check_columns(inputs, names, numbers)
    return assemble(inputs, typed(labels), "table", keep_na=keep_na)


def csv_labels(path: Path, label_column: str | None, delimiter: str | None, keep_na: bool) -> list[str]:
    """Return the label of each row; the other columns may hold anything."""
    with _csv_rows(path, delimiter) as (header, rows):
        at = label_position(header, label_column)
        return [_label(cells[at], number, header[at], keep_na) for number, cells in rows]


@contextmanager
def _csv_rows(path: Path, delimiter: str | None) -> Iterator[tuple[list[str], Numbered]]:
    with (
        parsing(path.name, "save it as UTF-8 text, one header line first"),
        path.open(encoding="utf-8-sig", newline="") as stream,
    ):
        rows = csv.reader(stream, delimiter=(delimiter or sniffed(path)).replace("\\t", "\t"))
        header = [name.strip() for name in next(rows, [])]
        yield header, _numbered(rows, len(header))


def _numbered(rows: Iterator[list[str]], width: int) -> Numbered:
    for number, cells in enumerate(rows, 2):
        if len(cells) == width + 1 and not cells[-1].strip():  # a delimiter ends the row
            cells.pop()
        if cells and len(cells) != width:
            raise CollapseError(f"row {number} has {len(cells)} cells for {width} columns; mend the row")
        if cells:
            yield number, cells


def sniffed(path: Path) -> str:
    """Return the one of comma, semicolon and tab that gives the header and the first rows equally many columns."""
    widths = {delimiter: _widths(path, delimiter) for delimiter in DELIMITERS}
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


def _widths(path: Path, delimiter: str) -> list[int]:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        try:
            return [len(row) for row in islice(csv.reader(stream, delimiter=delimiter), SNIFFED + 1) if row]
        except csv.Error:  # the rows are read again, and the error named, with the delimiter that is left
            return []


def label_position(names: Sequence[str], label_column: str | None) -> int:
    """Return which column holds the labels: the one that is named, or the first of the usual names."""
    if not any(names):
        raise CollapseError("no columns; name them in the first line")
    listed = shorten(", ".join(names), 200)
    hint = " (or another delimiter: --delimiter ';')" if len(names) == 1 else ""
    if label_column is not None:
        if names.count(label_column) != 1:
            often = "not among" if label_column not in names else "more than once among"
            raise CollapseError(
                f"label_column={shorten(label_column)}: {often} its columns {listed}; give one of them{hint}"
            )
        return names.index(label_column)
    lowered = [name.lower() for name in names]
    found = [name for name in LABEL_COLUMNS if lowered.count(name) == 1]
    if not found:
        raise CollapseError(
            f"no column {', '.join(LABEL_COLUMNS)}; name one of its columns {listed} as label_column{hint}"
        )
    return lowered.index(found[0])


def _label(cell: str, number: int, column: str, keep_na: bool) -> str:
    label = cell.strip()
    if is_missing(label, keep_na):
        what = f" ({shorten(label)} counts as missing)" if label else ""
        raise CollapseError(f"row {number} has no label in column {shorten(column)}{what}; {KEEP if label else FILL}")
    return label


def _spare(names: Sequence[str]) -> list[int]:
    """Columns without a name that are no index: an index comes first."""
    nameless = [bool(NAMELESS.fullmatch(name)) for name in names]
    return [k for k, one in enumerate(nameless) if one and not all(nameless[:k])]


def _explain_cell(cells: Sequence[str], names: Sequence[str], number: int) -> None:
    for name, cell in zip(names, cells, strict=True):
        try:
            float(cell)
        except ValueError:
            if cell.strip().lower() in MISSING:
                what = "is empty" if not cell.strip() else f"has {shorten(cell)}, which counts as missing"
                raise CollapseError(f"column {shorten(name)}, row {number} {what}; {FILL}") from None
            raise CollapseError(
                f"column {shorten(name)}, row {number}: {shorten(cell)} is not a number; {ENCODE}"
            ) from None


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


def read_parquet(path: Path, label_column: str | None, delimiter: str | None, keep_na: bool) -> LabelledData:
    """Return the rows of a Parquet file; messages count its first row as row 1. A list column is as many columns."""
    _no_delimiter(delimiter)
    table = _parquet(path)
    label = table.column_names[label_position(table.column_names, label_column)]
    names = [name for name in table.column_names if name != label]
    if not names:
        raise CollapseError(f"{shorten(label)} is the only column; add columns of features")
    blocks = [_numbers(table.column(name).combine_chunks(), name) for name in names]
    inputs = blocks[0] if len(blocks) == 1 else np.concatenate(blocks, axis=1)
    columns = [name for name, block in zip(names, blocks, strict=True) for _ in range(block.shape[1])]
    _check_columns(inputs, columns, range(1, len(inputs) + 1))
    return assemble(inputs, _parquet_labels(table.column(label).to_pylist(), label, keep_na), "table", keep_na=keep_na)


def parquet_labels(path: Path, label_column: str | None, delimiter: str | None, keep_na: bool) -> list[str]:
    """Return the label of each row; the other columns are not read."""
    _no_delimiter(delimiter)
    table = _parquet(path, label_column, only_labels=True)
    return [str(label) for label in _parquet_labels(table.column(0).to_pylist(), table.column_names[0], keep_na)]


def _no_delimiter(delimiter: str | None) -> None:
    if delimiter is not None:
        raise CollapseError("delimiter: a Parquet file has none; leave it out")


def _parquet(path: Path, label_column: str | None = None, *, only_labels: bool = False) -> pa.Table:
    """The columns without pandas' index."""
    try:
        import pyarrow.parquet as pq
    except ImportError:
        raise CollapseError("reading Parquet needs pyarrow; pip install 'collapsekit[parquet]'") from None
    with parsing(path.name, "give an intact Parquet file"), path.open("rb") as stream, pq.ParquetFile(stream) as file:
        stored = json.loads((file.schema_arrow.metadata or {}).get(b"pandas", b"{}"))
        index = {name for name in stored.get("index_columns", []) if isinstance(name, str)}
        names = [name for name in file.schema_arrow.names if name not in index]
        if only_labels:
            names = [names[label_position(names, label_column)]]
        check_size((file.metadata.num_rows, len(names)), 4, "rows and columns")
        return file.read(columns=names, use_threads=False)


def _parquet_labels(labels: list[Any], name: str, keep_na: bool) -> RawLabels:
    for number, label in enumerate(labels, 1):
        if label is None or label != label:
            raise CollapseError(f"row {number} has no label in column {shorten(name)}; {FILL}")
    kinds = {type(label) for label in labels}
    if kinds == {str}:
        return typed([_label(label, number, name, keep_na) for number, label in enumerate(labels, 1)])
    if len(kinds) == 1 and kinds <= {int, float, bool}:
        return np.array(labels)
    kind = min((kind.__name__ for kind in kinds), default="none")
    raise CollapseError(f"the labels are of type {kind}; give whole numbers or strings")


def _numbers(column: pa.Array, name: str) -> NDArray[np.float32]:
    """One column, (N, 1), or a list of as many numbers in every row, (N, m)."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if column.null_count:
        row = int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0]) + 1
        raise CollapseError(f"column {shorten(name)}, row {row} is empty; {FILL}")
    rows, kind = len(column), column.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        if pc.count_distinct(pc.list_value_length(column)).as_py() != 1:
            raise CollapseError(f"column {shorten(name)}: lists of several lengths; give as many numbers in every row")
        column = column.flatten()
    numeric = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_boolean)
    if not any(check(column.type) for check in numeric) or column.null_count:
        shown = shorten(printable(str(column[0].as_py())))
        raise CollapseError(f"column {shorten(name)}, row 1: {shown} is not a number; {ENCODE}")
    if pa.types.is_decimal(column.type):
        column = column.cast(pa.float64())
    with np.errstate(over="ignore"):  # infinities are found and named afterwards
        values: NDArray[np.float32] = column.to_numpy(zero_copy_only=False).astype(np.float32)
    return values.reshape(rows, -1)
