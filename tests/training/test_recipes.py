"""What each recipe makes decay, what it minimises, and that every run can be measured, stored, read and reported."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from markupsafe import escape
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn

from _support.tolerances import EXACT, FLOAT32, METRICS
from collapsekit import UFM, CollapseError, CrossEntropy, predict, solve
from collapsekit.prediction import Basis
from collapsekit.prediction._predict import in_closed_form
from collapsekit.recipe import LastLayer
from collapsekit.report import report
from collapsekit.training import (
    TrainConfig,
    checkpoint,
    compare_run,
    load_run,
    load_split,
    run_scope,
    store,
    train,
)
from collapsekit.training import _train as loop
from collapsekit.training.evaluation import recompute_batchnorm
from collapsekit.training.models import cnn, mlp, residual_mlp
from collapsekit.training.objective import (
    explicit_penalty,
    freeze_shifts,
    mean_loss,
    parameter_groups,
    weight_tensor,
)

COUNTS = np.array([40.0, 25.0, 12.0, 5.0])
CPU = torch.device("cpu")

SMALL_DIGITS = {"largest": 40, "ratio": 5.0, "hidden": (64,)}
BIASED_NETWORK = """
from torch import nn
from collapsekit.training.models import mlp

def build(shape, num_classes):
    model = mlp(64, (64,), 128, num_classes)
    model.head = nn.Linear(128, num_classes)
    return model
