"""What class moments say without a head, in one pass over the pairs of classes; what storage cannot resolve is NaN."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from collapsekit.metrics import functional as F
from collapsekit.metrics.moments import ClassMoments
from collapsekit.metrics.pairs import Cosines, InverseDistances, over_pairs, simplex_cosines
from collapsekit.metrics.resolution import RESOLVED, rounding_scatter, rounding_variances

UNSEEN, ONE_SAMPLE, BELOW_RESOLUTION = "unseen", "one sample", "below resolution"


@dataclass(frozen=True)
class Summary:
    """Scalars by key; within-class variance and CDNV of each class, (K,); why a number of it is not known."""

    scalars: dict[str, float]
    within: Tensor
    cdnv: Tensor
    reasons: dict[str, str]
    class_reasons: tuple[str, ...]


def summarise(moments: ClassMoments, spacing: float) -> Summary:
    """Return the scalars of class means and spread that need no head.

    Parameters
    ----------
    moments : ClassMoments
    spacing : float
        Of the storage of the features, as :func:`rounding_variances` takes it.
    """
    seen, several = moments.seen, moments.counts > 1
    within, cdnv = moments.within, torch.full_like(moments.counts, torch.nan)
    error = torch.where(several, rounding_variances(moments, spacing), 0.0)
    below = error > RESOLVED * within
    scalars = _scalars(moments, spacing, within, error, cdnv) if bool(seen.any()) else {}
    reasons = {key: BELOW_RESOLUTION for key, value in scalars.items() if value is None}
    words = [
        UNSEEN if n == 0 else ONE_SAMPLE if n == 1 else BELOW_RESOLUTION if low else ""
        for n, low in zip(moments.counts.tolist(), below.tolist(), strict=True)
    ]
    known = {key: float("nan") if value is None else value for key, value in scalars.items()}
    return Summary(known, torch.where(several & ~below, within, torch.nan), cdnv, reasons, tuple(words))


def _scalars(
    moments: ClassMoments, spacing: float, within: Tensor, error: Tensor, cdnv: Tensor
) -> dict[str, float | None]:
    """Numbers by key, None where they are below resolution; the CDNV of each class is written to `cdnv`."""
    seen, nan = moments.seen, float("nan")
    means = F.centred_means(moments)
    spreads = torch.stack([within[seen], error[seen]], dim=1)
    inverse = InverseDistances(means, torch.cat([torch.ones_like(spreads[:, :1]), spreads], dim=1))
    cosines = Cosines(means, F.seen_means(moments).mean(dim=0), least=F.COLLAPSED_SHARE)
    angles = simplex_cosines(means)
    over_pairs(means, [inverse, cosines, angles])
    result: dict[str, float | None] = {"cdnv": nan}
    if len(means) > 1 and bool((moments.counts > 1).any()):
        own, rounding = F.mean_variances(inverse.sums, spreads).T
        cdnv[seen] = torch.where(rounding > RESOLVED * own, torch.nan, own)
        result["cdnv"] = None if bool(rounding.mean() > RESOLVED * own.mean()) else float(own.mean())
    result |= {"nc2_largest_cosine": cosines.largest, "nc2_mean_cosine": cosines.mean}
    if moments.keeps_scatter:
        result["nc1"] = _nc1(moments, spacing)
    return result | {"nc2_etf_h": angles.mean, "nc2_norm_spread_h": F.norm_spread(means)}


def _nc1(moments: ClassMoments, spacing: float) -> float | None:
    inverse = F.inverse_between(moments)
    value = math.nan if inverse is None else F.nc1(moments, inverse=inverse)
    if inverse is None or math.isnan(value):
        return value
    rounding = float((inverse.square() @ rounding_scatter(moments, spacing)).sum() / moments.counts.sum())
    return None if rounding > RESOLVED * value else value
