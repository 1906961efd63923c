"""compare: predicted beside measured, a status for each class, and one sentence of verdict."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike

from collapsekit.errors import CollapseError
from collapsekit.geometry import require_same_names
from collapsekit.metrics import ClassMoments, Measurement
from collapsekit.metrics.functional import COLLAPSED_SHARE, largest_cosine, mean_cosine
from collapsekit.prediction import Prediction
from collapsekit.problem import UFM
from collapsekit.validation import Array, numeric

CHANCE_BAND = 0.005
"""A collapsed class has a confidence within this of 1/K."""
SQUEEZED_SHARE = 0.9
"""A squeezed class has a margin below this share of the predicted one."""
CONFIDENCE_BAND = 0.01
COSINE_BAND = 0.05
OBJECTIVE_BAND = 0.01
"""What "reached the predicted geometry" means in a verdict: confidences, orthogonality, objective (relative)."""
OBJECTIVE_ROUNDING = 1e-4
"""Nothing lies below the optimum of its own problem, but for the rounding of features and logits (relative)."""

Status = Literal["alive", "collapsed", "collapsed, not predicted", "alive, collapse predicted", "squeezed", "unseen"]
AGAINST_PREDICTION: tuple[Status, ...] = ("collapsed, not predicted", "alive, collapse predicted")


@dataclass(frozen=True)
class ClassFinding:
    """One class, predicted (NaN where no theory predicts) and measured; squared norms of mean and row, margins."""

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
    test_recall: float
    status: Status


class Condition(NamedTuple):
    """One of the conditions of being on the predicted geometry: the band, ends included, holds the value."""

    name: str
    value: float
    band: tuple[float, float]

    @property
    def ok(self) -> bool:
        """Whether it is met."""
        return self.band[0] <= self.value <= self.band[1]


@dataclass(frozen=True, eq=False)
class Comparison:
    """A measured network beside its predicted optimum; what needs a prediction is NaN where there is none.

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
        Largest relative error of the squared norms of classifier rows; a predicted 0 counts as its natural unit.
    largest_cosine, mean_cosine : float
        |Cosine| between surviving class means, of classes that survive in theory if there is a prediction; largest and
        mean over pairs; NaN below two.
    train_accuracy : float
        Share of the training samples that the network assigns to their class.
    outside : str or None
        Why no theory predicts this network, or None if there is a prediction.
    """

    classes: list[ClassFinding]
    objective: float
    predicted_objective: float
    largest_deviation: float
    feature_norm_error: float
    classifier_norm_error: float
    largest_cosine: float
    mean_cosine: float
    train_accuracy: float
    outside: str | None = None

    @property
    def objective_excess(self) -> float:
        """Objective above the predicted optimum, relative to it; negative only by rounding."""
        return self.objective / self.predicted_objective - 1

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """What it takes to be on the predicted geometry, with what was found; empty without a prediction."""
        if self.outside is not None:
            return ()
        misjudged = sum(c.status in AGAINST_PREDICTION for c in self.classes)
        found = (
            Condition("misjudged_classes", misjudged, (0, 0)),
            Condition("largest_deviation", self.largest_deviation, (0, CONFIDENCE_BAND)),
            Condition("objective_excess", self.objective_excess, (-OBJECTIVE_ROUNDING, OBJECTIVE_BAND)),
        )
        if np.isnan(self.largest_cosine):  # fewer than two class means are left: orthogonal as they are
            return found
        return (*found, Condition("largest_cosine", self.largest_cosine, (0, COSINE_BAND)))

    @property
    def same_classes_collapsed(self) -> bool | None:
        """Whether exactly the predicted classes collapsed; None without a prediction."""
        return next((c.ok for c in self.conditions if c.name == "misjudged_classes"), None)

    @property
    def reached(self) -> bool:
        """Whether the network is on the predicted geometry: it meets all conditions, and there are any."""
        return bool(self.conditions) and all(condition.ok for condition in self.conditions)

    @property
    def verdict(self) -> str:
        """Reached or not, and if not, in what; without a prediction, why, and how far from an orthogonal frame."""
        labels: dict[str, list[str]] = {}
        for finding in self.classes:
            labels.setdefault(finding.status, []).append(finding.label)
        if self.outside is not None:
            return self._outside_verdict(labels.get("collapsed", []))
        confidences = f"class confidences within {max(self.largest_deviation, 1e-4):.4f} of the prediction"
        if self.reached:
            return f"The network reached the predicted geometry: {confidences}, {_losses(labels.get('collapsed', []))}."
        reasons = [f"{confidences}, {self._objective_found()}"]
        for status in (*AGAINST_PREDICTION, "squeezed"):
            if status in labels:
                reasons.append(f"{status}: {_listed(labels[status])}")
        if any(c.name == "largest_cosine" and not c.ok for c in self.conditions):
            reasons.append(f"class means not orthogonal (largest |cosine| {self.largest_cosine:.2f})")
        return f"The network has NOT reached the predicted geometry: {'; '.join(reasons)}."

    def _objective_found(self) -> str:
        if self.objective_excess < -OBJECTIVE_ROUNDING:
            return (
                f"objective {-self.objective_excess:.2%} BELOW the predicted optimum, so the network was trained on "
                "another problem; check penalties, loss and ReLU"
            )
        return f"objective {max(self.objective_excess, 0.0):.2%} above the predicted optimum"

    def _outside_verdict(self, collapsed: list[str]) -> str:
        lost = f"; collapsed: {_listed(collapsed)}" if collapsed else "; no class collapsed"
        fit = f"The network fits {self.train_accuracy:.1%} of its training samples"
        if np.isnan(self.mean_cosine):
            return f"No prediction: {self.outside}. {fit}; fewer than two class means are left to form a frame{lost}."
        orthogonal = self.mean_cosine <= COSINE_BAND
        where = "and its class means are orthogonal" if orthogonal else "but has NOT reached the orthogonal frame"
        return (
            f"No prediction: {self.outside}. {fit} {where} (mean |cosine| of class means "
            f"{self.mean_cosine:.2f}, 0 on the frame){lost}."
        )

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
            "mean_cosine": self.mean_cosine,
            "train_accuracy": self.train_accuracy,
            "outside": self.outside,
            "same_classes_collapsed": self.same_classes_collapsed,
            "reached": self.reached,
            "verdict": self.verdict,
        }
        lists = {
            "classes": [_finite(asdict(c)) for c in self.classes],
            "conditions": [_finite(c._asdict() | {"band": list(c.band), "ok": c.ok}) for c in self.conditions],
        }
        return {"schema": 1} | lists | _finite(summary)


def compare(
    frame: Prediction | None,
    measured: Measurement,
    *,
    test_recalls: ArrayLike | None = None,
    outside: str = "no penalties were given",
) -> Comparison:
    """Lay a prediction beside a measurement of the same training set.

    A class has *collapsed* when its mean feature has less than 1 % of the largest squared norm and its confidence is
    within 0.005 of 1/K. Where no class is above chance the largest norm may be a remnant itself; the predicted norms
    (if they vanish too, those of a unit of margin) then count beside it. A surviving class is *squeezed* when its
    margin is below 90 % of the predicted one.

    Parameters
    ----------
    frame : Prediction or None
        From ``predict``; None where no theory predicts the network.
    measured : Measurement
        With head, over the training samples.
    test_recalls : array_like, shape (K,), optional
        Held-out recall of each class, to be shown beside it.
    outside : str
        Without a prediction: why there is none.

    Returns
    -------
    Comparison

    Raises
    ------
    CollapseError
        If the measurement has no head, or other counts, classes or class names than the prediction.

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
    if frame is not None and frame.problem.num_classes != measured.moments.num_classes:
        raise CollapseError(
            f"frame: {frame.problem.num_classes} classes, measured {measured.moments.num_classes}; predict for the same"
        )
    if frame is not None:
        require_same_names("frame", frame.problem.names, measured.names)
    size, per_class, seen = measured.moments.num_classes, measured.per_class(), measured.counts > 0
    predicted, statuses = _predicted(frame, size), _statuses(frame, per_class)
    recalls = np.full(size, np.nan) if test_recalls is None else numeric("test_recalls", test_recalls)
    if recalls.shape != (size,):
        raise CollapseError(f"test_recalls: shape {recalls.shape}; expected ({size},)")
    names = measured.names or (frame and frame.problem.names) or tuple(str(k) for k in range(size))
    classes = [
        ClassFinding(
            label=names[k],
            count=int(measured.counts[k]),
            predicted_confidence=float(predicted["confidence"][k]),
            measured_confidence=float(measured.confidences[k]),
            margin=float(per_class["margin"][k]),
            predicted_margin=float(predicted["margin"][k]),
            feature_sqnorm=float(per_class["feature_sqnorm"][k]),
            predicted_feature_sqnorm=float(predicted["feature_sqnorm"][k]),
            classifier_sqnorm=float(per_class["classifier_sqnorm"][k]),
            predicted_classifier_sqnorm=float(predicted["classifier_sqnorm"][k]),
            test_recall=float(recalls[k]),
            status=statuses[k],
        )
        for k in range(size)
    ]
    alive = seen & ~(predicted["margin"] <= 0)  # NaN, without a prediction, stays
    deviations = np.abs(measured.confidences - predicted["confidence"])[seen]
    largest, mean = _cosines(measured, alive)
    return Comparison(
        classes=classes,
        objective=float("nan") if frame is None else measured.objective(frame.problem),
        predicted_objective=float("nan") if frame is None else frame.objective,
        largest_deviation=float(deviations.max()),
        feature_norm_error=_worst(per_class["feature_sqnorm"][alive], predicted["feature_sqnorm"][alive]),
        classifier_norm_error=_worst(
            per_class["classifier_sqnorm"],
            predicted["classifier_sqnorm"],
            1.0 if frame is None else 1 / _unit_sqnorms(frame.problem),
        ),
        largest_cosine=largest,
        mean_cosine=mean,
        train_accuracy=measured.metrics()["train_accuracy"],
        outside=outside if frame is None else None,
    )


