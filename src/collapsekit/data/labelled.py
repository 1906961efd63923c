"""LabelledData, and the checks that every source passes: real finite inputs, labels mapped to 0 ... K-1, names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from collapsekit.data.files import check_size
from collapsekit.errors import CollapseError
from collapsekit.validation import printable, shorten

Kind = Literal["images", "table", "text", "features"]
RawLabels = NDArray[Any] | Sequence[str]
Labels = NDArray[np.int64] | list[str]
Pair = tuple[NDArray[Any], RawLabels]

MAX_EXACT = 2**53
CHANNELS = (1, 3, 4)
WHOLE = re.compile(r"-?(0|[1-9][0-9]{0,17})")
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


@dataclass(frozen=True, eq=False)
class LabelledData:
    """Samples with labels, as a source holds them, and its own held-out samples if it brings any.

    Attributes
    ----------
    inputs : ndarray, shape (N, ...)
        float32, finite, C-contiguous; images are (N, channels, height, width) in [0, 1].
    labels : ndarray, shape (N,)
        int64, in [0, K); every class has at least one sample.
    names : tuple of str
        K distinct class names.
    test_inputs, test_labels : ndarray, shape (M, ...), (M,), or None
        The same for the held-out set.
    kind : {"images", "table", "text", "features"}
        What the inputs are.
    """

    inputs: NDArray[np.float32]
    labels: NDArray[np.int64]
    names: tuple[str, ...]
    test_inputs: NDArray[np.float32] | None
    test_labels: NDArray[np.int64] | None
    kind: Kind


def assemble(
    inputs: NDArray[Any],
    labels: RawLabels,
    kind: Kind,
    *,
    names: Sequence[str] | None = None,
    held_out: Pair | None = None,
) -> LabelledData:
    """Return checked and converted data.

    Parameters
    ----------
    inputs : ndarray, shape (N, ...)
        Any real dtype. In three or more dimensions uint8 is divided by 255; (N, H, W) becomes (N, 1, H, W);
        (N, H, W, C) becomes (N, C, H, W) if C is 1, 3 or 4 and the second dimension is none of these.
    labels : ndarray or sequence of str, shape (N,)
        Whole numbers from 0 of any dtype, or strings; mapped to the positions of their sorted values.
    kind : {"images", "table", "text", "features"}
        What the inputs are.
    names : sequence of str, optional
        One a class, in the order of sorted integer labels; string labels must be these names. Left out: the values.
    held_out : tuple, optional
        Inputs and labels of a held-out set. Samples with the integer label -1 (a class unseen in training) are
        left out; every other label must occur among `labels`.

    Returns
    -------
    LabelledData

    Raises
    ------
    CollapseError
        If inputs or labels are anything else.

    Examples
    --------
    >>> data = assemble(np.zeros((3, 2)), np.array([7, 3, 7]), "features")
    >>> data.labels, data.names
    (array([1, 0, 1]), ('3', '7'))
    """
    _same_length(inputs, labels, "inputs", "labels")
    _real(inputs, "inputs")
    checked = _checked(labels, "labels", least=0)
    values = _values(checked, names)
    test_inputs, test_labels = None, None
    if held_out is not None:
        kept, test_labels = _held_out(inputs, held_out, values)
        test_inputs = _converted(kept, "held-out inputs")
    return LabelledData(
        inputs=_converted(inputs, "inputs"),
        labels=_codes(values, checked),
        names=_shown(values if names is None else names),
        test_inputs=test_inputs,
        test_labels=test_labels,
        kind=kind,
    )


def typed(labels: list[str]) -> RawLabels:
    """Return labels of a text file as integers or floats if all of them are written so, otherwise as they are."""
    distinct = set(labels)
    if all(WHOLE.fullmatch(label) for label in distinct):
        return np.array([int(label) for label in labels], dtype=np.int64)
    if all(NUMBER.fullmatch(label) for label in distinct) and any(re.search("[.eE]", label) for label in distinct):
        return np.array([float(label) for label in labels])
    return labels


def _same_length(inputs: NDArray[Any], labels: RawLabels, inputs_name: str, labels_name: str) -> None:
    if isinstance(labels, np.ndarray) and labels.ndim != 1:
        raise CollapseError(f"{labels_name}: shape {labels.shape}; give one label a sample, a vector")
    if inputs.ndim == 0 or len(inputs) != len(labels):
        shape = inputs.shape
        raise CollapseError(f"{inputs_name}: shape {shape} for {len(labels)} {labels_name}; give one label a sample")


def _real(inputs: NDArray[Any], name: str) -> None:
    if inputs.dtype.kind not in "biuf":
        raise CollapseError(f"{name}: dtype {shorten(str(inputs.dtype))}; give real numbers")
    if inputs.ndim < 2:
        raise CollapseError(f"{name}: shape {inputs.shape}; give one row a sample, (N, d) or (N, C, H, W)")
    check_size(inputs.shape, 4, name)


def _converted(inputs: NDArray[Any], name: str) -> NDArray[np.float32]:
    scaled = inputs.dtype == np.uint8 and inputs.ndim >= 3
    with np.errstate(over="ignore", invalid="ignore"):  # what does not fit float32 is found and named below
        result = np.array(_channels_first(inputs), dtype=np.float32, order="C", copy=None)
    if scaled:
        result /= np.float32(255)
    if not (np.isfinite(result.min()) and np.isfinite(result.max())):
        finite = np.isfinite(result.reshape(len(result), -1)).all(axis=1)
        raise CollapseError(
            f"{name}: sample {np.flatnonzero(~finite)[0]} holds NaN, infinity or a number beyond float32; "
            "remove the sample or fill the value in"
        )
    return result


def _channels_first(inputs: NDArray[Any]) -> NDArray[Any]:
    if inputs.ndim == 3:
        return inputs[:, None]
    if inputs.ndim == 4 and inputs.shape[3] in CHANNELS and inputs.shape[1] not in CHANNELS:
        return np.moveaxis(inputs, 3, 1)
    return inputs


def _checked(labels: RawLabels, name: str, least: int) -> Labels:
    if not isinstance(labels, np.ndarray):
        return _strings(list(labels), name)
    if labels.dtype.kind in "US":
        return _strings(_decoded(labels, name), name)
    if labels.dtype.kind not in "iuf":
        raise CollapseError(f"{name}: dtype {shorten(str(labels.dtype))}; give whole numbers from 0, or strings")
    wide = labels.astype(np.float64)
    bad = np.flatnonzero(~((wide >= least) & (wide <= MAX_EXACT) & (wide == np.floor(wide))))
    if bad.size:
        raise CollapseError(
            f"{name}: sample {bad[0]} has {labels[bad[0]]:g}; give whole numbers from 0, at most 2^53, or strings"
        )
    return labels.astype(np.int64)


def _decoded(labels: NDArray[Any], name: str) -> list[str]:
    try:
        return [str(label, "utf-8") if isinstance(label, bytes) else label for label in labels.tolist()]
    except (UnicodeDecodeError, ValueError):  # bytes outside UTF-8, code points outside Unicode
        raise CollapseError(f"{name}: not UTF-8 text; give strings or whole numbers") from None


def _strings(labels: list[str], name: str) -> list[str]:
    empty = next((i for i, label in enumerate(labels) if not label.strip()), None)
    if empty is not None:
        raise CollapseError(f"{name}: sample {empty} has an empty label; label it or remove it")
    return labels


def _values(labels: Labels, names: Sequence[str] | None) -> Labels:
    """The K label values in the order of the classes."""
    values: Labels = sorted(set(labels)) if isinstance(labels, list) else np.unique(labels)
    if len(values) < 2:
        raise CollapseError(f"labels: all samples have {shorten(_shown(values)[0])}; give at least two classes")
    if names is None:
        return values
    if isinstance(values, list):
        return _named_values(values, names)
    if len(names) != len(values):
        _explain_missing(values, names)
    return values


def _named_values(values: list[str], names: Sequence[str]) -> list[str]:
    unused, unnamed = sorted(set(names) - set(values)), sorted(set(values) - set(names))
    if unused:
        raise CollapseError(f"names: {shorten(unused[0])} has no training sample; drop the name or add samples")
    if unnamed:
        raise CollapseError(f"names: the label {shorten(unnamed[0])} is not among them; add it")
    return list(names)


def _explain_missing(values: NDArray[np.int64], names: Sequence[str]) -> None:
    absent = sorted(set(range(len(names))) - set(values.tolist()))
    if absent and values[-1] < len(names):
        k = absent[0]
        raise CollapseError(
            f"names: class {k}, {shorten(names[k])}, has no training sample; drop the name or add samples"
        )
    raise CollapseError(f"names: {len(names)} names for {len(values)} classes; give one a class")


def _codes(values: Labels, labels: Labels) -> NDArray[np.int64]:
    """The position of each label among the values, -1 where it is none of them."""
    if isinstance(values, list):
        index = {value: k for k, value in enumerate(values)}
        return np.fromiter((index.get(str(label), -1) for label in labels), np.int64, len(labels))
    where = np.minimum(np.searchsorted(values, labels), len(values) - 1)
    return np.where(values[where] == labels, where, -1).astype(np.int64)


def _held_out(inputs: NDArray[Any], held_out: Pair, values: Labels) -> tuple[NDArray[Any], NDArray[np.int64]]:
    test_inputs, raw = held_out
    _same_length(test_inputs, raw, "held-out inputs", "held-out labels")
    _real(test_inputs, "held-out inputs")
    _comparable(inputs, test_inputs)
    labels = _checked(raw, "held-out labels", least=-1)
    if isinstance(labels, list) != isinstance(values, list):
        raise CollapseError("held-out labels: strings and whole numbers mixed with the labels; give both alike")
    codes = _codes(values, labels)
    unseen = np.zeros(len(codes), bool) if isinstance(labels, list) else labels == -1
    unknown = np.flatnonzero((codes < 0) & ~unseen)
    if unknown.size:
        label = shorten(_shown(labels[unknown[0] : unknown[0] + 1])[0])
        raise CollapseError(f"held-out labels: {label} has no training sample; remove its samples, or label them -1")
    if unseen.all():
        raise CollapseError("held-out labels: all are -1, unseen in training; leave the held-out set out")
    return (test_inputs[~unseen], codes[~unseen]) if unseen.any() else (test_inputs, codes)


def _comparable(inputs: NDArray[Any], test_inputs: NDArray[Any]) -> None:
    if inputs.shape[1:] != test_inputs.shape[1:]:
        shapes = f"shape {test_inputs.shape[1:]} a sample, {inputs.shape[1:]} in training"
        raise CollapseError(f"held-out inputs: {shapes}; give both alike")
    if inputs.ndim >= 3 and (inputs.dtype == np.uint8) != (test_inputs.dtype == np.uint8):
        kinds = f"dtype {test_inputs.dtype}, {inputs.dtype} in training"
        raise CollapseError(f"held-out inputs: {kinds}; only uint8 is divided by 255, so give both alike")


def _shown(values: Labels | Sequence[str]) -> tuple[str, ...]:
    """The values as distinct names that can be printed."""
    names = tuple(printable(str(value)) for value in values)
    if len(set(names)) != len(names):
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise CollapseError(f"names: {shorten(twice)} stands for two classes; rename one")
    return names
