"""Count profiles: how many samples each class of an imbalanced training set has."""

from __future__ import annotations

from typing import Literal

import numpy as np

from collapsekit.errors import CollapseError
from collapsekit.validation import Array, frozen, shorten, whole_number

Rounding = Literal["nearest", "truncated"]


def long_tail(largest: int, smallest: int, num_classes: int, *, rounding: Rounding = "nearest") -> Array:
    r"""Return exponentially decaying counts, the usual long tail.

    .. math:: n_k = \operatorname{round}\bigl(n_1 (n_K/n_1)^{(k-1)/(K-1)}\bigr)

    Parameters
    ----------
    largest, smallest : int
        Samples of the first and of the last class, ``largest ≥ smallest ≥ 1``.
    num_classes : int
        K ≥ 2.
    rounding : {"nearest", "truncated"}
        How counts become whole. The published data sets (CIFAR-10-LT, CIFAR-100-LT) are truncated.

    Returns
    -------
    ndarray, shape (K,)
        Whole numbers as float64, decreasing.

    Raises
    ------
    CollapseError
        If an argument is out of range.

    References
    ----------
    Cao et al., "Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss", NeurIPS 2019.

    Examples
    --------
    >>> long_tail(5000, 50, 10)
    array([5000., 2997., 1797., 1077.,  646.,  387.,  232.,  139.,   83.,   50.])
    >>> int(long_tail(500, 5, 100, rounding="truncated").sum())  # CIFAR-100-LT
    10847
    """
    size, top, bottom = _checked(largest, smallest, num_classes)
    if rounding not in ("nearest", "truncated"):
        raise CollapseError(f"rounding={shorten(rounding)}: give 'nearest' or 'truncated'")
    counts = top * (bottom / top) ** (np.arange(size) / (size - 1))
    # the maximum, because a rounding of n_1 (n_K/n_1) must not truncate n_K itself
    return frozen(np.round(counts) if rounding == "nearest" else np.maximum(np.floor(counts), bottom))


def step(largest: int, smallest: int, num_classes: int, minorities: int | None = None) -> Array:
    """Return counts with two levels: majority classes of `largest` samples, then minorities of `smallest`.

    Parameters
    ----------
    largest, smallest : int
        Samples of a majority and of a minority class, ``largest ≥ smallest ≥ 1``.
    num_classes : int
        K ≥ 2.
    minorities : int, optional
        How many minority classes; None is half of K, rounded down.

    Returns
    -------
    ndarray, shape (K,)
        Whole numbers as float64, decreasing.

    Raises
    ------
    CollapseError
        If an argument is out of range.

    References
    ----------
    Buda et al., "A systematic study of the class imbalance problem", Neural Networks 2018.

    Examples
    --------
    >>> step(500, 5, 5)
    array([500., 500., 500.,   5.,   5.])
    """
    size, top, bottom = _checked(largest, smallest, num_classes)
    few = size // 2 if minorities is None else whole_number("minorities", minorities, 0, "give how many are small")
    if few > size:
        raise CollapseError(f"minorities={few}: only {size} classes")
    return frozen(np.repeat([float(top), float(bottom)], [size - few, few]))


def paper(largest: int, num_classes: int) -> Array:
    """Return the paper's counts, increasing in five equal steps from `largest`/5 to `largest`.

    Parameters
    ----------
    largest : int
        Samples of the last fifth of the classes; 500 in the paper for MNIST, Fashion-MNIST and SVHN.
    num_classes : int
        K ≥ 2; 10 or 100 in the paper.

    Returns
    -------
    ndarray, shape (K,)
        Whole numbers as float64, increasing.

    Raises
    ------
    CollapseError
        If an argument is out of range.

    References
    ----------
    Dang et al., ICML 2024 (arXiv 2401.02058), section 5.

    Examples
    --------
    >>> paper(500, 10)
    array([100., 100., 200., 200., 300., 300., 400., 400., 500., 500.])
    """
    size, top, _ = _checked(largest, 1, num_classes)
    if top < 5:
        raise CollapseError(f"largest={top}: the paper's profile has a class of a fifth of it; give at least 5")
    return frozen(np.round(top * (np.arange(size) * 5 // size + 1) / 5))


def _checked(largest: int, smallest: int, num_classes: int) -> tuple[int, int, int]:
    size = whole_number("num_classes", num_classes, 2, "give the number of classes")
    top = whole_number("largest", largest, 1, "give the samples of the largest class")
    bottom = whole_number("smallest", smallest, 1, "give the samples of the smallest class")
    if bottom > top:
        raise CollapseError(f"smallest={bottom}: larger than largest={top}; swap the two")
    return size, top, bottom
