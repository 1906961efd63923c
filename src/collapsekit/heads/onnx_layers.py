"""The linear layers of an ONNX graph, one row a class: MatMul and Add, Gemm, 1×1 convolutions, quantised ones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from collapsekit.heads.onnx_graph import DEPTH, MOVES, Graph, dequantised

PASSED = (*MOVES, "DequantizeLinear", "QuantizeLinear")


@dataclass(frozen=True, eq=False)
class Linear:
    """A linear layer: its weight (K, d) and bias, the value that enters it, and what it may be called by."""

    weight: NDArray[Any]
    bias: NDArray[Any] | None
    source: str
    names: tuple[str, ...]


def linear(graph: Graph, name: str, depth: int = 0) -> Linear | None:
    """Return the linear layer that makes a value, None where another operation does."""
    node = graph.maker(name)
    if node is None or depth > DEPTH:
        return None
    read = READERS.get(node.op_type)
    found = None if read is None else read(graph, node, depth)
    if found is None or found.weight.ndim != 2 or min(found.weight.shape) < 1 or found.weight.dtype.kind not in "iuf":
        return None
    return replace(found, names=(*found.names, node.name, name))


def _matmul(graph: Graph, node: Any, _: int) -> Linear | None:
    left, right = node.input[:2]
    for key, other in ((right, left), (left, right)):
        matrix = graph.constant(key)
        if matrix is not None:
            flat = (
                matrix.reshape(matrix.shape[-2:])
                if matrix.ndim > 2 and matrix.size == np.prod(matrix.shape[-2:])
                else matrix
            )
            return Linear(flat.T if key == right else flat, None, other, (key,))
    return None


def _gemm(graph: Graph, node: Any, _: int) -> Linear | None:
    given, matrix = graph.attributes(node), graph.constant(node.input[1])
    if matrix is None or matrix.ndim != 2:
        return None
    weight = matrix if given.get("transB", 0) else matrix.T
    alpha, beta = np.float32(given.get("alpha", 1.0)), np.float32(given.get("beta", 1.0))
    bias = None
    if len(node.input) > 2 and node.input[2]:
        bias = _vector(graph.constant(node.input[2]), len(weight))
        if bias is None:
            return None
    return Linear(
        weight if alpha == 1 else weight * alpha,
        bias if bias is None or beta == 1 else bias * beta,
        node.input[0],
        (node.input[1],),
    )


def _conv(graph: Graph, node: Any, _: int) -> Linear | None:
    kernel = graph.constant(node.input[1])
    if kernel is None or kernel.size != np.prod(kernel.shape[:2]) or graph.attributes(node).get("group", 1) != 1:
        return None
    bias = graph.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    return Linear(kernel.reshape(kernel.shape[:2]), bias, node.input[0], (node.input[1],))


def _add(graph: Graph, node: Any, depth: int) -> Linear | None:
    """A bias behind a layer, through reshapes."""
    for key, other in (node.input[::-1], node.input):
        shift = graph.constant(key)
        inner = None if shift is None else linear(graph, graph.behind(other, PASSED), depth + 1)
        vector = None if inner is None else _vector(shift, len(inner.weight))
        if inner is not None and vector is not None:
            return replace(inner, bias=vector if inner.bias is None else inner.bias + vector)
    return None


def _qlinear(graph: Graph, node: Any, _: int) -> Linear | None:
    matrix, scale, zero = (graph.constant(key) for key in node.input[3:6])
    if matrix is None or scale is None:
        return None
    return Linear(dequantised(matrix, scale, zero).T, None, node.input[0], (node.input[3],))


def _scaled_integers(graph: Graph, node: Any, _: int) -> Linear | None:
    """`Mul(Cast(MatMulInteger), scales)`: the weight's scale is a constant, that of the input may be another factor."""
    for key, other in (node.input[::-1], node.input):
        integers = graph.maker(graph.behind(key))
        if integers is None or integers.op_type != "MatMulInteger":
            continue
        matrix, scale = graph.constant(integers.input[1]), _constant_factor(graph, other)
        zero = graph.constant(integers.input[3]) if len(integers.input) > 3 and integers.input[3] else None
        if matrix is None or scale is None:
            return None
        weight, maker = dequantised(matrix, scale, zero), graph.maker(integers.input[0])
        if maker is not None and maker.op_type == "QuantizeLinear":  # its scale is in the constant, too
            step = graph.constant(maker.input[1])
            if step is None or step.size != 1:
                return None
            weight = weight / step.astype(np.float32).ravel()
        elif maker is None or maker.op_type != "DynamicQuantizeLinear":
            return None
        return Linear(weight.T, None, integers.input[0], (integers.input[1], integers.name))
    return None


def _constant_factor(graph: Graph, name: str) -> NDArray[Any] | None:
    """The constant, or the constant factor of a product with the input's scale."""
    known = graph.constant(name)
    node = graph.maker(graph.behind(name))
    if known is None and node is not None and node.op_type == "Mul":
        factors = [graph.constant(key) for key in node.input]
        known = next((one for one in factors if one is not None), None)
    return known


def _vector(array: NDArray[Any] | None, size: int) -> NDArray[Any] | None:
    """A bias of one value a class, however it is stored; None where it is another shape."""
    if array is None or array.size not in (1, size) or array.dtype.kind not in "iuf":
        return None
    return np.broadcast_to(array.ravel(), (size,))


READERS = {
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Conv": _conv,
    "Add": _add,
    "QLinearMatMul": _qlinear,
    "Mul": _scaled_integers,
}
