"""Features and labels in many files, larger than the memory: which files they are, and their rows block by block.

Features lie in .npz and .safetensors files with the arrays `features` and `labels` (or `X` and `y`), in .npy files with
their labels beside them, and in Parquet. Labels are numbers of the head's rows, or names.
"""

from __future__ import annotations

import glob
import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from collapsekit.data.arrays import DAMAGED, features_and_labels, labels_beside
from collapsekit.data.files import failing, is_folder, one_line
from collapsekit.data.parquet_blocks import ParquetShard
from collapsekit.data.row_blocks import Opened, Rows, open_npy, open_npz, open_safetensors
from collapsekit.errors import CollapseError
from collapsekit.validation import LARGEST_EXACT, shorten

OPENERS = {".npz": open_npz, ".safetensors": open_safetensors}
ENDINGS = (*OPENERS, ".npy", ".parquet")
GIVE = f"give {', '.join(ENDINGS)} files, folders of them, or patterns such as 'features/*.npz'"
LABELS_NAME = re.compile(r"(?<![A-Za-z])(labels|y)(?![A-Za-z])")

LABELS_AT_ONCE = 2**20

Block = tuple[NDArray[Any], NDArray[Any]]
T = TypeVar("T")


class Shard(Protocol):
    """A file of samples: `shape` of its features, class `names` if it brings any, and its rows in blocks."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, ..., d)."""

    @property
    def names(self) -> tuple[str, ...] | None:
        """One name a class."""

    def blocks(self, rows: int) -> Iterator[Block]:
        """Return features (n, ..., d) and labels (n, ...) of at most so many rows after the other."""

    def labels(self, rows: int) -> Iterator[NDArray[Any]]:
        """Return the labels alone."""


def shard_files(paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]], apart: str = "") -> list[Path]:
    """Return the files that hold features: each once, in the order given, those of a folder or pattern by name.

    Parameters
    ----------
    paths : path or iterable of path
        Files, folders (not their sub-folders, nor other kinds of files in them) and patterns, ``**`` included.
    apart : str
        A file that is no shard although it lies among them: the head.

    Raises
    ------
    CollapseError
        If there is none, or a file is of another kind.
    """
    given = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    found = dict[tuple[int, int], Path]()
    for path in (path for one in given for path in _files(os.fspath(one))):
        stat = path.stat()
        found.setdefault((stat.st_dev, stat.st_ino), path)
    heads = [path for path in found.values() if apart and os.path.exists(apart) and path.samefile(apart)]
    kept = [path for path in found.values() if path not in heads or _holds_features(path)]
    if not kept:
        raise CollapseError(f"paths={shorten(list(map(str, given)))}: no shards; {GIVE}")
    return _without_labels(kept)


def _files(one: str) -> list[Path]:
    path = Path(one)
    if not os.path.lexists(path) and glob.has_magic(one):
        matches = sorted(glob.glob(one, recursive=True))
        if not matches:
            raise CollapseError(f"paths={shorten(one)}: the pattern matches no file; {GIVE}")
        return [path for match in matches for path in _files(match)]
    with one_line("paths", one, GIVE):
        if not is_folder(path):
            if path.suffix.lower() not in ENDINGS:
                raise CollapseError(f"no shard, by its ending; {GIVE}")
            return [path]
        inside = sorted(inner for inner in path.iterdir() if not inner.name.startswith(".") and inner.is_file())
        found = [inner for inner in inside if inner.suffix.lower() in ENDINGS]
        if not found:
            raise CollapseError(f"no shards in the folder; {GIVE}, or 'FOLDER/**' for its sub-folders too")
        return found


def _holds_features(path: Path) -> bool:
    suffix = path.suffix.lower()
    if suffix not in OPENERS:
        return False
    with one_line("paths", str(path)), failing(path.name, DAMAGED), ExitStack() as stack:
        return any(key in OPENERS[suffix](path, stack) for key in ("X", "features"))


def _without_labels(files: Sequence[Path]) -> list[Path]:
    """Leave out .npy files that hold the labels of others; each must be that of one."""
    arrays = [path for path in files if path.suffix.lower() == ".npy"]
    owners = dict[Path, Path]()
    for path in arrays:
        if not LABELS_NAME.search(path.stem):
            with one_line("shard", str(path)):
                labels = labels_beside(path)
                if labels in owners:
                    raise CollapseError(
                        f"{labels.name} would label {owners[labels].name}, too; give each shard its own, such as "
                        f"{path.stem}_labels.npy"
                    )
                owners[labels] = path
    for path in arrays:
        if LABELS_NAME.search(path.stem) and path not in owners:
            raise CollapseError(
                f"shard={str(path)!r}: is called like labels, and no features are given that go with it; give them, or "
                "rename it"
            )
    return [path for path in files if path not in owners]


@contextmanager
def opened(path: Path, labels: str | None = None) -> Iterator[Shard]:
    """Give a shard, and refuse it if it has changed by the end.

    Parameters
    ----------
    path : Path
        The file.
    labels : str, optional
        Array or column of the labels; by default `labels` or `y`, in Parquet also label, class, target and species.

    Raises
    ------
    CollapseError
        If it cannot be read, or holds no features with labels; without the name of the file, as `one_line` adds it.
    """
    before = path.stat()
    with ExitStack() as stack:
        with failing(path.name, DAMAGED):
            shard = _opened(path, labels, stack)
        yield shard
    after = path.stat()
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise CollapseError("changed while it was read; measure it again once it is complete")


