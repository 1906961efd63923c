"""`collapsekit adjust`: from features and a model's file to a repaired head, also in the model's own place."""

import json
import os
import re
import shlex
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from onnx.reference import ReferenceEvaluator
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_torch
from safetensors.torch import save_file as save_torch
from sklearn.linear_model import LogisticRegression

from collapsekit.cli import main
from collapsekit.diagnosis import adjust

NAMES = ["ant", "bee", "cat", "dog", "elk"]
make = onnx.helper


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    centres = 1.6 * rng.normal(size=(5, 8))
    pairs = []
    for sizes in ((150, 60, 25, 8, 4), (20,) * 5):
        labels = np.repeat(np.arange(5), sizes)
        pairs.append(((centres[labels] + 1.4 * rng.normal(size=(len(labels), 8))).astype(np.float32), labels))
    fitted = LogisticRegression(max_iter=2000).fit(*pairs[0])
    head = {"weight": np.ascontiguousarray(fitted.coef_, np.float32), "bias": fitted.intercept_.astype(np.float32)}
    return *pairs, head


@pytest.fixture
def folder(tmp_path, monkeypatch, problem):
    train, held, head = problem
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    np.savez("train.npz", features=train[0], labels=train[1])
    np.savez("val.npz", features=held[0], labels=held[1])
    save_file(
        {"body.weight": np.eye(8, dtype=np.float32), **{f"fc.{k}": v for k, v in head.items()}}, "net.safetensors"
    )
    return tmp_path


WORDS = ("train.npz", "--validation", "val.npz", "--head")


