"""Arrays of a file by rows: what is larger than the memory is read one block at a time.

Files are read, not mapped: pages of a mapped file count as memory of the process, and a file that another program
shortens would end it by a signal.
"""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from collapsekit.data.arrays import DAMAGED, checked_members, widened
from collapsekit.data.files import check_bytes
from collapsekit.errors import CollapseError
from collapsekit.validation import shorten

TENSORS = {
    **{f"F{8 * size}": f"<f{size}" for size in (2, 4, 8)},
    **{f"{kind}{8 * size}": f"<{code}{size}" for kind, code in (("I", "i"), ("U", "u")) for size in (1, 2, 4, 8)},
    "BOOL": "?",
    "BF16": "V2",
}
"""numpy's dtype of each kind of tensor that safetensors stores and that is read."""


@dataclass
class Rows:
    """An array of a file; `read` gives its rows from `start` to `stop`, and nothing else is held in memory."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    read: Callable[[int, int], NDArray[Any]]
    finish: Callable[[], None] = lambda: None


Opened = Mapping[str, Callable[[], Rows]]
"""Arrays by name; each is opened when it is asked for."""


def open_npy(path: Path, stack: ExitStack) -> Rows:
    """Return the array of an .npy file, which `stack` will close."""
    return _npy_rows(stack.enter_context(path.open("rb")), path.name, path.stat().st_size, seekable=True)


def open_npz(path: Path, stack: ExitStack) -> Opened:
    """Return the arrays of an .npz file; one whose columns are stored first is held in memory as a whole."""
    if not zipfile.is_zipfile(path):
        with path.open("rb"):
            raise CollapseError(f"{shorten(path.name)} is no .npz archive; {DAMAGED}")
    archive = stack.enter_context(zipfile.ZipFile(path))

    def member(info: zipfile.ZipInfo) -> Rows:
        return _npy_rows(stack.enter_context(archive.open(info)), info.filename, info.file_size, seekable=False)

    return {info.filename.removesuffix(".npy"): partial(member, info) for info in checked_members(archive)}


def open_safetensors(path: Path, stack: ExitStack) -> Opened:
    """Return the tensors of a .safetensors file; the package checks the header, the rows are read past it."""
    from safetensors import safe_open

    with safe_open(path, framework="np") as tensors:
        names = list(tensors.keys())
    stream = stack.enter_context(path.open("rb"))
    length = int.from_bytes(stream.read(8), "little")
    header = json.loads(stream.read(length))
    return {name: partial(_tensor_rows, stream, name, header[name], 8 + length) for name in names}


def _tensor_rows(stream: IO[bytes], name: str, entry: Mapping[str, Any], start: int) -> Rows:
    if entry["dtype"] not in TENSORS:
        raise CollapseError(f"{shorten(name)}: dtype {shorten(entry['dtype'])}; save it as F16, BF16, F32 or F64")
    dtype, shape = np.dtype(TENSORS[entry["dtype"]]), tuple(entry["shape"])
    return _plain_rows(stream, name, shape, dtype, start + entry["data_offsets"][0])


def _npy_rows(stream: IO[bytes], name: str, size: int, *, seekable: bool) -> Rows:
    """What the header says of an array that is `size` bytes long with it; the two must agree."""
    version = np.lib.format.read_magic(stream)
    if version > (2, 0):  # only for names of fields
        raise CollapseError(f"{shorten(name)}: it is not a plain array; {DAMAGED}")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, columns_first, dtype = read(stream)
    if (dtype.kind not in "biufcSU" and dtype != "V2") or not dtype.itemsize:
        raise CollapseError(f"{shorten(name)}: dtype {shorten(str(dtype))}: it is not a plain array; {DAMAGED}")
    start, promised = stream.tell(), math.prod(shape) * dtype.itemsize
    if start + promised != size:
        raise CollapseError(f"{shorten(name)}: header promises {promised} bytes, {size - start} follow; {DAMAGED}")
    if not columns_first or len(shape) < 2:
        rows = _plain_rows(stream, name, shape, dtype, start)
        rows.finish = partial(_require_end, stream)
        return rows
    if not seekable:
        check_bytes(promised, f"{name}, whose columns are stored first (save numpy.ascontiguousarray of it)")
        whole = _filled(stream, name, shape[::-1], dtype).T
        _require_end(stream)
        return Rows(name, shape, dtype, lambda first, last: _numbers(whole[first:last]))
    return Rows(name, shape, dtype, partial(_by_columns, stream, name, shape, dtype, start))


def _plain_rows(stream: IO[bytes], name: str, shape: tuple[int, ...], dtype: np.dtype[Any], start: int) -> Rows:
    width = math.prod(shape[1:]) * dtype.itemsize

    def read(first: int, last: int) -> NDArray[Any]:
        at = start + first * width
        if stream.tell() != at:  # what is compressed goes forwards only
            stream.seek(at)
        return _numbers(_filled(stream, name, (last - first, *shape[1:]), dtype))

    return Rows(name, shape, dtype, read)


def _by_columns(
    stream: IO[bytes], name: str, shape: tuple[int, ...], dtype: np.dtype[Any], start: int, first: int, last: int
) -> NDArray[Any]:
    """Rows of an array that is stored column by column, as pandas' often are: a piece of each."""
    block = np.empty((math.prod(shape[1:]), last - first), dtype)
    for k, column in enumerate(block):
        stream.seek(start + (k * shape[0] + first) * dtype.itemsize)
        column[:] = _filled(stream, name, (last - first,), dtype)
    return _numbers(block.reshape(*shape[:0:-1], last - first).T)


def _filled(stream: IO[bytes], name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    block = np.empty(shape, dtype)
    if block.size:
        found = stream.readinto(block.reshape(-1).view(np.uint8))  # type: ignore[attr-defined]
        if found != block.nbytes:
            raise CollapseError(f"{shorten(name)}: ends {block.nbytes - found} bytes too early; {DAMAGED}")
    return block


def _numbers(block: NDArray[Any]) -> NDArray[Any]:
    """bfloat16, stored as two nameless bytes, as float32."""
    return widened(np.ascontiguousarray(block).view("<u2")) if block.dtype == "V2" else block


def _require_end(stream: IO[bytes]) -> None:
    """Read past the end, where an archive compares its checksum."""
    if stream.read(1):
        raise CollapseError(f"longer than its header promises; {DAMAGED}")
