"""Networks with a linear head behind a ReLU."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn


class Classifier(nn.Module):
    """A feature extractor and a linear head.

    Parameters
    ----------
    body : torch.nn.Module
        Maps inputs to features (n, d) that have left a ReLU.
    head : torch.nn.Linear
        Maps features to logits (n, K).

    Examples
    --------
    >>> import torch
    >>> model = mlp(64, (32,), 16, 10)
    >>> model(torch.zeros(5, 64)).shape
    torch.Size([5, 10])
    """

    def __init__(self, body: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.body, self.head = body, head

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits, (n, K)."""
        return self.head(self.body(inputs))  # type: ignore[no-any-return]


def mlp(in_features: int, hidden: Sequence[int], feature_dim: int, num_classes: int) -> Classifier:
    """Return a multilayer perceptron, ReLU after every layer but the bias-free head."""
    widths = [in_features, *hidden, feature_dim]
    layers = [layer for before, after in pairwise(widths) for layer in (nn.Linear(before, after), nn.ReLU())]
    return Classifier(nn.Sequential(nn.Flatten(), *layers), nn.Linear(feature_dim, num_classes, bias=False))
