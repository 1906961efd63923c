"""Matrices of one or more .safetensors files, by their headers: only what is asked for is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from collapsekit.data.arrays import DAMAGED, READERS
from collapsekit.data.files import is_folder, parsing
from collapsekit.errors import CollapseError
from collapsekit.validation import shorten


@dataclass(frozen=True)
class Index:
    """Shapes of all arrays, and the file that each is in."""

    shapes: dict[str, tuple[int, ...]]
    files: dict[str, Path]

    def read(self, key: str) -> NDArray[Any]:
        """Return one array."""
        return READERS[".safetensors"](self.files[key], lambda _: [key])[key]


def index_of(paths: Sequence[Path]) -> Index:
    """Return the index of these files; of a sharded model every shard says itself what it holds."""
    from safetensors import safe_open

    shapes, files = dict[str, tuple[int, ...]](), dict[str, Path]()
    for path in paths:
        if is_folder(path):
            raise CollapseError(f"{shorten(path.name)} is a folder; give a .safetensors file")
        with parsing(path.name, DAMAGED), safe_open(path, framework="np") as tensors:
            for key in list(tensors.keys()):
                shapes[key] = tuple(tensors.get_slice(key).get_shape())
                files[key] = path
    return Index(shapes, files)
