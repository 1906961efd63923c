"""`collapsekit measure --conventions`: what papers print under one name, with the worst class."""

import json

import numpy as np
import pytest

from _support.samples import draw_samples
from collapsekit.cli import main
from collapsekit.metrics import conventions, measure_features


@pytest.fixture
def samples(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    s = draw_samples([30, 9, 4], 5)
    np.savez("all.npz", features=s.features, labels=s.labels, weight=s.weight, bias=s.bias)
    np.savez("headless.npz", features=s.features, labels=s.labels)
    return s


def test_every_reading_is_a_row_with_its_worst_class_by_name(samples, capsys):
    assert main(["measure", "all.npz", "--conventions", "--class-names", "ant", "[b]", "cat"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for key, one in conventions.readings(measure_features(*samples.tensors)).items():
        (row,) = [line for line in lines if line.startswith(f"{key}  ")]
        assert f"{one.value:.4g}" in row
        assert one.worst_class is None or row.rstrip().endswith(("ant", "[b]", "cat")[one.worst_class])


def test_json_holds_them_if_asked_for(samples, capsys):
    assert main(["measure", "headless.npz", "--conventions", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["conventions"]
    assert found["CDNV"]["worst_class"] == conventions.readings(measure_features(*samples.tensors))["CDNV"].worst_class
    assert found["NC1, about samples"]["worst"] is None
    assert main(["measure", "headless.npz", "--json"]) == 0
    assert "conventions" not in json.loads(capsys.readouterr().out)
