"""Measure a network in training: BatchNorm statistics of the training set first, then the training or held-out set."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from collapsekit.losses import CrossEntropy
from collapsekit.metrics import Measurement, measure
from collapsekit.metrics.batches import evaluating
from collapsekit.metrics.last_layer import Head
from collapsekit.prediction import Prediction
from collapsekit.problem import UFM
from collapsekit.training._split import Split
from collapsekit.training.objective import BatchNorm

MEASURED_TOGETHER = 256
"""Samples a forward pass: what convolutions make of more leaves the cache, and takes twice as long."""
BATCH = 2048


def measured(model: nn.Module, split: Split, head: Head, loss: CrossEntropy, *, train_set: bool = True) -> Measurement:
    """Return the measurement of a network on the training or on the held-out samples."""
    inputs, labels = (split.train_inputs, split.train_labels) if train_set else (split.test_inputs, split.test_labels)
    loader = list(zip(torch.split(inputs, MEASURED_TOGETHER), torch.split(labels, MEASURED_TOGETHER), strict=True))
    return measure(model, loader, head, names=split.names, loss=loss)


def history_entry(step: int, result: Measurement, problem: UFM | None, prediction: Prediction | None) -> dict[str, Any]:
    """Return what the history keeps of an evaluation; ``objective`` is None where the run minimises no problem."""
    assert result.confidences is not None  # the network has a head
    assert result.losses is not None
    scalars = result.metrics(prediction)
    shares = result.counts / result.counts.sum() if problem is None else problem.loss_weights
    known = {key: value if math.isfinite(value) else None for key, value in scalars.items()}
    return {
        "step": step,
        "objective": None if problem is None else result.objective(problem),
        "loss": float(shares @ result.losses),
        "nc1": known.get("nc1"),
        "metrics": known,
        "confidences": result.confidences.tolist(),
    }


def recompute_batchnorm(model: nn.Module, inputs: Tensor) -> None:
    """Set running statistics to those of the training set: one pass over all samples, in large random batches.

    torch keeps the unbiased variance; the biased one, by which training normalises, is put in its place. Within a
    batch every layer sees what the layers before it make of that batch, so that up to 2,048 samples are exact.
    """
    layers = [module for module in model.modules() if isinstance(module, BatchNorm) and module.track_running_stats]
    if not layers:
        return
    moments: dict[BatchNorm, list[tuple[Tensor, Tensor, Tensor]]] = {layer: [] for layer in layers}

    def collect(layer: BatchNorm, args: tuple[Tensor, ...]) -> None:
        x = args[0].transpose(0, 1).flatten(1).double()
        moments[layer].append((x.new_tensor(x.shape[1]), x.mean(dim=1), x.var(dim=1, correction=0)))

    kept = [(layer.running_mean, layer.running_var) for layer in layers]
    hooks = [layer.register_forward_pre_hook(collect) for layer in layers]
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))
    with evaluating(model), torch.no_grad():
        try:
            for layer in layers:  # without running statistics torch normalises by the batch
                layer.running_mean = layer.running_var = None
            for rows in torch.tensor_split(order, math.ceil(len(order) / BATCH)):
                model(inputs[rows])
        finally:
            for hook in hooks:
                hook.remove()
            for layer, (mean, variance) in zip(layers, kept, strict=True):
                layer.running_mean, layer.running_var = mean, variance
    for layer, collected in moments.items():
        if collected and layer.running_mean is not None and layer.running_var is not None:
            counts, means, variances = (torch.stack(parts) for parts in zip(*collected, strict=True))
            shares = counts / counts.sum()
            mean = shares @ means
            layer.running_mean.copy_(mean)
            layer.running_var.copy_(shares @ (variances + (means - mean).square()))