"""

# what decays

HEAD = {"head.weight"}
GAINS = {f"body.4.branches.{i}.1.weight" for i in range(2)}
SHIFTS = {f"body.4.branches.{i}.1.bias" for i in range(2)}
STEM = {"body.2.weight", "body.2.bias"}  # a BatchNorm further up
LINEAR = {"body.1.weight", *(f"body.4.branches.{i}.0.weight" for i in range(2))}
ALL = HEAD | GAINS | SHIFTS | STEM | LINEAR

DECAYS = {
    ("penalty", "last-layer", "gain_and_shift"): set(),
    ("plain", "last-layer", "gain_and_shift"): ALL,
    ("batchnorm", "last-layer", "gain_and_shift"): HEAD | GAINS | SHIFTS,
    ("batchnorm", "last-layer", "gain_frozen_shift"): HEAD | GAINS,
    ("batchnorm", "last-layer", "gain"): HEAD | GAINS,
    ("batchnorm", "last-layer", "none"): HEAD,
    ("batchnorm", "everything", "gain_and_shift"): ALL,
    ("batchnorm", "everything", "gain_frozen_shift"): ALL - SHIFTS,
    ("batchnorm", "everything", "gain"): ALL - SHIFTS,
    ("batchnorm", "everything", "none"): ALL - SHIFTS - GAINS - STEM,
}


@pytest.mark.parametrize(("recipe", "decay_on", "batchnorm_decay"), DECAYS, ids=str)
def test_exactly_these_parameters_decay(recipe, decay_on, batchnorm_decay):
    model = mlp(4, (3,), 2, 5, batchnorm=True, branches=2)
    config = TrainConfig(recipe=recipe, decay_on=decay_on, batchnorm_decay=batchnorm_decay)
    names = {id(p): name for name, p in model.named_parameters()}
    assert set(names.values()) == ALL
    freeze_shifts(model, config)
    frozen = SHIFTS if batchnorm_decay == "gain_frozen_shift" else set()
    assert {name for name, p in model.named_parameters() if not p.requires_grad} == frozen
    groups = parameter_groups(model, model.head, config)
    decaying, others = ({names[id(p)] for p in group["params"]} for group in groups)
    assert decaying == DECAYS[recipe, decay_on, batchnorm_decay]
    assert others == ALL - decaying - frozen
    assert sum(len(group["params"]) for group in groups) == len(ALL - frozen)  # none twice
    assert [group["weight_decay"] for group in groups] == [0.0, 0.0]


def test_the_recipes_that_need_to_know_the_batchnorms():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2))
    for values in ({}, {"batchnorm_decay": "gain", "decay_on": "everything"}):
        with pytest.raises(CollapseError, match="network: Sequential does not say which BatchNorms feed its features"):
            parameter_groups(model, model[3], TrainConfig(recipe="batchnorm", **values))
    config = TrainConfig(recipe="batchnorm", decay_on="everything")
    assert len(parameter_groups(model, model[3], config)[0]["params"]) == 6


SMOKE = TrainConfig(epochs=3, hidden=(6,), feature_dim=12, width=2, largest=30)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("recipe", ["penalty", "batchnorm", "plain"])
def test_the_optimiser_decays_only_what_has_no_explicit_penalty(recipe, optimizer, tmp_path, monkeypatch):
    made, make = [], loop._optimizer
    monkeypatch.setattr(loop, "_optimizer", lambda *args: made.append(make(*args)) or made[-1])
    config = replace(SMOKE, recipe=recipe, optimizer=optimizer, warmup=0.0)
    run = train(config, out=tmp_path)
    assert type(made[0]) is {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[optimizer]
    weight_decay, feature_decay = config.penalties(run.measured.counts, run.last_layer)
    assert (feature_decay is None) == (recipe != "penalty")
    expected = 0.0 if recipe == "penalty" else weight_decay
    assert [group["weight_decay"] for group in made[0].param_groups] == [expected, 0.0]


def test_the_penalties_grow_over_the_warm_up(tmp_path, monkeypatch):
    decays, step = [], torch.optim.SGD.step
    monkeypatch.setattr(
        torch.optim.SGD, "step", lambda self: decays.append(self.param_groups[0]["weight_decay"]) or step(self)
    )
    train(replace(SMOKE, recipe="plain", weight_decay=0.01, epochs=8, warmup=0.5), out=tmp_path)
    assert_allclose(decays, 0.01 * np.array([0.25, 0.5, 0.75, 1, 1, 1, 1, 1]), rtol=EXACT)


def test_a_frozen_shift_stays_zero(tmp_path):
    config = replace(SMOKE, recipe="batchnorm", branches=2)
    for batchnorm_decay, moves in (("gain_frozen_shift", False), ("gain_and_shift", True)):
        run = train(replace(config, batchnorm_decay=batchnorm_decay), out=tmp_path)
        state = store.read_tensors(run.folder / store.CHECKPOINT)
        for name in SHIFTS:
            assert bool((state[f"model.{name}"] != 0).any()) == moves
    model = residual_mlp(4, (3,), 3, 2)
    for layer in model.feature_batchnorms:
        nn.init.ones_(layer.bias)
    freeze_shifts(model, replace(config, batchnorm_decay="gain_frozen_shift"))
    model(torch.randn(5, 4)).sum().backward()
    for layer in model.feature_batchnorms:
        assert_array_equal(layer.bias, 0)
        assert layer.bias.grad is None
        assert layer.weight.grad is not None


# what is minimised

LOSSES = {
    "plain": {},
    "inverse weights": {"class_weights": "inverse"},
    "inverse root weights": {"class_weights": "inverse-root"},
    "smoothing": {"smoothing": 0.1},
    "ldam": {"ldam": 1.5},
    "ldam with weights": {"ldam": 0.5, "class_weights": "inverse-root"},
}


def torch_objective(config, weight, features, last):
    """The step's objective over the full batch: every sample of a class has the class's feature."""
    labels = torch.repeat_interleave(torch.arange(4), torch.from_numpy(COUNTS).long())
    samples = features[labels]
    wd, fd = config.penalties(COUNTS, last)
    class_weights = weight_tensor(config.torch_class_weights(COUNTS), CPU)
    loss = mean_loss(samples @ weight.T, labels, config.loss(COUNTS), class_weights)
    return loss + explicit_penalty(samples, weight, wd, fd)


@pytest.mark.parametrize("values", LOSSES.values(), ids=LOSSES)
def test_the_step_minimises_the_predicted_problem(values):
    """Same value as the problem anywhere; at the predicted optimum autograd finds nothing to gain."""
    config, last = TrainConfig(penalty_scale=0.2, **values), LastLayer(dim=6)
    problem = config.problem(COUNTS, last)
    frame = predict(problem)
    assert not frame.collapses.any()
    rng = np.random.default_rng(0)
    W, H = rng.normal(size=(4, 6)), np.abs(rng.normal(size=(4, 6)))
    value = torch_objective(config, torch.from_numpy(W), torch.from_numpy(H), last)
    scale = FLOAT32 if config.class_weights != "none" else EXACT  # torch's class weights are float32
    assert_allclose(value, problem.objective(W, H), rtol=scale)
    W, H = (torch.from_numpy(array).requires_grad_() for array in frame.weights_and_features(6))
    value = torch_objective(config, W, H, last)
    assert_allclose(value.detach(), frame.objective, rtol=scale)
    value.backward()
    alive = H.detach() > 0
    assert_allclose(W.grad, 0, atol=scale)
    assert_allclose(H.grad[alive], 0, atol=scale)
    assert H.grad[~alive].min() > -scale
    for wrong in (1.1 * W.detach(), W.detach().flip(0)):  # the check can fail
        other = wrong.clone().requires_grad_()
        torch_objective(config, other, H.detach(), last).backward()
        assert other.grad.abs().max() > 100 * scale


@pytest.mark.parametrize("values", [{}, {"ldam": 1.5}, {"smoothing": 0.1}], ids=str)
@pytest.mark.parametrize("batch_size", [None, 41])
def test_balanced_draws_minimise_the_predicted_problem_on_average(values, batch_size):
    """The mean over draws of the step's objective is the problem's objective, at any point."""
    config = TrainConfig(resampling="balanced", batch_size=batch_size, weight_decay=0.02, feature_decay=0.003, **values)
    problem = config.problem(COUNTS, LastLayer(dim=6))
    rng = np.random.default_rng(0)
    W, H = torch.from_numpy(rng.normal(size=(4, 6))), torch.from_numpy(np.abs(rng.normal(size=(4, 6))))
    size = batch_size or int(COUNTS.sum())
    balanced = torch.arange(4)  # every class is as likely to be drawn, so the mean over draws is that over classes
    loss = mean_loss(H @ W.T, balanced, config.loss(COUNTS))
    penalty = explicit_penalty(H * np.sqrt(size / 4), W, 0.02, 0.003)
    assert_allclose(problem.objective(W.numpy(), H.numpy()), loss + penalty, rtol=EXACT)
    unweighted = replace(config, resampling="none").problem(COUNTS, LastLayer(dim=6))
    assert abs(unweighted.objective(W.numpy(), H.numpy()) / (loss + penalty) - 1) > 0.01  # the check can fail
    assert_allclose(predict(problem).margins[0], predict(problem).margins, rtol=0.5 if "ldam" in values else EXACT)


def test_balanced_draws_are_balanced_and_repeat():
    labels = torch.repeat_interleave(torch.arange(4), torch.from_numpy(COUNTS).long())
    config = TrainConfig(resampling="balanced", batch_size=16, epochs=400, seed=2)
    drawn = torch.cat(list(loop._batches(config, labels, 0)))
    assert len(drawn) == 400 * len(labels)
    shares = torch.bincount(labels[drawn]) / len(drawn)
    assert_allclose(shares, 0.25, atol=0.01)
    assert len(drawn.unique()) == len(labels)
    steps = -(-len(labels) // 16)
    assert torch.equal(torch.cat(list(loop._batches(config, labels, steps))), drawn[len(labels) :])  # resumed
    (full,) = loop._batches(replace(config, batch_size=None, epochs=1), labels, 0)
    assert len(full) == len(labels)


def test_logit_adjustment_adds_the_log_prior():
    config = TrainConfig(logit_adjustment=1.5)
    logits, labels = torch.randn(6, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 0, 0])
    adjusted = logits + 1.5 * torch.log(torch.from_numpy(COUNTS / COUNTS.sum()))
    expected = nn.functional.cross_entropy(adjusted, labels)
    assert_allclose(mean_loss(logits, labels, config.loss(COUNTS)), expected, rtol=EXACT)
    assert config.refusal(LastLayer(6)) is None
    assert predict(config.problem(COUNTS, LastLayer(6))).basis is Basis.CERTIFIED
    assert config.penalties(COUNTS, LastLayer(6)) == TrainConfig().penalties(COUNTS, LastLayer(6))


def test_what_only_the_solver_can_solve_is_minimised_all_the_same():
    adjusted = TrainConfig(logit_adjustment=1.5, weight_decay=0.01, feature_decay=1e-4)
    problem = adjusted.problem(COUNTS, LastLayer(6))
    plain = replace(adjusted, logit_adjustment=None)
    assert problem.loss == adjusted.loss(COUNTS)
    assert (problem.lambda_w, problem.lambda_h, problem.bias) == (0.01, 1e-4, None)
    assert plain.problem(COUNTS, LastLayer(6, biased=True)).bias == "free"  # the penalties are on W and h alone
    lawful = TrainConfig(recipe="batchnorm", weight_decay=0.01)
    assert lawful.problem(COUNTS, LastLayer(6, biased=True, branches=1)).bias == 0.01  # it decays with the head
    with pytest.raises(CollapseError, match="no L2 penalty"):
        replace(lawful, optimizer="adamw").problem(COUNTS, LastLayer(6, branches=1))


@pytest.mark.parametrize("values", [{"logit_adjustment": 1.0}, {"network": "recipe_biased:build"}], ids=str)
def test_a_network_lands_on_the_optimum_that_the_solver_certifies(values, tmp_path, monkeypatch):
    """Where there is no closed form; the optimum without the bias or the adjustment costs 1 % more, or far more."""
    (tmp_path / "recipe_biased.py").write_text(BIASED_NETWORK, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    decays = {"weight_decay": 0.1, "feature_decay": 1e-4}
    config = TrainConfig(**SMALL_DIGITS | values | decays, epochs=1500, learning_rate=3e-3, feature_dim=128)
    run = train(config, out=tmp_path)
    solution = solve(run.problem)
    assert solution.optimal
    assert run.prediction.basis is Basis.CERTIFIED
    assert_allclose(run.prediction.objective, solution.objective, rtol=METRICS)
    assert compare_run(run).largest_deviation < 0.02
    objective = run.measured.objective(run.problem)
    assert solution.lower_bound <= objective * (1 + FLOAT32)
    assert_allclose(objective, solution.objective, rtol=0.005)
    assert_allclose(run.measured.confidences, solution.confidences, atol=0.02)
    without = replace(config, network="mlp", logit_adjustment=None).problem(run.measured.counts, LastLayer(128))
    other = run.problem.objective(*predict(without).weights_and_features())
    assert other > 1.01 * solution.objective


def test_resampled_batches_have_statistics_of_their_own():
    config = TrainConfig(recipe="batchnorm", resampling="balanced")
    assert "resampled batches" in config.refusal(LastLayer(6, branches=1))
    assert TrainConfig(resampling="balanced").refusal(LastLayer(6)) is None


@pytest.mark.parametrize("values", [{"logit_adjustment": 1.0}, {"resampling": "balanced"}], ids=str)
def test_runs_with_logit_adjustment_or_resampling_are_stored_and_read(values, tmp_path):
    run = train(replace(SMOKE, batch_size=64, **values), out=tmp_path)
    again = load_run(run.folder)
    assert again.outside == run.outside
    assert again.measured.loss == run.measured.loss
    expected = in_closed_form(run.problem)  # what is searched for is compared once, after training
    assert again.history[-1]["metrics"].keys() == run.measured.metrics(expected).keys()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_class_weights_fit_logits_of_any_precision(dtype):
    logits, labels = torch.randn(6, 4).to(dtype), torch.tensor([0, 1, 2, 3, 0, 0])
    weights = np.array([0.1, 0.5, 1.0, 0.3])
    value = mean_loss(logits, labels, CrossEntropy(), weight_tensor(weights, CPU))
    assert value.dtype == dtype
    own = -torch.log_softmax(logits.double(), dim=1)[torch.arange(6), labels].numpy()
    expected = weights[labels] @ own / weights[labels].sum()
    assert_allclose(value.double(), expected, rtol=max(FLOAT32, 2 * torch.finfo(dtype).eps))


def test_ldam_margins_are_largest_for_the_rarest_class():
    margins = np.array(TrainConfig(ldam=0.7).loss(COUNTS).margins)
    assert margins.argmax() == COUNTS.argmin()
    assert_allclose(margins.max(), 0.7, rtol=EXACT)
    assert_allclose(margins**4 * COUNTS, 0.7**4 * COUNTS.min(), rtol=EXACT)
    assert TrainConfig().loss(COUNTS) == CrossEntropy()
    assert TrainConfig(smoothing=0.1).loss(COUNTS) == CrossEntropy(0.1)


@pytest.mark.parametrize("values", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("recipe", ["penalty", "batchnorm"])
def test_the_penalty_scale_is_one_over_the_smallest_headroom(recipe, values):
    for branches in (1, 3):
        for scale in (0.3, 1.5):
            config = TrainConfig(recipe=recipe, penalty_scale=scale, **values)
            last = LastLayer(dim=6, branches=branches)
            problem = config.problem(COUNTS, last)
            assert_allclose(predict(problem).headroom.min(), 1 / scale, rtol=METRICS)
            wd, fd = config.penalties(COUNTS, last)
            if recipe == "penalty":
                assert_allclose(wd / problem.lambda_h, config.penalty_ratio, rtol=METRICS)
                assert_allclose(fd, problem.lambda_h, rtol=METRICS)  # one step sums over all samples
            else:
                assert fd is None
                assert_allclose([problem.lambda_w, problem.lambda_h], [wd, wd / (branches * 82)], rtol=METRICS)


def test_penalties_that_are_given():
    last = LastLayer(dim=6, branches=2)
    assert TrainConfig(recipe="plain").penalties(COUNTS, last) == (5e-4, None)
    assert TrainConfig(recipe="plain", weight_decay=0.1).penalties(COUNTS, last) == (0.1, None)
    assert TrainConfig(recipe="batchnorm", weight_decay=0.1).penalties(COUNTS, last) == (0.1, None)
    given = TrainConfig(weight_decay=0.1, feature_decay=0.01, batch_size=20)
    assert given.penalties(COUNTS, last) == (0.1, 0.01)
    assert_allclose(given.problem(COUNTS, last).lambda_h, 0.01 / 5, rtol=EXACT)  # five steps an epoch
    frozen = TrainConfig(recipe="batchnorm", batchnorm_decay="gain_frozen_shift", weight_decay=0.1)
    counts = np.array([30.0, 30.0, 20.0, 20.0])
    expected = 0.1 / (2 * 100) / (1 - counts / 100)
    assert_allclose(frozen.problem(counts, last).lambda_h, expected, rtol=EXACT)
    above = frozen.problem(np.array([80.0, 10.0, 10.0]), last)
    assert_allclose(above.lambda_h, 0.1 / (2 * 100) / np.array([0.3125, 0.9, 0.9]), rtol=EXACT)  # 1/(4 · 0.8)
    with pytest.raises(CollapseError, match="above one half"):
        frozen.problem(np.array([80.0, 10.0, 10.0]), replace(last, biased=True))


# statistics of the training set


def brute_statistics(body, inputs):
    """Mean and biased variance that every BatchNorm of a chain of layers normalises the full batch by."""
    x, found = inputs.double(), []
    with torch.no_grad():
        for layer in body:
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                rows = x.transpose(0, 1).flatten(1).numpy()
                mean = rows.mean(axis=1)
                variance = ((rows - mean[:, None]) ** 2).mean(axis=1)
                found.append((mean, variance))
                shape = (1, -1, *[1] * (x.ndim - 2))
                mean, variance, gain, shift = (
                    torch.as_tensor(v).double().reshape(shape) for v in (mean, variance, layer.weight, layer.bias)
                )
                x = (x - mean) / (variance + layer.eps).sqrt() * gain + shift
            else:
                x = layer.double()(x)
    return found


def normalised_networks():
    torch.manual_seed(3)
    dense = mlp(6, (9, 8), 7, 4, batchnorm=True).body
    dense = nn.Sequential(*dense[:-2], *dense[-2].branches[0], dense[-1])  # a chain
    dense.insert(3, nn.Dropout(0.5))  # as in evaluation: off
    images = cnn((1, 8, 8), 2, 7, 4, batchnorm=True).body
    return {"dense": (dense, torch.randn(300, 6)), "images": (images, torch.randn(300, 1, 8, 8))}


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("kind", ["dense", "images"])
def test_statistics_are_those_of_the_full_batch(kind, momentum):
    body, inputs = normalised_networks()[kind]
    layers = [m for m in body.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert len(layers) >= 3
    for layer in layers:
        nn.init.uniform_(layer.weight, 0.5, 2)
        nn.init.uniform_(layer.bias, -1, 1)
        layer.momentum = momentum
    body(inputs + 1.0)  # statistics of other data
    body[-1].eval()
    modes, tracked = [m.training for m in body.modules()], [int(layer.num_batches_tracked) for layer in layers]
    generator = torch.get_rng_state()
    with torch.no_grad():
        stale = [layer.running_mean.clone() for layer in layers]
    recompute_batchnorm(body, inputs)
    assert_array_equal(torch.get_rng_state(), generator)
    assert [m.training for m in body.modules()] == modes
    assert [layer.momentum for layer in layers] == [momentum] * len(layers)
    assert all(layer.track_running_stats for layer in layers)
    assert [int(layer.num_batches_tracked) for layer in layers] == tracked
    assert not any(m._forward_pre_hooks for m in body.modules())
    own = [(layer.running_mean.clone(), layer.running_var.clone()) for layer in layers]
    for (mean, variance), old, expected in zip(own, stale, brute_statistics(body.eval(), inputs), strict=True):
        assert_allclose(mean, expected[0], rtol=FLOAT32, atol=FLOAT32)
        assert_allclose(variance, expected[1], rtol=FLOAT32)
        with pytest.raises(AssertionError):
            assert_allclose(old, expected[0], rtol=FLOAT32, atol=FLOAT32)
        with pytest.raises(AssertionError):  # torch's own keeps the unbiased variance
            assert_allclose(variance * 300 / 299, expected[1], rtol=FLOAT32)
    body.double()
    for layer in layers:
        layer.reset_running_stats()
    recompute_batchnorm(body, inputs.double())
    for layer, expected in zip(layers, brute_statistics(body, inputs), strict=True):
        assert_allclose(layer.running_mean, expected[0], rtol=METRICS, atol=METRICS)
        assert_allclose(layer.running_var, expected[1], rtol=METRICS)


@pytest.mark.parametrize("size", [2100, 5000, 9000])
def test_statistics_of_several_batches_use_every_sample(size):
    inputs = torch.zeros(size, 2)
    inputs[-5:] = 100.0  # a rare class: left out, or in some batches only, it would show
    inputs[:, 1] += torch.randn(size)
    body = nn.Sequential(nn.BatchNorm1d(2))
    recompute_batchnorm(body, inputs)
    mean, variance = brute_statistics(body, inputs)[0]
    assert_allclose(body[0].running_mean, mean, rtol=FLOAT32)
    assert_allclose(body[0].running_var, variance, rtol=FLOAT32)


def test_statistics_of_a_layer_that_is_called_twice():
    """Running statistics are one for both calls: those of all that goes in."""
    norm, between = nn.BatchNorm1d(2), nn.Linear(2, 2)
    inputs = torch.randn(300, 2) + 3
    recompute_batchnorm(nn.Sequential(norm, between, norm), inputs)
    with torch.no_grad():
        second = between((inputs - inputs.mean(dim=0)) / (inputs.var(dim=0, correction=0) + norm.eps).sqrt())
    both = np.concatenate([inputs, second]).astype(float)
    assert_allclose(norm.running_mean, both.mean(axis=0), rtol=FLOAT32)
    assert_allclose(norm.running_var, both.var(axis=0), rtol=FLOAT32)


def test_statistics_where_there_is_nothing_to_do():
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2, track_running_stats=False))
    recompute_batchnorm(model, torch.randn(4, 3))
    with pytest.raises(RuntimeError):
        recompute_batchnorm(nn.Sequential(nn.BatchNorm1d(2), nn.Linear(3, 2)).eval(), torch.randn(4, 2))


# runs

RUNS = {
    "penalty": {},
    "penalty, batchnorm": {"batchnorm": True},
    "penalty, sgd": {"optimizer": "sgd", "learning_rate": 0.01},
    "penalty, adamw": {"optimizer": "adamw"},
    "penalty, mini-batch": {"batch_size": 50},
    "penalty, cnn": {"network": "cnn"},
    "penalty, vgg11": {"network": "vgg11"},
    "penalty, resnet18": {"network": "resnet18"},
    "penalty, smoothing": {"smoothing": 0.1},
    "penalty, ldam": {"ldam": 0.5},
    "penalty, weights": {"class_weights": "inverse"},
    "penalty, logit adjustment": {"logit_adjustment": 1.0},
    "batchnorm": {"recipe": "batchnorm"},
    "batchnorm, free shift": {"recipe": "batchnorm", "batchnorm_decay": "gain"},
    "batchnorm, branches": {"recipe": "batchnorm", "branches": 3, "optimizer": "adam"},
    "batchnorm, residual": {"recipe": "batchnorm", "network": "residual-mlp", "decay_on": "everything"},
    "batchnorm, cnn": {"recipe": "batchnorm", "network": "cnn", "batch_size": 50},
    "batchnorm, vgg11": {"recipe": "batchnorm", "network": "vgg11"},
    "batchnorm, resnet18": {"recipe": "batchnorm", "network": "resnet18", "class_weights": "inverse-root"},
    "batchnorm, frozen": {"recipe": "batchnorm", "batchnorm_decay": "gain_frozen_shift", "ldam": 0.5},
}
OUTSIDE = {
    "plain": ({"recipe": "plain"}, "fixes no λ_H"),
    "plain, batchnorm": ({"recipe": "plain", "batchnorm": True, "class_weights": "inverse"}, "fixes no λ_H"),
    "plain, resnet18": ({"recipe": "plain", "network": "resnet18", "batch_size": 50}, "fixes no λ_H"),
    "adamw": ({"recipe": "batchnorm", "optimizer": "adamw"}, "AdamW is no L2 penalty"),
    "none": ({"recipe": "batchnorm", "batchnorm_decay": "none", "smoothing": 0.1}, "nothing penalises the features"),
}


def assert_stored_and_compared(run):
    """A finished run reads back as it is, and its comparison is JSON without a NaN."""
    comparison = compare_run(run)
    content = json.dumps(comparison.to_dict(), allow_nan=False)
    again = load_run(run.folder)
    assert json.dumps(compare_run(again).to_dict(), allow_nan=False) == content
    assert again.config == run.config
    assert again.last_layer == run.last_layer
    assert again.outside == run.outside == comparison.outside
    assert again.history == run.history
    assert run_scope(again) == run_scope(run)
    assert json.dumps(run.history, allow_nan=False)
    rows = json.loads(content)["classes"]
    assert [row["count"] for row in rows] == run.measured.counts.tolist()
    for row in rows:
        assert np.isfinite([row["measured_confidence"], row["margin"], row["test_recall"]]).all()
        assert (row["predicted_confidence"] is None) == (run.prediction is None)
    return comparison


@pytest.mark.parametrize("values", RUNS.values(), ids=RUNS)
def test_runs_with_a_prediction(values, tmp_path):
    run = train(replace(SMOKE, **values), out=tmp_path)
    comparison = assert_stored_and_compared(run)
    assert run.outside is None
    assert_allclose(run.history[-1]["objective"], comparison.objective, rtol=FLOAT32)
    assert comparison.objective >= comparison.predicted_objective * (1 - FLOAT32)
    assert run.measured.nonnegative
    if run.config.recipe == "batchnorm":
        expected = {"mlp": run.config.branches or 1, "cnn": 1, "vgg11": 1}.get(run.config.network, 3)
        assert run.last_layer.branches == expected


@pytest.mark.parametrize(("values", "reason"), OUTSIDE.values(), ids=OUTSIDE)
def test_runs_without_a_prediction(values, reason, tmp_path):
    run = train(replace(SMOKE, **values), out=tmp_path)
    comparison = assert_stored_and_compared(run)
    assert run.prediction is None
    assert run.problem is None
    assert reason in run.outside
    assert reason in comparison.verdict
    assert reason in run_scope(run)
    assert run.history[-1]["objective"] is None
    assert comparison.same_classes_collapsed is None
    assert not comparison.reached
    with pytest.raises(CollapseError, match=f"recipe='{run.config.recipe}'"):
        run.config.problem(run.measured.counts, run.last_layer)


@pytest.mark.parametrize("name", ["penalty, ldam", "batchnorm, frozen", "plain"])
def test_reports_hold_the_verdict(name, tmp_path):
    run = train(replace(SMOKE, **(RUNS[name] if name in RUNS else OUTSIDE[name][0])), out=tmp_path)
    page = report(load_run(run.folder), tmp_path / "page.html").read_text()
    assert str(escape(compare_run(run).verdict)) in page
    assert str(escape(run_scope(run))) in page
    assert "nan" not in page.split("<table")[1].split("</table")[0]


USERS = """
from torch import nn

