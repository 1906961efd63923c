"""compare: predicted beside measured, a status for each class, and one sentence of verdict."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from collapsekit.errors import CollapseError
from collapsekit.metrics import Measurement
from collapsekit.metrics.functional import COLLAPSED_SHARE, largest_cosine
from collapsekit.theory.closed_form import GeneralOrthogonalFrame
from collapsekit.validation import Array, numeric

CHANCE_BAND = 0.005
"""A collapsed class has a confidence within this of 1/K."""
SQUEEZED_SHARE = 0.9
"""A squeezed class has a margin below this share of the predicted one."""
CONFIDENCE_BAND = 0.01
COSINE_BAND = 0.05
OBJECTIVE_BAND = 0.01
"""What "reached the predicted geometry" means in a verdict: confidences, orthogonality, objective (relative)."""

Status = Literal["alive", "collapsed", "collapsed, not predicted", "alive, collapse predicted", "squeezed", "unseen"]


@dataclass(frozen=True)
class ClassFinding:
    """One class, predicted and measured; squared norms of class mean and classifier row, margins in logits."""

    label: str
    count: int
    predicted_confidence: float
    measured_confidence: float
    margin: float
    predicted_margin: float
    feature_sqnorm: float
    predicted_feature_sqnorm: float
    classifier_sqnorm: float
    predicted_classifier_sqnorm: float
    test_recall: float | None
    status: Status


@dataclass(frozen=True, eq=False)
class Comparison:
    """A measured network beside its predicted optimum.

    Attributes
    ----------
    classes : list of ClassFinding
        One a class.
    objective, predicted_objective : float
        Training objective of the network over its samples, and the predicted optimum.
    largest_deviation : float
        Largest |measured − predicted| class confidence.
    feature_norm_error : float
        Largest relative error of the squared norms of the means of classes that survive in theory.
    classifier_norm_error : float
        Largest relative error of the squared norms of classifier rows.
    largest_cosine : float
        Largest |cosine| between surviving class means; NaN below two.
    """

    classes: list[ClassFinding]
    objective: float
    predicted_objective: float
    largest_deviation: float
    feature_norm_error: float
    classifier_norm_error: float
    largest_cosine: float

    @property
    def objective_excess(self) -> float:
        """Objective above the predicted optimum, relative to it; negative only by rounding."""
        return self.objective / self.predicted_objective - 1

    @property
    def same_classes_collapsed(self) -> bool:
        """Whether exactly the predicted classes collapsed."""
        return not any(c.status in ("collapsed, not predicted", "alive, collapse predicted") for c in self.classes)

    @property
    def reached(self) -> bool:
        """Whether the network is on the predicted geometry: dead set, confidences, objective and orthogonality."""
        return (
            self.same_classes_collapsed
            and self.largest_deviation <= CONFIDENCE_BAND
            and self.objective_excess <= OBJECTIVE_BAND
            and not self.largest_cosine > COSINE_BAND
        )

    @property
    def verdict(self) -> str:
        """One sentence: reached or not, and if not, in what."""
        labels: dict[str, list[str]] = {}
        for finding in self.classes:
            labels.setdefault(finding.status, []).append(finding.label)
        confidences = f"class confidences within {max(self.largest_deviation, 1e-4):.4f} of the prediction"
        if self.reached:
            return f"The network reached the predicted geometry: {confidences}, {_losses(labels.get('collapsed', []))}."
        reasons = [f"{confidences}, objective {self.objective_excess:.2%} above the predicted optimum"]
        for status in ("collapsed, not predicted", "alive, collapse predicted", "squeezed"):
            if status in labels:
                reasons.append(f"{status}: {_listed(labels[status])}")
        if self.largest_cosine > COSINE_BAND:
            reasons.append(f"class means not orthogonal (largest |cosine| {self.largest_cosine:.2f})")
        return f"The network has NOT reached the predicted geometry: {'; '.join(reasons)}."

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as plain values (JSON-ready; what is not a number is None), with its schema version."""
        summary = {
            "objective": self.objective,
            "predicted_objective": self.predicted_objective,
            "objective_excess": self.objective_excess,
            "largest_deviation": self.largest_deviation,
            "feature_norm_error": self.feature_norm_error,
            "classifier_norm_error": self.classifier_norm_error,
            "largest_cosine": self.largest_cosine,
            "same_classes_collapsed": self.same_classes_collapsed,
            "verdict": self.verdict,
        }
        return {"schema": 1, "classes": [_finite(asdict(c)) for c in self.classes]} | _finite(summary)


