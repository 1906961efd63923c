"""What enters a head, read from an ONNX graph: the operation before it, through what keeps a lower bound."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import isclose, isfinite, sqrt
from typing import Any

from collapsekit.heads.activations import LOWER, Activation
from collapsekit.heads.onnx_graph import DEPTH, MOVES, Graph

POOLING = ("GlobalAveragePool", "AveragePool", "ReduceMean", "GlobalMaxPool", "MaxPool", "ReduceMax")
"""Means and maxima of numbers above a bound are above it, too; padding with zeros as well, for no bound is above 0."""
DIRECT = {
    "Relu": "relu",
    "Sigmoid": "sigmoid",
    "HardSigmoid": "sigmoid",
    "Softplus": "softplus",
    "Softmax": "softmax",
    "Tanh": "tanh",
    "HardSwish": "hardswish",
    "Gelu": "gelu",
    "Mish": "mish",
}
LARGEST = 1e6
"""Factor up to which a product with a constant is followed."""
ROUNDED = 1e-4
"""Relative accuracy with which constants such as 1/√2 are stored."""


def activation_of(graph: Graph, name: str, depth: int = 0) -> Activation | None:
    """Return what a value comes from, None where it is an input of the graph."""
    node = graph.maker(name)
    if node is None or depth > DEPTH:
        return None

    def before(key: str) -> Activation | None:
        return activation_of(graph, key, depth + 1)

    if node.op_type in (*MOVES, *POOLING):
        return before(node.input[0])
    if node.op_type in ("DequantizeLinear", "QuantizeLinear", "DynamicQuantizeLinear"):
        return _rounded(graph, node, before)
    if node.op_type in DIRECT:
        return Activation(DIRECT[node.op_type], LOWER[DIRECT[node.op_type]], read=True)
    if node.op_type == "Clip":
        return _clipped(graph, node)
    if _multiplies(graph, node):
        return _product(graph, node, before)
    return Activation(node.op_type, None, read=True)


def _rounded(graph: Graph, node: Any, before: Callable[[str], Activation | None]) -> Activation | None:
    """Rounding to a grid that holds 0 keeps a bound of 0, and lowers another by less than one step."""
    found, step = before(node.input[0]), graph.constant(node.input[1]) if len(node.input) > 1 else None
    if found is None or found.lower is None or found.lower == 0:
        return found
    return replace(found, lower=None if step is None or step.size != 1 else found.lower - float(step.item()))


def _clipped(graph: Graph, node: Any) -> Activation:
    given = graph.attributes(node)
    least = graph.constant(node.input[1]) if len(node.input) > 1 and node.input[1] else None
    lower = given.get("min") if least is None else float(least.item()) if least.size == 1 else None
    if lower is None or not isfinite(lower):
        return Activation("Clip", None, read=True)
    return Activation("relu" if lower == 0 else "clip", min(float(lower), 0.0), read=True)


def _product(graph: Graph, node: Any, before: Callable[[str], Activation | None]) -> Activation | None:
    """`x · g(x)` of swish, GELU, hardswish and Mish, in any order of its factors; else a positive multiple."""
    constant, factors = _factors(graph, node)
    if len(factors) == 1 and 0 < constant < LARGEST:
        found = before(factors[0])
        return found if found is None or found.lower is None else replace(found, lower=found.lower * constant)
    for gate, own in (factors, factors[::-1]) if len(factors) == 2 else ():
        found = _gated(graph, gate, own, constant)
        if found is not None:
            return found
    return Activation(node.op_type, None, read=True)


def _factors(graph: Graph, node: Any, depth: int = 0) -> tuple[float, list[str]]:
    """The constant and the other factors of a product of products; a division by a constant counts as one."""
    constant, factors = 1.0, list[str]()
    for place, name in enumerate(node.input):
        name, known = graph.behind(name, ("Identity", "Cast")), graph.constant(name)
        inner = graph.maker(name)
        if known is not None and known.size == 1:
            constant *= float(known.item()) if node.op_type == "Mul" else 1 / float(known.item() or 1)
        elif (
            known is None
            and inner is not None
            and depth < 4
            and _multiplies(graph, inner)
            and (place == 0 or node.op_type == "Mul")
        ):
            more, rest = _factors(graph, inner, depth + 1)
            constant, factors = constant * more, factors + rest
        else:
            factors.append(name)
    return constant, factors


def _multiplies(graph: Graph, node: Any) -> bool:
    return node.op_type == "Mul" or (node.op_type == "Div" and graph.constant(node.input[1]) is not None)


def _gated(graph: Graph, gate: str, own: str, constant: float) -> Activation | None:
    """`constant · own · gate` as an activation of `own`."""
    node = graph.maker(gate)
    test = None if node is None else GATES.get(node.op_type)
    return None if test is None else test(graph, gate, own, constant)


def _known(name: str, times: float = 1.0) -> Activation:
    return Activation(name, (LOWER[name] or 0.0) * times, read=True)


def _swish(graph: Graph, gate: str, own: str, constant: float) -> Activation | None:
    slope = _multiple(graph, graph.maker(gate).input[0], own)
    return (
        None if slope is None or slope <= 0 or not 0 < constant < LARGEST * slope else _known("swish", constant / slope)
    )


def _hardswish(graph: Graph, gate: str, own: str, constant: float) -> Activation | None:
    node = graph.maker(gate)
    given = graph.attributes(node)
    right = isclose(given.get("alpha", 0.2), 1 / 6, rel_tol=ROUNDED) and given.get("beta", 0.5) == 0.5
    return _known("hardswish") if right and constant == 1 and node.input[0] == own else None


def _hardswish_of_clip(graph: Graph, gate: str, own: str, constant: float) -> Activation | None:
    node = graph.maker(gate)
    given, bounds = graph.attributes(node), [graph.constant(key) for key in node.input[1:3]]
    ends: list[Any] = [float(one.item()) for one in bounds if one is not None and one.size == 1]
    right = (ends or [given.get("min"), given.get("max")]) == [0, 6] and isclose(constant, 1 / 6, rel_tol=ROUNDED)
    return _known("hardswish") if right and _shifted(graph, node.input[0], 3.0) == own else None


def _gelu(graph: Graph, gate: str, own: str, constant: float) -> Activation | None:
    inner = graph.maker(_shifted(graph, gate, 1.0) or "")
    slope = None if inner is None or inner.op_type != "Erf" else _multiple(graph, inner.input[0], own)
    right = slope is not None and isclose(slope, 1 / sqrt(2), rel_tol=ROUNDED)
    return _known("gelu") if right and isclose(constant, 0.5, rel_tol=ROUNDED) else None


def _mish(graph: Graph, gate: str, own: str, constant: float) -> Activation | None:
    inner = graph.maker(graph.maker(gate).input[0])
    right = inner is not None and inner.op_type == "Softplus" and inner.input[0] == own
    return _known("mish") if right and constant == 1 else None


GATES: dict[str, Callable[[Graph, str, str, float], Activation | None]] = {
    "Sigmoid": _swish,
    "HardSigmoid": _hardswish,
    "Clip": _hardswish_of_clip,
    "Add": _gelu,
    "Tanh": _mish,
}
"""By the operation that makes the second factor."""


def _multiple(graph: Graph, name: str, own: str) -> float | None:
    """The c of `name = c · own`, None where it is something else."""
    if name == own:
        return 1.0
    node = graph.maker(name)
    if node is None or not _multiplies(graph, node):
        return None
    constant, factors = _factors(graph, node)
    return constant if factors == [own] else None


def _shifted(graph: Graph, name: str, by: float) -> str | None:
    """The x of `name = x + by`, None where it is something else."""
    node = graph.maker(name)
    if node is None or node.op_type != "Add":
        return None
    for key, other in (node.input[::-1], node.input):
        known = graph.constant(key)
        if known is not None and known.size == 1 and known.item() == by:
            return str(other)
    return None
