"""rewritten: a model's files with a new head in the old one's place, names and types kept."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from collapsekit import files
from collapsekit.data.arrays import DAMAGED
from collapsekit.data.files import check_bytes, is_folder, one_line, parsing
from collapsekit.errors import CollapseError
from collapsekit.heads.candidates import Candidate
from collapsekit.heads.files import chosen, index_of_folder
from collapsekit.heads.onnx_write import onnx_with_head
from collapsekit.heads.safetensors_file import Index, index_of
from collapsekit.validation import shorten

Floats = NDArray[np.floating]

TYPES: dict[str, Any] = {"F64": np.dtype("<f8"), "F32": np.dtype("<f4"), "F16": np.dtype("<f2")}


def rewritten(
    model: str, out: str, weight: Floats, bias: Floats | None, *, head: str | None = None
) -> dict[Path, bytes]:
    """Return what the files of a model that hold its head are to hold, with another head, by their new names.

    Parameters
    ----------
    model : str
        A .safetensors or .onnx file, or a folder of .safetensors files, of which one or two hold the head.
    out : str
        The file or folder that it is for.
    weight, bias : ndarray, shape (K, d), (K,)
        The new head; a bias of None where the file has none.
    head : str, optional
        The layer, as for :func:`collapsekit.heads.files.read_model`.

    Raises
    ------
    CollapseError
        If the head cannot be written: another shape, a bias the file has no room for, integers, or a matrix with other
        uses in the graph.
    """
    source, target = Path(model), Path(out)
    with one_line("write_back", out, "give a model that can be read"):
        if is_folder(source):
            index, names = index_of_folder(source)
            changed = _with_head(index, chosen(index, names, head), weight, bias)
            linked = next((path.name for path in changed if (target / path.name).is_symlink()), None)
            if linked is not None:
                raise CollapseError(
                    f"{shorten(linked)} is a symbolic link there, as in a cache of downloads; name a new folder beside "
                    "the model's"
                )
            return {target / path.name: content for path, content in changed.items()}
        if source.suffix.lower() not in (".safetensors", ".onnx"):
            raise CollapseError(
                f"{shorten(source.name)} is no .safetensors or .onnx file; give the one that holds the head, or take "
                "the new head from --out"
            )
        if target.suffix.lower() != source.suffix.lower():
            raise CollapseError(f"a copy of {shorten(source.name)}; give a name that ends in {source.suffix}")
        check_bytes(source.stat().st_size, source.name)
        if source.suffix.lower() == ".onnx":
            return {target: onnx_with_head(source, target, weight, bias, head)}
        index = index_of([source])
        return {target: _with_head(index, chosen(index, None, head), weight, bias)[source]}


def write_back(model: str, out: str, changed: Mapping[Path, bytes]) -> None:
    """Write what :func:`rewritten` returned; a new folder gets the other files of the old one as hard links or copies.

    Raises
    ------
    CollapseError
        If a file cannot be written, or there is something else under the name of the folder.
    """
    target = Path(out)
    if not is_folder(Path(model)) or (target.exists() and os.path.samefile(model, target)):
        for path, content in changed.items():
            files.replace(path, content)
        return
    trial = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    names = {path.name for path in changed}
    try:
        with files.writing(target):
            shutil.copytree(
                model,
                trial,
                copy_function=_link,
                ignore=lambda folder, _: names if os.path.samefile(folder, model) else (),
            )
            for path, content in changed.items():
                files.replace(trial / path.name, content)
                shutil.copymode(Path(model) / path.name, trial / path.name)
            trial.rename(target)
    finally:
        shutil.rmtree(trial, ignore_errors=True)


def _link(source: str, target: str) -> None:
    """The same content under another name, without the room for a copy where the file system can."""
    try:
        os.link(os.path.realpath(source), target)
    except OSError:
        shutil.copy2(source, target)


def _with_head(index: Index, found: Candidate, weight: Floats, bias: Floats | None) -> dict[Path, bytes]:
    """The bytes of each file that holds a tensor of the head, those of the tensors replaced."""
    if weight.shape != found.shape:
        raise CollapseError(f"the head there is {found.shape[0]} × {found.shape[1]}; give the file that it came from")
    if (bias is None) != (found.bias is None):
        there = "no bias" if found.bias is None else "a bias"
        raise CollapseError(f"the head there has {there}, unlike the new one; take the new head from --out")
    contents = dict[Path, bytearray]()
    for key, array in ((found.key, weight.T if found.turned else weight), (found.bias, bias)):
        if key is not None and array is not None:
            path = index.files[key]
            if key in index.repeated:
                raise CollapseError(f"{shorten(key)} is in several files of the folder; give --head the file to change")
            if path not in contents:
                check_bytes(path.stat().st_size, path.name)
                contents[path] = bytearray(files.read(path.resolve()))
            _put(contents[path], path.name, key, array)
    return {path: bytes(content) for path, content in contents.items()}


def _put(content: bytearray, name: str, key: str, array: Floats) -> None:
    """Replace one tensor in the bytes of a .safetensors file."""
    with parsing(name, DAMAGED):
        start = 8 + int.from_bytes(content[:8], "little")
        entry = json.loads(content[8:start])[key]
        first, last = (start + one for one in entry["data_offsets"])
        content[first:last] = _encoded(array, entry, last - first, key)


def _encoded(array: Floats, entry: dict[str, Any], size: int, key: str) -> bytes:
    """An array in the type of a tensor; what is no floating point number, or beyond its range, is refused."""
    kind = entry["dtype"]
    if kind != "BF16" and kind not in TYPES:
        raise CollapseError(f"{shorten(key)} is stored as {shorten(kind)}; give a file of floating point numbers")
    with np.errstate(over="ignore"):
        stored = _bfloat16(array) if kind == "BF16" else array.astype(TYPES[kind])
        finite = np.isfinite(array.astype(np.float32) if kind == "BF16" else stored).all()
    if not finite:
        raise CollapseError(
            f"{shorten(key)} is stored as {kind}, whose range the new head leaves; save it as F32 first"
        )
    content = np.ascontiguousarray(stored).tobytes()
    if len(content) != size or prod(entry["shape"]) != array.size:
        raise CollapseError(f"{shorten(key)}: {size} bytes for {array.size} numbers; {DAMAGED}")
    return content


def _bfloat16(array: NDArray[np.floating]) -> NDArray[np.uint16]:
    """The upper half of float32, rounded to nearest, ties to even."""
    bits = np.ascontiguousarray(array, dtype="<f4").view("<u4").astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> np.uint64(16)) & np.uint64(1))) >> np.uint64(16)).astype("<u2")
