"""NC4, NC5 and intervals: what takes decisions, other samples, or the same samples drawn again."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import NamedTuple

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from collapsekit.errors import CollapseError
from collapsekit.metrics.batches import as_tensor, require_finite
from collapsekit.metrics.conventions._reading import (
    Centre,
    Reading,
    Weighting,
    averaging,
    class_order,
    means_about,
    reading,
    unknown,
    whole_scatter,
)
from collapsekit.metrics.measurement import Measurement
from collapsekit.metrics.moments import ClassMoments
from collapsekit.validation import whole_number


class Interval(NamedTuple):
    """A metric with an interval from samples drawn again within classes.

    Attributes
    ----------
    value : Tensor
        The metric of the samples as they are, () or (K,).
    low, high : Tensor
        Its limits, shaped alike.
    """

    value: Tensor
    low: Tensor
    high: Tensor


def nc4(measured: Measurement, *, average: Weighting = "samples", mismatch: bool = False) -> Reading:
    """Return the share of samples whose nearest class mean names the class that the network names, or their mismatch.

    Samples between coinciding means, or whose logits tie, name no class and do not count: scripts that take the first
    of equal ones score lost classes by the order of the classes.

    Parameters
    ----------
    measured : Measurement
        With a head, from ``measure`` or ``measure_features``; the bias is part of the decision.
    average : {"samples", "classes"}
        Whether a class counts by its samples, or all alike; under imbalance the former hides the rare ones.
    mismatch : bool
        Whether to return one minus the share, as Papyan et al. plot it.

    Returns
    -------
    Reading
        NaN without decisions, and for classes none of whose samples has both.

    References
    ----------
    Papyan, Han, Donoho, PNAS 2020.

    Examples
    --------
    >>> import torch
    >>> from collapsekit.metrics import measure_features
    >>> features = torch.tensor([[1.0, 0.0], [1.0, 0.2], [0.0, 1.0], [0.8, 1.0]])
    >>> nc4(measure_features(features, [0, 0, 1, 1], weight=torch.tensor([[1.0, 0.0], [0.0, 0.7]]))).per_class.tolist()
    [1.0, 0.5]
    """
    counts = measured.moments.counts
    if measured.centre_agreement is None:
        return unknown(len(counts))
    shares = torch.from_numpy(measured.centre_agreement).to(counts)
    known = shares.isfinite()
    if not known.any():
        return unknown(len(counts))
    shares = 1 - shares if mismatch else shares
    value = averaging(counts[known], average) @ shares[known]
    return reading(value, shares, lowest=not mismatch)


def nc5(moments: ClassMoments, outside: ArrayLike | Tensor, *, centre: Centre | None = None) -> Reading:
    r"""Return the mean ``|cos|`` between class means and the mean of out-of-distribution features: 0 if orthogonal.

    Parameters
    ----------
    moments : ClassMoments
        Of the training samples; scatter is not needed.
    outside : array_like or Tensor, shape (n, d) or (d,)
        Features of the out-of-distribution set, without labels, or their mean.
    centre : {"samples", "classes"} or None
        What is subtracted from class means and from the outside mean; None as published.

    Returns
    -------
    Reading
        Per class its |cosine|; NaN where a mean is 0.

    Raises
    ------
    CollapseError
        If the width differs or a feature is not finite.

    Notes
    -----
    Behind a ReLU all features are nonnegative, so that no cosine is below 0 and only an outside set that leaves the
    coordinates of all classes dark reaches 0.

    References
    ----------
    Ammar et al., "NECO: neural collapse based out-of-distribution detection", ICLR 2024.

    Examples
    --------
    >>> import torch
    >>> moments = ClassMoments(2, 3)
    >>> moments.update(torch.tensor([[1.0, 0, 0], [0, 1.0, 0]]), torch.tensor([0, 1]))
    >>> round(nc5(moments, torch.tensor([[1.0, 0, 1], [-1.0, 1, 1]])).value, 6)  # their mean is (0, ½, 1)
    0.223607
    """
    features = _outside(outside, moments)
    mean = features.mean(dim=0)
    means = means_about(moments, centre)
    shift = (moments.means - means)[moments.seen][0] if centre and moments.seen.any() else torch.zeros_like(mean)
    cosines = (means @ (mean - shift) / (means.norm(dim=1) * (mean - shift).norm())).abs()
    return reading(cosines.nanmean(), cosines)


def neco(moments: ClassMoments, features: ArrayLike | Tensor, *, dim: int, centre: Centre | None = None) -> Tensor:
    """Return for each feature the share of its length in the principal directions of the training features.

    Parameters
    ----------
    moments : ClassMoments
        Of the training samples, with scatter.
    features : array_like or Tensor, shape (n, d)
        Any samples.
    dim : int
        How many principal directions; K − 1 to K of a collapsed network hold all of its features.
    centre : {"samples", "classes"} or None
        What is subtracted from training samples and `features`.

    Returns
    -------
    Tensor, shape (n,)
        ``‖P h‖/‖h‖`` in [0, 1]; large inside the training distribution. NaN without scatter, and of a feature of 0.

    Raises
    ------
    CollapseError
        If `dim` is not in [1, d], the width differs or a feature is not finite.

    References
    ----------
    Ammar et al., ICLR 2024 (their score; they standardise features first and scale by the largest logit).

    Examples
    --------
    >>> import torch
    >>> moments = ClassMoments(2, 3)
    >>> moments.update(torch.tensor([[1.0, 0, 0], [0, 1.0, 0]]), torch.tensor([0, 1]))
    >>> neco(moments, torch.tensor([[2.0, 2, 0], [3.0, 0, 4]]), dim=2).numpy().round(4)
    array([1. , 0.6])
    """
    x = _outside(features, moments)
    if not 1 <= whole_number("dim", dim, 1, "give how many principal directions") <= moments.dim:
        raise CollapseError(f"dim={dim}: features have {moments.dim} dimensions; give at most that")
    scatter = whole_scatter(moments)
    if scatter is None or not moments.seen.any():
        return torch.full_like(x[:, 0], torch.nan)
    means, counts = means_about(moments, centre)[moments.seen], moments.counts[moments.seen]
    x = x - (moments.means[moments.seen][0] - means[0])
    _, directions = torch.linalg.eigh(scatter + (means.T * counts) @ means)
    shares: Tensor = (x @ directions[:, -dim:]).norm(dim=1) / x.norm(dim=1)
    return shares


def bootstrap(
    metric: Callable[[ClassMoments], float | Tensor | Reading],
    moments: ClassMoments,
    features: Tensor,
    labels: Tensor,
    *,
    draws: int = 200,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Return an interval for a metric of the moments, from samples drawn again within each class.

    Counts stay as they are. Classes drawn again have a variance that is smaller by ``1 − 1/n_k``, and means that are
    farther apart: a metric that few samples bias is biased twice in a draw. The interval is therefore reflected at the
    value (the basic bootstrap) on the scale of logarithms where all draws are positive.

    Parameters
    ----------
    metric : callable
        Of :class:`ClassMoments`; a number, a Tensor, or a :class:`Reading`, whose value and classes are both taken
        (value first).
    moments : ClassMoments
        Of `features`.
    features : Tensor, shape (N, d)
        The samples.
    labels : Tensor, shape (N,)
        Their classes.
    draws : int
        How many draws.
    level : float
        Share of intervals that shall cover, in (0, 1).
    seed : int
        Of the draws.

    Returns
    -------
    Interval
        A class of one sample has no interval of its own: its sample is drawn again every time.

    Raises
    ------
    CollapseError
        If the samples are not those of `moments`, or `draws` or `level` are out of range.

    References
    ----------
    Davison, Hinkley, "Bootstrap methods and their application", 1997, chapter 5.

    Examples
    --------
    >>> import torch
    >>> from collapsekit.metrics.conventions import trace_ratio
    >>> x, y = torch.randn(60, 4, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 2
    >>> x[y == 1] += 5
    >>> moments = ClassMoments(2, 4)
    >>> moments.update(x, y)
    >>> found = bootstrap(trace_ratio, moments, x, y)
    >>> [bool(row[0] < value) for row, value in ((found.low, found.value[0]), (-found.high, -found.value[0]))]
    [True, True]
    """
    whole_number("draws", draws, 2, "give at least two draws")
    if not 0 < level < 1:
        raise CollapseError(f"level={level}: give a number between 0 and 1, such as 0.95")
    x, order, y = class_order(features, labels, moments)
    sizes, starts = moments.counts[y], torch.searchsorted(y, y)
    generator = torch.Generator(device=x.device).manual_seed(seed)
    found = []
    for _ in range(draws):
        drawn = torch.rand(len(x), generator=generator, dtype=torch.float64, device=x.device) * sizes
        again = deepcopy(moments)
        again.state.zero_()
        again.update(x[order[starts + drawn.to(torch.int64)]], y)
        found.append(_numbers(metric(again)))
    return _reflected(_numbers(metric(moments)), torch.stack(found), level)


def _reflected(value: Tensor, found: Tensor, level: float) -> Interval:
    """The basic bootstrap interval, on logarithms where these exist."""
    tails = found.new_tensor([(1 + level) / 2, (1 - level) / 2])
    logs = (found > 0).all(dim=0) & (value > 0) & torch.isfinite(found).all(dim=0)
    high, low = torch.quantile(found, tails, dim=0)
    return Interval(
        value,
        torch.where(logs, value.square() / high, 2 * value - high),
        torch.where(logs, value.square() / low, 2 * value - low),
    )


def _numbers(result: float | Tensor | Reading) -> Tensor:
    if isinstance(result, Reading):
        return torch.cat([result.per_class.new_tensor([result.value]), result.per_class]).double()
    return torch.as_tensor(result, dtype=torch.float64)


def _outside(features: ArrayLike | Tensor, moments: ClassMoments) -> Tensor:
    x = as_tensor("features", features).detach().to(moments.state)
    x = x[None] if x.ndim == 1 else x
    if x.ndim != 2 or x.shape[1] != moments.dim or not len(x):
        raise CollapseError(f"features: shape {tuple(x.shape)}; expected (n, {moments.dim})")
    require_finite(x)
    return x
