"""Where the classes stand between the logits of an ONNX graph and its output, axis by axis.

Axes are counted from the end, -1 the last, so that broadcasting moves none; 0 stands for one that is not known.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from collapsekit.heads.onnx_graph import CHOOSING, DEPTH, Graph, reduction

NOT_KNOWN = 0
LIKE_FIRST = (
    *("Relu", "LeakyRelu", "Elu", "Selu", "Sigmoid", "HardSigmoid", "HardSwish", "Gelu", "Mish", "Tanh", "Erf", "Exp"),
    *("Softplus", "Clip", "Cast", "Identity", "Dropout", "Softmax", "LayerNormalization", "BatchNormalization", "Neg"),
    *("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "Sqrt", "Log", "GlobalAveragePool"),
)
"""What keeps the number of axes of its first input."""
BROADCAST = ("Add", "Mul", "Sub", "Div", "Pow", "MatMul", "MatMulInteger", "Max", "Min")


def keeps_classes(graph: Graph, logits: str, nodes: Iterable[Any], size: int) -> bool:
    """Return whether nodes between logits and an output normalise and choose over the classes, and mix them with none.

    Parameters
    ----------
    graph : Graph
        The graph.
    logits : str
        What the linear layer makes.
    nodes : iterable
        From the layer to the output.
    size : int
        Number of classes.
    """
    axis, rank = class_axis(graph, logits, size), rank_of(graph, logits)
    for node in nodes:
        if node.op_type in ("Sub", "Div") and graph.constant(node.input[1]) is None:
            if not _among(reduction(graph, node.input[1]), axis, rank):
                return False
        elif node.op_type in ("Softmax", "LogSoftmax", *CHOOSING):
            if not _among(_normalised(graph, node, rank), axis, rank):
                return False
            if node.op_type in ("ArgMax", "TopK"):
                return True
        else:
            moved = _moved(graph, node, axis, rank, size)
            if moved is None:
                return False
            axis, rank = moved
    return True


def class_axis(graph: Graph, name: str, size: int) -> int:
    """Return the axis of classes of what a linear layer makes."""
    node = graph.maker(name)
    if node.op_type == "Conv":
        return 1 - rank if (rank := rank_of(graph, name)) else NOT_KNOWN
    if node.op_type == "MatMul" and graph.constant(node.input[1]) is None:
        return -2
    if node.op_type == "Add":  # as its bias stands, or as it stands before
        shapes = [known.shape for known in map(graph.constant, node.input) if known is not None]
        shape = shapes[0] if shapes else ()
        return list(shape).index(size) - len(shape) if size in shape else NOT_KNOWN
    return -1


def rank_of(graph: Graph, name: str, depth: int = 0) -> int | None:
    """Return the number of axes of a value; None where neither the file nor the nodes before it tell."""
    known, node = graph.constant(name), graph.maker(name)
    if known is not None or name in graph.ranks:
        return graph.ranks[name] if known is None else known.ndim
    if node is None or depth > DEPTH or not node.input:
        return None

    def of(*places: int) -> int | None:
        found = [rank_of(graph, node.input[i], depth + 1) for i in places]
        return None if None in found else max(one for one in found if one is not None)

    kind = node.op_type
    if kind in ("Gemm", "Flatten"):
        return 2
    if kind == "Conv":
        return of(1)
    if kind == "Transpose":
        return len(graph.attributes(node).get("perm") or ()) or of(0)
    if kind in ("Reshape", "Expand"):
        sizes = graph.constant(node.input[1])
        return None if sizes is None else sizes.size
    if kind in ("Squeeze", "Unsqueeze"):
        axes, before = graph.axes(node), of(0)
        if axes is None or before is None:
            return None
        return before + len(axes) * (1 if kind == "Unsqueeze" else -1)
    if kind == "QLinearMatMul":
        return of(0, 3)
    return of(0) if kind in LIKE_FIRST else of(0, 1) if kind in BROADCAST else None


def _among(axes: list[int] | None, axis: int, rank: int | None) -> bool:
    """Whether the classes' axis is one of these, None for all; undecided it is unless only the samples' is named."""
    if axes is None:
        return True
    if axis == NOT_KNOWN or (rank is None and any(one >= 0 for one in axes)):
        return axes != [0]
    return axis in {one - rank if rank is not None and one >= 0 else one for one in axes}


def _normalised(graph: Graph, node: Any, rank: int | None) -> list[int]:
    """Over which axes a node normalises or chooses; before operator set 13 a softmax goes over all from its axis on."""
    given, kind = graph.attributes(node), node.op_type
    if kind in ("ArgMax", "TopK"):
        return [given.get("axis", 0 if kind == "ArgMax" else -1)]
    if graph.opset >= 13:
        return [given.get("axis", -1)]
    first = given.get("axis", 1)
    if first < 0:
        return [*range(first, 0)]
    return [first] if rank is None else [*range(first - rank, 0)]


Place = tuple[int, int | None]
"""The classes' axis, and the number of axes."""


