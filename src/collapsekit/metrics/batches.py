"""What a loader yields: batches in their many forms, and labels of one class a sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from collapsekit.errors import CollapseError
from collapsekit.validation import shorten


def unpack(batch: Any) -> tuple[Any, Tensor]:
    """Return (inputs, labels) of a loader's batch: a pair, or a mapping with the key labels or label."""
    if isinstance(batch, Mapping):
        key = next((key for key in ("labels", "label") if key in batch), None)
        if key is None:
            raise CollapseError(f"loader: a batch has the keys {shorten(sorted(map(str, batch)))}; expected labels")
        inputs: Any = {name: value for name, value in batch.items() if name != key}
        labels = batch[key]
    elif isinstance(batch, Sequence) and not isinstance(batch, str) and len(batch) >= 2:
        inputs, labels = batch[0], batch[1]
    else:
        raise CollapseError(
            f"loader: a batch is a {type(batch).__name__}; expected a pair (inputs, labels) of tensors or a mapping "
            "with the key labels"
        )
    if not isinstance(inputs, Tensor | Mapping | tuple | list):
        raise CollapseError(
            f"loader: inputs of a batch are a {type(inputs).__name__}; expected a tensor, or a tuple or mapping of them"
        )
    return inputs, label_tensor(labels)


def move(inputs: Any, device: torch.device | None) -> Any:
    """Return inputs with every tensor in them on the device."""
    if isinstance(inputs, Tensor):
        return inputs.to(device)
    if isinstance(inputs, Mapping):
        return {key: move(value, device) for key, value in inputs.items()}
    if isinstance(inputs, tuple | list):
        return tuple(move(value, device) for value in inputs)
    return inputs


def label_tensor(labels: ArrayLike | Tensor) -> Tensor:
    """Return labels as a tensor."""
    return as_tensor("labels", labels, "one class number a sample")


def as_rows(
    features: ArrayLike | Tensor, labels: ArrayLike | Tensor, logits: Tensor | None, ignore_index: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return features (n, d), labels (n,) and logits (n, K) of whatever leading shape, without those to be ignored."""
    x, y = as_tensor("features", features), label_tensor(labels)
    if x.ndim < 2:
        raise CollapseError(f"features: shape {tuple(x.shape)}; expected (N, d)")
    if y.shape != x.shape[:-1]:
        raise _misfit(x, y)
    x, y, z = x.flatten(0, -2), y.flatten(), None if logits is None else logits.flatten(0, -2)
    kept = y != ignore_index
    if bool(kept.all()):
        return x, y, z
    return x[kept.to(x.device)], y[kept], None if z is None else z[kept.to(z.device)]


def _misfit(x: Tensor, y: Tensor) -> CollapseError:
    """What is wrong with labels of another shape than the features."""
    shape, rows = tuple(y.shape), tuple(x.shape[:-1])
    if y.ndim < 2 or x.ndim > 2 or y.is_complex():
        return CollapseError(f"labels: shape {shape} for {' × '.join(map(str, rows))} features; expected {rows}")
    if shape[1:] == (1,):
        return CollapseError(f"labels: shape {shape}; expected ({len(y)},): give labels.squeeze(1)")
    if y.ndim == 2 and bool(((y == 0) | (y == 1)).all() and (y.sum(dim=1) == 1).all()):
        return CollapseError(f"labels: shape {shape}, one-hot rows; give class numbers, labels.argmax(dim=1)")
    return CollapseError(
        f"labels: shape {shape}, several labels a sample (multi-label or soft targets); the theory is about one class "
        "a sample: give (n,) class numbers (a batch is (inputs, labels); several inputs go in a tuple of their own)"
    )


def as_tensor(name: str, value: ArrayLike | Tensor, what: str = "an array of numbers") -> Tensor:
    """Return a detached tensor, or say what `value` should be."""
    if isinstance(value, Tensor):
        return value.detach()
    try:
        array = np.asarray(value)
        kind, size = array.dtype.kind, array.dtype.itemsize
        if kind == "V" or (kind == "f" and size > 8):  # bfloat16 as ml_dtypes has it; long double
            array = array.astype(np.float64)
        array = array.astype(array.dtype.newbyteorder("="), copy=False)
        if not array.flags.writeable or any(stride < 0 for stride in array.strides):
            array = array.copy()  # torch shares memory with neither
        return torch.as_tensor(array)
    except (TypeError, ValueError):
        raise CollapseError(f"{name}={shorten(value)}: give {what}") from None
