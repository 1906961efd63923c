"""ONNX: every shape of head is found and its inputs are read from the graph; hostile files cost one line."""

import contextlib
import json
import os

import numpy as np
import onnx
import pytest
from numpy.testing import assert_allclose
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from _support.tolerances import FLOAT32
from collapsekit import CollapseError
from collapsekit.heads.files import read_model

RNG = np.random.default_rng(0)
WEIGHT = RNG.normal(size=(5, 3)).astype(np.float32)
BIAS = RNG.normal(size=5).astype(np.float32)
QUANTISED = RNG.integers(-100, 100, size=(3, 5)).astype(np.int8)
COLUMN_SCALES = RNG.uniform(0.01, 0.02, 5).astype(np.float32)
ONE, ZERO = np.float32(0.03), np.int8(2)


def node(kind, inputs, output, **given):
    return helper.make_node(kind, inputs.split(), [output], name=f"node_{output}", **given)


def save(path, nodes, arrays, *, outputs=("y",), metadata=None, external=False):
    """A model of these nodes from x to the outputs."""
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    start = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 3])]
    model = helper.make_model(helper.make_graph(nodes, "g", start, ends, tensors))
    helper.set_model_props(model, metadata or {})
    if external:
        onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    else:
        onnx.save(model, path)
    return str(path)


DEQUANTISED = (QUANTISED.astype(np.float32) - np.float32(ZERO)) * ONE
BY_COLUMN = QUANTISED.astype(np.float32) * COLUMN_SCALES
CONSTANT = helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(WEIGHT.T.copy()))
HEADS = {
    "matmul": ([node("MatMul", "x w", "m"), node("Add", "m b", "y")], {"w": WEIGHT.T, "b": BIAS}, WEIGHT),
    "weights first": ([node("MatMul", "w x", "y")], {"w": WEIGHT}, WEIGHT),
    "bias first": ([node("MatMul", "x w", "m"), node("Add", "b m", "y")], {"w": WEIGHT.T, "b": BIAS[None]}, WEIGHT),
    "reshaped between": (
        [node("MatMul", "x w", "m"), node("Reshape", "m s", "r"), node("Add", "r b", "y")],
        {"w": WEIGHT.T, "b": BIAS, "s": np.array([-1, 5])},
        WEIGHT,
    ),
    "constant": ([CONSTANT, node("MatMul", "x w", "m"), node("Add", "m b", "y")], {"b": BIAS}, WEIGHT),
    "moved": (
        [
            node("Transpose", "v", "t", perm=[1, 0]),
            node("Identity", "t", "w"),
            node("MatMul", "x w", "m"),
            node("Add", "m b", "y"),
        ],
        {"v": WEIGHT, "b": BIAS},
        WEIGHT,
    ),
    "gemm": ([node("Gemm", "x w b", "y")], {"w": WEIGHT.T, "b": BIAS}, WEIGHT),
    "gemm turned": (
        [node("Gemm", "x w b", "y", transB=1, alpha=2.0, beta=0.5)],
        {"w": WEIGHT / 2, "b": 2 * BIAS},
        WEIGHT,
    ),
    "convolution": ([node("Conv", "x w b", "y")], {"w": WEIGHT[:, :, None, None], "b": BIAS}, WEIGHT),
    "dequantised": (
        [node("DequantizeLinear", "q s z", "w"), node("MatMul", "x w", "m"), node("Add", "m b", "y")],
        {"q": QUANTISED, "s": ONE, "z": ZERO, "b": BIAS},
        DEQUANTISED.T,
    ),
    "dequantised by column": (
        [node("DequantizeLinear", "q s", "w", axis=1), node("MatMul", "x w", "m"), node("Add", "m b", "y")],
        {"q": QUANTISED, "s": COLUMN_SCALES, "b": BIAS},
        BY_COLUMN.T,
    ),
    "QLinearMatMul": (
        [
            node("QuantizeLinear", "x s z", "a"),
            node("QLinearMatMul", "a s z q s z s z", "o"),
            node("DequantizeLinear", "o s z", "m"),
            node("Add", "m b", "y"),
        ],
        {"q": QUANTISED, "s": ONE, "z": ZERO, "b": BIAS},
        DEQUANTISED.T,
    ),
    "dynamic": (
        [
            helper.make_node("DynamicQuantizeLinear", ["x"], ["a", "as", "az"]),
            node("MatMulInteger", "a q az z", "i"),
            node("Cast", "i", "f", to=TensorProto.FLOAT),
            node("Mul", "as s", "scales"),
            node("Mul", "f scales", "m"),
            node("Add", "m b", "y"),
        ],
        {"q": QUANTISED, "s": ONE, "z": ZERO, "b": BIAS},
        DEQUANTISED.T,
    ),
    "integers": (
        [
            node("QuantizeLinear", "x e z", "a"),
            node("MatMulInteger", "a q z z", "i"),
            node("Cast", "i", "f", to=TensorProto.FLOAT),
            node("Mul", "f s", "m"),
            node("Add", "m b", "y"),
        ],
        {"q": QUANTISED, "s": ONE * np.float32(0.5), "e": np.float32(0.5), "z": ZERO, "b": BIAS},
        DEQUANTISED.T,
    ),
}


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("tail", [(), ("Softmax",), ("Identity", "Reshape", "LogSoftmax")])
def test_a_head_of_every_shape_is_found(tmp_path, kind, tail):
    nodes, arrays, weight = HEADS[kind]
    end, more, axis = "y", [], {"convolution": 1, "weights first": 0}.get(kind, -1)
    for step in tail:
        given = {"axis": axis} if "Softmax" in step else {}
        more.append(node(step, f"{end} shape" if step == "Reshape" else end, end + "t", **given))
        end += "t"
    shape = np.array([5, -1] if axis == 0 else [0, 5])
    path = save(tmp_path / "m.onnx", [*nodes, *more], {**arrays, "shape": shape}, outputs=(end,))
    found = read_model(path)
    assert_allclose(found.weight, weight, rtol=FLOAT32)
    if "b" in arrays:
        assert_allclose(found.bias, BIAS, rtol=FLOAT32)
    else:
        assert found.bias is None
    assert read_model(path, found.layer).layer == found.layer


