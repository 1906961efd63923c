"""largest_decays: how far the decays may grow before a class is lost, for problems without thresholds, too."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from collapsekit.errors import CollapseError
from collapsekit.prediction._predict import predict
from collapsekit.prediction._prediction import Basis
from collapsekit.problem import UFM
from collapsekit.theory import LargestPenalty, NoClosedForm, largest_penalty
from collapsekit.theory._inverse import class_label, class_position

CLOSE = 1.0005
"""Ratio of two factors between which bisection ends: four digits are printed."""
FARTHEST = 2.0**40
"""Beyond this factor, up or down, no answer is looked for."""


def largest_decays(problem: UFM, label: str | int | None = None) -> LargestPenalty:
    """Return by which factor both penalties may grow before a class is lost: from thresholds, or by bisection.

    Parameters
    ----------
    problem : UFM
        Any that :func:`collapsekit.predict` answers for.
    label : str or int, optional
        Name or position of a class; None: all of them.

    Returns
    -------
    LargestPenalty
        Its `label` is the class that is lost first just above. `product` is λ_W times the mean λ_H.

    Raises
    ------
    CollapseError
        If there is no such class, or it is lost, or kept, at all penalties, or classes are too many for a search.

    References
    ----------
    Thresholds: Dang et al., ICML 2024; a fate need not be monotone in the decays elsewhere, so that bisection finds a
    factor above which a class is lost.

    Examples
    --------
    >>> problem = UFM([900, 100], lambda_w=1e-2, lambda_h=6e-3)
    >>> round(largest_decays(problem).factor, 4)
    0.9129
    >>> round(largest_decays(UFM([900, 100], lambda_w=1e-2, lambda_h=6e-3, bias="free")).factor, 3)
    0.913
    """
    try:
        return largest_penalty(problem, label)
    except NoClosedForm:
        k = None if label is None else class_position(problem, label)

    def lost(factor: float) -> int | None:
        found = predict(scaled(problem, factor))
        if found.basis is Basis.BOUNDS:
            raise CollapseError(
                f"counts: {problem.num_classes} classes are too many to search for their largest decays; see what "
                "predict says of them"
            )
        collapses = found.collapses
        if k is not None:
            return k if collapses[k] else None
        return int(collapses.argmax()) if collapses.any() else None

    low, high, first = 1.0, 1.0, lost(1.0)
    if first is None:  # up until a class is lost
        while first is None and high < FARTHEST:
            low, high = high, 2 * high
            first = lost(high)
    else:  # down until none is
        while (dead := lost(low)) is not None and low > 1 / FARTHEST:
            high, first, low = low, dead, low / 2
    if first is None or low <= 1 / FARTHEST:
        raise CollapseError(
            "label: the fate of the class is the same at all penalties that can be tried; see what predict says of it"
        )
    while high / low > CLOSE:
        middle = (low * high) ** 0.5
        dead = lost(middle)
        low, high, first = (middle, high, first) if dead is None else (low, middle, dead)
    product = problem.lambda_w * float(np.mean(problem.lambda_h)) * low**2
    return LargestPenalty(product=product, factor=low, label=class_label(problem, first))


def scaled(problem: UFM, factor: float) -> UFM:
    """Return the problem with both penalties multiplied, and that of a bias with them."""
    bias = problem.bias if problem.bias is None or isinstance(problem.bias, str) else factor * problem.bias
    return replace(problem, lambda_w=factor * problem.lambda_w, lambda_h=factor * problem.lambda_h, bias=bias)
