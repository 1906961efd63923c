"""What the scalar forms share: softmax probabilities and log-odds of error, at logits and at margins."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from collapsekit.validation import Array

SNAP = 1.0 - 8.0 * np.finfo(np.float64).eps
"""A price of more than this share of the critical one counts as critical: thresholds are rounded too."""


class ScalarForm(Protocol):
    """A loss as a function of the margin: its best margin at a price, its confidence and its value."""

    def margin(self, prices: Array, num_classes: int, tails: Array | None = None) -> Array: ...
    def confidence(self, margins: Array, num_classes: int) -> Array: ...
    def scalar(self, margins: Array, num_classes: int) -> Array: ...


def optimum_of(loss: ScalarForm, prices: Array, num_classes: int, out: Array, tails: Array | None) -> Array:
    out[0] = loss.margin(prices, num_classes, tails)
    confidence_at(out[0], num_classes, out=out[1, ...])
    out[2] = loss.scalar(out[0], num_classes)
    return out


def confidence_at(margins: Array, num_classes: int, *, out: Array | None = None) -> Array:
    with np.errstate(over="ignore"):  # overflow means certainty of error
        odds = np.asarray(np.subtract(np.log(num_classes - 1), margins, out=out))
        np.exp(odds, out=odds)
        odds += 1.0
        return np.asarray(np.divide(1.0, odds, out=odds))


def softplus(x: Array) -> Array:
    """``log(1 + e^x)``; may overwrite x."""
    x = np.asarray(x)
    if np.max(x, initial=0.0) < 700.0:
        return np.asarray(np.log1p(np.exp(x, out=x), out=x))
    return np.asarray(np.logaddexp(0.0, x))
