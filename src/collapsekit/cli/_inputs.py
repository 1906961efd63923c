"""Flags that several commands share: the penalties, in the theory's units or in those of a training recipe."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from collapsekit import MSE, UFM, CollapseError, CrossEntropy, Focal, Hinge
from collapsekit.data import class_sizes
from collapsekit.data.lists import Lines
from collapsekit.losses import Loss
from collapsekit.recipe import BatchNorm, LastLayer, Optimizer, Penalty, Plain, Recipe
from collapsekit.recipe._kinds import BatchNormDecay, FeatureReduction
from collapsekit.validation import positive_number, shorten, whole_number


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
        sgd, adam, or adamw (whose decay is no L2 penalty: no prediction, but a horizon).
    learning_rate : float
        At the start; with --steps it says whether the decay has time to act at all.
    steps : int
        Optimiser steps of the whole training.
    schedule : str
        How the learning rate goes: constant, cosine, linear (to 0) or step (a tenth at --milestones).
    milestones : tuple of int
        Steps at which the schedule "step" acts.
    warmup_steps : int
        Steps over which the learning rate first grows from 0.
    momentum : float
        Of sgd.
    nesterov : bool
        Nesterov's momentum.
    batchnorm_branches : int
        Number of BatchNorm outputs summed before the ReLU that feeds the head; no feature penalty then.
    batchnorm_decay : str
        Which of their γ and β decay; left out: both.
    no_norm_bias_decay : bool
        The usual habit: norm layers and biases are excluded from weight decay.
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
    learning_rate: float | None = None
    steps: int | None = None
    schedule: Literal["constant", "cosine", "linear", "step"] = "constant"
    milestones: tuple[int, ...] = ()
    warmup_steps: int = 0
    momentum: float = 0.0
    nesterov: bool = False
    batchnorm_branches: int | None = None
    batchnorm_decay: BatchNormDecay | None = None
    no_norm_bias_decay: bool = False
    class_weights: tuple[float, ...] | None = None
    smoothing: float = 0.0

    @property
    def smoothed(self) -> CrossEntropy:
        """Cross-entropy with these flags' smoothing, as torch computes it: class weights weigh it, too."""
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
            if self.no_norm_bias_decay and self.batchnorm_decay is not None:
                raise CollapseError(
                    f"--batchnorm-decay={self.batchnorm_decay}: contradicts --no-norm-bias-decay; leave one of them out"
                )
            decays = "none" if self.no_norm_bias_decay else self.batchnorm_decay or "gain_and_shift"
            return BatchNorm(self.weight_decay, decays, self.loss_factor, not self.no_norm_bias_decay)
        if self.feature_decay is None:
            return Plain(self.weight_decay, self.loss_factor)
        if self.feature_reduction == "entry_mean" and self.feature_dim is None:
            raise CollapseError(
                "--feature-dim=None: a mean over all entries divides by N d; give the width of the features"
            )
        return Penalty(
            self.weight_decay,
            self.feature_decay,
            self.feature_reduction,
            self.batch_size,
            self.drop_last,
            self.loss_factor,
        )

    @property
    @by_flags(warmup="--warmup-steps")
    def takes_steps(self) -> Optimizer:
        """The optimiser that these flags name."""
        return Optimizer(
            self.optimizer,
            self.learning_rate,
            self.steps,
            self.schedule,
            self.warmup_steps,
            self.milestones,
            momentum=self.momentum,
            nesterov=self.nesterov,
        )

    @property
    def horizon(self) -> float | None:
        """Over how many e-folds the decay acts; None where neither learning rate nor steps were given."""
        if self.learning_rate is None and self.steps is None:
            return None
        for flag, value in (("steps", self.steps), ("learning-rate", self.learning_rate)):
            if value is None:
                raise CollapseError(f"--{flag}: missing; a horizon needs --learning-rate and --steps")
        if self.weight_decay is None:
            raise CollapseError("--steps: a horizon needs the recipe's --weight-decay; give it, or leave --steps out")
        return self.takes_steps.horizon(self.weight_decay)

    @by_flags(decays="--batchnorm-decay")
    def refusal(self, counts: ArrayLike) -> str | None:
        """Return why these flags describe no problem for a training set with these counts, or None if they do."""
        recipe = self.recipe
        return None if recipe is None else recipe.refusal(self.last, self.takes_steps, counts)

    @property
    def last(self) -> LastLayer:
        """The last layer that these flags describe, without a bias."""
        return LastLayer(self.feature_dim, branches=self.batchnorm_branches or 0)


Bias = float | Literal["free"] | None