def compare(
    frame: GeneralOrthogonalFrame, measured: Measurement, *, test_recalls: ArrayLike | None = None
) -> Comparison:
    """Lay a prediction beside a measurement of the same training set.

    A class has *collapsed* when its mean feature has less than 1 % of the largest squared norm and its confidence is
    within 0.005 of 1/K. A surviving class is *squeezed* when its margin is below 90 % of the predicted one.

    Parameters
    ----------
    frame : GeneralOrthogonalFrame
        From ``predict``.
    measured : Measurement
        With head, over the training samples.
    test_recalls : array_like, shape (K,), optional
        Held-out recall of each class, to be shown beside it.

    Returns
    -------
    Comparison

    Raises
    ------
    CollapseError
        If the measurement has no head or other counts than the prediction.

    Examples
    --------
    >>> import numpy as np
    >>> from collapsekit import UFM, predict
    >>> from collapsekit.metrics import measure_features
    >>> frame = predict(UFM([6, 3], lambda_w=0.05, lambda_h=0.02))
    >>> weights, features = frame.weights_and_features()
    >>> labels = np.repeat([0, 1], [6, 3])
    >>> compare(frame, measure_features(features[labels], labels, weights)).verdict
    'The network reached the predicted geometry: class confidences within 0.0001 of the prediction, no class collapsed.'
    """
    if measured.weight is None or measured.confidences is None:
        raise CollapseError("measured: without a head there are no confidences; measure with weight=")
    objective = measured.objective(frame.problem)
    per_class, seen = measured.per_class(), measured.counts > 0
    statuses = _statuses(frame, per_class)
    recalls = None if test_recalls is None else numeric("test_recalls", test_recalls)
    names = measured.names or frame.problem.names or tuple(str(k) for k in range(frame.problem.num_classes))
    classes = [
        ClassFinding(
            label=names[k],
            count=int(measured.counts[k]),
            predicted_confidence=float(frame.confidences[k]),
            measured_confidence=float(measured.confidences[k]),
            margin=float(per_class["margin"][k]),
            predicted_margin=float(frame.margins[k]),
            feature_sqnorm=float(per_class["feature_sqnorm"][k]),
            predicted_feature_sqnorm=float(frame.feature_sqnorms[k]),
            classifier_sqnorm=float(per_class["classifier_sqnorm"][k]),
            predicted_classifier_sqnorm=float(frame.classifier_sqnorms[k]),
            test_recall=None if recalls is None else float(recalls[k]),
            status=statuses[k],
        )
        for k in range(frame.problem.num_classes)
    ]
    alive = seen & ~frame.collapsed
    return Comparison(
        classes=classes,
        objective=objective,
        predicted_objective=frame.objective,
        largest_deviation=float(np.abs(measured.confidences - frame.confidences)[seen].max()),
        feature_norm_error=_worst(per_class["feature_sqnorm"][alive], frame.feature_sqnorms[alive]),
        classifier_norm_error=_worst(per_class["classifier_sqnorm"], frame.classifier_sqnorms),
        largest_cosine=largest_cosine(measured.moments),
    )


def collapsed_classes(feature_sqnorms: Array, confidences: Array) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Return which classes have collapsed, (K,) bool, in the sense of :func:`compare`."""
    at_chance = np.abs(confidences - 1 / len(confidences)) <= CHANCE_BAND
    return np.asarray(at_chance & (feature_sqnorms <= COLLAPSED_SHARE * np.nanmax(feature_sqnorms)))


def _statuses(frame: GeneralOrthogonalFrame, per_class: dict[str, Array]) -> list[Status]:
    dead = collapsed_classes(per_class["feature_sqnorm"], per_class["confidence"])
    squeezed = per_class["margin"] < SQUEEZED_SHARE * frame.margins
    result: list[Status] = []
    for k, predicted in enumerate(frame.collapsed):
        if per_class["count"][k] == 0:
            result.append("unseen")
        elif dead[k]:
            result.append("collapsed" if predicted else "collapsed, not predicted")
        elif predicted:
            result.append("alive, collapse predicted")
        else:
            result.append("squeezed" if squeezed[k] else "alive")
    return result


def _losses(dead: list[str]) -> str:
    if not dead:
        return "no class collapsed"
    classes = "class" if len(dead) == 1 else f"{len(dead)} classes"
    return f"exactly the predicted {classes} collapsed ({_listed(dead)})"


def _listed(labels: list[str], most: int = 8) -> str:
    shown = ", ".join(labels[:most])
    return shown if len(labels) <= most else f"{shown} and {len(labels) - most} more"


def _worst(measured: Array, predicted: Array) -> float:
    """Largest relative error; 0 where both vanish."""
    if not predicted.size:
        return 0.0
    with np.errstate(divide="ignore", invalid="ignore"):
        errors = np.abs(measured - predicted) / predicted
    return float(np.nanmax(np.where((predicted == 0) & (measured == 0), 0.0, errors)))


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in values.items()}
