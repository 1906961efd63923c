"""What is done with one file of features, in this process or another; results are numpy's, so that they travel."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from collapsekit.data.files import one_line
from collapsekit.data.shards import blocks, label_blocks, opened
from collapsekit.errors import CollapseError
from collapsekit.losses import Loss
from collapsekit.metrics._metric import NeuralCollapse
from collapsekit.metrics.batches import as_rows
from collapsekit.metrics.decisions import PLAIN
from collapsekit.metrics.moments import LARGEST_SCATTER_BYTES, ClassMoments, Precision, Within
from collapsekit.validation import Array

BLOCK_BYTES = 16 * 2**20
"""Features and logits of a block of rows as float64; the metric's temporaries are a few times as much."""

Tell = Callable[[float], object]
Names = tuple[str, ...] | None


def silent(share: float) -> None:
    """Tell nobody how far a job is: that is in another process."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What every job knows: how a file is read, and the head (K, d), loss and centres (K, d) to measure it with."""

    labels: str | None
    ignore_index: int
    names: tuple[str, ...] | None
    weight: Array | None
    bias: Array | None
    within: Within | None
    precision: Precision
    num_classes: int | None = None
    dim: int = 0
    loss: Loss = PLAIN
    centres: Array | None = None

    @property
    def classes(self) -> int:
        """K, once it is known."""
        assert self.num_classes is not None
        return self.num_classes

    @property
    def head(self) -> tuple[Tensor | None, Tensor | None]:
        """Weight and bias."""
        weight, bias = (None if part is None else torch.from_numpy(part) for part in (self.weight, self.bias))
        return weight, bias

    def metric(self) -> NeuralCollapse:
        """Return an accumulator without samples that knows the centres."""
        metric = NeuralCollapse(
            self.classes,
            self.dim,
            within=self.within or ("full" if 8 * self.dim**2 <= LARGEST_SCATTER_BYTES else "trace"),
            precision=self.precision,
            loss=self.loss,
            ignore_index=self.ignore_index,
        )
        if self.centres is not None:
            seen = np.flatnonzero(np.isfinite(self.centres).all(axis=1))
            metric.update(self.centres[seen], seen)  # the mean of one sample is that sample
            metric.use_centres()
            metric.reset()
        return metric

    def rows(self, shape: tuple[int, ...]) -> int:
        """Return how many rows of an array of features are a block."""
        width = self.dim + (0 if self.weight is None else self.classes)
        return max(1, BLOCK_BYTES // (8 * math.prod(shape[1:-1]) * width))


def survey(path: Path, plan: Plan, tell: Tell = silent) -> tuple[int, int, int, Names]:
    """Job: return rows, width, the largest label (-1 where it is not asked for) and names of a file."""
    with one_line("shard", str(path)), opened(path, plan.labels) as shard:
        largest = -1
        if plan.num_classes is None:
            for y in label_blocks(shard, path.name, plan.names or shard.names):
                largest = max(largest, int(y.max(where=y != plan.ignore_index, initial=-1)))
        return shard.shape[0], shard.shape[-1], largest, shard.names


def class_means(path: Path, plan: Plan, tell: Tell = silent) -> NDArray[np.float64]:
    """Job: return the state of a file's moments without scatter."""
    moments = ClassMoments(plan.classes, plan.dim, within="trace", precision=plan.precision)

    def update(features: NDArray[Any], labels: NDArray[np.int64]) -> None:
        x, y, _ = as_rows(features, labels, None, plan.ignore_index)
        moments.update(x, y)

    _read(path, plan, update, tell)
    return moments.state.numpy()


def everything(path: Path, plan: Plan, tell: Tell = silent) -> tuple[dict[str, Any], Names]:
    """Job: return the state of an accumulator of a file's samples, and the names that the file brings.

    The state is in numpy's arrays: torch would hand its tensors over in memory that dies with the worker.
    """
    metric = plan.metric()
    names = _read(path, plan, lambda features, labels: metric.update(features, labels, *plan.head), tell)
    state = metric.metric_state
    return {key: _packed(value) for key, value in state.items()}, names


def _packed(value: Tensor | list[Tensor]) -> Any:
    if isinstance(value, Tensor):
        return value.numpy()
    return [torch.cat(value).numpy()] if value else []


def _read(path: Path, plan: Plan, update: Callable[[NDArray[Any], NDArray[np.int64]], None], tell: Tell) -> Names:
    """Hand over a file's features and labels block by block; return its names."""
    with one_line("shard", str(path)), opened(path, plan.labels) as shard:
        size, width = shard.shape[0], shard.shape[-1]
        if size and width != plan.dim:
            raise CollapseError(f"features: width {width}; expected {plan.dim}, that of the head and the other shards")
        done = 0
        for start, x, y in blocks(shard, path.name, plan.rows(shard.shape), plan.names or shard.names):
            _check_range(y, start, plan)
            try:
                update(x, y)
            except CollapseError:
                _name_sample(x, y, start, plan)
                raise
            done += len(x)
            tell(done / size)
        return shard.names


def _check_range(labels: NDArray[np.int64], start: int, plan: Plan) -> None:
    bad = ((labels < 0) | (labels >= plan.classes)) & (labels != plan.ignore_index)
    if bad.any():
        i = int(bad.argmax())
        raise CollapseError(
            f"labels: sample {start + i} has {labels.flat[i]}; expected 0 to {plan.classes - 1}, or "
            f"{plan.ignore_index} for what does not count: number the classes from 0, in the order of the head's rows"
        )


def _name_sample(features: NDArray[Any], labels: NDArray[np.int64], start: int, plan: Plan) -> None:
    """Refuse features that are not finite, with the sample's number in the file."""
    bad = ~np.isfinite(features).all(axis=-1) & (labels != plan.ignore_index)
    if bad.any():
        i = int(bad.argmax())
        row = features.reshape(-1, features.shape[-1])[i]
        raise CollapseError(
            f"features: sample {start + i} holds {row[~np.isfinite(row)][0]}; drop the sample, or give it the label "
            f"{plan.ignore_index}, which does not count"
        )
