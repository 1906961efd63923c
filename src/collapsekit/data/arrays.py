"""Arrays: .npz, .npy and .safetensors; nothing is ever unpickled or extracted."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Collection
from io import BufferedIOBase, BytesIO
from pathlib import Path, PurePosixPath
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from collapsekit.data.files import MAX_BYTES, check_size, fill, parsing
from collapsekit.data.labelled import Kind, LabelledData, assemble
from collapsekit.errors import CollapseError
from collapsekit.validation import shorten

MAGIC = b"\x93NUMPY"
MAX_HEADER = 10_000
DAMAGED = "give an intact file"
PICKLE = "it is not a plain array; save numbers or strings with numpy.save or numpy.savez"
HEADERS = {1: (2, np.lib.format.read_array_header_1_0), 2: (4, np.lib.format.read_array_header_2_0)}

Wanted = Callable[[Collection[str]], list[str]]
Head = tuple[NDArray[np.float64] | None, NDArray[np.float64] | None]
Header = tuple[np.dtype[Any], tuple[int, ...], bool, int]


def read_npz(path: Path) -> LabelledData:
    """Return `X` and `y` (or `features` and `labels`), and `Xt`, `yt` and `names` if they are there."""
    return _assemble(_from_npz(path, _wanted))


def npz_head(path: Path) -> Head:
    """Return `weight` and `bias` (or `W` and `b`), None for what is not there."""
    return _head(_from_npz(path, _head_keys))


def safetensors_head(path: Path) -> Head:
    """Return `weight` and `bias` (or `W` and `b`), None for what is not there."""
    return _head(_from_safetensors(path, _head_keys))


def npy_head(path: Path) -> Head:
    """Return the array of a file as the weight."""
    return _head({"weight": _array_file(path)})


def read_npy(path: Path) -> LabelledData:
    """Return the array of a file, with its labels from NAME_labels.npy or labels.npy beside it."""
    candidates = [path.with_name(f"{path.stem}_labels.npy"), path.with_name("labels.npy")]
    labels = next((other for other in candidates if other != path and other.is_file()), None)
    if labels is None:
        raise CollapseError(f"no labels; save them beside it as {shorten(candidates[0].name)} or 'labels.npy'")
    inputs = _array_file(path)
    return assemble(inputs, _array_file(labels), _kind(inputs))


def read_safetensors(path: Path) -> LabelledData:
    """Return `X` and `y` (or `features` and `labels`), and `Xt` and `yt` if they are there."""
    return _assemble(_from_safetensors(path, _wanted))


def _from_npz(path: Path, wanted: Wanted) -> dict[str, NDArray[Any]]:
    with parsing(path.name, DAMAGED), path.open("rb") as stream:
        if not zipfile.is_zipfile(stream):
            raise CollapseError(f"{shorten(path.name)} is no .npz archive: {PICKLE}")
        with zipfile.ZipFile(stream) as archive:
            members = _members(archive)
            return {key: _member(archive, members[key]) for key in wanted(members)}


def _from_safetensors(path: Path, wanted: Wanted) -> dict[str, NDArray[Any]]:
    from safetensors import safe_open

    arrays = {}
    with parsing(path.name, DAMAGED), safe_open(path, framework="pt") as tensors:
        for key in wanted(tensors.keys()):
            check_size(tensors.get_slice(key).get_shape(), 4, key)
            arrays[key] = _numpy(tensors.get_tensor(key))
    return arrays


def _head_keys(keys: Collection[str]) -> list[str]:
    weight = next((key for key in ("weight", "W") if key in keys), None)
    bias = next((key for key in ("bias", "b") if key in keys), None)
    if weight is None and bias is not None:
        raise CollapseError(f"it holds {bias} without weight; give both of the head")
    return [key for key in (weight, bias) if key is not None]


def _head(arrays: dict[str, NDArray[Any]]) -> Head:
    for key, array in arrays.items():
        if array.dtype.kind not in "iuf":
            raise CollapseError(f"{key}: dtype {shorten(str(array.dtype))}; give real numbers")
    weight, bias = [*(array.astype(np.float64) for array in arrays.values()), None, None][:2]
    return weight, bias


def _wanted(keys: Collection[str]) -> list[str]:
    """The keys to read: inputs and labels first, then those of a held-out set and the names, if there."""
    inputs = next((key for key in ("X", "features") if key in keys), None)
    labels = next((key for key in ("y", "labels") if key in keys), None)
    if inputs is None or labels is None:
        listed = ", ".join(shorten(key, 20) for key in sorted(keys)[:8]) or "nothing"
        raise CollapseError(f"it holds {listed}; name the arrays X and y, or features and labels")
    if ("Xt" in keys) != ("yt" in keys):
        raise CollapseError("it holds only one of Xt and yt; give both or neither")
    return [inputs, labels, *(key for key in ("Xt", "yt", "names") if key in keys)]


def _assemble(arrays: dict[str, NDArray[Any]]) -> LabelledData:
    inputs, labels = list(arrays.values())[:2]
    names = _names(arrays["names"]) if "names" in arrays else None
    held_out = (arrays["Xt"], arrays["yt"]) if "Xt" in arrays else None
    return assemble(inputs, labels, _kind(inputs), names=names, held_out=held_out)


def _kind(inputs: NDArray[Any]) -> Kind:
    return "images" if inputs.ndim in (3, 4) else "features"


def _names(names: NDArray[Any]) -> list[str]:
    if names.dtype.kind != "U" or names.ndim != 1:
        raise CollapseError(f"names: dtype {names.dtype}, shape {names.shape}; give a vector of strings")
    return [str(name) for name in names.tolist()]


def _numpy(tensor: torch.Tensor) -> NDArray[Any]:
    """A copy, as the tensor lies in the mapped file; numpy lacks bfloat16 and the 8-bit floats."""
    if tensor.is_floating_point() and tensor.dtype not in (torch.float16, torch.float32, torch.float64):
        return tensor.float().numpy()
    return np.array(tensor.numpy())


def _members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The arrays by name; every header is looked at before any array is read."""
    members = {}
    for info in archive.infolist():
        _check_name(info.filename)
        members[info.filename.removesuffix(".npy")] = info
    promised = sum(info.file_size for info in archive.infolist())
    if promised > MAX_BYTES:
        raise CollapseError(
            f"{promised / 2**30:.3g} GiB unpacked, more than the limit of {MAX_BYTES / 2**30:g} GiB; give fewer samples"
        )
    for info in members.values():
        with _stream(archive, info) as stream:
            _header(stream, info.filename)
    return members