def test_softmax_in_single_steps_is_passed(tmp_path):
    steps = [
        node("ReduceMax", "l", "t"),
        node("Sub", "l t", "d"),
        node("Exp", "d", "e"),
        node("ReduceSum", "e", "s"),
        node("Div", "e s", "y"),
    ]
    path = save(tmp_path / "m.onnx", [node("Gemm", "x w b", "l", transB=1), *steps], {"w": WEIGHT, "b": BIAS})
    assert_allclose(read_model(path).weight, WEIGHT)


HEAD = node("Gemm", "x w b", "l", transB=1)
SHARES = [node("Exp", "l", "e"), node("ReduceSum", "e one", "s")]
KEEPS_ORDER = {
    "factor": [node("Mul", "l two", "y")],
    "factor first": [node("Mul", "two l", "y")],
    "temperature": [node("Div", "l two", "y")],
    "shift": [node("Sub", "l two", "y")],
    "log-softmax in steps": [*SHARES, node("Log", "s", "t"), node("Sub", "l t", "y")],
    "less its mean": [node("ReduceMean", "l one", "t"), node("Sub", "l t", "y")],
    "softmax held above zero": [*SHARES, node("Max", "s two", "t"), node("Div", "e t", "y")],
    "less its largest, bounded from below": [
        node("ReduceMax", "l", "t"),
        node("Max", "lowest t", "m"),
        node("Sub", "l m", "y"),
    ],
    "normalised": [node("ReduceL2", "l one", "t"), node("Div", "l t", "y")],
    "softmax": [node("Softmax", "l", "y")],
}
LOSES_ORDER = {
    "negative": [node("Neg", "l", "y")],
    "negative factor": [node("Mul", "l minus", "y")],
    "divided by a negative": [node("Div", "l minus", "y")],
    "taken off": [node("Sub", "two l", "y")],
    "divides": [node("Div", "two l", "y")],
    "prior": [node("Mul", "l five", "y")],
    "offsets": [node("Sub", "l five", "y")],
    "largest of two": [node("Max", "l five", "y")],
    "held above": [node("Max", "l two", "y")],
    "smallest of two": [node("Min", "l five", "y")],
    "held below": [node("Clip", "l minus two", "y")],
    "two heads": [node("Gemm", "x w", "m", transB=1), node("Sub", "l m", "y")],
    "product of two": [node("Mul", "l l", "y")],
    "over a sum of any sign": [node("ReduceSum", "l one", "t"), node("Div", "l t", "y")],
    "over a sum of samples": [node("Exp", "l", "e"), node("ReduceSum", "e zero", "t"), node("Div", "e t", "y")],
    "softmax over samples": [node("Softmax", "l", "y", axis=0)],
    "the smallest": [helper.make_node("TopK", ["l", "one"], ["y", "i"], largest=0)],
    "scales by class": [node("QuantizeLinear", "l five", "q"), node("DequantizeLinear", "q five", "y")],
}
BEHIND = {
    "w": WEIGHT,
    "b": BIAS,
    "two": np.float32(2),
    "minus": np.float32(-1),
    "lowest": np.float32(-np.inf),
    "five": np.array([1, 1, 1, 9, 9], np.float32),
    "zero": np.array([0]),
    "one": np.array([1]),
}


