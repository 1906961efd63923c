"""Checks of arguments that several modules share: numpy arrays in, float64 arrays or a CollapseError out."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from collapsekit.errors import CollapseError

Array = NDArray[np.float64]
AnyArray = TypeVar("AnyArray", bound=NDArray[Any])
LARGEST_EXACT = 2**53
SMALLEST, LARGEST = 1e-300, 1e150
"""Of positive numbers: beyond, square roots and squares of them, or a few of them multiplied, leave float64."""
ROUNDED = 1e-9
"""By which shares given in decimals may miss a sum of 1."""
RANGE = f"give a number from {SMALLEST:g} to {LARGEST:g}"
# C0, DEL, C1; marks, overrides and isolates that turn the direction of a text; line ends; surrogates
UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ufff9-\ufffb\ufffe\uffff\ud800-\udfff]"
)


def numeric(name: str, value: ArrayLike) -> Array:
    """Return a fresh float64 array, or say that `value` is not numeric."""
    try:
        raw = np.asarray(value)
        if raw.dtype == object and all(isinstance(one, int) for one in raw.flat):  # whole numbers beyond 64 bits
            raw = raw.astype(np.float64)
        if raw.dtype.kind not in "iuf":
            raise TypeError
    except (TypeError, ValueError, OverflowError):
        raise CollapseError(f"{name}={shorten(value)}: give real numbers") from None
    return np.array(raw, dtype=np.float64)


def positive_number(name: str, value: Any, remedy: str) -> float:
    """Return `value` as a float if it is one finite number above zero."""
    number = numeric(name, value)
    if number.ndim or not (np.isfinite(number) and number > 0):
        raise CollapseError(f"{name}={shorten(value)}: must be one finite number above 0; {remedy}")
    if not SMALLEST <= number <= LARGEST:
        raise CollapseError(f"{name}={shorten(value)}: {RANGE}")
    return float(number)


def positive_vector(name: str, value: ArrayLike, num_classes: int, remedy: str) -> Array:
    """Return a read-only (K,) array of finite numbers above zero."""
    vector = numeric(name, value)
    if vector.shape != (num_classes,):
        raise CollapseError(f"{name}: shape {vector.shape}; expected one value a class, ({num_classes},); {remedy}")
    _refuse_first(name, vector, ~(np.isfinite(vector) & (vector > 0)), f"; must be finite and above 0; {remedy}")
    _refuse_first(name, vector, (vector < SMALLEST) | (vector > LARGEST), f"; {RANGE}")
    return frozen(vector)


def _refuse_first(name: str, values: Array, bad: NDArray[np.bool_], reason: str) -> None:
    """Refuse an array by the first of its bad entries, if there is one."""
    if bad.any():
        k = int(bad.argmax())
        raise CollapseError(f"{name}: class {k} has {values[k]:g}{reason}")


def positive_values(name: str, value: ArrayLike, remedy: str) -> Array:
    """Return one finite number above zero, or a list of them, as a read-only array of at least one."""
    vector = np.atleast_1d(numeric(name, value))
    if not vector.size:
        raise CollapseError(f"{name}=[]: give at least one number; {remedy}")
    return positive_vector(name, vector, vector.size, remedy)


def whole_number(name: str, value: Any, least: int, remedy: str) -> int:
    """Return `value` as an int if it is one whole number of at least `least` that float64 holds exactly."""
    if isinstance(value, int) and abs(value) > LARGEST_EXACT:  # numpy would say that it is no number
        raise CollapseError(f"{name}={shorten(value)}: must be at most 2**53; {remedy}")
    number = numeric(name, value)
    if number.ndim or not (number == np.floor(number) and least <= number <= LARGEST_EXACT):
        raise CollapseError(f"{name}={shorten(value)}: must be a whole number of at least {least}; {remedy}")
    return int(number)


def class_counts(value: ArrayLike | Mapping[str, int]) -> Array:
    """Return read-only (K,) samples per class: whole, finite, at least 1, at least two classes."""
    if isinstance(value, Mapping):
        value = list(value.values())
    counts = numeric("counts", value)
    if counts.ndim != 1 or counts.size < 2:
        raise CollapseError(f"counts={shorten(value)}: give one count a class, for at least two classes")
    bad = np.flatnonzero(~np.isfinite(counts) | (counts < 1) | (counts != np.floor(counts)))
    if bad.size:
        k = bad[0]
        remedy = "drop the class or give it samples" if counts[k] == 0 else "counts are whole numbers, at least 1"
        raise CollapseError(f"counts: class {k} has {counts[k]:g} samples; {remedy}")
    _refuse_first("counts", counts, counts >= LARGEST_EXACT, " samples; give counts below 2**53")
    return frozen(counts)


def whole_counts(name: str, value: ArrayLike) -> Array:
    """Return a read-only (T,) array of whole numbers, at least 1 each, at least one."""
    counts = numeric(name, value)
    if counts.ndim != 1 or not counts.size:
        raise CollapseError(f"{name}={shorten(value)}: give one count a type of samples")
    bad = np.flatnonzero(~((counts >= 1) & (counts < LARGEST_EXACT)) | (counts != np.floor(counts)))
    if bad.size:
        t = bad[0]
        raise CollapseError(f"{name}: type {t} has {counts[t]:g} samples; give whole numbers of at least 1")
    return frozen(counts)


def distributions(name: str, value: ArrayLike, size: int) -> Array:
    """Return a read-only (T, K) array whose rows are distributions, each class with a share of one of them."""
    rows = numeric(name, value)
    if rows.ndim != 2 or len(rows) != size or rows.shape[1] < 2:
        raise CollapseError(f"{name}: shape {rows.shape}; give one row a type, ({size}, K), for at least two classes")
    bad = np.flatnonzero(~((rows >= 0).all(axis=1) & (np.abs(rows.sum(axis=1) - 1) <= ROUNDED)))
    if bad.size:
        t = bad[0]
        raise CollapseError(
            f"{name}: type {t} has {shorten(rows[t].tolist())}; give shares of the classes that sum to 1"
        )
    empty = np.flatnonzero(rows.sum(axis=0) == 0)
    if empty.size:
        raise CollapseError(f"{name}: class {empty[0]} has no share of any type; drop the class or give it samples")
    return frozen(rows / rows.sum(axis=1, keepdims=True))


def class_names(value: Sequence[str] | None, num_classes: int) -> tuple[str, ...] | None:
    """Return K distinct names as a tuple, or None."""
    if value is None:
        return None
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise CollapseError(f"names={shorten(value)}: give a sequence of {num_classes} names")
    names = tuple(printable(str(name)) for name in value)
    if len(names) != num_classes:
        raise CollapseError(f"names: {len(names)} names for {num_classes} classes; give one a class")
    if len(set(names)) != num_classes:
        twice = Counter(names).most_common(1)[0][0]
        raise CollapseError(f"names: {shorten(twice)} stands for two classes; names must differ")
    return names


def printable(text: str) -> str:
    """Return `text` on one line; what steers a terminal or turns its text, and bytes outside UTF-8, is replaced."""
    return UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", re.sub(r"[\t\n\r]+", " ", text))


def known(value: Any) -> Any:
    """Return plain values in which what is no finite number is None, all the way down; tuples become lists."""
    if isinstance(value, dict):
        return {key: known(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [known(one) for one in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def frozen(array: AnyArray) -> AnyArray:
    """Return the array itself, read-only from now on."""
    array.flags.writeable = False
    return array


def short(name: str, most: int = 30) -> str:
    """Return a long name by its two ends, which tell it from others that begin alike."""
    return name if len(name) <= most else f"{name[: most // 2]}…{name[1 - most // 2 :]}"


def shorten(value: object, limit: int = 60) -> str:
    """Return `value` as one short line for a message."""
    text = " ".join(repr(value).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"