def _opened(path: Path, labels: str | None, stack: ExitStack) -> Shard:
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return ParquetShard(path, labels, stack)
    if suffix == ".npy":
        if labels is not None:
            raise CollapseError(f"labels={shorten(labels)}: an .npy has its labels in a file beside it; leave it out")
        return ArrayShard(path.name, open_npy(path, stack), open_npy(labels_beside(path), stack))
    arrays = OPENERS[suffix](path, stack)
    if "weight" in arrays and not {"X", "features"} & set(arrays):
        raise CollapseError("holds a head and no features; give it as head, which is no shard, or leave it out")
    inputs, key = features_and_labels(arrays, labels)
    return ArrayShard(path.name, arrays[inputs](), arrays[key](), _names(arrays))


def _names(arrays: Opened) -> tuple[str, ...] | None:
    if "names" not in arrays:
        return None
    stored = arrays["names"]()
    if stored.dtype.kind != "U" or len(stored.shape) != 1:
        raise CollapseError(f"names: dtype {stored.dtype}, shape {stored.shape}; give a vector of strings")
    return tuple(stored.read(0, stored.shape[0]).tolist())


class ArrayShard:
    """Arrays of features, (N, ..., d), and of labels, (N, ...)."""

    def __init__(self, name: str, features: Rows, labels: Rows, names: tuple[str, ...] | None = None) -> None:
        if features.dtype.kind not in "biuf" and features.dtype != "V2":
            raise CollapseError(f"features: dtype {shorten(str(features.dtype))}; give real numbers")
        shape, size = features.shape, math.prod(features.shape)
        if (len(shape) < 2 and shape != (0,)) or (shape[0] and not size):
            raise CollapseError(f"features: shape {shape}; give one row a sample, (N, d)")
        if labels.shape != (shape[:-1] if len(shape) > 1 else shape):
            raise CollapseError(f"labels: shape {labels.shape} for features of shape {shape}; expected {shape[:-1]}")
        self.name, self.shape, self.names = name, shape, names
        self._features, self._labels = features, labels

    def blocks(self, rows: int) -> Iterator[Block]:
        """Return features and labels of at most so many rows after the other."""
        for start in range(0, self.shape[0], rows):
            stop = min(start + rows, self.shape[0])
            yield self._features.read(start, stop), self._labels.read(start, stop)
        self._features.finish()
        self._labels.finish()

    def labels(self, rows: int) -> Iterator[NDArray[Any]]:
        """Return the labels alone of at most so many rows after the other."""
        for start in range(0, self.shape[0], rows):
            yield self._labels.read(start, min(start + rows, self.shape[0]))


def blocks(
    shard: Shard, name: str, rows: int, names: Sequence[str] | None
) -> Iterator[tuple[int, NDArray[Any], NDArray[np.int64]]]:
    """Return the number of the first sample of each block, its features as floating point numbers and whole labels.

    Parameters
    ----------
    shard : Shard
        What `opened` gives.
    name : str
        What messages call the file.
    rows : int
        Rows of the first axis in a block.
    names : sequence of str or None
        Class names, which labels that are words are looked up in.

    Raises
    ------
    CollapseError
        If the file is damaged, or labels are neither whole numbers nor names; the sample is named.
    """
    start = 0
    for features, labels in _steps(shard.blocks(rows), name):
        yield start, _real(features), _whole(labels, start, names)
        start += labels.size


def label_blocks(shard: Shard, name: str, names: Sequence[str] | None) -> Iterator[NDArray[np.int64]]:
    """Return the labels alone, as :func:`blocks` does."""
    start, rows = 0, max(1, LABELS_AT_ONCE // math.prod(shard.shape[1:-1]))
    for labels in _steps(shard.labels(rows), name):
        yield _whole(labels, start, names)
        start += labels.size


def _steps(found: Iterator[T], name: str) -> Iterator[T]:
    """The same, but each step fails in one line; what is done between the steps does not."""
    end = object()
    while True:
        with failing(name, DAMAGED):
            one = next(found, end)
        if one is end:
            return
        yield one  # type: ignore[misc]


def _real(features: NDArray[Any]) -> NDArray[Any]:
    """Floating point numbers; whole numbers of up to two bytes are exact in float32."""
    kind, size = features.dtype.kind, features.dtype.itemsize
    if kind == "f" and size <= 8:
        return features
    return features.astype(np.float32 if size <= 2 else np.float64)


def _whole(labels: NDArray[Any], start: int, names: Sequence[str] | None) -> NDArray[np.int64]:
    if labels.dtype.kind in "USO":
        return _looked_up(labels, start, names)
    if labels.dtype.kind not in "iuf":
        raise CollapseError(f"labels: dtype {shorten(str(labels.dtype))}; give whole numbers from 0, or strings")
    if labels.dtype.kind == "i":
        return labels.astype(np.int64)
    wide = labels.astype(np.float64)
    bad = np.flatnonzero(~((np.abs(wide) <= LARGEST_EXACT) & (wide == np.floor(wide))))
    if bad.size:
        raise CollapseError(f"labels: sample {start + bad[0]} has {labels.flat[bad[0]]}; give whole numbers from 0")
    return wide.astype(np.int64)


def _looked_up(labels: NDArray[Any], start: int, names: Sequence[str] | None) -> NDArray[np.int64]:
    if names is None:
        raise CollapseError(
            "labels: are words; give names (--class-names), one a class, in the order of the head's rows"
        )
    at, found = {name: k for k, name in enumerate(names)}, np.empty(labels.shape, np.int64)
    for i, label in enumerate(labels.flat):
        word = label.decode("utf-8", "replace") if isinstance(label, bytes) else str(label)
        if word not in at:
            raise CollapseError(f"labels: sample {start + i} has {shorten(word)}, which is not among the names; add it")
        found.flat[i] = at[word]
    return found
