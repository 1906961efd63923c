"""Networks with a linear head behind a ReLU, and users' own."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from collapsekit.errors import CollapseError
from collapsekit.metrics.batches import call, evaluating
from collapsekit.validation import shorten

CNN, VGG11 = ((1,), (2,), (4,)), ((1,), (2,), (4, 4), (8, 8), (8, 8))
"""Channels of the stages, in units of the width; a pool ends each."""
CONVOLUTIONAL = ("cnn", "vgg11", "resnet18")
NETWORKS = ("mlp", "residual-mlp", *CONVOLUTIONAL)


class Classifier(nn.Module):
    """A feature extractor and a linear head.

    Parameters
    ----------
    body : torch.nn.Module
        Maps inputs to features (n, d) that have left a ReLU.
    head : torch.nn.Linear
        Maps features to logits (n, K).
    feature_batchnorms : sequence of torch.nn.Module
        The BatchNorms whose outputs are summed before that ReLU, shortcuts included.
    pooled : bool
        Whether features are averaged over positions after it.

    Examples
    --------
    >>> import torch
    >>> model = mlp(64, (32,), 16, 10)
    >>> model(torch.zeros(5, 64)).shape
    torch.Size([5, 10])
    """

    def __init__(
        self,
        body: nn.Module,
        head: nn.Linear,
        feature_batchnorms: Sequence[nn.Module] = (),
        *,
        pooled: bool = False,
    ) -> None:
        super().__init__()
        self.body, self.head = body, head
        self.feature_batchnorms, self.pooled = list(feature_batchnorms), pooled

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits, (n, K)."""
        return self.head(self.body(inputs))  # type: ignore[no-any-return]


class Sum(nn.Module):
    """The sum of what several branches make of the same input."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the sum over branches."""
        total: Tensor = reduce(torch.add, (branch(inputs) for branch in self.branches))
        return total


def mlp(
    in_features: int,
    hidden: Sequence[int],
    feature_dim: int,
    num_classes: int,
    *,
    batchnorm: bool = False,
    branches: int = 1,
) -> Classifier:
    """Return a multilayer perceptron, ReLU after every layer but the bias-free head.

    With BatchNorm there is one before every ReLU, and `branches` of them, each behind a linear layer of its own, are
    summed before the last.
    """
    widths = [in_features, *hidden]
    if not batchnorm:
        widths.append(feature_dim)
        layers = [layer for before, after in pairwise(widths) for layer in (nn.Linear(before, after), nn.ReLU())]
        return Classifier(nn.Sequential(nn.Flatten(), *layers), _head(feature_dim, num_classes))
    stem = [layer for before, after in pairwise(widths) for layer in (*_dense(before, after), nn.ReLU())]
    tails = [nn.Sequential(*_dense(widths[-1], feature_dim)) for _ in range(branches)]
    body = nn.Sequential(nn.Flatten(), *stem, Sum(*tails), nn.ReLU())
    return Classifier(body, _head(feature_dim, num_classes), [tail[1] for tail in tails])


def residual_mlp(in_features: int, hidden: Sequence[int], feature_dim: int, num_classes: int) -> Classifier:
    """Return an MLP whose features come from a stage of two residual blocks, as in ResNet18, without pooling.

    The first block's shortcut is a linear layer with BatchNorm, the second's the identity, so that three BatchNorms
    feed the features.
    """
    widths = [in_features, *hidden]
    stem = [layer for before, after in pairwise(widths) for layer in (*_dense(before, after), nn.ReLU())]
    first = Sum(nn.Sequential(*_dense(widths[-1], feature_dim)), nn.Sequential(*_dense(widths[-1], feature_dim)))
    inner = nn.Sequential(*_dense(feature_dim, feature_dim), nn.ReLU(), *_dense(feature_dim, feature_dim))
    second = Sum(inner, nn.Identity())
    body = nn.Sequential(nn.Flatten(), *stem, first, nn.ReLU(), second, nn.ReLU())
    feeding = [*(branch[1] for branch in first.branches), inner[-1]]  # type: ignore[index]
    return Classifier(body, _head(feature_dim, num_classes), feeding)


