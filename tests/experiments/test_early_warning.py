"""The early warnings as stored: rows follow from the files by the rules of today, and the lines from the rows."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))
warning, harness, networks = (
    importlib.import_module(name) for name in ("early_warning", "_tools.harness", "_tools.warning_networks")
)
FILES = sorted(warning.FILES.glob("*.npz"))
CONTENT = harness.results("early_warning")


def test_rows_and_lines_are_those_of_the_stored_epochs():
    rows = [warning.row_of(path) for path in FILES]
    assert rows == CONTENT["runs"]
    assert warning.judge(rows, warning.BANDS) == CONTENT["table"]
    assert CONTENT["bands"] == warning.BANDS
    assert {row["name"] for row in rows} == {w.made.name for half in networks.HALVES.values() for w in half}
    assert sum(path.stat().st_size for path in FILES) < 2**20


FULL, LOW = np.ones(60), np.zeros(60)


@pytest.mark.parametrize(
    ("recalls", "fate"),
    [
        (np.r_[np.ones(40), np.zeros(20)], "dies"),
        (np.r_[np.zeros(20), np.ones(40)], "healthy"),
        (np.r_[np.ones(40), np.full(20, 0.7)], "between"),
        (np.r_[np.ones(5), np.zeros(55)], "never alive"),
        (np.r_[np.ones(40), np.zeros(5), np.ones(15)], "between"),
    ],
)
def test_fates_of_a_class(recalls, fate):
    assert warning.one_class(recalls, np.zeros(60, dtype=bool))["fate"] == fate


@pytest.mark.parametrize(
    ("on", "right"), [(range(34, 60), True), (range(35, 60), False), (range(20, 34), False), (range(0), False)]
)
def test_a_warning_has_to_come_early_and_to_stay(on, right):
    dying = np.isin(np.arange(60), on)
    entry = warning.one_class(np.r_[np.ones(40), np.zeros(20)], dying)
    assert entry["death"] == 40
    assert warning.in_time(entry, warning.BANDS) is right


def test_verdicts_can_fail():
    rows = [{"name": "B-x", "half": "B", "classes": [{"fate": "dies", "death": 40, "warned": 39, "peak": 1.0}]}]
    rows[0]["classes"].append({"fate": "healthy", "alarms": 3, "epochs": 60})
    verdicts = [entry["verdict"] for entry in warning.judge(rows, warning.BANDS)]
    assert verdicts == [harness.FAILS, harness.NO_CLAIM, harness.FAILS, harness.NO_CLAIM]
