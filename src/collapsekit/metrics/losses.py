"""The losses of collapsekit.losses in torch, sample by sample."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from collapsekit.errors import CollapseError
from collapsekit.losses import MSE, CrossEntropy, Focal, Hinge, Loss
from collapsekit.validation import shorten


def shifted_logits(logits: Tensor, labels: Tensor, loss: CrossEntropy) -> Tensor:
    """Return ``s z/T + o − Δ_y e_y``, (n, K): what the cross-entropy of `loss` is applied to."""
    logits = logits / loss.temperature
    if loss.scales is not None:
        logits = logits * logits.new_tensor(loss.scales)
    if loss.offsets is not None:
        logits = logits + logits.new_tensor(loss.offsets)
    if loss.margins is not None:
        margins = torch.tensor(loss.margins, dtype=logits.dtype, device=logits.device)
        logits = logits.scatter_add(1, labels[:, None], -margins[labels][:, None])
    return logits


def checked_loss(loss: Loss) -> Loss:
    """Return a loss, or say what one is."""
    if not isinstance(loss, Loss):
        raise CollapseError(f"loss={shorten(loss)}: give CrossEntropy(), Focal(), Hinge() or MSE()")
    return loss


def sample_losses(logits: Tensor, labels: Tensor, loss: Loss) -> Tensor:
    """Return the loss of each sample, (n,).

    Parameters
    ----------
    logits : Tensor, shape (n, K)
    labels : Tensor, shape (n,)
        int64, in [0, K).
    loss : CrossEntropy, Focal, Hinge or MSE
        With all its terms; torch's weighted smoothing stands for a class's own weight 1.

    Examples
    --------
    >>> import torch
    >>> sample_losses(torch.zeros(1, 2), torch.tensor([0]), CrossEntropy(margins=(2.0, 0.0)))
    tensor([2.1269])
    >>> sample_losses(torch.zeros(1, 2), torch.tensor([0]), MSE())
    tensor([0.5000])
    """
    if isinstance(loss, CrossEntropy):
        shifted = shifted_logits(logits, labels, loss)
        weights = None if loss.smoothing_weights is None else shifted.new_tensor(loss.smoothing_weights)
        smoothed = partial(nn.functional.cross_entropy, shifted, labels, weight=weights, reduction="none")
        if isinstance(loss.smoothing, tuple):
            rates = shifted.new_tensor(loss.smoothing)[labels]
            losses = (1 - rates) * smoothed() + rates * smoothed(label_smoothing=1.0)
        else:
            losses = smoothed(label_smoothing=loss.smoothing)
        return losses if weights is None else losses / weights[labels]
    own = labels[:, None]
    if isinstance(loss, MSE):
        return 0.5 * logits.scatter_add(1, own, torch.full_like(logits[:, :1], -1.0)).square().sum(dim=1)
    others = logits.scatter(1, own, -torch.inf)
    if isinstance(loss, Hinge):
        return (1 + others.amax(dim=1) - logits.gather(1, own)[:, 0]).relu()
    odds = others.logsumexp(dim=1) - logits.gather(1, own)[:, 0]  # of error: 1 − p = σ(odds) keeps its digits
    assert isinstance(loss, Focal)
    return odds.sigmoid() ** loss.gamma * nn.functional.softplus(odds)
