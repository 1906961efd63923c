"""train: one configuration in, one finished and stored run out."""

from __future__ import annotations

import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from collapsekit import files
from collapsekit.errors import CollapseError
from collapsekit.metrics.last_layer import find_head, forward
from collapsekit.prediction._predict import in_closed_form
from collapsekit.recipe import LastLayer
from collapsekit.training import checkpoint, runs, store
from collapsekit.training._config import MOMENTUM, TrainConfig
from collapsekit.training._split import Split, load_split
from collapsekit.training.evaluation import history_entry, measured, recompute_batchnorm
from collapsekit.training.models import build, explained
from collapsekit.training.objective import (
    BatchNorm,
    explicit_penalty,
    freeze_shifts,
    mean_loss,
    parameter_groups,
    weight_tensor,
)
from collapsekit.training.runs import Run
from collapsekit.validation import shorten

EVALUATIONS = 60
ONE_AT_A_TIME = threading.RLock()
"""Training sets torch's random state and other switches, which the threads of a process share."""

Progress = Callable[[int, int, float], None]
"""Called as ``progress(step, total_steps, objective)`` after each evaluation; the loss where there is no objective."""


def train(
    config: TrainConfig,
    *,
    out: str | os.PathLike[str] = "runs",
    resume: bool = False,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Run:
    """Train a network as configured, measure it on its training set, and store the run.

    Parameters
    ----------
    config : TrainConfig
        What to train.
    out : path
        The run is stored in ``out/<hash of the configuration>``.
    resume : bool
        Go on from the last checkpoint, if there is one (or return the run, if it is finished); otherwise a run that
        is already stored there is replaced.
    device : torch.device or str
        Where to train.
    progress : callable, optional
        ``progress(step, total_steps, objective)`` after each evaluation.

    Returns
    -------
    Run

    Raises
    ------
    CollapseError
        If the configuration does not fit the data, the folder cannot be written or is in use, or training diverges.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as out:
    ...     run = train(TrainConfig(epochs=2, hidden=(8,), feature_dim=8), out=out)
    >>> run.measured
    Measurement(ClassMoments(K=10, d=8, 613 samples, scatter), head)
    """
    with ONE_AT_A_TIME, _enough_memory(), _as_if_alone():
        split, place = load_split(config), _device(device)
        with torch.random.fork_rng(devices=[place] if place.type == "cuda" else []):
            torch.manual_seed(config.seed)
            session = _Session(config, split, place)
            folder = store.run_folder(out, config)
            with store.locked(folder):
                if resume:
                    checkpoint.require_same_data(folder, (split.checksum, split.training_checksum), config.data)
                    if (folder / store.ENVIRONMENT).exists():
                        return runs.finished_run(folder, config)
                store.tidy(folder, keep=resume)
                files.replace(folder / store.CONFIG, json.dumps(config.to_dict(), indent=2) + "\n")
                started = time.monotonic()
                session.run(folder, progress)
                return session.finished(folder, time.monotonic() - started)


class _Session:
    """The network, its optimiser and its data while they train; the random state is that of the caller."""

    def __init__(self, config: TrainConfig, split: Split, device: torch.device) -> None:
        self.config, self.split, self.device = config, split, device
        self.inputs, self.labels = split.train_inputs.to(device), split.train_labels.to(device)
        classes = len(split.names)
        self.model = build(
            config.network,
            tuple(self.inputs.shape[1:]),
            classes,
            hidden=config.hidden,
            feature_dim=config.feature_dim,
            width=config.width,
            batchnorm=config.has_batchnorm,
            branches=config.branches or 1,
        ).to(device)
        self.head = find_head(self.model, config.head, self.inputs[:2])
        rows, dim = self.head.weight.shape
        if rows != classes:
            raise CollapseError(
                f"head={self.head.name!r}: has {rows} rows for {classes} classes; name the layer that makes the logits"
            )
        if config.drop_bias:
            self.head.module.register_parameter("bias", None)
        freeze_shifts(self.model, config)
        self.last_layer = LastLayer(
            dim=dim,
            biased=self.head.bias is not None,
            branches=config.branches or len(getattr(self.model, "feature_batchnorms", ())),
            pooled=bool(getattr(self.model, "pooled", False)),
        )
        self.loss = config.loss(split.counts)
        self.class_weights = weight_tensor(config.torch_class_weights(split.counts), device)
        self.decays = config.penalties(split.counts, self.last_layer)
        lawful = config.refusal(self.last_layer, split.counts) is None
        self.problem = config.problem(split.counts, self.last_layer, split.names) if lawful else None
        self.prediction = None if self.problem is None else in_closed_form(self.problem)  # others are predicted once
        self.optimizer = _optimizer(config, parameter_groups(self.model, self.head.module, config))
        self.total = config.epochs * _steps_per_epoch(config, len(self.inputs))
        _require_batches(config, self.model, len(self.inputs))

    def run(self, folder: Path, progress: Progress | None) -> None:
        """Take all steps that are left, evaluating and saving on the way."""
        first = checkpoint.restore(folder, self.model, self.optimizer)
        # denser at the start, and always the last
        due = {max(1, round(self.total * (i / EVALUATIONS) ** 1.5)) for i in range(1, EVALUATIONS + 1)}
        checksum = self.split.checksum
        self.model.train()
        with interruptible() as heed_interrupt:
            for step, batch in enumerate(_batches(self.config, self.split.train_labels, first), start=first + 1):
                heed_interrupt()
                loss = self._step(step, batch)
                if step in due:
                    entry = self._evaluated(step, loss)
                    files.append(folder / store.HISTORY, json.dumps(entry))
                    checkpoint.save(folder, self.model, self.optimizer, step, checksum)
                    if progress is not None:
                        progress(step, self.total, entry["loss"] if entry["objective"] is None else entry["objective"])

    def _evaluated(self, step: int, loss: Tensor) -> dict[str, Any]:
        if not all(bool(torch.isfinite(tensor).all()) for tensor in (loss, *self.model.parameters())):
            raise CollapseError(
                f"learning_rate={self.config.optimizer_used.rate:g}: training diverged before step {step}; give a "
                "smaller one"
            )
        recompute_batchnorm(self.model, self.inputs)
        result = measured(self.model, self.split, self.head, self.loss)
        return history_entry(step, result, self.problem, self.prediction)

    def finished(self, folder: Path, seconds: float) -> Run:
        """Measure the network and store the run."""
        recompute_batchnorm(self.model, self.inputs)
        result = measured(self.model, self.split, self.head, self.loss)
        recalls = np.full(len(self.split.names), np.nan)
        if len(self.split.test_labels):
            tested = measured(self.model, self.split, self.head, self.loss, train_set=False)
            assert tested.recalls is not None  # the network has a head
            recalls = tested.recalls
        history, environment = store.read_history(folder), runs.environment(self.device, seconds)
        run = Run(folder, self.config, self.last_layer, result, recalls, history, environment)
        runs.save_results(run)
        return run

    def _step(self, step: int, batch: Tensor | slice) -> Tensor:
        weight_decay, feature_decay = self.decays
        warmup = self.config.warmup_used * self.total
        factor = min(1.0, step / warmup) if warmup else 1.0
        rate = self.config.optimizer_used.rate * 0.5 * (1 + math.cos(math.pi * (step - 1) / self.total))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with explained(f"network={shorten(self.config.network)}: in step {step} it raised"):
            features, logits = forward(self.model, self.head, self.inputs[batch])
        loss = mean_loss(logits, self.labels[batch], self.loss, self.class_weights)
        if feature_decay is None:
            self.optimizer.param_groups[0]["weight_decay"] = factor * weight_decay
        else:
            loss = loss + explicit_penalty(features, self.head.weight, factor * weight_decay, factor * feature_decay)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return loss


def _steps_per_epoch(config: TrainConfig, num_samples: int) -> int:
    return math.ceil(num_samples / (config.batch_size or num_samples))


def _batches(config: TrainConfig, labels: Tensor, first: int) -> Iterator[Tensor | slice]:
    """Yield the batches of steps first + 1, first + 2, …; the order depends on seed and epoch only, so runs resume."""
    num_samples = len(labels)
    steps = _steps_per_epoch(config, num_samples)
    for epoch in range(first // steps, config.epochs):
        if steps == 1 and config.resampling == "none":
            yield slice(None)
            continue
        order = _order(config, labels, np.random.default_rng([config.seed, epoch]))
        batches = torch.split(order, config.batch_size or num_samples)
        yield from batches[first % steps if epoch == first // steps else 0 :]


def _order(config: TrainConfig, labels: Tensor, rng: np.random.Generator) -> Tensor:
    """The samples of an epoch: all in random order, or as many draws with each class equally likely."""
    if config.resampling == "none":
        return torch.from_numpy(rng.permutation(len(labels)))
    times = 1 / torch.bincount(labels).double()[labels].numpy()
    return torch.from_numpy(rng.choice(len(labels), len(labels), p=times / times.sum()))


def _require_batches(config: TrainConfig, model: nn.Module, num_samples: int) -> None:
    """A batch of one sample has no statistics to normalise by."""
    size = min(config.batch_size or num_samples, num_samples)
    least = num_samples % size or size
    if least == 1 and any(isinstance(module, BatchNorm) for module in model.modules()):
        raise CollapseError(
            f"batch_size={size}: leaves a batch of one of {num_samples} samples, which BatchNorm cannot normalise; "
            "give another"
        )


def _optimizer(config: TrainConfig, groups: list[dict[str, object]]) -> torch.optim.Optimizer:
    name, rate = config.optimizer_used.name, config.optimizer_used.rate
    if name == "sgd":
        return torch.optim.SGD(groups, lr=rate, momentum=MOMENTUM)
    return (torch.optim.AdamW if name == "adamw" else torch.optim.Adam)(groups, lr=rate)


def _device(device: torch.device | str) -> torch.device:
    try:
        place = torch.device(device)
        torch.zeros(1, device=place).item()
    except (RuntimeError, AssertionError) as error:
        raise CollapseError(
            f"device={shorten(str(device))}: {_first_line(error)}; give cpu or a device of this machine"
        ) from None
    return place


@contextmanager
def interruptible() -> Iterator[Callable[[], None]]:
    """Yield a call that ends the work if Ctrl-C was pressed and the KeyboardInterrupt was lost.

    Python raises it wherever the main thread is: in a callback of torch or in a finaliser nobody passes it on. A caller
    with a handler of its own keeps it.
    """
    pressed: list[int] = []

    def press(number: int, frame: FrameType | None) -> None:
        pressed.append(number)
        signal.default_int_handler(number, frame)

    def heed() -> None:
        if pressed:
            raise KeyboardInterrupt

    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield heed
        return
    signal.signal(signal.SIGINT, press)
    try:
        yield heed
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def _as_if_alone() -> Iterator[None]:
    """Train the same whatever the caller has set: no gradients, another default type or device, mixed precision."""
    default, place = torch.get_default_dtype(), torch.get_default_device()
    usual = nullcontext() if place.type == "cpu" else torch.device("cpu")  # which makes every call slower
    with torch.inference_mode(False), torch.enable_grad(), usual, torch.autocast("cpu", enabled=False):
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(default)


@contextmanager
def _enough_memory() -> Iterator[None]:
    """Name what is too large; torch says so in several ways."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "allocate" not in str(error):
            raise
        raise CollapseError(
            f"network: larger than the memory ({_first_line(error)}); give a smaller one, smaller batches or fewer "
            "samples"
        ) from None


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[0] if len(lines[0]) <= 160 else lines[0][:159] + "…"
