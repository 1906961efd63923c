"""Tables with a label column: .csv, .tsv and .parquet."""

from __future__ import annotations

import csv
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from collapsekit.data.files import check_size, parsing
from collapsekit.data.labelled import LabelledData, RawLabels, assemble, typed
from collapsekit.errors import CollapseError
from collapsekit.validation import shorten

if TYPE_CHECKING:
    import pyarrow as pa

LABEL_COLUMNS = ("label", "class", "target", "y", "species")
MISSING = ("", "nan")
ENCODE = "drop the column or encode it as numbers"
FILL = "fill it in or drop the row"
PARQUET_ROWS, PARQUET_BUFFER = 8192, 2**16  # pyarrow's own choice holds whole row groups: four times the data


def read_csv(path: Path, delimiter: str, label_column: str | None) -> LabelledData:
    """Return the rows of a UTF-8 file whose first line names the columns; messages count that line as row 1."""
    with (
        parsing(path.name, "save it as UTF-8 text, one header line first"),
        path.open(encoding="utf-8-sig", newline="") as stream,
    ):
        rows = csv.reader(stream, delimiter=delimiter)
        names = [name.strip() for name in next(rows, [])]
        label_at = _label_at(names, label_column)
        labels, values, numbers = _read_rows(rows, names, label_at)
    _drop(names, label_at)
    inputs = np.frombuffer(values, np.float32).reshape(-1, len(names))
    _check_finite(inputs, names, numbers)
    return assemble(inputs, typed(labels), "table")


def _read_rows(
    rows: Iterable[list[str]], names: Sequence[str], label_at: int
) -> tuple[list[str], array[float], array[int]]:
    """Labels, features one after the other as float32, and the number of each row that is not blank."""
    labels, values, numbers = list[str](), array("f"), array("q")
    seen: dict[str, str] = {}  # one string object a class, not one a row
    for number, cells in enumerate(rows, 2):
        if not cells:
            continue
        if len(cells) != len(names):
            raise CollapseError(f"row {number} has {len(cells)} cells for {len(names)} columns; mend the row")
        label = cells.pop(label_at).strip()
        if label.lower() in MISSING:
            raise CollapseError(f"row {number} has no label in column {shorten(names[label_at])}; {FILL}")
        try:
            values.extend(map(float, cells))
        except ValueError:
            _explain_cell(cells, [*names[:label_at], *names[label_at + 1 :]], number)
        labels.append(seen.setdefault(label, label))
        numbers.append(number)
    if not labels:
        raise CollapseError("no rows below the header; give at least two")
    return labels, values, numbers


def _explain_cell(cells: Sequence[str], names: Sequence[str], number: int) -> None:
    for name, cell in zip(names, cells, strict=True):
        try:
            float(cell)
        except ValueError:
            if not cell.strip():
                raise CollapseError(f"column {shorten(name)}, row {number} is empty; {FILL}") from None
            raise CollapseError(
                f"column {shorten(name)}, row {number}: {shorten(cell)} is not a number; {ENCODE}"
            ) from None


def _check_finite(inputs: NDArray[np.float32], names: Sequence[str], numbers: Sequence[int]) -> None:
    if np.isfinite(inputs.min()) and np.isfinite(inputs.max()):
        return
    row, column = np.argwhere(~np.isfinite(inputs))[0]
    value = f"{inputs[row, column]:g}"
    raise CollapseError(
        f"column {shorten(names[column])}, row {numbers[row]}: {value} is missing or beyond float32; {FILL}"
    )


def _label_at(names: Sequence[str], label_column: str | None) -> int:
    if not names:
        raise CollapseError("no columns; name them in the first line")
    listed = shorten(", ".join(names), 200)
    if label_column is not None:
        if names.count(label_column) != 1:
            often = "not among" if label_column not in names else "more than once among"
            raise CollapseError(f"label_column={shorten(label_column)}: {often} its columns {listed}; give one of them")
        return names.index(label_column)
    lowered = [name.lower() for name in names]
    for candidate in LABEL_COLUMNS:
        if lowered.count(candidate) == 1:
            return lowered.index(candidate)
    raise CollapseError(f"no column {', '.join(LABEL_COLUMNS)}; name one of its columns {listed} as label_column")


def _drop(names: list[str], label_at: int) -> None:
    name = names.pop(label_at)
    if not names:
        raise CollapseError(f"{shorten(name)} is the only column; add columns of features")


def read_parquet(path: Path, label_column: str | None) -> LabelledData:
    """Return the rows of a Parquet file; messages count its first row as row 1."""
    try:
        import pyarrow.parquet as pq
    except ImportError:
        raise CollapseError("reading Parquet needs pyarrow; pip install 'collapsekit[parquet]'") from None
    with (
        parsing(path.name, "give an intact Parquet file"),
        path.open("rb") as stream,
        pq.ParquetFile(stream, pre_buffer=False, buffer_size=PARQUET_BUFFER) as file,
    ):
        names = list(file.schema_arrow.names)
        label_at = _label_at(names, label_column)
        label_name = names[label_at]
        _drop(names, label_at)
        check_size((file.metadata.num_rows, len(names)), 4, "rows and columns")
        inputs = np.empty((file.metadata.num_rows, len(names)), np.float32)
        labels = list[Any]()
        for batch in file.iter_batches(PARQUET_ROWS, use_threads=False):
            start, stop = len(labels), len(labels) + batch.num_rows
            if stop > len(inputs):
                raise CollapseError("more rows than its metadata promise; give an intact Parquet file")
            columns = list(batch.columns)
            labels += _parquet_labels(columns.pop(label_at), label_name, start)
            for j, column in enumerate(columns):
                inputs[start:stop, j] = _parquet_numbers(column, names[j], start)
        if len(labels) != len(inputs):
            raise CollapseError("fewer rows than its metadata promise; give an intact Parquet file")
    _check_finite(inputs, names, range(1, len(inputs) + 1))
    return assemble(inputs, _parquet_label_array(labels), "table")


def _parquet_labels(column: pa.Array, name: str, start: int) -> list[Any]:
    labels: list[Any] = column.to_pylist()
    for number, label in enumerate(labels, start + 1):
        if label is None or (isinstance(label, str) and label.strip().lower() in MISSING) or label != label:
            raise CollapseError(f"row {number} has no label in column {shorten(name)}; {FILL}")
    return labels


def _parquet_label_array(labels: list[Any]) -> RawLabels:
    kinds = {type(label) for label in labels}
    if kinds == {str}:
        return typed([label.strip() for label in labels])
    if len(kinds) == 1 and kinds <= {int, float, bool}:
        return np.array(labels)
    raise CollapseError(f"the labels are of type {min(kind.__name__ for kind in kinds)}; give whole numbers or strings")


def _parquet_numbers(column: pa.Array, name: str, start: int) -> NDArray[Any]:
    import pyarrow as pa

    kind = column.type
    numeric = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_boolean)
    if len(column) and not any(check(kind) for check in numeric):
        raise CollapseError(
            f"column {shorten(name)}, row {start + 1}: {shorten(column[0].as_py())} is not a number; {ENCODE}"
        )
    if column.null_count:
        row = start + 1 + int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
        raise CollapseError(f"column {shorten(name)}, row {row} is empty; {FILL}")
    if pa.types.is_decimal(kind):
        column = column.cast(pa.float64())
    values: NDArray[Any] = column.to_numpy(zero_copy_only=False)
    with np.errstate(over="ignore"):  # infinities are found and named afterwards
        return values.astype(np.float32)