@pytest.mark.parametrize("kind", KEEPS_ORDER)
def test_what_keeps_the_order_of_classes_is_passed(tmp_path, kind):
    path = save(tmp_path / "m.onnx", [HEAD, *KEEPS_ORDER[kind]], BEHIND)
    inputs = RNG.normal(size=(50, 3)).astype(np.float32)
    output = ReferenceEvaluator(path).run(None, {"x": inputs})[0]
    assert (output.argmax(axis=1) == (inputs @ WEIGHT.T + BIAS).argmax(axis=1)).all()
    assert_allclose(read_model(path).weight, WEIGHT)
    assert read_model(path).output == "largest"


@pytest.mark.parametrize("kind", LOSES_ORDER)
def test_what_may_lose_the_order_of_classes_is_not_passed(tmp_path, kind):
    path = save(tmp_path / "m.onnx", [HEAD, *LOSES_ORDER[kind]], BEHIND)
    with pytest.raises(CollapseError, match="the output is no linear layer's; name the head with --head: 'w'"):
        read_model(path)
    named = read_model(path, "w")
    assert named.output == "unknown"
    assert_allclose(named.weight, WEIGHT)


@pytest.mark.parametrize(
    ("tail", "output"),
    [
        ([node("Sigmoid", "l", "y")], "sigmoids"),
        ([node("Sigmoid", "l", "s"), node("Mul", "s two", "y")], "sigmoids"),
        ([node("Sigmoid", "l", "s"), node("ArgMax", "s", "y", axis=1)], "largest"),
    ],
)
def test_a_sigmoid_of_each_class_is_no_choice_between_them(tmp_path, tail, output):
    assert read_model(save(tmp_path / "m.onnx", [HEAD, *tail], BEHIND)).output == output


def constants(**values):
    return {name: np.float32(value) for name, value in values.items()}


SWISH = [node("Sigmoid", "x", "g"), node("Mul", "x g", "h")]
BEFORE = {
    "relu": ([node("Relu", "x", "h")], {}, "relu", 0.0),
    "relu6": ([node("Clip", "x lo hi", "h")], constants(lo=0, hi=6), "relu", 0.0),
    "clip": ([node("Clip", "x lo hi", "h")], constants(lo=-2, hi=6), "clip", -2.0),
    "swish": (SWISH, {}, "swish", -0.2785),
    "swish, scaled": (
        [node("Mul", "x c", "s"), node("Sigmoid", "s", "g"), node("Mul", "g x", "h")],
        constants(c=2),
        "swish",
        -0.2785 / 2,
    ),
    "swish of another": ([node("Neg", "x", "n"), node("Sigmoid", "n", "g"), node("Mul", "x g", "h")], {}, "Mul", None),
    "hardswish": ([node("HardSwish", "x", "h")], {}, "hardswish", -0.3751),
    "hardswish in steps": (
        [node("HardSigmoid", "x", "g", alpha=1 / 6, beta=0.5), node("Mul", "x g", "h")],
        {},
        "hardswish",
        -0.3751,
    ),
    "hardswish of a clip": (
        [node("Add", "x c", "a"), node("Clip", "a lo hi", "k"), node("Mul", "x k", "m"), node("Div", "m hi", "h")],
        constants(c=3, lo=0, hi=6),
        "hardswish",
        -0.3751,
    ),
    "gelu": (
        [
            node("Div", "x r", "a"),
            node("Erf", "a", "e"),
            node("Add", "e one", "p"),
            node("Mul", "x p", "m"),
            node("Mul", "m half", "h"),
        ],
        constants(r=np.sqrt(2), one=1, half=0.5),
        "gelu",
        -0.1701,
    ),
    "gelu of another slope": (
        [node("Erf", "x", "e"), node("Add", "e one", "p"), node("Mul", "x p", "m"), node("Mul", "m half", "h")],
        constants(one=1, half=0.5),
        "Mul",
        None,
    ),
    "mish": ([node("Softplus", "x", "s"), node("Tanh", "s", "g"), node("Mul", "x g", "h")], {}, "mish", -0.3089),
    "pooled": (
        [node("Relu", "x", "r"), node("GlobalAveragePool", "r", "p"), node("Flatten", "p", "h")],
        {},
        "relu",
        0.0,
    ),
    "moved": (
        [*SWISH[:1], node("Mul", "x g", "m"), node("Squeeze", "m", "q"), node("Transpose", "q", "h", perm=[1, 0])],
        {},
        "swish",
        -0.2785,
    ),
    "dropped": ([*SWISH[:1], node("Mul", "x g", "m"), node("Mul", "m c", "h")], constants(c=0.5), "swish", -0.2785 / 2),
    "turned": ([node("Relu", "x", "r"), node("Mul", "r c", "h")], constants(c=-1), "Mul", None),
    "normalised": ([node("LayerNormalization", "x c", "h")], {"c": np.ones(3, np.float32)}, "LayerNormalization", None),
    "rounded": (
        [*SWISH[:1], node("Mul", "x g", "m"), node("QuantizeLinear", "m c", "q"), node("DequantizeLinear", "q c", "h")],
        constants(c=0.125),
        "swish",
        -0.2785 - 2 * 0.125,
    ),
    "rounded relu": (
        [node("Relu", "x", "r"), node("QuantizeLinear", "r c", "q"), node("DequantizeLinear", "q c", "h")],
        constants(c=0.125),
        "relu",
        0.0,
    ),
}


