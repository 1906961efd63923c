"""The words for a class: its status from the network alone, and how that agrees with a prediction.

What is predicted of it is a word of :func:`collapsekit.prediction.fates`.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from collapsekit.metrics import Measurement
from collapsekit.metrics.functional import COLLAPSED_SHARE
from collapsekit.prediction import Prediction
from collapsekit.prediction._fates import HALF, confidence_decides

Status = Literal["lost", "never predicted", "weak", "alive", "unseen"]
Agreement = Literal["as predicted", "squeezed", "against the prediction", ""]
GONE: tuple[Status, ...] = ("lost", "never predicted")
"""Classes without a single hit among their training samples."""
CHANCE_BAND = 0.005
"""A confidence up to 1/K and this is at chance; one this close to the predicted one is as predicted."""
SQUEEZED_SHARE = 0.9
"""A squeezed class has a margin below this share of the predicted one."""
RESOLVED_SHARE = 0.01
"""Below this share of the largest margin the optimum itself has no hits: a hit leads by 1 % of the median lead."""


def statuses(measured: Measurement) -> list[Status]:
    """Return the status of each class from the network alone, on its training samples, with or without a bias.

    *Lost*: without a hit, and either without a feature of its own (squared norm of the mean below 1 % of the largest)
    or with a confidence at or below chance. *Never predicted*: without a hit otherwise. *Weak*: recall or confidence
    below one half. Confidence counts under cross-entropy and focal loss only.
    """
    vectors = measured.per_class()
    sqnorms, recalls = vectors["feature_sqnorm"], vectors["recall"]
    lost, weak = sqnorms <= COLLAPSED_SHARE * np.nanmax(sqnorms), recalls < HALF
    if confidence_decides(measured.loss):
        lost |= vectors["confidence"] <= 1 / len(recalls) + CHANCE_BAND
        weak |= vectors["confidence"] < HALF
    cases = {"unseen": vectors["count"] == 0, "lost": (recalls == 0) & lost, "never predicted": recalls == 0}
    cases["weak"] = weak
    return list(np.select([*cases.values()], [*cases], "alive").tolist())


def agreements(prediction: Prediction, measured: Measurement, found: list[Status]) -> list[Agreement]:
    """Return how the status of each class agrees with the prediction; of a class without samples nothing is said.

    A class that collapses does as predicted without a hit, or with the predicted confidence. Any other is against the
    prediction without a hit, unless its predicted margin is too small for hits, and squeezed with a margin below 90 %
    of the predicted one.
    """
    assert measured.confidences is not None
    expected, gone = prediction.margins, np.array([word in GONE for word in found])
    close = np.abs(measured.confidences - prediction.confidences) <= CHANCE_BAND
    close &= confidence_decides(measured.loss)
    against = np.where(prediction.collapses, ~(gone | close), gone & (expected > RESOLVED_SHARE * expected.max()))
    squeezed = ~prediction.collapses & (measured.margins < SQUEEZED_SHARE * expected)
    cases = {"": measured.counts == 0, "against the prediction": against, "squeezed": squeezed}
    return list(np.select([*cases.values()], [*cases], "as predicted").tolist())
