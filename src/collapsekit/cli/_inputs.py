"""Flags that several commands share: the penalties, in the theory's units or in those of a training recipe."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from numpy.typing import ArrayLike

from collapsekit import UFM, CollapseError, CrossEntropy
from collapsekit.data import class_sizes
from collapsekit.data.lists import Lines
from collapsekit.recipe import BatchNorm, LastLayer, Optimizer, Penalty, Plain, Recipe
from collapsekit.recipe._kinds import BatchNormDecay, FeatureReduction


@contextmanager
def by_flags(**flags: str) -> Iterator[None]:
    """Name an argument that an error is about by its flag: the one given here, or the one that is called alike."""
    try:
        yield
    except CollapseError as error:
        name = re.match("(?!counts)[a-z_]+(?=[=:])", str(error))
        if name is None:
            raise
        flag = flags.get(name[0], f"--{name[0].replace('_', '-')}")
        raise CollapseError(flag + str(error)[name.end() :]) from None


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
        sgd, adam, or adamw (whose decay is no L2 penalty: no prediction).
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
    feature_reduction: FeatureReduction = "batch_sum"
    feature_dim: int | None = None
    loss_factor: float = 1.0
    optimizer: str = "sgd"
    batchnorm_branches: int | None = None
    batchnorm_decay: BatchNormDecay = "gain_and_shift"
    class_weights: tuple[float, ...] | None = None
    smoothing: float = 0.0

    @property
    def loss(self) -> CrossEntropy:
        """The loss that these flags describe, as torch computes it: class weights weigh its smoothing, too."""
        return CrossEntropy(smoothing=self.smoothing, smoothing_weights=self.class_weights if self.smoothing else None)

    @property
    def given(self) -> bool:
        """Whether any penalty is given."""
        some = any(value is not None for value in (self.lambda_w, self.lambda_h, self.weight_decay))
        if not some and (self.feature_decay is not None or self.batchnorm_branches is not None):
            raise CollapseError("--weight-decay: missing; the head's decay is one of the two penalties")
        return some

    @property
    def recipe(self) -> Recipe | None:
        """The recipe that these flags name; None where they name the theory's own penalties."""
        if self.weight_decay is None:
            return None
        if self.lambda_w is not None or self.lambda_h is not None:
            raise CollapseError("--weight-decay: give either the recipe's units or --lambda-w and --lambda-h, not both")
        if self.batchnorm_branches is not None:
            if self.feature_decay is not None:
                raise CollapseError(
                    f"--feature-decay={self.feature_decay:g}: the decay of a BatchNorm before the ReLU is itself the "
                    "feature penalty; leave it out, or leave out --batchnorm-branches"
                )
            return BatchNorm(self.weight_decay, self.batchnorm_decay, self.loss_factor)
        if self.feature_decay is None:
            return Plain(self.weight_decay, self.loss_factor)
        return Penalty(
            self.weight_decay,
            self.feature_decay,
            self.feature_reduction,
            self.batch_size,
            self.drop_last,
            self.loss_factor,
        )

    @by_flags(decays="--batchnorm-decay", dim="--feature-dim")
    def refusal(self, counts: ArrayLike) -> str | None:
        """Return why these flags describe no problem for a training set with these counts, or None if they do."""
        recipe = self.recipe
        return None if recipe is None else recipe.refusal(self._last, Optimizer(self.optimizer), counts)

    @by_flags(decays="--batchnorm-decay", dim="--feature-dim")
    def problem(self, counts: ArrayLike | Mapping[str, int], *, biased: bool = False) -> UFM:
        """Return the problem that these flags describe for a training set with these counts and a head."""
        if self.recipe is not None:
            last, optimizer = replace(self._last, biased=biased), Optimizer(self.optimizer)
            made = self.recipe.problem(
                counts, last, loss=self.loss, class_weights=self.class_weights, optimizer=optimizer
            )
            return replace(made, dim=None)  # the width of the features is said for their mean only
        if self.lambda_w is None or self.lambda_h is None:
            missing = "--lambda-w" if self.lambda_w is None else "--lambda-h"
            raise CollapseError(f"{missing}: missing; the closed form needs both penalties")
        if self.feature_decay is not None or self.batchnorm_branches is not None:
            raise CollapseError("--lambda-h: already the feature penalty; give it or a recipe's units, not both")
        bias: Literal["free"] | None = "free" if biased else None
        return UFM(counts, self.lambda_w, self.lambda_h, loss=self.loss, class_weights=self.class_weights, bias=bias)

    @property
    def _last(self) -> LastLayer:
        return LastLayer(self.feature_dim, branches=self.batchnorm_branches or 0)


def class_labels(sizes: Sequence[float] | Mapping[str, float]) -> list[str]:
    """Return the names of the classes, or their positions."""
    return list(sizes) if isinstance(sizes, Mapping) else [str(k) for k in range(len(sizes))]
