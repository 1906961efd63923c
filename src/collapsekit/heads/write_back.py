"""rewritten: a model's file with a new head in the old one's place, names and types kept."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from collapsekit import files
from collapsekit.data.arrays import DAMAGED
from collapsekit.data.files import check_bytes, is_folder, one_line, parsing
from collapsekit.errors import CollapseError
from collapsekit.heads.candidates import candidates, choose
from collapsekit.heads.onnx_write import onnx_with_head
from collapsekit.heads.safetensors_file import index_of
from collapsekit.validation import shorten

Floats = NDArray[np.floating]

TYPES: dict[str, Any] = {"F64": np.dtype("<f8"), "F32": np.dtype("<f4"), "F16": np.dtype("<f2")}


def rewritten(model: str, out: str, weight: Floats, bias: Floats | None, *, head: str | None = None) -> bytes:
    """Return what a model's file holds, with another head.

    Parameters
    ----------
    model : str
        A .safetensors or .onnx file.
    out : str
        The file that it is for.
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
    kinds = {".safetensors": _safetensors_with_head, ".onnx": onnx_with_head}
    with one_line("write_back", out, "give a model that can be read"):
        make = kinds.get(source.suffix.lower())
        if make is None or is_folder(source):
            raise CollapseError(
                f"{shorten(source.name)} is no .safetensors or .onnx file; give the one that holds the head, or take "
                "the new head from --out"
            )
        if target.suffix.lower() != source.suffix.lower():
            raise CollapseError(f"a copy of {shorten(source.name)}; give a name that ends in {source.suffix}")
        check_bytes(source.stat().st_size, source.name)
        return make(source, target, weight, bias, head)


def _safetensors_with_head(source: Path, _: Path, weight: Floats, bias: Floats | None, head: str | None) -> bytes:
    """The file's bytes, those of the head's tensors replaced."""
    found = choose(candidates(index_of([source]).shapes), head)
    if weight.shape != found.shape:
        raise CollapseError(f"the head there is {found.shape[0]} × {found.shape[1]}; give the file that it came from")
    if (bias is None) != (found.bias is None):
        there = "no bias" if found.bias is None else "a bias"
        raise CollapseError(f"the head there has {there}, unlike the new one; take the new head from --out")
    content = bytearray(files.read(source))
    with parsing(source.name, DAMAGED):
        start = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(content[8:start])
        for key, array in ((found.key, weight.T if found.turned else weight), (found.bias, bias)):
            if key is not None and array is not None:
                first, last = (start + one for one in header[key]["data_offsets"])
                content[first:last] = _encoded(array, header[key], last - first, key)
    return bytes(content)


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
