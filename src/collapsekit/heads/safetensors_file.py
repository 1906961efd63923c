"""Matrices of one or more .safetensors files, by their headers: only what is asked for is read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from collapsekit.data.arrays import DAMAGED, READERS
from collapsekit.data.files import check_size, is_folder, parsing
from collapsekit.errors import CollapseError
from collapsekit.validation import shorten

STORED = {"F32": "<f4", "F64": "<f8", "BF16": "<u2"}


@dataclass(frozen=True)
class Index:
    """Shapes of all arrays, the file that each is in (the last that holds it), and those that several hold."""

    shapes: dict[str, tuple[int, ...]]
    files: dict[str, Path]
    repeated: set[str]

    def read(self, key: str) -> NDArray[Any]:
        """Return one array; of the usual kinds straight from the file, so that it is never held twice."""
        path = self.files[key]
        with parsing(path.name, DAMAGED), path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            entry = json.loads(stream.read(length))[key]
            if entry["dtype"].startswith(("F8_", "F6_", "F4")):
                raise CollapseError(f"{shorten(key)} is stored as {entry['dtype']}; save it as F16, BF16 or F32")
            if entry["dtype"] not in STORED:
                return READERS[".safetensors"](path, lambda _: [key])[key]
            check_size(entry["shape"], 4, key)
            stored = np.fromfile(
                path, STORED[entry["dtype"]], prod(entry["shape"]), offset=8 + length + entry["data_offsets"][0]
            )
        if entry["dtype"] == "BF16":  # the upper half of float32
            stored = stored.astype("<u4")
            stored <<= 16
        return stored.view("<f4" if entry["dtype"] == "BF16" else stored.dtype).reshape(entry["shape"])


def index_of(paths: Sequence[Path]) -> Index:
    """Return the index of these files; of a sharded model every shard says itself what it holds."""
    from safetensors import safe_open

    shapes, files, repeated = dict[str, tuple[int, ...]](), dict[str, Path](), set[str]()
    for path in paths:
        if is_folder(path):
            raise CollapseError(f"{shorten(path.name)} is a folder; give a .safetensors file")
        with parsing(path.name, DAMAGED), safe_open(path, framework="np") as tensors:
            for key in list(tensors.keys()):
                if key in files:
                    repeated.add(key)
                shapes[key] = tuple(tensors.get_slice(key).get_shape())
                files[key] = path
    return Index(shapes, files, repeated)
