"""The labelled suite of networks, as it is stored: its files, its labels, and what diagnose says of them today."""

import importlib
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "experiments"))
NAMES = ("diagnosis_suite", "_tools.suite_labels", "_tools.harness")
suite, labels_of, harness = (importlib.import_module(name) for name in NAMES)
Made = importlib.import_module("_tools.suite_training").Made
FILES = sorted(suite.FILES.glob("*.npz"))
FIRST_JUDGED = {letter: json.loads(path.read_text(encoding="utf-8")) for letter, path in suite.AS_FIRST_JUDGED.items()}
FIRST = {name: row for judged in FIRST_JUDGED.values() for name, row in judged["rows"].items()}
CONTENT = harness.results("diagnosis_suite")
ROWS = {row["name"]: row for row in CONTENT["runs"]}
ONE_OF_EACH = {(path.name[0], path.name.split("-")[1]): path for path in FILES}


def test_the_suite_is_as_large_and_as_small_as_promised():
    assert list(ROWS) == [path.stem for path in FILES]  # in the order of the files, each once
    promised = (("AB", 80, 28, 9, 4), ("C", 60, 16, 8, 6), ("D", 48, 12, 6, 1.5))
    for halves, networks, healthy, each, mebibytes in promised:
        own = [path for path in FILES if path.name[0] in halves]
        labels = [suite.load(path)[1]["label"]["cause"] for path in own]
        assert len(labels) >= networks
        assert labels.count(None) >= healthy
        assert min(labels.count(cause) for cause in suite.CAUSES) >= each
        assert sum(path.stat().st_size for path in own) <= mebibytes * 2**20
    planned = {made.name for networks in suite.HALVES.values() for made in networks}
    assert planned == set(ROWS) | {gone["name"] for gone in CONTENT["thrown_out"]}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_label_is_what_the_stored_network_shows(path):
    """Alive classes of healthy networks; a class that is hit is not alive, or does not generalise."""
    arrays, meta = suite.load(path)
    X, y, W, b = (arrays.get(key) for key in ("X", "y", "W", "b"))
    found = labels_of.words(X, y, W, b, confidence_decides=meta["loss"] != "MSE")
    hit = meta["label"]["classes"]
    if "few" in path.stem.split("-") and meta["label"]["cause"] == "data":
        recalls, _ = labels_of.outcome(arrays["Xt"], arrays["yt"], W, b)
        assert max(recalls[hit]) < labels_of.FAR_BELOW
    elif meta["label"]["cause"] is None:
        assert set(found) == {"alive"}
    else:
        assert hit
        assert "alive" not in {found[k] for k in hit}
    assert ROWS[path.stem]["label"] == meta["label"]


@pytest.mark.parametrize("path", ONE_OF_EACH.values(), ids=lambda path: path.stem)
def test_diagnose_says_today_what_was_stored(path):
    row = json.loads(json.dumps(suite.diagnosed(path)))
    assert row == ROWS[path.stem]
    assert row["statuses_right"]


@pytest.mark.heavy
def test_diagnose_says_today_what_was_stored_of_all():
    assert [json.loads(json.dumps(suite.diagnosed(path))) for path in FILES] == [*ROWS.values()]


def test_the_verdicts_follow_from_the_rows_and_the_bands_are_met():
    """Those of halves A and B; what the blind halves say may be a failure, and stays."""
    assert CONTENT["bands"] == suite.BANDS
    assert CONTENT["table"] == suite.judge([*ROWS.values()], suite.BANDS)
    ill = [row for row in ROWS.values() if row["label"]["cause"] and row["half"] in "AB"]
    well = [row for row in ROWS.values() if not row["label"]["cause"] and row["half"] in "AB"]
    assert sum(map(suite.right, ill)) >= suite.BANDS["right first cause"] * len(ill)
    assert len(well) >= suite.BANDS["healthy"]
    assert all(map(suite.right, well))
    assert all(row["statuses_right"] for row in ROWS.values())


def test_what_the_frozen_rules_said_is_kept():
    frozen = json.loads(suite.AS_FROZEN.read_text(encoding="utf-8"))["found"]
    assert frozen.keys() | FIRST.keys() == ROWS.keys()
    late = [name for name, row in ROWS.items() if row["half"] == "B" and row["label"]["cause"]]
    wrong = [name for name in late if frozen[name] != ROWS[name]["label"]["cause"]]
    line = next(entry for entry in CONTENT["table"] if entry["tested_on"].startswith("half B, by the rules as frozen"))
    assert line["measured"].startswith(f"{len(late) - len(wrong)} of {len(late)} ")
    assert all(name in line["measured"] for name in wrong)


