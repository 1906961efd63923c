"""NC1 and CDNV: how far the samples of a class lie from its mean, over how far the means lie apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from collapsekit.metrics import functional as F
from collapsekit.metrics.conventions._reading import (
    Centre,
    Reading,
    Weighting,
    averaging,
    class_order,
    placed,
    reading,
    unknown,
    whole_scatter,
)
from collapsekit.metrics.conventions._rows import squared_distances
from collapsekit.metrics.moments import ClassMoments


def trace_ratio(
    moments: ClassMoments, *, within: Weighting = "samples", centre: Centre = "samples", unbiased: bool = False
) -> Reading:
    r"""Return the quotient of traces ``tr Σ_W / tr Σ_B``: NC1 without an inverse, and without scatter.

    .. math::

        \Sigma_W = \sum_k a_k \tfrac1{n_k}\sum_i (h_{k,i}-\mu_k)(h_{k,i}-\mu_k)^\top, \qquad
        \operatorname{tr}\Sigma_B = \frac1K \sum_k \lVert\mu_k-\mu_G\rVert^2

    Parameters
    ----------
    moments : ClassMoments
        Scatter is not needed.
    within : {"samples", "classes"}
        Whether ``a_k`` is ``n_k/N`` or ``1/K``.
    centre : {"samples", "classes"}
        Whether μ_G averages samples or class means.
    unbiased : bool
        Whether to correct for few samples (derived here). With ``v_k`` the variance with ``n_k − 1``, class means err
        by ``e_k = v_k/n_k``, and ``tr Σ_B`` comes out too large by ``(1/K) Σ e_k (1 − 2 b_k) + Σ b_k² e_k``, `b` the
        weights of μ_G (``(1 − 1/K)`` times the mean of e for class means). Classes of one sample are then left out.

    Returns
    -------
    Reading
        Per class the variance of that class over ``tr Σ_B``. Infinite where means are no farther apart than their
        errors; NaN below two classes and where no class has two samples.

    References
    ----------
    Tirer, Huang, Niles-Weed, "Perturbation analysis of neural collapse", ICML 2023 (balanced: all four are one there).

    Examples
    --------
    >>> import torch
    >>> from collapsekit.metrics import ClassMoments
    >>> moments = ClassMoments(2, 1)
    >>> moments.update(torch.tensor([[0.0], [2.0], [9.0], [11.0]]), torch.tensor([0, 0, 1, 1]))
    >>> round(trace_ratio(moments).value, 6)  # 1 over 4.5²
    0.049383
    >>> round(trace_ratio(moments, unbiased=True).value, 6)  # 2 over 4.5² − 2/2 · (1 − 1/2)
    0.101266
    """
    n, v, known = _variances(moments, unbiased)
    if known.sum() < 2:
        return unknown(moments.num_classes)
    means, weights = moments.means[known], averaging(n, centre)
    between = (means - weights @ means).square().sum(dim=1).mean()
    if unbiased:
        errors = v / n
        between = between - (errors * (1 - 2 * weights)).mean() - weights.square() @ errors
    ratios = v / between.clamp(min=0)
    return reading(averaging(n, within) @ v / between.clamp(min=0), placed(ratios, known))


def nc1_by_class(
    moments: ClassMoments,
    features: Tensor,
    labels: Tensor,
    *,
    within: Weighting = "samples",
    centre: Centre = "samples",
    per_class: bool = True,
) -> Reading:
    r"""Return ``tr(Σ_W Σ_B†)`` class by class, averaged over samples (as :func:`functional.nc1`) or over classes.

    The moments keep the scatter of all classes together; which class it comes from is read from the samples again.

    Parameters
    ----------
    moments : ClassMoments
        Of `features`; scatter is not needed.
    features : Tensor, shape (N, d)
        The samples.
    labels : Tensor, shape (N,)
        Their classes.
    within : {"samples", "classes"}
        Σ_W as the mean over samples, or as the mean over classes of each class's covariance, in which rare classes
        count as much as large ones.
    centre : {"samples", "classes"}
        Whether μ_G averages samples or class means.
    per_class : bool
        Whether to divide by the number of seen classes.

    Returns
    -------
    Reading
        Per class ``tr(Σ_k Σ_B†)``, divided alike; NaN as :func:`functional.nc1`.

    Raises
    ------
    CollapseError
        If the samples are not those of `moments`.

    References
    ----------
    Papyan, Han, Donoho, PNAS 2020 (balanced: both averages are one there).

    Examples
    --------
    >>> import torch
    >>> from collapsekit.metrics import ClassMoments
    >>> moments, x = ClassMoments(2, 1), torch.tensor([[0.0], [2.0], [9.0], [9.0], [9.0]])
    >>> y = torch.tensor([0, 0, 1, 1, 1])
    >>> moments.update(x, y)
    >>> shares = [nc1_by_class(moments, x, y, within=w, centre="classes").value for w in ("samples", "classes")]
    >>> [round(share, 6) for share in shares]  # 2/5 and 1/2 of the variance of class 0, over 4², over K
    [0.0125, 0.015625]
    """
    known, counts = moments.seen, moments.counts
    root = F.inverse_between(moments, centre)
    if root is None or bool((counts < 2).all()):
        return unknown(moments.num_classes)
    sums = torch.zeros_like(counts)
    for classes, residuals in _residuals(moments, features, labels, len(root)):
        sums.index_add_(0, classes, (residuals @ root.T).square().sum(dim=1))
    shares = sums[known] / counts[known] * (1 if per_class else len(counts[known]))
    return reading(averaging(counts[known], within) @ shares, placed(shares, known))


def cdnv_corrected(moments: ClassMoments) -> Reading:
    r"""Return the CDNV with numerator and denominator both freed of the bias that few samples bring.

    .. math::

        V_{kl} = \frac{v_k + v_l}{2 D_{kl}}, \qquad v_k = \tfrac1{n_k-1}\sum_i\lVert h_{k,i}-\mu_k\rVert^2, \qquad
        D_{kl} = \lVert\mu_k-\mu_l\rVert^2 - \frac{v_k}{n_k} - \frac{v_l}{n_l}

    Dividing by ``n_k`` makes variances of small classes too small by ``1 − 1/n_k``; means of few samples lie too far
    apart, their squared distance by ``tr Σ_k/n_k + tr Σ_l/n_l`` on average. Both let rare classes look collapsed. The
    corrected parts have the right expectation each (derived here); their quotient is not unbiased, but its bias falls
    with the noise of the parts and not with ``1/n``.

    Parameters
    ----------
    moments : ClassMoments
        Scatter is not needed.

    Returns
    -------
    Reading
        Mean over pairs of classes with two samples or more, and over the partners of each class. Infinite where two
        means are no farther apart than their sampling errors; NaN below two such classes.

    Examples
    --------
    >>> import torch
    >>> from collapsekit.metrics import ClassMoments, functional
    >>> moments = ClassMoments(2, 1)
    >>> moments.update(torch.tensor([[0.0], [2.0], [9.0], [11.0]]), torch.tensor([0, 0, 1, 1]))
    >>> round(functional.cdnv(moments)[0], 6), round(cdnv_corrected(moments).value, 6)  # 1/81 and 2/(81 − 2/2 − 2/2)
    (0.012346, 0.025316)
    """
    n, v, known = _variances(moments, unbiased=True)
    means, errors = moments.means[known], v / n

    def pairs(rows: slice, squared: Tensor) -> Tensor:
        return (v[rows, None] + v) / (2 * (squared - errors[rows, None] - errors).clamp(min=0))

    return _over_partners(means, known, pairs)


def cdnv_pooled(moments: ClassMoments) -> Reading:
    r"""Return the directional CDNV of one covariance for all classes: what the moments alone can tell.

    .. math::

        V_{kl} = \frac{u_{kl}^\top \Sigma_W u_{kl}}{\lVert\mu_k-\mu_l\rVert^2}, \qquad
        u_{kl} = \frac{\mu_k-\mu_l}{\lVert\mu_k-\mu_l\rVert}, \qquad \Sigma_W = S/N

    It is :func:`cdnv_directional` where all classes have one covariance, or where two classes have as many samples;
    otherwise large classes stand in for rare ones, and only the samples tell.

    Parameters
    ----------
    moments : ClassMoments
        With scatter.

    Returns
    -------
    Reading
        Mean over pairs of seen classes and over the partners of each; infinite where two means coincide; NaN without
        scatter, below two classes and where no class has two samples.

    References
    ----------
    Derived here, after Luthra, Salunkhe, Galanti 2026.

    Examples
    --------
    >>> import torch
    >>> from collapsekit.metrics import ClassMoments
    >>> moments = ClassMoments(2, 2)
    >>> moments.update(torch.tensor([[0.0, 1], [0, -1], [4, 1], [4, -1]]), torch.tensor([0, 0, 1, 1]))
    >>> cdnv_pooled(moments).value  # the spread is across the line between the means
    0.0
    """
    known, means, scatter = moments.seen, moments.means[moments.seen], whole_scatter(moments)
    if scatter is None or bool((moments.counts < 2).all()):
        return unknown(moments.num_classes)
    values, vectors = torch.linalg.eigh(scatter / moments.counts.sum())
    spread = means @ (vectors * values.clamp(min=0).sqrt())

    def pairs(rows: slice, squared: Tensor) -> Tensor:
        return squared_distances(spread, rows) / squared.square()

    return _over_partners(means, known, pairs)


def cdnv_directional(moments: ClassMoments, features: Tensor, labels: Tensor) -> Reading:
    r"""Return the CDNV along the line between two means: the variance that a decision between them sees.

    .. math::

        V_{kl} = \frac{\sigma_{k,kl}^2+\sigma_{l,kl}^2}{2\lVert\mu_k-\mu_l\rVert^2}, \qquad
        \sigma_{k,kl}^2 = \tfrac1{n_k}\sum_i\langle h_{k,i}-\mu_k, u_{kl}\rangle^2, \qquad
        u_{kl} = \frac{\mu_k-\mu_l}{\lVert\mu_k-\mu_l\rVert}

    It takes the covariance of every single class, which the moments do not keep: the samples are read again in blocks
    (N K d products, no K × K and no K × d × d matrix). Between this and the plain CDNV lies a factor of up to d.

    Parameters
    ----------
    moments : ClassMoments
        Of `features`; scatter is not needed.
    features : Tensor, shape (N, d)
        The samples.
    labels : Tensor, shape (N,)
        Their classes.

    Returns
    -------
    Reading
        Mean over pairs of seen classes (of both ordered halves) and over the partners of each; infinite where two means
        coincide; NaN below two classes and where no class has two samples.

    Raises
    ------
    CollapseError
        If the samples are not those of `moments`.

    References
    ----------
    Luthra, Salunkhe, Galanti, "Directional neural collapse explains few-shot transfer", 2026.

    Examples
    --------
    >>> import torch
    >>> from collapsekit.metrics import ClassMoments
    >>> moments, y = ClassMoments(2, 2), torch.tensor([0, 0, 1, 1])
    >>> x = torch.tensor([[0.0, 1], [0, -1], [3, 1], [5, 1]])
    >>> moments.update(x, y)
    >>> round(cdnv_directional(moments, x, y).value, 6)  # (1/17 + 16/17)/2 over 17
    0.029412
    """
    known = moments.seen
    means, n = moments.means[known], moments.counts[known]
    if len(n) < 2 or bool((n < 2).all()):
        return unknown(len(known))
    centred, sums, places = means - means.mean(dim=0), torch.zeros_like(n), torch.cumsum(known, 0) - 1
    for classes, residuals in _residuals(moments, features, labels, len(n)):
        own = places[classes]
        first, last = int(own[0]), int(own[-1])
        along = residuals @ centred.T
        along -= along.gather(1, own[:, None])
        shares = (along / squared_distances(centred, slice(first, last + 1))[own - first]).square()
        shares[torch.arange(len(own)), own] = 0.0
        shares = shares.nan_to_num(nan=torch.inf, posinf=torch.inf) / (2 * n[own, None])
        sums += shares.sum(dim=0).index_add(0, own, shares.sum(dim=1))
    per_class = sums / (len(n) - 1)
    return reading(per_class.mean(), placed(per_class, known))


def _variances(moments: ClassMoments, unbiased: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Counts and variances of the known classes, and which they are; none where no class has two samples."""
    least = 2 if unbiased or bool((moments.counts < 2).all()) else 1
    known = moments.counts >= least
    n = moments.counts[known]
    return n, moments.within[known] * (n / (n - 1) if unbiased else 1), known


def _residuals(moments: ClassMoments, features: Tensor, labels: Tensor, width: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Classes (h,) and residuals (h, d) of the samples sorted by class, h rows at a time for products h × `width`."""
    x, order, classes = class_order(features, labels, moments)
    height = max(1, F.BLOCK_ENTRIES // max(width, moments.dim))
    for rows, own in zip(torch.split(order, height), torch.split(classes, height), strict=True):
        yield own, x[rows] - moments.means[own]


def _over_partners(means: Tensor, known: Tensor, pairs_of: Callable[[slice, Tensor], Tensor]) -> Reading:
    """The mean over pairs, and over the partners of each class, of what `pairs_of` makes of rows of distances."""
    size = len(means)
    if size < 2:
        return unknown(len(known))
    sums = means.new_empty(size)
    for rows in F._blocks(size):
        pairs = pairs_of(rows, squared_distances(means, rows))
        pairs[torch.arange(len(pairs)), torch.arange(rows.start, rows.stop)] = 0.0
        sums[rows] = pairs.nan_to_num(nan=torch.inf, posinf=torch.inf).sum(dim=1)
    per_class = sums / (size - 1)
    return reading(per_class.mean(), placed(per_class, known))
