"""compare: predicted beside measured, words for each class, and a verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike

from collapsekit.diagnosis.status import Agreement, Status, agreements, statuses
from collapsekit.errors import CollapseError
from collapsekit.geometry import require_same_names
from collapsekit.metrics import Measurement, NeuralCollapse
from collapsekit.metrics.functional import cosines
from collapsekit.metrics.measurement import has_free_shift
from collapsekit.prediction import Prediction, fates, from_solution
from collapsekit.prediction._fates import Fate
from collapsekit.solver import Solution
from collapsekit.theory import Frame
from collapsekit.validation import Array, known, numeric, short

CONFIDENCE_BAND = 0.01
COSINE_BAND = 0.05
OBJECTIVE_BAND = 0.01
"""What "reached the predicted geometry" means in a verdict: confidences, orthogonality, objective (relative)."""
OBJECTIVE_ROUNDING = 1e-4
"""Nothing lies below the optimum of its own problem, but for the rounding of features and logits (relative)."""
PREDICTED = ("confidences", "margins", "feature_sqnorms", "classifier_sqnorms")
"""What a prediction says of each class."""


@dataclass(frozen=True)
class ClassFinding:
    """One class, predicted (NaN where no theory predicts) and measured; squared norms of mean and row, margins.

    Attributes
    ----------
    status : {"lost", "never predicted", "weak", "alive", "unseen"}
        From the network alone, on its training samples.
    fate : {"collapses", "nearly lost", "survives", ""}
        What is predicted, if anything is.
    agreement : {"as predicted", "squeezed", "against the prediction", ""}
        How the two agree.
    """

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
    recall: float
    test_recall: float
    status: Status
    fate: Fate | Literal[""]
    agreement: Agreement

    @property
    def word(self) -> str:
        """What a table says of the class: its status, and in what it disagrees with the prediction."""
        said = {"against the prediction": ", not as predicted", "squeezed": ", squeezed"}
        return self.status + said.get(self.agreement, "")


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
    predicted_cosine : float
        The largest |cosine| at a predicted optimum whose class means are not orthogonal (those of `solve`).
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
    predicted_cosine: float = 0.0

    @property
    def objective_excess(self) -> float:
        """Objective above the predicted optimum, relative to it; negative only by rounding."""
        return self.objective / self.predicted_objective - 1

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """What it takes to be on the predicted geometry, with what was found; empty without a prediction."""
        if self.outside is not None:
            return ()
        found = (
            Condition("misjudged_classes", len(self._labels("agreement", "against the prediction")), (0, 0)),
            Condition("largest_deviation", self.largest_deviation, (0, CONFIDENCE_BAND)),
            Condition("objective_excess", self.objective_excess, (-OBJECTIVE_ROUNDING, OBJECTIVE_BAND)),
        )
        if np.isnan(self.largest_cosine):  # fewer than two class means are left: orthogonal as they are
            return found
        return (*found, Condition("largest_cosine", self.largest_cosine, (0, COSINE_BAND + self.predicted_cosine)))

    @property
    def same_classes_collapsed(self) -> bool | None:
        """Whether no class is against the prediction; None without one."""
        return next((c.ok for c in self.conditions if c.name == "misjudged_classes"), None)

    @property
    def reached(self) -> bool:
        """Whether the network is on the predicted geometry: it meets all conditions, and there are any."""
        return bool(self.conditions) and all(condition.ok for condition in self.conditions)

    @property
    def verdict(self) -> str:
        """Which classes are gone, then how the network lies to its prediction, or why there is none."""
        return f"{self._gone()} {self._unpredicted() if self.outside is not None else self._predicted()}"

    def _gone(self) -> str:
        never, lost, weak = (self._labels("status", word) for word in ("never predicted", "lost", "weak"))
        told = (
            (never, f"The network never predicts {_listed(never)}, even on the samples it was trained on"),
            (
                lost,
                f"{'lost, too' if never else 'Lost'} (never predicted, at chance or without a feature of its own): "
                f"{_listed(lost)}",
            ),
            (weak, f"{'weak' if never or lost else 'Weak'} (recall or confidence below one half): {_listed(weak)}"),
        )
        parts = [text for labels, text in told if labels]
        if parts:
            return "; ".join(parts) + "."
        those = "Every class with samples" if self._labels("status", "unseen") else "Every class"
        return f"{those} is alive on its training samples."

    def _labels(self, key: str, word: str) -> list[str]:
        return [c.label for c in self.classes if getattr(c, key) == word]

    def _predicted(self) -> str:
        confidences = f"class confidences within {max(self.largest_deviation, 1e-4):.4f} of the prediction"
        if self.reached:
            return f"The network reached the predicted geometry: {confidences}."
        objective = f"objective {max(self.objective_excess, 0.0):.2%} above the predicted optimum"
        if self.objective_excess < -OBJECTIVE_ROUNDING:
            objective = (
                f"objective {-self.objective_excess:.2%} BELOW the predicted optimum, so the network was trained on "
                "another problem; check penalties, loss and ReLU"
            )
        found = {word: self._labels("agreement", word) for word in ("against the prediction", "squeezed")}
        reasons = [f"{confidences}, {objective}"]
        reasons += [f"{word}: {_listed(labels)}" for word, labels in found.items() if labels]
        if any(c.name == "largest_cosine" and not c.ok for c in self.conditions):
            reasons.append(f"class means not orthogonal (largest |cosine| {self.largest_cosine:.2f})")
        return f"The network has NOT reached the predicted geometry: {'; '.join(reasons)}."

    def _unpredicted(self) -> str:
        fit = f"No prediction: {self.outside}. The network fits {self.train_accuracy:.1%} of its training samples"
        if np.isnan(self.mean_cosine):
            return f"{fit}; fewer than two class means are left to form a frame."
        orthogonal = self.mean_cosine <= COSINE_BAND
        where = "and its class means are orthogonal" if orthogonal else "but has NOT reached the orthogonal frame"
        return f"{fit} {where} (mean |cosine| of class means {self.mean_cosine:.2f}, 0 on the frame)."

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as plain values (JSON-ready; what is not a number is None), with its schema version."""
        numbers = {
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
        return {
            "schema": 2,
            "classes": [known(asdict(c)) for c in self.classes],
            "conditions": [known(c._asdict() | {"ok": c.ok}) for c in self.conditions],
            **known(numbers),
        }


def compare(
    prediction: Prediction | Solution | None,
    measured: Measurement | NeuralCollapse,
    *,
    test_recalls: ArrayLike | None = None,
    outside: str = "no penalties were given",
) -> Comparison:
    """Lay a prediction beside a measurement of the same training set.

    Parameters
    ----------
    prediction : Prediction, Solution or None
        From ``predict`` or ``solve``; None where nothing predicts the network.
    measured : Measurement or NeuralCollapse
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
    >>> prediction = predict(UFM([6, 3], lambda_w=0.05, lambda_h=0.02))
    >>> weights, features = prediction.weights_and_features()
    >>> labels = np.repeat([0, 1], [6, 3])
    >>> found = compare(prediction, measure_features(features[labels], labels, weights))
    >>> [(c.status, c.fate, c.agreement) for c in found.classes]
    [('alive', 'survives', 'as predicted'), ('alive', 'survives', 'as predicted')]
    """
    if isinstance(measured, NeuralCollapse):
        measured = measured.measurement()
    expected = from_solution(prediction) if isinstance(prediction, Solution) else prediction
    if expected is not None and measured.weight is not None and has_free_shift(expected.problem):
        measured = measured.centred()
    if measured.weight is None or measured.confidences is None or measured.recalls is None:
        raise CollapseError("measured: without a head there are no confidences; measure with weight=")
    size, per_class, seen = measured.moments.num_classes, measured.per_class(), measured.counts > 0
    unknown = np.full(size, np.nan)
    recalls = unknown if test_recalls is None else numeric("test_recalls", test_recalls)
    if expected is not None and expected.problem.num_classes != size:
        raise CollapseError(
            f"prediction: {expected.problem.num_classes} classes, measured {size}; predict for the same"
        )
    if expected is not None:
        require_same_names("prediction", expected.problem.names, measured.names)
    if recalls.shape != (size,):
        raise CollapseError(f"test_recalls: shape {recalls.shape}; expected ({size},)")
    words, names, alive = statuses(measured), measured.names, seen
    predicted = dict.fromkeys(PREDICTED, unknown)
    told: Sequence[Fate | Literal[""]] = [""] * size
    agreeing: list[Agreement] = [""] * size
    units, objective, optimum, cosine = unknown, float("nan"), float("nan"), 0.0
    if expected is not None:
        problem = expected.problem
        names, alive = names or problem.names, seen & ~expected.collapses
        predicted = {key: getattr(expected, key) for key in PREDICTED}
        told = fates(problem.loss, expected.confidences, expected.collapses)
        agreeing = agreements(expected, measured, words)
        # of ‖w_k‖², the natural one: its value where the margin is 1
        units = np.sqrt(size * problem.lambda_h * problem.counts / ((size - 1) * problem.lambda_w))
        objective, optimum = measured.objective(problem), expected.objective
        if expected.source is not None and not isinstance(expected.source, Frame):
            cosine = float(np.nanmax(np.abs(expected.geometry().feature_cosines - np.eye(size)), initial=0.0))
    classes = [
        ClassFinding(
            label=str(k) if names is None else names[k],
            count=int(measured.counts[k]),
            predicted_confidence=float(predicted["confidences"][k]),
            measured_confidence=float(measured.confidences[k]),
            margin=float(per_class["margin"][k]),
            predicted_margin=float(predicted["margins"][k]),
            feature_sqnorm=float(per_class["feature_sqnorm"][k]),
            predicted_feature_sqnorm=float(predicted["feature_sqnorms"][k]),
            classifier_sqnorm=float(per_class["classifier_sqnorm"][k]),
            predicted_classifier_sqnorm=float(predicted["classifier_sqnorms"][k]),
            recall=float(measured.recalls[k]),
            test_recall=float(recalls[k]),
            status=words[k],
            fate=told[k],
            agreement=agreeing[k],
        )
        for k in range(size)
    ]
    means = measured.moments.means
    largest, mean = cosines(means.where(torch.from_numpy(alive).to(means.device)[:, None], torch.nan))
    return Comparison(
        classes=classes,
        objective=objective,
        predicted_objective=optimum,
        largest_deviation=float(np.abs(measured.confidences - predicted["confidences"])[seen].max()),
        feature_norm_error=_worst(per_class["feature_sqnorm"][alive], predicted["feature_sqnorms"][alive], 1.0),
        classifier_norm_error=_worst(per_class["classifier_sqnorm"], predicted["classifier_sqnorms"], units),
        largest_cosine=largest,
        mean_cosine=mean,
        train_accuracy=measured.metrics()["train_accuracy"],
        outside=outside if expected is None else None,
        predicted_cosine=cosine,
    )


def _listed(labels: list[str], most: int = 8) -> str:
    shown = ", ".join(map(short, labels[:most]))
    return shown if len(labels) <= most else f"{shown} and {len(labels) - most} more"


def _worst(measured: Array, predicted: Array, units: Array | float) -> float:
    """Largest error relative to the prediction, or to `units` where that is 0; NaN without a prediction."""
    errors = np.abs(measured - predicted) / np.where(predicted > 0, predicted, units)
    return float(errors.max(initial=0.0))
