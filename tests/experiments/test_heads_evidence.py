"""Results on shipped models and rare rows: the table follows from the stored runs, the bands are those of the file."""

import importlib
import json
import sys
from pathlib import Path

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
sys.path.insert(0, str(EXPERIMENTS))
harness = importlib.import_module("_tools.harness")


def test_a_wrong_result_fails():
    own = importlib.import_module("shipped_models")
    runs = json.loads(json.dumps(harness.stored("shipped_models")))
    for key, value in (("proved", 194), ("proved_read", 1), ("seconds_a_class", 0.6), ("auc", 0.6)):
        worse = [run | {key: value} if run["model"] == "PP-OCRv4" else run for run in runs]
        assert harness.FAILS in [entry["verdict"] for entry in own.judge(worse, own.BANDS)]


def test_the_page_shows_what_was_found():
    page = (EXPERIMENTS.parent / "docs" / "inspect.md").read_text(encoding="utf-8")
    assert importlib.import_module("shipped_models").page_table(harness.stored("shipped_models")) in page
