"""PyTorch's own files, read by its restricted loader: tensors and plain containers, no code. torch is here alone."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Collection
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from numpy.typing import NDArray

from collapsekit.data.files import check_bytes, parsing
from collapsekit.errors import CollapseError

NESTED = ("state_dict", "model_state_dict", "model")


def read_pt(path: Path, wanted: Callable[[Collection[str]], list[str]]) -> dict[str, NDArray[Any]]:
    """Return the wanted tensors of a dictionary, or of the state dict that it holds."""
    try:
        import torch
    except ImportError:
        raise CollapseError("reading PyTorch's files needs torch; pip install 'collapsekit[torch]'") from None
    with parsing(path.name, "save a dictionary of tensors, or convert it to .safetensors"):
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                check_bytes(sum(info.file_size for info in archive.infolist()), "unpacked")
        try:
            found = torch.load(path, map_location="cpu", weights_only=True)
        except UnpicklingError:  # torch's words advise to load it nevertheless
            raise CollapseError(
                "more than tensors, which may run code and is never opened; save a dictionary of tensors"
            ) from None
        found = next((found[key] for key in NESTED if isinstance(found.get(key), dict)), found)
        tensors = {str(key): value for key, value in found.items() if isinstance(value, torch.Tensor)}
        return {key: _array(tensors[key]) for key in wanted(tensors)}


def _array(tensor: Any) -> NDArray[Any]:
    """numpy lacks bfloat16 and the 8-bit floats."""
    narrow = tensor.is_floating_point() and tensor.element_size() < 4
    array: NDArray[Any] = (tensor.detach().float() if narrow else tensor.detach()).numpy()
    return array
