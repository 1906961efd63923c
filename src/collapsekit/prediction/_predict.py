"""predict: each class's fate before training."""

from __future__ import annotations

import numpy as np

from collapsekit.errors import CollapseError
from collapsekit.losses import CrossEntropy
from collapsekit.prediction._prediction import VECTORS, Basis, Prediction, from_groups, from_solution
from collapsekit.problem import UFM
from collapsekit.solver import solve
from collapsekit.solver.groups import MOST_GROUPS, groups_of, solve_groups
from collapsekit.theory import NoClosedForm, closed_form
from collapsekit.validation import frozen

FEW_CLASSES = 20
"""Up to so many a search is as fast as groups, and gives a classifier and features, too."""
LARGEST_SOLVED = 2_000
"""Classes up to which the optimum is searched for: its matrices grow with their square, a step with their cube."""


def predict(problem: UFM, *, time_limit: float | None = 60.0) -> Prediction:
    r"""Return what training converges to, class by class, for any problem.

    Where there is a closed form, it is that. For plain cross-entropy the error probability of a surviving class is

    .. math:: q_k = \frac{N}{\omega_k}\sqrt{\frac{(K-1)\lambda_W\lambda_{H,k}}{K n_k}},

    and the class is lost when :math:`q_k \ge (K-1)/K`; label smoothing, target margins and temperature move both
    (:meth:`CrossEntropy.margin`). It takes O(K) time and memory. Otherwise (a bias or no ReLU under imbalance, logit
    adjustment, fewer dimensions than survivors) the optimum is searched for and certified (:func:`collapsekit.solve`;
    where more than 20 classes fall into at most 8 groups of alike ones, in a few scalars a pair of groups). `basis`
    says what the result rests on.

    Parameters
    ----------
    problem : UFM
        Any.
    time_limit : float, optional
        Seconds for a search; past it the best point is returned with its gap, as not certified. None: no limit.

    Returns
    -------
    Prediction
        Beyond 2,000 classes without a closed form: bounds alone, with NaN for what was not computed.

    Raises
    ------
    CollapseError
        If it is no problem, or its numbers leave float64.

    References
    ----------
    Dang et al., ICML 2024 (arXiv 2401.02058), Theorem 4.1; other losses, class weights, per-class λ_H: derived here
    (docs/theory.md).

    Examples
    --------
    >>> prediction = predict(UFM([500, 300, 40, 10], lambda_w=3e-2, lambda_h=1e-3))
    >>> prediction.margins
    array([2.61284583, 2.29128039, 0.53408249, 0.        ])
    >>> prediction.collapses
    array([False, False, False,  True])
    >>> predict(UFM([500, 300, 40, 10], lambda_w=3e-2, lambda_h=1e-3, bias="free")).basis
    <Basis.CERTIFIED: 'a numerical optimum, certified to be the global one'>
    """
    try:
        return from_closed_form(problem)
    except NoClosedForm:
        if _in_groups(problem):
            return from_groups(solve_groups(problem))
        if max(problem.num_classes, problem.samples.size) > LARGEST_SOLVED:
            return _bounds(problem)
        return from_solution(solve(problem, time_limit=time_limit))


def _in_groups(problem: UFM) -> bool:
    """Whether classes repeat so much that groups are faster; with few dimensions they are not the whole problem."""
    loss, size = problem.loss, problem.num_classes
    if size <= FEW_CLASSES or problem.types is not None or problem.dim is not None or not (loss.smooth and loss.convex):
        return False
    return int(groups_of(problem).max()) < MOST_GROUPS


def from_closed_form(problem: UFM) -> Prediction:
    """Return the prediction of a problem with a closed form; :class:`NoClosedForm` where there is none."""
    frame, loss, size = closed_form(problem), problem.loss, problem.num_classes
    with np.errstate(over="ignore", invalid="ignore"):
        objective, feature_sqnorms = frame.objective, frozen(frame.feature_sqnorms)
        classifier_sqnorms = frozen(frame.classifier_sqnorms)
        total = objective + feature_sqnorms.sum() + classifier_sqnorms.sum()
    if not np.isfinite(total):
        raise CollapseError(
            f"lambda_w={problem.lambda_w:g}: with these penalties norms exceed float64; give penalties and a "
            "temperature nearer to 1"
        )
    confidences = frozen(loss.confidence(frame.margins, size))
    shifted = isinstance(loss, CrossEntropy) and loss.margins is not None
    return Prediction(
        problem=problem,
        margins=frame.margins,
        confidences=confidences,
        training_confidences=frozen(loss.training_confidence(frame.margins, size)) if shifted else confidences,
        feature_sqnorms=feature_sqnorms,
        classifier_sqnorms=classifier_sqnorms,
        collapses=frozen(frame.margins == 0),
        headroom=frame.headroom,
        objective=objective,
        lower_bound=objective,
        gap=0.0,
        basis=Basis.CLOSED_FORM,
        source=frame,
    )


def _bounds(problem: UFM) -> Prediction:
    unknown = frozen(np.full(problem.num_classes, np.nan))
    return Prediction(
        problem=problem,
        **dict.fromkeys(VECTORS, unknown),
        collapses=frozen(np.zeros(problem.num_classes, dtype=bool)),
        objective=np.nan,
        lower_bound=-np.inf,
        gap=np.inf,
        basis=Basis.BOUNDS,
        source=None,
    )


def in_closed_form(problem: UFM) -> Prediction | None:
    """Return the prediction, or None where there is no closed form: what costs next to nothing."""
    try:
        return from_closed_form(problem)
    except NoClosedForm:
        return None
