"""Networks: shapes, features, which BatchNorms feed them, counts of parameters; factories of users."""

import os
import sys
from itertools import count, pairwise

import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn

from _support.tolerances import EXACT, FLOAT32
from collapsekit import CollapseError
from collapsekit.metrics.last_layer import find_head, forward
from collapsekit.training.models import NETWORKS, build, cnn, mlp, resnet18, vgg11

K, D = 5, 12
SHAPES = [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 9, 5)]
SIZES = {"hidden": (10, 9), "feature_dim": D, "width": 2}
ALWAYS_NORMALISED = ("residual-mlp", "resnet18")
BRANCHES = {"mlp": 1, "residual-mlp": 3, "cnn": 1, "vgg11": 1, "resnet18": 3}
FEATURE_DIMS = {"mlp": D, "residual-mlp": D, "cnn": D, "resnet18": 16}


def network(name, shape=(1, 8, 8), *, batchnorm=True, **kwargs):
    return build(name, shape, K, **SIZES, batchnorm=batchnorm, **kwargs)


def batch(shape, size=6):
    return torch.randn(size, *shape)


def randomised(model):
    """BatchNorms of a trained network: gains and shifts of any sign and size."""
    for layer in batchnorms(model):
        nn.init.uniform_(layer.weight, 0.5, 1.5)
        nn.init.uniform_(layer.bias, -0.5, 1.5)
    return model


def batchnorms(model):
    return [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


@pytest.mark.parametrize("batchnorm", [True, False])
@pytest.mark.parametrize("shape", [*SHAPES, (30,)], ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_shapes_features_and_gradients(name, shape, batchnorm):
    if len(shape) == 1 and "mlp" not in name:
        with pytest.raises(CollapseError, match=rf"network='{name}': needs images.*\(30,\).*network='mlp'"):
            network(name, shape)
        return
    model = network(name, shape, batchnorm=batchnorm)
    inputs = batch(shape)
    head = find_head(model, None, inputs)
    features, logits = forward(model, head, inputs)
    assert head.name == "head"
    assert head.bias is None
    assert logits.shape == (6, K)
    assert features.shape == (6, FEATURE_DIMS.get(name, features.shape[1]))
    assert features.min() >= 0
    assert (features > 0).float().mean() > 0.02
    assert bool(batchnorms(model)) == (batchnorm or name in ALWAYS_NORMALISED)
    assert len(model.feature_batchnorms) == (BRANCHES[name] if batchnorms(model) else 0)
    assert model.pooled == (name == "resnet18")
    nn.functional.cross_entropy(logits, torch.arange(6) % K).backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert torch.isfinite(parameter.grad).all(), parameter_name


def pre_activations(model, inputs):
    """What goes into the last ReLU (module or function) of the body, and the outputs of the BatchNorms named."""
    seen, outputs = [], []
    relu, hooks = torch.relu, []
    hooks += [
        m.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
        for m in model.modules()
        if isinstance(m, nn.ReLU)
    ]
    hooks += [m.register_forward_hook(lambda *args: outputs.append(args[2].clone())) for m in model.feature_batchnorms]
    torch.relu = lambda x: seen.append(x.clone()) or relu(x)
    try:
        model(inputs)
    finally:
        torch.relu = relu
        for hook in hooks:
            hook.remove()
    return seen, outputs


@pytest.mark.parametrize("name", ["mlp", "cnn", "vgg11"])
def test_features_are_the_relu_of_the_sum_of_the_named_batchnorms(name):
    for branches in (1, 3) if name == "mlp" else (1,):
        kwargs = {"branches": branches} if name == "mlp" else {}
        model = randomised(network(name, **kwargs))
        seen, outputs = pre_activations(model, batch((1, 8, 8)))
        assert len(outputs) == branches
        assert_allclose(seen[-1].detach(), sum(outputs).detach(), rtol=FLOAT32, atol=FLOAT32)


@pytest.mark.parametrize("name", ["residual-mlp", "resnet18"])
def test_residual_features_sum_three_batchnorms_along_the_chain(name):
    model = randomised(network(name, (3, 32, 32)))
    seen, (first, shortcut, second) = pre_activations(model, batch((3, 32, 32)))
    assert_allclose(seen[-1].detach(), (torch.relu(first + shortcut) + second).detach(), rtol=FLOAT32, atol=FLOAT32)
    with pytest.raises(AssertionError):  # the check can fail
        assert_allclose(seen[-1].detach(), (first + second).detach(), rtol=FLOAT32, atol=FLOAT32)


@pytest.mark.parametrize("name", NETWORKS)
def test_gains_and_shifts_of_the_named_batchnorms_move_the_features(name):
    model = randomised(network(name)).double()
    inputs = batch((1, 8, 8)).double()
    with torch.no_grad():
        features, before = model.body(inputs), pre_activations(model, inputs)[0][-1]
        for layer in model.feature_batchnorms:
            for parameter in (layer.weight, layer.bias):
                parameter += 5.0
                assert (model.body(inputs) - features).abs().max() > 0.1
                parameter -= 5.0
        model.feature_batchnorms[-1].bias[0] += 5.0  # feeds the ReLU directly
        change = pre_activations(model, inputs)[0][-1] - before
    assert_allclose(change[:, 0], 5.0, rtol=EXACT)
    assert_allclose(change[:, 1:], 0.0, atol=EXACT)


def test_the_paper_networks_have_their_parameters():
    def size(model):
        return sum(p.numel() for p in model.parameters())

    assert size(resnet18((3, 32, 32), 64, 10)) - 64 * 8 * 10 == 11_173_962 - 5_130  # torchvision's count less its head
    model = vgg11((3, 32, 32), 64, 10)
    convolutions = sum(size(m) for m in model.modules() if isinstance(m, nn.Conv2d))
    channels = [3, 64, 128, 256, 256, 512, 512, 512, 512]
    assert convolutions == sum(9 * a * b + b for a, b in pairwise(channels)) == 9_220_480
    assert size(model) == convolutions + 512 * 10
    normalised = vgg11((3, 32, 32), 64, 10, batchnorm=True)
    assert size(normalised) == size(model) + sum(channels[1:])  # two of a BatchNorm for one bias
    sizes = [784, 20, 30, D]
    assert size(mlp(784, (20, 30), D, K)) == sum(a * b + b for a, b in pairwise(sizes)) + D * K


def test_the_mlp_is_the_sequence_written_by_hand():
    torch.manual_seed(7)
    model = mlp(64, (20, 30), D, K)
    torch.manual_seed(7)
    by_hand = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, D), nn.ReLU()
    )
    head = nn.Linear(D, K, bias=False)
    assert [type(m) for m in model.body] == [type(m) for m in by_hand]
    for own, other in zip(model.parameters(), [*by_hand.parameters(), head.weight], strict=True):
        assert_array_equal(own.detach(), other.detach())
    inputs = batch((1, 8, 8))
    assert_array_equal(model(inputs).detach(), head(by_hand(inputs)).detach())
    assert list(model.state_dict())[-1] == "head.weight"