@pytest.mark.parametrize("kind", BEFORE)
def test_what_enters_the_head_is_read(tmp_path, kind):
    nodes, arrays, name, lower = BEFORE[kind]
    path = save(tmp_path / "m.onnx", [*nodes, node("Gemm", "h w b", "y", transB=1)], {**arrays, "w": WEIGHT, "b": BIAS})
    found = read_model(path).activation
    assert found.read
    assert found.name == name
    assert found.lower == lower if lower is None else abs(found.lower - lower) < 1e-7  # constants are float32


def test_an_input_of_the_graph_is_not_known_and_dynamic_rounding_keeps_only_zero(tmp_path):
    path = save(tmp_path / "m.onnx", [node("Gemm", "x w b", "y", transB=1)], {"w": WEIGHT, "b": BIAS})
    assert read_model(path).activation is None
    nodes, arrays, _ = HEADS["dynamic"]
    for before, lower in (([node("Relu", "x", "h")], 0.0), (SWISH, None)):
        nodes[0] = helper.make_node("DynamicQuantizeLinear", ["h"], ["a", "as", "az"])
        assert read_model(save(tmp_path / "m.onnx", [*before, *nodes], arrays)).activation.lower == lower
    nodes[0] = helper.make_node("DynamicQuantizeLinear", ["x"], ["a", "as", "az"])


@pytest.mark.parametrize(
    "metadata",
    [
        {"names": "{0: 'a', 1: 'b', 2: 'c', 3: 'd', 4: 'e'}"},
        {"id2label": json.dumps({str(k): name for k, name in enumerate("abcde")})},
        {"labels": "a\nb\nc\nd\ne\n"},
        {"classes": '["a", "b", "c", "d", "e"]'},
    ],
)
def test_labels_in_the_metadata(tmp_path, metadata):
    path = save(tmp_path / "m.onnx", HEADS["gemm"][0], HEADS["gemm"][1], metadata=metadata)
    assert read_model(path).names == ("a", "b", "c", "d", "e")


def test_a_text_reader_has_a_blank_and_a_space_more_than_characters(tmp_path):
    path = save(tmp_path / "m.onnx", HEADS["gemm"][0], HEADS["gemm"][1], metadata={"character": "a\nb\x1b\nc"})
    assert read_model(path).names == ("<blank>", "a", "b\N{REPLACEMENT CHARACTER}", "c", " ")


@pytest.mark.parametrize("text", ["a\nb", "{", "[" * 9999, "{0: __import__('os')}", "3", "{1: 'a'}"])
def test_labels_that_do_not_fit_are_left_out(tmp_path, text):
    path = save(tmp_path / "m.onnx", HEADS["gemm"][0], HEADS["gemm"][1], metadata={"names": text})
    assert read_model(path).names is None


