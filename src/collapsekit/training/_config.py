"""TrainConfig: everything that decides a training run, and the problem (UFM) that it minimises."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np

from collapsekit.errors import CollapseError
from collapsekit.losses import CrossEntropy
from collapsekit.problem import UFM
from collapsekit.recipe import BatchNorm, LastLayer, Optimizer, Penalty, Plain, Recipe
from collapsekit.recipe._kinds import BatchNormDecay
from collapsekit.theory._thresholds import thresholds
from collapsekit.training._fields import CHECKS, ClassWeights, DecayOn, OptimizerName, Profile, RecipeName, Resampling
from collapsekit.validation import Array

PLAIN_DECAY = 5e-4
MOMENTUM = 0.9
"""Of sgd."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    r"""One training run: data and its imbalance, network, recipe, optimiser, seed.

    The step at progress t ∈ [0, 1] of the run minimises the mean loss over the batch plus ``f(t)`` times

    ============= ===================================================================================================
    `recipe`      penalties, with ``f(t) = min(1, t / warmup)``
    ============= ===================================================================================================
    penalty       ``(wd/2)‖W‖² + (fd/2) Σ_batch ‖h‖²``, explicit, on head and features only
    batchnorm     ``(wd/2)(‖W‖² + ‖γ‖² + ‖β‖²)``, the optimiser's weight decay; γ and β are those of the BatchNorms that
                  feed the features, and with ``decay_on="everything"`` all other parameters decay too
    plain         ``(wd/2)‖θ‖²``, the optimiser's weight decay on all parameters θ
    ============= ===================================================================================================

    with a learning rate that falls to 0 along a cosine. Wide features, λ_W far above λ_H and the warm-up are what
    lets the optimiser reach the global optimum; without them minority classes die spuriously.

    Attributes
    ----------
    data : str
        ``digits``, ``mnist-5k`` or ``fashion-mnist`` where installed, or a path: a folder of idx files, of CIFAR
        binaries or of images (class = sub-folder); .npz, .npy, .safetensors, .csv, .parquet; .txt (label TAB text).
    label_column : str, optional
        Column of a table that holds the labels; left out: label, class, target, y or species.
    profile : {"long-tail", "step", "paper", "as-is"}, optional
        Count profile of the training set; left out: as-is for a path, long-tail for the named data sets.
    ratio : float
        Largest over smallest count, for ``"long-tail"`` and ``"step"``.
    largest : int, optional
        Samples of the largest class; left out: as many as the data set allows.
    network : str
        ``mlp``, ``residual-mlp``, ``cnn``, ``vgg11``, ``resnet18``, or ``module:function``, called with the shape of
        an input and the number of classes, that returns a torch.nn.Module.
    hidden : tuple of int
        Widths of the hidden layers of the two MLPs.
    feature_dim : int
        Width d of the last ReLU layer of the MLPs and the small CNN.
    width : int
        Channels of the first convolution.
    batchnorm : bool, optional
        BatchNorm before every ReLU; left out: with the recipe batchnorm only.
    branches : int, optional
        m, the BatchNorm outputs summed before the ReLU that feeds the head. The MLP is built so; for a network of
        your own it says what is there; left out: as the network is (1 where a BatchNorm is asked for).
    head : str, optional
        Name of the head of a network of your own; left out: the linear layer that makes the logits.
    drop_bias : bool
        Remove the head's bias, which has no closed form.
    recipe : {"penalty", "batchnorm", "plain"}
        What decays: head and features as terms of the loss (penalty), head and the BatchNorms before the features by
        the optimiser (batchnorm), or every parameter by the optimiser (plain).
    penalty_scale : float, optional
        λ_W λ_H as a multiple of the smallest class's threshold (without resampling and logit adjustment); ignored if
        decays are given. Left out: 1.5 for the named data sets, which loses a class for all to see, and 0.1 for data of
        your own, which loses none.
    penalty_ratio : float
        λ_W / λ_H of the recipe penalty; ignored if decays are given.
    weight_decay : float, optional
        wd itself; with the recipe penalty give `feature_decay` too.
    feature_decay : float, optional
        fd itself; for the recipe penalty only.
    decay_on : {"last-layer", "everything"}
        What decays with the recipe batchnorm; "last-layer" is the head and the BatchNorms that feed it.
    batchnorm_decay : {"gain_and_shift", "gain_frozen_shift", "gain", "none"}
        Which of γ and β decay, and whether β is frozen at 0.
    warmup : float, optional
        Share of the run over which the penalties grow to their full size, in [0, 1); left out: 0.3 for the recipe
        penalty with the full batch, 0.5 otherwise: with the noise of mini-batches single samples lose all features of
        their class, and with them the gradient, if the penalties come sooner than the fit.
    optimizer : {"adam", "sgd", "adamw"}, optional
        Left out: adam for the recipe penalty, sgd (momentum 0.9) for the others. The decay of AdamW is no L2 penalty.
    learning_rate : float, optional
        At the start; left out: 0.1 for sgd, 0.001 for the others.
    epochs : int
        Passes over the training set; one step each with the full batch.
    batch_size : int, optional
        Samples a step; left out: the full batch.
    class_weights : {"none", "inverse", "inverse-root"}
        Weights of classes in the loss as in torch's ``CrossEntropyLoss(weight=...)``: 1, ``1/n_k``, ``n_k^(−1/2)``.
    smoothing : float
        Label smoothing ε, as in torch.
    ldam : float, optional
        Target margins ``Δ_k ∝ n_k^(−1/4)`` (LDAM), this large for the rarest class.
    logit_adjustment : float, optional
        τ of logit adjustment: ``τ log π_j`` is added to every logit j in training, with ``π_j = n_j/N``; 1 is the
        loss whose optimum has the best balanced accuracy. No closed form.
    resampling : {"none", "balanced"}
        ``balanced`` draws the N samples of an epoch with replacement, every class equally often. The objective is then
        that of weights ``ω_k = N/(K n_k)`` on the loss AND on the feature penalty: ``λ_H,k = λ_H N/(K n_k)``.
    seed : int
        Of the split, the initial weights and the order of mini-batches.
    class_names : tuple of str, optional
        K names that replace those of the data set.

    Raises
    ------
    CollapseError
        If a value is out of range.

    Examples
    --------
    >>> config = TrainConfig(seed=3)
    >>> TrainConfig.from_dict(config.to_dict()) == config
    True
    """

    data: str = "digits"
    label_column: str | None = None
    profile: Profile | None = None
    ratio: float = 10.0
    largest: int | None = None
    network: str = "mlp"
    hidden: tuple[int, ...] = (256, 256)
    feature_dim: int = 512
    width: int = 16
    batchnorm: bool | None = None
    branches: int | None = None
    head: str | None = None
    drop_bias: bool = False
    recipe: RecipeName = "penalty"
    penalty_scale: float | None = None
    penalty_ratio: float = 900.0
    weight_decay: float | None = None
    feature_decay: float | None = None
    decay_on: DecayOn = "last-layer"
    batchnorm_decay: BatchNormDecay = "gain_and_shift"
    warmup: float | None = None
    optimizer: OptimizerName | None = None
    learning_rate: float | None = None
    epochs: int = 2000
    batch_size: int | None = None
    class_weights: ClassWeights = "none"
    smoothing: float = 0.0
    ldam: float | None = None
    logit_adjustment: float | None = None
    resampling: Resampling = "none"
    seed: int = 0
    class_names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for name, check in CHECKS.items():
            object.__setattr__(self, name, check(name, getattr(self, name)))
        if self.penalty_scale is None:
            object.__setattr__(self, "penalty_scale", 1.5 if self.data in NAMED_DATA else 0.1)
        explicit = self.recipe == "penalty"
        if explicit and (self.weight_decay is None) != (self.feature_decay is None):
            raise CollapseError("weight_decay, feature_decay: give both, or neither and penalty_scale")
        if not explicit and self.feature_decay is not None:
            raise CollapseError(f"feature_decay={self.feature_decay:g}: only the recipe penalty has one; leave it out")
        if self.recipe == "batchnorm" and self.batchnorm is False:
            raise CollapseError("batchnorm=False: the recipe batchnorm needs BatchNorm; leave it out")
        if self.recipe != "batchnorm" and (self.batchnorm_decay, self.decay_on) != ("gain_and_shift", "last-layer"):
            raise CollapseError("decay_on, batchnorm_decay: only the recipe batchnorm has these; leave them out")
        if self.class_weights != "none" and self.resampling != "none":
            raise CollapseError(
                f"resampling={self.resampling!r} with class_weights={self.class_weights!r}: both weigh the classes; "
                "use one of the two"
            )

    @property
    def has_batchnorm(self) -> bool:
        """Whether the built-in networks get BatchNorm."""
        return self.recipe == "batchnorm" if self.batchnorm is None else self.batchnorm

    @property
    def optimizer_used(self) -> Optimizer:
        """The optimiser, by recipe where none is given."""
        name = self.optimizer or ("adam" if self.recipe == "penalty" else "sgd")
        momentum = MOMENTUM if name == "sgd" else 0.0
        return Optimizer(name, self.learning_rate, schedule="cosine", momentum=momentum)

    @property
    def warmup_used(self) -> float:
        """The share of the run over which penalties grow, by recipe and batch where none is given."""
        if self.warmup is None:
            return 0.3 if self.recipe == "penalty" and self.batch_size is None else 0.5
        return self.warmup

    @property
    def profile_used(self) -> Profile:
        """The count profile, by data set where none is given."""
        return self.profile or ("long-tail" if self.data in NAMED_DATA else "as-is")

    def torch_class_weights(self, counts: Array) -> Array | None:
        """Return w_k as given to torch's ``weight=``, (K,), or None."""
        if self.class_weights == "none":
            return None
        power = -1.0 if self.class_weights == "inverse" else -0.5
        return np.asarray((counts / counts.max()) ** power)

    def loss(self, counts: Array) -> CrossEntropy:
        """Return the loss of this run on a training set with these counts."""
        margins = None if self.ldam is None else CrossEntropy.ldam(counts, self.ldam).margins
        tau = self.logit_adjustment
        offsets = None if tau is None else CrossEntropy.logit_adjusted(counts, tau).offsets
        return CrossEntropy(smoothing=self.smoothing, margins=margins, offsets=offsets)

    def penalties(self, counts: Array, last: LastLayer) -> tuple[float, float | None]:
        """Return (wd, fd): those given, or those that `penalty_scale` and `penalty_ratio` ask for."""
        if self.weight_decay is not None:
            return self.weight_decay, self.feature_decay
        if self.recipe == "plain":
            return PLAIN_DECAY, None
        assert self.penalty_scale is not None
        plainer, made = self._with_threshold(counts, last), LastLayer(last.dim, branches=max(1, last.branches))
        loss, weights = plainer.loss(counts), plainer.torch_class_weights(counts)
        unit = plainer._recipe(1.0, 1.0).problem(counts, made, loss=loss, class_weights=weights)
        if self.recipe == "batchnorm":
            return math.sqrt(self.penalty_scale * thresholds(unit).headroom.min()), None
        product = self.penalty_scale * thresholds(unit).minority_collapse
        lambda_w, lambda_h = math.sqrt(product * self.penalty_ratio), math.sqrt(product / self.penalty_ratio)
        return lambda_w, lambda_h / float(np.asarray(unit.lambda_h))

    def _with_threshold(self, counts: Array, last: LastLayer) -> TrainConfig:
        """The nearest configuration that has a threshold, of which the penalties are a multiple."""
        smoothing = self.smoothing if self.class_weights == "none" else 0.0
        plainer = replace(self, logit_adjustment=None, resampling="none", smoothing=smoothing)
        # a free shift and a bias have no threshold
        lawful = self.refusal(last, counts) is None and not last.biased and self.batchnorm_decay != "gain"
        return plainer if lawful else replace(plainer, batchnorm_decay="gain_and_shift")

    def _recipe(self, weight_decay: float, feature_decay: float | None) -> Recipe:
        if self.recipe == "batchnorm":
            return BatchNorm(weight_decay, self.batchnorm_decay)
        if self.recipe == "plain" or feature_decay is None:
            return Plain(weight_decay)
        return Penalty(weight_decay, feature_decay, batch_size=self.batch_size)

    def horizon(self, counts: Array, last: LastLayer) -> float:
        """Return over how many e-folds the decay of a whole run acts; NaN where there is no such number."""
        samples, optimizer = counts.sum(), self.optimizer_used
        if self.recipe == "penalty" and optimizer.name == "adamw":  # its penalties are terms of the loss, as under Adam
            optimizer = replace(optimizer, name="adam")
        optimizer = replace(
            optimizer, steps=self.epochs * math.ceil(samples / min(self.batch_size or samples, samples))
        )
        progress = np.arange(1, optimizer.rates.size + 1) / optimizer.rates.size
        grown = np.minimum(1.0, progress / self.warmup_used) if self.warmup_used else 1.0
        return optimizer.horizon(self.penalties(counts, last)[0] * grown)

    def recipe_of(self, counts: Array, last: LastLayer) -> Recipe:
        """Return what is penalised in training on samples with these counts."""
        return self._recipe(*self.penalties(counts, last))

    def refusal(self, last: LastLayer, counts: Array | None = None) -> str | None:
        """Return why this run minimises no problem over last-layer features and head, or None if it does."""
        if self.resampling != "none" and self.recipe == "batchnorm":
            return "the statistics of resampled batches are not those of the training set, on which it is measured"
        return self._recipe(1.0, 1.0).refusal(last, self._decaying, counts)

    @property
    def _decaying(self) -> Optimizer:
        """What applies the decay: the recipe penalty adds its own to the loss, whatever takes the steps."""
        return Optimizer() if self.recipe == "penalty" else self.optimizer_used

    def problem(self, counts: Array, last: LastLayer, names: Sequence[str] | None = None) -> UFM:
        """Return the problem that this run minimises on a training set with these counts.

        Where features are pooled it is a bound, and where earlier layers decay too an approximation.

        Raises
        ------
        CollapseError
            If the run minimises no such problem; :meth:`refusal` says why.

        Examples
        --------
        >>> import numpy as np
        >>> config = TrainConfig(weight_decay=0.01, feature_decay=1e-4)
        >>> config.problem(np.array([60.0, 30.0]), LastLayer(8, biased=True)).bias
        'free'
        """
        reason = self.refusal(last, counts)
        if reason is not None:
            raise CollapseError(f"recipe={self.recipe!r}: {reason}")
        problem = self.recipe_of(counts, last).problem(
            counts,
            last,
            loss=self.loss(counts),
            class_weights=self.torch_class_weights(counts),
            names=names,
            optimizer=self._decaying,
        )
        if self.resampling == "none":
            return problem
        # class-balanced draws: samples of class k count N/(K n_k) times, in the loss and in the penalty
        times = problem.num_samples / (problem.num_classes * problem.counts)
        return replace(problem, lambda_h=problem.lambda_h * times, class_weights=times)

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration as plain values (JSON-ready), with its schema version."""
        values = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        return {"schema": 2} | values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """Return the configuration stored by :meth:`to_dict`; unknown keys are refused by name."""
        known = {field.name for field in fields(cls)}
        unknown = set(values) - known - {"schema"}
        if unknown or values.get("schema") != 2:
            what = f"unknown keys {sorted(unknown)}" if unknown else f"schema {values.get('schema')!r}, expected 2"
            raise CollapseError(
                f"config: {what}; it was written by another version of collapsekit: train again without resuming"
            )
        return cls(**{key: values[key] for key in known & set(values)})

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that change with any value: the name of the run's folder."""
        text = json.dumps(self.to_dict(), sort_keys=True)
        return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:12]


NAMED_DATA = ("digits", "mnist-5k", "fashion-mnist")
