"""All conventions that a measurement decides, side by side."""

from __future__ import annotations

import torch

from collapsekit.metrics import functional as F
from collapsekit.metrics.conventions._frames import (
    alignment,
    bias_residual,
    duality_direct,
    duality_generalised,
    equiangularity,
    equinorm,
    etf_error,
    structure_error,
)
from collapsekit.metrics.conventions._ranks import nc0
from collapsekit.metrics.conventions._reading import Reading, means_about, reading
from collapsekit.metrics.conventions._samples import nc4
from collapsekit.metrics.conventions._uniformity import uniformity
from collapsekit.metrics.conventions._variability import cdnv_corrected, cdnv_pooled, trace_ratio
from collapsekit.metrics.measurement import Measurement
from collapsekit.metrics.moments import ClassMoments


def readings(measured: Measurement) -> dict[str, Reading]:
    """Return every convention that a measurement decides without the samples, by name, each with its worst class.

    Parameters
    ----------
    measured : Measurement
        With or without a head; without it what needs one is absent.

    Returns
    -------
    dict of str to Reading
        In the order of `docs/conventions.md`. Where a metric has no classes, `per_class` is NaN.

    Examples
    --------
    >>> import torch
    >>> from collapsekit.metrics import measure_features
    >>> measured = measure_features(torch.eye(3).repeat(2, 1), [0, 1, 2, 0, 1, 2], weight=torch.eye(3) - 1 / 3)
    >>> found = readings(measured)
    >>> len(found), round(found["NC2, Frobenius, means"].value, 6), found["NC4, agreement"].value
    (21, 0.0, 1.0)
    """
    moments, weight = measured.moments, measured.weight
    found = _of_means(moments)
    if weight is None:
        return found
    W, about = weight.to(moments.state), means_about(moments)
    return found | {
        "NC2, equinorm, classifier": equinorm(W),
        "NC2, equiangular, classifier": equiangularity(W),
        "NC2, Frobenius, classifier": etf_error(W),
        "NC3, self-duality, squared": duality_direct(W, moments, centre="samples", squared=True),
        "NC3, structure, about samples": structure_error(W, means_about(moments, "samples")),
        "NC3, structure, about classes": structure_error(W, about),
        "NC3, cosine": alignment(W, moments),
        "NC3, bias": bias_residual(W, measured.bias, moments),
        "NC2-W, generalised duality": duality_generalised(W, moments),
        "NC4, agreement": nc4(measured),
        "NC0": _scalar(nc0(W), moments),
    }


def _of_means(moments: ClassMoments) -> dict[str, Reading]:
    about, about_samples = means_about(moments), means_about(moments, "samples")
    return {
        "NC1, about samples": _scalar(F.nc1(moments), moments),
        "NC1, about classes": _scalar(F.nc1(moments, centre="classes"), moments),
        "NC1, quotient of traces": trace_ratio(moments, centre="classes"),
        "CDNV": reading(*F.cdnv(moments)),
        "CDNV, corrected for few samples": cdnv_corrected(moments),
        "CDNV, along the means, pooled": cdnv_pooled(moments),
        "NC2, equinorm, means": equinorm(about_samples),
        "NC2, equiangular, means": equiangularity(about_samples),
        "NC2, Frobenius, means": etf_error(about),
        "GNC2, log energy": uniformity(about),
    }


def _scalar(value: float, moments: ClassMoments) -> Reading:
    return reading(value, torch.full_like(moments.counts, torch.nan))
