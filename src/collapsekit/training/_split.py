"""Training data: a class-imbalanced training set and a held-out set, both as tensors."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from collapsekit import profiles
from collapsekit.data import read
from collapsekit.errors import CollapseError
from collapsekit.training._config import TrainConfig
from collapsekit.validation import Array

HELD_OUT_PER_CLASS, HELD_OUT_SHARE = 20, 0.2
"""At most so many samples of a class, and at most this share of it, are held out where the source brings none."""

Rows = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Split:
    """A training set, a held-out set and the names of the classes.

    Attributes
    ----------
    train_inputs, test_inputs : Tensor, shape (N, ...), (M, ...)
        float32. M may be 0.
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

    @property
    def training_checksum(self) -> int:
        """Of the training set alone: what runs stored before the held-out set and the names were in `checksum`."""
        return _crc(_crc(0, self.train_inputs), self.train_labels)

    @property
    def checksum(self) -> int:
        """Of training set, held-out set and names: whether a run may go on with them."""
        known = _crc(_crc(self.training_checksum, self.test_inputs), self.test_labels)
        return zlib.crc32("\0".join(self.names).encode(errors="surrogatepass"), known)


def load_split(config: TrainConfig) -> Split:
    """Return the data of a run: held-out samples first, then as many training samples as the profile asks for.

    Where the source brings a held-out set of its own, that is used; otherwise 20 samples of each class are held out,
    or a fifth of it if that is fewer. The columns of a table are standardised by the training set.

    Parameters
    ----------
    config : TrainConfig
        Its `data`, `label_column`, `profile`, `ratio`, `largest`, `class_names` and `seed` decide.

    Returns
    -------
    Split

    Raises
    ------
    CollapseError
        If the data cannot be read or a class has too few samples for the profile.

    Examples
    --------
    >>> split = load_split(TrainConfig(ratio=10))
    >>> split.counts
    array([150., 116.,  90.,  70.,  54.,  42.,  32.,  25.,  19.,  15.])
    """
    data = read(config.data, label_column=config.label_column)
    rows, names = data.rows(len(data.names), config.class_names)
    labels = rows[data.labels]
    rng = np.random.default_rng(config.seed)
    members = [rng.permutation(np.flatnonzero(labels == k)) for k in range(len(names))]
    share = HELD_OUT_SHARE if data.test_inputs is None else 0.0
    held_out = [min(HELD_OUT_PER_CLASS, int(share * len(m))) for m in members]
    counts = profile_counts(config, np.array([len(m) - n for m, n in zip(members, held_out, strict=True)]))
    train = np.concatenate([m[n : n + int(c)] for m, n, c in zip(members, held_out, counts, strict=True)])
    test = np.concatenate([m[:n] for m, n in zip(members, held_out, strict=True)])
    train_inputs = data.inputs[train]
    if data.test_inputs is None or data.test_labels is None:
        test_inputs, test_labels = data.inputs[test], labels[test]
    else:
        test_inputs, test_labels = data.test_inputs, rows[data.test_labels]
    if data.kind == "table":
        train_inputs, test_inputs = _standardised(train_inputs, test_inputs)
    return Split(
        torch.from_numpy(train_inputs),
        torch.from_numpy(labels[train]),
        torch.from_numpy(test_inputs),
        torch.from_numpy(test_labels),
        names,
    )


def profile_counts(config: TrainConfig, available: Rows) -> Array:
    """Return the training counts that the profile asks for, (K,), checked against what each class has."""
    size, profile, least = len(available), config.profile_used, int(available.min())
    largest = config.largest or least // 10 * 10 or least  # a multiple of 10 where that leaves some
    if profile == "as-is":
        counts = np.minimum(available, config.largest or available.max()).astype(np.float64)
    elif profile == "paper":
        counts = profiles.paper(largest, size)
    else:
        smallest = max(1, round(largest / config.ratio))
        counts = (profiles.long_tail if profile == "long-tail" else profiles.step)(largest, smallest, size)
    short = np.flatnonzero(counts > available)
    if short.size:
        k = short[0]
        raise CollapseError(
            f"largest={largest}: class {k} has {available[k]} training samples, the profile asks for {counts[k]:.0f}; "
            f"give largest={least} or less"
        )
    return counts


def _crc(before: int, values: Tensor) -> int:
    return zlib.crc32(values.contiguous().numpy().data, before)


def _standardised(train: NDArray[np.float32], test: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
    """Columns of mean 0 and deviation 1 over the training set; constant columns become 0."""
    mean, deviation = train.mean(axis=0, dtype=np.float64), train.std(axis=0, dtype=np.float64)
    scale = np.where(deviation > 0, deviation, 1.0)
    return tuple(((part - mean) / scale).astype(np.float32) for part in (train, test))
