"""collect: every run below a folder is a row, whatever its state; the table in three formats."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from numpy.testing import assert_allclose
from pyarrow import parquet

from _support.tolerances import EXACT
from collapsekit import CollapseError
from collapsekit.training import TrainConfig, collect, compare_run, load_run, train, write_table
from collapsekit.training.runs import save_failure
from collapsekit.training.store import locked

TINY = TrainConfig(epochs=5, hidden=(8,), feature_dim=12)
NAN_FREE = (int, float, str, bool, list, type(None))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two finished runs: one with a prediction, one without."""
    out = tmp_path_factory.mktemp("trained")
    for config in (TINY, replace(TINY, recipe="plain", class_names=tuple("abcdefghij"))):
        train(config, out=out)
    return out


@pytest.fixture
def folder(trained, tmp_path):
    return Path(shutil.copytree(trained, tmp_path / "runs"))


def row_of(folder, config):
    return next(row for row in collect(folder) if row["run"] == config.fingerprint)


def test_a_finished_run_is_its_configuration_and_its_comparison(folder):
    row, run = row_of(folder, TINY), load_run(folder / TINY.fingerprint)
    comparison, frame = compare_run(run), run.prediction
    assert (row["status"], row["reason"], row["step"]) == ("finished", None, 5)
    assert TrainConfig.from_dict({"schema": 2} | {key: row[key] for key in TINY.to_dict() if key != "schema"}) == TINY
    for key in ("largest_deviation", "objective_excess", "mean_cosine", "train_accuracy"):
        assert_allclose(row[key], getattr(comparison, key), rtol=EXACT)
    assert row["predicted_collapsed"] == frame.collapses.sum() > 0
    assert row["measured_collapsed"] == sum(c.status == "lost" for c in comparison.classes)
    assert row["never_predicted"] == sum(c.status == "never predicted" for c in comparison.classes)
    assert_allclose(row["times_threshold"], 1.5, rtol=1e-9)
    assert_allclose(row["balanced_accuracy"], run.test_recalls.mean(), rtol=EXACT)
    assert row["seconds"] == run.environment["seconds"]


def test_without_a_prediction_the_columns_are_there_and_empty(folder):
    first, second = sorted(collect(folder), key=lambda row: row["recipe"])
    assert list(first) == list(second)
    assert second["outside"]
    assert second["largest_deviation"] is second["predicted_collapsed"] is second["same_classes_collapsed"] is None
    assert second["class_names"] == list("abcdefghij")
    assert all(isinstance(value, NAN_FREE) for row in (first, second) for value in row.values())


def test_features_too_narrow_for_a_closed_form_are_predicted_as_not_certified(folder):
    path = folder / TINY.fingerprint / "env.json"
    content = json.loads(path.read_text())
    content["last_layer"]["dim"] = 4
    del content["checksums"]  # else it would be damage
    path.write_text(json.dumps(content | {"schema": 1}))
    row = row_of(folder, TINY)
    assert (row["status"], row["outside"], row["times_threshold"]) == ("finished", None, None)
    assert "not certified" in row["basis"]
    assert row["gap"] > 1e-8


def test_runs_under_way_stopped_and_failed(folder):
    unfinished = folder / TINY.fingerprint
    (unfinished / "env.json").unlink()
    with (unfinished / "history.jsonl").open("a") as handle:
        handle.write('{"step": 17, "obj')  # as a writer leaves it half-way
    assert (row_of(folder, TINY)["status"], row_of(folder, TINY)["step"]) == ("stopped", 5)
    with locked(unfinished):
        row = row_of(folder, TINY)
    assert (row["status"], row["step"], row["largest_deviation"]) == ("running", 5, None)
    save_failure(folder, TINY, "because")
    assert [row_of(folder, TINY)[key] for key in ("status", "reason")] == ["failed", "because"]


def changed(**values):
    return lambda content: json.dumps(json.loads(content) | values).encode()


