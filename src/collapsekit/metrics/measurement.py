"""Measurement: what is known of a trained last layer, in the numbers that the theory predicts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from collapsekit.errors import CollapseError
from collapsekit.geometry import Geometry
from collapsekit.losses import CrossEntropy, Loss
from collapsekit.metrics import summary
from collapsekit.metrics.moments import ClassMoments
from collapsekit.prediction import Prediction
from collapsekit.problem import UFM
from collapsekit.validation import Array

PLAIN = CrossEntropy()


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
        """Why each of :meth:`metrics` that is NaN cannot be known, by key."""
        return summary.reasons(self.metrics(), self.moments, self.weight)

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
        """Return the scalar metrics, those against `prediction` included if one is given."""
        loss = self.loss if prediction is None else prediction.problem.loss
        result = summary.scalars(self.moments, self.weight, prediction, centred=loss.centred)
        for key, values in (("ncc", self.centre_agreement), ("train_accuracy", self.recalls)):
            if values is not None:
                known = np.isfinite(values)
                total = self.counts[known].sum()
                result[key] = float(self.counts[known] @ values[known] / total) if total else float("nan")
        return result

    def per_class(self) -> dict[str, Array]:
        """Return what is known of each class, (K,) by key."""
        result = {key: as_array(value) for key, value in summary.vectors(self.moments, self.weight, self.bias).items()}
        own = {
            "confidence": self.confidences,
            "loss": self.losses,
            "recall": self.recalls,
            "ncc": self.centre_agreement,
        }
        return result | {key: value for key, value in own.items() if value is not None}

    def objective(self, problem: UFM) -> float:
        """Return the training objective of `problem` at this network, over its N samples and not just its means.

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
        means = as_array(self.moments.means)
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
            "per_class": {key: value.tolist() for key, value in self.per_class().items()},
        }

    def __repr__(self) -> str:
        head = "no head" if self.weight is None else ("head" if self.bias is None else "head with bias")
        unseen = f", unseen classes {self.moments.unseen}" if self.moments.unseen else ""
        return f"Measurement({self.moments!r}, {head}{unseen})"


def as_array(tensor: Tensor) -> Array:
    """Return a tensor as a float64 array."""
    return tensor.detach().cpu().numpy().astype(np.float64)
