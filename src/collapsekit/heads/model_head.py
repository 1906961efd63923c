"""ModelHead: the head of a model as a reader hands it on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from collapsekit.heads.activations import Activation


@dataclass(frozen=True, eq=False)
class ModelHead:
    """The head of a model.

    Attributes
    ----------
    layer : str
        What the file calls it.
    weight : (K, d) array
        One row a class.
    bias : (K,) array or None
        None where it has none.
    names : tuple of str or None
        Names of the classes, where the file has them.
    activation : Activation or None
        What its inputs come from, where a graph says so.
    """

    layer: str
    weight: NDArray[Any]
    bias: NDArray[Any] | None
    names: tuple[str, ...] | None = None
    activation: Activation | None = None
