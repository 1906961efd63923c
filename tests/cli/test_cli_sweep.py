"""The commands sweep and collect: their flags, their tables, their errors (one line, exit 2)."""

import json
import re
import sys
from pathlib import Path

import pytest

from collapsekit.cli import main
from collapsekit.cli.sweep import grid_of
from collapsekit.training import TrainConfig, train
from collapsekit.training._sweep import configurations
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
        (["listed.json"], "entry 1: TrainConfig has no ['colour']"),
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
        (["--seeds", "0:2", "--part", "3/2"], "--part='3/2': give I/N with 1 ≤ I ≤ N"),
        (["--seeds", "0:2", "--out", ""], "out=''"),
        (["--seed", "0", "--seeds", "1"], "--seed, --seeds"),
        (["deep.json"], "cannot be read"),
        (["dict head.json"], "'dict head.json', entry 2: head="),
        (["list head.json"], "entry 2: head="),
        (["odd names.json"], "entry 2: class_names=5"),
        (["text.json"], "'text.json', entry 2: batchnorm='false'"),
        (["widths.json"], "'widths.json': hidden=[8, 8]: a list holds one value a run; give [[8, 8]]"),
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
    Path("deep.json").write_text("[" * 100_000)
    Path("dict head.json").write_text('[{}, {"head": {"a": 1}}]')
    Path("list head.json").write_text('[{}, {"head": ["a"]}]')
    Path("odd names.json").write_text('[{}, {"class_names": 5}]')
    Path("text.json").write_text('[{}, {"batchnorm": "false"}]')
    Path("widths.json").write_text('{"hidden": [8, 8]}')
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


def test_some_failed_is_exit_1_with_the_table(finished, capsys):
    assert main(["sweep", *FLAGS, "--data", "digits,nowhere", "--workers", "1"]) == 1
    out, err = capsys.readouterr()
    assert out.count(" finished") >= 2
    assert out.count("failed: data='nowhere'") == 2
    assert "2 of 4 runs finished, 2 failed" in out
    assert err.count("\n") == 4


def test_a_narrow_terminal_keeps_run_and_status(finished, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    save_failure("runs", TrainConfig(seed=1, learning_rate=0.02, data="a/rather/long/path.csv", **TINY), "because")
    assert main(["collect", "runs"]) == 0
    lines = re.sub("\x1b[^m]*m", "", capsys.readouterr().out).splitlines()
    rows = [line for line in lines if re.match("[0-9a-f]{12} ", line)][:3]
    assert sorted(line.split()[-1] for line in rows) == ["failed", "finished", "finished"]
    assert all(len(line) <= 80 for line in rows)
    assert any(line.startswith("No room for") and "balanced accuracy" in line for line in lines)


def test_a_part_without_runs_is_nothing_to_do(finished, capsys):
    assert main(["sweep", *FLAGS, "--part", "5/8"]) == 0
    assert capsys.readouterr().out == "Nothing to do in this part.\n"
    assert main(["sweep", *FLAGS, "--part", "5/8", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["runs"] == []


def test_json_holds_every_run_and_nothing_that_a_network_prints(finished, capfd):
    configs = [TINY, {**TINY, "network": "_support.deadly:talks"}, {**TINY, "seed": 7}]
    Path("list.json").write_text(json.dumps(configs))
    (Path("runs") / TrainConfig(seed=7, **TINY).fingerprint).touch()  # no folder, so that nothing can be noted there
    assert main(["sweep", "list.json", "--workers", "1", "--json"]) == 1
    out, err = capfd.readouterr()
    rows = json.loads(out)["runs"]
    assert [row["status"] for row in rows] == ["finished", "finished", "failed"]
    assert rows[2]["run"] in rows[2]["reason"]
    assert rows[2].keys() == rows[0].keys()
    assert "a word" in err


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
