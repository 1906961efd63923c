"""read_model: the head of a model file or folder, with what stands there about its classes and its inputs."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from collapsekit.data.arrays import READERS, read_npy
from collapsekit.data.files import check_bytes, is_folder, one_line
from collapsekit.errors import CollapseError
from collapsekit.heads.candidates import Candidate, candidates, choose, load
from collapsekit.heads.labels import config_labels, distinct
from collapsekit.heads.model_head import ModelHead
from collapsekit.heads.onnx_file import read_onnx
from collapsekit.heads.safetensors_file import Index, index_of
from collapsekit.validation import shorten

FORMATS = ".onnx, .safetensors, .npz, .npy, .pt, .pth, or a folder with config.json and .safetensors files"
KERAS = (".h5", ".hdf5", ".keras")
CONFIG = 16 * 2**20
"""Bytes of a config.json, at most."""


def read_model(path: str, head: str | None = None) -> ModelHead:
    """Return the head of a model; nothing in the file runs.

    Parameters
    ----------
    path : str
        ``.onnx`` (its output layer is found in the graph), ``.safetensors``, ``.npz``, ``.npy``, ``.pt``, ``.pth``, or
        a folder with ``config.json`` and one or more ``.safetensors``.
    head : str, optional
        The layer, as the file calls it; left out: the graph's output layer, the matrix named like a head, or the only
        one.

    Raises
    ------
    CollapseError
        If the file cannot be read, or several of its matrices may be the head.
    """
    with one_line("model", path, f"give {FORMATS}"):
        file = Path(path)
        if is_folder(file):
            return _from_index(*index_of_folder(file), head)
        suffix = file.suffix.lower()
        if suffix == ".onnx":
            return read_onnx(file, head)
        if suffix == ".safetensors":
            return _from_index(index_of([file]), None, head)
        if suffix == ".npy":
            return ModelHead(file.stem, _numbers(file.stem, read_npy(file)), None)
        if suffix in READERS:
            return _from_arrays(READERS[suffix](file, list), head)
        if suffix in KERAS:
            raise CollapseError(f"no reader for Keras's files; run {_exported(path)} and give {file.stem}-head.npz")
        raise CollapseError(f"no reader for the ending {shorten(suffix)}; give {FORMATS}")


def _exported(path: str) -> str:
    """A command that stores the last layer with weights as Keras has it, inputs first."""
    layers = f"keras.models.load_model({json.dumps(path)}, compile=False).layers"
    stored = json.dumps(f"{Path(path).stem}-head.npz")
    code = (
        f"import keras, numpy; w = [one.get_weights() for one in {layers} if one.weights][-1]; "
        f'numpy.savez({stored}, **dict(zip(("kernel", "bias"), w)))'
    )
    return f"python -c {shlex.quote(code)}"


def _from_arrays(arrays: dict[str, NDArray[Any]], head: str | None) -> ModelHead:
    found = choose(candidates({key: array.shape for key, array in arrays.items()}), head)
    weight, bias = load(found, lambda key: _numbers(key, arrays[key]))
    names = arrays.get("names")
    known = None if names is None or names.dtype.kind != "U" or names.shape != (len(weight),) else names.tolist()
    return ModelHead(found.layer, weight, bias, None if known is None else distinct(known))


def _from_index(index: Index, names: tuple[str, ...] | None, head: str | None) -> ModelHead:
    found = chosen(index, names, head)
    weight, bias = load(found, lambda key: _numbers(key, index.read(key)))
    return ModelHead(found.layer, weight, bias, names if names is None or len(names) == len(weight) else None)


def chosen(index: Index, names: tuple[str, ...] | None, head: str | None) -> Candidate:
    """Return which matrix of one or more .safetensors files is the head."""
    return choose(candidates(index.shapes), head, None if names is None else len(names))


def index_of_folder(folder: Path) -> tuple[Index, tuple[str, ...] | None]:
    """Return the matrices of a model's folder, and the names of its classes where its config.json has them."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        onnx = sorted(folder.glob("*.onnx"))
        remedy = f"give {shorten(onnx[0].name)} in it" if onnx else "give a folder with .safetensors files, or a file"
        raise CollapseError(f"no .safetensors files in the folder; {remedy}")
    config = folder / "config.json"
    if config.is_file():
        check_bytes(config.stat().st_size * (2**33 // CONFIG), config.name)
    return index_of(files), config_labels(config) if config.is_file() else None


def _numbers(key: str, array: NDArray[Any]) -> NDArray[Any]:
    if array.dtype.kind not in "iuf":
        raise CollapseError(f"{shorten(key)}: dtype {shorten(str(array.dtype))}; give real numbers")
    return (
        array
        if array.dtype in (np.float32, np.float64)
        else array.astype(np.float32 if array.itemsize < 4 else np.float64)
    )
