"""Sums over all pairs of classes in one pass: each block of a Gram matrix is made once, and half of them only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

SIDE = 512
"""Rows of a block: products of that size are fast, and what is made of them stays in the cache."""
CLOSE = 1e-4
"""Squared distances below this share of the squared lengths are formed by differences: products lose their digits."""


class PairSum(Protocol):
    """What is made of pairs of points, block by block of their Gram matrix."""

    def add(self, i: slice, j: slice, gram: Tensor) -> None:
        """Add the pairs of points i and j, ⟨x_i, x_j⟩; off the diagonal each block stands for its transpose too."""


def over_pairs(points: Tensor, sums: Sequence[PairSum]) -> None:
    """Show every block on and above the diagonal of ``X Xᵀ``, X (K, d), to each of the sums."""
    blocks = [slice(start, min(start + SIDE, len(points))) for start in range(0, len(points), SIDE)]
    for a, i in enumerate(blocks):
        for j in blocks[a:]:
            gram = points[i] @ points[j].T
            for one in sums:
                one.add(i, j, gram)


class InverseDistances:
    """``Σ_l u_l / ‖x_k − x_l‖^e`` over the other points, for each column of u; points around their centroid.

    Parameters
    ----------
    points : Tensor, shape (K, d)
    values : Tensor, shape (K, m)
    exponent : {2, 4}
    """

    def __init__(self, points: Tensor, values: Tensor, exponent: int = 2) -> None:
        self.points, self.values, self.exponent = points, values, exponent
        self.sqnorms = torch.einsum("kd,kd->k", points, points)
        self.sums = torch.zeros_like(values)

    def add(self, i: slice, j: slice, gram: Tensor) -> None:
        lengths = self.sqnorms[i, None] + self.sqnorms[j]
        squares = torch.sub(lengths, gram, alpha=2)
        if float(squares.min()) < CLOSE * float(self.sqnorms[i].max() + self.sqnorms[j].max()):
            self._repair(squares, lengths, i, j)
        if i == j:
            squares.fill_diagonal_(torch.inf)
        inverse = squares.square_().reciprocal_() if self.exponent == 4 else squares.reciprocal_()
        self.sums[i] += inverse @ self.values[j]
        if i != j:
            self.sums[j] += inverse.T @ self.values[i]

    def _repair(self, squares: Tensor, lengths: Tensor, i: slice, j: slice) -> None:
        rows, columns = torch.nonzero(squares <= CLOSE * lengths, as_tuple=True)
        for part in torch.split(torch.arange(len(rows), device=rows.device), max(1, SIDE**2 // self.points.shape[1])):
            r, c = rows[part], columns[part]
            squares[r, c] = (self.points[i.start + r] - self.points[j.start + c]).square().sum(dim=1)


class Cosines:
    """Largest and mean of ``|cos(x_k, x_l) + shift|`` over pairs of points, or of those that are moved by an offset.

    Parameters
    ----------
    points : Tensor, shape (K, d)
    offset : Tensor, shape (d,), optional
        What is added to every point before angles are taken.
    least : float
        Points whose squared length is below this share of the largest do not count, nor those of length 0; negative:
        all count, and the result is NaN if one has no direction.
    shift : float
    """

    def __init__(
        self, points: Tensor, offset: Tensor | None = None, *, least: float = -1.0, shift: float = 0.0
    ) -> None:
        sqnorms = torch.einsum("kd,kd->k", points, points)
        self.moved: Tensor | None = None
        if offset is not None:
            self.moved = points @ offset + (offset @ offset) / 2  # ⟨x + o, y + o⟩ = ⟨x, y⟩ + moved(x) + moved(y)
            sqnorms = (sqnorms + 2 * self.moved).clamp_(min=0)
        self.scales, self.count, self.shift = sqnorms.rsqrt(), len(points), shift
        if least >= 0 and len(points):
            dropped = (sqnorms < least * sqnorms.max()) | (sqnorms == 0)
            self.scales[dropped] = 0.0
            self.count -= int(dropped.sum())
        self.top, self.total = sqnorms.new_zeros(()), sqnorms.new_zeros(())

    def add(self, i: slice, j: slice, gram: Tensor) -> None:
        if self.moved is None:
            angles = gram * self.scales[i, None]
        else:
            angles = (gram + self.moved[i, None]).add_(self.moved[j]).mul_(self.scales[i, None])
        angles.mul_(self.scales[j])
        if self.shift:
            angles.add_(self.shift)
        angles.abs_()
        if i == j:
            angles.fill_diagonal_(0.0)
        self.top = torch.maximum(self.top, angles.max())
        self.total = self.total + angles.sum() * (1 if i == j else 2)

    @property
    def largest(self) -> float:
        """NaN below two points."""
        return float(self.top) if self.count > 1 else float("nan")

    @property
    def mean(self) -> float:
        """NaN below two points."""
        return float(self.total) / (self.count * (self.count - 1)) if self.count > 1 else float("nan")


def simplex_cosines(points: Tensor) -> Cosines:
    """How far cosines between K points are from −1/(K−1)."""
    return Cosines(points, shift=1 / (len(points) - 1) if len(points) > 1 else 0.0)
