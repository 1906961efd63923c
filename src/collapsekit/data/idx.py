"""Folders of idx files: MNIST and its family, gzip-compressed or not."""

from __future__ import annotations

import gzip
import math
import re
import struct
from collections.abc import Sequence
from io import BufferedIOBase
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from collapsekit.data.files import check_size, fill, names_from, parsing
from collapsekit.data.labelled import LabelledData, assemble
from collapsekit.errors import CollapseError

FILE = re.compile(r"(train|t10k)-(images|labels)[-.]idx[13]-ubyte(\.gz)?")
DAMAGED = "give an intact file"
UNSIGNED_BYTE = 8
MOST_DEFLATED = 1100  # deflate packs at most 1032 bytes into one


def is_idx_folder(folder: Path) -> bool:
    """Whether the folder holds a file with one of the usual names."""
    return any(FILE.fullmatch(path.name) for path in folder.iterdir())


def read_idx_folder(folder: Path, names: Sequence[str] | None = None) -> LabelledData:
    """Return the images and labels of a folder; `labels.txt` or `class_names.txt` holds one name a line, if there."""
    found = {match[1] + match[2]: path for path in sorted(folder.iterdir(), reverse=True) if (match := _role(path))}
    train = _pair(found, "train")
    if train is None:
        raise CollapseError("no train-images-idx3-ubyte and train-labels-idx1-ubyte (or .gz); add both")
    if names is None:
        names = names_from(folder, "labels.txt", "class_names.txt")
    return assemble(*train, "images", names=names, held_out=_pair(found, "t10k"))


def _role(path: Path) -> re.Match[str] | None:
    return FILE.fullmatch(path.name) if path.is_file() else None


def _pair(found: dict[str, Path], part: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]] | None:
    images, labels = found.get(part + "images"), found.get(part + "labels")
    if images is None and labels is None:
        return None
    if images is None or labels is None:
        lone, other = (images, "labels") if images else (labels, "images")
        raise CollapseError(f"{lone.name if lone else ''} without its {part}-{other} file; add it")
    return read_idx(images, 3)[:, None], read_idx(labels, 1)


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """Return the array of one idx file; its header is checked against its bytes before anything is allocated."""
    with parsing(path.name, DAMAGED), _opened(path) as stream:
        shape = _shape(stream.read(4 + 4 * dimensions), path.name, dimensions)
        promised = math.prod(shape)
        _check_promise(path, promised, 4 + 4 * dimensions)
        check_size(shape, 4, path.name)
        array = np.empty(shape, np.uint8)
        held = fill(stream, array)
        if held < promised or stream.read(1):
            more = "more" if held == promised else str(held)
            raise CollapseError(f"{path.name}: header promises {promised} bytes, the file holds {more}; {DAMAGED}")
    return array


def _opened(path: Path) -> BufferedIOBase:
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")


def _shape(header: bytes, name: str, dimensions: int) -> tuple[int, ...]:
    if len(header) < 4 + 4 * dimensions:
        raise CollapseError(f"{name}: only {len(header)} bytes, too short for an idx header; {DAMAGED}")
    if header[:2] != b"\0\0" or header[3] != dimensions:
        raise CollapseError(
            f"{name}: starts with {header[:4].hex()}, an idx file of this name with 0000{UNSIGNED_BYTE:02x}"
            f"{dimensions:02x}; {DAMAGED}"
        )
    if header[2] != UNSIGNED_BYTE:
        raise CollapseError(f"{name}: idx type {header[2]:#04x}; convert it to unsigned bytes (0x08)")
    return struct.unpack(f">{dimensions}I", header[4:])


def _check_promise(path: Path, promised: int, header: int) -> None:
    size = path.stat().st_size
    if path.suffix == ".gz":
        if promised > size * MOST_DEFLATED:
            raise CollapseError(
                f"{path.name}: header promises {promised} bytes, {size} compressed bytes cannot hold them; {DAMAGED}"
            )
    elif promised != size - header:
        raise CollapseError(f"{path.name}: header promises {promised} bytes, the file holds {size - header}; {DAMAGED}")
