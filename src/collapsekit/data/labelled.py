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
from collapsekit.validation import class_names, printable, shorten

Kind = Literal["images", "table", "text", "features"]
RawLabels = NDArray[Any] | Sequence[str]
Labels = list[int] | list[str]
Pair = tuple[NDArray[Any], RawLabels]

MAX_EXACT = 2**53
CHANNELS = (1, 3, 4)
WHOLE = re.compile(r"-?(0|[1-9][0-9]{0,17})")
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
# what pandas, R, SQL and the UCI archive write where a value is missing; compared in lower case
MISSING = frozenset(("", "na", "n/a", "#n/a", "<na>", "nan", "-nan", "null", "none", "nil", "?"))
KEEP = "label it or drop it; if it is a class, rename it, or give --keep-na where the command has it"


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
    worded : bool
        Whether the source itself names the classes, as labels that are words or as names beside whole numbers.
    sorted_words : bool
        Whether the order of the classes is only that of the sorted words.
    """

    inputs: NDArray[np.float32]
    labels: NDArray[np.int64]
    names: tuple[str, ...]
    test_inputs: NDArray[np.float32] | None
    test_labels: NDArray[np.int64] | None
    kind: Kind
    worded: bool
    sorted_words: bool

    def rows(self, size: int, names: Sequence[str] | None = None) -> tuple[NDArray[np.int64], tuple[str, ...]]:
        """Return where each class stands among the rows of a head, (K,), and the names of the rows.

        Classes are never renamed silently: names that a source brings are found among the rows' names. Only whole
        numbers without names take the rows' names, by order, or by number where some rows have no samples.

        Parameters
        ----------
        size : int
            Number of rows.
        names : sequence of str, optional
            One a row.

        Raises
        ------
        CollapseError
            If it is not known which row is which class.
        """
        given = class_names(names, size)
        if given is not None and (self.worded or set(self.names) <= set(given)):
            at = {name: k for k, name in enumerate(given)}
            lost = next((name for name in self.names if name not in at), None)
            if lost is not None:
                raise CollapseError(f"class_names: the label {shorten(lost)} is not among them; give the labels' names")
            return np.array([at[name] for name in self.names]), given
        if size == len(self.names):
            return np.arange(size), given or self.names
        numbers = [int(name) if name.isdecimal() else size for name in self.names]
        if self.worded or max(numbers) >= size:
            raise CollapseError(
                f"head: {size} rows for {len(self.names)} classes; give one row a class, labels that are its row "
                "numbers, or --class-names, one a row"
            )
        return np.array(numbers), given or tuple(map(str, range(size)))


def rows_of_others(
    others: LabelledData,
    training: LabelledData,
    rows: NDArray[np.int64],
    names: Sequence[str],
    *,
    argument: str = "held_out",
) -> NDArray[np.int64]:
    """Return the row of each class of held-out data that were read on their own: by name or number, never by order.

    Parameters
    ----------
    others, training : LabelledData
        Held-out and training data.
    rows, names : array, shape (K,), and sequence of str
        What ``training.rows`` returned.
    argument : str
        What an error calls the others.

    Raises
    ------
    CollapseError
        If a held-out label is neither a training label nor the name of a row.
    """
    at = {name: k for k, name in enumerate(names)} | dict(zip(training.names, rows.tolist(), strict=True))
    if [*map(str, rows)] == [*training.names]:  # numbers of rows, some without training samples
        at |= {str(k): k for k in range(len(names))}
    lost = next((name for name in others.names if name not in at), None)
    if lost is not None:
        raise CollapseError(
            f"{argument}: the label {shorten(printable(lost))} is no training label and no class name; drop its "
            "samples, or name it as in training"
        )
    return np.array([at[name] for name in others.names])


def assemble(
    inputs: NDArray[Any],
    labels: RawLabels,
    kind: Kind,
    *,
    names: Sequence[str] | None = None,
    held_out: Pair | None = None,
    keep_na: bool = False,
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
    keep_na : bool
        Whether words like NA, null and ? are classes like any other.

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
    _check_pair(inputs, labels, "")
    checked = _checked(labels, "labels", 0, keep_na, words=names is not None)
    values = _values(checked, names)
    test_inputs, test_labels = None, None
    if held_out is not None:
        kept, test_labels = _held_out(inputs, held_out, values, keep_na)
        test_inputs = _converted(kept, "held-out inputs")
    worded = isinstance(values[0], str)
    return LabelledData(
        inputs=_converted(inputs, "inputs"),
        labels=_codes(values, checked),
        names=class_names(list(map(str, values)) if names is None else names, len(values)) or (),
        test_inputs=test_inputs,
        test_labels=test_labels,
        kind=kind,
        worded=worded or names is not None,
        sorted_words=worded and names is None,
    )


def typed(labels: Sequence[str]) -> RawLabels:
    """Return labels of a text file as integers or floats if all of them are written so, otherwise as they are."""
    distinct = set(labels)
    if all(WHOLE.fullmatch(label) for label in distinct):
        return np.array([int(label) for label in labels], dtype=np.int64)
    if all(NUMBER.fullmatch(label) for label in distinct) and any(re.search("[.eE]", label) for label in distinct):
        return np.array([float(label) for label in labels])
    return labels


def is_missing(label: str, keep_na: bool) -> bool:
    """Return whether a label says that there is none; an empty one always does."""
    return not label.strip() if keep_na else label.strip().lower() in MISSING


def is_number(word: Any) -> bool:
    """Return whether `float` reads it."""
    try:
        float(word)
    except (TypeError, ValueError):
        return False
    return True


def _check_pair(inputs: NDArray[Any], labels: RawLabels, part: str) -> None:
    if isinstance(labels, np.ndarray) and labels.ndim != 1:
        raise CollapseError(f"{part}labels: shape {labels.shape}; give one label a sample, a vector")
    if inputs.ndim == 0 or len(inputs) != len(labels):
        raise CollapseError(
            f"{part}inputs: shape {inputs.shape} for {len(labels)} {part}labels; give one label a sample"
        )
    if inputs.dtype.kind not in "biuf":
        raise CollapseError(f"{part}inputs: dtype {shorten(str(inputs.dtype))}; give real numbers")
    if inputs.ndim < 2:
        raise CollapseError(f"{part}inputs: shape {inputs.shape}; give one row a sample, (N, d) or (N, C, H, W)")
    check_size(inputs.shape, 4, f"{part}inputs")


def _converted(inputs: NDArray[Any], name: str) -> NDArray[np.float32]:
    if inputs.ndim == 3:
        inputs = inputs[:, None]
    elif inputs.ndim == 4 and inputs.shape[3] in CHANNELS and inputs.shape[1] not in CHANNELS:
        inputs = np.moveaxis(inputs, 3, 1)
    with np.errstate(over="ignore", invalid="ignore"):  # what does not fit float32 is found and named below
        result = np.array(inputs, dtype=np.float32, order="C", copy=None)
    if inputs.dtype == np.uint8 and inputs.ndim >= 3:
        result /= np.float32(255)
    if not (np.isfinite(result.min()) and np.isfinite(result.max())):
        finite = np.isfinite(result.reshape(len(result), -1)).all(axis=1)
        raise CollapseError(
            f"{name}: sample {np.flatnonzero(~finite)[0]} holds NaN, infinity or a number beyond float32; "
            "remove the sample or fill the value in"
        )
    return result if result.flags.writeable else result.copy()


def _checked(labels: RawLabels, name: str, least: int, keep_na: bool, *, words: bool) -> Labels:
    """Whole numbers, or strings; strings that all are whole numbers stay words where classes are named by words."""
    if not isinstance(labels, np.ndarray) or labels.dtype.kind in "US":
        strings = _strings(labels, name, keep_na)
        labels = strings if words else typed(strings)
        if not isinstance(labels, np.ndarray):
            return strings
    if labels.dtype.kind not in "iuf":
        raise CollapseError(f"{name}: dtype {shorten(str(labels.dtype))}; give whole numbers from 0, or strings")
    wide = labels.astype(np.float64)
    bad = np.flatnonzero(~((wide >= least) & (wide <= MAX_EXACT) & (wide == np.floor(wide))))
    if bad.size:
        raise CollapseError(
            f"{name}: sample {bad[0]} has {labels[bad[0]]:g}; give whole numbers from 0, at most 2^53, or strings"
        )
    return [int(label) for label in wide]


def _strings(labels: RawLabels, name: str, keep_na: bool) -> list[str]:
    try:
        found = [str(label, "utf-8") if isinstance(label, bytes) else str(label) for label in list(labels)]
    except (UnicodeDecodeError, ValueError):  # bytes outside UTF-8, code points outside Unicode
        raise CollapseError(f"{name}: not UTF-8 text; give strings or whole numbers") from None
    for i, label in enumerate(found):
        if is_missing(label, keep_na):
            kind = f"the label {shorten(label)}, which counts as missing" if label.strip() else "an empty label"
            raise CollapseError(f"{name}: sample {i} has {kind}; {KEEP}")
    return found


def _values(labels: Labels, names: Sequence[str] | None) -> list[Any]:
    """The K label values in the order of the classes."""
    values: list[Any] = sorted(set(labels))
    if len(values) < 2:
        raise CollapseError(f"labels: all samples have {shorten(printable(str(values[0])))}; give at least two classes")
    if names is None:
        return values
    if not isinstance(values[0], str):
        if values[-1] < len(names) and len(values) < len(names):
            k = min(set(range(len(names))) - set(values))
            raise CollapseError(
                f"names: class {k}, {shorten(names[k])}, has no training sample; drop the name or add samples"
            )
        return values
    unused, unnamed = sorted(set(names) - set(values)), sorted(set(values) - set(names))
    if unused:
        raise CollapseError(f"names: {shorten(unused[0])} has no training sample; drop the name or add samples")
    if unnamed:
        raise CollapseError(f"names: the label {shorten(unnamed[0])} is not among them; add it")
    return list(names)


def _codes(values: list[Any], labels: Labels) -> NDArray[np.int64]:
    """The position of each label among the values, -1 where it is none of them."""
    at = {value: k for k, value in enumerate(values)}
    return np.array([at.get(label, -1) for label in labels])


def _held_out(
    inputs: NDArray[Any], held_out: Pair, values: list[Any], keep_na: bool
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    test_inputs, raw = held_out
    _check_pair(test_inputs, raw, "held-out ")
    if inputs.shape[1:] != test_inputs.shape[1:]:
        shapes = f"shape {test_inputs.shape[1:]} a sample, {inputs.shape[1:]} in training"
        raise CollapseError(f"held-out inputs: {shapes}; give both alike")
    if inputs.ndim >= 3 and (inputs.dtype == np.uint8) != (test_inputs.dtype == np.uint8):
        kinds = f"dtype {test_inputs.dtype}, {inputs.dtype} in training"
        raise CollapseError(f"held-out inputs: {kinds}; only uint8 is divided by 255, so give both alike")
    worded = isinstance(values[0], str)
    labels = _checked(raw, "held-out labels", -1, keep_na, words=worded)
    if isinstance(labels[0], str) != worded:
        raise CollapseError("held-out labels: strings and whole numbers mixed with the labels; give both alike")
    codes = _codes(values, labels)
    kept = codes >= 0
    unknown = [labels[i] for i in np.flatnonzero(~kept) if labels[i] != -1]
    if unknown:
        label = shorten(printable(str(unknown[0])))
        raise CollapseError(f"held-out labels: {label} has no training sample; remove its samples, or label them -1")
    if not kept.any():
        raise CollapseError("held-out labels: all are -1, unseen in training; leave the held-out set out")
    return (test_inputs, codes) if kept.all() else (test_inputs[kept], codes[kept])