class Network(nn.Module):
    def __init__(self, shape, num_classes):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.BatchNorm1d(12), nn.ReLU())
        self.fc = nn.Linear(12, num_classes)
    def forward(self, x):
        return {"logits": self.fc(self.body(x))}

class Said(Network):
    def __init__(self, shape, num_classes):
        super().__init__(shape, num_classes)
        self.feature_batchnorms = [self.body[2]]
"""


@pytest.mark.parametrize(
    ("function", "values", "reason"),
    [
        ("Network", {}, None),
        ("Network", {"drop_bias": True}, None),
        ("Said", {"recipe": "batchnorm"}, None),
        ("Said", {"recipe": "batchnorm", "drop_bias": True, "head": "fc"}, None),
        ("Network", {"recipe": "batchnorm", "drop_bias": True, "decay_on": "everything"}, "fixes no λ_H"),
        ("Network", {"recipe": "batchnorm", "drop_bias": True, "decay_on": "everything", "branches": 1}, None),
        ("Said", {"recipe": "plain", "drop_bias": True}, "fixes no λ_H"),
    ],
    ids=str,
)
def test_runs_of_users_networks(function, values, reason, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe_users_network.py").write_text(USERS)
    run = train(replace(SMOKE, network=f"recipe_users_network:{function}", **values), out=tmp_path)
    assert_stored_and_compared(run)
    assert (run.outside is None) == (reason is None)
    assert (reason or "") in (run.outside or "")
    assert (run.measured.bias is None) == bool(values.get("drop_bias"))
    state = store.read_tensors(run.folder / store.CHECKPOINT)
    assert ("model.fc.bias" in state) == (not values.get("drop_bias"))


TRANSFORMERS = """
from torch import nn
from transformers import ResNetConfig, ResNetForImageClassification