def test_building_takes_no_step():
    """Sizes are found by running the body once: no statistics, no mode and no random number is spent on it."""
    model = cnn((1, 8, 8), 2, D, K, batchnorm=True)
    assert all(module.training for module in model.modules())
    for layer in batchnorms(model):
        assert layer.num_batches_tracked == 0
        assert_array_equal(layer.running_mean, 0)


@pytest.mark.parametrize("name", ["", "lstm", "MLP"])
def test_unknown_networks_are_refused(name):
    with pytest.raises(CollapseError, match="give one of mlp, residual-mlp, cnn, vgg11, resnet18, or module:function"):
        network(name)


# networks of users

GOOD = """
import torch
from torch import nn

def make(shape, num_classes):
    size = torch.Size(shape).numel()
    return nn.Sequential(nn.Flatten(), nn.Linear(size, 7), nn.ReLU(), nn.Linear(7, num_classes))

def lazily(shape, num_classes):
    import {other}
    return {other}.make(shape, num_classes)

def normalised(shape, num_classes, layers=None):
    model = make(shape, num_classes)
    model.insert(2, nn.BatchNorm1d(7))  # before the ReLU
    model.feature_batchnorms = [model[2]] if layers is None else layers
    return model

class Network(nn.Module):
    def __init__(self, shape, num_classes):
        super().__init__()
        self.body = nn.Flatten()
        self.head = nn.Linear(torch.Size(shape).numel(), num_classes)

    def forward(self, x):
        return self.head(self.body(x))

constant = 3

def failing(shape, num_classes):
    raise ValueError("two\\nlines")

def leaving(shape, num_classes):
    raise SystemExit(2)

def nothing(shape, num_classes):
    pass

def misfit(shape, num_classes):
    return nn.Linear(3, num_classes)

def one_batchnorm(shape, num_classes):
    model = Network(shape, num_classes)
    model.feature_batchnorms = nn.BatchNorm1d(7)
    return model

def no_batchnorm(shape, num_classes):
    return normalised(shape, num_classes, [nn.ReLU()])

def foreign(shape, num_classes):
    return normalised(shape, num_classes, [nn.BatchNorm1d(7)])

def not_affine(shape, num_classes):
    model = normalised(shape, num_classes)
    model[2] = nn.BatchNorm1d(7, affine=False)
    model.feature_batchnorms = [model[2]]
    return model
"""