def _check_name(name: str) -> None:
    if name.startswith("/") or "\\" in name or ":" in name or ".." in PurePosixPath(name).parts:
        raise CollapseError(f"the archive's member {shorten(name)} points outside of it; save it with numpy.savez")
    if not name.endswith(".npy"):
        raise CollapseError(f"the archive's member {shorten(name)} is no array; save it with numpy.savez")


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> NDArray[Any]:
    with _stream(archive, info) as stream:
        array = _array(stream, info.filename, info.file_size)
        if stream.read(1):  # the end of the stream is where zipfile compares the checksum
            raise CollapseError(f"{shorten(info.filename)}: longer than its header promises; {DAMAGED}")
        return array


def _stream(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> BufferedIOBase:
    return cast(BufferedIOBase, archive.open(info))  # typeshed says IO[bytes], which lacks readinto


def _array_file(path: Path) -> NDArray[Any]:
    with parsing(path.name, DAMAGED), path.open("rb") as stream:
        return _array(stream, path.name, path.stat().st_size)


def _array(stream: BufferedIOBase, name: str, size: int) -> NDArray[Any]:
    dtype, shape, fortran, start = _header(stream, name)
    promised = math.prod(shape) * dtype.itemsize
    if promised != size - start:
        raise CollapseError(
            f"{shorten(name)}: header promises {promised} bytes, the file holds {size - start}; {DAMAGED}"
        )
    check_size(shape, dtype.itemsize, shorten(name))
    array = np.empty(shape[::-1] if fortran else shape, dtype)
    if fill(stream, array) != promised:
        raise CollapseError(f"{shorten(name)}: ends before the bytes that its header promises; {DAMAGED}")
    return array.T if fortran else array


def _header(stream: BufferedIOBase, name: str) -> Header:
    """dtype, shape, Fortran order and the header's length; numpy's own reader would read any length that is claimed."""
    magic = stream.read(8)
    if magic[:6] != MAGIC:
        raise CollapseError(f"{shorten(name)}: {PICKLE}")
    if len(magic) < 8 or magic[6] not in HEADERS:
        raise CollapseError(f"{shorten(name)}: npy version {magic[6:].hex()}; save plain numbers or strings")
    width, parse = HEADERS[magic[6]]
    prefix = stream.read(width)
    length = int.from_bytes(prefix, "little")
    if length > MAX_HEADER:
        raise CollapseError(f"{shorten(name)}: a header of {length} bytes; {DAMAGED}")
    with parsing(name, DAMAGED):
        try:
            shape, fortran, dtype = parse(BytesIO(prefix + stream.read(length)))
        except MemoryError:  # Python's parser, of an expression nested too deeply
            raise ValueError("header too deep") from None
    if dtype.kind not in "biufcSU" or not dtype.itemsize:
        raise CollapseError(f"{shorten(name)}: dtype {shorten(str(dtype))}: {PICKLE}")
    if min(shape, default=0) < 0:
        raise CollapseError(f"{shorten(name)}: shape {shorten(shape)}; {DAMAGED}")
    return dtype, shape, fortran, 8 + width + length
