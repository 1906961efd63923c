"""The paper's data as they are distributed: folders of idx files (MNIST and its family) and CIFAR's binary versions."""

from __future__ import annotations

import gzip
import math
import re
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from collapsekit.data.files import check_size, names_from, parsing
from collapsekit.data.labelled import LabelledData, assemble
from collapsekit.errors import CollapseError

IDX = re.compile(r"(train|t10k)-(images|labels)[-.]idx[13]-ubyte(\.gz)?")
DAMAGED = "give an intact file"
MOST_DEFLATED = 1100  # deflate packs at most 1032 bytes into one
PIXELS = 3 * 32 * 32

Pair = tuple[NDArray[np.uint8], NDArray[np.uint8]]


def is_idx_folder(folder: Path) -> bool:
    """Whether the folder holds a file with one of the usual names."""
    return any(IDX.fullmatch(path.name) for path in folder.iterdir())


def read_idx_folder(folder: Path, names: Sequence[str] | None = None) -> LabelledData:
    """Return the images and labels of a folder; `labels.txt` or `class_names.txt` holds one name a line, if there."""
    matches = {path: IDX.fullmatch(path.name) for path in sorted(folder.iterdir(), reverse=True) if path.is_file()}
    found = {match[1] + match[2]: path for path, match in matches.items() if match}
    train = _pair(found, "train")
    if train is None:
        raise CollapseError("no train-images-idx3-ubyte and train-labels-idx1-ubyte (or .gz); add both")
    names = names or names_from(folder, "labels.txt", "class_names.txt")
    return assemble(*train, "images", names=names, held_out=_pair(found, "t10k"))


def _pair(found: dict[str, Path], part: str) -> Pair | None:
    images, labels = (found.get(part + what) for what in ("images", "labels"))
    if images is None and labels is None:
        return None
    if images is None or labels is None:
        path, other = (images, "labels") if images else (labels, "images")
        raise CollapseError(f"{path and path.name} without its {part}-{other} file; add it")
    return _idx(images, 3)[:, None], _idx(labels, 1)


def _idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """One file; what its header promises is held against its size before anything is allocated."""
    start, packed, name = 4 + 4 * dimensions, path.suffix == ".gz", path.name
    wanted, held = bytes([0, 0, 8, dimensions]), path.stat().st_size  # 8: unsigned bytes
    with parsing(name, DAMAGED), gzip.open(path) if packed else path.open("rb") as stream:
        header = stream.read(start)
        if len(header) < start:
            raise CollapseError(f"{name}: only {len(header)} bytes, too short for an idx header; {DAMAGED}")
        if header[:4] != wanted:
            raise CollapseError(
                f"{name}: starts with {header[:4].hex()}, idx files of unsigned bytes of this name with "
                f"{wanted.hex()}; convert it, or {DAMAGED}"
            )
        shape = struct.unpack(f">{dimensions}I", header[4:])
        promised = math.prod(shape)
        if packed and promised > held * MOST_DEFLATED:
            raise CollapseError(
                f"{name}: header promises {promised} bytes, {held} compressed bytes cannot hold them; {DAMAGED}"
            )
        if packed or promised == held - start:
            check_size(shape, 4, name)
            content = stream.read(promised + 1)
            holds = "more" if len(content) > promised else len(content)
        else:
            holds = held - start
    if holds != promised:
        raise CollapseError(f"{name}: header promises {promised} bytes, the file holds {holds}; {DAMAGED}")
    return np.frombuffer(content, np.uint8).reshape(shape)


def is_cifar_folder(folder: Path) -> bool:
    """Whether the folder holds training batches of either version."""
    return bool(_batches(folder)) or (folder / "train.bin").is_file()


def read_cifar_folder(folder: Path) -> LabelledData:
    """Return images and labels of CIFAR-10 (`data_batch_*.bin`) or, with its fine labels, CIFAR-100 (`train.bin`)."""
    batches = _batches(folder)
    label_bytes, test = (1, "test_batch.bin") if batches else (2, "test.bin")
    names = names_from(folder, "batches.meta.txt" if batches else "fine_label_names.txt")
    train = _records(batches or [folder / "train.bin"], label_bytes)
    held_out = _records([folder / test], label_bytes) if (folder / test).is_file() else None
    return assemble(*train, "images", names=names, held_out=held_out)


def _batches(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("data_batch_*.bin") if path.is_file())


def _records(paths: Sequence[Path], label_bytes: int) -> Pair:
    """One record is its label bytes, of which the last counts, and the pixels of three planes."""
    width = label_bytes + PIXELS
    for path in paths:
        size = path.stat().st_size
        if not size or size % width:
            raise CollapseError(f"{path.name}: {size} bytes, not a multiple of a record's {width}; give an intact file")
        check_size((size // width, PIXELS), 4, path.name)
    records = np.concatenate([np.fromfile(path, np.uint8) for path in paths]).reshape(-1, width)
    return records[:, label_bytes:].reshape(-1, 3, 32, 32), records[:, label_bytes - 1]
