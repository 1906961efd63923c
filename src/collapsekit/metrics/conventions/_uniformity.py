"""GNC2: how evenly class means or a classifier spread over the sphere, where K may be far above d."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor

from collapsekit.errors import CollapseError
from collapsekit.metrics.conventions._reading import Reading, placed, reading, unknown
from collapsekit.metrics.conventions._rows import Own, finite, over_rows, squared_distances, unit_rows

Potential = Literal["distance", "log", "riesz", "gaussian"]
"""What two unit rows do to each other: ‖u−v‖, log 1/‖u−v‖, ‖u−v‖^−t, exp(−t‖u−v‖²)."""


def uniformity(rows_of: Tensor, *, potential: Potential = "log", exponent: float = 2.0) -> Reading:
    r"""Return how evenly rows spread over the sphere: the mean potential between pairs of them, made unit vectors.

    ============ ==================================== ==============================================================
    potential    of a pair u, v                       value
    ============ ==================================== ==============================================================
    distance     ``‖u − v‖``                          mean
    log          ``log 1/‖u − v‖``                    mean
    riesz        ``‖u − v‖^−t``                       mean
    gaussian     ``exp(−t ‖u − v‖²)``                 logarithm of the mean
    ============ ==================================== ==============================================================

    For K ≤ d + 1 the simplex ETF has the least log, Riesz and Gaussian energy, ``‖u − v‖² = 2K/(K−1)`` for all pairs
    (by Jensen: all three are convex and fall in the squared distance, whose mean is at most that). For larger K
    there is no such frame, and uniformity is what is left of it.

    Parameters
    ----------
    rows_of : Tensor, shape (K, d)
        Class means about a centre, or a classifier.
    potential : {"distance", "log", "riesz", "gaussian"}
        The potential.
    exponent : float
        t > 0, of "riesz" and "gaussian".

    Returns
    -------
    Reading
        Per class the same over its partners; the worst is the most crowded class. Infinite if rows coincide ("log",
        "riesz"); NaN below two rows with a direction.

    Raises
    ------
    CollapseError
        If the potential is unknown or the exponent not positive.

    References
    ----------
    Liu et al., "Generalizing and decoupling neural collapse via hyperspherical uniformity gap", ICLR 2023; Gaussian:
    Wang, Isola, ICML 2020.

    Examples
    --------
    >>> import torch
    >>> frame = torch.eye(4) - 0.25
    >>> round(uniformity(frame).value, 4)  # −½ log(8/3)
    -0.4904
    """
    unit, known, kernel = _energy(rows_of, potential, exponent)
    size = len(unit)
    if size < 2:
        return unknown(len(known))
    per_class = over_rows(unit, kernel) / (size - 1)
    value = per_class.mean()
    if potential == "gaussian":
        value, per_class = value.log(), per_class.log()
    return reading(value, placed(per_class, known), lowest=potential == "distance")


def uniformity_variance(rows_of: Tensor, *, potential: Potential = "log", exponent: float = 2.0) -> float:
    """Return the variance of the potential over pairs: 0 where all pairs are equally far apart, however far that is.

    Parameters
    ----------
    rows_of : Tensor, shape (K, d)
        Class means about a centre, or a classifier.
    potential : {"distance", "log", "riesz", "gaussian"}
        As in :func:`uniformity`; of the Gaussian the variance of ``exp(−t ‖u − v‖²)`` itself.
    exponent : float
        t > 0, of "riesz" and "gaussian".

    Returns
    -------
    float
        NaN below two rows with a direction and where two of them coincide ("log", "riesz").

    References
    ----------
    Wu, Papyan, "Linguistic collapse", NeurIPS 2024 (equal distances as a generalised NC2).

    Examples
    --------
    >>> import torch
    >>> round(uniformity_variance(torch.eye(4) - 0.25, potential="distance"), 12)
    0.0
    """
    unit, _, kernel = _energy(rows_of, potential, exponent)
    size = len(unit)
    if size < 2:
        return float("nan")
    mean = over_rows(unit, kernel).sum() / (size * (size - 1))
    squares = over_rows(unit, lambda block, own: (kernel(block, own) - mean).square())
    return float(squares.sum() / (size * (size - 1)))


def _energy(
    rows_of: Tensor, potential: Potential, exponent: float
) -> tuple[Tensor, Tensor, Callable[[Tensor, Own], Tensor]]:
    """Unit rows, which of the rows they are, and the potential of a block of them with all."""
    if not exponent > 0:
        raise CollapseError(f"exponent={exponent}: give a positive number")
    of_squares: dict[str, Callable[[Tensor], Tensor]] = {
        "distance": lambda squared: squared.sqrt(),
        "log": lambda squared: -0.5 * squared.log(),
        "riesz": lambda squared: squared ** (-exponent / 2),
        "gaussian": lambda squared: (-exponent * squared).exp(),
    }
    if potential not in of_squares:
        raise CollapseError(f"potential={potential!r}: give one of {', '.join(of_squares)}")
    known = finite(rows_of) & (rows_of.detach() != 0).any(dim=1)
    unit = unit_rows(rows_of.detach()[known].double())

    def kernel(block: Tensor, own: Own) -> Tensor:
        start = int(own[1][0])
        return of_squares[potential](squared_distances(unit, slice(start, start + len(block))).clamp(min=0))

    return unit, known, kernel
