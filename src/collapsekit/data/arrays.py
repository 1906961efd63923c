"""Arrays: .npz, .npy, .safetensors and PyTorch's; nothing is ever unpickled or extracted."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from collapsekit.data.files import check_bytes, check_size, parsing
from collapsekit.data.labelled import LabelledData, assemble
from collapsekit.data.pt import read_pt
from collapsekit.errors import CollapseError
from collapsekit.validation import shorten

DAMAGED = "give an intact file of plain numbers or strings, saved with numpy.save, numpy.savez or safetensors"
MEMBER = re.compile(r"(?!/)(?!(.*/)?\.\./)[^\\:]*\.npy")
# numpy.savez knows no others, and what they unpack to is not bounded by what they hold
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
LABEL_WORDS = {"features": "labels", "embeddings": "labels", "X": "y"}
WORD = re.compile(rf"(?<![A-Za-z])({'|'.join(LABEL_WORDS)})(?![A-Za-z])")
LAYERS = ("fc", "head", "classifier", "linear", "output", "logits")

Arrays = dict[str, NDArray[Any]]
Wanted = Callable[[Collection[str]], list[str]]
Head = tuple[NDArray[np.float64] | None, NDArray[np.float64] | None]


def read_arrays(path: Path, keep_na: bool = False) -> LabelledData:
    """Return `X` and `y` (or `features` and `labels`), and `Xt`, `yt` and `names` if they are there.

    An .npy file is the inputs; its labels are in a file beside it, see `labels_beside`.
    """
    arrays = READERS[path.suffix.lower()](path, _wanted)
    inputs, labels = list(arrays.values())[:2]
    names = arrays.get("names")
    if names is not None and (names.dtype.kind != "U" or names.ndim != 1):
        raise CollapseError(f"names: dtype {names.dtype}, shape {names.shape}; give a vector of strings")
    return assemble(
        inputs,
        labels,
        "images" if inputs.ndim in (3, 4) else "features",
        names=None if names is None else names.tolist(),
        held_out=(arrays["Xt"], arrays["yt"]) if "Xt" in arrays else None,
        keep_na=keep_na,
    )


def read_head_file(path: Path, layer: str | None = None, *, required: bool = True) -> Head:
    """Return `weight` (or `W`) and `bias` (or `b`) of a head, or those of a layer; None for what is not there."""

    def wanted(keys: Collection[str]) -> list[str]:
        return [key for key in _head_keys(keys, layer, required) if key in keys]

    arrays = {"weight": read_npy(path)} if path.suffix.lower() == ".npy" else READERS[path.suffix.lower()](path, wanted)
    for key, array in arrays.items():
        if array.dtype.kind not in "iuf":
            raise CollapseError(f"{key}: dtype {shorten(str(array.dtype))}; give real numbers")
    weight, bias = [*(array.astype(np.float64) for array in arrays.values()), None, None][:2]
    return weight, bias


def _head_keys(keys: Collection[str], layer: str | None, required: bool) -> Sequence[str]:
    if layer is None:
        pair = next(((w, b) for w, b in (("weight", "bias"), ("W", "b")) if w in keys), None)
        lone = next((key for key in ("bias", "b") if key in keys), None)
        if pair is None and lone is not None:
            raise CollapseError(f"it holds {lone} without weight; give both of the head")
        if pair is not None or not required:  # features, perhaps beside other arrays
            return pair or ()
        layers = [key.removesuffix(".weight") for key in keys if key.endswith(".weight")]
        named = [one for one in layers if one.split(".")[-1] in LAYERS]
        if len(layers) > 1 and len(named) != 1:
            raise CollapseError(f"several layers: {_listed(named or layers)}; name the head after the file, FILE:LAYER")
        layer = (named or layers or [""])[0]
    elif f"{layer}.weight" not in keys:
        raise CollapseError(f"no {shorten(layer + '.weight')} among its arrays {_listed(keys)}; name a layer of it")
    return f"{layer}.weight", f"{layer}.bias"


def _npz(path: Path, wanted: Wanted) -> Arrays:
    with parsing(path.name, DAMAGED), path.open("rb") as stream:
        if not zipfile.is_zipfile(stream):
            raise CollapseError(f"{shorten(path.name)} is no .npz archive; {DAMAGED}")
        with zipfile.ZipFile(stream) as archive:
            check_bytes(sum(info.file_size for info in checked_members(archive)), "unpacked")
            keys = wanted([name.removesuffix(".npy") for name in archive.namelist()])
            return {key: _array(archive.open(f"{key}.npy"), f"{key}.npy") for key in keys}


def checked_members(archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """Return the members of an .npz archive, if all of them are arrays stored as numpy stores them."""
    for info in archive.infolist():
        if info.compress_type not in METHODS or not MEMBER.fullmatch(info.filename):
            raise CollapseError(f"the archive's member {shorten(info.filename)} is no array; {DAMAGED}")
    return archive.infolist()


def _npy_with_labels(path: Path, _: Wanted) -> Arrays:
    return {"X": read_npy(path), "y": read_npy(labels_beside(path))}


def labels_beside(path: Path) -> Path:
    """Return the file of the labels of an .npy of features: the first that exists of these.

    NAME_labels.npy; NAME with `features` or `embeddings` replaced by `labels`, or `X` by `y`; labels.npy.
    """
    names = [f"{path.stem}_labels.npy", WORD.sub(lambda found: LABEL_WORDS[found[0]], path.name), "labels.npy"]
    found = next((path.with_name(name) for name in names if name != path.name and path.with_name(name).is_file()), None)
    if found is None:
        raise CollapseError(f"no labels; save them beside it as {shorten(names[0])} or 'labels.npy'")
    return found


def read_npy(path: Path) -> NDArray[Any]:
    """Return the array of a file."""
    check_bytes(path.stat().st_size, path.name)
    with parsing(path.name, DAMAGED):
        return _array(path.open("rb"), path.name)


def _array(stream: IO[bytes], name: str) -> NDArray[Any]:
    """Numbers or strings; numpy refuses objects, whose loading would run code."""
    with stream:
        try:
            array = np.lib.format.read_array(stream, allow_pickle=False)
        except MemoryError:  # also of numpy's parser, of a header nested too deeply
            raise CollapseError(f"{shorten(name)}: header promises more than the memory holds; {DAMAGED}") from None
        if stream.read(1):
            raise CollapseError(f"{shorten(name)}: longer than its header promises; {DAMAGED}")
    if array.dtype == "V2":  # ml_dtypes' bfloat16 is stored as two nameless bytes
        return widened(np.ascontiguousarray(array).view("<u2"))
    if array.dtype.kind not in "biufcSU" or not array.dtype.itemsize:
        raise CollapseError(f"{shorten(name)}: dtype {shorten(str(array.dtype))}: it is not a plain array; {DAMAGED}")
    return array


def _safetensors(path: Path, wanted: Wanted) -> Arrays:
    from safetensors import deserialize, safe_open

    arrays = {}
    with parsing(path.name, DAMAGED), safe_open(path, framework="np") as tensors:
        for key in wanted(tensors.keys()):
            found = tensors.get_slice(key)
            check_size(found.get_shape(), 4, key)
            if found.get_dtype() == "BF16":  # which numpy does not have
                stored = dict(deserialize(path.read_bytes()))[key]  # type: ignore[no-untyped-call]
                arrays[key] = widened(np.frombuffer(stored["data"], "<u2")).reshape(stored["shape"])
            else:
                arrays[key] = np.array(tensors.get_tensor(key))
    return arrays


def widened(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Return the numbers that the bits of bfloat16 stand for: it is the upper half of float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _wanted(keys: Collection[str]) -> list[str]:
    """The keys to read: inputs and labels first, then those of a held-out set and the names, if there."""
    first = features_and_labels(keys)
    if ("Xt" in keys) != ("yt" in keys):
        raise CollapseError("it holds only one of Xt and yt; give both or neither")
    return [*first, *(key for key in ("Xt", "yt", "names") if key in keys)]


def features_and_labels(keys: Collection[str], labels: str | None = None) -> tuple[str, str]:
    """Return the names of the arrays of features and labels: those of the labels may be given."""
    if labels is not None and labels not in keys:
        raise CollapseError(f"labels={shorten(labels)}: not among its arrays {_listed(keys)}; name one of them")
    found = next((key for key in ("X", "features") if key in keys), None)
    labels = labels or next((key for key in ("y", "labels") if key in keys), None)
    if found is None or labels is None:
        raise CollapseError(f"it holds {_listed(keys)}; name the arrays X and y, or features and labels")
    return found, labels


def _listed(keys: Iterable[str]) -> str:
    return ", ".join(shorten(key, 30) for key in sorted(keys)[:8]) or "nothing"


READERS: dict[str, Callable[[Path, Wanted], Arrays]] = {
    ".npz": _npz,
    ".npy": _npy_with_labels,
    ".safetensors": _safetensors,
    ".pt": read_pt,
    ".pth": read_pt,
}
