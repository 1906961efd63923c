"""Training recipes: the one place that turns what a training step minimises into a problem (UFM), or says why not."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from collapsekit.errors import CollapseError
from collapsekit.losses import CrossEntropy, Loss
from collapsekit.problem import UFM
from collapsekit.validation import Array, class_counts, positive_number, positive_vector, shorten, whole_number

FeatureReduction = Literal["batch_sum", "batch_mean", "entry_mean", "full_sum"]
BatchNormDecay = Literal["gain_and_shift", "gain_frozen_shift", "gain", "none"]
Bias = float | Literal["free"]

LEARNING_RATES = {"sgd": 0.1, "adam": 1e-3, "adamw": 1e-3}
"""Optimisers and the learning rate at the start where none is given."""

REDUCTIONS = {
    "batch_sum": ("Σ‖h‖² over the batch", "fd · batch / N"),
    "batch_mean": ("the mean of ‖h‖² over the batch", "fd / N"),
    "entry_mean": ("the mean of h² over all entries", "fd / (N d)"),
    "full_sum": ("Σ‖h‖² over all N samples", "fd"),
}
"""How a feature penalty adds up, and the λ_H that follows, in words."""

Reason = tuple[str, str]
"""What stands in the way: an argument with its value, and the sentence that says why and what to do."""

NO_FEATURE_PENALTY = (
    "feature_decay=None",
    "without a feature penalty or a BatchNorm before the last ReLU the recipe fixes no λ_H; give a feature decay, or "
    "one BatchNorm branch if the head is fed by BatchNorm → ReLU",
)


@dataclass(frozen=True)
class LastLayer:
    """What a network's last layer has to do with the theory.

    Attributes
    ----------
    dim : int, optional
        d, the width of the features; None: as wide as needed.
    biased : bool
        Whether the head has a bias.
    branches : int
        m, BatchNorm outputs summed before the ReLU that feeds the head; 0 if there is none.
    pooled : bool
        Whether features are averaged over positions after that ReLU.

    Raises
    ------
    CollapseError
        If a number is no whole number in range.
    """

    dim: int | None = None
    biased: bool = False
    branches: int = 0
    pooled: bool = False

    def __post_init__(self) -> None:
        if self.dim is not None:
            whole_number("dim", self.dim, 1, "give the width of the features, or None")
        whole_number("branches", self.branches, 0, "count the summed BatchNorm outputs")


@dataclass(frozen=True)
class Optimizer:
    """What takes the steps, and applies weight decay.

    Attributes
    ----------
    name : {"sgd", "adam", "adamw"}
        As torch names it.
    learning_rate : float, optional
        At the start; left out: 0.1 for sgd, 0.001 for the others.

    Raises
    ------
    CollapseError
        If the name is unknown or the learning rate not positive.

    Examples
    --------
    >>> Optimizer("adam").rate
    0.001
    """

    name: str = "sgd"
    learning_rate: float | None = None

    def __post_init__(self) -> None:
        name = str(self.name).lower()
        if name not in LEARNING_RATES:
            raise CollapseError(f"optimizer={shorten(self.name)}: give one of {', '.join(LEARNING_RATES)}")
        object.__setattr__(self, "name", name)
        if self.learning_rate is not None:
            positive_number("learning_rate", self.learning_rate, "or leave it out")

    @property
    def rate(self) -> float:
        """The learning rate at the start."""
        return self.learning_rate or LEARNING_RATES[self.name]

    @property
    def reason(self) -> Reason | None:
        """Why its weight decay is no penalty of any problem, or None if it is one."""
        if self.name != "adamw":
            return None
        return (
            f"optimizer={self.name!r}",
            "the decoupled decay of AdamW is no L2 penalty, so there is no objective with a λ_W; use SGD or Adam with "
            "weight decay, or add the penalties to the loss, set AdamW's weight_decay to 0 and name no optimizer; a "
            "trained network can be measured all the same (collapsekit measure)",
        )


class Recipe(ABC):
    """What the three recipes share: each knows the problem that it minimises, or why there is none."""

    weight_decay: float
    loss_factor: float

    def __post_init__(self) -> None:
        self._set("weight_decay", positive_number("weight_decay", self.weight_decay, "the head needs a penalty"))
        self._set("loss_factor", positive_number("loss_factor", self.loss_factor, "give 1 for the mean loss"))

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def refusal(
        self, last: LastLayer = LastLayer(), optimizer: Optimizer = Optimizer(), counts: ArrayLike | None = None
    ) -> str | None:
        """Return why this recipe minimises no problem over features and head, or None if it does.

        Parameters
        ----------
        last : LastLayer
            The network's last layer.
        optimizer : Optimizer
            What applies the decay; leave it out where penalties are terms of the loss.
        counts : array_like of int, shape (K,), optional
            Samples of each class, on which some recipes depend.

        Examples
        --------
        >>> BatchNorm(weight_decay=5e-4, decays="none").refusal(LastLayer(branches=1))  # doctest: +ELLIPSIS
        'with γ and β excluded from weight decay nothing penalises the features, so no class is lost to ...'
        """
        reason = optimizer.reason or self._reason(last, None if counts is None else class_counts(counts))
        return None if reason is None else reason[1]

    def problem(
        self,
        counts: ArrayLike | Mapping[str, int],
        last: LastLayer = LastLayer(),
        *,
        loss: Loss = CrossEntropy(),  # noqa: B008  (frozen, so one instance may be shared)
        class_weights: ArrayLike | None = None,
        names: Sequence[str] | None = None,
        optimizer: Optimizer = Optimizer(),
    ) -> UFM:
        """Return the problem that training with this recipe minimises.

        Parameters
        ----------
        counts : array_like of int, shape (K,), or mapping of name to count
            Training samples of each class.
        last : LastLayer
            The network's last layer.
        loss : CrossEntropy, Focal, Hinge or MSE
            Its mean over the batch is minimised.
        class_weights : array_like, shape (K,), optional
            torch's ``CrossEntropyLoss(weight=...)``, whose mean divides by the weights in the batch, so that
            ``ω_k = w_k N / Σ_m w_m n_m`` (exact for full batches); they weigh its label smoothing, too.
        names : sequence of str, optional
            K class names.
        optimizer : Optimizer
            What applies the decay; leave it out where penalties are terms of the loss.

        Raises
        ------
        CollapseError
            If it minimises no such problem, see :meth:`refusal`, or an argument is out of range.

        References
        ----------
        Derived here (docs/theory.md, "Units of a training recipe").

        Examples
        --------
        >>> BatchNorm(weight_decay=0.1).problem([60, 30, 10], LastLayer(branches=1))
        UFM(K=3, N=100, counts 60 … 10, lambda_w=0.1, lambda_h=0.001)
        """
        n = class_counts(counts)
        _require(optimizer.reason or self._reason(last, n))
        if class_weights is not None:
            weights = positive_vector("class_weights", class_weights, n.size, "leave it out for equal weights")
            class_weights = weights * (n.sum() / (weights @ n))
            if isinstance(loss, CrossEntropy) and loss.smoothing and loss.smoothing_weights is None:
                loss = replace(loss, smoothing_weights=tuple(weights.tolist()))
        return UFM(
            counts,
            self.weight_decay / self.loss_factor,
            self._lambda_h(n, last) / self.loss_factor,
            loss=loss,
            class_weights=class_weights,
            bias=self._bias if last.biased else None,
            dim=last.dim,
            names=names,
        )

    def moved(self, problem: UFM, counts: ArrayLike) -> UFM:
        """Return the problem of this recipe at other counts: λ_H moves with them, and so do torch's class weights.

        Parameters
        ----------
        problem : UFM
            What :meth:`problem` made of this recipe; its loss stays as it is.
        counts : array_like of int, shape (K,)
            Samples of each class.

        Raises
        ------
        CollapseError
            If the recipe minimises no problem with these counts.

        Examples
        --------
        >>> recipe = BatchNorm(weight_decay=0.1)
        >>> recipe.moved(recipe.problem([60, 40], LastLayer(branches=2)), [60, 140]).lambda_h
        0.00025
        """
        n, any_layer = class_counts(counts), LastLayer(1, branches=1)  # m and d are in the λ_H that is scaled
        _require(self._reason(any_layer, n))
        scale = self._lambda_h(n, any_layer) / self._lambda_h(problem.counts, any_layer)
        weights = problem.class_weights
        if weights is not None:
            weights = weights * (n.sum() / (weights @ n))
        return replace(problem, counts=n, lambda_h=problem.lambda_h * scale, class_weights=weights)

    @property
    @abstractmethod
    def divides_by_samples(self) -> bool:
        """Whether the λ_H of a class falls as 1/N when it alone grows; otherwise it stays."""

    @abstractmethod
    def units(self, last: LastLayer = LastLayer()) -> str:
        """Return in a sentence or two how the recipe's numbers become λ_W and λ_H."""

    @abstractmethod
    def _reason(self, last: LastLayer, n: Array | None) -> Reason | None:
        """Why there is no problem, whatever the optimiser."""

    @property
    def _bias(self) -> Bias:
        """The penalty on the head's bias, where it has one."""
        return "free"

    def _lambda_h(self, n: Array, last: LastLayer) -> float | Array:
        """λ_H before division by the factor of the loss; asked for where there is no reason against it."""
        raise NotImplementedError


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

    def __post_init__(self) -> None:
        super().__post_init__()
        remedy = "use BatchNorm or Plain for no feature penalty"
        self._set("feature_decay", positive_number("feature_decay", self.feature_decay, remedy))
        if self.reduction not in REDUCTIONS:
            raise CollapseError(f"reduction={shorten(self.reduction)}: give one of {', '.join(REDUCTIONS)}")
        if self.batch_size is not None:
            self._set("batch_size", whole_number("batch_size", self.batch_size, 1, "give None for the full batch"))

    def units(self, last: LastLayer = LastLayer()) -> str:
        """Return in a sentence or two how the recipe's numbers become λ_W and λ_H."""
        added, lambda_h = REDUCTIONS[self.reduction]
        return (
            f"A step minimises the mean loss + (wd/2)‖W‖² + (fd/2) times {added}. The theory's problem sums the "
            f"feature penalty over all N samples, which makes λ_W = wd and λ_H = {lambda_h}."
            f"{_divided(self.loss_factor)}"
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
    optimum. With c = `loss_factor`, λ_W = wd/c and c λ_H is ``wd/(m N)``; with β frozen at 0
    ``wd/(m N (1 − π_k))`` for classes of at most half of the samples, ``π_k = n_k/N``.

    Attributes
    ----------
    weight_decay : float
        wd, coupled (L2), on the head and on those BatchNorms.
    decays : {"gain_and_shift", "gain_frozen_shift", "gain", "none"}
        What of them decays: γ and β; γ, with β frozen at 0; γ alone, with β free; nothing.
    loss_factor : float
        c, 0.5 for a halved loss.

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
    """

    weight_decay: float
    decays: BatchNormDecay = "gain_and_shift"
    loss_factor: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.decays not in ("gain_and_shift", "gain_frozen_shift", "gain", "none"):
            raise CollapseError(
                f"decays={shorten(self.decays)}: give 'gain_and_shift', 'gain_frozen_shift', 'gain' or 'none'"
            )

    def units(self, last: LastLayer = LastLayer()) -> str:
        """Return in a sentence or two how the recipe's numbers become λ_W and λ_H."""
        frozen = " and is divided by 1 − n_k/N, because β is frozen" if self.decays == "gain_frozen_shift" else ""
        return (
            "The optimiser's weight decay wd acts on the head and on γ and β of the BatchNorms that feed the features. "
            f"Their decay is the feature penalty: λ_W = wd and λ_H = wd / (m N) with m = {last.branches}{frozen}."
            f"{_divided(self.loss_factor)}"
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
        if self.decays == "gain":
            return (
                "decays='gain'",
                "with γ decayed and β free the cost of a feature is its variance, not its square, which is another "
                "model; let β decay too, or freeze it at 0",
            )
        if self.decays == "gain_frozen_shift" and n is not None and n.max() > n.sum() / 2:
            return (
                "decays='gain_frozen_shift'",
                f"class {n.argmax()} holds {n.max() / n.sum():.0%} of the samples, and with β frozen at 0 the features "
                "of a class above one half do not collapse; let β decay too",
            )
        return None

    @property
    def _bias(self) -> float:
        return self.weight_decay / self.loss_factor

    def _lambda_h(self, n: Array, last: LastLayer) -> float | Array:
        total = float(n.sum())
        law = self.weight_decay / (last.branches * total)
        return law if self.decays == "gain_and_shift" else np.asarray(law / (1 - n / total))


@dataclass(frozen=True)
class Plain(Recipe):
    """Weight decay on all parameters, without a feature penalty: no theory predicts it, networks can be measured.

    Attributes
    ----------
    weight_decay : float
        wd.
    loss_factor : float
        0.5 for a halved loss.

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

    def units(self, last: LastLayer = LastLayer()) -> str:
        """Return in a sentence how the recipe's numbers become λ_W and λ_H."""
        return f"No λ_H follows from this recipe: {NO_FEATURE_PENALTY[1]}."

    @property
    def divides_by_samples(self) -> bool:
        """There is no λ_H."""
        return False

    def _reason(self, last: LastLayer, n: Array | None) -> Reason | None:
        return NO_FEATURE_PENALTY


def _require(reason: Reason | None) -> None:
    if reason is not None:
        raise CollapseError(": ".join(reason))


def _divided(loss_factor: float) -> str:
    return "" if loss_factor == 1 else f" Both are divided by {loss_factor:g}, the factor of the loss."
