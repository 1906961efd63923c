"""A new head in an ONNX graph: the constants of the found layer are replaced, and what comes out is read again."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from collapsekit import files
from collapsekit.data.files import parsing
from collapsekit.errors import CollapseError
from collapsekit.heads.onnx_file import named_layer, output_layer, read_onnx
from collapsekit.heads.onnx_graph import DEPTH, MOVES, REMEDY, Graph
from collapsekit.heads.onnx_layers import PASSED, Linear
from collapsekit.validation import shorten

Floats = NDArray[np.floating]

ROUNDING, SMALL = 2.0**-8, 0.01
"""Of bfloat16, of an entry or of this share of the largest: by more what is read again is not what was written."""
ELSE = "take the new head from --out"


def onnx_with_head(source: Path, target: Path, weight: Floats, bias: Floats | None, head: str | None) -> bytes:
    """Return the file's bytes with another head; constants of it that other nodes use too are refused."""
    with parsing(source.name, REMEDY):
        graph = Graph(source)
        found = output_layer(graph) if head is None else named_layer(graph, head)
        if weight.shape != found.weight.shape:
            raise CollapseError(
                f"the head there is {found.weight.shape[0]} × {found.weight.shape[1]}; give the file that it came from"
            )
        model = graph.onnx.load(str(source), load_external_data=False)
        editor = _Editor(graph, model)
        editor.put(found.names[0], _turned(graph, found, weight))
        for i, name in enumerate(_biases(graph, found.names[-1], bias)):
            editor.put(name, np.zeros(len(weight)) if i or bias is None else bias)
        content = bytes(model.SerializeToString())
        if target.parent.resolve() != source.parent.resolve() and _has_external(model):
            raise CollapseError("the model has external data beside it; give a name in the same folder")
    _check(content, target, head, (weight, bias))
    return content


def _turned(graph: Graph, found: Linear, weight: Floats) -> Floats:
    """The new weight in the orientation and scale in which the file holds the old one."""
    old = graph.constant(found.names[0])
    if old is not None and old.dtype.kind == "f" and old.size == weight.size:
        for turn in (lambda a: a, np.transpose):
            if np.array_equal(turn(found.weight).ravel(), old.ravel()):
                return np.asarray(turn(weight)).reshape(old.shape)
    raise CollapseError(f"the head there is quantised or scaled; {ELSE}")


def _biases(graph: Graph, output: str, bias: Floats | None) -> list[str]:
    """The constants that are added to the logits, the outermost first; none are asked for without a bias."""
    found = list[str]()
    for _ in range(DEPTH if bias is not None else 0):
        node = graph.maker(graph.behind(output, PASSED))
        if node is not None and node.op_type in ("Gemm", "Conv"):
            found += [name for name in node.input[2:] if name]
        if node is None or node.op_type != "Add":
            break
        fixed = [name for name in node.input if graph.constant(name) is not None]
        found += fixed
        output = next((name for name in node.input if name not in fixed), "")
    if bias is not None and not found:
        raise CollapseError(f"the head there has no bias, unlike the new one; {ELSE}")
    return found


class _Editor:
    """Puts arrays in the place of a graph's constants, through what only changes their shape."""

    def __init__(self, graph: Graph, model: Any) -> None:
        self.graph, self.onnx = graph, graph.onnx
        self.tensors = {one.name: one for one in model.graph.initializer}
        self.makers = {name: node for node in model.graph.node for name in node.output if name}
        self.uses = Counter(_used(model.graph))

    def put(self, name: str, array: NDArray[Any]) -> None:
        """Store an array where a constant comes from."""
        for _ in range(DEPTH):
            if self.uses[name] > 1:
                raise CollapseError(f"{shorten(name)} has other uses in the graph (tied weights); {ELSE}")
            if name in self.tensors:
                self._store(self.tensors[name], name, array)
                return
            node = self.makers.get(name)
            if node is None or node.op_type not in ("Constant", *MOVES):
                break
            if node.op_type == "Constant":
                value = next((one for one in node.attribute if one.name == "value"), None)
                if value is None:
                    break
                self._store(value.t, name, array)
                return
            name, array = node.input[0], self._before(node, array)
        raise CollapseError(f"{shorten(name)} is computed in the graph; {ELSE}")

    def _before(self, node: Any, array: NDArray[Any]) -> NDArray[Any]:
        """What a move has to be given so that it makes this array."""
        inner = self.graph.constant(node.input[0])
        assert inner is not None  # what it makes is a constant
        if node.op_type != "Transpose":
            return array.reshape(inner.shape)
        given = self.graph.attributes(node).get("perm") or tuple(range(inner.ndim))[::-1]
        return array.reshape([inner.shape[i] for i in given]).transpose(np.argsort(given))

    def _store(self, tensor: Any, name: str, array: NDArray[Any]) -> None:
        kind = np.dtype(self.onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
        if tensor.data_type not in (1, 10, 11, 16):  # float, float16, double, bfloat16
            raise CollapseError(f"{shorten(name)} is stored as {kind}; {ELSE}")
        shape = list(tensor.dims)
        if np.prod(shape) < array.size:
            raise CollapseError(f"{shorten(name)} is one number for all classes, no room for one each; {ELSE}")
        full = np.broadcast_to(array, shape) if array.size != np.prod(shape) else array.reshape(shape)
        with np.errstate(over="ignore"):
            new = self.onnx.numpy_helper.from_array(np.ascontiguousarray(full.astype(kind)), tensor.name)
        tensor.CopyFrom(new)


def _used(graph: Any) -> Iterator[str]:
    """Every use of a name, those in the branches and loops of a graph included."""
    yield from (one.name for one in graph.output)
    for node in graph.node:
        yield from node.input
        for attribute in node.attribute:
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                yield from _used(inner)


def _has_external(model: Any) -> bool:
    return any(one.data_location == 1 for one in model.graph.initializer)


def _check(content: bytes, target: Path, head: str | None, wanted: tuple[Floats, Floats | None]) -> None:
    """Read the head of what is to be written, beside the target where external data would be found."""
    trial = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        files.replace(trial, content)
        found = read_onnx(trial, head)
    finally:
        trial.unlink(missing_ok=True)
    for new, read in zip(wanted, (found.weight, found.bias), strict=True):
        if not (read is None if new is None else read is not None and _same(new, read)):
            raise CollapseError(f"the head that is read again is another one; {ELSE}")


def _same(wanted: Floats, read: NDArray[Any]) -> bool:
    if wanted.shape != read.shape or not np.isfinite(read).all():
        return False
    sizes = np.abs(wanted)
    return bool((np.abs(read - wanted) <= ROUNDING * np.maximum(sizes, SMALL * sizes.max())).all())
