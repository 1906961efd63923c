"""What takes the steps: whether its weight decay is a penalty at all, and how long that decay acts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from collapsekit.errors import CollapseError
from collapsekit.validation import Array, numeric, positive_number, shorten, whole_number

LEARNING_RATES = {"sgd": 0.1, "adam": 1e-3, "adamw": 1e-3}
"""Optimisers and the learning rate at the start where none is given."""
SCHEDULES = ("constant", "cosine", "linear", "step")
MOST_STEPS = 10**9
"""Beyond, a count of steps is a slip, and an array of them would not fit."""
UNACTED, ACTED = 0.1, 3.0
"""E-folds: up to the first at least 90 % of a weight's start is left, beyond the second at most 5 %."""

Reason = tuple[str, str]
"""What stands in the way: an argument with its value, and the sentence that says why and what to do."""


@dataclass(frozen=True)
class Optimizer:
    r"""What takes the steps, and applies weight decay: as torch's optimisers and schedulers name it.

    Whether a class can be lost to weight decay depends first on whether that decay has had time to act:
    :meth:`horizon` says how far it alone would have shrunk a weight by the end of training.

    Attributes
    ----------
    name : {"sgd", "adam", "adamw"}
        As torch names it.
    learning_rate : float, optional
        At the start (after a warm-up); left out: 0.1 for sgd, 0.001 for the others.
    steps : int, optional
        Optimiser steps of the whole training; needed for a horizon.
    schedule : {"constant", "cosine", "linear", "step"}
        How the learning rate goes after the warm-up: stays; falls along a cosine or a line to `floor` times its
        start; is multiplied by `factor` at each of the `milestones`.
    warmup : int
        Steps over which the learning rate first grows linearly from 0.
    milestones : sequence of int
        Steps at which the schedule "step" acts.
    factor, floor : float
        See `schedule`.
    momentum, dampening : float
        μ and τ of SGD.
    nesterov : bool
        Nesterov's momentum, which has the same horizon and no dampening.

    Raises
    ------
    CollapseError
        If a value is unknown or out of range.

    References
    ----------
    Derived here (docs/theory.md, "Time").

    Examples
    --------
    >>> Optimizer("adam").rate
    0.001
    >>> round(Optimizer("adamw", learning_rate=1e-3, steps=10_000, schedule="cosine").horizon(weight_decay=0.01), 4)
    0.05
    """

    name: str = "sgd"
    learning_rate: float | None = None
    steps: int | None = None
    schedule: str = "constant"
    warmup: int = 0
    milestones: Sequence[int] = ()
    factor: float = 0.1
    floor: float = 0.0
    momentum: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        name, schedule = str(self.name).lower(), str(self.schedule).lower()
        if name not in LEARNING_RATES:
            raise CollapseError(f"optimizer={shorten(self.name)}: give one of {', '.join(LEARNING_RATES)}")
        if schedule not in SCHEDULES:
            raise CollapseError(f"schedule={shorten(self.schedule)}: give one of {', '.join(SCHEDULES)}")
        if self.learning_rate is not None:
            positive_number("learning_rate", self.learning_rate, "or leave it out")
        if self.steps is not None:
            whole_number("steps", self.steps, 1, "count the optimiser's steps, or leave it out")
            if self.steps > MOST_STEPS:
                raise CollapseError(f"steps={self.steps}: no training takes more than {MOST_STEPS:,}; check the number")
        whole_number("warmup", self.warmup, 0, "count its steps")
        for milestone in self.milestones:
            whole_number("milestones", milestone, 0, "count the steps before each")
        for key, top in (("factor", 1.0), ("floor", 1.0)):
            _share(key, getattr(self, key), top)
        for key in ("momentum", "dampening"):
            _share(key, getattr(self, key), 1.0, open_above=key == "momentum")
        if self.nesterov and (self.dampening or not self.momentum):
            raise CollapseError("nesterov=True: it needs momentum above 0 and dampening 0, as in torch")
        for key in ("momentum", "dampening"):
            if name != "sgd" and getattr(self, key):
                raise CollapseError(f"{key}={getattr(self, key):g}: only sgd has one; leave it out for {name}")
        if (schedule == "step") != bool(self.milestones):
            raise CollapseError(
                f"milestones={shorten(self.milestones)}: only the schedule 'step' has any; it needs them"
            )
        if self.steps is not None and self.warmup > self.steps:
            raise CollapseError(f"warmup={self.warmup}: longer than the {self.steps} steps; give fewer")
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "schedule", schedule)

    @property
    def rate(self) -> float:
        """The learning rate at the start."""
        return self.learning_rate or LEARNING_RATES[self.name]

    @property
    def rates(self) -> Array:
        """The learning rate of every step, (steps,); refused without `steps`."""
        if self.steps is None:
            raise CollapseError("steps=None: a horizon needs the number of optimiser steps; give steps")
        t = np.arange(self.steps, dtype=np.float64)
        progress = np.clip((t - self.warmup) / max(1, self.steps - self.warmup), 0.0, 1.0)
        if self.schedule == "step":
            shape = self.factor ** np.searchsorted(np.sort(self.milestones), t, side="right")
        else:
            falling = {
                "constant": np.ones_like(t),
                "cosine": 0.5 * (1 + np.cos(np.pi * progress)),
                "linear": 1 - progress,
            }
            shape = self.floor + (1 - self.floor) * falling[self.schedule]
        growing = np.minimum(1.0, (t + 1) / self.warmup) if self.warmup else 1.0
        return np.asarray(self.rate * shape * growing)

    def horizon(self, weight_decay: ArrayLike) -> float:
        r"""Return over how many e-folds the decay acts: alone it would shrink a weight by ``exp(−E)``.

        .. math:: E = \sum_t \eta_t\, wd\, \frac{1-\tau}{1-\mu} \text{ (SGD)}, \qquad E = \sum_t \eta_t\, wd
                  \text{ (AdamW)}

        Far below 1 the start is not forgotten and no class can have been lost to the decay; far above 1 it has had
        time to act, which does not prove that training has converged. Rows of a head keep their sum but for the decay,
        so the mean row of W shrinks by exactly ``exp(−E)`` under SGD.

        Parameters
        ----------
        weight_decay : float or array_like, shape (steps,)
            wd, or one value a step.

        Returns
        -------
        float
            E; NaN for Adam with coupled decay, where no such number exists: there a weight moved by decay alone
            shrinks by about the learning rate a step, whatever wd.

        Raises
        ------
        CollapseError
            If `steps` are not known or the decay is negative.

        Examples
        --------
        >>> round(Optimizer("sgd", 0.1, steps=200, momentum=0.9).horizon(5e-4), 6)
        0.1
        """
        decay = numeric("weight_decay", weight_decay)
        if not (np.isfinite(decay).all() and (decay >= 0).all()):
            raise CollapseError(f"weight_decay={shorten(weight_decay)}: give a number of at least 0")
        rates = self.rates
        if decay.ndim and decay.shape != rates.shape:
            raise CollapseError(
                f"weight_decay: shape {decay.shape}; give one number, or one for each of {rates.size} steps"
            )
        if self.name == "adam":
            return float("nan")
        gain = momentum_gain(self.momentum, self.dampening) if self.name == "sgd" else 1.0
        return float((rates * decay).sum() * gain)

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


