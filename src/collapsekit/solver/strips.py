"""Products with matrices of one pattern: rows with few entries as sparse ones, the others in strips of alike rows.

Features on a staircase have one entry in most rows, and in the others their columns are nearly an interval: strips
of rows over the columns that any of them uses hold little but entries, and are multiplied as dense matrices.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from collapsekit.validation import Array

FEW = 4
"""Entries a row up to which rows are sparse: near the frame there is one."""
STRIPS = 4
"""Of about as many entries each: more of them hold fewer zeros, but small products are slower for their size."""
SMALL, DENSE = 32, 128
"""Rows up to which one dense product costs least whatever the pattern, and where it is not sparse throughout."""

Index = NDArray[np.intp]


class Strip:
    """Some rows over some columns of the pattern, as a dense matrix."""

    def __init__(self, mask: NDArray[np.bool_], rows: Index, numbers: NDArray[np.intp]) -> None:
        columns = np.flatnonzero(mask[rows].any(axis=0))
        self.rows, self.columns = _span(rows), _span(columns)
        spots = np.ix_(rows, columns)
        self.inside = np.nonzero(mask[spots])
        self.entries = numbers[spots][self.inside]
        self.shape = len(rows), len(columns)

    def laid(self, x: Array) -> Array:
        """Return the dense matrix with the entries x of the whole pattern."""
        matrix = np.zeros(self.shape)
        matrix[self.inside] = x[self.entries]
        return matrix


def pattern(mask: NDArray[np.bool_]) -> Dense | Strips:
    """Return the quicker of the two for a mask (n, r)."""
    size = len(mask)
    return Dense(mask) if size <= SMALL or (size <= DENSE and mask.sum() > FEW * size) else Strips(mask)


class Dense:
    """The pattern of a mask (n, r); matrices on it are vectors of their entries, (m,), row by row.

    Attributes
    ----------
    rows, columns : ndarray of int, shape (m,)
        Where each entry stands.
    """

    def __init__(self, mask: NDArray[np.bool_]) -> None:
        self.mask = mask
        self.rows, self.columns = np.nonzero(mask)

    def laid(self, x: Array) -> Any:
        """Return the matrix with entries x, in the form that products need."""
        matrix = np.zeros(self.mask.shape)
        matrix[self.mask] = x
        return matrix

    def times(self, *pairs: tuple[Any, Array]) -> Array:
        """Return ``Σ M X`` over pairs of a laid-out M and X (r, K), as (n, K)."""
        return _total([M @ X for M, X in pairs])

    def back(self, *pairs: tuple[Any, Array]) -> Array:
        """Return ``Σ Mᵀ B`` over pairs of a laid-out M and B (n, K), as (r, K)."""
        return _total([M.T @ B for M, B in pairs])

    def entries(self, *pairs: tuple[Array, Array]) -> Array:
        """Return the entries of ``Σ B Xᵀ`` on the pattern, (m,), over pairs of B (n, K) and X (r, K)."""
        return _total([B @ X.T for B, X in pairs])[self.mask]


class Strips(Dense):
    """The same in parts: the rows with few entries as one sparse matrix, the others as dense ones, a strip each."""

    def __init__(self, mask: NDArray[np.bool_]) -> None:
        super().__init__(mask)
        used = mask.sum(axis=1)
        many = np.flatnonzero(used > FEW)
        many = many[np.argsort(used[many], kind="stable")]
        shares = np.cumsum(used[many])
        cuts: Any = np.searchsorted(shares, shares[-1:] * np.arange(1, STRIPS) / STRIPS) if many.size else []
        numbers = np.zeros(mask.shape if many.size else (0, 0), dtype=np.intp)
        if many.size:
            numbers[mask] = np.arange(self.rows.size)
        self.strips = [Strip(mask, np.sort(rows), numbers) for rows in np.split(many, cuts) if rows.size]
        self.lone = np.flatnonzero((used <= FEW)[self.rows])
        self.at = self.rows[self.lone], self.columns[self.lone]

    def laid(self, x: Array) -> list[Any]:
        from scipy.sparse import csr_array

        sparse = csr_array((x[self.lone], self.at), shape=self.mask.shape)
        return [sparse, *(strip.laid(x) for strip in self.strips)]

    def times(self, *pairs: tuple[Any, Array]) -> Array:
        out = _total([sparse @ X for (sparse, *_), X in pairs])
        for (_, *blocks), X in pairs:
            for strip, block in zip(self.strips, blocks, strict=True):
                out[strip.rows] += block @ X[strip.columns]
        return out

    def back(self, *pairs: tuple[Any, Array]) -> Array:
        out = _total([sparse.T @ B for (sparse, *_), B in pairs])
        for (_, *blocks), B in pairs:
            for strip, block in zip(self.strips, blocks, strict=True):
                out[strip.columns] += block.T @ B[strip.rows]
        return out

    def entries(self, *pairs: tuple[Array, Array]) -> Array:
        out = np.zeros(self.rows.size)
        rows, columns = self.at
        for B, X in pairs:
            out[self.lone] += np.einsum("ij,ij->i", B[rows], X[columns])
            for strip in self.strips:
                out[strip.entries] += (B[strip.rows] @ X[strip.columns].T)[strip.inside]
        return out


def _total(parts: list[Array]) -> Array:
    """Their sum, in place of the first."""
    for part in parts[1:]:
        parts[0] += part
    return parts[0]


def _span(index: Index) -> Any:
    """The same as a slice, which copies nothing, where there are no holes."""
    first, last = int(index[0]), int(index[-1]) + 1
    return slice(first, last) if last - first == len(index) else index
