"""What stands before a head bounds its inputs from below; the proofs of `proofs.py` rest on that number alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from collapsekit.errors import CollapseError
from collapsekit.validation import shorten

ActivationName = Literal["relu", "swish", "gelu", "hardswish", "mish", "none"]
LOWER: dict[str, float | None] = {
    "relu": 0.0,
    "swish": -0.2785,
    "gelu": -0.1701,
    "hardswish": -0.3751,
    "mish": -0.3089,
    "sigmoid": 0.0,
    "softplus": 0.0,
    "softmax": 0.0,
    "tanh": -1.0,
    "none": None,
}
"""Minima, rounded down in the fourth digit so that no rounding of float32 falls below: swish -0.27846, GELU -0.16997
(-0.17004 in its tanh form), hardswish -3/8, Mish -0.30884."""


@dataclass(frozen=True)
class Activation:
    """What the inputs of a head come from.

    Attributes
    ----------
    name : str
        A word for it.
    lower : float or None
        A number that no input falls below; None where there is none.
    read : bool
        Whether it was read from a graph; otherwise it was said, and conclusions hold if it is true.
    """

    name: str
    lower: float | None
    read: bool = False

    def __str__(self) -> str:
        return self.name if self.lower is None else f"{self.name} (inputs ≥ {self.lower:g})"


def as_activation(value: Activation | ActivationName | None) -> Activation | None:
    """Return the activation of this name, not read but said; None where nothing is known."""
    if value is None or isinstance(value, Activation):
        return value
    if value not in get_args(ActivationName):
        raise CollapseError(f"activation={shorten(value)}: give one of {', '.join(get_args(ActivationName))}")
    return Activation(value, LOWER[value])
