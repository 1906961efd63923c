"""TrainConfig: everything that decides a training run, and the problem (UFM) that it minimises."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import numpy as np

from collapsekit.errors import CollapseError
from collapsekit.problem import UFM
from collapsekit.theory.closed_form import thresholds
from collapsekit.validation import Array, class_names, positive_number, shorten, whole_number

PROFILES = ("long-tail", "step", "paper", "as-is")
RECIPES = ("penalty",)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    r"""One training run: data and its imbalance, network, penalties, optimiser, seed.

    The step at progress t ∈ [0, 1] of the run minimises

    .. math::

        \text{mean CE over the batch} + f(t)\Bigl(\tfrac{wd}{2}\lVert W\rVert_F^2
        + \tfrac{fd}{2}\sum_{\text{batch}}\lVert h\rVert^2\Bigr), \qquad f(t) = \min(1, t/\text{warmup}),

    with a learning rate that falls to 0 along a cosine. Wide features, λ_W far above λ_H and the warm-up are what
    lets the optimiser reach the global optimum; without them minority classes die spuriously.

    Attributes
    ----------
    data : str
        ``"digits"`` (scikit-learn's 8×8 digits).
    profile : {"long-tail", "step", "paper", "as-is"}
        Count profile of the training set.
    ratio : float
        Largest over smallest count, for ``"long-tail"`` and ``"step"``.
    largest : int, optional
        Samples of the largest class; left out: as many as the data set allows.
    hidden : tuple of int
        Widths of the hidden ReLU layers.
    feature_dim : int
        Width d of the last ReLU layer, which feeds the bias-free head.
    recipe : {"penalty"}
        ``"penalty"``: explicit penalties on head and features, as in the formula above.
    penalty_scale : float
        λ_W λ_H as a multiple of the smallest class's threshold; ignored if both decays are given.
    penalty_ratio : float
        λ_W / λ_H; ignored if both decays are given.
    weight_decay : float, optional
        wd itself, in the units of the formula above; give it with `feature_decay` or not at all.
    feature_decay : float, optional
        fd itself.
    warmup : float
        Share of the run over which the penalties grow to their full size, in [0, 1).
    optimizer : {"adam", "sgd"}
        SGD uses momentum 0.9.
    learning_rate : float
        At the start.
    epochs : int
        Passes over the training set; one step each with the full batch.
    batch_size : int, optional
        Samples a step; left out: the full batch.
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
    profile: Literal["long-tail", "step", "paper", "as-is"] = "long-tail"
    ratio: float = 10.0
    largest: int | None = None
    hidden: tuple[int, ...] = (256, 256)
    feature_dim: int = 512
    recipe: Literal["penalty"] = "penalty"
    penalty_scale: float = 1.5
    penalty_ratio: float = 900.0
    weight_decay: float | None = None
    feature_decay: float | None = None
    warmup: float = 0.3
    optimizer: Literal["adam", "sgd"] = "adam"
    learning_rate: float = 1e-3
    epochs: int = 2000
    batch_size: int | None = None
    seed: int = 0
    class_names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("penalty_scale", "penalty_ratio", "learning_rate", "ratio"):
            positive_number(name, getattr(self, name), "give a positive number")
        for name, least in (("epochs", 1), ("feature_dim", 1), ("seed", 0)):
            object.__setattr__(self, name, whole_number(name, getattr(self, name), least, "give a whole number"))
        for name in ("batch_size", "largest"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, whole_number(name, getattr(self, name), 1, "or leave it out"))
        object.__setattr__(self, "hidden", tuple(whole_number("hidden", w, 1, "give widths") for w in self.hidden))
        if self.ratio < 1:
            raise CollapseError(f"ratio={self.ratio:g}: largest over smallest count is at least 1; give its inverse")
        if self.profile not in PROFILES:
            raise CollapseError(f"profile={shorten(self.profile)}: give one of {', '.join(PROFILES)}")
        if self.recipe not in RECIPES:
            raise CollapseError(f"recipe={shorten(self.recipe)}: give one of {', '.join(RECIPES)}")
        if self.class_names is not None:
            object.__setattr__(self, "class_names", class_names(self.class_names, len(self.class_names)))
        if self.optimizer not in ("adam", "sgd"):
            raise CollapseError(f"optimizer={shorten(self.optimizer)}: give adam or sgd, whose decay is an L2 penalty")
        if not 0 <= self.warmup < 1:
            raise CollapseError(f"warmup={self.warmup}: a share of the run; give at least 0 and less than 1")
        if (self.weight_decay is None) != (self.feature_decay is None):
            raise CollapseError("weight_decay, feature_decay: give both, or neither and penalty_scale")

    def penalties(self, counts: Array) -> tuple[float, float]:
        """Return (wd, fd) for these counts: those given, or those that `penalty_scale` and `penalty_ratio` ask for."""
        if self.weight_decay is not None and self.feature_decay is not None:
            return self.weight_decay, self.feature_decay
        unit = UFM.from_training(counts, weight_decay=1.0, feature_decay=1.0, batch_size=self.batch_size)
        product = self.penalty_scale * thresholds(unit).minority_collapse
        lambda_w, lambda_h = math.sqrt(product * self.penalty_ratio), math.sqrt(product / self.penalty_ratio)
        return lambda_w, lambda_h / float(np.asarray(unit.lambda_h))

    def problem(self, counts: Array, names: Sequence[str] | None = None) -> UFM:
        """Return the problem that this run minimises on a training set with these counts."""
        weight_decay, feature_decay = self.penalties(counts)
        return UFM.from_training(
            counts,
            weight_decay=weight_decay,
            feature_decay=feature_decay,
            batch_size=self.batch_size,
            optimizer=self.optimizer,
            dim=self.feature_dim,
            names=names,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration as plain values (JSON-ready), with its schema version."""
        return (
            {"schema": 1}
            | asdict(self)
            | {
                "hidden": list(self.hidden),
                "class_names": None if self.class_names is None else list(self.class_names),
            }
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """Return the configuration stored by :meth:`to_dict`; unknown keys are refused by name."""
        known = {field.name for field in fields(cls)}
        unknown = set(values) - known - {"schema"}
        if unknown or values.get("schema") != 1:
            what = f"unknown keys {sorted(unknown)}" if unknown else f"schema {values.get('schema')!r}, expected 1"
            raise CollapseError(f"config: {what}; it was written by another version of collapsekit")
        return cls(**{key: values[key] for key in known & set(values)})

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that change with any value: the name of the run's folder."""
        text = json.dumps(self.to_dict(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]