@pytest.mark.parametrize("letter", FIRST_JUDGED)
def test_what_was_first_said_of_the_networks_of_a_blind_half_is_kept(letter):
    first = FIRST_JUDGED[letter]["rows"]
    assert first.keys() == {name for name, row in ROWS.items() if row["half"] == letter}
    ill = [name for name in first if ROWS[name]["label"]["cause"]]
    wrong = [name for name in ill if first[name]["found"] != ROWS[name]["label"]["cause"]]
    lines = [entry for entry in CONTENT["table"] if entry["tested_on"].startswith(f"half {letter}, as first judged")]
    causes = next(entry for entry in lines if "first cause" in entry["claim"])
    assert causes["measured"].startswith(f"{len(ill) - len(wrong)} of {len(ill)} ")
    assert all(name in causes["measured"] for name in wrong)
    alarms = [name for name in first.keys() - set(ill) if any(f[1] != "note" for f in first[name]["findings"])]
    healthy = next(entry for entry in lines if "healthy" in entry["claim"])
    assert all(name in healthy["measured"] for name in alarms)
    assert set(FIRST_JUDGED[letter]["misses"]) == {*wrong, *alarms}  # each with what a careful reader would have known


def test_a_wrong_answer_is_counted():
    rows = [row | {"found": "nothing"} for row in ROWS.values()]
    rows[0] = rows[0] | {"statuses_right": False}
    lines = suite.judge(rows, suite.BANDS)
    first = [
        entry["verdict"]
        for entry in lines
        if "first cause" in entry["claim"] and not re.search("as f(rozen|irst judged)", entry["tested_on"])
    ]
    assert first == ["fails"] * 4
    assert "fails" in [entry["verdict"] for entry in lines if "logits" in entry["claim"]]
    alarm = {"findings": [["code", "warning", None, 1]], "label": {"cause": None, "classes": []}}
    assert not suite.right(alarm)


def test_a_network_that_nothing_was_done_to_is_thrown_out_by_every_check_but_that_of_the_healthy():
    made = Made("H", None, "mixture:3:4:5", (20, 20, 20), 7, hidden=(8,), dim=4, steps=100, rate=0.02)
    run = labels_of.trained(made)
    assert labels_of.healthy(run, made)[0] == []
    for check in (labels_of.unfinished, labels_of.bias, labels_of.width):
        with pytest.raises(labels_of.ThrownOut):
            check(run, made)
    few = replace(made, change="few", pairs=((2, 0),), twin=30)
    with pytest.raises(labels_of.ThrownOut, match="held-out recall"):
        labels_of.data(run, few)


def test_checks_of_half_c_throw_out_what_they_do_not_fit():
    made = Made("H", None, "mixture:3:4:5", (20, 20, 20), 7, hidden=(8,), dim=4, steps=100, rate=0.02)
    run = labels_of.trained(made)
    with pytest.raises(labels_of.ThrownOut, match="no class is lost"):
        labels_of.optimiser(run, made)
    with pytest.raises(labels_of.ThrownOut, match="Bayes' rule"):
        labels_of.data(run, replace(made, change="overlap", pairs=((2, 0),)))


def test_checks_of_half_d_throw_out_what_they_do_not_fit():
    made = Made("H", None, "rings:3", (30, 30, 30), 7, hidden=(16,), dim=8, steps=200, rate=0.02, late=(10, 1.0))
    run = labels_of.trained(made)
    with pytest.raises(labels_of.ThrownOut, match="no class is lost"):
        labels_of.optimiser(run, made)
    frozen = replace(made, late=None, change="frozen", counts=(60, 20, 20))
    with pytest.raises(labels_of.ThrownOut, match="hides no class"):
        labels_of.bias(labels_of.trained(frozen), frozen)


def test_a_head_of_fixed_norms_has_them_and_a_schedule_that_was_cut_short_its_share_of_steps():
    made = Made("H", None, "mixture:3:4:5", (20, 20, 20), 7, dim=4, norm="unit", scale=5.0, steps=100, cut=0.3)
    run = labels_of.trained(made)
    np.testing.assert_allclose(np.linalg.norm(run.head()[0], axis=1), 5.0, rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(run.features(run.X), axis=1), 1.0, rtol=1e-6)
    assert len(run.history["loss"]) == 30 // (100 // 40)


def test_the_bias_that_fits_gives_each_class_its_share():
    """With logits that say nothing the best bias is the log of the shares."""
    labels = np.repeat([0, 1, 2], [60, 30, 10])
    found = labels_of.fitted_bias(np.zeros((100, 2)), labels, np.ones((3, 2)))
    np.testing.assert_allclose(
        found - found.mean(), np.log([0.6, 0.3, 0.1]) - np.log([0.6, 0.3, 0.1]).mean(), atol=1e-6
    )


def test_a_hit_leads_by_more_than_one_per_cent_of_the_median_lead():
    features = np.eye(3)
    W = np.array([[2.0, 0, 0.0], [0, 2.0, 0.999], [0, 0, 1.0]])
    recalls, confidences = labels_of.outcome(features, np.arange(3), W)
    assert recalls.tolist() == [1, 1, 0]
    assert confidences[0] == pytest.approx(np.exp(2) / (np.exp(2) + 2))