def resnet(shape, num_classes):
    sizes = {"num_channels": shape[0], "embedding_size": 8, "hidden_sizes": [8, 12], "depths": [1, 1]}
    model = ResNetForImageClassification(ResNetConfig(layer_type="basic", num_labels=num_classes, **sizes))
    last = model.resnet.encoder.stages[-1].layers[-1]
    model.feature_batchnorms = [last.shortcut.normalization, last.layer[-1].normalization]
    model.pooled = True
    return model

class TextTransformer(nn.Module):
    def __init__(self, shape, num_classes):
        super().__init__()
        self.embed = nn.Embedding(16, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.features = nn.Sequential(nn.Linear(8, 24), nn.ReLU())
        self.classifier = nn.Linear(24, num_classes)

    def forward(self, tokens):
        return self.classifier(self.features(self.encoder(self.embed(tokens.long())).mean(dim=1)))
"""


@pytest.fixture
def transformers_networks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe_transformers.py").write_text(TRANSFORMERS)
    yield
    sys.modules.pop("recipe_transformers", None)


@pytest.mark.parametrize("recipe", ["penalty", "batchnorm", "plain"])
def test_an_image_network_of_transformers_is_trained_by_every_recipe(recipe, transformers_networks):
    config = replace(SMOKE, network="recipe_transformers:resnet", recipe=recipe, drop_bias=True)
    run = train(config, out="runs")
    comparison = assert_stored_and_compared(run)
    assert run.last_layer == LastLayer(dim=12, biased=False, branches=2, pooled=True)
    assert run.measured.nonnegative
    assert run.measured.bias is None
    assert (comparison.outside is None) == (recipe != "plain")
    if recipe == "batchnorm":  # two BatchNorms share the decay
        wd = config.penalties(run.measured.counts, run.last_layer)[0]
        assert_allclose(run.problem.lambda_h, wd / (2 * run.measured.counts.sum()), rtol=EXACT)
    biased = train(replace(config, drop_bias=False, head="classifier"), out="runs")
    assert biased.measured.bias is not None
    assert (biased.prediction is None) == (recipe == "plain")


def test_a_text_transformer_lands_on_the_prediction(transformers_networks, tmp_path):
    """Each class is a word somewhere in the text; the rarest class dies, as predicted."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [60, 25, 5])
    tokens = rng.integers(1, 10, size=(len(labels), 5))
    tokens[np.arange(len(labels)), rng.integers(0, 5, len(labels))] = 12 + labels
    np.savez(tmp_path / "texts.npz", X=tokens, y=labels, names=np.array(["ant", "bee", "<b>"]))
    config = TrainConfig(
        data="texts.npz",
        network="recipe_transformers:TextTransformer",
        drop_bias=True,
        penalty_scale=1.5,
        epochs=300,
        learning_rate=3e-3,
    )
    run = train(config, out="runs")
    comparison = assert_stored_and_compared(run)
    assert comparison.same_classes_collapsed
    assert comparison.reached, comparison.verdict
    assert [c.status for c in comparison.classes] == ["alive", "alive", "lost"]
    assert "<b>" in comparison.verdict


def test_a_network_that_fails_in_training_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    picky = "        if self.training: raise ValueError(f'not {len(x)}\\nsamples')\n"
    (tmp_path / "recipe_picky.py").write_text(USERS.replace("forward(self, x):\n", f"forward(self, x):\n{picky}"))
    config = replace(SMOKE, network="recipe_picky:Network", drop_bias=True)
    line = r"network='recipe_picky:Network': in step 1 it raised ValueError: not \d+ samples; mend it"
    with pytest.raises(CollapseError, match=line) as caught:
        train(config, out=tmp_path)
    assert isinstance(caught.value.__cause__, ValueError)


def test_a_batch_of_one_sample_has_no_statistics(tmp_path):
    size = int(load_split(SMOKE).counts.sum())
    for batch_size in (size - 1, 1):
        for values in ({"recipe": "batchnorm"}, {"batchnorm": True}, {"recipe": "plain", "network": "resnet18"}):
            with pytest.raises(CollapseError, match=rf"batch_size={batch_size}: leaves a batch of one of {size}"):
                train(replace(SMOKE, batch_size=batch_size, **values), out=tmp_path)
    train(replace(SMOKE, batch_size=size - 1, epochs=1), out=tmp_path)
    train(replace(SMOKE, batch_size=size - 2, epochs=1, recipe="batchnorm"), out=tmp_path)
    train(replace(SMOKE, batch_size=10 * size, epochs=1, recipe="batchnorm"), out=tmp_path)


def test_a_resumed_batchnorm_run_equals_one_that_was_never_stopped(tmp_path):
    config = replace(SMOKE, recipe="batchnorm", batch_size=60, epochs=6)
    whole = train(config, out=tmp_path / "whole")

    class Stop(Exception):
        pass

    def stop(step, total, objective):
        if step > total / 2:
            raise Stop

    with pytest.raises(Stop):
        train(config, out=tmp_path / "torn", progress=stop)
    resumed = train(config, out=tmp_path / "torn", resume=True)
    assert resumed.history == whole.history
    first, second = (store.read_tensors(run.folder / store.CHECKPOINT) for run in (whole, resumed))
    assert first.keys() == second.keys()
    for key, tensor in first.items():
        assert_array_equal(tensor, second[key], err_msg=key)
    model = mlp(64, (6,), 12, 10, batchnorm=True)
    with pytest.raises(CollapseError, match="of another run"):
        checkpoint.restore(whole.folder, mlp(64, (5,), 12, 10), torch.optim.SGD(model.parameters(), lr=1))


# data


def write_npz(path, counts, **others):
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(len(counts)), counts)
    X = (rng.uniform(size=(len(labels), 5)) + labels[:, None]).astype(np.float32)
    np.savez(path, X=X, y=labels, **others)
    return X, labels


