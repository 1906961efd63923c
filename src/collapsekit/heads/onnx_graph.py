"""An ONNX graph as the reader of heads needs it: who makes a value, and the constants, also those stored beside.

Only the file is read; nothing of it runs. External data stands in the file's own folder or is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from collapsekit.data.files import check_bytes, is_folder, parsing
from collapsekit.errors import CollapseError
from collapsekit.validation import shorten

REMEDY = "give an intact ONNX file"
DEPTH = 64
"""So many operations on a constant, or reshapes after one another, are followed."""
MOVES = ("Identity", "Cast", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Transpose", "Dropout")
"""What changes the shape of an array and none of its numbers."""


class Graph:
    """Nodes by what they make, and constants by name."""

    def __init__(self, path: Path) -> None:
        try:
            self.onnx: Any = import_module("onnx")
        except ImportError:
            raise CollapseError("reading ONNX needs onnx; pip install 'collapsekit[onnx]'") from None
        check_bytes(path.stat().st_size, path.name)
        self.folder = path.parent
        with parsing(path.name, REMEDY):
            model = self.onnx.load(str(path), load_external_data=False)
        self.nodes = list(model.graph.node)
        self.makers = {name: node for node in self.nodes for name in node.output if name}
        self.tensors = {one.name: one for one in model.graph.initializer}
        self.known = dict[str, NDArray[Any] | None]()
        self.outputs = [one.name for one in model.graph.output]
        self.ranks = {
            one.name: len(one.type.tensor_type.shape.dim)
            for one in (*model.graph.input, *model.graph.value_info)
            if one.type.tensor_type.HasField("shape")
        }
        self.opset = max((one.version for one in model.opset_import if one.domain in ("", "ai.onnx")), default=1)
        self.metadata = {entry.key: entry.value for entry in model.metadata_props}
        if not self.nodes or not self.outputs:
            raise CollapseError(f"{shorten(path.name)} holds no graph; {REMEDY}")

    def attributes(self, node: Any) -> dict[str, Any]:
        """Return the attributes of a node by name."""
        return {one.name: self.onnx.helper.get_attribute_value(one) for one in node.attribute}

    def axes(self, node: Any) -> list[int] | None:
        """Return the axes that a node is given, as an attribute or as a constant input; None for none."""
        stored = self.constant(node.input[1]) if len(node.input) > 1 and node.input[1] else None
        given = self.attributes(node).get("axes") if stored is None else stored.ravel().tolist()
        return None if given is None else [int(one) for one in given]

    def maker(self, name: str) -> Any:
        """Return the node that makes a value, None for an input or a constant."""
        return self.makers.get(name)

    def constant(self, name: str, depth: int = 0) -> NDArray[Any] | None:
        """Return the array that a value always is, None where it depends on the input."""
        if name not in self.known:
            self.known[name] = None  # of a circle
            self.known[name] = self._evaluate(name, depth)
        return self.known[name]

    def _evaluate(self, name: str, depth: int) -> NDArray[Any] | None:
        if name in self.tensors:
            return self._array(self.tensors[name])
        node = self.makers.get(name)
        if node is None or depth > DEPTH:
            return None
        if node.op_type == "Constant":
            return self._stored(node)
        if node.op_type not in (*MOVES, "DequantizeLinear"):
            return None
        first = self.constant(node.input[0], depth + 1)
        if first is None:
            return None
        with parsing(f"constant {name}", REMEDY):
            if node.op_type == "DequantizeLinear":
                return self._dequantised(node, first, depth)
            return self._moved(node, first, depth)

    def _stored(self, node: Any) -> NDArray[Any] | None:
        for key, value in self.attributes(node).items():
            if key == "value":
                return self._array(value)
            if key.startswith("value_") and "string" not in key:
                return np.asarray(value)
        return None

    def _moved(self, node: Any, array: NDArray[Any], depth: int) -> NDArray[Any] | None:
        if node.op_type in ("Identity", "Dropout"):
            return array
        given = self.attributes(node)
        if node.op_type == "Cast":
            return array if array.dtype.kind == "f" and given.get("to") in (1, 10, 11, 16) else None
        if node.op_type == "Transpose":
            return array.transpose(given.get("perm") or tuple(range(array.ndim))[::-1])
        if node.op_type == "Flatten":
            return array.reshape(prod(array.shape[: given.get("axis", 1)]), -1)
        if node.op_type == "Squeeze" and len(node.input) < 2 and "axes" not in given:
            return array.squeeze()
        wanted = self.constant(node.input[1], depth + 1) if len(node.input) > 1 else None
        sizes = [int(one) for one in (given.get("axes", ()) if wanted is None else wanted.ravel())]
        if node.op_type == "Reshape":
            return array.reshape([array.shape[i] if size == 0 else size for i, size in enumerate(sizes)])
        return array.squeeze(tuple(sizes)) if node.op_type == "Squeeze" else np.expand_dims(array, tuple(sizes))

    def _dequantised(self, node: Any, array: NDArray[Any], depth: int) -> NDArray[Any] | None:
        rest = [self.constant(name, depth + 1) if name else None for name in node.input[1:]]
        if rest[0] is None or self.attributes(node).get("block_size"):
            return None
        return dequantised(array, rest[0], rest[1] if len(rest) > 1 else None, self.attributes(node).get("axis", 1))

    def _array(self, tensor: Any) -> NDArray[Any]:
        name = shorten(tensor.name, 40)
        sizes = list(tensor.dims)
        if any(size < 0 for size in sizes):
            raise CollapseError(f"{name}: a negative size; {REMEDY}")
        check_bytes(prod(sizes) * 4, name)
        with parsing(name, REMEDY):
            if tensor.data_location == self.onnx.TensorProto.EXTERNAL:
                return self._beside(tensor).reshape(sizes)
            found: NDArray[Any] = self.onnx.numpy_helper.to_array(tensor)
            return found.astype(np.float32) if found.dtype.kind == "V" or found.dtype.name == "bfloat16" else found

    def _beside(self, tensor: Any) -> NDArray[Any]:
        """External data, in the file's own folder only: links and paths that lead out of it are refused."""
        entry = {one.key: one.value for one in tensor.external_data}
        folder, location = self.folder.resolve(), entry.get("location", "")
        path = (folder / location).resolve()
        if not location or Path(location).is_absolute() or not path.is_relative_to(folder) or path == folder:
            raise CollapseError(f"external data {shorten(location)} lie outside the file's folder; copy them into it")
        if is_folder(path):
            raise CollapseError(f"external data {shorten(location)} are a folder; give the file that was exported")
        kind = np.dtype(self.onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
        count, offset = prod(tensor.dims), int(entry.get("offset", 0))
        if offset < 0 or offset + count * kind.itemsize > path.stat().st_size:
            raise CollapseError(f"external data {shorten(location)} are shorter than promised; export the model again")
        array = np.fromfile(path, kind, count, offset=offset)
        return array.astype(np.float32) if kind.kind not in "iuf" else array

    def behind(self, name: str, through: tuple[str, ...] = MOVES) -> str:
        """Return the value before all reshapes."""
        for _ in range(DEPTH):
            node = self.makers.get(name)
            if node is None or node.op_type not in through or not node.input:
                break
            name = node.input[0]
        return name

    def above(self, name: str) -> Iterator[Any]:
        """Yield the nodes that only rank or normalise classes, and the first of another kind, back from a value."""
        seen = set[str]()
        while name in self.makers and name not in seen:
            seen.add(name)
            node = self.makers[name]
            yield node
            ranked = ranked_input(self, node)
            if ranked is None:
                break
            name = ranked


CHOOSING = ("ArgMax", "TopK", "Hardmax")
RANKING = (*MOVES, *CHOOSING, "Softmax", "LogSoftmax", "Sigmoid", "Exp", "Log", "Expand", "ZipMap", "Normalizer")
"""What stands between the logits and the output of a classifier and keeps the order of what enters it."""
ROUNDED = ("QuantizeLinear", "DequantizeLinear")
POSITIVE = ("Exp", "Softmax", "Sigmoid")
SCALARS = ("Cast", "Reshape", "Identity", "Expand", "Clip", "Max", "Add", "Squeeze", "Unsqueeze")
"""What may stand between a sum over classes and what is divided by it."""


def ranked_input(graph: Graph, node: Any) -> str | None:
    """Return the input whose largest entries are those of the output; None where that is not certain.

    Constants must be one number, a factor above 0; what is taken off or divided by may also be a number of each sample
    that is found from all classes, as in a softmax in single steps. Over which axes is for `keeps_classes`.
    """
    first, *rest = node.input or [""]
    known = [graph.constant(name) for name in rest]
    kind, ranked = node.op_type, None
    if kind in RANKING:
        ranked = None if kind == "TopK" and not graph.attributes(node).get("largest", 1) else first
    elif kind in ROUNDED:
        ranked = first if all(one is not None and one.size == 1 for one in known) else None
    elif kind == "Mul":
        factors = (*known, graph.constant(first))
        ranked = next((name for name, other in zip(node.input, factors, strict=True) if _factor(other)), None)
    elif kind == "Sub":
        ranked = first if _number(known[0]) or _reduced(graph, rest[0], logarithmic=True) else None
    elif kind == "Div":
        ranked = first if _factor(known[0]) or _reduced(graph, rest[0], logarithmic=False) else None
    return ranked


def _number(constant: NDArray[Any] | None) -> bool:
    return constant is not None and constant.size == 1


def _factor(constant: NDArray[Any] | None) -> bool:
    return constant is not None and constant.size == 1 and bool(constant.item() > 0)


def reduction(graph: Graph, name: str) -> list[int] | None:
    """Return the axes over which a number of each sample is found; None for all."""
    for _ in range(DEPTH):
        node = graph.maker(name)
        if node is None or node.op_type.startswith("Reduce"):
            return None if node is None else graph.axes(node)
        name = next((key for key in node.input if graph.constant(key) is None), "")
    return None


def _reduced(graph: Graph, name: str, *, logarithmic: bool) -> bool:
    """Whether a value is one number of each sample: a maximum or log-sum over classes, or a sum of positive numbers."""
    for _ in range(DEPTH):
        node = graph.maker(name)
        least = -np.inf if logarithmic or (node is not None and node.op_type == "Max") else 0.0
        if (
            node is None
            or not node.input
            or (node.op_type in ("Add", "Max") and not _number_beside(graph, node, least))
        ):
            return False
        if node.op_type in SCALARS or (logarithmic and node.op_type == "Log"):
            name = next((key for key in node.input if graph.constant(key) is None), "")
            continue
        if logarithmic:
            return node.op_type in ("ReduceMax", "ReduceLogSumExp", "ReduceSum", "ReduceMean")
        inner = graph.maker(graph.behind(node.input[0]))
        positive = inner is not None and inner.op_type in POSITIVE
        return node.op_type in ("ReduceL1", "ReduceL2") or (positive and node.op_type in ("ReduceSum", "ReduceMax"))
    return False


def _number_beside(graph: Graph, node: Any, least: float) -> bool:
    """Whether all inputs but one are constants, one number of at least `least` each."""
    known = [one for one in map(graph.constant, node.input) if one is not None]
    return len(known) == len(node.input) - 1 and all(one.size == 1 and one.item() >= least for one in known)


def dequantised(
    array: NDArray[Any], scale: NDArray[Any], zero: NDArray[Any] | None, axis: int = 1
) -> NDArray[np.float32]:
    """Return (array − zero) scale in float32, as runtimes compute it; scale and zero by tensor or along an axis."""
    shape = [1] * array.ndim
    if scale.size > 1:
        shape[axis] = scale.size
    centred = array.astype(np.int64) - (
        0 if zero is None else zero.astype(np.int64).reshape(shape if zero.size > 1 else 1)
    )
    found: NDArray[np.float32] = centred.astype(np.float32) * scale.astype(np.float32).reshape(shape)
    return found