def printed(capsys, *arguments):
    assert main(["adjust", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys, *arguments):
    assert main(["adjust", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "Traceback" not in err
    return err


def wanted(problem, **options):
    (x, y), held, head = problem
    return adjust(x, y, (head["weight"], head["bias"]), validation=held, **options)


def test_json_is_what_the_library_says_and_the_new_head_is_written(folder, capsys, problem):
    content = printed(capsys, *WORDS, "net.safetensors", "--out", "head.safetensors")
    found = wanted(problem)
    assert found.chosen != "untouched"
    expected = json.loads(json.dumps(found.to_dict()))
    assert {key: content[key] for key in expected} == expected
    stored = load_file("head.safetensors")
    assert_array_equal(stored["weight"], found.head[0].astype(np.float32))
    assert_array_equal(stored["bias"], found.head[1].astype(np.float32))
    again = printed(capsys, *WORDS, "head.safetensors", "--method", "untouched")
    assert again["summary"][0]["before"] >= content["summary"][0]["before"]


def test_the_table_says_before_and_after_and_fits(folder, capsys):
    assert main(["adjust", *WORDS, "net.safetensors"]) == 0
    out = capsys.readouterr().out
    first, *lines = out.splitlines()
    assert "balanced accuracy" in first
    assert "a gain of +" in first
    words = [line.split()[0] for line in lines if line.strip()]
    assert all(one in words for one in ("untouched", "retrained", "worst", "many", "medium", "few", "accuracy"))
    assert "few: below 20" in out
    assert out.rstrip().endswith("Nothing was written; --out head.safetensors writes the head.")
    assert sum("chosen" in line for line in lines) == 1


def test_a_class_that_the_validation_lacks_is_shown_as_unknown(folder, capsys, problem):
    _, (v, w), _ = problem
    np.savez("val.npz", features=v[w != 2], labels=w[w != 2])
    content = printed(capsys, *WORDS, "net.safetensors")
    assert content["classes"][2]["before"] is None
    assert content["classes"][2]["reason"] == "no validation samples"
    assert main(["adjust", *WORDS, "net.safetensors"]) == 0
    assert "no validation samples" in capsys.readouterr().out


@pytest.mark.parametrize("names", [False, True])
def test_whole_numbers_are_rows_also_where_classes_are_missing(folder, capsys, problem, names):
    (x, y), (v, w), _ = problem
    np.savez("train.npz", features=x[y != 1], labels=y[y != 1])
    np.savez("val.npz", features=v[w > 1], labels=w[w > 1])
    words = ("--class-names", *NAMES) if names else ()
    content = printed(capsys, *WORDS, "net.safetensors", *words)
    assert [row["count"] for row in content["classes"]] == [150, 0, 25, 8, 4]
    assert [row["validation"] for row in content["classes"]] == [0, 0, 20, 20, 20]
    assert content["classes"][1]["label"] == (NAMES[1] if names else "1")


def test_labels_are_names_in_any_order(folder, capsys, problem):
    (x, y), (v, w), head = problem
    order = ["dog", "elk", "ant", "cat", "bee"]
    np.savez("train.npz", features=x, labels=np.array(order)[y])
    np.savez("val.npz", features=v[w > 0], labels=np.array(order)[w[w > 0]])
    content = printed(capsys, *WORDS, "net.safetensors", "--class-names", *order)
    assert [row["label"] for row in content["classes"]] == order
    assert content["classes"][0]["validation"] == 0
    assert content["assumed_order"] is None
    sorted_rows = np.argsort(order)
    save_file({key: np.ascontiguousarray(array[sorted_rows]) for key, array in head.items()}, "sorted.safetensors")
    again = printed(capsys, *WORDS, "sorted.safetensors")
    assert "sorted order" in again["assumed_order"]
    assert again["summary"][0]["before"] == pytest.approx(content["summary"][0]["before"])


def test_a_prediction_of_the_recipe_is_used(folder, capsys):
    plain = printed(capsys, *WORDS, "net.safetensors", "--method", "predicted-geometry")
    recipe = ("--lambda-w", "0.003", "--lambda-h", "1e-5", "--bias", "free")
    found = printed(capsys, *WORDS, "net.safetensors", "--method", "predicted-geometry", *recipe)
    assert found["chosen"] == plain["chosen"] == "predicted-geometry"
    assert found["summary"][0]["after"] != plain["summary"][0]["after"]
    assert found["no_prediction"] is None
    adamw = ("--weight-decay", "0.01", "--optimizer", "adamw", "--method", "predicted-geometry")
    refused_recipe = printed(capsys, *WORDS, "net.safetensors", *adamw)
    assert "predicted-geometry goes by the counts" in refused_recipe["no_prediction"]
    assert refused_recipe["summary"] == plain["summary"]


def test_the_head_may_stand_beside_the_features(folder, capsys, problem):
    (x, y), _, head = problem
    np.savez("train.npz", features=x, labels=y, **head)
    content = printed(capsys, "train.npz", "--validation", "val.npz")
    assert content["chosen"] == wanted(problem).chosen
    assert "--write-back: writes a copy of the file of --head" in refused(
        capsys, "train.npz", "--validation", "val.npz", "--write-back", "x.npz"
    )


# written back


@pytest.mark.parametrize("kind", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_a_safetensors_file_gets_the_new_head_and_keeps_all_else(folder, capsys, problem, kind):
    _, _, head = problem
    tensors = {f"fc.{key}": torch.tensor(array).to(kind) for key, array in head.items()}
    tensors |= {"body.weight": torch.randn(8, 8), "steps": torch.tensor([3])}
    save_torch(tensors, "net.safetensors", metadata={"made": "by a test"})
    before = (folder / "net.safetensors").read_bytes()
    printed(capsys, *WORDS, "net.safetensors", "--write-back", "new.safetensors", "--out", "head.safetensors")
    assert (folder / "net.safetensors").read_bytes() == before
    new, alone = load_torch("new.safetensors"), load_torch("head.safetensors")
    for key in ("weight", "bias"):
        assert new[f"fc.{key}"].dtype == kind
        assert_array_equal(new[f"fc.{key}"].float(), alone[key].to(kind).float())
        assert not torch.equal(new[f"fc.{key}"], tensors[f"fc.{key}"]) or key == "weight"
    assert all(torch.equal(new[key], tensors[key]) for key in ("body.weight", "steps"))
    with safe_open("new.safetensors", "np") as stored:
        assert stored.metadata() == {"made": "by a test"}


def test_the_original_is_replaced_only_where_its_own_path_is_given(folder, capsys):
    printed(capsys, *WORDS, "net.safetensors", "--method", "nearest-mean", "--write-back", "net.safetensors")
    assert sorted(path.name for path in folder.iterdir()) == ["net.safetensors", "train.npz", "val.npz"]
    again = printed(capsys, *WORDS, "net.safetensors", "--method", "untouched")
    assert again["summary"][0]["before"] == pytest.approx(
        printed(capsys, *WORDS, "net.safetensors:fc", "--method", "nearest-mean")["summary"][0]["after"]
    )


def test_a_keras_kernel_is_written_back_by_columns(folder, capsys, problem):
    _, _, head = problem
    save_file({"top/kernel": np.ascontiguousarray(head["weight"].T), "top/bias": head["bias"]}, "keras.safetensors")
    words = ("--method", "nearest-mean", "--write-back", "new.safetensors")
    printed(capsys, *WORDS, "keras.safetensors", *words)
    assert_allclose(
        load_file("new.safetensors")["top/kernel"].T, wanted(problem, method="nearest-mean").head[0], rtol=1e-6
    )


def test_a_head_without_bias_is_written_back_without_one(folder, capsys, problem):
    save_file({"fc.weight": problem[2]["weight"]}, "free.safetensors")
    content = printed(capsys, *WORDS, "free.safetensors", "--write-back", "new.safetensors")
    assert list(load_file("new.safetensors")) == ["fc.weight"]
    assert content["bias"] is False
    assert {one["method"] for one in content["methods"] if one["reason"]} >= {"logit-adjustment", "bias-only"}
    err = refused(capsys, *WORDS, "free.safetensors", "--write-back", "new.safetensors", "--method", "bias-only")
    assert "--method='bias-only': needs a bias" in err
    assert (
        printed(capsys, *WORDS, "free.safetensors", "--out", "h.safetensors", "--method", "bias-only")["bias"] is True
    )


def constant(name, array):
    return make.make_node("Constant", [], [name], value=onnx.numpy_helper.from_array(array, name + "_value"))


def graphs(head):
    """Graphs with this head: how it is stored, and the nodes from h to y."""
    W, b = head["weight"], head["bias"]
    gemm = make.make_node("Gemm", ["h", "w", "b"], ["y"], transB=1)
    add = [make.make_node("MatMul", ["h", "w"], ["z"]), make.make_node("Add", ["z", "b"], ["y"])]
    yield "gemm", [gemm], {"w": W, "b": b}
    yield "gemm by columns", [make.make_node("Gemm", ["h", "w", "b"], ["y"])], {"w": W.T.copy(), "b": b}
    yield "matmul", add, {"w": W.T.copy(), "b": b}
    yield "constants", [constant("w", W.T.copy()), constant("b", b), *add], {}
    yield "turned", [make.make_node("Transpose", ["v"], ["w"], perm=[1, 0]), *add], {"v": W, "b": b}
    yield (
        "flat",
        [make.make_node("Reshape", ["v", "s"], ["w"]), *add],
        {"v": W.T.ravel(), "s": np.array([8, 5]), "b": b[None]},
    )
    yield "softmax", [gemm, make.make_node("Softmax", ["y"], ["p"])], {"w": W, "b": b}
    yield (
        "convolution",
        [
            make.make_node("Reshape", ["h", "four"], ["h4"]),
            make.make_node("Conv", ["h4", "w", "b"], ["y4"]),
            make.make_node("Flatten", ["y4"], ["y"]),
        ],
        {"four": np.array([-1, 8, 1, 1]), "w": W[:, :, None, None], "b": b},
    )
    two = [make.make_node("Gemm", ["h", "w", "c"], ["z"], transB=1), make.make_node("Add", ["z", "b"], ["y"])]
    yield "two shifts", two, {"w": W, "b": b - 1, "c": np.ones(5, np.float32)}


def model_of(nodes, arrays, **options):
    last = "p" if nodes[-1].op_type == "Softmax" else "y"
    ends = [make.make_tensor_value_info(name, 1, None) for name in ("x", last)]
    first = make.make_node("Mul", ["x", "one"], ["h"])
    tensors = [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()]
    tensors.append(onnx.numpy_helper.from_array(np.ones(1, np.float32), "one"))
    graph = make.make_graph([first, *nodes], "g", ends[:1], ends[1:], tensors)
    return make.make_model(graph, opset_imports=[make.make_opsetid("", 17)], **options)


@pytest.mark.parametrize("name", [name for name, _, _ in graphs({"weight": np.zeros((5, 8)), "bias": np.zeros(5)})])
def test_an_onnx_file_gets_the_new_head_and_runs(folder, capsys, problem, name):
    _, (v, _), head = problem
    nodes, arrays = next((nodes, arrays) for own, nodes, arrays in graphs(head) if own == name)
    model = model_of(nodes, arrays)
    make.set_model_props(model, {"labels": json.dumps(NAMES)})
    onnx.save(model, "net.onnx")
    before = (folder / "net.onnx").read_bytes()
    words = ("--method", "retrained", "--write-back", "new.onnx")
    content = printed(capsys, *WORDS, "net.onnx", *words)
    assert [row["label"] for row in content["classes"]] == NAMES
    assert (folder / "net.onnx").read_bytes() == before
    weight, bias = wanted(problem, method="retrained").head
    logits = v @ weight.T + bias
    (found,) = ReferenceEvaluator("new.onnx").run(None, {"x": v})
    if name == "softmax":
        found = np.log(found)
        found, logits = (one - one.mean(axis=1, keepdims=True) for one in (found, logits))
    assert_allclose(found, logits, atol=1e-4)
    new = onnx.load("new.onnx")
    assert [node.op_type for node in new.graph.node] == [node.op_type for node in model.graph.node]
    assert [one.name for one in new.graph.initializer] == [one.name for one in model.graph.initializer]
    assert new.metadata_props == model.metadata_props
    assert sorted(path.name for path in folder.iterdir())[:2] == ["net.onnx", "net.safetensors"]


def test_external_data_become_internal_and_others_stay_where_they_are(folder, capsys, problem):
    _, (v, _), head = problem
    _, nodes, arrays = next(graphs(head))
    onnx.save(model_of(nodes, arrays), "net.onnx", save_as_external_data=True, location="net.data", size_threshold=0)
    printed(capsys, *WORDS, "net.onnx", "--write-back", "new.onnx", "--method", "retrained")
    (found,) = ReferenceEvaluator("new.onnx").run(None, {"x": v})
    weight, bias = wanted(problem, method="retrained").head
    assert_allclose(found, v @ weight.T + bias, atol=1e-4)
    (folder / "elsewhere").mkdir()
    err = refused(capsys, *WORDS, "net.onnx", "--write-back", "elsewhere/new.onnx")
    assert "the model has external data beside it; give a name in the same folder" in err


def tied(head):
    nodes = [make.make_node("Gemm", ["h", "w", "b"], ["y"], transB=1), make.make_node("Relu", ["w"], ["other"])]
    return nodes, {"w": head["weight"], "b": head["bias"]}


def branched(head):
    """The weight serves in a branch of the graph, too."""
    inner = make.make_graph(
        [make.make_node("Relu", ["w"], ["r"])], "inner", [], [make.make_tensor_value_info("r", 1, None)]
    )
    nodes = [
        make.make_node("Gemm", ["h", "w", "b"], ["y"], transB=1),
        make.make_node("If", ["yes"], ["other"], then_branch=inner, else_branch=inner),
    ]
    return nodes, {"w": head["weight"], "b": head["bias"], "yes": np.array(True)}


def quantised(head):
    scale = np.abs(head["weight"]).max() / 127
    nodes = [
        make.make_node("DequantizeLinear", ["q", "s"], ["w"]),
        make.make_node("Gemm", ["h", "w", "b"], ["y"], transB=1),
    ]
    arrays = {"q": np.round(head["weight"] / scale).astype(np.int8), "s": np.array(scale, np.float32)}
    return nodes, arrays | {"b": head["bias"]}


def scaled(head):
    return [make.make_node("Gemm", ["h", "w", "b"], ["y"], transB=1, alpha=0.5)], {
        "w": head["weight"],
        "b": head["bias"],
    }


def shifted(head):
    return [make.make_node("Gemm", ["h", "w", "b"], ["y"], transB=1, beta=0.5)], {
        "w": head["weight"],
        "b": head["bias"],
    }


REFUSED = {
    tied: "has other uses in the graph (tied weights)",
    branched: "has other uses in the graph (tied weights)",
    quantised: "is computed in the graph",
    scaled: "is quantised or scaled",
    shifted: "read again is another one",
}


@pytest.mark.parametrize("made", REFUSED)
def test_what_cannot_be_written_back_is_refused_and_leaves_nothing(folder, capsys, problem, made):
    nodes, arrays = made(problem[2])
    onnx.save(model_of(nodes, arrays) if made is not tied else _with_output_first(nodes, arrays), "net.onnx")
    err = refused(capsys, *WORDS, "net.onnx:y", "--write-back", "new.onnx", "--method", "retrained")
    assert "--write-back='new.onnx'" in err
    assert REFUSED[made] in err
    assert "take the new head from --out" in err
    assert sorted(path.name for path in folder.iterdir()) == ["net.onnx", "net.safetensors", "train.npz", "val.npz"]
    assert main(["adjust", *WORDS, "net.onnx:y", "--out", "head.safetensors"]) == 0  # the remedy


def _with_output_first(nodes, arrays):
    model = model_of(nodes, arrays)
    model.graph.output.append(make.make_tensor_value_info("other", 1, None))
    return model


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("none.safetensors",), "model='none.safetensors': 'none.safetensors': No such file"),
        (("net.safetensors:fd",), "no matrix 'fd'"),
        (
            ("net.safetensors", "--write-back", "new.onnx"),
            "--write-back='new.onnx': a copy of 'net.safetensors'; give a name",
        ),
        (("net.safetensors", "--write-back", "."), "--write-back='.': is a folder; give the name of a file"),
        (("net.safetensors", "--out", "head.npz"), "--out='head.npz': give a name that ends in .safetensors"),
        (("net.safetensors", "--out", "no/head.safetensors"), "there is no folder 'no'; make it, or give another"),
        (("net.safetensors", "--method", "magic"), "magic"),
        (("net.safetensors", "--loss", "hinge", "--focal", "2"), "--focal=2: contradicts --loss=hinge"),
        (("net.safetensors", "--weight-decay", "1e-3", "--loss", "hinge", "--focal", "2"), "contradicts --loss"),
        (("net.safetensors", "--weight-decay", "1e-3", "--steps", "5"), "--learning-rate: missing"),
        (("net.safetensors", "--cuts", "5", "50"), "--cuts=(5.0, 50.0): the first count must not be below"),
    ],
)
def test_a_mistake_costs_one_line(folder, capsys, words, message):
    assert message in refused(capsys, *WORDS, *words)


def test_data_that_do_not_fit_cost_one_line(folder, capsys, problem):
    (x, y), (v, w), _ = problem
    assert "head: missing; 'train.npz' holds none: give --head FILE" in refused(capsys, *WORDS[:3])
    np.savez("odd.npz", features=v, labels=np.array(["x", "y"])[w % 2])
    assert "the label 'x' is no training label" in refused(
        capsys, WORDS[0], "--validation", "odd.npz", "--head", "net.safetensors"
    )
    np.savez("thin.npz", features=v[:, :3], labels=w)
    err = refused(capsys, WORDS[0], "--validation", "thin.npz", "--head", "net.safetensors")
    assert "validation features: shape (100, 3); give (n, 8)" in err
    np.savez("few.npz", features=v[::20], labels=w[::20])
    err = refused(capsys, WORDS[0], "--validation", "few.npz", "--head", "net.safetensors")
    assert "validation: 5 samples of 5 classes; give samples of two" in err
    np.savez("deep.npz", features=x.reshape(-1, 2, 4), labels=y)
    assert "a sample has the shape" in refused(capsys, "deep.npz", *WORDS[1:], "net.safetensors")


def test_a_hostile_model_costs_one_line(folder, capsys):
    (folder / "bad.onnx").write_bytes(b"\x80\x04.")
    (folder / "bad.safetensors").write_bytes((2**60).to_bytes(8, "little") + b"{}")
    for name in ("bad.onnx", "bad.safetensors"):
        assert name in refused(capsys, *WORDS, name, "--write-back", f"new{name[3:]}")


def test_every_command_of_the_page_runs(folder, capsys, problem):
    page = (Path(__file__).parents[2] / "docs" / "adjust.md").read_text(encoding="utf-8")
    commands = [line for block in page.split("```sh\n")[1:] for line in block.split("```")[0].splitlines()]
    save_file(load_file("net.safetensors"), "model.safetensors")
    _, nodes, arrays = next(graphs(problem[2]))
    onnx.save(model_of(nodes, arrays), "model.onnx")
    assert len(commands) >= 4
    for command in commands:
        words = shlex.split(command, comments=True)
        assert words[:2] == ["collapsekit", "adjust"]
        assert main(words[1:]) == 0, command
    assert {"head.safetensors", "repaired.safetensors", "repaired.onnx"} <= {path.name for path in folder.iterdir()}


def test_no_output_replaces_what_is_read_and_all_are_refused_before_the_work(folder, capsys, problem):
    (x, y), _, head = problem
    save_file({"features": x, "labels": y, **head}, "all.safetensors")
    save_file(head, "head.safetensors")
    os.link("head.safetensors", "linked.safetensors")
    os.mkfifo("pipe.safetensors")
    before = {path: path.read_bytes() for path in Path().glob("*.[ns]*") if path.is_file()}
    own = (*WORDS, "head.safetensors")
    for words, said in (
        (
            ("all.safetensors", "--validation", "val.npz", "--out", "all.safetensors"),
            "--out='all.safetensors': is read",
        ),
        (("train.npz", "--validation", "all.safetensors", *own[3:], "--out", "./all.safetensors"), "is read"),
        ((*own, "--out", "head.safetensors"), "--out='head.safetensors': is read"),
        ((*own, "--out", "linked.safetensors"), "is read"),
        ((*own, "--out", "a.safetensors", "--write-back", "./a.safetensors"), "is the file of --out, too"),
        (("all.safetensors", *own[1:], "--write-back", "all.safetensors"), "--write-back='all.safetensors': is read"),
        ((*own, "--out", "pipe.safetensors"), "--out='pipe.safetensors': is a device, pipe or socket"),
        ((*own, "--write-back", "pipe.safetensors"), "--write-back='pipe.safetensors': is a device, pipe"),
        ((*own, "--write-back", "none/a.safetensors"), "--write-back='none/a.safetensors': there is no folder 'none'"),
    ):
        assert said in refused(capsys, *words)
    assert before == {path: path.read_bytes() for path in before}
    assert main(["adjust", *own, "--write-back", "head.safetensors", "--method", "retrained"]) == 0  # given explicitly
    assert load_file("head.safetensors")["weight"].shape == (5, 8)


def test_a_bias_of_one_number_has_no_room_for_one_a_class(folder, capsys, problem):
    head = problem[2]
    ends = [make.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in "xy"]
    arrays = {"w": head["weight"], "b": np.zeros(1, np.float32)}
    tensors = [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()]
    nodes = [make.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1)]
    onnx.save(make.make_model(make.make_graph(nodes, "g", ends[:1], ends[1:], tensors)), "one.onnx")
    said = refused(capsys, *WORDS, "one.onnx", "--write-back", "new.onnx")
    assert "'b' is one number for all classes, no room for one each; take the new head from --out" in said


