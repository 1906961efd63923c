"""Recipe, data, objective, run folder, resume: real networks at smoke size."""

import json
from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch
from numpy.testing import assert_allclose, assert_array_equal

from _support.tolerances import EXACT, FLOAT32
from collapsekit import CollapseError, CrossEntropy, thresholds
from collapsekit.metrics.losses import sample_losses
from collapsekit.prediction import Basis
from collapsekit.recipe import LastLayer
from collapsekit.training import TrainConfig, load_run, load_split, train
from collapsekit.training.objective import explicit_penalty, mean_loss

SMOKE = TrainConfig(epochs=40, hidden=(8,), feature_dim=12)


@pytest.mark.parametrize(
    ("values", "fragment"),
    [
        ({"ratio": 0.5}, "ratio=0.5"),
        ({"ratio": float("nan")}, "ratio=nan"),
        ({"penalty_scale": 0}, "penalty_scale=0"),
        ({"epochs": 0}, "epochs=0"),
        ({"epochs": 2.5}, "epochs=2.5"),
        ({"seed": -1}, "seed=-1"),
        ({"warmup": 1.0}, "warmup=1.0"),
        ({"optimizer": "rmsprop"}, "optimizer='rmsprop'"),
        ({"warmup": "x"}, "warmup='x'"),
        ({"smoothing": 1}, "smoothing=1"),
        ({"class_weights": "equal"}, "class_weights='equal'"),
        ({"resampling": "often"}, "resampling='often'"),
        ({"resampling": "balanced", "class_weights": "inverse"}, "both weigh the classes"),
        ({"logit_adjustment": 0}, "logit_adjustment=0"),
        ({"recipe": "batchnorm", "feature_decay": 0.1}, "only the recipe penalty"),
        ({"recipe": "batchnorm", "batchnorm": False}, "batchnorm=False"),
        ({"decay_on": "everything"}, "only the recipe batchnorm"),
        ({"recipe": "batchnorm", "batchnorm_decay": "half"}, "batchnorm_decay='half'"),
        ({"network": ""}, "network=''"),
        ({"branches": 0}, "branches=0"),
        ({"hidden": "256"}, "hidden='256'"),
        ({"profile": "flat"}, "profile='flat'"),
        ({"recipe": "none"}, "recipe='none'"),
        ({"weight_decay": 0.1}, "give both"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"hidden": (0,)}, "hidden=0"),
        ({"class_names": ("a", "a")}, "'a' stands for two classes"),
        ({"class_names": 5}, "class_names=5: give a sequence of names"),
        ({"class_names": "ab"}, "class_names='ab': give a sequence of names"),
        ({"head": {"a": 1}}, "head=.*: give a name, or leave it out"),
        ({"head": ["a"]}, "head=.*: give a name, or leave it out"),
        ({"label_column": 5}, "label_column=5: give a name, or leave it out"),
        ({"batchnorm": "false"}, "batchnorm='false': give True or False, or leave it out"),
        ({"batchnorm": 0}, "batchnorm=0: give True or False, or leave it out"),
        ({"drop_bias": "no"}, "drop_bias='no': give True or False, or leave it out"),
        ({"drop_bias": None}, "drop_bias=None: give True or False, or leave it out"),
    ],
)
def test_misuse_of_the_configuration(values, fragment):
    with pytest.raises(CollapseError, match=fragment):
        TrainConfig(**values)


def test_configuration_round_trip_and_fingerprint():
    config = TrainConfig(seed=3, hidden=(4, 5), class_names=tuple("abcdefghij"))
    again = TrainConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert again.fingerprint == config.fingerprint
    assert replace(config, seed=4).fingerprint != config.fingerprint
    with pytest.raises(CollapseError, match="unknown keys"):
        TrainConfig.from_dict(config.to_dict() | {"colour": 1})


@pytest.mark.parametrize("batch_size", [None, 64])
def test_penalty_scale_is_a_multiple_of_the_smallest_threshold(batch_size):
    config = TrainConfig(penalty_scale=1.5, penalty_ratio=900, batch_size=batch_size)
    problem = config.problem(load_split(config).counts, LastLayer(512))
    assert_allclose(problem.lambda_w * problem.lambda_h, 1.5 * thresholds(problem).minority_collapse, rtol=EXACT)
    assert_allclose(problem.lambda_w / problem.lambda_h, 900, rtol=EXACT)


@pytest.mark.parametrize(
    ("profile", "counts"),
    [
        ("long-tail", [150, 116, 90, 70, 54, 42, 32, 25, 19, 15]),
        ("step", [150] * 5 + [15] * 5),
        ("paper", [30, 30, 60, 60, 90, 90, 120, 120, 150, 150]),
    ],
)
def test_split_has_the_profile_and_is_disjoint(profile, counts):
    split = load_split(TrainConfig(profile=profile))
    assert_array_equal(split.counts, counts)
    assert_array_equal(torch.bincount(split.test_labels), [20] * 10)
    rows = torch.cat([split.train_inputs, split.test_inputs])
    assert len(torch.unique(rows, dim=0)) == len(rows)  # digits holds no two equal images
    assert split.train_inputs.max() <= 1


