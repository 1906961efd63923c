"""The README's table, docs/evidence.md and the scope of predictions are what the stored results say."""

import importlib
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose

from collapsekit import predict
from collapsekit.recipe import LastLayer
from collapsekit.training import TrainConfig

ROOT = Path(__file__).parents[2]
EXPERIMENTS = ROOT / "experiments"
sys.path.insert(0, str(EXPERIMENTS))
harness, summary = (importlib.import_module(f"_tools.{name}") for name in ("harness", "summary"))
NAMES = sorted(path.stem for path in (EXPERIMENTS / "results").glob("*.json"))
WRITTEN = [name for name in NAMES if name in summary.ORDER]
ALONE = [name for name in NAMES if name in summary.SCRIPTS]


def experiment(name):
    return importlib.import_module(name).EXPERIMENT


def test_the_readme_has_the_outputs_and_the_table_that_commands_and_results_make():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert summary.with_readme(text) == text
    table = text.split(summary.BEGIN)[1]
    assert table.count("[results](") == 6
    assert table.count("**fails**") >= 1  # a failure is among them
    assert summary.with_readme(text.replace("holds", "fails")) != text.replace("holds", "fails")  # it can fail
    assert summary.with_readme(text.replace("0.8197", "0.9")) != text.replace("0.8197", "0.9")
    assert (text.count("\n") <= 150, len(text.encode()) <= 12_000) == (True, True)


def test_the_evidence_page_is_what_the_results_make():
    page = (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")
    assert page == summary.evidence_page()
    fails = [e for content in summary.contents().values() for e in content["table"] if e["verdict"] == harness.FAILS]
    assert all(entry["measured"] in page for entry in fails)  # failures stay in it
    assert page.count("**fails**") == len(fails) > 10


def test_every_link_of_the_table_leads_somewhere():
    for below, text in (("", summary.readme_table()), ("docs", summary.evidence_page())):
        for part in text.split("](")[1:]:
            assert (ROOT / below / part.split(")")[0]).exists()
    for name in ("collapse_line.png", "evidence.png"):
        assert (ROOT / "docs" / name).stat().st_size < 300 * 1024


@pytest.mark.parametrize("name", WRITTEN)
def test_the_verdicts_follow_from_the_stored_runs(name):
    content, own = harness.results(name), experiment(name)
    bands = json.loads(json.dumps(own.bands))  # keys of JSON are strings
    assert content["bands"] == bands
    assert content["table"] == own.judge(content["runs"], own.bands)
    assert content["planned_runs"] == len(own.configs)


@pytest.mark.parametrize("name", ALONE)
def test_the_verdicts_of_scripts_follow_from_what_they_stored(name):
    content, own = harness.results(name), importlib.import_module(name)
    assert content["bands"] == json.loads(json.dumps(own.BANDS))
    assert content["table"] == own.judge(content["runs"], own.BANDS)
    for said in (f"python experiments/{name}.py", f"experiments/results/{name}.json"):
        assert said in own.__doc__
    assert re.search(r"([Bb]and.*committed|written) before", " ".join(own.__doc__.split()))


@pytest.mark.parametrize("name", WRITTEN)
def test_every_stored_run_was_planned_and_only_once(name):
    planned = experiment(name).configs
    assert len(set(planned)) == len(planned)
    run = [TrainConfig.from_dict(row["config"]) for row in harness.results(name)["runs"]]
    assert len(set(run)) == len(run)
    assert set(run) <= set(planned)


@pytest.mark.parametrize("name", WRITTEN)
def test_the_stored_predictions_are_those_of_today(name):
    """Predictions come from counts and penalties alone, so that anyone can have them again without training."""
    rows = [row for row in harness.results(name)["runs"] if "predicted_confidences" in row]
    for row in [row for row in rows if harness.setting(row, "recipe") == "penalty"]:
        config = TrainConfig.from_dict(row["config"])
        last = LastLayer(dim=10**4, biased="biased" in harness.setting(row, "network"))
        frame = predict(config.problem(np.array(row["counts"], float), last))
        assert_allclose(row["predicted_confidences"], frame.confidences, rtol=1e-5)
        assert_allclose(row["largest_deviation"], harness.deviations(row).max(), atol=2e-6)


@pytest.mark.parametrize("name", summary.ORDER)
def test_every_experiment_states_what_it_rests_on(name):
    own = experiment(name)
    assert own.name == name
    assert f"Run: python experiments/{name}.py" in own.doc
    assert f"experiments/results/{name}.json" in own.doc
    assert "core-minutes" in own.doc
    assert "committed before" in own.doc or "written before" in own.doc
    assert own.smoke
    assert own.smoke_bands.keys() == own.bands.keys()


def test_the_makefile_runs_every_experiment():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    claims = makefile.split("CLAIMS := ")[1].split("\n\n")[0].replace("\\", "").split()
    assert sorted(claims) == sorted(summary.ORDER)
    claiming = {path.stem for path in EXPERIMENTS.glob("*.py") if "= harness.Experiment(" in path.read_text("utf-8")}
    assert claiming == set(summary.ORDER)
    evidence = makefile.split("\nevidence: ")[1].split("\n\n")[0]
    assert [name for name in summary.SCRIPTS if f"experiments/{name}.py" not in evidence] == []


def test_the_scope_is_what_the_results_say():
    content = json.loads(harness.SCOPE.read_text(encoding="utf-8"))
    assert content["penalty"] == summary.penalty_scope()
    assert content["batchnorm"] == summary.batchnorm_scope()
