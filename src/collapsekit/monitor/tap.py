"""Where the monitor listens: hooks that keep what entered the head, and what left it, in the user's own passes."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from collapsekit.errors import CollapseError
from collapsekit.metrics.batches import evaluating
from collapsekit.metrics.last_layer import (
    Convolution,
    Head,
    averaged,
    candidates,
    checked,
    logits_of,
    maker,
    named,
    rows_of,
    tensors,
)
from collapsekit.validation import shorten

ROOT = "(the model)"
HALF_TYPES = (torch.float16, torch.bfloat16)


class Pass(NamedTuple):
    """Features (..., d) and logits (..., K) of one training pass: detached copies."""

    features: Tensor
    logits: Tensor


@dataclass
class Hook:
    """What torch calls after a layer's forward pass; in copies of a model, and in pickled ones, it does nothing."""

    tap: Tap | None
    name: str

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """Hand what the layer was given and has made to the tap."""
        if self.tap is not None:
            self.tap.hear(self.name, module, next(iter((*args, *kwargs.values())), None), out)

    def __deepcopy__(self, _: dict[int, Any]) -> Hook:
        return Hook(None, self.name)

    def __reduce__(self) -> tuple[Any, ...]:
        return Hook, (None, self.name)


class Start(Hook):
    """What torch calls before the model's forward pass."""

    def __call__(self, *_: Any) -> None:
        """Begin a pass."""
        if self.tap is not None:
            self.tap.begin()

    def __deepcopy__(self, _: dict[int, Any]) -> Start:
        return Start(None, self.name)

    def __reduce__(self) -> tuple[Any, ...]:
        return Start, (None, self.name)


