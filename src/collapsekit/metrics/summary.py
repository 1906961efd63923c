"""The two tables of numbers that every consumer of class moments reports: scalars, and vectors by class."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from collapsekit.metrics import functional as F
from collapsekit.metrics.moments import ClassMoments
from collapsekit.prediction import Prediction

MEANINGS = {
    "nc1": "within-class over between-class variability; 0 where features of every class coincide",
    "cdnv": "within-class variance over squared distance of means, mean over pairs of classes; 0 at collapse",
    "ncc": "share of samples whose nearest class mean names the class that the network names",
    "train_accuracy": "share of training samples that the network assigns to their class",
    "nc2_largest_cosine": "largest |cosine| between surviving class means; 0 on every orthogonal frame",
    "nc2_mean_cosine": "mean |cosine| between surviving class means; 0 on every orthogonal frame",
    "nc2_h": "Gram matrix of class means against the predicted one, shapes only (published metric)",
    "nc2_h_residual": "the same with scale: relative to the predicted matrix",
    "nc2_w": "classifier against scaled and centred class means, shapes only (published metric)",
    "nc2_w_residual": "the same with scale: relative to the classifier that the measured means call for",
    "nc2_wwt": "Gram matrix of the classifier against the predicted one, shapes only (published metric)",
    "nc2_wwt_residual": "the same with scale: relative to the predicted matrix",
    "nc3_wh": "logits at class means against the predicted ones, shapes only (published metric)",
    "nc3_wh_residual": "the same with scale: relative to the predicted logits",
    "nc2_etf_h": "angles of centred class means against a simplex ETF's; 0 if balanced, not at an imbalanced optimum",
    "nc2_etf_w": "angles of classifier rows against a simplex ETF's; 0 if balanced, not at an imbalanced optimum",
    "nc2_norm_spread_h": "spread of the lengths of centred class means; 0 if balanced, not at an imbalanced optimum",
    "nc2_norm_spread_w": "spread of the lengths of classifier rows; 0 if balanced, not at an imbalanced optimum",
    "nc3_duality": "classifier against centred class means; 0 if balanced, not at an imbalanced optimum",
}
"""What each scalar compares, and where it is 0, in the order in which pages show them."""


def scalars(
    moments: ClassMoments,
    weight: Tensor | None = None,
    prediction: Prediction | None = None,
    *,
    centred: bool = True,
) -> dict[str, float]:
    """Return every scalar metric that the inputs allow, by lower-case key; what they do not allow is absent.

    `centred` says whether the loss calls for classifier rows that sum to 0, as all but squared error do.
    """
    if not bool(moments.seen.any()):
        return {}
    means = F._centred(moments)
    result = {
        "cdnv": F.cdnv(moments)[0],
        "nc2_largest_cosine": F.largest_cosine(moments),
        "nc2_mean_cosine": F.mean_cosine(moments),
    }
    if moments.scatter is not None:
        result["nc1"] = F.nc1(moments)
    result |= {"nc2_etf_h": F.etf_angles(means), "nc2_norm_spread_h": F.norm_spread(means)}
    if weight is not None:
        result |= {
            "nc2_w": F.generalised_duality(weight, moments, centred=centred),
            "nc2_etf_w": F.etf_angles(weight.double() - weight.double().mean(dim=0)),
            "nc2_norm_spread_w": F.norm_spread(weight.double()),
            "nc3_duality": F.duality(weight, moments),
        }
    if prediction is not None:
        result |= F.frame_metrics(moments, weight, prediction)
    return result


def reasons(values: Mapping[str, float], moments: ClassMoments, weight: Tensor | None) -> dict[str, str]:
    """Return why each value that is NaN cannot be known, by key."""
    means = moments.means[moments.seen]
    if len(means) < 2:
        why = "fewer than two classes have samples"
    elif bool((moments.counts <= 1).all()):
        why = "no class has two samples"
    elif not F._centred(moments).any():
        why = "all class means coincide"
    elif weight is not None and not weight.any():
        why = "the head is 0"
    else:
        why = "fewer than two class means or classifier rows have a direction"
    return {key: why for key, value in values.items() if math.isnan(value)}


def vectors(moments: ClassMoments, weight: Tensor | None = None, bias: Tensor | None = None) -> dict[str, Tensor]:
    """Return what is known of each class, (K,) float64 by key; NaN for classes without samples."""
    means = moments.means
    result = {
        "count": moments.counts,
        "feature_sqnorm": means.square().sum(dim=1),
        "within": moments.within,
        "cdnv": F.cdnv(moments)[1],
    }
    if weight is not None:
        W = weight.to(means)
        target = (W * means).sum(dim=1)
        logit_sums = means @ W.sum(dim=0)
        if bias is not None:
            target, logit_sums = target + bias.to(means), logit_sums + bias.to(means).sum()
        result["classifier_sqnorm"] = W.square().sum(dim=1)
        result["margin"] = target - (logit_sums - target) / (moments.num_classes - 1)
        result["alignment"] = (W * means).sum(dim=1) / (W.norm(dim=1) * means.norm(dim=1))
    return result
