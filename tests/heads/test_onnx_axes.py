"""ONNX graphs with a time axis: a head is found where the output ranks its classes, along the axis that they are on."""

import numpy as np
import onnx
import pytest
from numpy.testing import assert_array_equal
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from collapsekit import CollapseError
from collapsekit.heads.files import read_model

BATCH, TIME, DIM, CLASSES = 4, 6, 3, 5
RNG = np.random.default_rng(0)
WEIGHT = RNG.normal(size=(CLASSES, DIM)).astype(np.float32)
BIAS = RNG.normal(size=CLASSES).astype(np.float32)
INPUTS = RNG.normal(size=(BATCH, TIME, DIM)).astype(np.float32)
WANTED = (INPUTS @ WEIGHT.T + BIAS).argmax(axis=2)
ARRAYS = {
    "w": WEIGHT.T,
    "b": BIAS,
    "kernel": WEIGHT[:, :, None, None],
    "flat": np.array([-1, CLASSES]),
    "back": np.array([BATCH, -1, CLASSES]),
    "scrambled": np.array([0, CLASSES, -1]),
    "two": np.array([2]),
    "one": np.array([1]),
    "last": np.array([-1]),
}


def node(kind, inputs, output, **given):
    return helper.make_node(kind, inputs.split(), [output], name=f"node_{output}", **given)


def save(path, nodes, *, opset=17, known=True):
    """A model of these nodes; the number of axes of its input is known or not."""
    tensors = [numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in ARRAYS.items()]
    ends = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    start = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, None, DIM] if known else None)]
    graph = helper.make_graph(nodes, "g", start, ends, tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)]), path)
    return str(path)


HEAD = [node("MatMul", "x w", "m"), node("Add", "m b", "l")]
TURNED = [*HEAD, node("Transpose", "l", "t", perm=[0, 2, 1])]
TIME_FIRST = [*HEAD, node("Transpose", "l", "t", perm=[1, 0, 2])]
COLUMNS = [
    node("Transpose", "x", "a", perm=[0, 2, 1]),
    node("Unsqueeze", "a two", "c"),
    node("Conv", "c kernel b", "l"),
]
SQUEEZED = [*COLUMNS, node("Squeeze", "l two", "s")]
SHARES = [node("Exp", "l", "e")]

# nodes, and how the output's axes are put in the order samples, times, classes
FOUND = {
    "softmax over the third axis": ([*HEAD, node("Softmax", "l", "y", axis=2)], (0, 1, 2)),
    "softmax over the last axis": ([*HEAD, node("Softmax", "l", "y", axis=-1)], (0, 1, 2)),
    "classes second": ([*TURNED, node("Softmax", "t", "y", axis=1)], (0, 2, 1)),
    "time first, as CTC has it": ([*TIME_FIRST, node("LogSoftmax", "t", "y", axis=2)], (1, 0, 2)),
    "samples and times joined": (
        [*HEAD, node("Reshape", "l flat", "f"), node("Softmax", "f", "p", axis=1), node("Reshape", "p back", "y")],
        (0, 1, 2),
    ),
    "convolution": ([*SQUEEZED, node("Softmax", "s", "y", axis=1)], (0, 2, 1)),
    "convolution, turned": (
        [*SQUEEZED, node("Transpose", "s", "t", perm=[0, 2, 1]), node("Softmax", "t", "y", axis=2)],
        (0, 1, 2),
    ),
    "softmax in steps": ([*HEAD, *SHARES, node("ReduceSum", "e two", "s"), node("Div", "e s", "y")], (0, 1, 2)),
    "steps over the last": ([*HEAD, *SHARES, node("ReduceSum", "e last", "s"), node("Div", "e s", "y")], (0, 1, 2)),
}
OTHER_AXIS = {
    "softmax over time": ([*HEAD, node("Softmax", "l", "y", axis=1)], (0, 1, 2)),
    "softmax over samples": ([*HEAD, node("Softmax", "l", "y", axis=0)], (0, 1, 2)),
    "time last": ([*TURNED, node("Softmax", "t", "y", axis=-1)], (0, 2, 1)),
    "samples second": ([*TIME_FIRST, node("LogSoftmax", "t", "y", axis=1)], (1, 0, 2)),
    "not turned back": ([*HEAD, node("Reshape", "l scrambled", "r"), node("Softmax", "r", "y", axis=1)], (0, 2, 1)),
    "convolution, over its columns": ([*SQUEEZED, node("Softmax", "s", "y", axis=2)], (0, 2, 1)),
    "convolution, four axes": ([*COLUMNS, node("Softmax", "l", "s"), node("Squeeze", "s two", "y")], (0, 2, 1)),
    "steps over time": ([*HEAD, *SHARES, node("ReduceSum", "e one", "s"), node("Div", "e s", "y")], (0, 1, 2)),
}


def ranked(path, order):
    output = ReferenceEvaluator(path).run(None, {"x": INPUTS})[0]
    return output.transpose(order).argmax(axis=2)


@pytest.mark.parametrize("kind", FOUND)
def test_the_head_is_found_where_its_classes_are_ranked(tmp_path, kind):
    nodes, order = FOUND[kind]
    path = save(tmp_path / "m.onnx", nodes)
    assert_array_equal(ranked(path, order), WANTED)
    found = read_model(path)
    assert_array_equal(found.weight, WEIGHT)
    assert found.output == "largest"
    assert_array_equal(read_model(save(tmp_path / "m.onnx", nodes, known=False)).weight, WEIGHT)


@pytest.mark.parametrize("kind", OTHER_AXIS)
def test_a_matrix_whose_classes_another_axis_normalises_is_no_head(tmp_path, kind):
    nodes, order = OTHER_AXIS[kind]
    path = save(tmp_path / "m.onnx", nodes)
    assert (ranked(path, order) != WANTED).any()
    with pytest.raises(CollapseError, match="the output is no linear layer's; name the head with --head"):
        read_model(path)
    layer = "kernel" if "convolution" in kind else "w"
    assert read_model(path, layer).output == "unknown"


@pytest.mark.parametrize(("axis", "taken"), [(2, True), (-1, True), (1, False), (0, False)])
def test_the_largest_is_chosen_among_the_classes(tmp_path, axis, taken):
    path = save(tmp_path / "m.onnx", [*HEAD, node("ArgMax", "l", "y", axis=axis, keepdims=0)])
    chosen = ReferenceEvaluator(path).run(None, {"x": INPUTS})[0]
    assert (chosen.shape == WANTED.shape and (chosen == WANTED).all()) == taken
    assert read_model(path, "w").output == ("largest" if taken else "unknown")


def test_without_an_axis_the_largest_is_chosen_among_samples(tmp_path):
    path = save(tmp_path / "m.onnx", [*HEAD, node("ArgMax", "l", "y")])
    assert ReferenceEvaluator(path).run(None, {"x": INPUTS})[0].shape == (1, TIME, CLASSES)
    with pytest.raises(CollapseError, match="no linear layer's"):
        read_model(path)


@pytest.mark.parametrize(("axis", "taken"), [(1, True), (2, True), (0, True)])
def test_before_operator_set_13_a_softmax_goes_over_all_axes_from_its_own(tmp_path, axis, taken):
    path = save(tmp_path / "m.onnx", [*HEAD, node("Softmax", "l", "y", axis=axis)], opset=11)
    joint = np.exp(INPUTS @ WEIGHT.T + BIAS)
    joint /= joint.sum(axis=tuple(range(axis, 3)), keepdims=True)  # as the standard has it
    assert (joint.argmax(axis=2) == WANTED).all() == taken
    assert_array_equal(read_model(path).weight, WEIGHT)
