"""Training data: a class-imbalanced training set and a balanced held-out set, both as tensors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from collapsekit import profiles
from collapsekit.errors import CollapseError
from collapsekit.training.recipe import TrainConfig
from collapsekit.validation import Array, class_names, shorten

HELD_OUT_PER_CLASS = 20


@dataclass(frozen=True, eq=False)
class Split:
    """A training set, a held-out set and the names of the classes.

    Attributes
    ----------
    train_inputs, test_inputs : Tensor, shape (N, ...), (M, ...)
        float32.
    train_labels, test_labels : Tensor, shape (N,), (M,)
        int64, in [0, K).
    names : tuple of str
        K class names.
    """

    train_inputs: Tensor
    train_labels: Tensor
    test_inputs: Tensor
    test_labels: Tensor
    names: tuple[str, ...]

    @property
    def counts(self) -> Array:
        """Training samples of each class, (K,): counted, never assumed."""
        return torch.bincount(self.train_labels, minlength=len(self.names)).double().numpy()


def load_split(config: TrainConfig) -> Split:
    """Return the data of a run: held-out samples first, then as many training samples as the profile asks for.

    Parameters
    ----------
    config : TrainConfig
        Its `data`, `profile`, `ratio`, `largest` and `seed` decide.

    Returns
    -------
    Split

    Raises
    ------
    CollapseError
        If the data set is unknown or a class has too few samples for the profile.

    Examples
    --------
    >>> split = load_split(TrainConfig(ratio=10))
    >>> split.counts
    array([150., 116.,  90.,  70.,  54.,  42.,  32.,  25.,  19.,  15.])
    """
    if config.data != "digits":
        raise CollapseError(f"data={shorten(config.data)}: unknown; give digits")
    inputs, labels, names = _digits()
    rng = np.random.default_rng(config.seed)
    members = [rng.permutation(np.flatnonzero(labels == k)) for k in range(len(names))]
    available = np.array([len(m) - HELD_OUT_PER_CLASS for m in members])
    counts = profile_counts(config, available)
    test = np.concatenate([m[:HELD_OUT_PER_CLASS] for m in members])
    train = np.concatenate(
        [m[HELD_OUT_PER_CLASS : HELD_OUT_PER_CLASS + int(n)] for m, n in zip(members, counts, strict=True)]
    )
    if config.class_names is not None:
        names = class_names(config.class_names, len(names)) or names
    return Split(*_tensors(inputs, labels, train), *_tensors(inputs, labels, test), names)


def profile_counts(config: TrainConfig, available: NDArray[np.int64]) -> Array:
    """Return the training counts that the profile asks for, (K,), checked against what each class has."""
    size = len(available)
    largest = config.largest or _default_largest(config, available)
    if config.profile == "as-is":
        counts = np.minimum(available, config.largest or available.max()).astype(np.float64)
    elif config.profile == "paper":
        counts = profiles.paper(largest, size)
    else:
        smallest = max(1, round(largest / config.ratio))
        profile = profiles.long_tail if config.profile == "long-tail" else profiles.step
        counts = profile(largest, smallest, size)
    short = np.flatnonzero(counts > available)
    if short.size:
        k = short[0]
        raise CollapseError(
            f"largest={largest}: class {k} has {available[k]} training samples, the profile asks for {counts[k]:.0f}; "
            f"give largest={int(available.min())} or less"
        )
    return counts


def _default_largest(config: TrainConfig, available: NDArray[np.int64]) -> int:
    """The rarest class's samples, rounded down to a multiple of 10 where that leaves some."""
    least = int(available.min())
    return least // 10 * 10 or least


def _digits() -> tuple[NDArray[np.float32], NDArray[np.int64], tuple[str, ...]]:
    from sklearn.datasets import load_digits

    inputs, labels = load_digits(return_X_y=True)
    return (inputs / 16).astype(np.float32), labels.astype(np.int64), tuple(str(k) for k in range(10))


def _tensors(inputs: NDArray[np.float32], labels: NDArray[np.int64], rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(inputs[rows]), torch.from_numpy(labels[rows])
