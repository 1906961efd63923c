"""Head and centres as they stand in the accumulator's state."""

from __future__ import annotations

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from collapsekit.errors import CollapseError
from collapsekit.metrics.batches import as_tensor

TIED = 1e-12
"""Squared distances that differ by less, relative to the squared lengths they come from, are equal but for rounding."""


def packed_head(weight: ArrayLike | Tensor, bias: ArrayLike | Tensor | None, num_classes: int, dim: int) -> Tensor:
    """Return weight, bias and a flag as one (K, d + 2) float64 tensor; flag 0: no head, 1: no bias, 2: bias."""
    W = as_tensor("weight", weight)
    if tuple(W.shape) != (num_classes, dim):
        raise CollapseError(f"weight: shape {tuple(W.shape)}; expected ({num_classes}, {dim}), one row a class")
    b = torch.zeros(num_classes) if bias is None else as_tensor("bias", bias)
    if tuple(b.shape) != (num_classes,):
        raise CollapseError(f"bias: shape {tuple(b.shape)}; expected ({num_classes},)")
    if not (torch.isfinite(W).all() and torch.isfinite(b).all()):
        raise CollapseError("weight or bias: not finite; the head has diverged")
    flag = torch.full((num_classes, 1), 1.0 if bias is None else 2.0, dtype=torch.float64, device=W.device)
    return torch.cat([W.to(torch.float64), b.to(W.device, torch.float64)[:, None], flag], dim=1)


def unpacked_head(state: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Return (weight, bias) from a packed head, None for what it does not hold."""
    flag = float(state[0, -1])
    return (state[:, :-2] if flag > 0 else None), (state[:, -2] if flag > 1 else None)


def last_head(states: Tensor) -> Tensor:
    """Return the last packed head that holds one: batches without a head, and ranks without data, do not count."""
    return next((state for state in reversed(list(states)) if float(state[0, -1]) > 0), states[-1])


def first_centres(states: Tensor) -> Tensor:
    """Return the first centres that were frozen; those of all processes are the same."""
    return next((state for state in states if state.isfinite().any()), states[0])


def nearest_centre(features: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """Return the class of each feature's nearest centre, (n,), and whether there is one and no other as near.

    Classes without a centre (NaN) never win.
    """
    known = torch.nonzero(torch.isfinite(centres).all(dim=1))[:, 0]
    middle = centres[known].mean(dim=0)
    x, points = features - middle, centres[known] - middle
    if len(known) < 2:
        return known.expand(len(x)), torch.zeros(len(x), dtype=torch.bool, device=x.device)
    sqnorms = points.square().sum(dim=1)
    squares, order = torch.addmm(sqnorms, x, points.T, alpha=-2).topk(2, dim=1, largest=False)
    size = x.square().sum(dim=1) + sqnorms.max()
    return known[order[:, 0]], squares[:, 1] - squares[:, 0] > TIED * size
