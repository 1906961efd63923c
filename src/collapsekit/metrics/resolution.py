"""What the storage of features cannot resolve: spread within classes below the spacing of their numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from collapsekit.metrics.moments import ClassMoments
from collapsekit.metrics.rows import row_blocks

RESOLVED = 0.1
"""Largest relative error, by the bound of `rounding_variances`, of a spread that is known; a third is typical."""
FLOAT16_SPACING, FLOAT16_LEAST = 2.0**-10, 2.0**-24


def rounding_variances(moments: ClassMoments, spacing: float) -> Tensor:
    r"""Return how far storing features may have moved each class's variance, (K,); 0 for float64.

    A coordinate c of class k is stored in steps of :math:`u = \epsilon\,2^{\lfloor\log_2|\mu_{kc}|\rfloor}`. Rounding
    adds about :math:`u^2/12` to a variance well above :math:`u^2`; of a smaller one it may leave 0 or make up to
    :math:`u^2/4` (values that straddle a boundary). So the error is at most :math:`\sum_c u_{kc}^2/4`. Derived here.

    Parameters
    ----------
    moments : ClassMoments
    spacing : float
        ε, of the coarsest type that features came in.
    """
    found = torch.zeros(moments.num_classes, dtype=torch.float64, device=moments.state.device)
    if spacing:
        for rows in row_blocks(moments.num_classes, moments.dim):
            found[rows] = _steps(moments.table[rows], spacing).square_().sum(dim=1) / 4
    return torch.where(moments.seen, found, torch.nan)


def rounding_scatter(moments: ClassMoments, spacing: float) -> Tensor:
    """Return the same bound for each coordinate of S, (d,), ``Σ_k n_k u_kc²/4``; coordinates round on their own."""
    counts = torch.where(moments.counts > 1, moments.counts, 0.0)
    found = torch.zeros(moments.dim, dtype=torch.float64, device=moments.state.device)
    if spacing:
        for rows in row_blocks(moments.num_classes, moments.dim):
            found += counts[rows] @ _steps(moments.table[rows], spacing).square_() / 4
    return found


def _steps(means: Tensor, spacing: float) -> Tensor:
    mantissa, exponent = torch.frexp(means)  # |mantissa| from 1/2 to 1
    steps = torch.ldexp((mantissa != 0).to(means) * (spacing / 2), exponent)
    return torch.where(steps > 0, steps.clamp(min=FLOAT16_LEAST), 0.0) if spacing == FLOAT16_SPACING else steps
