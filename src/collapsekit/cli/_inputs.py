"""Flags that several commands share: the penalties, in the theory's units or in those of a training recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from numpy.typing import ArrayLike

from collapsekit import UFM, CollapseError, CrossEntropy
from collapsekit.data.lists import Lines, class_sizes
from collapsekit.evidence import Recipe
from collapsekit.theory._thresholds import Hold


@dataclass(frozen=True, kw_only=True)
class Counting:
    """How the samples of each class are given.

    Attributes
    ----------
    long_tail : str
        LARGEST:SMALLEST:CLASSES, an exponential long tail, e.g. 5000:50:100.
    label_column : str
        Column of a table whose values are the class labels; they are counted.
    lines : str
        What the numbers of a file are: counts, one a class, or labels, one a sample.
    delimiter : str
        Delimiter of a table, where it is none of comma, semicolon and tab.
    keep_na : bool
        Labels like NA, null, none and ? are classes, not missing.
    """

    long_tail: str | None = None
    label_column: str | None = None
    lines: Lines | None = None
    delimiter: str | None = None
    keep_na: bool = False

    def sizes(self, words: Sequence[str]) -> Any:
        """Return the samples of each class."""
        return class_sizes(words, **asdict(self))


@dataclass(frozen=True, kw_only=True)
class Penalties:
    """Give the theory's penalties (--lambda-w, --lambda-h) or the recipe's own (--weight-decay and what goes with it).

    Attributes
    ----------
    lambda_w : float
        Penalty on the classifier in the theory's units.
    lambda_h : float
        Penalty on the features in the theory's units: a sum over all samples.
    weight_decay : float
        Coupled (L2) weight decay on the head, as in torch's SGD and Adam.
    feature_decay : float
        Explicit feature penalty, with the factor 1/2.
    batch_size : int
        Samples a step; left out: the full batch.
    drop_last : bool
        An incomplete last batch is dropped.
    feature_reduction : str
        How the feature penalty adds up.
    feature_dim : int
        Width of the features, for entry_mean.
    loss_factor : float
        Factor in front of the mean loss.
    optimizer : str
        sgd or adam (adamw is refused: its decay is no L2 penalty).
    batchnorm_branches : int
        Number of BatchNorm outputs summed before the ReLU that feeds the head; no feature penalty then.
    batchnorm_decay : str
        Which of their γ and β decay.
    class_weights : tuple of float
        One weight a class, as in torch's CrossEntropyLoss(weight=...).
    smoothing : float
        Label smoothing, as in torch.
    """

    lambda_w: float | None = None
    lambda_h: float | None = None
    weight_decay: float | None = None
    feature_decay: float | None = None
    batch_size: int | None = None
    drop_last: bool = False
    feature_reduction: Literal["batch_sum", "batch_mean", "entry_mean", "full_sum"] = "batch_sum"
    feature_dim: int | None = None
    loss_factor: float = 1.0
    optimizer: str = "sgd"
    batchnorm_branches: int | None = None
    batchnorm_decay: Literal["gain_and_shift", "gain_frozen_shift", "gain", "none"] = "gain_and_shift"
    class_weights: tuple[float, ...] | None = None
    smoothing: float = 0.0

    @property
    def loss(self) -> CrossEntropy:
        """The loss that these flags describe."""
        return CrossEntropy(smoothing=self.smoothing)

    @property
    def given(self) -> bool:
        """Whether any penalty is given."""
        if self.lambda_w is None and self.lambda_h is None and self.weight_decay is None:
            if self.feature_decay is not None or self.batchnorm_branches is not None:
                raise CollapseError("--weight-decay: missing; the head's decay is one of the two penalties")
            return False
        return True

    @property
    def recipe(self) -> Recipe:
        """What penalises the features."""
        return "penalty" if self.batchnorm_branches is None else "batchnorm"

    @property
    def hold(self) -> Hold:
        """What stays when N moves: N λ_H in a recipe, whose steps see means, and λ_H where it is given itself."""
        own_units = self.weight_decay is None or (
            self.batchnorm_branches is None and self.feature_reduction == "full_sum"
        )
        return "penalties" if own_units else "recipe"

    def problem(self, counts: ArrayLike | Mapping[str, int]) -> UFM:
        """Return the problem that these flags describe for a training set with these counts."""
        recipe: dict[str, Any] = asdict(self)
        del recipe["smoothing"]
        lambda_w, lambda_h = recipe.pop("lambda_w"), recipe.pop("lambda_h")
        if self.weight_decay is not None:
            if lambda_w is not None or lambda_h is not None:
                raise CollapseError(
                    "--weight-decay: give either the recipe's units or --lambda-w and --lambda-h, not both"
                )
            return UFM.from_training(counts, loss=self.loss, **recipe)
        if lambda_w is None or lambda_h is None:
            missing = "--lambda-w" if lambda_w is None else "--lambda-h"
            raise CollapseError(f"{missing}: missing; the closed form needs both penalties")
        if self.feature_decay is not None or self.batchnorm_branches is not None:
            raise CollapseError("--lambda-h: already the feature penalty; give it or a recipe's units, not both")
        return UFM(counts, lambda_w, lambda_h, loss=self.loss, class_weights=self.class_weights)