def test_two_outputs_are_asked_about_and_either_can_be_named(tmp_path):
    nodes = [node("Gemm", "x w b", "y", transB=1), node("Gemm", "x v c", "z", transB=1)]
    arrays = {"w": WEIGHT, "b": BIAS, "v": WEIGHT[:2], "c": BIAS[:2]}
    path = save(tmp_path / "m.onnx", nodes, arrays, outputs=("y", "z"))
    with pytest.raises(CollapseError, match=r"several outputs .* --head: 'w' \(5 × 3\), 'v' \(2 × 3\)"):
        read_model(path)
    assert len(read_model(path, "v").weight) == len(read_model(path, "node_z").weight) == 2
    with pytest.raises(CollapseError, match="no layer 'u'"):
        read_model(path, "u")


def test_a_graph_that_does_not_end_in_a_head_is_not_guessed(tmp_path):
    nodes = [node("Gemm", "x w b", "h", transB=1), node("Mul", "h s", "y")]
    path = save(tmp_path / "m.onnx", nodes, {"w": WEIGHT, "b": BIAS, "s": np.arange(5, dtype=np.float32)})
    with pytest.raises(CollapseError, match="the output is no linear layer's; name the head with --head: 'w'"):
        read_model(path)


def test_external_data_are_read_in_the_files_folder_only(tmp_path):
    (tmp_path / "inside").mkdir()
    path = save(tmp_path / "inside/m.onnx", HEADS["gemm"][0], HEADS["gemm"][1], external=True)
    assert_allclose(read_model(path).weight, WEIGHT)
    data = (tmp_path / "inside/weights.bin").read_bytes()
    (tmp_path / "weights.bin").write_bytes(data)
    model = onnx.load(path, load_external_data=False)
    for location in ("../weights.bin", str(tmp_path / "weights.bin"), "link.bin", "", ".", "none.bin", "a\x00b"):
        for tensor in model.graph.initializer:
            tensor.external_data[0].value = location
        onnx.save(model, tmp_path / "inside/bad.onnx")
        if location == "link.bin":
            os.symlink(tmp_path / "weights.bin", tmp_path / "inside/link.bin")
        check_refused(tmp_path / "inside/bad.onnx")
    for key, value in (("offset", "-8"), ("offset", "999"), ("offset", "x")):
        for tensor in model.graph.initializer:
            tensor.external_data[0].value = "weights.bin"
            next(one for one in tensor.external_data if one.key == key).value = value
        onnx.save(model, tmp_path / "inside/bad.onnx")
        check_refused(tmp_path / "inside/bad.onnx")


def check_refused(path):
    with pytest.raises(CollapseError) as caught:
        read_model(str(path))
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith("model=")
    assert all(character.isprintable() for character in text)


def raw(name, sizes, content=b"", kind=TensorProto.FLOAT):
    return TensorProto(name=name, dims=sizes, data_type=kind, raw_data=content)


@pytest.mark.parametrize(
    "tensor",
    [
        raw("w", [10**9, 10**9]),
        raw("w", [10**4, 10**4]),
        raw("w", [-5, 3]),
        raw("w", [5, 3], b"12"),
        raw("w", [5, 3], kind=99),
        raw("w", [5, 3], kind=TensorProto.STRING),
        raw("w\x1b[31m", [2**62, 4]),
    ],
)
def test_a_tensor_of_a_hostile_shape_costs_one_line(tmp_path, tensor):
    start = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 3])]
    end = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    model = helper.make_model(helper.make_graph([node("MatMul", "x w", "y")], "g", start, end, [tensor]))
    model.graph.node[0].input[1] = tensor.name
    onnx.save(model, tmp_path / "m.onnx")
    check_refused(tmp_path / "m.onnx")


CIRCLES = {
    "constants": [node("Identity", "b", "a"), node("Identity", "a", "b"), node("MatMul", "x a", "y")],
    "reshapes": [node("Reshape", "q q", "p"), node("Reshape", "p p", "q"), node("MatMul", "x q", "y")],
    "outputs": [node("Softmax", "z", "y"), node("Softmax", "y", "z")],
    "additions": [node("Add", "z c", "y"), node("Add", "y c", "z")],
    "itself": [node("Add", "y c", "y")],
    "many reshapes": [node("Reshape", f"r{k} r{k}", f"r{k + 1}") for k in range(60)] + [node("MatMul", "x r60", "y")],
    "without inputs": [helper.make_node("MatMul", [], ["y"])],
    "without outputs": [helper.make_node("Gemm", ["x", "c"], [])],
    "deep": [node("Identity", f"y{k + 1}", f"y{k}" if k else "y") for k in range(5000)],
}