def cnn(
    input_shape: Sequence[int], width: int, feature_dim: int, num_classes: int, *, batchnorm: bool = False
) -> Classifier:
    """Return a small CNN: 3×3 convolutions of `width`, 2 and 4 times it, each with a pool, then a dense ReLU layer."""
    layers = _stages(CNN, input_shape, width, batchnorm)
    flat = _flat_size(layers, input_shape)
    dense = _dense(flat, feature_dim) if batchnorm else (nn.Linear(flat, feature_dim),)
    body = nn.Sequential(*layers, nn.Flatten(), *dense, nn.ReLU())
    return Classifier(body, _head(feature_dim, num_classes), dense[1:])


def vgg11(input_shape: Sequence[int], width: int, num_classes: int, *, batchnorm: bool = False) -> Classifier:
    """Return the eight convolutions of VGG11 (width 64 in the paper) before a linear head on flattened features.

    Pools that would make a side vanish are left out.
    """
    layers = _stages(VGG11, input_shape, width, batchnorm)
    feeding = [layer for layer in layers if isinstance(layer, nn.BatchNorm2d)][-1:]
    head = _head(_flat_size(layers, input_shape), num_classes)
    return Classifier(nn.Sequential(*layers, nn.Flatten()), head, feeding)


def _stages(
    stages: Sequence[Sequence[int]], input_shape: Sequence[int], width: int, batchnorm: bool
) -> list[nn.Module]:
    layers: list[nn.Module] = []
    channels, side = input_shape[0], min(input_shape[1:])
    for stage in stages:
        for multiple in stage:
            layers += [*_convolution(channels, multiple * width, batchnorm), nn.ReLU()]
            channels = multiple * width
        if side >= 2:
            layers.append(nn.MaxPool2d(2))
            side //= 2
    return layers


def resnet18(input_shape: Sequence[int], width: int, num_classes: int) -> Classifier:
    """Return ResNet18 (width 64 in the paper) with the stem for small images, and average pooling before the head."""
    layers: list[nn.Module] = [*_convolution(input_shape[0], width, True), nn.ReLU()]
    before, sums = width, []
    for stage, multiple in enumerate((1, 2, 4, 8)):
        for stride in (2 if stage else 1, 1):
            sums.append(_residual(before, multiple * width, stride))
            layers += [sums[-1], nn.ReLU()]
            before = multiple * width
    body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    feeding = [branch[-1] for block in sums[-2:] for branch in block.branches if isinstance(branch, nn.Sequential)]
    return Classifier(body, _head(before, num_classes), feeding, pooled=True)


def _residual(before: int, after: int, stride: int) -> Sum:
    """Two 3×3 convolutions and a shortcut, which is the identity where shapes allow."""
    inner = nn.Sequential(*_convolution(before, after, True, stride), nn.ReLU(), *_convolution(after, after, True))
    if stride == 1 and before == after:
        return Sum(inner, nn.Identity())
    return Sum(inner, nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after)))


def build(
    network: str,
    input_shape: Sequence[int],
    num_classes: int,
    *,
    hidden: Sequence[int],
    feature_dim: int,
    width: int,
    batchnorm: bool,
    branches: int = 1,
) -> nn.Module:
    """Return a network by name: one of these, or a user's ``module:function``, called with shape and classes.

    Raises
    ------
    CollapseError
        If there is no such network, it does not fit the inputs, or the user's function fails.

    Examples
    --------
    >>> sizes = {"hidden": (), "feature_dim": 8, "width": 4, "batchnorm": True}
    >>> len(build("residual-mlp", (64,), 10, **sizes).feature_batchnorms)
    3
    """
    if ":" in network:
        return _users(network, tuple(input_shape), num_classes)
    if network not in NETWORKS:
        raise CollapseError(
            f"network={shorten(network)}: give one of {', '.join(NETWORKS)}, or module:function of your own"
        )
    if network in CONVOLUTIONAL and len(input_shape) != 3:
        raise CollapseError(
            f"network={network!r}: needs images, (channels, height, width), but a sample has the shape "
            f"{tuple(input_shape)}; give images or use network='mlp'"
        )
    size = int(torch.Size(input_shape).numel())
    match network:
        case "mlp":
            return mlp(size, hidden, feature_dim, num_classes, batchnorm=batchnorm, branches=branches)
        case "residual-mlp":
            return residual_mlp(size, hidden, feature_dim, num_classes)
        case "cnn":
            return cnn(input_shape, width, feature_dim, num_classes, batchnorm=batchnorm)
        case "vgg11":
            return vgg11(input_shape, width, num_classes, batchnorm=batchnorm)
        case _:
            return resnet18(input_shape, width, num_classes)


