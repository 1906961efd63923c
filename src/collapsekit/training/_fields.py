"""What each field of TrainConfig may hold: one check a field."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Literal, get_args

from collapsekit.errors import CollapseError
from collapsekit.recipe._kinds import BatchNormDecay
from collapsekit.validation import class_names, numeric, positive_number, shorten, whole_number

Profile = Literal["long-tail", "step", "paper", "as-is"]
RecipeName = Literal["penalty", "batchnorm", "plain"]
OptimizerName = Literal["adam", "sgd", "adamw"]
DecayOn = Literal["last-layer", "everything"]
ClassWeights = Literal["none", "inverse", "inverse-root"]
Resampling = Literal["none", "balanced"]
Check = Callable[[str, Any], Any]
"""Takes a field's name and value; returns the value as it is stored, or refuses it."""

MOST_BRANCHES = 100
LEAST, MOST = 1e-30, 1e30
"""Training computes in float32."""


def _optional(check: Check) -> Check:
    return lambda name, value: None if value is None else check(name, value)


def _instance(kind: type, remedy: str, name: str, value: Any) -> Any:
    if not isinstance(value, kind) or (value == "" and remedy == PATH):
        raise CollapseError(f"{name}={shorten(value)}: give {remedy}")
    return value


def _moderate(name: str, value: Any) -> float:
    number = positive_number(name, value, "give a positive number")
    if not LEAST <= number <= MOST:
        raise CollapseError(f"{name}={number:g}: give a number from {LEAST:g} to {MOST:g}")
    return number


def _ratio(name: str, value: Any) -> float:
    ratio = _moderate(name, value)
    if ratio < 1:
        raise CollapseError(f"{name}={ratio:g}: largest over smallest count is at least 1; give its inverse")
    return ratio


def _branches(name: str, value: Any) -> int:
    number = whole_number(name, value, 1, "or leave it out")
    if number > MOST_BRANCHES:
        raise CollapseError(f"{name}={number}: give at most {MOST_BRANCHES}")
    return number


def _share(of: str, name: str, value: Any) -> float:
    number = numeric(name, value)
    if number.ndim or not 0 <= number < 1:
        raise CollapseError(f"{name}={value}: a share of the {of}; give at least 0 and less than 1")
    return float(number)


def _one_of(kind: Any, name: str, value: Any) -> Any:
    if value not in get_args(kind):
        raise CollapseError(f"{name}={shorten(value)}: give one of {', '.join(get_args(kind))}")
    return value


def _widths(name: str, hidden: Any) -> tuple[int, ...]:
    if isinstance(hidden, str) or not isinstance(hidden, Sequence):
        raise CollapseError(f"{name}={shorten(hidden)}: give the widths of the hidden layers, e.g. (256, 256)")
    return tuple(whole_number(name, width, 1, "give widths") for width in hidden)


def _names(name: str, names: Any) -> tuple[str, ...] | None:
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise CollapseError(f"{name}={shorten(names)}: give a sequence of names, one a class")
    listed = tuple(names)
    return class_names(listed, len(listed))


PATH = "a name or a path"
_TEXT, _NAME = partial(_instance, str, PATH), _optional(partial(_instance, str, "a name, or leave it out"))
_FLAG = partial(_instance, bool, "True or False, or leave it out")
_WHOLE = partial(whole_number, least=1, remedy="give a whole number")
_NUMBER, _COUNT = _optional(_moderate), _optional(partial(whole_number, least=1, remedy="or leave it out"))

CHECKS: dict[str, Check] = {
    "data": _TEXT,
    "network": _TEXT,
    "label_column": _NAME,
    "head": _NAME,
    "batchnorm": _optional(_FLAG),
    "drop_bias": _FLAG,
    "ratio": _ratio,
    "penalty_scale": _NUMBER,
    "penalty_ratio": _moderate,
    "weight_decay": _NUMBER,
    "feature_decay": _NUMBER,
    "learning_rate": _NUMBER,
    "ldam": _NUMBER,
    "logit_adjustment": _NUMBER,
    "epochs": _WHOLE,
    "feature_dim": _WHOLE,
    "width": _WHOLE,
    "seed": partial(whole_number, least=0, remedy="give a whole number"),
    "batch_size": _COUNT,
    "largest": _COUNT,
    "branches": _optional(_branches),
    "hidden": _widths,
    "profile": _optional(partial(_one_of, Profile)),
    "recipe": partial(_one_of, RecipeName),
    "optimizer": _optional(partial(_one_of, OptimizerName)),
    "decay_on": partial(_one_of, DecayOn),
    "batchnorm_decay": partial(_one_of, BatchNormDecay),
    "class_weights": partial(_one_of, ClassWeights),
    "resampling": partial(_one_of, Resampling),
    "warmup": _optional(partial(_share, "run")),
    "smoothing": partial(_share, "label"),
    "class_names": _optional(_names),
}