DAMAGES = {
    "half a configuration": ("config.json", lambda content: content[: len(content) // 2]),
    "no configuration": ("config.json", None),
    "a configuration of another version": (
        "config.json",
        lambda content: content.replace(b'"schema": 2', b'"schema": 1'),
    ),
    "half the arrays": ("arrays.safetensors", lambda content: content[: len(content) // 2]),
    "no arrays": ("arrays.safetensors", None),
    "half an environment": ("env.json", lambda content: content[: len(content) // 2]),
    "an environment that is a list": ("env.json", lambda content: b"[]"),
    "an environment of nothing": ("env.json", lambda content: b"{}"),
    "nested garbage as a configuration": ("config.json", lambda content: b"[" * 100_000),
    "nested garbage as an environment": ("env.json", lambda content: b"[" * 100_000),
    "a configuration with odd names": ("config.json", changed(class_names=5)),
    "the configuration of another run": ("config.json", changed(seed=77)),
    "an environment with one name": ("env.json", changed(names=["a"])),
    "an environment with odd names": ("env.json", changed(names=5)),
    "seconds that are a text": ("env.json", changed(seconds="x")),
    "seconds that are a list": ("env.json", changed(seconds=[1, 2])),
    "a last layer of no width": (
        "env.json",
        changed(last_layer={"dim": "x", "biased": False, "branches": 0, "pooled": False}),
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_folders_are_named_and_the_others_read(folder, name):
    file, change = DAMAGES[name]
    path = folder / TINY.fingerprint / file
    if change is None:
        path.unlink()
    else:
        path.write_bytes(change(path.read_bytes()))
    row = row_of(folder, TINY)
    assert row["status"] == "damaged"
    assert row["reason"]
    assert "\n" not in row["reason"]
    rows = collect(folder)
    assert sorted(r["status"] for r in rows) == ["damaged", "finished"]
    for suffix in (".json", ".csv", ".parquet"):
        write_table(rows, folder / f"table{suffix}")


@pytest.mark.parametrize("content", [b"\xff\xfe\n", b"[1]\n", b'{"stop": 1}\n', b""])
def test_a_damaged_history_ends_before_the_damage(folder, content):
    (folder / TINY.fingerprint / "history.jsonl").write_bytes(content)
    assert row_of(folder, TINY)["step"] == 0


def test_what_is_no_run_is_passed_over(folder, tmp_path):
    (folder / "notes").mkdir()
    (folder / "notes" / "a.txt").touch()
    (folder / "123456789abc").mkdir()
    (folder / "123456789abc" / "lock").touch()  # about to begin
    assert len(collect(folder)) == 2
    for place in (folder / "notes", tmp_path / "nowhere", folder / "notes" / "a.txt"):
        with pytest.raises(CollapseError, match="folder="):
            collect(place)


def test_the_table_is_the_same_in_every_format(folder):
    rows = collect(folder)
    for suffix in (".json", ".csv", ".parquet"):
        write_table(rows, folder / f"table{suffix}")
    assert json.loads((folder / "table.json").read_text()) == rows
    assert parquet.read_table(folder / "table.parquet").to_pylist() == rows
    with (folder / "table.csv").open(newline="") as handle:
        read = list(csv.DictReader(handle))
    assert [{key: text(value) for key, value in row.items()} for row in rows] == read
    assert {path.name for path in folder.iterdir() if path.is_file()} == {"table.json", "table.csv", "table.parquet"}


def test_a_data_file_whose_name_is_not_utf8_is_written_all_the_same(folder):
    save_failure(folder, TrainConfig(data="caf\udce9.csv"), "data='caf\udce9.csv': there is no such file")
    rows = collect(folder)
    for suffix in (".json", ".csv", ".parquet"):
        write_table(rows, folder / f"table{suffix}")
    written = parquet.read_table(folder / "table.parquet").to_pylist()
    assert "caf\\udce9.csv" in [row["data"] for row in written]
    assert "caf\\udce9.csv" in (folder / "table.csv").read_text(encoding="utf-8")


def text(value):
    if isinstance(value, list):
        return json.dumps(value)
    return "" if value is None else str(value)


@pytest.mark.parametrize("name", ["table.txt", "table", "nowhere/table.csv"])
def test_tables_that_cannot_be_written_are_refused(folder, name):
    with pytest.raises(CollapseError, match="table"):
        write_table(collect(folder), folder / name)
