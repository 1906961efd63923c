"""Row blocks that stay in the cache, and sums of products over them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

ROWS = 1024
"""Products of so many rows are added up in float32 before they join a float64 sum: rounding stays below 1e-7 of it."""
BLOCK_ENTRIES = 2**19
NARROW = 128
"""From so many columns on, a Gram matrix is made in four strips, which saves three eighths of its products."""


class Apart:
    """Differences between two sets of class centres, weighted, a block of classes at a time."""

    def __init__(self, origin: Tensor, classes: Tensor, means: Tensor, weights: Tensor) -> None:
        self.origin, self.means = origin, means
        self.classes, self.weights = classes, weights.sqrt()
        self.apart = torch.nonzero(weights > 0).flatten()

    def _blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        for rows in row_blocks(len(self.apart), self.means.shape[1]):
            some = self.apart[rows]
            delta = self.means[some] - self.origin[self.classes[some]].to(self.means.dtype)
            yield some, delta * self.weights[some, None]

    def squares(self) -> Tensor:
        """Squared length of each class's difference times its weight."""
        found = torch.zeros_like(self.weights)
        for some, rows in self._blocks():
            found[some] = rows.square().sum(dim=1)
        return found

    def add_gram(self, gram: Tensor, basis: Tensor | None, dtype: torch.dtype, sign: int = 1) -> None:
        """Add (or take away) the Gram matrix of the weighted differences."""
        for _, rows in self._blocks():
            add_gram(gram, rows.to(dtype), basis, sign)


def add_gram(gram: Tensor, rows: Tensor, basis: Tensor | None, sign: int = 1) -> None:
    """Add the products of some rows, (n, d), or of their projections, in their own precision to a float64 matrix.

    What lies below the diagonal is left out, but for small blocks; `mirrored` fills it in.
    """
    projected = rows if basis is None else rows @ basis.T.to(rows.dtype)
    width = projected.shape[1]
    step = width if width < NARROW else -(-width // 4)
    for start in range(0, width, step):
        strip = projected[:, start : start + step]
        gram[start : start + step, start:].add_(strip.T @ projected[:, start:], alpha=sign)


def mirrored(gram: Tensor) -> Tensor:
    """Return the symmetric matrix whose upper triangle that of `gram` is; `gram` is overwritten."""
    gram.triu_()
    return gram.add_(gram.triu(1).T)


def row_blocks(size: int, width: int) -> Iterator[slice]:
    """Cut rows into blocks of at most `ROWS` and `BLOCK_ENTRIES` numbers, which stay in the cache."""
    height = max(1, min(ROWS, BLOCK_ENTRIES // width))
    for start in range(0, size, height):
        yield slice(start, min(start + height, size))
