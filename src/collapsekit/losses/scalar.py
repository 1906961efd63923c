"""What the scalar forms share: softmax probabilities at margins."""

from __future__ import annotations

import numpy as np

from collapsekit.validation import Array

SNAP = 1.0 - 8.0 * np.finfo(np.float64).eps
"""A price of more than this share of the critical one counts as critical: thresholds are rounded too."""


# One array each: at a million classes a fresh one costs twice as much as what is written into it.


def confidence_at(margins: Array, num_classes: int) -> Array:
    """Return ``1/(1 + (K−1) e^{−s})``: the target's softmax probability at each margin."""
    odds = np.asarray(np.log(num_classes - 1) - margins)
    with np.errstate(over="ignore"):  # overflow means certainty of error
        np.exp(odds, out=odds)
    odds += 1.0
    return np.asarray(np.divide(1.0, odds, out=odds))


def softplus(x: Array) -> Array:
    """Return ``log(1 + e^x)``; log1p alone takes a fifth of logaddexp's time, but overflows. May overwrite x."""
    x = np.asarray(x)
    if np.max(x, initial=0.0) > 700.0:
        return np.asarray(np.logaddexp(0.0, x))
    return np.asarray(np.log1p(np.exp(x, out=x), out=x))
