"""What the experiments share: rows, verdicts, reuse of stored runs, their data and networks."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from safetensors.torch import save_file

from collapsekit.training import TrainConfig

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "experiments"))
datasets, harness, nets = (importlib.import_module(name) for name in ("_tools.datasets", "_tools.harness", "nets"))

TINY = TrainConfig(epochs=3, hidden=(8,), feature_dim=8)


def test_a_configuration_is_stored_by_what_it_changes():
    config = TrainConfig(seed=3, hidden=(4,), penalty_scale=0.3)
    values = json.loads(json.dumps(harness.changed(config)))
    assert values == {"schema": 2, "seed": 3, "hidden": [4], "penalty_scale": 0.3}
    assert TrainConfig.from_dict(values) == config
    row = {"config": values}
    assert (harness.setting(row, "seed"), harness.setting(row, "recipe")) == (3, "penalty")


def test_numbers_are_stored_as_json_can_hold_them():
    found = harness.plain({"a": np.array([1 / 3, np.nan]), "b": np.inf, "c": {"d": np.float64(2)}, "e": 4, "f": "x"})
    assert found == {"a": [0.333333, None], "b": None, "c": {"d": 2.0}, "e": 4, "f": "x"}


def test_deviations_and_critical_classes():
    row = {"confidences": [0.9, 0.5], "predicted_confidences": [0.8, 0.5], "headroom": [4.0, 1.03]}
    assert_allclose(harness.deviations(row), [0.1, 0])
    assert not harness.critical(row)
    assert harness.critical(row | {"headroom": [4.0, 0.985]})


def test_spread_is_mean_and_sample_deviation():
    assert harness.spread([1.0, 3.0]) == "2 ± 1"
    assert harness.spread([0.25]) == "0.25"
    assert harness.spread([100.0, 140.0]) == "120 ± 28"


def test_verdicts_are_spelled_out_and_fill_the_table():
    entries = [harness.line("a", "b", "c", "d", verdict) for verdict in (True, np.False_, harness.CORRECTED)]
    assert [entry["verdict"] for entry in entries] == ["holds", "fails", "holds with correction"]
    assert harness.line("a", "b", "c", "d", True, headline=True)["headline"]
    assert harness.table(entries).splitlines()[-1] == "| a | b | c | d | holds with correction |"


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv.pop(1))
from _tools import harness
from collapsekit.training import TrainConfig

harness.RESULTS = Path("results")
TINY = [TrainConfig(epochs=3, hidden=(8,), feature_dim=8, seed=seed) for seed in range(2)]
WRONG = TrainConfig(data="nothing.csv")


def judge(rows, bands):
    good = all(row["largest_deviation"] <= bands["largest_deviation"] for row in rows)
    return [harness.line("tiny", f"{len(rows)} runs", "", "", good)]


CLAIM = harness.Experiment(
    "tiny", "Tiny?", [*TINY, WRONG], {"largest_deviation": 1.0}, judge, TINY[:1], {"largest_deviation": 0.0}
)
if __name__ == "__main__":
    harness.main(CLAIM)
"""


def run(folder, *arguments):
    (folder / "tiny.py").write_text(SCRIPT)
    command = [sys.executable, "tiny.py", str(ROOT / "experiments"), "--workers", "1", *arguments]
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(command, cwd=folder, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)


@pytest.mark.heavy
def test_an_experiment_runs_is_judged_again_and_keeps_stored_runs(tmp_path):
    done = run(tmp_path, "--out", "runs")
    assert done.returncode == 0, done.stderr
    first = json.loads((tmp_path / "results" / "tiny.json").read_text())
    assert [row["config"].get("seed", 0) for row in first["runs"]] == [0, 1]
    assert (first["planned_runs"], len(first["failures"])) == (3, 1)
    assert "nothing.csv" in first["failures"][0]["error"]
    assert first["table"][0]["verdict"] == "holds"
    assert first["environment"]["versions"]["torch"] == torch.__version__
    again = run(tmp_path, "--finished")  # without the run folders, from the stored rows
    assert again.returncode == 0, again.stderr
    second = json.loads((tmp_path / "results" / "tiny.json").read_text())
    assert second["runs"] == first["runs"]
    smoke = run(tmp_path, "--smoke", "--out", "runs")
    assert smoke.returncode == 1  # no run has a deviation of 0
    assert json.loads((tmp_path / "results" / "tiny.json").read_text()) == second


@pytest.mark.parametrize("name", ["tiny_eps_mlp", "pooled_cnn", "everyday_cnn", "biased_cnn", "plain_cnn"])
def test_networks_of_the_experiments(name):
    model = getattr(nets, name)((1, 8, 8), 10)
    assert model(torch.rand(4, 1, 8, 8)).shape == (4, 10)
    assert len(model.feature_batchnorms) == 1
    modules = set(model.modules())
    assert all(layer in modules for layer in model.feature_batchnorms)


