"""`collapsekit inspect`: from a model's file to names of classes; hostile files cost one line."""

import json
import os
import re
import shlex
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from numpy.testing import assert_allclose
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch

from _support.heads import trained
from collapsekit.cli import main
from collapsekit.heads import inspect_head
from collapsekit.heads.files import read_model

NAMES = ["ant", "bee", "cat", "dog", "elk", "fox"]
COUNTS = np.array([40, 0, 12, 25, 0, 6])


@pytest.fixture(scope="module")
def head():
    weight, bias, _ = trained(COUNTS, 4, 1e-2, bias_decay=1e-2, relu=True)
    return {"weight": weight.astype(np.float32), "bias": bias.astype(np.float32)}


@pytest.fixture
def folder(tmp_path, monkeypatch, head):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    save_file(head, "head.safetensors")
    (tmp_path / "labels.txt").write_text("\n".join(NAMES) + "\n", encoding="utf-8")
    return tmp_path


def printed(capsys, *arguments):
    assert main(["inspect", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys, *arguments):
    assert main(["inspect", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "Traceback" not in err
    return err


def risky(content):
    return {one["label"] for one in content["classes"] if one["coinciding"]}


def test_the_verdict_comes_first_and_names_the_classes(folder, capsys):
    assert main(["inspect", "head.safetensors", "--labels", "labels.txt", "--activation", "relu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "'bee'" in lines[0] + lines[1]
    assert "'elk'" in lines[0] + lines[1]
    assert all(len(line) <= 80 for line in lines[-9:])
    assert lines[-6].split()[0] in ("bee", "elk")


def test_json_is_what_the_library_says(folder, capsys, head):
    content = printed(capsys, "head.safetensors", "--labels", "labels.txt", "--activation", "relu", "--prove", "all")
    found = inspect_head(head["weight"], head["bias"], names=NAMES, activation="relu", prove="all")
    assert content == json.loads(json.dumps(found.to_dict()))
    assert risky(content) == {"bee", "elk"}


@pytest.mark.parametrize("name", ["net.npz", "net.pt", "net.pth", "net.safetensors", "net.npy", "net"])
def test_the_head_is_found_in_every_kind_of_file(folder, capsys, head, name):
    layers = {
        "stem.weight": np.zeros((3, 4), np.float32),
        "fc.weight": head["weight"],
        "fc.bias": head["bias"],
        "norm.weight": np.ones(4, np.float32),
    }
    if name == "net.npz":
        np.savez(name, **layers)
    elif name == "net.npy":
        np.save(name, head["weight"])
    elif name == "net":
        (folder / name).mkdir()
        save_file({"stem.weight": layers.pop("stem.weight")}, "net/model-00001-of-00002.safetensors")
        save_file(layers, "net/model-00002-of-00002.safetensors")
        content = {"id2label": {str(k): one for k, one in enumerate(NAMES)}}
        (folder / "net/config.json").write_text(json.dumps(content), encoding="utf-8")
    elif name == "net.safetensors":
        save_file(layers, name)
    else:
        torch.save({"state_dict": {key: torch.tensor(array) for key, array in layers.items()}}, name)
    words = [] if name == "net" else ["--labels", "labels.txt"]
    content = printed(capsys, name, *words)
    assert risky(content) == {"bee", "elk"}
    assert (content["bias_sum"] is None) == (name == "net.npy")


def test_several_matrices_are_listed_and_one_can_be_named(folder, capsys, head):
    np.savez("two.npz", first=np.eye(4, 3), second_w=head["weight"], second_b=head["bias"])
    err = refused(capsys, "two.npz")
    assert "--head: 'first' (4 × 3), 'second' (6 × 4)" in err
    assert len(printed(capsys, "two.npz", "--head", "second")["classes"]) == 6
    assert "no matrix 'third'" in refused(capsys, "two.npz", "--head", "third")


def test_a_keras_kernel_has_its_classes_in_columns(folder, capsys, head):
    np.savez("keras.npz", **{"dense/kernel": head["weight"].T, "dense/bias": head["bias"]})
    assert risky(printed(capsys, "keras.npz", "--labels", "labels.txt")) == {"bee", "elk"}


@pytest.mark.parametrize(
    "text", ["\n".join(f"{n},{c}" for n, c in zip(NAMES, COUNTS, strict=True) if c), "40 0 12 25 0 6"]
)
def test_counts_by_name_or_by_row_tell_the_never_seen(folder, capsys, text):
    (folder / "counts.txt").write_text(text, encoding="utf-8")
    words = ["--labels", "labels.txt", "--counts", "counts.txt", "--lines", "counts"]
    content = printed(capsys, "head.safetensors", *words)
    assert "By the counts 2 of these 2 classes had no samples" in content["verdict"]


def test_labels_may_be_json_repeat_or_hold_what_steers_a_terminal(folder, capsys):
    (folder / "one.json").write_text(json.dumps({name: k for k, name in enumerate(NAMES)}), encoding="utf-8")
    assert risky(printed(capsys, "head.safetensors", "--labels", "one.json")) == {"bee", "elk"}
    (folder / "odd.txt").write_text("a\nb\x1b[31m\na\nd\n \nf\n", encoding="utf-8")
    labels = [one["label"] for one in printed(capsys, "head.safetensors", "--labels", "odd.txt")["classes"]]
    assert labels == ["a (row 0)", "b\N{REPLACEMENT CHARACTER}[31m", "a (row 2)", "d", " ", "f"]
    (folder / "few.txt").write_text("a\nb\n", encoding="utf-8")
    assert "2 labels for 6 rows" in refused(capsys, "head.safetensors", "--labels", "few.txt")


def test_share_and_shortest_input_are_shown_on_request(folder, capsys):
    words = ["--weight-decay", "0.01", "--feature-norm", "10", "--least-norm"]
    assert all(one["share_at_least"] is None for one in printed(capsys, "head.safetensors", *words)["classes"])
    words.append("--bias-decays")
    first = printed(capsys, "head.safetensors", *words)["classes"]
    assert first[0]["share_at_least"] > first[1]["share_at_least"] >= 0
    assert {one["row"] for one in first if one["least_norm"] is not None} <= {1, 4}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("none.npz", None),
        ("empty.safetensors", b""),
        (
            "huge.safetensors",
            (64).to_bytes(8, "little") + b'{"w":{"dtype":"F32","shape":[99999999999,99],"data_offsets":[0,0]}}',
        ),
        ("long.safetensors", (2**60).to_bytes(8, "little") + b"{}"),
        ("bad.npz", b"PK\x03\x04"),
        ("bad.pt", b"\x80\x04."),
        ("model.bin", b"x"),
        ("model.pkl", b"x"),
    ],
)
def test_a_hostile_file_costs_one_line(folder, capsys, name, content):
    if content is not None:
        (folder / name).write_bytes(content)
    assert name.split(".")[0] in refused(capsys, name)


def test_a_hostile_folder_costs_one_line(folder, capsys, head):
    (folder / "model").mkdir()
    assert "no .safetensors files in the folder" in refused(capsys, "model")
    save_file(head, "model/model.safetensors")
    for text in ("{", "[" * 100_000, '{"id2label": 3}', '{"id2label": {"a": "b"}}', '"x"'):
        (folder / "model/config.json").write_text(text, encoding="utf-8")
        if text[-1] in "[{":
            assert "config.json" in refused(capsys, "model")
        else:
            assert len(printed(capsys, "model")["classes"]) == 6


def test_an_onnx_file_says_its_activation_and_its_labels_itself(folder, capsys, head):
    make = onnx.helper
    nodes = [make.make_node("Relu", ["x"], ["h"]), make.make_node("Gemm", ["h", "w", "b"], ["y"], transB=1)]
    arrays = [onnx.numpy_helper.from_array(head[key], key[0]) for key in ("weight", "bias")]
    ends = [make.make_tensor_value_info(name, 1, None) for name in "xy"]
    model = make.make_model(make.make_graph(nodes, "g", ends[:1], ends[1:], arrays))
    make.set_model_props(model, {"labels": json.dumps(NAMES)})
    onnx.save(model, "net.onnx")
    content = printed(capsys, "net.onnx")
    assert risky(content) == {"bee", "elk"}
    assert ", if the head's inputs" not in content["verdict"]
    assert "the file says relu" in refused(capsys, "net.onnx", "--activation", "gelu")


def test_a_page_is_written_beside_what_is_printed(folder, capsys):
    assert main(["inspect", "head.safetensors", "--labels", "labels.txt", "--html", "page.html"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "page: page.html"
    assert "bee" in (folder / "page.html").read_text(encoding="utf-8")
    assert printed(capsys, "head.safetensors", "--html", "page.html")["page"] == "page.html"
    assert "is a folder" in refused(capsys, "head.safetensors", "--html", ".")


@pytest.mark.parametrize("kind", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_matrix_of_a_shard_is_read_as_it_is_stored(tmp_path, kind):
    stored = {"other": torch.ones(3), "head.weight": torch.randn(5, 4, generator=torch.manual_seed(0)).to(kind)}
    save_torch(stored, tmp_path / "m.safetensors")
    found = read_model(str(tmp_path / "m.safetensors")).weight
    assert found.dtype == (np.float64 if kind == torch.float64 else np.float32)
    assert (found == stored["head.weight"].double().numpy()).all()


@pytest.mark.parametrize("name", ["head.safetensors", "labels.txt", "model/config.json", "pipe", "none/page.html"])
def test_a_page_replaces_nothing_that_is_read(folder, capsys, head, name):
    (folder / "model").mkdir()
    save_file(head, "model/model.safetensors")
    (folder / "model/config.json").write_text("{}", encoding="utf-8")
    os.mkfifo("pipe")
    model = "model" if name.startswith("model") else "head.safetensors"
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert f"--html='{name}': " in refused(capsys, model, "--labels", "labels.txt", "--html", name)
    assert before == {path: path.read_bytes() for path in before}


DEAD = np.vstack([3 * np.eye(3), np.full((2, 3), -1.0)]).astype(np.float32)


@pytest.mark.parametrize(
    ("kind", "words", "said", "not_said"),
    [
        ("Softmax", (), "can never be output, whatever the input (proved;", "if the output"),
        ("Sigmoid", (), "are never the largest of the outputs, whatever the input (proved;", "never be output"),
        ("Neg", ("--head", "w"), "if the output is the largest of these logits", "proved"),
    ],
)
def test_a_proof_says_what_it_takes_of_the_output(folder, capsys, kind, words, said, not_said):
    make = onnx.helper
    nodes = [
        make.make_node("Relu", ["x"], ["r"]),
        make.make_node("Gemm", ["r", "w", "b"], ["l"], transB=1),
        make.make_node(kind, ["l"], ["y"]),
    ]
    ends = [make.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in "xy"]
    bias = np.array([10, 10, 10, 5, 5], np.float32)  # behind a sigmoid all are above one half at 0
    arrays = [onnx.numpy_helper.from_array(array, name) for name, array in (("w", DEAD), ("b", bias))]
    onnx.save(make.make_model(make.make_graph(nodes, "g", ends[:1], ends[1:], arrays)), "m.onnx")
    verdict = printed(capsys, "m.onnx", *words)["verdict"]
    assert said in verdict
    assert not_said not in verdict
    assert ("above one half" in verdict) == (kind == "Sigmoid")


def stored(path, **shapes):
    rng = np.random.default_rng(0)
    save_file(
        {name.replace("__", "."): rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}, path
    )


@pytest.mark.parametrize(
    ("shapes", "said"),
    [
        (
            {"fc1__weight": (16, 8), "out__weight": (1, 16)},
            "no matrix is sure to be the head; name one with --head: 'fc1'",
        ),
        ({"fc1__weight": (16, 8), "fc__weight": (1, 16)}, "'fc' (1 × 16) has a single row"),
        ({"embeddings__word__weight": (100, 8)}, "no matrix is sure to be the head"),
        ({"wte__weight": (100, 8), "h__0__attn__weight": (8, 8)}, "no matrix is sure to be the head"),
        ({"fc__weight": (1, 8)}, "it holds no matrix with a row a class"),
    ],
)
def test_no_other_matrix_is_taken_for_the_head(folder, capsys, shapes, said):
    stored("m.safetensors", **shapes)
    assert said in refused(capsys, "m.safetensors")


def test_a_matrix_of_two_kinds_of_tokens_is_no_head_of_two_labels(folder, capsys):
    (folder / "model").mkdir()
    (folder / "model/config.json").write_text('{"id2label": {"0": "a", "1": "b"}}', encoding="utf-8")
    shapes = {"token_type_embeddings__weight": (2, 8), "query__weight": (8, 8)}
    stored("model/model.safetensors", **shapes)
    assert "no matrix is sure to be the head" in refused(capsys, "model")
    stored("model/model.safetensors", **shapes, final__weight=(2, 8))
    assert [one["label"] for one in printed(capsys, "model")["classes"]] == ["a", "b"]


FOLDERS = sorted(map(str, range(12)))  # 0, 1, 10, 11, 2, …


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (json.dumps({name: k for k, name in enumerate(FOLDERS)}), FOLDERS),
        (json.dumps({str(k): name for k, name in enumerate(FOLDERS)}), FOLDERS),
        (str(dict(enumerate(FOLDERS))), FOLDERS),
        ("\n".join(["[PAD]", "[UNK]", *"abcdefghij"]), ["[PAD]", "[UNK]", *"abcdefghij"]),
        ("\n".join(["[", "]", *"abcdefghij"]), ["[", "]", *"abcdefghij"]),
        ("\n".join(["{", "a", "a (row 2)", *"aabcdefgh"]), None),
    ],
)
def test_names_are_in_the_order_of_the_rows(folder, capsys, text, names):
    stored("m.safetensors", fc__weight=(12, 8))
    (folder / "labels.txt").write_text(text, encoding="utf-8")
    found = [one["label"] for one in printed(capsys, "m.safetensors", "--labels", "labels.txt")["classes"]]
    assert found == (names or found)
    assert len(set(found)) == 12


@pytest.mark.parametrize("text", ['[\n"a",\n"b",\n"c"\n', '["a",\n"b"\n"c"', '{"a": 0,\n"b": 1,\n\n'])
def test_damaged_json_is_not_read_as_lines(folder, capsys, text):
    stored("m.safetensors", fc__weight=(text.rstrip("\n").count("\n") + 1, 8))
    (folder / "labels.txt").write_text(text, encoding="utf-8")
    assert "labels for" in refused(capsys, "m.safetensors", "--labels", "labels.txt")


def test_numbers_of_eight_bits_are_named(folder, capsys):
    save_torch({"fc.weight": torch.ones(4, 3).to(torch.float8_e4m3fn)}, "m.safetensors")
    assert "fc.weight' is stored as F8_E4M3; save it as F16, BF16 or F32" in refused(capsys, "m.safetensors")


@pytest.mark.parametrize("name", ["net.h5", "a net's.hdf5", "net.keras"])
@pytest.mark.parametrize("window", [(), (1, 1)])
def test_a_keras_file_is_exported_by_the_command_that_the_error_names(folder, capsys, head, name, window):
    weight, bias = head["weight"], head["bias"]  # a stand-in for Keras; the line was run with Keras 3, too
    np.savez("kept.npz", kernel=weight.T.reshape(*window, *weight.T.shape), bias=bias)
    (folder / name).write_bytes(b"\x89HDF")
    (folder / "keras.py").write_text(
        "import numpy, types\n"
        "def load_model(path, compile):\n"
        f"    assert path == {name!r} and compile is False\n"
        "    kept = [*numpy.load('kept.npz').values()]\n"
        "    made = [types.SimpleNamespace(weights=w, get_weights=lambda w=w: w) for w in ([kept[1]], kept, [])]\n"
        "    return types.SimpleNamespace(layers=made)\n"
        "models = types.SimpleNamespace(load_model=load_model)\n",
        encoding="utf-8",
    )
    command, given = re.search("run (python -c .*) and give (.*)", refused(capsys, name)).groups()
    _, *arguments = shlex.split(command)
    subprocess.run([sys.executable, *arguments], check=True)
    found = read_model(given)
    assert_allclose(found.weight, weight)
    assert_allclose(found.bias, bias)


@pytest.mark.parametrize(("x", "y"), [("features", "labels"), ("X", "y")])
def test_samples_are_no_head(folder, capsys, x, y):
    np.savez("samples.npz", **{x: np.eye(6, 4), y: np.arange(6)})
    assert "holds no matrix with a row a class" in refused(capsys, "samples.npz")
    np.savez("both.npz", **{x: np.eye(6, 4), y: np.arange(6), "weight": np.eye(3, 4)})
    assert len(printed(capsys, "both.npz")["classes"]) == 3