def momentum_gain(momentum: float, dampening: float) -> float:
    """Return how many times a steady gradient counts under SGD's momentum."""
    return (1 - dampening) / (1 - momentum) if momentum else 1.0  # torch leaves dampening out without momentum


def horizon_sentence(efolds: float) -> str:
    """Return what a horizon means for a class, in a sentence.

    Parameters
    ----------
    efolds : float
        From :meth:`Optimizer.horizon`.

    Examples
    --------
    >>> horizon_sentence(0.05)  # doctest: +ELLIPSIS
    'the decay acts over 0.05 e-folds: no class can be lost to it; what you see at the end is unfinished training ...'
    """
    if np.isnan(efolds):
        return (
            "under Adam with coupled (L2) decay there is no horizon: how fast the decay acts depends on the size of "
            "the gradients, so whether it had time to act cannot be told from the recipe"
        )
    acts = f"the decay acts over {efolds:.2g} e-folds"
    if efolds <= UNACTED:
        return (
            f"{acts}: no class can be lost to it; what you see at the end is unfinished training (under the "
            f"decay alone {np.exp(-efolds):.0%} of the start would be left)"
        )
    if efolds < ACTED:
        return (
            f"{acts}: {np.exp(-efolds):.0%} of the start is left under the decay alone, so the end of training lies "
            "between the start and the prediction"
        )
    return f"{acts}: it has had time to act, which does not prove that training has converged"


def _share(name: str, value: float, top: float, *, open_above: bool = False) -> None:
    number = numeric(name, value)
    if number.ndim or not (0 <= number < top if open_above else 0 <= number <= top):
        raise CollapseError(f"{name}={shorten(value)}: give a number from 0 to {'below ' if open_above else ''}{top:g}")
