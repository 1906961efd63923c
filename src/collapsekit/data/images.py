"""Images: folders with one sub-folder a class, and lists of `path label` lines."""

from __future__ import annotations

import re
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
DAMAGED = "give an intact image or take it out"
TRAINING, TESTING = ("train", "training"), ("test", "testing", "val", "valid", "validation", "dev")
LINE = re.compile(r"(.*?)[\s,]+([^\s,]+)")

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
    train, test = folder_samples(root)
    return _assembled(train, test, root, names=sorted({label for _, label in train}), keep_na=True)


def folder_samples(root: Path) -> tuple[list[Sample], list[Sample]]:
    """Return the files of the training and of the held-out set with their classes; no file is opened."""
    parts = {path.name.lower(): path for path in _entries(root, root) if path.is_dir()}
    train = next((parts[name] for name in TRAINING if name in parts), None)
    if train is None or not parts.keys() <= {*TRAINING, *TESTING}:
        return _samples(root, root), []
    test = next((parts[name] for name in TESTING if name in parts), None)
    return _samples(train, root), _samples(test, root, held_out=True) if test else []


def list_samples(path: Path) -> list[Sample] | None:
    """Return the files and labels of a list, one `path label` a line, None if its first line names no image.

    Blanks, a TAB or a comma stand before the label; paths start at the list's folder and stay inside it.
    """
    root = path.parent.resolve()
    with parsing(path.name, "save it as UTF-8 text"), path.open(encoding="utf-8-sig") as stream:
        lines = [line.strip() for line in stream if line.strip()]
    samples = list[Sample]()
    for line in lines:
        match = LINE.fullmatch(line)
        if not samples and (match is None or not match[1].lower().endswith(SUFFIXES)):
            return None
        if match is None or not (root / match[1]).resolve().is_relative_to(root):
            raise CollapseError(f"{shorten(line)}: give `path label` lines, and the list in a folder above its images")
        samples.append((root / match[1], match[2]))
    return samples or None


def read_image_list(samples: Sequence[Sample], folder: Path, keep_na: bool) -> LabelledData:
    """Return the images of a list."""
    return _assembled(samples, (), folder.resolve(), names=None, keep_na=keep_na)


def _assembled(
    train: Sequence[Sample], test: Sequence[Sample], root: Path, names: Sequence[str] | None, keep_na: bool
) -> LabelledData:
    size, mode = _common_format([path for path, _ in (*train, *test)], root)
    labels, test_labels = [label for _, label in train], [label for _, label in test]
    held_out = (_pixels(test, size, mode, root), test_labels) if test else None
    return assemble(_pixels(train, size, mode, root), labels, "images", names=names, held_out=held_out, keep_na=keep_na)


def _samples(folder: Path, root: Path, held_out: bool = False) -> list[Sample]:
    samples = list[Sample]()
    for directory in _entries(folder, root):
        name, files = _inside(directory, root), _entries(directory, root) if directory.is_dir() else None
        if files is None and directory.suffix.lower() in SUFFIXES:
            raise CollapseError(f"{name} is a file beside the class folders; put it into the folder of its class")
        if files == [] and not held_out:
            raise CollapseError(f"the class folder {name} is empty; add images, or rename it to begin with a dot")
        for path in files or ():  # none of a licence, or a table
            if path.is_dir():
                raise CollapseError(
                    f"{_inside(path, root)} is a folder inside a class folder; give as data the folder whose "
                    "sub-folders are the classes"
                )
            if path.suffix.lower() not in SUFFIXES or not path.is_file():
                raise CollapseError(
                    f"{_inside(path, root)} is not an image; take it out of the folder, or convert it to .png"
                )
            samples.append((path, directory.name))
    if not samples:
        raise CollapseError(f"no images in {_inside(folder, root)}; give one sub-folder of images a class")
    return samples


def _entries(folder: Path, root: Path) -> list[Path]:
    """The visible entries of a folder; a link must stay inside the root, so that no other file is ever read."""
    found = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    for path in found:
        if path.is_symlink() and not (path.exists() and path.resolve().is_relative_to(root)):
            raise CollapseError(f"{_inside(path, root)} is a link that leaves the folder; copy the file instead")
    return found


def _common_format(paths: Sequence[Path], root: Path) -> tuple[tuple[int, int], str]:
    """The one size of all images, and the mode that suits all; only headers are read."""
    first, modes = None, set[str]()
    for path in paths:
        with parsing(str(path.relative_to(root)), DAMAGED), _opened(path) as image:
            size, mode = image.size, image.mode
        where = f"{_inside(path, root)}: {size[0]}×{size[1]} pixels"
        if size[0] * size[1] > MAX_PIXELS:
            raise CollapseError(f"{where}; give at most {MAX_PIXELS:,}")
        if mode not in GREY + COLOUR:
            raise CollapseError(f"{_inside(path, root)}: mode {shorten(mode)}; convert it to 8 bits a channel")
        first = first or size
        if size != first:
            raise CollapseError(
                f"{where}, {_inside(paths[0], root)} has {first[0]}×{first[1]}; resize all images to one size"
            )
        modes.add(mode)
    return size, "L" if modes <= set(GREY) else "RGB"


def _pixels(samples: Sequence[Sample], size: tuple[int, int], mode: str, root: Path) -> NDArray[np.uint8]:
    shape = (len(samples), len(mode), size[1], size[0])
    check_size(shape, 4, "images")
    images = np.empty(shape, np.uint8)
    for row, (path, _) in zip(images, samples, strict=True):
        with parsing(str(path.relative_to(root)), DAMAGED), _opened(path) as image:
            pixels = np.asarray(image.convert(mode)).reshape(*shape[2:], shape[1])
            row[...] = np.moveaxis(pixels, 2, 0)
    return images


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