@pytest.mark.parametrize("kind", CIRCLES)
def test_a_graph_that_runs_in_circles_costs_one_line(tmp_path, kind):
    save(tmp_path / "m.onnx", CIRCLES[kind], {"c": np.ones(3, np.float32), "r0": np.array([1])})
    check_refused(tmp_path / "m.onnx")


def test_inputs_in_a_circle_have_no_bound(tmp_path):
    nodes = [
        node("Mul", "i j", "h"),
        node("Mul", "h h", "i"),
        node("Sigmoid", "i", "j"),
        node("Gemm", "h w b", "y", transB=1),
    ]
    found = read_model(save(tmp_path / "m.onnx", nodes, {"w": WEIGHT, "b": BIAS}))
    assert found.activation.lower is None
    nodes[:3] = [node("Identity", "i", "h"), node("Identity", "h", "i")]
    assert read_model(save(tmp_path / "m.onnx", nodes, {"w": WEIGHT, "b": BIAS})).activation is None


@pytest.mark.parametrize("content", [b"", b"\x08", b"\xff" * 99, b"onnx", b"\x08\x07"])
def test_what_is_no_onnx_costs_one_line(tmp_path, content):
    (tmp_path / "m.onnx").write_bytes(content)
    check_refused(tmp_path / "m.onnx")


def test_damage_anywhere_is_answered_or_costs_one_line(tmp_path):
    path = tmp_path / "m.onnx"
    save(path, *HEADS["dynamic"][:2], metadata={"names": "abcde"})
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for _ in range(300):
        content = bytearray(whole)
        content[rng.integers(len(whole))] = rng.integers(256)
        path.write_bytes(content)
        with contextlib.suppress(CollapseError):
            assert read_model(str(path)).weight.ndim == 2


def test_without_onnx_the_remedy_is_said(tmp_path, monkeypatch):
    path = save(tmp_path / "m.onnx", *HEADS["gemm"][:2])
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(CollapseError, match=r"pip install 'collapsekit\[onnx\]'"):
        read_model(path)


def inside(kind, nodes):
    """A node that makes y by a graph of its own: both branches of an If, or the body of a Loop or Scan."""
    end = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    if kind == "If":
        branch = helper.make_graph(nodes, "branch", [], [end])
        return helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("i", "k")]
    return helper.make_node(kind, ["n", "c"], ["y"], body=helper.make_graph(nodes, "body", ends, [ends[1], end]))


@pytest.mark.parametrize("kind", ["If", "Loop", "Scan"])
def test_a_head_inside_a_graph_of_a_graph_is_not_guessed(tmp_path, kind):
    head = [node("Gemm", "x w b", "y", transB=1)]
    arrays = {"w": WEIGHT, "b": BIAS, "c": np.array(True), "n": np.array(1)}
    check_refused(save(tmp_path / "m.onnx", [inside(kind, head)], arrays))
    nested = head
    for _ in range(8):
        nested = [inside(kind, nested)]
    check_refused(save(tmp_path / "m.onnx", nested, arrays))
    # before a head of the graph itself it is an operation like any other: its bound is not known
    later = [inside(kind, head), node("Gemm", "y v d", "z", transB=1)]
    arrays |= {"v": RNG.normal(size=(4, 5)).astype(np.float32), "d": np.zeros(4, np.float32)}
    found = read_model(save(tmp_path / "m.onnx", later, arrays, outputs=("z",)))
    assert (found.weight.shape, found.activation.lower) == ((4, 5), None)


def test_names_that_steer_a_terminal_are_shown_harmless(tmp_path):
    nodes = [node("Gemm", "x w\x1b[2J b", "y\u202e", transB=1), node("Gemm", "x v c", "z", transB=1)]
    arrays = {"w\x1b[2J": WEIGHT, "b": BIAS, "v": WEIGHT[:2], "c": BIAS[:2]}
    check_refused(save(tmp_path / "m.onnx", nodes, arrays, outputs=("y\u202e", "z")))
    labels = {"names": json.dumps(["a\x1b[2J", "b\n", "c\u202e", "d\x00", "e"])}
    found = read_model(save(tmp_path / "m.onnx", nodes[:1], arrays, outputs=("y\u202e",), metadata=labels))
    assert all(name.isprintable() for name in found.names)
