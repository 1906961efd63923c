"""What label_noise.py, horizon.py and rates.py derive, against second ways to the same numbers."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from safetensors.torch import save_file

from collapsekit import UFM, predict
from collapsekit.data import types_of
from collapsekit.recipe import BatchNorm, LastLayer
from collapsekit.theory import growth_rates

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))
horizon, label_noise, nets, rates = (importlib.import_module(n) for n in ("horizon", "label_noise", "nets", "rates"))
COUNTS = np.array([150.0, 93, 57, 36, 22, 14, 8, 5, 3, 2])


@pytest.mark.parametrize("kind", ["next", "drawn", "uniform"])
def test_every_image_stands_there_as_often_as_said(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(label_noise.datasets, "FOLDER", tmp_path)
    label_noise.write(kind, 2, 7)
    stored = np.load(label_noise.name(kind, 2, 7))
    images, place = np.unique(stored["X"], axis=0, return_inverse=True)
    assert len(images) == 100
    labels = np.zeros((100, 10))
    np.add.at(labels, (place.ravel(), stored["y"]), 1)
    own, copies = labels.argmax(axis=1), labels.sum(axis=1)
    assert_array_equal(np.bincount(own), label_noise.IMAGES)
    wrong = copies - labels.max(axis=1)
    if kind == "uniform":
        assert_array_equal(copies, 20 + 20 * (own % 2))
        assert (np.sort(labels, axis=1)[:, :-1] == 1).all()
    else:
        assert (copies == 20).all()
        assert (wrong == 2).all()
        assert ((labels > 0).sum(axis=1) == 2).all()
    assert len(stored["yt"]) == label_noise.HELD_OUT


def test_uniform_noise_is_predicted_alike_in_closed_form_and_as_types():
    labels = [label_noise.labels_of("uniform", 9, own, None) for own in range(10)]
    counts, targets = types_of(np.repeat(np.arange(10.0), [len(own) for own in labels]), np.concatenate(labels), 10)
    order = np.array([3, 1, 4, 0, 5, 9, 2, 6, 8, 7])
    counts, targets = 4 * counts[order], targets[order]
    plain = UFM(counts @ targets, 0.02, 4e-5)
    noisy = label_noise.noisy(plain, counts, targets)
    optimum = predict(UFM.from_types(counts, targets, 0.02, 4e-5))
    assert_allclose(label_noise.class_confidences(noisy, counts, targets), optimum.confidences, atol=1e-6)
    own = targets.argmax(axis=1)
    assert_allclose(label_noise.floors(plain, counts, targets), noisy.confidence_floor()[own], rtol=1e-12)
    wrong = label_noise.floors(plain, 2 * counts, targets)
    assert np.abs(wrong - noisy.confidence_floor()[own]).min() > 1e-3  # it can fail


def test_a_class_is_lost_no_later_than_derived_if_its_coordinate_is_followed_step_by_step():
    optimum = predict(BatchNorm(weight_decay=horizon.DECAY).problem(COUNTS, LastLayer(branches=1)))
    start = np.linspace(9, 5, 10)
    derived = horizon.derived(optimum, start)
    assert_array_equal(np.isfinite(derived), optimum.collapses)
    step = 1e-3
    for k in np.flatnonzero(optimum.collapses):
        margin, passed = start[k], 0.0
        while margin > 0.0297:  # 1 % of the median lead at the optimum, less than that of confidence 0.105
            error = 9 / (9 + np.exp(margin))
            margin *= np.exp(-2 * step * (1 - np.sqrt(optimum.headroom[k]) * error * 10 / 9))
            passed += step
        assert 0.5 * np.log(start[k] / 0.0297) <= passed <= derived[k] + 0.05
        assert passed > 0.6 * derived[k]  # the bound is no idle one


def test_horizons_are_counted_with_equal_numbers_together():
    rows = [{"efolds": e, "n": n} for e, n in ((0.1, 0), (0.0301, 0), (0.99, 1), (0.1, 0), (10.1, 4), (0.99, 2))]
    assert horizon.counted(rows, lambda row: row["n"]) == "0 at 0.03 … 0.1, 1.5 at 1, 4 at 10"


def test_the_network_to_train_on_is_the_stored_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "experiments" / "data" / "learned"
    folder.mkdir(parents=True)
    stored = nets.mlp(64, (64,), 128, 10, batchnorm=True)
    save_file(stored.state_dict(), folder / "5.safetensors")
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = nets.learned_mlp((1, 8, 8), 10)
    assert all(torch.equal(own, new) for own, new in zip(stored.parameters(), model.parameters(), strict=True))


def test_descent_finds_the_rates_of_theory_and_not_others():
    problem = UFM([30, 20, 6, 3], 0.02, 0.01)
    found, expected = rates.descent(problem, np.random.default_rng(0)), growth_rates(problem)
    assert_allclose(found, expected, rtol=0.05)
    assert (np.abs(found / growth_rates(UFM([30, 20, 6, 3], 0.02, 0.04)) - 1) > 0.1).all()
