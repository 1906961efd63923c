"""read_onnx: the output layer of an ONNX classifier, found in its graph."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from collapsekit.data.files import parsing
from collapsekit.errors import CollapseError
from collapsekit.heads.labels import metadata_labels
from collapsekit.heads.model_head import ModelHead, Output
from collapsekit.heads.onnx_axes import keeps_classes
from collapsekit.heads.onnx_graph import CHOOSING, REMEDY, Graph
from collapsekit.heads.onnx_inputs import activation_of
from collapsekit.heads.onnx_layers import Linear, linear
from collapsekit.validation import printable, short

LISTED = 8


def read_onnx(path: Path, head: str | None = None) -> ModelHead:
    """Return the head of a graph: the layer before its output, or the one that is named."""
    with parsing(path.name, REMEDY):
        graph = Graph(path)
        found = output_layer(graph) if head is None else named_layer(graph, head)
        return ModelHead(
            layer=next((name for name in found.names if name), "output"),
            weight=_floats(found.weight),
            bias=None if found.bias is None else _floats(found.bias),
            names=metadata_labels(graph.metadata, len(found.weight)),
            activation=activation_of(graph, found.source),
            output=_use(graph, found),
        )


def _use(graph: Graph, head: Linear) -> Output:
    """Whether the graph puts out the class of the largest logit, a sigmoid of each, or something else of the head."""
    uses = set[Output]()
    for layer, behind in _ending(graph):
        if layer.names[0] == head.names[0]:
            alone = "Sigmoid" in behind and not any(kind in CHOOSING for kind in behind)
            uses.add("sigmoids" if alone else "largest")
    return "sigmoids" if "sigmoids" in uses else "largest" if uses else "unknown"


def _ending(graph: Graph) -> Iterator[tuple[Linear, list[str]]]:
    """Yield the linear layer of each output whose classes are ranked there, and what stands between."""
    for output in graph.outputs:
        behind = list[Any]()
        for node in graph.above(output):
            layer = linear(graph, node.output[0])
            if layer is not None:
                if keeps_classes(graph, node.output[0], behind[::-1], len(layer.weight)):
                    yield layer, [one.op_type for one in behind]
                break
            behind.append(node)


def output_layer(graph: Graph) -> Linear:
    """The one linear layer with at least two classes that leads to an output through what only ranks classes."""
    found = {layer.names[0]: layer for layer, _ in _ending(graph) if len(layer.weight) > 1}
    if len(found) == 1:
        return next(iter(found.values()))
    several = list(found.values()) or _all(graph)
    if not several:
        raise CollapseError("no linear layer with stored weights in the graph; give an ONNX file of a classifier")
    why = "several outputs have layers of their own" if found else "the output is no linear layer's"
    raise CollapseError(f"{why}; name the head with --head: {_listed(several)}")


def named_layer(graph: Graph, head: str) -> Linear:
    every = _all(graph)
    layer = next((one for one in reversed(every) if head in one.names), None)
    if layer is None:
        raise CollapseError(f"no layer {printable(short(head))!r}; --head: one of {_listed(every) or 'nothing'}")
    return layer


def _all(graph: Graph) -> list[Linear]:
    """Every linear layer, those with their bias in place of those without."""
    found = dict[str, Linear]()
    for node in graph.nodes:
        layer = linear(graph, node.output[0]) if node.output else None
        if layer is not None and len(layer.weight) > 1:
            found[layer.names[0]] = layer
    return list(found.values())


def _listed(layers: Sequence[Linear]) -> str:
    shown = [
        f"{printable(short(one.names[0]))!r} ({len(one.weight)} × {one.weight.shape[1]})" for one in layers[-LISTED:]
    ]
    return ", ".join(shown)


def _floats(array: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(array if array.dtype in (np.float32, np.float64) else array.astype(np.float32))
