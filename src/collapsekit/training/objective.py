"""The training objective in torch, in the units of the recipe: the loss, explicit penalties, and what decays."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from collapsekit.errors import CollapseError
from collapsekit.losses import CrossEntropy
from collapsekit.metrics.losses import sample_losses, shifted_logits
from collapsekit.training._config import TrainConfig

BatchNorm = nn.modules.batchnorm._BatchNorm


def mean_loss(logits: Tensor, labels: Tensor, loss: CrossEntropy, class_weights: Tensor | None = None) -> Tensor:
    """Return the mean loss over the batch, a scalar; torch's weighted mean where class weights are given.

    Examples
    --------
    >>> import torch
    >>> round(float(mean_loss(torch.zeros(1, 2), torch.tensor([0]), CrossEntropy())), 4)
    0.6931
    """
    if loss.smoothing_weights is not None or isinstance(loss.smoothing, tuple):
        shares = torch.ones_like(logits[:, 0]) if class_weights is None else class_weights[labels]
        return (shares * sample_losses(logits, labels, loss)).sum() / shares.sum()
    shifted = shifted_logits(logits, labels, loss)
    weights = None if class_weights is None else class_weights.to(shifted.dtype)
    return nn.functional.cross_entropy(shifted, labels, weight=weights, label_smoothing=loss.smoothing)


def explicit_penalty(features: Tensor, weight: Tensor, weight_decay: float, feature_decay: float) -> Tensor:
    r"""Return ``(wd/2)‖W‖² + (fd/2) Σ_batch ‖h‖²``, a scalar.

    Parameters
    ----------
    features : Tensor, shape (n, d)
        Inputs of the head.
    weight : Tensor, shape (K, d)
        Head.
    weight_decay, feature_decay : float
        wd and fd. ``collapsekit.recipe.Penalty`` gives the matching λ_W and λ_H.

    Examples
    --------
    >>> import torch
    >>> float(explicit_penalty(torch.ones(1, 3), torch.ones(2, 3), 1.0, 2.0))
    6.0
    """
    return 0.5 * (weight_decay * weight.square().sum() + feature_decay * features.square().sum())


def parameter_groups(model: nn.Module, head: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """Return the optimiser's groups: first what the recipe's weight decay is for, then the rest; neither decays yet.

    Raises
    ------
    CollapseError
        If the recipe needs to know which BatchNorms feed the features and the network does not say.
    """
    decaying = {id(parameter) for parameter in _decaying(model, head, config)}
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [[p for p in parameters if (id(p) in decaying) == wanted] for wanted in (True, False)]
    return [{"params": group, "weight_decay": 0.0} for group in groups]


def freeze_shifts(model: nn.Module, config: TrainConfig) -> None:
    """Hold β of the BatchNorms that feed the features at 0, where the recipe says so."""
    if config.recipe == "batchnorm" and config.batchnorm_decay == "gain_frozen_shift":
        for layer in feature_batchnorms(model):
            nn.init.zeros_(layer.bias)
            layer.bias.requires_grad_(False)


def feature_batchnorms(model: nn.Module) -> list[BatchNorm]:
    """Return the BatchNorms that feed the features, as the network says in its attribute of that name."""
    layers = getattr(model, "feature_batchnorms", None)
    if not layers:
        raise CollapseError(
            f"network: {type(model).__name__} does not say which BatchNorms feed its features; give it an attribute "
            "feature_batchnorms (a list of them), or use decay_on='everything' with batchnorm_decay='gain_and_shift'"
        )
    return list(layers)


def _decaying(model: nn.Module, head: nn.Module, config: TrainConfig) -> Iterator[nn.Parameter]:
    if config.recipe == "penalty":
        return
    excluded = {id(p) for p in _excluded(model, config)}
    everything = config.recipe == "plain" or config.decay_on == "everything"
    for module in [model] if everything else [head, *feature_batchnorms(model)]:
        yield from (p for p in module.parameters() if id(p) not in excluded)


def _excluded(model: nn.Module, config: TrainConfig) -> list[nn.Parameter]:
    """Without any decay of γ and β no BatchNorm decays, as is the habit; otherwise β of those that feed features."""
    if config.batchnorm_decay == "gain_and_shift":
        return []
    if config.batchnorm_decay == "none":
        return [p for layer in model.modules() if isinstance(layer, BatchNorm) for p in layer.parameters()]
    return [layer.bias for layer in feature_batchnorms(model)]


def weight_tensor(values: Any, device: torch.device) -> Tensor | None:
    """Return class weights as torch's loss wants them."""
    return None if values is None else torch.tensor(values, dtype=torch.float32, device=device)
