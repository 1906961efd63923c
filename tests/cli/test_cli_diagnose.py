"""`collapsekit diagnose`: features, checkpoints and runs; the page; and every command of the page on lost classes."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from _support.spoiled import LONG_TAIL, NAMES, digits, network, sgd, train
from collapsekit.cli import main
from collapsekit.metrics import features_of

PAGE = Path(__file__).parents[2] / "docs" / "never_predicted.md"
NETS = """import torch
def build(shape, classes):
    body = torch.nn.Sequential(
        torch.nn.Linear(shape[0], 128), torch.nn.ReLU(), torch.nn.Linear(128, 64), torch.nn.ReLU())
    return torch.nn.Sequential(body, torch.nn.Linear(64, classes))
def fails(shape, classes):
    raise ValueError("no such size")
"""
MODEL = ["--model", "mynets:build", "--data", "data.npz"]


@pytest.fixture(scope="module")
def spoiled():
    """A network that a decay has cost its rarest classes."""
    torch.manual_seed(0)
    data, model = digits(LONG_TAIL), network()
    train(model, *data[:2], sgd(model, decay=0.02), epochs=120)
    return data, model


@pytest.fixture
def folder(tmp_path, monkeypatch, spoiled):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    (inputs, labels, test_inputs, test_labels), model = spoiled
    (tmp_path / "mynets.py").write_text(NETS, encoding="utf-8")
    names = np.array(NAMES)
    np.savez("data.npz", X=inputs, y=labels, Xt=test_inputs, yt=test_labels, names=names)
    for name, x, y in (("train.npz", inputs, labels), ("val.npz", test_inputs, test_labels)):
        found = features_of(model, [(torch.from_numpy(x), torch.from_numpy(y))])
        arrays = {key: value.detach().numpy() for key, value in found._asdict().items()}
        np.savez(name, names=names, **arrays)
    torch.save(model.state_dict(), "checkpoint.pt")
    save_file({"fc.weight": model[-1].weight.detach(), "fc.bias": model[-1].bias.detach()}, "model.safetensors")
    return tmp_path


def printed(capsys, *arguments):
    assert main(["diagnose", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys, *arguments):
    assert main(["diagnose", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


def test_features_and_their_table(folder, capsys):
    assert main(["diagnose", "train.npz", "--held-out", "val.npz"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"Of 10 classes \d lost, \d weak\.", lines[0])
    assert lines[1].startswith("Likeliest cause: regularisation")
    assert lines[2].startswith("First: weight_decay=0.002 ")
    head = next(i for i, line in enumerate(lines) if line.startswith("class "))
    assert "held-out" in lines[head - 1]
    assert lines[head + 1].startswith("nine ")
    assert all(name in "\n".join(lines[head:]) for name in NAMES)
    assert max(map(len, lines[head - 1 :])) <= 92  # not a terminal: nothing is cut


def test_json_has_the_keys_that_are_promised(folder, capsys):
    content = printed(capsys, "train.npz", "--held-out", "val.npz", "--weight-decay", "0.02", "--steps", "900",
                      "--learning-rate", "0.1", "--momentum", "0.9")  # fmt: skip
    keys = ["label", "count", "status", "cause", "recall", "confidence", "margin", "held_out_recall", "confused_with"]
    assert all(list(one) == keys for one in content["classes"])
    keys = ["code", "severity", "cause", "classes", "numbers", "sentence", "remedy"]
    assert all(set(keys) <= set(one) for one in content["findings"])
    assert len(content["verdict"]) == 3
    assert content["cause"] == "regularisation"
    assert "no-prediction" in {one["code"] for one in content["findings"]}


def test_a_checkpoint_says_the_same_as_its_features(folder, capsys, spoiled):
    stored = printed(capsys, "train.npz", "--held-out", "val.npz")
    state = spoiled[1].state_dict()
    save_file({f"module.{key}": value for key, value in state.items()}, "parallel.safetensors")
    torch.save({"state_dict": {f"model.{key}": value for key, value in state.items()}}, "lightning.pt")
    for name in ("checkpoint.pt", "parallel.safetensors", "lightning.pt"):
        run = printed(capsys, name, *MODEL)
        assert [one["cause"] for one in run["classes"]] == [one["cause"] for one in stored["classes"]]
        recalls = [[one["held_out_recall"] for one in content["classes"]] for content in (run, stored)]
        assert recalls[0] == pytest.approx(recalls[1])


def test_a_run_of_train(folder, capsys):
    assert main(["train", "--epochs", "6", "--out", "runs", "--json"]) == 0
    run = json.loads(capsys.readouterr().out)["run"]
    content = printed(capsys, run)
    assert content["cause"] == "unfinished"
    assert content["classes"][0]["held_out_recall"] is not None
    Path(run, "checkpoint.safetensors").unlink()
    assert main(["diagnose", run]) == 0
    assert "Only what the run has measured is diagnosed" in capsys.readouterr().out.replace("\n", " ")


def test_mistakes_cost_one_line(folder, capsys, spoiled):
    assert "--data: missing" in refused(capsys, "checkpoint.pt", "--model", "mynets:build")
    assert "--model: missing" in refused(capsys, "checkpoint.pt", "--data", "data.npz")
    assert "--model module:function" in refused(capsys, "checkpoint.pt")
    assert "--head" in refused(capsys, "data.npz")
    assert "nope.npz" in refused(capsys, "nope.npz")
    assert "holds no run" in refused(capsys, ".")
    assert "no such size" in refused(capsys, "checkpoint.pt", "--model", "mynets:fails", "--data", "data.npz")
    assert "module:function" in refused(capsys, "checkpoint.pt", "--model", "build", "--data", "data.npz")
    assert ".npz" in refused(capsys, "train.npz", *MODEL)
    torch.save(spoiled[1], "pickled.pt")
    assert "may run code" in refused(capsys, "pickled.pt", *MODEL)
    torch.save({"other.weight": torch.zeros(2, 2)}, "other.pt")
    assert "lacks" in refused(capsys, "other.pt", *MODEL)
    state = spoiled[1].state_dict()
    torch.save(state | {"1.weight": torch.zeros(3, 64)}, "shapes.pt")
    assert "shapes" in refused(capsys, "shapes.pt", *MODEL)
    assert "folder" in refused(capsys, "train.npz", "--html", ".")


def test_the_page_has_names_and_nothing_empty(folder, capsys):
    assert main(["diagnose", "train.npz", "--held-out", "val.npz", "--html", "page.html"]) == 0
    assert "page: page.html" in capsys.readouterr().out
    page = (folder / "page.html").read_text(encoding="utf-8")
    for name in NAMES:
        assert f'<th scope="row">{name}</th>' in page
    assert page.index("What to do") < page.index("<svg") < page.index("Geometry")
    assert "nan" not in re.sub(r"<svg.*?</svg>", "", page, flags=re.DOTALL).lower()
    assert page.count("<figure>") == page.count("<figcaption>") >= 5


def test_names_are_escaped_and_a_thousand_classes_fit(folder, capsys):
    rng = np.random.default_rng(0)
    size = 1000
    names = np.array([f"<b>class {k}</b>" for k in range(size)])
    centres = rng.normal(size=(size, 32))
    labels = np.repeat(np.arange(size), 3)
    np.savez("many.npz", X=centres[labels], y=labels, weight=centres * (np.arange(size) % 2)[:, None], names=names)
    assert main(["diagnose", "many.npz", "--html", "many.html"]) == 0
    assert "20 of 1000 classes are shown" in capsys.readouterr().out
    page = (folder / "many.html").read_text(encoding="utf-8")
    assert "<b>class" not in page
    assert "&lt;b&gt;class" in page
    assert page.count('<th scope="row">') == size
    assert 'class="scroll tall"' in page  # a thousand rows are scrolled to


def commands():
    """All of the page, and the way of somebody who has a model in the README."""
    readme = (PAGE.parents[1] / "README.md").read_text(encoding="utf-8").split("\n## ")[1]
    text = PAGE.read_text(encoding="utf-8") + readme
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line]


@pytest.mark.parametrize("command", commands())
def test_every_command_of_the_page_runs(folder, capsys, command):
    program, *arguments = shlex.split(command)
    assert program == "collapsekit"
    assert main(arguments) == 0, capsys.readouterr().err
    assert capsys.readouterr().out


def stored(name):
    with np.load(name, allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def test_held_out_labels_are_found_by_name_and_never_by_order(folder, capsys):
    train_set, val = stored("train.npz"), stored("val.npz")
    bare = {key: value for key, value in train_set.items() if key != "names"}
    np.savez("bare.npz", **bare | {"labels": bare["labels"] + 1})
    expected = [one["held_out_recall"] for one in printed(capsys, "train.npz", "--held-out", "val.npz")["classes"]]
    few = val["labels"] % 2 == 0
    np.savez("some.npz", features=val["features"][few], labels=val["labels"][few] + 1)
    found = [one["held_out_recall"] for one in printed(capsys, "bare.npz", "--held-out", "some.npz")["classes"]]
    assert found[::2] == expected[::2]
    assert found[1::2] == [None] * 5
    np.savez("others.npz", features=val["features"], labels=val["labels"] + 5)
    assert "held_out: the label '11' is no training label" in refused(capsys, "bare.npz", "--held-out", "others.npz")


def test_a_checkpoint_whose_data_lack_a_class(folder, capsys):
    data = stored("data.npz")
    kept = data["y"] != 8
    np.savez("nine.npz", X=data["X"][kept], y=data["y"][kept])
    for more in ([], ["--class-names", *NAMES]):
        found = printed(capsys, "checkpoint.pt", "--model", "mynets:build", "--data", "nine.npz", *more)["classes"]
        assert [one["status"] == "unseen" for one in found] == [k == 8 for k in range(10)]
        assert found[0]["recall"] > 0.9
    assert found[9]["label"] == "nine"


def test_the_order_of_the_rows_that_is_assumed_stands_at_the_top(folder, capsys):
    words = {"y": np.array(NAMES)[stored("data.npz")["y"]], "labels": np.array(NAMES)[stored("train.npz")["labels"]]}
    np.savez("words.npz", X=stored("data.npz")["X"], y=words["y"])
    bare = {key: value for key, value in stored("train.npz").items() if key != "names"}
    np.savez("sorted.npz", **bare | {"labels": words["labels"]})
    for door in (["sorted.npz"], ["checkpoint.pt", "--model", "mynets:build", "--data", "words.npz"]):
        content = printed(capsys, *door)
        assert "in sorted order" in content["assumed_order"]
        assert content["findings"][0]["code"] == "row-order"
        again = printed(capsys, *shlex.split(content["findings"][0]["remedy"], comments=True)[2:])
        assert "row-order" not in {one["code"] for one in again["findings"]}
        assert printed(capsys, *door, "--class-names", *NAMES)["assumed_order"] is None
        assert main(["diagnose", *door, "--html", "page.html"]) == 0
        assert "Assumed: the rows" in capsys.readouterr().out.splitlines()[3]
        assert "Assumed: the rows" in (folder / "page.html").read_text(encoding="utf-8").partition("<table")[0]
    kept = bare["labels"] < 9
    np.savez("off.npz", **bare | {"features": bare["features"][kept], "labels": bare["labels"][kept] + 1})
    assert "row numbers, from 0" in printed(capsys, "off.npz")["assumed_order"]


def test_remedies_name_the_users_own_files(folder, capsys):
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(12), 20)
    centres, own = 2 * rng.normal(size=(12, 30)), "my train.npz"
    features = centres[labels] + rng.normal(size=(240, 30))
    mixed = np.where(np.arange(240) % 20 < 12, (labels == 5) * 2, 0) + labels
    np.savez("mixed.npz", features=features, labels=mixed, weight=centres)
    remedy = next(one for one in printed(capsys, "mixed.npz")["findings"] if one["cause"] == "data")["remedy"]
    assert "found." not in remedy
    positions = [int(word) for word in re.findall(r"\d+", remedy.partition(":")[0])][:12]
    assert positions == list(range(100, 112))
    words = np.array([f"class{k}" for k in labels])
    np.savez(own, features=features, labels=words, weight=centres)
    first = printed(capsys, own, "--held-out", own)["findings"][0]
    assert first["remedy"].startswith(
        "collapsekit diagnose 'my train.npz' --held-out 'my train.npz' --class-names class0 class1 class2"
    )
    again = printed(capsys, *shlex.split(first["remedy"], comments=True)[2:])
    assert not again["findings"]


def test_a_history_in_a_file(folder, capsys):
    (folder / "history.json").write_text('{"loss": [2.3, NaN]}', encoding="utf-8")
    content = printed(capsys, "train.npz", "--history", "history.json")
    assert "unstable-training" in {one["code"] for one in content["findings"]}
    assert printed(capsys, "checkpoint.pt", *MODEL, "--history", "history.json")["cause"] == content["cause"]
    (folder / "history.json").write_text("loss", encoding="utf-8")
    assert "no JSON" in refused(capsys, "train.npz", "--history", "history.json")
    assert "gone.json" in refused(capsys, "train.npz", "--history", "gone.json")


def test_columns_that_are_empty_and_long_names_that_look_alike(folder, capsys):
    bare = stored("train.npz")
    names = np.array([f"category number {k} with a name that is long" for k in range(10)])
    np.savez("long.npz", **bare | {"names": names})
    assert main(["diagnose", "long.npz"]) == 0
    out = capsys.readouterr().out
    table = out[out.index("class  ") :].splitlines()[1:11]
    assert "held-out" not in out
    assert len({line.split("  ")[0] for line in table}) == 10
