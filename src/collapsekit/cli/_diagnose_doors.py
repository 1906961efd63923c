"""How stored features, a checkpoint or a run becomes a measured network for `collapsekit diagnose`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from collapsekit import CollapseError
from collapsekit.cli._inputs import Head, Penalties
from collapsekit.cli._reading import Reading
from collapsekit.data import LabelledData, read_head
from collapsekit.data.arrays import READERS
from collapsekit.data.files import one_line
from collapsekit.data.labelled import rows_of_others
from collapsekit.diagnosis import Diagnosis
from collapsekit.diagnosis import diagnose as find
from collapsekit.metrics import Measurement, features_of, measure_features
from collapsekit.recipe import LastLayer, Optimizer
from collapsekit.training import Run
from collapsekit.training._run_samples import run_samples
from collapsekit.training.models import build
from collapsekit.validation import shorten

CHECKPOINTS = (".pt", ".pth", ".safetensors")
TOGETHER = 256
"""Samples a forward pass."""

Pair = tuple[ArrayLike, ArrayLike]


@dataclass(frozen=True, eq=False)
class Found:
    """A measured network with its samples, and whatever else is known of it.

    `given` are arguments of `diagnose`, `note` and `assumed_order` sentences; `ambiguous` says whether the held-out
    labels alone do not tell their rows.
    """

    measured: Measurement
    given: Mapping[str, Any]
    note: str | None = None
    assumed_order: str | None = None
    ambiguous: bool = False

    def diagnosis(self, history: Mapping[str, Any] | None) -> Diagnosis:
        """Diagnose it, with a history of its training where it has none of its own."""
        past: dict[str, Any] = {} if history is None else {"history": history}
        return replace(find(self.measured, **self.given, **past), assumed_order=self.assumed_order)


@dataclass(frozen=True)
class Door:
    """What was given besides the training samples."""

    reading: Reading
    head: str | None
    held_out: str | None
    penalties: Penalties
    trained: Head

    def features(self, path: Path) -> Found:
        """Stored features and head."""
        try:
            known = self.reading.vectors(path, rather=", or the checkpoint with --model and --data")
        except CollapseError as error:
            told = f"{error}; or, of a checkpoint, --model module:function and --data PATH"
            raise CollapseError(told if path.suffix in CHECKPOINTS else str(error)) from None
        weight, bias = read_head(str(path) if self.head is None else self.head, required=self.head is not None)
        if weight is None:
            raise CollapseError("--head: missing; a diagnosis needs the output layer: give --head FILE")
        classes = _Classes(known, len(weight), self.reading)
        held_out, ambiguous = classes.held_out(self.held_out)
        return self._measured((known.inputs, classes.of_samples), weight, bias, classes, held_out, ambiguous)

    def checkpoint(self, path: Path, model: str, data: str) -> Found:
        """A network by its maker, tensors and data."""
        known, names = self.reading.load(data, "data"), self.reading.class_names
        size = len(known.names if names is None else names)
        network = _network(model, known.inputs.shape[1:], size)
        with one_line("checkpoint", str(path), "give a state dict, .pt or .safetensors"):
            tensors = _tensors(network, path)
            stored = _rows_stored(network, tensors, size)
            if stored != size and names is None:  # some classes have no sample among these data
                size, network = stored, _network(model, known.inputs.shape[1:], stored)
            _load(network, tensors)
        classes = _Classes(known, size, self.reading)
        found = features_of(network, _batches(known.inputs, classes.of_samples), self.head)
        held_out, _ = classes.held_out(self.held_out)
        tested = None if held_out is None else features_of(network, _batches(*held_out), self.head)[:2]
        return self._measured(found[:2], found.weight, found.bias, classes, tested)

    def _measured(
        self,
        samples: Pair,
        weight: Any,
        bias: Any,
        classes: _Classes,
        held_out: Pair | None,
        ambiguous: bool = False,
    ) -> Found:
        penalties = self.penalties
        counts = np.bincount(np.asarray(samples[1]), minlength=len(weight))
        loss = self.trained.made(penalties, np.maximum(counts, 1))
        measured = measure_features(*samples, weight, bias, names=classes.names, loss=loss)
        biased = measured.bias is not None
        problem = None
        if penalties.given and counts.all() and penalties.refusal(counts) is None:
            problem = self.trained.problem(penalties, counts, biased=biased)
        told = penalties.optimizer != "sgd" or penalties.learning_rate is not None or penalties.steps is not None
        given = {
            "samples": samples,
            "held_out": held_out,
            "problem": problem,
            "recipe": penalties.recipe if penalties.given else None,
            "last": LastLayer(penalties.feature_dim, biased, penalties.batchnorm_branches or 0),
            "optimizer": penalties.takes_steps if told else None,
        }
        order = self.reading.assumed(classes.known, len(weight))
        return Found(measured, given, assumed_order=order, ambiguous=ambiguous)


class _Classes:
    """Which row of the head each class is."""

    def __init__(self, known: LabelledData, size: int, reading: Reading) -> None:
        self.known, self.reading = known, reading
        self.rows, self.names = known.rows(size, reading.class_names)

    @property
    def of_samples(self) -> NDArray[np.int64]:
        return self.rows[self.known.labels]

    def held_out(self, path: str | None) -> tuple[tuple[NDArray[Any], NDArray[np.int64]] | None, bool]:
        """Held-out samples of a file, else those that came with the training samples; and whether they need names."""
        known = self.known
        if path is not None:
            other = self.reading.load(path, "held_out")
            numbered = [*map(str, self.rows)] == [*known.names]
            ambiguous = self.reading.class_names is None and other.names != known.names and not numbered
            return (other.inputs, rows_of_others(other, known, self.rows, self.names)[other.labels]), ambiguous
        if known.test_inputs is None or known.test_labels is None:
            return None, False
        return (known.test_inputs, self.rows[known.test_labels]), False


def of_run(run: Run) -> Found:
    """Return what a run of train has measured, and its samples where they are still there."""
    optimizer = run.config.optimizer_used
    steps = [entry["step"] for entry in run.history]
    grid = np.linspace(steps[0], steps[-1], len(steps)) if steps else np.empty(0)
    losses = np.interp(grid, steps, [entry["loss"] for entry in run.history]) if steps else grid
    samples = held_out = note = None
    try:
        found, tested = run_samples(run)
        samples, held_out = found[:2], None if tested is None else tested[:2]
    except CollapseError as error:
        note = f"Only what the run has measured is diagnosed: {error}."
    last = steps[-1] if steps else None
    given = {
        "samples": samples,
        "held_out": held_out,
        "problem": run.problem,
        "recipe": run.recipe,
        "last": run.last_layer,
        "optimizer": Optimizer(optimizer.name, optimizer.learning_rate, last, "cosine", momentum=optimizer.momentum),
        "history": {"loss": losses.tolist()},
    }
    return Found(run.measured, given, note)


def _batches(inputs: NDArray[Any], labels: NDArray[np.int64]) -> list[tuple[Tensor, Tensor]]:
    parts = (torch.split(torch.from_numpy(values), TOGETHER) for values in (inputs, labels))
    return list(zip(*parts, strict=True))


def _network(model: str, shape: tuple[int, ...], size: int) -> nn.Module:
    if ":" not in model:
        raise CollapseError(f"--model={shorten(model)}: give module:function, which returns a torch.nn.Module")
    try:
        return build(model, shape, size, hidden=(), feature_dim=0, width=0, batchnorm=False)
    except CollapseError as error:
        raise CollapseError(str(error).replace("network=", "--model=", 1)) from None


def _tensors(network: nn.Module, path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file by the network's own keys; nothing in the file runs."""
    suffix = path.suffix.lower()
    if suffix not in CHECKPOINTS:
        raise CollapseError(f"no state dict has the ending {shorten(suffix)}; give .pt, .pth or .safetensors")
    tensors = {key: torch.from_numpy(np.array(value)) for key, value in READERS[suffix](path, list).items()}
    own = set(network.state_dict())
    for prefix in ("module.", "model.", "_orig_mod."):  # of DistributedDataParallel, Lightning and torch.compile
        if not own & set(tensors):
            tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return tensors


def _rows_stored(network: nn.Module, tensors: Mapping[str, Tensor], size: int) -> int:
    """Return of how many classes the stored head is: the first dimension in which alone it differs from the network."""
    own = {key: value.shape for key, value in network.state_dict().items()}
    other = [(own[key], value.shape) for key, value in tensors.items() if key in own and own[key] != value.shape]
    fits = all(len(a) and a[0] == size and a[1:] == b[1:] for a, b in other)
    found = {b[0] for _, b in other if len(b)}
    return found.pop() if fits and len(found) == 1 else size


def _load(network: nn.Module, tensors: dict[str, Tensor]) -> None:
    own = set(network.state_dict())
    missing, strange = sorted(own - set(tensors)), sorted(set(tensors) - own)
    if missing or strange:
        kind, key = ("lacks", missing[0]) if missing else ("holds", strange[0])
        raise CollapseError(f"it {kind} {shorten(key)}, unlike the network that --model makes; give its own checkpoint")
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        reason = " ".join(str(error).split()[-20:])
        raise CollapseError(f"other shapes than the network that --model makes ({reason}); give its own") from None