@dataclass(frozen=True, kw_only=True)
class Head:
    """The loss, and what most heads have and the closed form cannot: a bias, logit adjustment, features without ReLU.

    Attributes
    ----------
    bias : str
        none, free, decays (with the weights, in a recipe), or the penalty on the bias in the theory's units.
    loss : str
        cross-entropy, focal (γ = 2), hinge or mse.
    focal : float
        γ of focal loss.
    temperature : float
        T, by which logits are divided.
    ldam : float
        Target margins proportional to count^(-1/4), this large for the rarest class.
    logit_adjustment : float
        τ: τ log π_k is added to the logits in training.
    cdt : float
        γ: logits are multiplied by (n_k / n_max)^γ in training.
    no_relu : bool
        Features may be negative.
    dim : int
        Width of the features; left out: as wide as needed.
    """

    bias: str | None = None
    loss: Literal["cross-entropy", "focal", "hinge", "mse"] = "cross-entropy"
    focal: float | None = None
    temperature: float = 1.0
    ldam: float | None = None
    logit_adjustment: float | None = None
    cdt: float | None = None
    no_relu: bool = False
    dim: int | None = None

    @by_flags(
        decays="--batchnorm-decay",
        gamma="--focal",
        margins="--ldam",
        offsets="--logit-adjustment",
        scales="--cdt",
    )
    def problem(self, penalties: Penalties, sizes: ArrayLike | Mapping[str, int], *, biased: bool = False) -> UFM:
        """Return the problem of these flags for a training set with these counts; `biased` if --bias is left out."""
        if not penalties.given:
            raise CollapseError("--lambda-w: missing; give penalties, as predict does")
        if self.dim is not None:
            whole_number("--dim", self.dim, 1, "give the width of the features, or leave it out")
        loss = self.made(penalties, sizes)
        word = self.bias if self.bias is not None else "as the recipe says" if biased else "none"
        if penalties.recipe is None:
            made = self._own_units(penalties, sizes, loss, word)
        else:
            recipe, shift = penalties.recipe, getattr(penalties.recipe, "decays", None)
            last = replace(penalties.last, biased=word != "none")
            if penalties.feature_reduction != "entry_mean":  # whose --feature-dim is that of the mean only
                last = replace(last, dim=self.dim)
            if self.no_relu and shift == "gain_frozen_shift":
                raise CollapseError("--no-relu: with β frozen the law needs the ReLU; leave it out, or let β decay")
            if word in ("free", "decays"):
                recipe = recipe.with_bias(decays=word == "decays")
            made = recipe.problem(
                sizes, last, loss=loss, class_weights=penalties.class_weights, optimizer=penalties.takes_steps
            )
            if word not in ("none", "free", "decays", "as the recipe says"):
                number = _number(word)
                made = made if shift == "gain" else replace(made, bias=number)  # a free β is a free bias all the same
        return replace(made, dim=self.dim, relu=made.relu and not self.no_relu)

    def _own_units(self, penalties: Penalties, sizes: ArrayLike | Mapping[str, int], loss: Loss, word: str) -> UFM:
        if penalties.lambda_w is None or penalties.lambda_h is None:
            missing = "--lambda-w" if penalties.lambda_w is None else "--lambda-h"
            raise CollapseError(f"{missing}: missing; the closed form needs both penalties")
        if penalties.feature_decay is not None or penalties.batchnorm_branches is not None:
            raise CollapseError("--lambda-h: already the feature penalty; give it or a recipe's units, not both")
        if penalties.no_norm_bias_decay or penalties.batchnorm_decay is not None:
            flag = "--no-norm-bias-decay" if penalties.no_norm_bias_decay else "--batchnorm-decay"
            raise CollapseError(f"{flag}: belongs to a recipe's --weight-decay; leave it out")
        if word == "decays":
            raise CollapseError(
                "--bias=decays: needs a recipe's --weight-decay; give its penalty in the theory's units"
            )
        named: dict[str, Bias] = {"none": None, "free": "free", "as the recipe says": "free"}
        bias = named[word] if word in named else _number(word)
        return UFM(
            sizes, penalties.lambda_w, penalties.lambda_h, loss=loss, class_weights=penalties.class_weights, bias=bias
        )

    @by_flags(gamma="--focal", margins="--ldam", offsets="--logit-adjustment", scales="--cdt")
    def made(self, penalties: Penalties, sizes: ArrayLike | Mapping[str, int]) -> Loss:
        """Return the loss of these flags."""
        n = np.array([*sizes.values()]) if isinstance(sizes, Mapping) else sizes
        plain, kind = penalties.smoothed, "focal" if self.focal is not None else self.loss
        if self.focal is not None and self.loss not in ("cross-entropy", "focal"):
            raise CollapseError(f"--focal={self.focal:g}: contradicts --loss={self.loss}; leave one of them out")
        for flag, value in (("ldam", self.ldam), ("cdt", self.cdt)):
            if value is not None and not value >= 0:
                raise CollapseError(f"--{flag}={value:g}: give a number of at least 0")
        if kind == "cross-entropy":
            tau = self.logit_adjustment
            return replace(
                plain,
                temperature=self.temperature,
                margins=None if self.ldam is None else CrossEntropy.ldam(n, self.ldam).margins,
                offsets=None if tau is None else CrossEntropy.logit_adjusted(n, tau).offsets,
                scales=None if self.cdt is None else CrossEntropy.cdt(n, self.cdt).scales,
            )
        own = (self.ldam, self.logit_adjustment, self.cdt)
        if any(value is not None for value in own) or plain != CrossEntropy() or self.temperature != 1.0:
            named = "--loss=" if self.focal is None else "--focal, "
            raise CollapseError(
                f"{named}{kind}: --smoothing, --temperature, --ldam, --logit-adjustment and --cdt are cross-entropy's"
            )
        focal = Focal() if self.focal is None else Focal(self.focal)
        others: dict[str, Loss] = {"focal": focal, "hinge": Hinge(), "mse": MSE()}
        return others[kind]


def _number(word: str) -> float:
    try:
        return positive_number("--bias", float(word), "give none, free, decays or a penalty")
    except ValueError:
        raise CollapseError(f"--bias={shorten(word)}: give none, free, decays or a penalty") from None


def class_labels(sizes: Sequence[float] | Mapping[str, float]) -> list[str]:
    """Return the names of the classes, or their positions."""
    return list(sizes) if isinstance(sizes, Mapping) else [str(k) for k in range(len(sizes))]