@pytest.mark.parametrize("loss", [CrossEntropy(), CrossEntropy(0.1, (0.5, 1.0, 0.0, 2.0), 2.0)], ids=str)
def test_the_torch_objective_equals_the_core_losses(loss):
    logits, labels = torch.randn(4, 4, dtype=torch.float64), torch.arange(4)
    features, weight = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    value = mean_loss(logits, labels, loss) + explicit_penalty(features, weight, 0.3, 0.7)
    expected = loss.value(logits.numpy()).mean()
    expected += 0.15 * np.square(weight.numpy()).sum() + 0.35 * np.square(features.numpy()).sum()
    assert_allclose(value, expected, rtol=EXACT)
    assert_allclose(sample_losses(logits, labels, loss), loss.value(logits.numpy()), rtol=EXACT)


def test_the_core_gradient_equals_autograd():
    logits = torch.randn(5, 5, dtype=torch.float64, requires_grad=True)
    torch.nn.functional.cross_entropy(logits, torch.arange(5), reduction="sum").backward()
    assert_allclose(CrossEntropy().gradient(logits.detach().numpy()), logits.grad, rtol=0, atol=EXACT)


def test_a_run_is_stored_and_loaded_whole(tmp_path):
    seen = []
    run = train(SMOKE, out=tmp_path, progress=lambda *state: seen.append(state))
    again = load_run(run.folder)
    assert again.config == SMOKE
    assert again.history == run.history
    assert seen[-1][:2] == (40, 40)
    assert_allclose(seen[-1][2], run.history[-1]["objective"], rtol=FLOAT32)
    assert_array_equal(again.measured.moments.state, run.measured.moments.state)
    assert_array_equal(again.test_recalls, run.test_recalls)
    assert again.measured.names == tuple("0123456789")
    assert {path.suffix for path in run.folder.iterdir()} <= {".json", ".jsonl", ".safetensors", ""}


class Stop(Exception):
    pass


@pytest.mark.parametrize("batch_size", [None, 100])
def test_resumed_run_equals_one_that_was_never_stopped(tmp_path, batch_size):
    config = replace(SMOKE, batch_size=batch_size, epochs=10)
    whole = train(config, out=tmp_path / "whole")

    def stop(step, total, objective):
        if step > total / 2:
            raise Stop

    with pytest.raises(Stop):
        train(config, out=tmp_path / "torn", progress=stop)
    folder = tmp_path / "torn" / config.fingerprint
    with pytest.raises(CollapseError, match="--resume"):
        load_run(folder)
    with (folder / "history.jsonl").open("a") as handle:
        handle.write('{"step": 9')  # the torn last line of a killed process
    resumed = train(config, out=tmp_path / "torn", resume=True)
    assert resumed.history == whole.history
    first, second = (safetensors.torch.load_file(r.folder / "arrays.safetensors") for r in (whole, resumed))
    assert set(first) == set(second)
    for key, tensor in first.items():
        assert_array_equal(tensor, second[key])


def test_global_random_state_is_left_alone(tmp_path):
    before = torch.get_rng_state()
    train(replace(SMOKE, epochs=1), out=tmp_path)
    assert_array_equal(torch.get_rng_state(), before)


def test_damaged_and_foreign_folders_are_refused(tmp_path):
    run = train(replace(SMOKE, epochs=1), out=tmp_path)
    with pytest.raises(CollapseError, match=f"holds folders of runs: give one of them, .*{run.folder.name}"):
        load_run(tmp_path)
    with pytest.raises(CollapseError, match="holds no run; give the folder that train has printed"):
        load_run(tmp_path / "nothing")
    arrays = run.folder / "arrays.safetensors"
    arrays.write_bytes(arrays.read_bytes()[:100])
    with pytest.raises(CollapseError, match="cannot be read"):
        load_run(run.folder)


def test_divergence_is_an_error_with_the_remedy(tmp_path):
    config = replace(SMOKE, optimizer="sgd", learning_rate=1e6)
    with pytest.raises(CollapseError, match=r"learning_rate=1e\+06"):
        train(config, out=tmp_path)


def test_features_too_narrow_for_a_closed_form_are_trained_and_judged(tmp_path):
    run = train(TrainConfig(feature_dim=6, hidden=(8,), penalty_scale=0.5, epochs=2), out=tmp_path)
    assert run.prediction.basis is Basis.NOT_CERTIFIED
    assert run.history[-1]["objective"] > run.prediction.lower_bound
