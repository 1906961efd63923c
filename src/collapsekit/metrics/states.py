"""States of the accumulator that are as large as the head: how they are kept, and which of several counts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

EMPTY = {"head_state": 0.0, "centres": math.nan}
"""What stands for a head or centres that are not there, where processes exchange them; else they have no rows."""


def packed_head(state: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return weight, bias and a flag (1 without a bias, 2 with one) in one (K, d + 2) tensor, in place if it fits.

    It is a copy in the head's own precision, made in every step of a training: nothing that is not needed.
    """
    dtype = weight.dtype if weight.dtype in (torch.float32, torch.float64) else torch.float32
    if state.dtype != dtype or not len(state):
        state = torch.empty(len(weight), weight.shape[1] + 2, dtype=dtype, device=state.device)
    state[:, :-2] = weight
    state[:, -2] = 0 if bias is None else bias
    state[:, -1] = 1 if bias is None else 2
    return state


def unpacked_head(state: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Return (weight, bias) from a packed head, None for what it does not hold."""
    flag = float(state[0, -1]) if len(state) else 0.0
    return (state[:, :-2] if flag > 0 else None), (state[:, -2] if flag > 1 else None)


def last_head(states: Tensor | Sequence[Tensor]) -> Tensor:
    """Return the last packed head that holds one: batches without a head, and ranks without data, do not count."""
    return next((state for state in reversed(list(states)) if len(state) and float(state[0, -1]) > 0), states[-1])


def first_basis(states: Tensor | Sequence[Tensor]) -> Tensor:
    """Return the first basis that was made; those of all processes are the same."""
    return next((state for state in states if bool(state.any())), states[0])


def first_centres(states: Tensor | Sequence[Tensor]) -> Tensor:
    """Return the first centres that were frozen; those of all processes are the same."""
    return next((state for state in states if len(state) and state.isfinite().any()), states[0])
