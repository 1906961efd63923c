"""A callback that watches every class while a Lightning Trainer trains (needs `lightning` or `pytorch_lightning`)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from collapsekit.errors import CollapseError
from collapsekit.metrics.last_layer import named
from collapsekit.monitor._monitor import PREFIX, Monitor, gathered
from collapsekit.validation import shorten

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ModuleNotFoundError:
    try:
        from pytorch_lightning import Callback, LightningModule, Trainer
    except ModuleNotFoundError as missing:
        raise CollapseError(
            f"collapsekit.monitor.lightning: {missing.name} is not installed; run: pip install lightning"
        ) from None

KEYS = ("labels", "label", "y")
"""Where labels stand in a batch that is a mapping; in a tuple or list they are the second item."""


class CollapseCallback(Callback):
    """Log how every class fares at the end of each training epoch: a :class:`~collapsekit.monitor.Monitor`.

    The numbers are those of the forward passes that ``training_step`` makes, over all processes; validation and the
    sanity check do not count. A checkpoint holds what was counted so far, of all processes, so that a run goes on in
    the middle of an epoch. If ``training_step`` calls the model several times the last call counts, or that after
    which it calls ``update(labels)`` of :attr:`monitor` itself.

    Parameters
    ----------
    head : str or torch.nn.Module, optional
        The layer that makes the logits, named from the LightningModule; left out: found in the first training pass.
    labels : str, int or callable, optional
        The key of the class numbers in a batch, or a function of a batch that returns them; left out: the key
        ``labels``, ``label`` or ``y``, or the second item of a tuple or list.
    **options
        As :class:`~collapsekit.monitor.Monitor` takes them; `optimizer` left out: the Trainer's.

    Attributes
    ----------
    monitor : Monitor or None
        Of the current or last ``fit``, with its findings.

    Raises
    ------
    CollapseError
        In the first training step: if labels are not found or do not fit, or the head is not found.

    References
    ----------
    docs/monitor.md, "Lightning": the whole script, and what each key means.
    """

    def __init__(
        self,
        head: str | nn.Module | None = None,
        *,
        labels: str | int | Callable[[Any], Any] | None = None,
        **options: Any,
    ) -> None:
        inspect.signature(Monitor).bind(None, head, **options)  # a misspelt option is an error now, not in fit
        self.head, self.labels, self.options = head, labels, options
        self.monitor: Monitor | None = None
        self._restored: list[dict[str, Any]] = []

    @property
    def state_key(self) -> str:
        """The key of the state in a checkpoint: two callbacks for two heads have two."""
        key: str = self._generate_state_key(head=self.head if isinstance(self.head, str) else None)
        return key

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget what another run has left: hooks, if it has failed, and the checkpoint it has read."""
        self._restored = []
        if stage == "fit" and self.monitor is not None:
            self.monitor.close()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to listen: before the first forward pass, which may compile the model."""
        model, head = watched(pl_module, self.head)
        given = {"optimizer": _only(trainer.optimizers)} | self.options
        self.monitor = Monitor(model, head, **given)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on from the state of a checkpoint."""
        if self._restored and self.monitor is not None:
            self.monitor.load_state_dict(own_state(self._restored, trainer.global_rank, trainer.world_size))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Count an epoch first whose checkpoint was taken after its last batch: Lightning does not end it again."""
        pending, self._restored = any(state["stream"] is not None for state in self._restored), []
        if pending and batch_idx == 0 and self.monitor is not None:
            scalars = self._named(trainer, self.monitor.epoch()) | {"epoch": float(trainer.current_epoch - 1)}
            for logger in trainer.loggers:
                logger.log_metrics(scalars, step=trainer.global_step - 1)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Find the head of a compiled model before its weights change."""
        if self.monitor is not None:
            self.monitor.tap.settle_late()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the forward pass of this batch, unless ``training_step`` has made none or has counted it itself."""
        assert self.monitor is not None
        if not self.monitor.updates or self.monitor.tap.waiting is not None:
            self.monitor.update(labels_of(batch, self.labels))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the numbers of the epoch: the same ones on all processes, under the same keys."""
        assert self.monitor is not None
        scalars = self._named(trainer, trainer.strategy.broadcast(self.monitor.epoch()))
        pl_module.log_dict(scalars, on_step=False, on_epoch=True, sync_dist=True, batch_size=1)

    def _named(self, trainer: Trainer, scalars: dict[str, float]) -> dict[str, float]:
        """Put the head into the keys where another callback logs, too: Lightning takes means of what has one key."""
        several = sum(isinstance(one, CollapseCallback) for one in trainer.callbacks) > 1
        if not several or not isinstance(self.head, str):
            return scalars
        return {f"{PREFIX}{self.head}/{key.removeprefix(PREFIX)}": value for key, value in scalars.items()}

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the hooks away."""
        if self.monitor is not None:
            self.monitor.close()

    def state_dict(self) -> dict[str, Any]:
        """Return the states of all processes; every process has to call it, as Lightning does."""
        return {} if self.monitor is None else {"ranks": gathered(on_cpu(self.monitor.state_dict()))}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the states until training starts."""
        self._restored = state_dict.get("ranks", [])


