"""Measurement: what is known of a trained last layer, in the numbers that the theory predicts."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from collapsekit.errors import CollapseError
from collapsekit.geometry import Geometry
from collapsekit.losses import Loss
from collapsekit.metrics import functional as F
from collapsekit.metrics.decisions import PLAIN
from collapsekit.metrics.moments import ClassMoments
from collapsekit.metrics.summary import Summary, summarise
from collapsekit.prediction import Prediction
from collapsekit.problem import UFM
from collapsekit.validation import Array

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


@dataclass(frozen=True, eq=False, repr=False)
class Measurement:
    """A trained last layer as measured on its training samples.

    What cannot be known is NaN, and :attr:`reasons` says why; nothing degenerate scores as perfect.

    Attributes
    ----------
    moments : ClassMoments
        Counts, means and scatter of the features.
    weight : Tensor, shape (K, d), or None
        Head, float64.
    bias : Tensor, shape (K,), or None
        Its bias.
    confidences : ndarray, shape (K,), or None
        Mean softmax probability of the target, by class; NaN for classes without samples. None without a head.
    losses : ndarray, shape (K,), or None
        Mean loss (nats), by class.
    recalls : ndarray, shape (K,), or None
        Share of samples that the network assigns to their class: their own logit leads every other by more than 1 %
        of the median lead. (A lost class ties all logits; the largest of them would be that of some class or other.)
    centre_agreement : ndarray, shape (K,), or None
        Share of samples whose nearest class mean names the class that the network names, of those for which both name
        one: samples between coinciding means, or whose logits tie, do not count.
    names : tuple of str, or None
        Class names.
    nonnegative : bool or None
        Whether all features are at least 0, as they are when they leave a ReLU.
    loss : CrossEntropy, Focal, Hinge or MSE
        The loss that `losses` are of.
    spacing : float
        Of the numbers just above 1 in the coarsest type that features came in: 1.2e-7 for float32, 7.8e-3 for
        bfloat16; 0 for float64, or where it is not known.
    """

    moments: ClassMoments
    weight: Tensor | None = None
    bias: Tensor | None = None
    confidences: Array | None = None
    losses: Array | None = None
    recalls: Array | None = None
    centre_agreement: Array | None = None
    names: tuple[str, ...] | None = None
    nonnegative: bool | None = None
    loss: Loss = PLAIN
    spacing: float = 0.0

    @property
    def counts(self) -> Array:
        """Samples of each class, (K,)."""
        return as_array(self.moments.counts)

    @property
    def margins(self) -> Array:
        """Mean target logit minus the mean of the others, with bias, (K,); NaN without a head."""
        return self.per_class().get("margin", np.full(self.moments.num_classes, np.nan))

    @property
    def reasons(self) -> dict[str, str]:
        """Why each of :meth:`metrics` that is NaN cannot be known, by key.

        "below resolution": the type in which features were stored may have moved the number by more than 10 %; see
        :func:`collapsekit.metrics.resolution.rounding_variances`.
        """
        if self.moments.seen.sum() < 2:
            why = "fewer than two classes have samples"
        elif (self.moments.counts <= 1).all():
            why = "no class has two samples"
        elif not F.centred_means(self.moments).any():
            why = "all class means coincide"
        elif self.weight is not None and not self.weight.any():
            why = "the head is 0"
        else:
            why = "fewer than two class means or classifier rows have a direction"
        return {key: self._summary.reasons.get(key, why) for key, value in self.metrics().items() if math.isnan(value)}

    @property
    def class_reasons(self) -> tuple[str, ...]:
        """Why the spread of a class is not known, K words: "unseen", "one sample", "below resolution"; else empty."""
        return self._summary.class_reasons

    @cached_property
    def _summary(self) -> Summary:
        return summarise(self.moments, self.spacing)

    def geometry(self) -> Geometry:
        """Return the Gram matrices of class means and head; NaN for classes without samples.

        Raises
        ------
        CollapseError
            If there is no head.
        """
        if self.weight is None:
            raise CollapseError("weight=None: a geometry needs the head; measure with weight=")
        means, W = as_array(self.moments.means), as_array(self.weight)
        within = as_array(self.moments.within)
        return Geometry(means @ means.T, W @ W.T, W @ means.T, self.counts, within=within, names=self.names)

    def metrics(self, prediction: Prediction | None = None) -> dict[str, float]:
        """Return the scalar metrics, those against `prediction` included if one is given; the others are absent."""
        result = dict(self._summary.scalars)
        if result and self.weight is not None:
            loss = self.loss if prediction is None else prediction.problem.loss
            result |= self._angles_of_head
            result["nc2_w"] = F.generalised_duality(self.weight, self.moments, centred=loss.centred)
        if result and prediction is not None:
            result |= F.frame_metrics(self.moments, self.weight, prediction)
        for key, values in (("ncc", self.centre_agreement), ("train_accuracy", self.recalls)):
            if values is not None:
                known = np.isfinite(values)
                total = self.counts[known].sum()
                result[key] = float(self.counts[known] @ values[known] / total) if total else float("nan")
        return result

    @cached_property
    def _angles_of_head(self) -> dict[str, float]:
        assert self.weight is not None
        W = self.weight.double()
        return {
            "nc2_etf_w": F.etf_angles(W - W.mean(dim=0)),
            "nc2_norm_spread_w": F.norm_spread(W),
            "nc3_duality": F.duality(W, self.moments),
        }

    def per_class(self) -> dict[str, Array]:
        """Return what is known of each class, (K,) by key; NaN where it is not known: see :attr:`class_reasons`."""
        means, seen = self.moments.table, self.moments.seen
        sqnorms = torch.where(seen, F.dots(means, means), torch.nan)
        found = {
            "count": self.moments.counts,
            "feature_sqnorm": sqnorms,
            "within": self._summary.within,
            "cdnv": self._summary.cdnv,
        }
        if self.weight is not None:
            W = self.weight.to(means)
            b = means.new_zeros(len(W)) if self.bias is None else self.bias.to(means)
            products = torch.where(seen, F.dots(W, means), torch.nan)
            target = products + b
            others = F.dots(means, W.sum(dim=0).expand_as(means)) + b.sum() - target
            found["classifier_sqnorm"] = F.dots(W, W)
            found["margin"] = target - others / (len(W) - 1)
            found["alignment"] = products / (found["classifier_sqnorm"] * sqnorms).sqrt()
        own = {
            "confidence": self.confidences,
            "loss": self.losses,
            "recall": self.recalls,
            "ncc": self.centre_agreement,
        }
        known = {key: value for key, value in own.items() if value is not None}
        return {key: as_array(value) for key, value in found.items()} | known

    def centred(self) -> Measurement:
        """Return the same network with features that add up to 0 and the bias that this takes; its output stays.

        Where the shift of a BatchNorm before the features is free, only features less their mean cost anything: that is
        the network that a prediction without ReLU and with a free bias speaks of.

        Raises
        ------
        CollapseError
            If there is no head.
        """
        if self.weight is None:
            raise CollapseError("weight=None: without a head nothing takes up the shift; measure with weight=")
        shift = self.weight.double() @ self.moments.overall_mean.to(self.weight.device)
        bias = shift if self.bias is None else self.bias.double() + shift
        return replace(self, moments=self.moments.centred(), bias=bias)

    def objective(self, problem: UFM) -> float:
        """Return the training objective of `problem` at this network, over its N samples and not just its means.

        Without ReLU and with a free bias features count less their overall mean: see :meth:`centred`.

        Raises
        ------
        CollapseError
            If there is no head, or the problem has other counts.
        """
        if self.weight is None or self.losses is None:
            raise CollapseError("weight=None: the objective needs the head; measure with weight=")
        if not np.array_equal(problem.counts, self.counts):
            raise CollapseError("problem: its counts are not those measured; build it from measured.counts")
        if problem.loss != self.loss:
            raise CollapseError(f"problem: its loss is {problem.loss}, measured {self.loss}; measure with loss=")
        moments = self.moments.centred() if has_free_shift(problem) else self.moments
        means = as_array(moments.means)
        second_moments = (means**2).sum(axis=1) + as_array(self.moments.within)
        bias = np.zeros(1) if self.bias is None else as_array(self.bias)
        penalties = (
            problem.lambda_w * float(self.weight.square().sum())
            + (problem.lambda_h * problem.counts) @ second_moments
            + problem.bias_penalty * (bias @ bias)
        )
        return float(problem.loss_weights @ self.losses + 0.5 * penalties)

    def to_dict(self) -> dict[str, Any]:
        """Return metrics and per-class vectors as plain numbers and lists, with the schema version."""
        return {
            "schema": 1,
            "names": None if self.names is None else list(self.names),
            "unseen": self.moments.unseen,
            "singletons": self.moments.singletons,
            "nonnegative": self.nonnegative,
            "metrics": self.metrics(),
            "reasons": self.reasons,
            "class_reasons": list(self.class_reasons),
            "per_class": {key: value.tolist() for key, value in self.per_class().items()},
        }

    def __repr__(self) -> str:
        head = "no head" if self.weight is None else ("head" if self.bias is None else "head with bias")
        unseen = f", unseen classes {self.moments.unseen}" if self.moments.unseen else ""
        return f"Measurement({self.moments!r}, {head}{unseen})"


def has_free_shift(problem: UFM) -> bool:
    """Return whether features may be moved at no cost: the bias takes it up, and no ReLU stands in the way."""
    return not problem.relu and problem.bias == "free"


def as_array(tensor: Tensor) -> Array:
    """Return a tensor as a float64 array."""
    return tensor.detach().cpu().numpy().astype(np.float64)