class Tap:
    """The head of a model in training; if it is not named it is found in the first training pass.

    Nothing that takes part in training is touched: copies are detached, and no random number is drawn.

    Parameters
    ----------
    model : torch.nn.Module
        Wrapped for several processes or compiled as it may be.
    head : str, torch.nn.Module or None
        As :func:`collapsekit.metrics.measure` takes it.

    Raises
    ------
    CollapseError
        If there is no such layer.
    """

    def __init__(self, model: nn.Module, head: str | nn.Module | None) -> None:
        self.root = unwrapped(model)
        with evaluating(self.root):  # to look at a parametrised weight may change it in training mode
            self.watched = candidates(self.root) if head is None else dict([named(self.root, head)])
            if not self.watched:
                maker(self.root, {}, {}, None)  # says that there is no linear layer
        self.head: Head | None = None
        self.averages = self.picks = False
        self.heard: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        self.output: Any = None
        self.waiting: Pass | None = None
        self.calls: dict[str, int] = {}
        self.entered = self.evaluated = False
        self.passes = self.dropped = 0
        self.handles = {
            name: module.register_forward_hook(Hook(self, name), with_kwargs=True)
            for name, module in self.watched.items()
        }
        self.root_handles = (
            self.root.register_forward_pre_hook(Start(self, ROOT)),
            self.root.register_forward_hook(Hook(self, ROOT), with_kwargs=True),
        )

    def close(self) -> None:
        """Remove all hooks."""
        for handle in (*self.handles.values(), *self.root_handles):
            handle.remove()

    def begin(self) -> None:
        """Note that the model is called."""
        if self.root.training and not recomputing():
            self.entered = True
            self.calls = {}
            self.passes += 1

    def hear(self, name: str, module: nn.Module, given: Any, out: Any) -> None:
        """Keep what a layer was given and has made, if this is a pass of training."""
        if not self.root.training:
            self.evaluated = True
        elif recomputing():
            pass
        elif name == ROOT:
            self.entered = False
            if self.head is None and self.heard and any(one.ndim for one in tensors(out)):  # more than a loss
                self.output = out
                if not torch.compiler.is_compiling():
                    self.settle()
            elif self.picks and self.waiting is not None:
                self.waiting = picked(self.waiting, out)
        else:
            self.calls[name] = self.calls.get(name, 0) + self.entered
            if self.head is None:
                if isinstance(given, Tensor) and isinstance(out, Tensor) and out.ndim >= 2:
                    logits = out.detach()
                    self.heard[name] = given.detach(), logits, averaged(module, logits).clone()
            elif name == self.head.name:
                self.dropped += self.waiting is not None
                self.waiting = Pass(copied(given), copied(out))

    def settle_late(self) -> None:
        """Settle the head of a compiled model, or of parts of a model: best before a step changes the weights."""
        if self.head is None and self.heard and (self.output is not None or len(self.watched) == 1):
            self.settle()

    def settle(self) -> None:
        """Say which layer is the head, after the first pass of training, and check that it is one."""
        heard, output = self.heard, self.output
        self.heard, self.output = {}, None
        with torch.no_grad(), evaluating(self.root):
            name = self._picked_head(heard, output)
            self.picks = name is not None
            if name is None and len(self.watched) == 1:
                name = next(iter(self.watched))
            if name is None:
                outputs = {self.watched[name]: mean for name, (_, _, mean) in heard.items()}
                name, _ = maker(self.root, self.watched, outputs, output)
            module = self.watched[name]
            if hasattr(module.weight, "full_tensor"):
                raise CollapseError(
                    f"head={shorten(name)}: its weight is sharded over processes; call "
                    "collapsekit.metrics.measure(model, loader) on all of them after an epoch instead"
                )
            features, logits, _ = heard[name]
            found = checked(name, module, features, logits)
            if output is not None and not self.picks:
                rows, _ = rows_of(found, features, logits, output, positions=True)
                self.averages = rows.ndim < features.ndim
        self._listen_to(found)
        self.waiting = Pass(copied(features), copied(logits))
        if self.picks:
            self.waiting = picked(self.waiting, output)

    def _picked_head(self, heard: dict[str, tuple[Tensor, Tensor, Tensor]], output: Any) -> str | None:
        """The layer of whose logits at all positions the model returns those at one position of each sample."""
        for name, (_, logits, _) in heard.items():
            at = picked_positions(logits, output)
            if at is not None and bool((at >= 0).all()):
                return name
        return None

    def _listen_to(self, head: Head) -> None:
        self.head = head
        for name, handle in self.handles.items():
            if name != head.name:
                handle.remove()

    def state(self) -> dict[str, Any] | None:
        """Return which layer is the head, as plain values."""
        head = self.head
        if head is None:
            return None
        return {"name": head.name, "transposed": head.transposed, "averages": self.averages, "picks": self.picks}

    def load(self, state: dict[str, Any]) -> None:
        """Go on with the head of a state: rows that wait there can be counted before the next pass."""
        if state["name"] not in self.watched:
            raise CollapseError(f"state: is of head={shorten(state['name'])}; give that, or no state")
        self.averages, self.picks = state["averages"], state["picks"]
        self._listen_to(Head(state["name"], self.watched[state["name"]], state["transposed"]))

    def take(self) -> tuple[Pass, Head]:
        """Return what the last training pass has left, once, in the shape of its labels; and the head.

        Raises
        ------
        CollapseError
            If there was no training pass, or the head was called several times in it.
        """
        self.settle_late()
        waiting, calls, why_not = self.waiting, self.calls, self._why_not()
        self.waiting, self.calls, self.passes, self.evaluated = None, {}, 0, False
        if waiting is None or self.head is None:
            raise CollapseError(why_not)
        head, module = self.head, self.head.module
        if calls.get(head.name, 0) > 1:
            raise CollapseError(
                f"head={shorten(head.name)}: was called {calls[head.name]} times in one forward pass; expected once: "
                "name another layer, Monitor(model, head=...)"
            )
        if self.averages:
            return Pass(*(averaged(module, values) for values in waiting)), head
        if isinstance(module, Convolution):
            return Pass(*(values.movedim(1, -1) for values in waiting)), head
        return waiting, head

    def _why_not(self) -> str:
        """Why there is nothing to take."""
        if self.heard:
            name = shorten(list(self.watched)[-1])
            return f"update: only parts of the model were called; name the head, like Monitor(model, head={name})"
        if self.evaluated:
            return "update: the forward pass was in evaluation mode; call model.train() before it"
        compiled = "torch._dynamo" in sys.modules
        remedy = ", or torch.compiler.reset() if the model was compiled and called before the monitor was made"
        if self.passes:
            which = "any of its linear layers" if len(self.watched) > 1 else shorten(next(iter(self.watched)))
            return (
                f"update: no hook was called by {which} in the forward pass; name a layer that is called, "
                f"Monitor(model, head=...){remedy if compiled else ''}"
            )
        return (
            "update: no forward pass in training mode since the last update; call model(inputs) before it"
            f"{remedy if compiled else ''}"
        )


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside what DistributedDataParallel and torch.compile put around it."""
    if not isinstance(model, nn.Module):
        raise CollapseError(f"model={shorten(model)}: give a torch.nn.Module")
    if isinstance(model, DataParallel):
        raise CollapseError(
            "model: DataParallel calls copies of the head in threads; use DistributedDataParallel, or one device"
        )
    inner = model.module if isinstance(model, DistributedDataParallel) else getattr(model, "_orig_mod", None)
    return model if inner is None else unwrapped(inner)


def recomputing() -> bool:
    """Return whether this forward pass is a part of a backward pass, as gradient checkpointing makes them."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def picked_positions(logits: Tensor, output: Any) -> Tensor | None:
    """Return at which position, (n,), of a head's logits (n, T, K) those are that the model returns, (n, K).

    −1 where at none, as with undefined numbers; None if the model returns nothing of that shape. A classifier made of
    a causal language model takes the last token that is no padding.
    """
    for one in logits_of(output) if logits.ndim == 3 else []:
        if one.shape == (len(logits), logits.shape[2]):
            same = (logits == one.detach().to(logits)[:, None]).all(dim=2)
            last = (same * torch.arange(1, 1 + same.shape[1], device=same.device)).max(dim=1).values
            return last - 1
    return None


def picked(found: Pass, output: Any) -> Pass:
    """Return the rows of a pass at the positions that the model picks; undefined where that is not known."""
    at = picked_positions(found.logits, output)
    if at is None:
        return found
    samples, known = torch.arange(len(at), device=at.device), (at >= 0)[:, None]
    return Pass(*(torch.where(known, values[samples, at.clamp(min=0)], torch.nan) for values in found))


def copied(values: Tensor) -> Tensor:
    """Return a copy without gradients, of half-precision numbers in float32."""
    values = values.detach()
    return values.float() if values.dtype in HALF_TYPES else values.clone()