def test_a_path_is_trained_as_it_is(tmp_path):
    counts = [1, 4, 5, 30, 200]
    X, _ = write_npz(tmp_path / "own.npz", counts)
    config = replace(SMOKE, data=str(tmp_path / "own.npz"), largest=None)
    split = load_split(config)
    held_out = [0, 0, 1, 6, 20]
    assert_array_equal(split.counts, np.subtract(counts, held_out))
    assert_array_equal(torch.bincount(split.test_labels, minlength=5), held_out)
    rows = np.concatenate([split.train_inputs, split.test_inputs])
    assert_array_equal(np.unique(rows, axis=0), np.unique(X, axis=0))  # every sample once
    assert_array_equal(split.train_inputs[:, 0].floor(), split.train_labels)
    assert_array_equal(load_split(replace(config, largest=10)).counts, [1, 4, 4, 10, 10])
    assert_array_equal(load_split(replace(config, seed=1)).counts, split.counts)
    assert not np.array_equal(load_split(replace(config, seed=1)).train_inputs, split.train_inputs)
    with pytest.raises(CollapseError, match=r"class 0 has 1 training samples, .*give largest=1 or less"):
        load_split(replace(config, profile="step", largest=50))
    run = train(config, out=tmp_path)
    recalls = [c["test_recall"] for c in compare_run(run).to_dict()["classes"]]
    assert recalls[:2] == [None, None]
    assert all(0 <= recall <= 1 for recall in recalls[2:])
    again = [c["test_recall"] for c in compare_run(load_run(run.folder)).to_dict()["classes"]]
    assert again == recalls
    assert 0 <= run.balanced_accuracy <= 1
    assert json.dumps(compare_run(run).to_dict(), allow_nan=False)


