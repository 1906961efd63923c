"""What a linear head is, W h + b, and what a head that is none looks like."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from collapsekit.errors import CollapseError
from collapsekit.validation import shorten

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
LINEAR = 1e-4
"""How far logits may be from W h + b, relative to the terms of that sum; four roundings of shorter types."""
CHECKED_ROWS = 4096
PRODUCTS = {"highest": 0.0, "high": 2.0**-10, "medium": 2.0**-7}
"""Rounding of float32 products by torch's setting: none beyond float32's own, TF32, bfloat16."""
ABOUT = "the theory is about linear heads"
GIVE = "give measure_features the features, labels, and a weight and bias that make the output of the features"
OR_ELSE = f"or {GIVE}"


@dataclass(frozen=True, eq=False)
class Head:
    """The layer that makes the logits.

    Attributes
    ----------
    name : str
        Its name in the network; empty if it is the network.
    module : torch.nn.Module
        ``nn.Linear``, or any module with a matrix as weight (a 1×1 convolution included) that computes ``W h + b``.
    transposed : bool
        Whether its weight is (d, K).
    """

    name: str
    module: nn.Module
    transposed: bool = False

    @property
    def weight(self) -> Tensor:
        """W, (K, d), as the last forward pass used it: a weight-normalised head's effective weight."""
        weight = whole(self.module.weight)
        assert weight is not None
        return weight.T if self.transposed else weight.flatten(1)

    @property
    def bias(self) -> Tensor | None:
        """b, (K,), or None."""
        return whole(getattr(self.module, "bias", None))


def checked_head(name: str, module: nn.Module, features: Tensor, logits: Tensor) -> Head:
    """The head, if what came out of it is W h + b, computed once more in float64."""
    h, z = _rows(module, features), _rows(module, logits)
    if z.shape[1] == 1:
        raise CollapseError(
            f"{says(name)}: a single logit; the theory is about one logit a class: use two logits, nn.Linear(d, 2), "
            "and the labels 0 and 1"
        )
    heads = [Head(name, module, turned) for turned in (False, True) if not (turned and isinstance(module, Convolution))]
    heads = [head for head in heads if tuple(head.weight.shape) == (z.shape[1], h.shape[1])]
    if not heads or len(h) != len(z):
        weight = Head(name, module).weight
        raise CollapseError(
            f"{says(name)}: maps {tuple(features.shape)} to {tuple(logits.shape)} with a weight "
            f"{tuple(weight.shape)}; expected (n, d) to (n, K) with (K, d); {ABOUT}"
        )
    finite = torch.isfinite(h).all(dim=1) & torch.isfinite(z).all(dim=1)
    h, z = h[finite], z[finite]
    tolerance = rounding(LINEAR, features, logits, heads[0].weight)
    kinds = [_deviation(head, h, z, tolerance) for head in heads]
    if None in kinds:
        return heads[kinds.index(None)]
    likeliest = next((kind for kind in kinds if kind != UNKNOWN), UNKNOWN)
    raise CollapseError(
        f"{says(name)}: a {'quantised ' * callable(module.weight)}{type(module).__name__}, {likeliest}; "
        f"{ABOUT}: use nn.Linear (unquantised, adapters like LoRA merged), {OR_ELSE}"
    )


UNKNOWN = "its output is not W h + b"


def _deviation(head: Head, h: Tensor, z: Tensor, tolerance: float) -> str | None:
    """Return None if z is W h + b, else what it looks like."""
    W = head.weight.detach().cpu().double()
    b = torch.zeros(len(W)).double() if head.bias is None else head.bias.detach().cpu().double()
    if not len(h) or not (torch.isfinite(W).all() and torch.isfinite(b).all()):
        return None  # nothing to compare; or the head has diverged, which is said where it is measured
    if b.shape != W.shape[:1]:
        return UNKNOWN
    linear, size = h @ W.T + b, h.abs() @ W.abs().T + b.abs()
    if bool((z - linear).abs().max() <= tolerance * size.max()):
        return None
    return _squashed(linear, z, 10 * tolerance) or _scaled(h, W, b, z, 10 * tolerance) or UNKNOWN


def _squashed(linear: Tensor, z: Tensor, tolerance: float) -> str | None:
    functions = {
        "softmax": linear.softmax(dim=1),
        "log_softmax": linear.log_softmax(dim=1),
        "sigmoid": linear.sigmoid(),
        "tanh": linear.tanh(),
        "ReLU": linear.relu(),
    }
    for name, value in functions.items():
        if bool((z - value).abs().max() <= tolerance * z.abs().max()):
            return f"a linear layer with a {name} behind it"
    return None


def _scaled(h: Tensor, W: Tensor, b: Tensor, z: Tensor, tolerance: float) -> str | None:
    unit_h, unit_W = nn.functional.normalize(h, dim=1), nn.functional.normalize(W, dim=1)
    products = {
        "a scaled head, {:.3g} times W h + b": h @ W.T + b,
        "a scaled head, {:.3g} times W h, plus b": h @ W.T,
        "a cosine head: it normalises features and weights": unit_h @ unit_W.T,
        "a head that normalises its weights": h @ unit_W.T,
        "a head that normalises the features": unit_h @ W.T,
    }
    for kind, product in products.items():
        for rest in (z, z - b):
            factor = float((product * rest).sum() / product.square().sum()) if bool(product.any()) else 0.0
            if factor and bool((rest - factor * product).abs().max() <= tolerance * rest.abs().max()):
                return kind.format(factor)
    return None


def rounding(least: float, *tensors: Tensor) -> float:
    """Four roundings of the shortest type that took part in the products."""
    types = [tensor.dtype for tensor in tensors if tensor.is_floating_point()]
    shortest = max([torch.finfo(dtype).eps for dtype in types] + [PRODUCTS[torch.get_float32_matmul_precision()]])
    return max(least, 4 * shortest)


def _rows(module: nn.Module, values: Tensor) -> Tensor:
    """One float64 row a position, the first ones, on the CPU; empty if there are no channels."""
    if values.ndim < 2:
        return values.new_zeros(0, 0)
    last = values.movedim(1, -1) if isinstance(module, Convolution) else values
    return last.flatten(0, -2)[:CHECKED_ROWS].detach().cpu().double()


def whole(weight: Any) -> Tensor | None:
    """A weight as one plain tensor: quantised ones are methods, those of FSDP2 are in parts."""
    weight = weight() if callable(weight) else weight
    if not isinstance(weight, Tensor):
        return None
    if weight.is_quantized:
        return weight.dequantize()
    return weight.full_tensor() if hasattr(weight, "full_tensor") else weight


def says(name: str) -> str:
    return f"head={shorten(name)}" if name else "head=the model itself"
