"""`adjust --write-back` of a model in shards: the file with the head is new, all else is what it was."""

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from collapsekit.cli import main

NAMES = ["ant", "bee", "cat"]
INDEX = "model.safetensors.index.json"
FIRST, SECOND, THIRD = (f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3))
WORDS = ["adjust", "train.npz", "--validation", "val.npz", "--head"]


def shards(bias_in):
    """Tensors of three shards; the bias beside its weight or in another."""
    rng = np.random.default_rng(1)
    made = {
        FIRST: {"body.weight": rng.normal(size=(4, 4)).astype(np.float32)},
        SECOND: {"classifier.weight": np.eye(3, 4, dtype=np.float32), "steps": np.array([3])},
        THIRD: {"body.norm.weight": np.ones(4, np.float32)},
    }
    made[bias_in]["classifier.bias"] = np.array([0, 0, -9], np.float32)
    return made


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for name, sizes in (("train.npz", (60, 30, 10)), ("val.npz", (30, 30, 30))):
        labels = np.repeat([0, 1, 2], sizes)
        np.savez(name, features=2 * np.eye(3, 4)[labels] + 0.3 * rng.normal(size=(len(labels), 4)), labels=labels)
    return tmp_path


def model(made):
    Path("model/more").mkdir(parents=True)
    Path("model/more/notes.txt").write_text("kept", encoding="utf-8")
    for name, tensors in made.items():
        save_file(tensors, f"model/{name}", metadata={"format": "pt"})
    weights = {key: name for name, tensors in made.items() for key in tensors}
    Path("model", INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weights}))
    Path("model/config.json").write_text(json.dumps({"id2label": dict(enumerate(NAMES))}))


def contents(path):
    return {str(one.relative_to(path)): one.read_bytes() for one in sorted(Path(path).rglob("*")) if one.is_file()}


def by_index(path):
    """Every tensor, as a reader finds it that goes by the index."""
    found = {}
    for key, name in json.loads(Path(path, INDEX).read_text())["weight_map"].items():
        with safe_open(Path(path, name), "np") as shard:
            found[key] = shard.get_tensor(key)
            assert shard.metadata() == {"format": "pt"}
    return found


@pytest.mark.parametrize(
    ("bias_in", "changed"), [(SECOND, {SECOND}), (THIRD, {SECOND, THIRD}), (FIRST, {FIRST, SECOND})]
)
def test_only_the_shards_with_the_head_change(folder, capsys, bias_in, changed):
    made = shards(bias_in)
    model(made)
    before = contents("model")
    words = [*WORDS, "model", "--write-back", "new model", "--method", "nearest-mean", "--out", "head.safetensors"]
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["classes"][2]["label"] == "cat"
    assert contents("model") == before
    after = contents("new model")
    assert {name for name in before if after[name] != before[name]} == changed
    assert set(after) == set(before)
    tensors, alone = by_index("new model"), load_file("head.safetensors")
    for kind in ("weight", "bias"):
        assert_array_equal(tensors[f"classifier.{kind}"], alone[kind])
    assert_array_equal(tensors["body.weight"], made[FIRST]["body.weight"])
    assert_array_equal(tensors["steps"], [3])
    assert main(["inspect", "new model", "--json"]) == 0
    assert sorted(path.name for path in folder.iterdir() if path.name.startswith(".")) == []


def test_the_folder_itself_is_changed_where_it_is_named(folder, capsys):
    model(shards(SECOND))
    before = contents("model")
    assert main([*WORDS, "model", "--write-back", "model/", "--method", "nearest-mean"]) == 0
    after = contents("model")
    assert {name for name in before if after[name] != before[name]} == {SECOND}
    assert set(after) == set(before)


def test_links_of_a_cache_are_followed_and_never_written_through(folder, capsys):
    model(shards(SECOND))
    Path("blobs").mkdir()
    for path in Path("model").glob("*.safetensors"):
        path.rename(Path("blobs", path.name))
        path.symlink_to(Path("..", "blobs", path.name))
    before = contents("blobs")
    assert main([*WORDS, "model", "--write-back", "new", "--method", "nearest-mean"]) == 0
    assert contents("blobs") == before
    assert not any(path.is_symlink() for path in Path("new").iterdir())
    assert set(by_index("new")) == set(by_index("model"))
    capsys.readouterr()
    assert main([*WORDS, "model", "--write-back", "model", "--method", "nearest-mean"]) == 2
    assert "is a symbolic link" in capsys.readouterr().err
    assert contents("blobs") == before


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("blobs", "--write-back='blobs': is there already; name a new folder"),
        ("train.npz", "--write-back='train.npz': is there already"),
        ("model/inside", "is in the model's own folder; name a new folder beside"),
        ("none/new", "there is no folder 'none'"),
    ],
)
def test_nothing_else_is_written_to(folder, capsys, target, said):
    model(shards(SECOND))
    Path("blobs").mkdir()
    before = contents(".")
    assert main([*WORDS, "model", "--write-back", target]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert contents(".") == before


def test_a_head_in_two_files_is_refused(folder, capsys):
    made = shards(SECOND)
    made[THIRD]["classifier.weight"] = made[SECOND]["classifier.weight"]
    model(made)
    assert main([*WORDS, "model", "--write-back", "new"]) == 2
    assert "'classifier.weight' is in several files of the folder; give --head the file" in capsys.readouterr().err
    words = [*WORDS, f"model/{SECOND}", "--write-back", f"model/{SECOND}", "--class-names", *NAMES]
    assert main(words) == 0  # the remedy


def test_a_private_shard_stays_private_in_the_new_folder(folder, capsys):
    model = Path("model")
    model.mkdir()
    save_file({"classifier.weight": np.eye(3, 4, dtype=np.float32)}, model / "model.safetensors")
    (model / "model.safetensors").chmod(0o640)
    assert main([*WORDS, "model", "--method", "row-norms", "--write-back", "new"]) == 0
    assert Path("new/model.safetensors").stat().st_mode & 0o777 == 0o640


def test_links_into_a_cache_are_refused_before_the_work_and_the_remedy_works(folder, capsys):
    Path("cache").mkdir()
    save_file({"classifier.weight": np.eye(3, 4, dtype=np.float32)}, "cache/blob")
    Path("model").mkdir()
    Path("model/model.safetensors").symlink_to("../cache/blob")
    before = Path("cache/blob").read_bytes()
    words = [*WORDS, "model", "--method", "row-norms", "--write-back"]
    assert main([*words, "model"]) == 2
    said = capsys.readouterr().err
    assert "adjusting" not in said
    assert "name a new folder beside the model's" in said
    assert main([*words, "new"]) == 0
    assert Path("cache/blob").read_bytes() == before
    assert not Path("new/model.safetensors").is_symlink()
