"""The commands sweep and collect: their flags, their tables, their errors (one line, exit 2)."""

import json
import sys
from pathlib import Path

import pytest

from collapsekit.cli import main
from collapsekit.cli.sweep import grid_of
from collapsekit.training import TrainConfig, train
from collapsekit.training.grid import configurations
from collapsekit.training.runs import save_failure

TINY = {"epochs": 3, "hidden": (8,), "feature_dim": 12}
FLAGS = ["--epochs", "3", "--hidden", "8", "--feature-dim", "12", "--seeds", "0:2"]


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """The runs of FLAGS, so that the command has nothing to train."""
    monkeypatch.chdir(tmp_path)
    for seed in range(2):
        train(TrainConfig(seed=seed, **TINY), out="runs")


@pytest.mark.parametrize(
    ("flags", "grid"),
    [
        ({"seeds": "0:3"}, {"seed": [0, 1, 2]}),
        ({"seed": "4, 7,9:11"}, {"seed": [4, 7, 9, 10]}),
        ({"hidden": "256x128,64"}, {"hidden": [(256, 128), (64,)]}),
        ({"penalty_scale": "0.1,1e-2"}, {"penalty_scale": [0.1, 0.01]}),
        (
            {"ldam": "none,0.5", "class_weights": "none,inverse"},
            {"ldam": [None, 0.5], "class_weights": ["none", "inverse"]},
        ),
        ({"batch_size": "none,64"}, {"batch_size": [None, 64]}),
        ({"batchnorm": "true,False,none", "data": "digits"}, {"batchnorm": [True, False, None], "data": ["digits"]}),
        ({"recipe": "penalty,plain"}, {"recipe": ["penalty", "plain"]}),
    ],
)
def test_flags_make_a_grid(flags, grid):
    assert grid_of(flags) == grid
    assert len(configurations(grid)) == max(map(len, grid.values())) ** sum(len(v) > 1 for v in grid.values())


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        ([], "configs:"),
        (["grid.json", "--seeds", "0:2"], "not both"),
        (["nowhere.json"], "nowhere.json"),
        (["broken.json"], "cannot be read"),
        (["number.json"], "holds 3"),
        (["strange.json"], "colour"),
        (["listed.json"], "colour"),
        (["--colour", "1"], "--colour"),
        (["--seeds", "x"], "--seed='x'"),
        (["--seeds", "0:1:2:3"], "0:1:2:3"),
        (["--seeds", "3:3"], "configs"),
        (["--seeds", "0:99999999999999999999"], "combinations"),
        (["--seeds", "0:2", "--out", "a\0b"], "out="),
        (["--hidden", "8:9"], "256x256"),
        (["--batchnorm", "perhaps"], "true or false"),
        (["--penalty-scale", "much"], "give numbers"),
        (["--penalty-scale", "0"], "penalty_scale=0"),
        (["--recipe", "magic"], "recipe='magic'"),
        (["--class-names", "a,b"], "--class-names"),
        (["--seeds", "0:2", "--part", "3/2"], "part"),
        (["--seeds", "0:2", "--part", "1"], "--part='1'"),
        (["--seeds", "0:2", "--workers", "0"], "workers"),
        (["--seeds", "0:2", "--out", "number.json"], "out='number.json'"),
        (["--seeds", "0:2", "--scheduler", "nonsense://"], "scheduler"),
        (["--seeds"], "seeds"),
    ],
)
def test_misuse_is_one_line(tmp_path, monkeypatch, capsys, arguments, fragment):
    monkeypatch.chdir(tmp_path)
    Path("number.json").write_text("3")
    Path("broken.json").write_text("[{")
    Path("grid.json").write_text('{"seed": [0]}')
    Path("strange.json").write_text('{"colour": [0]}')
    Path("listed.json").write_text('[{"colour": 0}]')
    assert main(["sweep", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert fragment in err


def test_without_the_extra_the_scheduler_names_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert main(["sweep", "--seeds", "0:2", "--scheduler", "tcp://127.0.0.1:1"]) == 2
    assert "collapsekit[cluster]" in capsys.readouterr().err


def test_sweep_prints_one_row_a_run(finished, capsys):
    assert main(["sweep", *FLAGS]) == 0
    out, err = capsys.readouterr()
    for seed in range(2):
        fingerprint = TrainConfig(seed=seed, **TINY).fingerprint
        assert fingerprint in out
        assert f"{fingerprint} seed {seed}: finished" in err
    assert "2 of 2 runs finished." in out


def test_json_and_configurations_from_a_file(finished, capsys):
    Path("list.json").write_text(json.dumps([{**TINY, "seed": 1}, {**TINY, "seed": 0}]))
    Path("grid.json").write_text(json.dumps({**TINY, "hidden": [[8]], "seed": [1, 0]}))
    assert main(["sweep", *FLAGS, "--json"]) == 0
    expected = json.loads(capsys.readouterr().out)["runs"]
    for name in ("list.json", "grid.json"):
        assert main(["sweep", name, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["runs"] == expected[::-1]
    assert main(["sweep", "list.json", "--part", "2/2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["runs"] == expected[:1]


def test_collect_shows_and_writes(finished, capsys):
    save_failure("runs", TrainConfig(seed=9), "because")
    assert main(["collect", "runs", "--out", "table.csv"]) == 0
    out = capsys.readouterr().out
    assert "failed: because" in out
    assert "1 failed" in out
    assert "2 finished" in out
    assert len(Path("table.csv").read_text().splitlines()) == 4
    assert main(["collect", "runs", "--json"]) == 0
    assert {row["status"] for row in json.loads(capsys.readouterr().out)["runs"]} == {"finished", "failed"}


@pytest.mark.parametrize(("arguments", "fragment"), [(["nowhere"], "nowhere"), (["runs", "--out", "x.doc"], "x.doc")])
def test_misuse_of_collect(finished, capsys, arguments, fragment):
    assert main(["collect", *arguments]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert fragment in err
