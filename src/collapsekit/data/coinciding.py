"""Types of samples in a data set: inputs that coincide although their labels differ cannot be told apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from collapsekit.errors import CollapseError
from collapsekit.validation import Array, numeric, shorten, whole_number


def types_of(inputs: NDArray[Any] | Sequence[str], labels: ArrayLike, num_classes: int) -> tuple[Array, Array]:
    """Return the types of samples of a data set, for :meth:`collapsekit.UFM.from_types`.

    Inputs coincide if they are equal in every number, or character. Those of one label each are one type a class; sets
    of coinciding inputs with several labels are one type for each distribution of labels.

    Parameters
    ----------
    inputs : ndarray, shape (N, ...), or sequence of str
        Samples.
    labels : array_like of int, shape (N,)
        Their classes, from 0 to K − 1.
    num_classes : int
        K.

    Returns
    -------
    counts : ndarray, shape (T,)
        Samples of each type: classes first, in order and as far as they have samples of their own.
    targets : ndarray, shape (T, K)
        The distribution of their labels.

    Raises
    ------
    CollapseError
        If lengths differ, there is no sample, or labels are out of range.

    References
    ----------
    Derived here (docs/theory.md, "Types of samples").

    Examples
    --------
    >>> counts, targets = types_of(["a", "b", "b", "c", "c", "d"], [0, 0, 1, 1, 0, 1], 2)
    >>> counts
    array([1., 1., 4.])
    >>> targets
    array([[1. , 0. ],
           [0. , 1. ],
           [0.5, 0.5]])
    """
    size = whole_number("num_classes", num_classes, 2, "give the number of classes")
    samples = [one if isinstance(one, str) else _bytes(one) for one in inputs]
    classes = _checked(labels, len(samples), size)
    first: dict[str | bytes, int] = {}
    groups = np.array([first.setdefault(sample, len(first)) for sample in samples])
    pairs, numbers = np.unique(groups * size + classes, return_counts=True)
    owners, members = pairs // size, pairs % size
    mixed = np.bincount(owners)[owners] > 1
    alone = np.bincount(members[~mixed], numbers[~mixed], size)
    shared, place = np.unique(owners[mixed], return_inverse=True)
    table = np.zeros((shared.size, size))
    table[place, members[mixed]] = numbers[mixed]
    table = np.vstack([np.diag(alone)[alone > 0], table])
    return _merged(table.astype(np.int64))


def _merged(table: NDArray[np.int64]) -> tuple[Array, Array]:
    """Counts and distributions of sets of samples, (n, K); equal distributions become one, in order of their first."""
    lowest = table // np.gcd.reduce(table, axis=1, keepdims=True)  # whole numbers: equal distributions are equal rows
    _, first, place = np.unique(lowest, axis=0, return_index=True, return_inverse=True)
    counts, order = np.bincount(place.ravel(), table.sum(axis=1)), np.argsort(first)
    targets = lowest[first[order]]
    return np.asarray(counts[order], dtype=np.float64), targets / targets.sum(axis=1, keepdims=True)


def _bytes(sample: Any) -> bytes:
    array = np.asarray(sample)
    return bytes((array + 0.0 if array.dtype.kind == "f" else array).tobytes())  # −0 is 0


def _checked(labels: ArrayLike, count: int, size: int) -> NDArray[np.int64]:
    found = numeric("labels", labels)
    if not count or found.shape != (count,):
        raise CollapseError(f"labels: shape {found.shape} for {count} inputs; give one label a sample, at least one")
    bad = np.flatnonzero(~((found >= 0) & (found < size)) | (found != np.floor(found)))
    if bad.size:
        raise CollapseError(
            f"labels: {shorten(found[bad[0]].item())} is no class from 0 to {size - 1}; encode labels so"
        )
    return found.astype(np.int64)