def _predicted(frame: Prediction | None, size: int) -> dict[str, Array]:
    """The prediction by the keys of Measurement.per_class; NaN without one."""
    if frame is None:
        return dict.fromkeys(("confidence", "margin", "feature_sqnorm", "classifier_sqnorm"), np.full(size, np.nan))
    return {
        "confidence": frame.confidences,
        "margin": frame.margins,
        "feature_sqnorm": frame.feature_sqnorms,
        "classifier_sqnorm": frame.classifier_sqnorms,
    }


def collapsed_classes(
    feature_sqnorms: Array, confidences: Array, expected: Array | float = 0.0
) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Return which classes have collapsed, (K,) bool, in the sense of :func:`compare`; `expected` squared norms."""
    at_chance = np.abs(confidences - 1 / len(confidences)) <= CHANCE_BAND
    largest: Any = np.nanmax(feature_sqnorms)
    if at_chance[np.isfinite(confidences)].all():  # the largest norm may be a remnant too
        largest = np.maximum(largest, expected)
    return np.asarray(at_chance & (feature_sqnorms <= COLLAPSED_SHARE * largest))


def _unit_sqnorms(problem: UFM) -> Array:
    """‖h_k‖² for a margin of 1, (K,): the natural unit; 1 over it is that of ‖w_k‖²."""
    size = problem.num_classes
    return np.sqrt((size - 1) * problem.lambda_w / (size * problem.lambda_h * problem.counts))


def _cosines(measured: Measurement, chosen: np.ndarray[Any, np.dtype[np.bool_]]) -> tuple[float, float]:
    """Largest and mean |cosine| between the means of the chosen classes that survive; NaN below two."""
    means = measured.moments.means[torch.from_numpy(chosen).to(measured.moments.state.device)]
    if len(means) < 2:
        return float("nan"), float("nan")
    alone = ClassMoments(*means.shape, scatter=False, device=means.device)
    alone.update(means, torch.arange(len(means)))
    return largest_cosine(alone), mean_cosine(alone)


def _statuses(frame: Prediction | None, per_class: dict[str, Array]) -> list[Status]:
    expected = 0.0 if frame is None else frame.feature_sqnorms.max() or _unit_sqnorms(frame.problem)
    dead = collapsed_classes(per_class["feature_sqnorm"], per_class["confidence"], expected)
    doomed = dead if frame is None else frame.collapses
    squeezed = np.zeros(len(dead), bool) if frame is None else per_class["margin"] < SQUEEZED_SHARE * frame.margins
    result: list[Status] = []
    for k, predicted in enumerate(doomed):
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


def _worst(measured: Array, predicted: Array, units: Array | float = 1.0) -> float:
    """Largest error relative to the prediction, or to `units` where that is 0; NaN without a prediction."""
    if not predicted.size:
        return 0.0
    return float(np.max(np.abs(measured - predicted) / np.where(predicted > 0, predicted, units)))


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in values.items()}
