"""Features and labels of a Parquet file, block by block: columns of numbers, or of lists of equally many numbers."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from collapsekit.data.tables import ENCODE, FILL, label_position
from collapsekit.errors import CollapseError
from collapsekit.validation import shorten

FEATURES, LABELS = ("X", "features"), "labels"
ROWS_AT_ONCE = 2**12
BUFFER = 2**20
"""Bytes of a column that are read ahead: a row group, often a million rows, is never in memory as a whole."""


class ParquetShard:
    """A Parquet file whose rows are read in blocks.

    The features are the column `X` or `features`, else all columns but that of the labels and pandas' index.

    Parameters
    ----------
    path : Path
        The file.
    labels : str or None
        Column of the labels; None: `labels`, or the first of the usual names.
    stack : ExitStack
        Closes the file.
    """

    names = None

    def __init__(self, path: Path, labels: str | None, stack: ExitStack) -> None:
        try:
            import pyarrow.parquet as pq
        except ImportError:
            raise CollapseError("reading Parquet needs pyarrow; pip install 'collapsekit[parquet]'") from None
        stream = stack.enter_context(path.open("rb"))
        options = {"buffer_size": BUFFER, "pre_buffer": False, "page_checksum_verification": True}
        self._file = stack.enter_context(pq.ParquetFile(stream, **options))
        schema = self._file.schema_arrow
        twice = next((name for name in schema.names if schema.names.count(name) > 1), None)
        if twice is not None:
            raise CollapseError(f"two columns are called {shorten(twice)}; rename one")
        usual = LABELS if labels is None and LABELS in schema.names else labels
        self._labels = schema.names[label_position(schema.names, usual, "labels")]
        index = json.loads((schema.metadata or {}).get(b"pandas", b"{}")).get("index_columns", [])
        others = [name for name in schema.names if name != self._labels and name not in index]
        self._features = next(([name] for name in FEATURES if name in others), others)
        for name in self._features:
            _check_type(name, schema.field(name).type)
        if not self._features:
            raise CollapseError(f"{shorten(self._labels)} is the only column; add columns of features")
        self.shape = (self._file.metadata.num_rows, self._width())

    def blocks(self, rows: int) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
        """Return features (n, d) and labels (n,) of at most so many rows after the other."""
        start, columns = 0, [*self._features, self._labels]
        for batch in self._file.iter_batches(rows, columns=columns, use_threads=False):
            parts = [_numbers(name, batch.column(name), start) for name in self._features]
            found = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
            yield found, _labels(self._labels, batch.column(self._labels), start)
            start += batch.num_rows

    def labels(self, rows: int) -> Iterator[NDArray[Any]]:
        """Return the labels alone, (n,), of at most so many rows after the other."""
        start = 0
        for batch in self._file.iter_batches(rows, columns=[self._labels], use_threads=False):
            yield _labels(self._labels, batch.column(self._labels), start)
            start += batch.num_rows

    def _width(self) -> int:
        """Numbers a row, by the metadata of the first row group that has rows; blocks that differ are refused."""
        metadata = self._file.metadata
        for group in map(metadata.row_group, range(metadata.num_row_groups)):
            if group.num_rows:
                columns = map(group.column, range(group.num_columns))
                tops = [(column.path_in_schema, column.num_values) for column in columns]
                values = sum(n for path, n in tops if any(_is_of(path, name) for name in self._features))
                if values % group.num_rows:  # something is missing or too much, and a block will say where
                    deque(self.blocks(ROWS_AT_ONCE), maxlen=0)
                return int(values // group.num_rows)
        return 0


def _is_of(path: str, name: str) -> bool:
    return path == name or path.startswith((f"{name}.list.", f"{name}.bag."))


def _check_type(name: str, kind: Any) -> None:
    from pyarrow import types

    inner = kind.value_type if _is_list(kind) else kind
    if not (types.is_integer(inner) or types.is_floating(inner) or types.is_boolean(inner)):
        raise CollapseError(
            f"column {shorten(name)} holds {shorten(str(kind))}, no numbers; call the column of features 'features', "
            f"or {ENCODE}"
        )


def _is_list(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _numbers(name: str, column: Any, start: int) -> NDArray[Any]:
    """The numbers of a column, (n, w)."""
    size = len(column)
    if column.null_count:
        raise CollapseError(f"column {shorten(name)}, row {start + _first_null(column)} is empty; {FILL}")
    values = column.flatten() if _is_list(column.type) else column
    if len(values) % max(size, 1) or (_is_list(column.type) and not _even(column)):
        raise CollapseError(
            f"column {shorten(name)} has lists of different lengths from row {start} on; give as many numbers in "
            "every row"
        )
    if values.null_count:
        row = start + _first_null(values) // (len(values) // size)
        raise CollapseError(f"column {shorten(name)}, row {row} holds an empty value; {FILL}")
    numbers: NDArray[Any] = values.to_numpy(zero_copy_only=False)
    return numbers.reshape(size, -1) if size else numbers.reshape(0, 0)


def _even(column: Any) -> bool:
    lengths = column.value_lengths().to_numpy(zero_copy_only=False)
    return not len(lengths) or bool((lengths == lengths[0]).all())


def _first_null(values: Any) -> int:
    return int(np.argmax(values.is_null().to_numpy(zero_copy_only=False)))


def _labels(name: str, column: Any, start: int) -> NDArray[Any]:
    from pyarrow import types

    if types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if column.null_count:
        raise CollapseError(f"row {start + _first_null(column)} has no label in column {shorten(name)}; {FILL}")
    found: NDArray[Any] = column.to_numpy(zero_copy_only=False)
    return found
