"""The three recipes, each with its penalty on the features, or the reason why there is none."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from collapsekit.errors import CollapseError
from collapsekit.losses import Loss
from collapsekit.recipe._base import NO_FEATURE_PENALTY, LastLayer, Recipe
from collapsekit.recipe._optimizer import Reason
from collapsekit.validation import Array, positive_number, shorten, whole_number

FeatureReduction = Literal["batch_sum", "batch_mean", "entry_mean", "full_sum"]
BatchNormDecay = Literal["gain_and_shift", "gain_frozen_shift", "gain", "none"]

REDUCTIONS = {
    "batch_sum": ("Σ‖h‖² over the batch", "fd · batch / N"),
    "batch_mean": ("the mean of ‖h‖² over the batch", "fd / N"),
    "entry_mean": ("the mean of h² over all entries", "fd / (N d)"),
    "full_sum": ("Σ‖h‖² over all N samples", "fd"),
}
"""How a feature penalty adds up, and the λ_H that follows, in words."""


@dataclass(frozen=True)
class Penalty(Recipe):
    r"""Explicit penalties on head and features: a step minimises ``c · mean loss + (wd/2)‖W‖² + (fd/2) R``.

    With N samples, B of them a step, and c = `loss_factor`, λ_W is ``wd / c`` and c λ_H is

    ============== =================================== ======================================================
    `reduction`    R                                   c λ_H
    ============== =================================== ======================================================
    ``batch_sum``  Σ over the batch of ‖h‖²            fd B/N (fd / steps an epoch when the last batch is
                                                       shorter and kept)
    ``batch_mean`` mean over the batch of ‖h‖²         fd / N
    ``entry_mean`` mean over entries, ``h.pow(2)``     fd / (N d)
    ``full_sum``   Σ over all N samples of ‖h‖²        fd
    ============== =================================== ======================================================

    Attributes
    ----------
    weight_decay : float
        wd, an L2 penalty on the head with the factor ½: what torch's SGD and Adam call ``weight_decay``.
    feature_decay : float
        fd, with the factor ½.
    reduction : {"batch_sum", "batch_mean", "entry_mean", "full_sum"}
        How the feature penalty adds up; ``entry_mean`` needs ``LastLayer(dim=d)``.
    batch_size : int, optional
        B; None is the full batch. With several processes or gradient accumulation: ONE process's micro-batch.
    drop_last : bool
        Whether an incomplete last batch is dropped.
    loss_factor : float
        c, 0.5 for a halved loss.
    bias_decays : bool
        Whether the bias of the head, if it has one, is penalised as its weights are.

    Raises
    ------
    CollapseError
        If a value is out of range.

    References
    ----------
    Derived here (docs/theory.md); every row is tested against the gradient of the training objective itself.

    Examples
    --------
    >>> Penalty(weight_decay=1e-3, feature_decay=1e-4, batch_size=20).problem([60, 30, 10])
    UFM(K=3, N=100, counts 60 … 10, lambda_w=0.001, lambda_h=2e-05)
    """

    weight_decay: float
    feature_decay: float
    reduction: FeatureReduction = "batch_sum"
    batch_size: int | None = None
    drop_last: bool = False
    loss_factor: float = 1.0
    bias_decays: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        remedy = "use BatchNorm or Plain for no feature penalty"
        self._set("feature_decay", positive_number("feature_decay", self.feature_decay, remedy))
        if self.reduction not in REDUCTIONS:
            raise CollapseError(f"reduction={shorten(self.reduction)}: give one of {', '.join(REDUCTIONS)}")
        if self.batch_size is not None:
            self._set("batch_size", whole_number("batch_size", self.batch_size, 1, "give None for the full batch"))

    def _units(self, last: LastLayer) -> str:
        added, lambda_h = REDUCTIONS[self.reduction]
        return (
            f"A step minimises the mean loss + (wd/2)‖W‖² + (fd/2) times {added}. The theory's problem sums the "
            f"feature penalty over all N samples, which makes λ_W = wd and λ_H = {lambda_h}."
        )

    @property
    def divides_by_samples(self) -> bool:
        """Whether λ_H falls as 1/N; with batches that N does not fill it falls in steps."""
        return self.reduction != "full_sum" and not (self.reduction == "batch_sum" and self.batch_size is None)

    def _reason(self, last: LastLayer, n: Array | None) -> Reason | None:
        return None

    def _lambda_h(self, n: Array, last: LastLayer) -> float:
        return self.feature_decay * self._share(float(n.sum()), last)

    def _share(self, total: float, last: LastLayer) -> float:
        """λ_H / fd."""
        batch = self.batch_size or total
        if self.drop_last and batch > total:
            raise CollapseError(f"batch_size={batch:g}: larger than N = {total:g} with drop_last, so no step is taken")
        if self.reduction == "entry_mean":
            if last.dim is None:
                raise CollapseError("dim=None: a mean over all entries divides by N d; give the width of the features")
            return 1 / (total * last.dim)
        in_batch = batch / total if self.drop_last else 1 / math.ceil(total / batch)
        return {"batch_sum": in_batch, "batch_mean": 1 / total, "full_sum": 1.0}[self.reduction]


@dataclass(frozen=True)
class BatchNorm(Recipe):
    r"""Weight decay where the head is fed by BatchNorm → ReLU, whose own decay is the feature penalty.

    For m BatchNorm outputs summed before the ReLU, ``(1/N) Σ_i ‖h_i‖² ≤ m (‖γ‖² + ‖β‖²)``, with equality at the
    optimum. With c = `loss_factor` and ``π_k = n_k/N``, λ_W = wd/c and c λ_H is

    ===================== =========================================================================================
    `decays`              c λ_H, and what else the problem is
    ===================== =========================================================================================
    ``gain_and_shift``    ``wd/(m N)``
    ``gain_frozen_shift`` ``wd/(m N (1 − π_k))``; for a class of more than half of the samples
                          ``wd n_k/(m ⌊N/2⌋ ⌈N/2⌉)``: its samples spread over several coordinates (no bias, no offsets)
    ``gain``              ``wd/(m N)`` WITHOUT ReLU and with a FREE bias, whatever bias the head has (d ≥ K): the cost
                          of a feature is its variance, so minorities merge instead of dying
    ``none``              nothing penalises the features: no class is lost to regularisation
    ===================== =========================================================================================

    Attributes
    ----------
    weight_decay : float
        wd, coupled (L2), on the head and on those BatchNorms.
    decays : {"gain_and_shift", "gain_frozen_shift", "gain", "none"}
        What of them decays: γ and β; γ, with β frozen at 0; γ alone, with β free; nothing.
    loss_factor : float
        c, 0.5 for a halved loss.
    bias_decays : bool
        Whether the bias of the head, if it has one, decays with its weights.

    Raises
    ------
    CollapseError
        If a value is out of range.

    References
    ----------
    Derived here (docs/theory.md).

    Examples
    --------
    >>> BatchNorm(weight_decay=5e-4).problem([60, 40], LastLayer(branches=2)).lambda_h
    2.5e-06
    >>> BatchNorm(weight_decay=0.1, decays="gain").problem([60, 40], LastLayer(branches=1))
    UFM(K=2, N=100, counts 60 … 40, lambda_w=0.1, lambda_h=0.001, bias='free', relu=False)
    """

    weight_decay: float
    decays: BatchNormDecay = "gain_and_shift"
    loss_factor: float = 1.0
    bias_decays: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.decays not in ("gain_and_shift", "gain_frozen_shift", "gain", "none"):
            raise CollapseError(
                f"decays={shorten(self.decays)}: give 'gain_and_shift', 'gain_frozen_shift', 'gain' or 'none'"
            )

    def _units(self, last: LastLayer) -> str:
        law = f"λ_W = wd and λ_H = wd / (m N) with m = {last.branches}"
        if self.decays == "gain":
            return (
                "The optimiser's weight decay wd acts on the head and on γ of the BatchNorms that feed the features; β "
                "is free. A feature then costs its variance, and the problem is one without ReLU and with a free bias: "
                f"{law}."
            )
        frozen = " and is divided by 1 − n_k/N, because β is frozen" if self.decays == "gain_frozen_shift" else ""
        return (
            "The optimiser's weight decay wd acts on the head and on γ and β of the BatchNorms that feed the features. "
            f"Their decay is the feature penalty: {law}{frozen}."
        )

    @property
    def divides_by_samples(self) -> bool:
        """With β frozen λ_H is divided by the samples of the OTHER classes, so that it stays."""
        return self.decays == "gain_and_shift"

    def _reason(self, last: LastLayer, n: Array | None) -> Reason | None:
        if not last.branches:
            return NO_FEATURE_PENALTY
        if self.decays == "none":
            return (
                "decays='none'",
                "with γ and β excluded from weight decay nothing penalises the features, so no class is lost to "
                "regularisation; let them decay for a prediction",
            )
        if self.decays == "gain" and last.dim is not None and n is not None and last.dim < n.size:
            return (
                f"dim={last.dim}",
                f"with γ decayed and β free the problem is known for features at least as wide as the {n.size} "
                "classes; widen them, or let β decay too",
            )
        if self.decays == "gain_frozen_shift" and last.biased and n is not None and n.max() > n.sum() / 2:
            return (
                "decays='gain_frozen_shift'",
                f"class {n.argmax()} holds {n.max() / n.sum():.0%} of the samples, and with a bias in the head and β "
                "frozen at 0 the features of a class above one half need not collapse; take the head's bias out, or "
                "let β decay",
            )
        return None

    def _unfit(self, loss: Loss, n: Array) -> Reason | None:
        if self.decays != "gain_frozen_shift" or loss.obstacle is None or n.max() <= n.sum() / 2:
            return None
        return (
            "decays='gain_frozen_shift'",
            f"class {n.argmax()} holds {n.max() / n.sum():.0%} of the samples, and with offsets or scales in the loss "
            "and β frozen at 0 the features of a class above one half need not collapse; let β decay",
        )

    @property
    def relu(self) -> bool:
        """A free β moves the features above 0, so that the ReLU does not bind."""
        return self.decays != "gain"

    def _bias(self, biased: bool) -> float | Literal["free"] | None:
        return "free" if self.decays == "gain" else super()._bias(biased)  # a free β is a free bias of the head

    def _lambda_h(self, n: Array, last: LastLayer) -> float | Array:
        """wd/(m N); with β frozen divided by 1 − π_k, or, for a class above one half, by ``⌊N/2⌋⌈N/2⌉/(n_k N)``."""
        total = float(n.sum())
        law = self.weight_decay / (last.branches * total)
        if self.decays != "gain_frozen_shift":
            return law
        halves = np.floor(total / 2) * np.ceil(total / 2)
        return np.asarray(law * np.where(n <= total / 2, total / np.maximum(total - n, 1), n * total / halves))


@dataclass(frozen=True)
class Plain(Recipe):
    """Weight decay on all parameters, without a feature penalty: no theory predicts it, networks can be measured.

    Attributes
    ----------
    weight_decay : float
        wd.
    loss_factor : float
        0.5 for a halved loss.
    bias_decays : bool
        Whether the bias of the head decays, too.

    Raises
    ------
    CollapseError
        If a value is out of range.

    Examples
    --------
    >>> Plain(weight_decay=5e-4).refusal() is None
    False
    """

    weight_decay: float
    loss_factor: float = 1.0
    bias_decays: bool = True