def watched(pl_module: nn.Module, head: str | nn.Module | None) -> tuple[nn.Module, nn.Module | None]:
    """Return the part of a LightningModule whose forward passes count, and its head if it is named.

    ``training_step`` calls a part, or the module as a whole, and under DistributedDataParallel the module is called
    around ``training_step``: where there is one part with parameters, that is the model.
    """
    parts = [part for part in pl_module.children() if next(part.parameters(), None) is not None]
    model = parts[0] if len(parts) == 1 else pl_module
    if head is None:
        return model, None
    try:
        _, module = named(pl_module, head)
    except CollapseError:
        if model is pl_module:
            raise
        _, module = named(model, head)  # as messages about this part name it
    return next((part for part in parts if any(one is module for one in part.modules())), pl_module), module


def labels_of(batch: Any, where: str | int | Callable[[Any], Any] | None) -> Any:
    """Return the class numbers of a batch.

    Raises
    ------
    CollapseError
        If they are not there.
    """
    if callable(where):
        return where(batch)
    if where is not None:
        try:
            return batch[where]
        except (LookupError, TypeError):
            raise CollapseError(f"labels={where!r}: the batch has none; it {_holds(batch)}") from None
    if isinstance(batch, Mapping):
        found = [batch[key] for key in KEYS if key in batch]
    else:
        found = list(batch[1:2]) if isinstance(batch, tuple | list) else []
    if len(found) != 1 or not isinstance(found[0], Tensor) or found[0].is_floating_point():
        raise CollapseError(
            f"batch: {_holds(batch)}, and which are the class numbers is not clear; say it, like "
            "CollapseCallback(labels=lambda batch: batch[...])"
        )
    return found[0]


def own_state(states: list[dict[str, Any]], rank: int, world: int) -> dict[str, Any]:
    """Return the state for one of the processes that go on.

    Raises
    ------
    CollapseError
        If there were more or fewer processes, and an epoch was not finished.
    """
    if len(states) != world and any(state["stream"] is not None for state in states):
        raise CollapseError(
            f"checkpoint: from the middle of an epoch on {len(states)} processes, here {world}; go on with as many, or "
            "from the end of an epoch"
        )
    return states[rank % len(states)]


def on_cpu(state: Any) -> Any:
    """Return a state whose tensors can be sent to another process."""
    if isinstance(state, dict):
        return {key: on_cpu(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(on_cpu(value) for value in state)
    return state.cpu() if isinstance(state, Tensor) else state


def _only(optimizers: list[torch.optim.Optimizer]) -> torch.optim.Optimizer | None:
    """Of several optimisers none: which one moves the head is not known before the first pass."""
    return optimizers[0] if len(optimizers) == 1 else None


def _holds(batch: Any) -> str:
    if isinstance(batch, Mapping):
        return f"holds the keys {', '.join(map(shorten, batch))}"
    if isinstance(batch, tuple | list):
        return f"is a {type(batch).__name__} of {', '.join(type(one).__name__ for one in batch)}"
    return f"is a {type(batch).__name__}"