NUMBERS = count()


@pytest.fixture
def users(tmp_path, monkeypatch):
    """Write a user's module into the current folder; returns its name, different in every test."""
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    name = f"users{next(NUMBERS)}"
    (tmp_path / f"{name}.py").write_text(GOOD.format(other=f"{name}_other"))
    (tmp_path / f"{name}_other.py").write_text(GOOD.format(other=name))
    yield name
    assert sys.path == path
    for module in (name, f"{name}_other"):
        sys.modules.pop(module, None)


@pytest.mark.parametrize("function", ["make", "Network", "normalised", "lazily"])
def test_networks_of_users_are_found(users, function):
    model = network(f"{users}:{function}")
    assert all(module.training for module in model.modules())
    for layer in batchnorms(model):
        assert layer.num_batches_tracked == 0
    assert model(batch((1, 8, 8))).shape == (6, K)


@pytest.mark.parametrize(
    ("suffix", "fragment"),
    [
        ("_none:make", "cannot be imported.*No module named"),
        (":", "has no ''"),
        (":missing", "has no 'missing'"),
        (":constant", "cannot be called: 'constant'"),
        (":failing", r"called with \(1, 8, 8\) and 5 it raised ValueError: two lines; mend it"),
        (":leaving", "it raised SystemExit"),
        (":nothing", "returned a NoneType; return a torch.nn.Module"),
        (":misfit", r"on inputs \(2, 1, 8, 8\) it raised RuntimeError"),
        (":one_batchnorm", "feature_batchnorms.*a list"),
        (":no_batchnorm", "feature_batchnorms.*a ReLU"),
        (":foreign", "feature_batchnorms.*not part of the network"),
        (":not_affine", "feature_batchnorms.*affine"),
    ],
)
def test_mistakes_of_users_are_one_line(users, suffix, fragment):
    with pytest.raises(CollapseError, match=fragment) as caught:
        network(users + suffix)
    assert str(caught.value).startswith(f"network='{users}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        ("def make(:", "SyntaxError"),
        ("import not_there_at_all", "ModuleNotFoundError"),
        ("raise RuntimeError('while\\nimporting')", "RuntimeError: while importing"),
        ("raise SystemExit(1)", "SystemExit"),
    ],
)
def test_modules_that_cannot_be_imported(users, tmp_path, content, fragment):
    (tmp_path / f"{users}_broken.py").write_text(content)
    with pytest.raises(CollapseError, match=f"cannot be imported .*{fragment}") as caught:
        network(f"{users}_broken:make")
    assert "\n" not in str(caught.value)


def test_a_module_written_a_moment_ago_is_found(users, tmp_path):
    """Python remembers what a folder holds by the time of its last change."""
    when = os.stat(tmp_path)
    with pytest.raises(CollapseError, match="cannot be imported"):
        network(f"{users}_new:make")
    (tmp_path / f"{users}_new.py").write_text(GOOD.format(other=users))
    os.utime(tmp_path, ns=(when.st_atime_ns, when.st_mtime_ns))
    network(f"{users}_new:make")
    sys.modules.pop(f"{users}_new")


def test_an_empty_module_name():
    with pytest.raises(CollapseError, match="cannot be imported"):
        network(":make")


def test_installed_modules_are_found():
    assert isinstance(network("torch.nn:Identity"), nn.Identity)