def _moved(graph: Graph, node: Any, axis: int, rank: int | None, size: int) -> Place | None:
    """Return where the classes stand behind a node; None where they are mixed with something else."""
    kind = node.op_type
    if kind == "Transpose":
        perm = list(graph.attributes(node).get("perm") or range(rank or 0)[::-1])
        known = axis != NOT_KNOWN and perm
        return (perm.index(axis + len(perm)) - len(perm) if known else NOT_KNOWN), len(perm) or None
    if kind == "Reshape":
        return _reshaped(graph, node, axis, rank, size)
    if kind == "Flatten":
        first = graph.attributes(node).get("axis", 1)
        before = rank is not None and axis != NOT_KNOWN and axis < (first - rank if first >= 0 else first)
        return None if before else (axis if axis == NOT_KNOWN else -1, 2)
    if kind in ("Squeeze", "Unsqueeze"):
        return _with_ones(graph, node, axis, rank, 1 if kind == "Unsqueeze" else -1)
    return axis, None if kind == "Expand" else rank


def _with_ones(graph: Graph, node: Any, axis: int, rank: int | None, sign: int) -> Place:
    """Axes of size 1 that come or go."""
    axes = graph.axes(node)
    if axes is None or rank is None:
        return axis if axis == -1 and sign < 0 else NOT_KNOWN, None  # what goes stands before the last
    larger, after = max(rank, rank + sign * len(axes)), rank + sign * len(axes)
    ones = {one % larger for one in axes}
    if axis == NOT_KNOWN:
        return axis, after
    if sign > 0:
        return [i for i in range(larger) if i not in ones][axis + rank] - after, after
    return axis + sum(one > axis + rank for one in ones), after


def _reshaped(graph: Graph, node: Any, axis: int, rank: int | None, size: int) -> Place | None:
    stored = graph.constant(node.input[1])
    if stored is None:
        return NOT_KNOWN, None
    sizes = [int(one) for one in stored.ravel()]
    after, place = len(sizes), None if rank is None else axis + rank
    if axis == -1:  # what stands before may be joined or split; only ones may follow
        end = max((i for i, one in enumerate(sizes) if one != 1), default=0)
        if sizes and sizes[end] > 0:
            return (end - after, after) if sizes[end] == size else None
        if sizes and sizes[end] < 0 and size in sizes:  # the classes' number stands elsewhere, so they do, too
            return None
        same = place == end and (sizes[end] == 0 or not any(sizes[:end]))
        return (end - after if same else NOT_KNOWN), after
    if axis != NOT_KNOWN and place is not None and place < after and not any(sizes[:place]):
        if sizes[place] in (0, size) or (sizes[place] == -1 and place == after - 1):
            return place - after, after
        return None
    return NOT_KNOWN, after
