"""The training objective in torch, in the units of the recipe."""

from __future__ import annotations

from torch import Tensor, nn


def penalised_loss(
    logits: Tensor,
    labels: Tensor,
    features: Tensor,
    weight: Tensor,
    weight_decay: float,
    feature_decay: float,
) -> Tensor:
    r"""Return mean CE over the batch + ``(wd/2)‖W‖²`` + ``(fd/2) Σ_batch ‖h‖²``, a scalar.

    Parameters
    ----------
    logits : Tensor, shape (n, K)
    labels : Tensor, shape (n,)
    features : Tensor, shape (n, d)
        Inputs of the head.
    weight : Tensor, shape (K, d)
        Head.
    weight_decay, feature_decay : float
        wd and fd. ``UFM.from_training(..., feature_reduction="batch_sum")`` gives the matching λ_W and λ_H.

    Examples
    --------
    >>> import torch
    >>> logits, labels = torch.zeros(1, 2), torch.tensor([0])
    >>> round(float(penalised_loss(logits, labels, torch.ones(1, 3), torch.ones(2, 3), 1.0, 2.0)), 4)
    6.6931
    """
    penalty = 0.5 * (weight_decay * weight.square().sum() + feature_decay * features.square().sum())
    return nn.functional.cross_entropy(logits, labels) + penalty