def test_without_held_out_samples_there_are_no_recalls(tmp_path):
    write_npz(tmp_path / "few.npz", [4, 3])
    run = train(replace(SMOKE, data=str(tmp_path / "few.npz"), largest=None), out=tmp_path)
    assert [c["test_recall"] for c in compare_run(run).to_dict()["classes"]] == [None, None]
    assert np.isnan(run.balanced_accuracy)
    report(run)


def test_a_held_out_set_of_the_source_is_used(tmp_path):
    Xt, yt = np.zeros((3, 5), np.float32), np.array([2, 0, 2])
    X, _ = write_npz(tmp_path / "own.npz", [30, 20, 6], Xt=Xt, yt=yt)
    split = load_split(replace(SMOKE, data=str(tmp_path / "own.npz"), largest=None))
    assert_array_equal(split.counts, [30, 20, 6])  # none held out
    assert_array_equal(np.unique(split.train_inputs, axis=0), np.unique(X, axis=0))
    assert_array_equal(split.test_inputs, Xt)
    assert_array_equal(split.test_labels, yt)


def test_columns_of_a_table_are_standardised_by_the_training_set(tmp_path):
    rng = np.random.default_rng(0)
    labels = np.repeat(["a", "b"], [40, 20])
    values = np.c_[rng.normal(5, 3, 60), np.full(60, 7.0), rng.normal(1e4, 1e-2, 60)]
    lines = ["x,constant,large,label", *(f"{a},{b},{c},{y}" for (a, b, c), y in zip(values, labels, strict=True))]
    (tmp_path / "table.csv").write_text("\n".join(lines) + "\n")
    split = load_split(replace(SMOKE, data=str(tmp_path / "table.csv"), largest=None))
    assert_array_equal(split.counts, [32, 16])
    inputs = split.train_inputs.double()
    assert_allclose(inputs[:, :2].mean(dim=0), 0, atol=FLOAT32)
    assert_allclose(inputs[:, 0].std(correction=0), 1, rtol=FLOAT32)
    assert_array_equal(inputs[:, 1], 0)
    assert_array_equal(split.test_inputs[:, 1], 0)
    both = np.r_[split.train_inputs[:, 0], split.test_inputs[:, 0]].astype(float)
    scale = np.polyfit(np.sort(values[:, 0]), np.sort(both), 1)  # one affine map for both sets
    assert_allclose(np.sort(both), np.polyval(scale, np.sort(values[:, 0])), atol=FLOAT32)
    assert abs(both.mean()) > FLOAT32  # the held-out rows have no part in it


def test_ufm_of_a_run_is_that_of_its_recipe(tmp_path):
    run = train(replace(SMOKE, recipe="batchnorm", branches=3, weight_decay=0.05), out=tmp_path)
    counts = run.measured.counts
    expected = UFM(counts, 0.05, 0.05 / (3 * counts.sum()), dim=12, names=run.measured.names)
    assert run.problem.to_dict() == expected.to_dict()
    assert_allclose(run.prediction.objective, predict(expected).objective, rtol=EXACT)


def test_penalties_in_the_loss_have_a_horizon_under_sgd_alone():
    last, decays = LastLayer(6), {"weight_decay": 0.1, "feature_decay": 0.01, "epochs": 1000, "warmup": 0.0}
    for name in ("adam", "adamw"):  # both divide the gradient of the penalty by its size
        assert np.isnan(TrainConfig(optimizer=name, **decays).horizon(COUNTS, last))
    config = TrainConfig(optimizer="sgd", learning_rate=0.01, **decays)
    assert_allclose(config.horizon(COUNTS, last), 0.01 * 0.1 * 500.5 / 0.1, rtol=1e-9)
