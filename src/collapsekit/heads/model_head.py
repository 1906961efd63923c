"""ModelHead: the head of a model as a reader hands it on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from numpy.typing import NDArray

from collapsekit.heads.activations import Activation

Output = Literal["largest", "sigmoids", "unknown"]
"""What a model puts out: the class of the largest logit, or logits and softmax; a sigmoid of each; something else."""


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
    output : {"largest", "sigmoids", "unknown"}
        What becomes of its logits; without a graph the largest is taken to be the class.
    """

    layer: str
    weight: NDArray[Any]
    bias: NDArray[Any] | None
    names: tuple[str, ...] | None = None
    activation: Activation | None = None
    output: Output = "largest"