def test_a_head_of_zeros_is_named_as_the_cause(folder, capsys, problem):
    save_file({"weight": np.zeros((5, 8), np.float32)}, "zero.safetensors")
    notes = printed(capsys, *WORDS, "zero.safetensors")["notes"]
    assert "The weight of the head as it was is 0: it told no samples apart." in notes
    assert not any("in the order of the labels" in note for note in notes)


def test_the_page_shows_what_is_printed_and_every_class(folder, capsys, problem):
    words = (*WORDS, "net.safetensors", "--class-names", *NAMES[:4], "elk <b>", "--html", "page.html")
    content = printed(capsys, *words)
    assert content["html"] == "page.html"
    text = Path("page.html").read_text(encoding="utf-8")
    assert content["notes"][0].split(":")[0] in text
    assert "elk &lt;b&gt;" in text
    assert "<b>" not in text
    assert all(one["method"] in text for one in content["methods"])
    assert text.count("<svg") == 1
    assert not re.search(r"<th[^>]*></th>", text)
    assert '<th scope="col" class="text">remark</th>' in text
    assert "http" not in re.sub(r'xmlns\S*="[^"]*"', "", text).replace("http://www.w3.org", "")
    assert "--html='val.npz': is read" in refused(capsys, *WORDS, "net.safetensors", "--html", "val.npz")
    both = ("--out", "a.safetensors", "--html", "a.safetensors")
    assert "--html='a.safetensors': is the file of --out" in refused(capsys, *WORDS, "net.safetensors", *both)


def test_a_page_of_many_classes_leaves_out_those_that_change_least_and_says_so(folder, capsys):
    labels = np.repeat(np.arange(1003), 2)
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(1003, 8))
    np.savez("many.npz", features=weight[labels], labels=labels, weight=weight, bias=np.zeros(1003))
    np.savez("other.npz", features=weight[labels] + rng.normal(size=(2006, 8)), labels=labels)
    words = ["adjust", "many.npz", "--validation", "other.npz", "--method", "untouched", "--html", "page.html"]
    assert main(words) == 0
    text = Path("page.html").read_text(encoding="utf-8")
    assert "3 classes that change less are left out; <code>--json</code> has all." in text
    assert text.count('<th scope="row">') == 1000 + text.split("<h2>Overall</h2>")[1].count('<th scope="row">')
