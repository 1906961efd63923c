"""features_of: what enters a network's head, for measurements that look at single samples."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from collapsekit.errors import CollapseError
from collapsekit.metrics.batches import as_tensor, move, unchanged, unpack
from collapsekit.metrics.last_layer import Head, find_head, forward


class Features(NamedTuple):
    """Features (N, d) and labels (N,) of a network, and the weight (K, d) and bias (K,) or None of its head."""

    features: Tensor
    labels: Tensor
    weight: Tensor
    bias: Tensor | None


def features_of(
    model: nn.Module,
    loader: Iterable[Any],
    head: str | nn.Module | Head | None = None,
    *,
    device: torch.device | str | None = None,
) -> Features:
    """Return what enters the head of a network, sample by sample, in the order of the loader.

    The model is run in eval mode without gradients; nothing of it, of the random states or of the loader changes.

    Parameters
    ----------
    model, loader, head, device
        As :func:`measure` takes them.

    Returns
    -------
    Features
        On the CPU.

    Raises
    ------
    CollapseError
        If the head cannot be found, or the loader is empty.

    Examples
    --------
    >>> import torch
    >>> from collapsekit.metrics import measure_features
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> found = features_of(model, [(torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 0]))])
    >>> found.features.shape
    torch.Size([6, 8])
    >>> measure_features(*found)
    Measurement(ClassMoments(K=3, d=8, 6 samples, scatter), head with bias)
    """
    device = torch.device(device) if device is not None else next((p.device for p in model.parameters()), None)
    kept: list[tuple[Tensor, Tensor]] = []
    with unchanged(model, loader), torch.no_grad():
        batches = iter(loader)
        first = next(batches, None)
        if first is None:
            raise CollapseError("loader: no batches; give at least one sample")
        found = head if isinstance(head, Head) else find_head(model, head, move(unpack(first)[0], device))
        for batch in chain([first], batches):
            inputs, labels = unpack(batch)
            marks = as_tensor("labels", labels)
            features, _ = forward(model, found, move(inputs, device), positions=marks.ndim > 1)
            kept.append((features.detach().cpu().flatten(0, -2), marks.detach().cpu().flatten()))
        weight, bias = found.weight.detach().cpu(), None if found.bias is None else found.bias.detach().cpu()
    features, labels = (torch.cat(parts) for parts in zip(*kept, strict=True))
    return Features(features, labels, weight, bias)