def _users(network: str, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    says = f"network={shorten(network)}"
    here = str(Path.cwd())
    sys.path.insert(0, here)  # also for what a factory imports when it is called
    try:
        factory = _imported(network)
        with explained(f"{says}: called with {input_shape} and {num_classes} it raised"):
            model = factory(input_shape, num_classes)
    finally:
        sys.path.remove(here)
    if not isinstance(model, nn.Module):
        raise CollapseError(f"{says}: returned a {type(model).__name__}; return a torch.nn.Module")
    _check_batchnorms(says, model)
    shape = (2, *input_shape)
    with explained(f"{says}: on inputs {shape} it raised"), evaluating(model), torch.no_grad():
        call(model, torch.zeros(shape))
    return model


def _imported(network: str) -> Callable[[tuple[int, ...], int], object]:
    module, _, name = network.partition(":")
    importlib.invalidate_caches()  # the file may be newer than what Python remembers of its folder
    try:
        factory = getattr(importlib.import_module(module), name, None)
    except (Exception, SystemExit) as error:
        raise CollapseError(
            f"network={shorten(network)}: {shorten(module)} cannot be imported ({_reason(error)}); give "
            "module:function of a module in this folder or an installed one"
        ) from error
    if not callable(factory):
        what = "has no" if factory is None else "cannot be called:"
        raise CollapseError(f"network={shorten(network)}: the module {what} {shorten(name)}; give module:function")
    return factory  # type: ignore[no-any-return]


def _check_batchnorms(says: str, model: nn.Module) -> None:
    """What a network says of its BatchNorms decides what decays, so it is checked."""
    layers = getattr(model, "feature_batchnorms", ())
    if not isinstance(layers, list | tuple | nn.ModuleList):
        raise CollapseError(f"{says}: its feature_batchnorms is a {type(layers).__name__}; give a list of BatchNorms")
    own = set(model.modules())
    for layer in layers:
        if not isinstance(layer, nn.modules.batchnorm._BatchNorm):
            raise CollapseError(f"{says}: its feature_batchnorms holds a {type(layer).__name__}; give BatchNorms")
        if layer not in own:
            raise CollapseError(f"{says}: its feature_batchnorms holds one that is not part of the network; mend it")
        if not layer.affine:
            raise CollapseError(f"{says}: its feature_batchnorms holds one without γ and β; make it affine=True")


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn whatever a user's code raises, sys.exit included, into one line; the error itself is its cause."""
    try:
        yield
    except CollapseError:
        raise
    except (Exception, SystemExit) as error:
        raise CollapseError(f"{what} {_reason(error)}; mend it") from error


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _head(dim: int, num_classes: int) -> nn.Linear:
    return nn.Linear(dim, num_classes, bias=False)


def _dense(before: int, after: int) -> tuple[nn.Module, nn.Module]:
    return nn.Linear(before, after, bias=False), nn.BatchNorm1d(after)


def _convolution(before: int, after: int, batchnorm: bool, stride: int = 1) -> tuple[nn.Module, ...]:
    layer = nn.Conv2d(before, after, 3, stride, padding=1, bias=not batchnorm)
    return (layer, nn.BatchNorm2d(after)) if batchnorm else (layer,)


def _flat_size(layers: Sequence[nn.Module], input_shape: Sequence[int]) -> int:
    """Values a sample has after the layers, found by running them once without touching their statistics."""
    body = nn.Sequential(*layers)
    with torch.no_grad(), evaluating(body):
        return int(body(torch.zeros(1, *input_shape)).numel())
