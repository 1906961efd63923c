"""phase_diagram: how many classes survive, over imbalance and penalty."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from collapsekit import profiles
from collapsekit.errors import CollapseError
from collapsekit.losses import CrossEntropy, Loss
from collapsekit.prediction._predict import predict
from collapsekit.problem import UFM
from collapsekit.theory._thresholds import thresholds
from collapsekit.validation import Array, frozen, positive_values, shorten, whole_number

Profile = Literal["long-tail", "step"]
PROFILES: dict[str, Callable[[int, int, int], Array]] = {"long-tail": profiles.long_tail, "step": profiles.step}


@dataclass(frozen=True, eq=False)
class PhaseDiagram:
    """Surviving classes over imbalance and penalty.

    Attributes
    ----------
    ratios : ndarray, shape (R,)
        Largest over smallest count.
    products : ndarray, shape (P,)
        λ_W λ_H.
    survivors : ndarray of int, shape (R, P)
        Classes that are predicted to be recognised.
    first_death, last_death : ndarray, shape (R,)
        λ_W λ_H at which the first and the last class dies; without thresholds the first of the given products at which
        one, or all, are lost, NaN if there is none.
    num_classes : int
        K.
    """

    ratios: Array
    products: Array
    survivors: NDArray[np.int64]
    first_death: Array
    last_death: Array
    num_classes: int

    def to_dict(self) -> dict[str, Any]:
        """Return the diagram as plain lists, with its schema version."""
        keys = ("ratios", "products", "survivors", "first_death", "last_death")
        return {"schema": 1, "num_classes": self.num_classes} | {key: getattr(self, key).tolist() for key in keys}


def phase_diagram(
    num_classes: int,
    largest: int,
    *,
    ratios: ArrayLike,
    products: ArrayLike,
    profile: Profile = "long-tail",
    loss: Loss = CrossEntropy(),  # noqa: B008  (frozen)
    bias: float | Literal["free"] | None = None,
    relu: bool = True,
) -> PhaseDiagram:
    """Return how many classes survive for each imbalance ratio and each λ_W λ_H.

    Parameters
    ----------
    num_classes : int
        K.
    largest : int
        Samples of the largest class.
    ratios : array_like, shape (R,)
        Largest over smallest count, at least 1.
    products : array_like, shape (P,)
        λ_W λ_H > 0.
    profile : {"long-tail", "step"}
        How counts fall between the two.
    loss : CrossEntropy, Focal, Hinge or MSE
        The loss.
    bias : None, "free" or float
        As for :class:`collapsekit.UFM`. With a bias, or without ReLU, every cell is searched for.
    relu : bool
        Whether features are nonnegative.

    Raises
    ------
    CollapseError
        If an argument is out of range.

    Examples
    --------
    >>> diagram = phase_diagram(10, 5000, ratios=[1, 100], products=[1e-9, 1e-6, 1e-3])
    >>> diagram.survivors
    array([[10, 10,  0],
           [10,  7,  0]])
    """
    size = whole_number("num_classes", num_classes, 2, "give the number of classes")
    top = whole_number("largest", largest, 1, "give the samples of the largest class")
    r = positive_values("ratios", ratios, "give largest over smallest count")
    p = positive_values("products", products, "give values of λ_W λ_H")
    if r.min() < 1:
        raise CollapseError(f"ratios: {r.min():g} is below 1; give largest over smallest count")
    if not isinstance(profile, str) or profile not in PROFILES:
        raise CollapseError(f"profile={shorten(profile)}: give one of {', '.join(PROFILES)}")
    counts = [PROFILES[profile](top, max(1, round(top / ratio)), size) for ratio in r]
    if bias is None and relu and loss.obstacle is None:
        critical = np.array([thresholds(UFM(n, 1.0, 1.0, loss=loss)).critical_product for n in counts])
        survivors = (critical[:, None, :] > p[None, :, None]).sum(axis=2)
        deaths = critical.min(axis=1), critical.max(axis=1)
    else:
        roots = np.sqrt(p)
        lost = [[predict(UFM(n, w, w, loss=loss, bias=bias, relu=relu)).collapses.sum() for w in roots] for n in counts]
        survivors = size - np.array(lost)
        deaths = tuple(np.where(survivors <= most, p, np.inf).min(axis=1) for most in (size - 1, 0))
    first, last = (frozen(np.where(np.isfinite(one), one, np.nan)) for one in deaths)
    return PhaseDiagram(r, p, survivors, first, last, size)
