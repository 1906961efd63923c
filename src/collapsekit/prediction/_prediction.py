"""Prediction: what is expected of each class, whatever it was computed from."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from collapsekit.errors import CollapseError
from collapsekit.geometry import Geometry
from collapsekit.losses import CrossEntropy
from collapsekit.problem import UFM
from collapsekit.solver import Solution
from collapsekit.solver.groups import Grouped
from collapsekit.solver.solution import collapsed
from collapsekit.theory import Frame, Simplex
from collapsekit.validation import Array, frozen, shorten

VECTORS = (
    "margins",
    "confidences",
    "training_confidences",
    "feature_sqnorms",
    "classifier_sqnorms",
    "headroom",
)


CERTIFIED_GAP = 1e-8
"""Relative gap up to which a point counts as the global optimum."""


class Basis(Enum):
    """What a prediction rests on; the value is the sentence for it."""

    CLOSED_FORM = "the closed form of the global optimum"
    CERTIFIED = "a numerical optimum, certified to be the global one"
    GROUPS = "an optimum of groups of alike classes, certified to be the global one"
    NOT_CERTIFIED = "the best point found, not certified to be the global optimum"
    BOUNDS = "bounds alone: the optimum itself was not computed"


@dataclass(frozen=True, eq=False, repr=False)
class Prediction:
    """What is expected of each class of a trained last layer.

    Attributes
    ----------
    problem : UFM
        What is minimised.
    margins : ndarray, shape (K,)
        Target logit minus the mean of the others at the class's feature; 0 for a class that is lost (without a bias).
    confidences : ndarray, shape (K,)
        Softmax probability of the target on training samples, from the logits (over the temperature) as they are.
    training_confidences : ndarray, shape (K,)
        The same with offsets, target margins and scales: what the loss sees.
    feature_sqnorms : ndarray, shape (K,)
        ``‖h_k‖²``; with types of samples those of class means, from which margins and Gram matrices are, too.
    classifier_sqnorms : ndarray, shape (K,)
        ``‖w_k‖²``.
    collapses : ndarray of bool, shape (K,)
        Classes whose own logit is not strictly the largest at their feature: they are lost. (With bounds alone nothing
        is known of that: see the confidences, NaN there.)
    headroom : ndarray, shape (K,)
        Critical λ_W λ_H divided by λ_W λ_H; a class is lost at headroom ≤ 1, and both decays may grow by its square
        root before it is. NaN without a closed form, where thresholds are not known.
    objective, lower_bound, gap : float
        Value of the point, a bound below which no point lies (−∞ where there is none, as for focal loss), and their
        relative distance; 0 for the closed form.
    basis : Basis
        What all this rests on.
    source : Frame, Simplex, Solution, Grouped or None
        The closed form or the solved point from which Gram matrices come; None where there are bounds alone.

    Examples
    --------
    >>> from collapsekit import UFM, solve
    >>> from collapsekit.prediction import from_solution
    >>> from_solution(solve(UFM([500, 300, 40, 10], lambda_w=3e-2, lambda_h=1e-3, bias="free"))).basis.value
    'a numerical optimum, certified to be the global one'
    """

    problem: UFM
    margins: Array
    confidences: Array
    training_confidences: Array
    feature_sqnorms: Array
    classifier_sqnorms: Array
    collapses: NDArray[np.bool_]
    headroom: Array
    objective: float
    lower_bound: float
    gap: float
    basis: Basis
    source: Frame | Simplex | Solution | Grouped | None

    def geometry(self) -> Geometry:
        """Return the Gram matrices, (K, K) each.

        Raises
        ------
        CollapseError
            If the three matrices together would exceed 2 GiB.

        Examples
        --------
        >>> from collapsekit import UFM, predict
        >>> prediction = predict(UFM([500, 300, 40, 10], lambda_w=3e-2, lambda_h=1e-3))
        >>> round(float(prediction.geometry().gram_w[0, 1]), 10)
        -3.8336768322
        """
        return self._known.geometry()

    def gram_rows(self, rows: slice) -> tuple[Array, Array, Array]:
        """Return some rows of the Gram matrices of features, of the classifier and between the two, (r, K) each."""
        source = self._known
        if not isinstance(source, Solution):
            return source.gram_rows(rows)
        W, H = source.weights, source.class_features
        return H[rows] @ H.T, W[rows] @ W.T, W[rows] @ H.T

    @property
    def _known(self) -> Frame | Simplex | Solution | Grouped:
        if self.source is None:
            raise CollapseError(f"geometry: {self.basis.value}")
        return self.source

    @property
    def bias(self) -> Array | None:
        """The predicted bias of the head, (K,); None without one, or where it was not computed."""
        if self.problem.bias is None or self.source is None:
            return None
        return self.source.bias if isinstance(self.source, Solution | Grouped) else np.zeros(self.problem.num_classes)

    def weights_and_features(self, dim: int | None = None) -> tuple[Array, Array]:
        """Return one optimal pair of classifier and class features, (K, d) each; others are its rotations.

        Parameters
        ----------
        dim : int, optional
            d; at least the number of surviving classes. None: the problem's own `dim`, or else that number. A solved
            point has its own d, and one row of features a type where there are types of samples.

        Raises
        ------
        CollapseError
            If `dim` leaves no room for the surviving classes.

        Examples
        --------
        >>> from collapsekit import UFM, predict
        >>> problem = UFM([200, 100, 50, 50], lambda_w=5e-3, lambda_h=5e-4)
        >>> prediction = predict(problem)
        >>> abs(problem.objective(*prediction.weights_and_features()) - prediction.objective) < 1e-12
        True
        """
        source = self._known
        if not isinstance(source, Solution):
            return source.weights_and_features(dim)
        if dim is not None and dim != source.features.shape[1]:
            raise CollapseError(f"dim={dim}: the solved point has {source.features.shape[1]}; leave it out")
        return source.weights, source.features

    def to_dict(self) -> dict[str, Any]:
        """Return the prediction as plain values (JSON-ready), None for what is not known, with its schema version."""
        vectors = {key: getattr(self, key) for key in VECTORS} | {"confidence_floor": self.problem.confidence_floor()}
        return {
            "schema": 2,
            "problem": self.problem.to_dict(),
            **{key: [None if np.isnan(one) else one for one in value.tolist()] for key, value in vectors.items()},
            "collapses": None if self.basis is Basis.BOUNDS else self.collapses.tolist(),
            "objective": None if np.isnan(self.objective) else self.objective,
            "lower_bound": self.lower_bound if np.isfinite(self.lower_bound) else None,
            "gap": self.gap if np.isfinite(self.gap) else None,
            "basis": self.basis.value,
        }

    def __repr__(self) -> str:
        least = "" if np.isnan(self.headroom).any() else f", smallest headroom {self.headroom.min():.4g}"
        if self.basis is Basis.BOUNDS:
            floor = self.problem.confidence_floor()
            return (
                f"Prediction(K={self.problem.num_classes}, confidences at least {floor.min():.4g} … {floor.max():.4g}; "
                f"{self.basis.value})"
            )
        return (
            f"Prediction(K={self.problem.num_classes}, {int(self.collapses.sum())} lost, "
            f"confidences {self.confidences.min():.4g} … {self.confidences.max():.4g}{least}, "
            f"objective {self.objective:.6g}; {self.basis.value})"
        )


def from_solution(solution: Solution) -> Prediction:
    """Return what a numerical optimum says of each class.

    Parameters
    ----------
    solution : Solution
        From :func:`collapsekit.solve`.

    Returns
    -------
    Prediction

    Raises
    ------
    CollapseError
        If it is no solution.
    """
    if not isinstance(solution, Solution):
        raise CollapseError(f"solution={shorten(solution)}: give what collapsekit.solve returned")
    W, problem = solution.weights, solution.problem
    logits = solution.features @ W.T + (0.0 if solution.bias is None else solution.bias)
    if problem.types is None:
        seen = _seen_by_the_loss(problem, logits, np.arange(len(logits)))
    else:
        seen = solution.of_classes(problem.summed_loss().parts(logits)[2])
    return Prediction(
        problem=problem,
        margins=frozen(solution.margins),
        confidences=frozen(solution.confidences),
        training_confidences=frozen(seen),
        feature_sqnorms=frozen((solution.class_features**2).sum(axis=1)),
        classifier_sqnorms=frozen((W**2).sum(axis=1)),
        collapses=frozen(solution.collapses),
        headroom=frozen(np.full(len(W), np.nan)),
        objective=solution.objective,
        lower_bound=solution.lower_bound,
        gap=solution.gap,
        basis=Basis.CERTIFIED if solution.optimal else Basis.NOT_CERTIFIED,
        source=solution,
    )


def from_groups(point: Grouped) -> Prediction:
    """Return what a point of groups of alike classes says of each class."""
    some, group, size = point.representatives, point.group, point.problem.num_classes
    logits = point.logit_rows(some)
    own, loss = logits[np.arange(len(some)), some], point.problem.loss
    temperature = loss.temperature if isinstance(loss, CrossEntropy) else 1.0
    of_group = {
        "margins": (size * own - logits.sum(axis=1)) / (size - 1),
        "confidences": _share(logits / temperature, some),
        "training_confidences": _seen_by_the_loss(point.problem, logits, some),
        "collapses": collapsed(logits, some),
    }
    return Prediction(
        problem=point.problem,
        **{key: frozen(values[: len(point.sizes)][group]) for key, values in of_group.items()},
        feature_sqnorms=frozen(point.gram_h[0][group]),
        classifier_sqnorms=frozen(point.gram_w[0][group]),
        headroom=frozen(np.full(size, np.nan)),
        objective=point.objective,
        lower_bound=point.lower_bound,
        gap=point.gap,
        basis=Basis.GROUPS if point.gap <= CERTIFIED_GAP else Basis.NOT_CERTIFIED,
        source=point,
    )


def _seen_by_the_loss(problem: UFM, logits: Array, labels: NDArray[np.int_]) -> Array:
    """Softmax probability of each target inside the loss, for rows of logits (n, K)."""
    if isinstance(problem.loss, CrossEntropy):
        rows = problem.loss.summed(np.ones(len(labels)), labels, problem.num_classes)
        logits = logits * rows.slopes + rows.shifts
    return _share(logits, labels)


def _share(logits: Array, labels: NDArray[np.int_]) -> Array:
    apart = logits - logits[np.arange(len(labels)), labels][:, None]
    with np.errstate(over="ignore"):
        return np.asarray(1 / np.exp(apart).sum(axis=1))
