"""What the recipes share: the last layer and the optimiser that they meet, and the step from a recipe to a problem."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Literal

from numpy.typing import ArrayLike

from collapsekit.errors import CollapseError
from collapsekit.losses import CrossEntropy, Loss
from collapsekit.problem import UFM
from collapsekit.recipe._optimizer import Optimizer, Reason
from collapsekit.validation import Array, class_counts, positive_number, positive_vector, whole_number

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


class Recipe:
    """What the three recipes share: each knows the problem that it minimises, or why there is none."""

    weight_decay: float
    loss_factor: float
    bias_decays: bool

    def __post_init__(self) -> None:
        self._set("weight_decay", positive_number("weight_decay", self.weight_decay, "the head needs a penalty"))
        self._set("loss_factor", positive_number("loss_factor", self.loss_factor, "give 1 for the mean loss"))

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def refusal(
        self,
        last: LastLayer = LastLayer(),
        optimizer: Optimizer = Optimizer(),  # noqa: B008  (frozen)
        counts: ArrayLike | None = None,
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
        >>> from collapsekit.recipe import BatchNorm
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
        optimizer: Optimizer = Optimizer(),  # noqa: B008  (frozen)
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
        >>> from collapsekit.recipe import BatchNorm
        >>> BatchNorm(weight_decay=0.1).problem([60, 30, 10], LastLayer(branches=1))
        UFM(K=3, N=100, counts 60 … 10, lambda_w=0.1, lambda_h=0.001)
        """
        n = class_counts(counts)
        _require(optimizer.reason or self._reason(last, n) or self._unfit(loss, n))
        if class_weights is not None:
            weights = positive_vector("class_weights", class_weights, n.size, "leave it out for equal weights")
            class_weights = weights * (n.sum() / (weights @ n))
            if isinstance(loss, CrossEntropy) and loss.smooths and loss.smoothing_weights is None:
                loss = replace(loss, smoothing_weights=tuple(weights.tolist()))
        return UFM(
            counts,
            self.weight_decay / self.loss_factor,
            self._lambda_h(n, last) / self.loss_factor,
            loss=loss,
            class_weights=class_weights,
            bias=self._bias(last.biased),
            relu=self.relu,
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
        >>> from collapsekit.recipe import BatchNorm
        >>> recipe = BatchNorm(weight_decay=0.1)
        >>> recipe.moved(recipe.problem([60, 40], LastLayer(branches=2)), [60, 140]).lambda_h
        0.00025
        """
        n = class_counts(counts)  # m and d are in the λ_H that is scaled
        any_layer = LastLayer(problem.dim or n.size, biased=problem.relu and problem.bias is not None, branches=1)
        _require(self._reason(any_layer, n))
        scale = self._lambda_h(n, any_layer) / self._lambda_h(problem.counts, any_layer)
        weights = problem.class_weights
        if weights is not None:
            weights = weights * (n.sum() / (weights @ n))
        return replace(problem, counts=n, lambda_h=problem.lambda_h * scale, class_weights=weights)

    def with_bias(self, *, decays: bool) -> Recipe:
        """Return the recipe with a bias of the head that decays with its weights, or does not."""
        changed = copy(self)
        changed._set("bias_decays", decays)
        return changed

    def units(self, last: LastLayer = LastLayer()) -> str:
        """Return in a sentence or two how the recipe's numbers become λ_W and λ_H."""
        divided = f" Both are divided by {self.loss_factor:g}, the factor of the loss." if self.loss_factor != 1 else ""
        return self._units(last) + divided

    @property
    def divides_by_samples(self) -> bool:
        """Whether the λ_H of a class falls as 1/N when it alone grows; otherwise it stays."""
        return False

    @property
    def relu(self) -> bool:
        """Whether features of the problem are nonnegative."""
        return True

    def _bias(self, biased: bool) -> float | Literal["free"] | None:
        """The bias of the problem for a head with or without one."""
        decays: float | Literal["free"] = self.weight_decay / self.loss_factor if self.bias_decays else "free"
        return decays if biased else None

    def _reason(self, last: LastLayer, n: Array | None) -> Reason | None:
        """Why there is no problem, whatever the optimiser."""
        return NO_FEATURE_PENALTY

    def _unfit(self, loss: Loss, n: Array) -> Reason | None:
        """Why the recipe has no problem with this loss."""
        return None

    def _units(self, last: LastLayer) -> str:
        return f"No λ_H follows from this recipe: {NO_FEATURE_PENALTY[1]}."

    def _lambda_h(self, n: Array, last: LastLayer) -> float | Array:
        """λ_H before division by the factor of the loss: none here, as :meth:`_reason` says before it is asked for."""
        return float("nan")


def _require(reason: Reason | None) -> None:
    if reason is not None:
        raise CollapseError(": ".join(reason))
