"""The binary versions of CIFAR-10 and CIFAR-100."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from collapsekit.data.files import check_size, fill, names_from
from collapsekit.data.labelled import LabelledData, assemble
from collapsekit.errors import CollapseError

PIXELS = 3 * 32 * 32


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


def _records(paths: Sequence[Path], label_bytes: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """One record is its label bytes, of which the last counts, and the pixels of three planes."""
    width = label_bytes + PIXELS
    sizes = [path.stat().st_size for path in paths]
    for path, size in zip(paths, sizes, strict=True):
        if not size or size % width:
            raise CollapseError(f"{path.name}: {size} bytes, not a multiple of a record's {width}; give an intact file")
    check_size((sum(sizes) // width, PIXELS), 4, paths[0].name)
    records = np.empty((sum(sizes) // width, width), np.uint8)
    start = 0
    for path, size in zip(paths, sizes, strict=True):
        stop = start + size // width
        with path.open("rb") as stream:
            if fill(stream, records[start:stop]) < size:
                raise CollapseError(f"{path.name}: became shorter while it was read; read it again")
        start = stop
    return records[:, label_bytes:].reshape(-1, 3, 32, 32), records[:, label_bytes - 1]
