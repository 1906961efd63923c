"""fates: what a prediction says of each class, in one word."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from collapsekit.losses import CrossEntropy, Focal, Loss
from collapsekit.validation import Array

Fate = Literal["collapses", "nearly lost", "survives", "unknown"]
HALF = 0.5
"""Below this confidence (or recall) the other classes together weigh more than the class itself."""


def confidence_decides(loss: Loss) -> bool:
    """Return whether a loss aims at confidences: with squared error and hinge logits of 1 and 0 are a perfect fit."""
    return isinstance(loss, CrossEntropy | Focal)


def fates(loss: Loss, confidences: Array, collapses: NDArray[np.bool_]) -> list[Fate]:
    """Return what is expected of each class: it collapses, is nearly lost (confidence below one half), or survives.

    Unknown where there is no confidence.
    """
    nearly = (confidences < HALF) & confidence_decides(loss)
    cases: dict[Fate, NDArray[np.bool_]] = {
        "unknown": np.isnan(confidences),
        "collapses": collapses,
        "nearly lost": nearly,
    }
    return list(np.select([*cases.values()], [*cases], "survives").tolist())
