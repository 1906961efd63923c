"""The horizon of a training that is under way: e-folds of weight decay, read from torch's optimiser at each step."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from collapsekit import recipe
from collapsekit.errors import CollapseError
from collapsekit.recipe._optimizer import horizon_sentence, momentum_gain
from collapsekit.validation import shorten


class Horizon:
    """E-folds of decay so far, by parameter group; a number for SGD and AdamW, a reason for others.

    Steps are counted where the optimiser takes them, so that neither accumulated gradients nor steps that a scaler of
    half-precision gradients leaves out count.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        What takes the steps, or what holds it as its ``optimizer``.

    Raises
    ------
    CollapseError
        If it is no optimiser of torch.
    """

    def __init__(self, optimizer: Any) -> None:
        while hasattr(optimizer, "optimizer"):  # what accelerate wraps around one calls itself an optimizer, too
            optimizer = optimizer.optimizer
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise CollapseError(f"optimizer={shorten(optimizer)}: give a torch.optim.Optimizer, what takes the steps")
        self.optimizer = optimizer
        self.efolds: list[float] = []
        self.total_rate = 0.0
        self.steps = self.last_rise = 0
        self.rate = 0.0
        self.handle = optimizer.register_step_post_hook(self._stepped)

    def _stepped(self, *_: Any) -> None:
        groups = self.optimizer.param_groups
        self.efolds += [0.0] * (len(groups) - len(self.efolds))
        for i, group in enumerate(groups):
            decay = float(group.get("weight_decay", 0.0))
            if decay:
                self.efolds[i] += float(group["lr"]) * decay * self._gain(group)
        rate = max(float(group["lr"]) for group in groups)
        self.steps += 1
        self.total_rate += rate
        if rate > self.rate:
            self.last_rise = self.steps
        self.rate = rate

    @property
    def warming(self) -> bool:
        """Whether the learning rate has risen in the second half of the steps so far."""
        return self.last_rise > 1 and 2 * self.last_rise >= self.steps

    @property
    def name(self) -> str | None:
        """The optimiser as :class:`collapsekit.recipe.Optimizer` names it; None for one that it does not know."""
        if isinstance(self.optimizer, torch.optim.SGD):
            return "sgd"
        decoupled = self.optimizer.param_groups[0].get("decoupled_weight_decay", False)
        if isinstance(self.optimizer, torch.optim.AdamW) or (
            isinstance(self.optimizer, torch.optim.Adam) and decoupled
        ):
            return "adamw"
        return "adam" if isinstance(self.optimizer, torch.optim.Adam) else None

    def _gain(self, group: dict[str, Any]) -> float:
        """What a step of lr·wd counts; NaN where there is no such number."""
        if self.name == "sgd":
            return momentum_gain(group["momentum"], group["dampening"])
        return 1.0 if self.name == "adamw" else float("nan")

    def of(self, module: nn.Module) -> tuple[float, str]:
        """Return the e-folds of a layer's weight, and why they are not known where they are NaN."""
        own = {id(one) for one in module.parameters() if one.ndim > 1}
        for group, efolds in zip(self.optimizer.param_groups, self.efolds, strict=False):
            if any(id(one) in own for one in group["params"]):
                if efolds == efolds:
                    return efolds, ""
                kind = type(self.optimizer).__name__
                why = horizon_sentence(efolds) if self.name == "adam" else f"no horizon is known for {kind}"
                return efolds, why
        why = (
            "the optimizer has taken no step yet" if not self.steps else "the optimizer does not move the head's weight"
        )
        return float("nan"), why

    @property
    def described(self) -> recipe.Optimizer | None:
        """What took the steps so far, at its mean learning rate, as a diagnosis takes it; None if it cannot be said."""
        if self.name is None or not self.total_rate:
            return None
        group = self.optimizer.param_groups[0]
        own = {key: group[key] for key in ("momentum", "dampening", "nesterov") if self.name == "sgd"}
        return recipe.Optimizer(self.name, self.total_rate / self.steps, self.steps, **own)

    def state(self) -> dict[str, Any]:
        """Return the sums so far."""
        return {key: getattr(self, key) for key in ("total_rate", "rate", "steps", "last_rise")} | {
            "efolds": list(self.efolds)
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from sums that were kept."""
        for key, value in state.items():
            setattr(self, key, list(value) if key == "efolds" else value)