def test_augmentation_is_for_training_only():
    shifted, images = nets.Shifted(), torch.rand(3, 1, 6, 6)
    assert torch.equal(shifted.eval()(images), images)
    moved = shifted.train()(images)
    assert_allclose(moved.sum((1, 2, 3)), images.sum((1, 2, 3)), rtol=1e-5)


def test_the_transformer_ignores_what_is_not_there():
    model = nets.text_transformer((6,), 3).eval()
    short, long = torch.tensor([[5.0, 7, 0, 0, 0, 0]]), torch.tensor([[5.0, 7, 0, 0, 0, 0], [1, 2, 3, 4, 5, 6]])
    assert_allclose(model(short).detach(), model(long)[:1].detach(), atol=1e-6)
    assert (model.body(long) >= 0).all()


def test_texts_are_read_from_fortune_files(tmp_path, monkeypatch):
    fortunes = tmp_path / "fortunes"
    fortunes.mkdir()
    for name, size in (("big", 5), ("small", 1), ("middle", 3)):
        (fortunes / name).write_text("\n%\n".join(f"{name} says\n{i} things" for i in range(size)) + "\n%\n")
    (fortunes / "big.dat").write_bytes(b"\0")
    for key, value in {"FORTUNES": fortunes, "LEAST_TEXTS": 2, "MOST_TEXTS": 9, "EVERY": 1}.items():
        monkeypatch.setattr(datasets, key, value)
    datasets._fortunes(tmp_path / "texts.txt")
    lines = (tmp_path / "texts.txt").read_text().splitlines()
    assert lines[0] == "big\tbig says 0 things"
    assert [line.split("\t")[0] for line in lines] == ["big"] * 5 + ["middle"] * 3
    monkeypatch.setattr(datasets, "TOKENS", str(tmp_path / "tokens.npz"))
    datasets._tokens(lines, length=4)
    stored = np.load(tmp_path / "tokens.npz")
    assert stored["X"].shape == (8, 4)
    assert_array_equal(stored["y"][:5], "big")
    assert (stored["X"][:, 0] > 0).all()


def test_samples_that_coincide_across_classes_are_found_and_left_out(tmp_path):
    inputs = np.array([[1.0, 2], [1, 2], [3, 4], [3, 4], [5, 6]])
    assert_array_equal(datasets.coinciding(inputs, np.array([0, 1, 0, 0, 1])), [True, True, False, False, False])
    lines = ["a\tone two", "b\ttwo one", "a\tone one three", "b\tfour five", "b\tfour five"]
    datasets._apart(tmp_path / "apart.txt", lines)
    assert (tmp_path / "apart.txt").read_text().splitlines() == lines[2:]
    assert [path.name for path in tmp_path.iterdir()] == ["apart.txt"]


def test_runs_that_are_planned_no_more_are_kept_in_short(tmp_path, monkeypatch):
    planned, gone = TINY, TrainConfig(epochs=2, hidden=(8,), feature_dim=8)
    rows = [{"config": harness.changed(config), "largest_deviation": 0.2, "seconds": 3.0} for config in (planned, gone)]
    earlier = {"config": {"schema": 2, "seed": 7}, "largest_deviation": 0.4, "same_classes_collapsed": False}
    (tmp_path / "tiny.json").write_text(json.dumps({"runs": rows, "superseded": [earlier]}))
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    experiment = harness.Experiment("tiny", "", [planned], {}, list, [], {})
    shortened = {"config": json.loads(json.dumps(harness.changed(gone))), "largest_deviation": 0.2}
    assert harness.superseded(experiment) == [earlier, shortened | {"same_classes_collapsed": None}]
    summary = importlib.import_module("_tools.summary")
    _, lines = summary.superseded({"superseded": [earlier, earlier | {"largest_deviation": 0.1}]})
    assert lines == "- the defaults: 2 runs, largest deviation 0.4, dead classes exact in 0"
    assert summary.superseded({}) == []


def test_revived_classes_are_counted_one_by_one():
    revival = importlib.import_module("revival")
    rows = [{"lost_before": [7, 9], "lost_after": [8, 9]}, {"lost_before": [9], "lost_after": []}]
    assert revival.came_back(rows) == (3, 2, 1)


def test_the_lost_networks_start_from_what_was_stored(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "experiments" / "data" / "lost"
    folder.mkdir(parents=True)
    stored = nets.mlp(64, (128, 128), 512, 10)
    save_file(stored.state_dict(), folder / "5.safetensors")
    with torch.random.fork_rng():
        torch.manual_seed(5)
        models = [getattr(nets, f"lost_mlp{suffix}")((64,), 10) for suffix in ("", "_new_head", "_new_last_layer")]
    kept = [
        [torch.equal(own, new) for own, new in zip(stored.parameters(), m.parameters(), strict=True)] for m in models
    ]
    assert kept == [[True] * 7, [True] * 6 + [False], [True] * 4 + [False] * 3]
