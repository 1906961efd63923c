"""Effective ranks of features, means and heads; NC0."""

from __future__ import annotations

import torch
from torch import Tensor

from collapsekit.heads.verdict import nc0_share
from collapsekit.metrics.conventions._reading import Centre, averaging, whole_scatter
from collapsekit.metrics.moments import ClassMoments


def singular_values(moments: ClassMoments, *, centre: Centre | None = None) -> Tensor:
    """Return the singular values of all features (N, d) from their moments, descending, (d,).

    Parameters
    ----------
    moments : ClassMoments
        With scatter.
    centre : {"samples", "classes"} or None
        What is subtracted from every feature first; None as in RankMe.

    Returns
    -------
    Tensor, shape (d,)
        NaN without scatter. Roots of eigenvalues of a d × d matrix: values below 1e-8 of the largest are rounding.

    Examples
    --------
    >>> import torch
    >>> from collapsekit.metrics import ClassMoments
    >>> moments = ClassMoments(2, 2)
    >>> moments.update(torch.tensor([[3.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 1]))
    >>> singular_values(moments).tolist()
    [3.0, 2.0]
    """
    scatter = whole_scatter(moments)
    if scatter is None:
        return torch.full((moments.dim,), torch.nan, dtype=torch.float64)
    means, counts = moments.means[moments.seen], moments.counts[moments.seen]
    if centre is not None:
        means = means - averaging(counts, centre) @ means
    second = scatter + (means.T * counts) @ means
    squares: Tensor = torch.linalg.eigvalsh(second)
    return squares.clamp(min=0).sqrt().flip(0)


def effective_rank(of: Tensor) -> float:
    """Return the exponential of the entropy of normalised singular values: r for r equal ones, 1 for a line.

    Parameters
    ----------
    of : Tensor, shape (d,) or (K, d)
        Singular values, or rows whose singular values are taken; rows of NaN are left out.

    Returns
    -------
    float
        NaN where all are 0.

    References
    ----------
    Roy, Vetterli, "The effective rank", EUSIPCO 2007; on features RankMe, Garrido et al., ICML 2023.

    Examples
    --------
    >>> import torch
    >>> round(effective_rank(torch.eye(5) - 0.2), 6)  # a simplex ETF spans K − 1 dimensions
    4.0
    """
    values = _values(of)
    return float(torch.special.entr(values / values.sum()).sum().exp())


def stable_rank(of: Tensor) -> float:
    """Return ``‖A‖_F² / ‖A‖₂²``: the number of directions that carry the squares, at most the rank.

    Parameters
    ----------
    of : Tensor, shape (d,) or (K, d)
        Singular values, or rows whose singular values are taken; rows of NaN are left out.

    Returns
    -------
    float
        NaN where all are 0.

    References
    ----------
    Rudelson, Vershynin, "Sampling from large matrices", J. ACM 2007.

    Examples
    --------
    >>> import torch
    >>> round(stable_rank(torch.eye(5) - 0.2), 6)
    4.0
    """
    values = _values(of)
    return float((values / values.max()).square().sum())


def nc0(weight: Tensor) -> float:
    """Return ``‖Wᵀ1‖ / ‖W‖_F``: the sum of all rows over what independent rows of these norms would give.

    0 at every stationary point of a softmax loss with coupled decay on the head, balanced or not, any features
    (`docs/theory.md`); so it can be read under imbalance. For bounds that follow from it see ``inspect_head``.

    Parameters
    ----------
    weight : Tensor, shape (K, d)
        Head.

    Returns
    -------
    float
        0 for a head of 0.

    Examples
    --------
    >>> import torch
    >>> round(nc0(torch.eye(4) - 0.25), 12), nc0(torch.eye(4))
    (0.0, 1.0)
    """
    W = weight.detach().double()
    return nc0_share(float(W.sum(dim=0).norm()), W.norm(dim=1).cpu().numpy())


def _values(of: Tensor) -> Tensor:
    of = of.detach().double()
    return of if of.ndim == 1 else torch.linalg.svdvals(of[torch.isfinite(of).all(dim=1)])
