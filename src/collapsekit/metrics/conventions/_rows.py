"""Rows (K, d), and K × K matrices of them that are summed in blocks of rows and never stored."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from collapsekit.metrics import functional as F

Own = tuple[Tensor, Tensor]
"""The places of the diagonal of a K × K matrix within a block of its rows."""


def over_rows(rows_of: Tensor, values_of: Callable[[Tensor, Own], Tensor], *, diagonal: bool = False) -> Tensor:
    """Return the sums over each row, (K,), of the K × K matrix that `values_of` makes of blocks of rows."""
    sums = rows_of.new_empty(len(rows_of))
    for rows in F._blocks(len(rows_of)):
        block = rows_of[rows]
        own = torch.arange(len(block), device=block.device), torch.arange(rows.start, rows.stop, device=block.device)
        values = values_of(block, own)
        if not diagonal:
            values[own] = 0.0
        sums[rows] = values.sum(dim=1)
    return sums


def finite(rows_of: Tensor) -> Tensor:
    """Return which rows hold numbers, (K,) bool."""
    return torch.isfinite(rows_of.detach()).all(dim=1)


def unit_rows(rows_of: Tensor) -> Tensor:
    """Return rows over their norms."""
    unit: Tensor = rows_of / rows_of.norm(dim=1, keepdim=True)
    return unit


def squared_distances(points: Tensor, rows: slice) -> Tensor:
    """Return ‖x_i − x_j‖² for i in `rows`: products around the centroid, differences where their digits cancel."""
    centred = points - points.mean(dim=0)
    sqnorms = centred.square().sum(dim=1)
    sums = sqnorms[rows, None] + sqnorms
    squared = sums - 2 * centred[rows] @ centred.T
    i, j = torch.nonzero(squared < 1e-4 * sums, as_tuple=True)
    for part in torch.split(torch.arange(len(i), device=points.device), max(1, F.BLOCK_ENTRIES // points.shape[1])):
        squared[i[part], j[part]] = (points[rows.start + i[part]] - points[j[part]]).square().sum(dim=1)
    return squared
