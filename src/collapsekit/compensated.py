"""Sums and products with what rounding took from them: where a margin vanishes its digits cancel."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from collapsekit.validation import Array

Pair = tuple[Array, Array]
"""A number as the float64 nearest to it and the float64 nearest to the rest."""
SPLITTER = 2.0**27 + 1


def pair(exact: Fraction) -> tuple[float, float]:
    """Return a rational number as such a pair."""
    nearest = float(exact)
    return nearest, float(exact - Fraction(nearest))


def exact_sum(a: Array | float, b: Array | float) -> Pair:
    """Return a + b and its rounding error (Knuth)."""
    total = np.asarray(a + b)
    rest = total - a
    return total, np.asarray((a - (total - rest)) + (b - rest))


def exact_product(a: Array | float, b: Array | float) -> Pair:
    """Return a b and its rounding error (Dekker), for factors below 1e300."""
    product = np.asarray(a * b)
    a_high, a_low = _halves(a)
    b_high, b_low = _halves(b)
    return product, np.asarray(((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low)


def _halves(a: Array | float) -> tuple[Array | float, Array | float]:
    scaled = SPLITTER * a
    high = scaled - (scaled - a)
    return high, a - high
