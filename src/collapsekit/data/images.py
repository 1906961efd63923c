"""Image folders: one sub-folder a class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from collapsekit.data.files import check_size, parsing
from collapsekit.data.labelled import LabelledData, assemble
from collapsekit.errors import CollapseError
from collapsekit.validation import shorten

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm")
# Pillow goes by content: without this list a file named .png could reach the interpreter of some other format.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "PPM")
GREY = ("1", "L", "LA")
COLOUR = ("P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
MAX_PIXELS = 50_000_000
DAMAGED = "give an intact image or remove it"

Sample = tuple[Path, str]


def is_image_folder(folder: Path) -> bool:
    """Whether the folder has a visible sub-folder."""
    return any(path.is_dir() for path in folder.iterdir() if not path.name.startswith("."))


def read_image_folder(folder: Path) -> LabelledData:
    """Return the images of a folder: grey if all files are, otherwise RGB; of an animation the first frame.

    Sub-folders `train` and `test` (or `val`, which is left out beside `test`), with nothing else beside them, hold the
    classes of the training set and of the held-out set. Transparency is dropped.
    """
    root = folder.resolve()
    train_folder, test_folder = _halves(root)
    train = _samples(train_folder, root)
    test = _samples(test_folder, root) if test_folder else []
    size, mode = _common_format([path for path, _ in train + test], root)
    held_out = _read(test, size, mode, root) if test else None
    return assemble(*_read(train, size, mode, root), "images", held_out=held_out)


def _halves(root: Path) -> tuple[Path, Path | None]:
    names = {path.name for path in _entries(root, root)}
    if "train" not in names or not names <= {"train", "test", "val"}:
        return root, None
    held_out = next((root / name for name in ("test", "val") if name in names), None)
    return root / "train", held_out


def _samples(folder: Path, root: Path) -> list[Sample]:
    samples = []
    for directory in _entries(folder, root):
        name = _inside(directory, root)
        if not directory.is_dir():
            raise CollapseError(f"{name} is a file beside the class folders; move it into one or remove it")
        files = _entries(directory, root)
        if not files and folder in (root, root / "train"):
            raise CollapseError(f"the class folder {name} is empty; add images or remove it")
        samples += [(_image_file(path, root), directory.name) for path in files]
    if not samples:
        raise CollapseError(f"no images in {_inside(folder, root)}; give one sub-folder of images a class")
    return samples


def _image_file(path: Path, root: Path) -> Path:
    if path.is_dir():
        raise CollapseError(f"{_inside(path, root)} is a folder inside a class folder; move its images up")
    if path.suffix.lower() not in SUFFIXES or not path.is_file():
        raise CollapseError(f"{_inside(path, root)} is not an image; remove it, or convert it to .png")
    return path


def _entries(folder: Path, root: Path) -> list[Path]:
    """The visible entries of a folder; a link must stay inside the root, so that no other file is ever read."""
    if not folder.is_dir():
        raise CollapseError(f"{_inside(folder, root)} is not a folder; give one sub-folder of images a class")
    found = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    for path in found:
        if path.is_symlink() and not _stays(path, root):
            raise CollapseError(f"{_inside(path, root)} is a link that leaves the folder; copy the file instead")
    return found


def _stays(path: Path, root: Path) -> bool:
    try:
        return path.resolve(strict=True).is_relative_to(root)
    except (OSError, RuntimeError):  # dangling, or a loop
        return False


def _common_format(paths: Sequence[Path], root: Path) -> tuple[tuple[int, int], str]:
    """The one size of all images, and the mode that suits all; only headers are read."""
    first, all_grey = None, True
    for path in paths:
        with parsing(str(path.relative_to(root)), DAMAGED), _opened(path) as image:
            size, mode = image.size, image.mode
        if size[0] * size[1] > MAX_PIXELS:
            raise CollapseError(f"{_inside(path, root)}: {size[0]}×{size[1]} pixels; give at most {MAX_PIXELS:,}")
        if mode not in GREY + COLOUR:
            raise CollapseError(f"{_inside(path, root)}: mode {shorten(mode)}; convert it to 8 bits a channel")
        first = first or size
        if size != first:
            raise CollapseError(
                f"{_inside(path, root)}: {size[0]}×{size[1]} pixels, {_inside(paths[0], root)} has "
                f"{first[0]}×{first[1]}; resize all images to one size"
            )
        all_grey = all_grey and mode in GREY
    return first or (0, 0), "L" if all_grey else "RGB"


def _read(
    samples: Sequence[Sample], size: tuple[int, int], mode: str, root: Path
) -> tuple[NDArray[np.uint8], list[str]]:
    shape = (len(samples), len(mode), size[1], size[0])
    check_size(shape, 4, "images")
    images = np.empty(shape, np.uint8)
    for row, (path, _) in zip(images, samples, strict=True):
        with parsing(str(path.relative_to(root)), DAMAGED), _opened(path) as image:
            pixels = np.asarray(image.convert(mode)).reshape(*shape[2:], shape[1])
            row[...] = np.moveaxis(pixels, 2, 0)
    return images, [label for _, label in samples]


def _opened(path: Path) -> Any:
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise CollapseError("reading images needs Pillow; pip install pillow") from None
    try:
        return Image.open(path, formats=FORMATS)
    except UnidentifiedImageError:
        raise ValueError(f"none of {', '.join(FORMATS)}") from None


def _inside(path: Path, root: Path) -> str:
    return shorten(str(path.relative_to(root)))
