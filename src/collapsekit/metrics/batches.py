"""What a loader yields: batches in their many forms, labels that are one class number a sample."""

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
    return inputs, class_labels(labels)


def move(inputs: Any, device: torch.device | None) -> Any:
    """Return inputs with every tensor in them on the device."""
    if isinstance(inputs, Tensor):
        return inputs.to(device)
    if isinstance(inputs, Mapping):
        return {key: move(value, device) for key, value in inputs.items()}
    if isinstance(inputs, tuple | list):
        return tuple(move(value, device) for value in inputs)
    return inputs


def class_labels(labels: ArrayLike | Tensor) -> Tensor:
    """Return labels as a tensor, or say that they are not one class a sample."""
    classes = as_tensor("labels", labels, "one class number a sample")
    if classes.ndim < 2:
        return classes
    shape, last = tuple(classes.shape), classes.shape[-1]
    if classes.ndim == 2 and last == 1:
        raise CollapseError(f"labels: shape {shape}; expected ({len(classes)},): give labels.squeeze(1)")
    if classes.ndim == 2 and bool(((classes == 0) | (classes == 1)).all() and (classes.sum(dim=1) == 1).all()):
        raise CollapseError(f"labels: shape {shape}, one-hot rows; give class numbers, labels.argmax(dim=1)")
    raise CollapseError(
        f"labels: shape {shape}, several labels a sample (multi-label or soft targets); the theory is about one class "
        "a sample: give (n,) class numbers (a batch is (inputs, labels); several inputs go in a tuple of their own)"
    )


def as_tensor(name: str, value: ArrayLike | Tensor, what: str = "an array of numbers") -> Tensor:
    """Return a detached tensor, or say what `value` should be."""
    if isinstance(value, Tensor):
        return value.detach()
    try:
        array = np.asarray(value)
        if not array.flags.writeable or any(stride < 0 for stride in array.strides):
            array = array.copy()  # torch shares memory with neither
        return torch.as_tensor(array)
    except (TypeError, ValueError):
        raise CollapseError(f"{name}={shorten(value)}: give {what}") from None
