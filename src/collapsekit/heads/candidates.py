"""Which of a file's matrices is the head: named by the user, called like one, or the only one."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from numpy.typing import NDArray

from collapsekit.data.arrays import LAYERS
from collapsekit.errors import CollapseError
from collapsekit.validation import printable, short

HEADS = (*LAYERS, "lm_head", "cls", "score", "output_layer", "predictions", "_fc", "last_linear", "out_proj")
WEIGHT = re.compile(r"(?:^|[._/])(weight|kernel|W|w)(?::0)?$")
BIAS = {"weight": ("bias",), "kernel": ("bias",), "W": ("b", "bias"), "w": ("b", "bias")}
OTHERS = re.compile(r"embed|token_type|position|pooler|(?:^|[._/])(?:wte|wpe)(?:$|[._/])", re.IGNORECASE)
"""Layers that have a row a word or place, or pool: never taken for a head unless they are named."""
SAMPLES = {"features": "labels", "X": "y"}
"""Arrays of samples and their labels: a file of features holds no head by them."""
LISTED = 8


@dataclass(frozen=True)
class Candidate:
    """A matrix that may be a head: its layer, its key and its bias' key, (K, d), and whether it is stored as (d, K)."""

    layer: str
    key: str
    bias: str | None
    shape: tuple[int, int]
    turned: bool = False

    def __str__(self) -> str:
        return f"{printable(short(self.layer, 40))!r} ({self.shape[0]} × {self.shape[1]})"


def candidates(shapes: Mapping[str, Sequence[int]]) -> list[Candidate]:
    """Return every matrix, or 1×1 convolution, with its bias if there is one; those of a single row, too."""
    found = []
    for key, shape in shapes.items():
        if SAMPLES.get(key) in shapes:
            continue
        sizes = tuple(int(size) for size in shape)
        mark = WEIGHT.search(key)
        turned = mark is not None and mark[1] == "kernel"  # Keras and Flax store inputs first, and windows before
        if len(sizes) < 2 or min(sizes) < 1 or prod(sizes[:-2] if turned else sizes[2:]) != 1:
            continue
        layer = key[: mark.start()] if mark else key
        size, dim = sizes[:-3:-1] if turned else sizes[:2]
        found.append(Candidate(layer, key, _bias(key, mark, shapes, size), (size, dim), turned))
    return found


def _bias(key: str, mark: re.Match[str] | None, shapes: Mapping[str, Sequence[int]], size: int) -> str | None:
    if mark is None:
        return None
    names = [key[: mark.start(1)] + name + key[mark.end(1) :] for name in BIAS[mark[1]]]
    return next((name for name in names if tuple(shapes.get(name, ())) == (size,)), None)


def choose(found: Sequence[Candidate], head: str | None, size: int | None = None) -> Candidate:
    """Return the head.

    Raises
    ------
    CollapseError
        If none or several may be it, or it has one row; the message lists them.
    """
    if all(one.shape[0] < 2 for one in found):
        raise CollapseError("it holds no matrix with a row a class; give the file that holds the output layer")
    if head is not None:
        named = [one for one in found if head in (one.layer, one.key)]
        if not named:
            raise CollapseError(f"no matrix {printable(short(head))!r}; --head: one of {listed(found)}")
        return _with_classes(named[0])
    likely = [one for one in found if not OTHERS.search(one.layer)]
    fitting = [one for one in likely if one.shape[0] == size] if size is not None else []
    called = [one for one in likely if re.split(r"[./]", one.layer)[-1] in HEADS or not one.layer]
    alone = likely if len(found) == 1 and size in (None, found[0].shape[0]) else []
    for few in ([one for one in called if one in fitting], fitting, called, alone):
        if len(few) == 1:
            return _with_classes(few[0])
    raise CollapseError(f"no matrix is sure to be the head; name one with --head: {listed(called or found)}")


def _with_classes(found: Candidate) -> Candidate:
    if found.shape[0] < 2:
        raise CollapseError(f"{found} has a single row, no two classes; give --head another, of a row a class")
    return found


def listed(found: Sequence[Candidate]) -> str:
    """Return the last few candidates, where heads stand, in words."""
    return ", ".join(map(str, found[-LISTED:])) + (f" and {len(found) - LISTED} more" if len(found) > LISTED else "")


def load(found: Candidate, read: Callable[[str], NDArray[Any]]) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Return weight (K, d) and bias of a candidate."""
    weight = read(found.key).reshape(found.shape[::-1] if found.turned else found.shape)
    return weight.T if found.turned else weight, None if found.bias is None else read(found.bias)
