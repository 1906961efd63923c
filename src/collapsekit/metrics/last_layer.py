"""The head of a network: the layer that computes W h + b and makes its output; how it is found, checked and run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from collapsekit.errors import CollapseError
from collapsekit.metrics.batches import GIVE, OR_ELSE, call, evaluating
from collapsekit.validation import shorten

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
LINEAR = 1e-4
"""How far logits may be from W h + b, relative to the terms of that sum; four roundings of shorter types."""
CHECKED_ROWS = 4096
PRODUCTS = {"highest": 0.0, "high": 2.0**-10, "medium": 2.0**-7}
"""Rounding of float32 products by torch's setting: none beyond float32's own, TF32, bfloat16."""
ABOUT = "the theory is about linear heads"
UNKNOWN = "its output is not W h + b"
SAME = 1e-6
"""How far the model's output may be from the head's, relative to its size; four roundings of shorter types."""
MERGE = "merge what comes behind the layer into its weight and bias (LoRA, a scale, a shift)"


@dataclass(frozen=True, eq=False)
class Head:
    """The layer that makes the logits.

    Attributes
    ----------
    name : str
        Its name in the network; empty if it is the network.
    module : torch.nn.Module
        ``nn.Linear``, or any module with a matrix as weight (a 1×1 convolution included) that computes ``W h + b``.
    transposed : bool
        Whether its weight is (d, K).
    """

    name: str
    module: nn.Module
    transposed: bool = False

    @property
    def weight(self) -> Tensor:
        """W, (K, d), as the last forward pass used it: a weight-normalised head's effective weight."""
        weight = _whole(self.module.weight)
        assert weight is not None
        return weight.T if self.transposed else weight.flatten(1)

    @property
    def bias(self) -> Tensor | None:
        """b, (K,), or None."""
        return _whole(getattr(self.module, "bias", None))


def find_head(model: nn.Module, head: str | nn.Module | None, inputs: Any) -> Head:
    """Return the head of a network, checked on some inputs: its output is ``W h + b``.

    The network is run in eval mode without gradients, and put back as it was.

    Parameters
    ----------
    model : torch.nn.Module
    head : str or torch.nn.Module, optional
        By name in ``model.named_modules()``, or itself; of an ``nn.Sequential`` or ``nn.ModuleList`` the last layer.
        Left out: the layer whose output, averaged over positions if there are any, is the model's output.
    inputs : Tensor, tuple or mapping
        As the model is called with.

    Raises
    ------
    CollapseError
        If there is no such layer or more than one, it is not linear in its input, or it makes a single logit.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> find_head(model, None, torch.ones(2, 4)).name
    '2'
    """
    with evaluating(model), torch.no_grad():
        name, module = _maker(model, inputs) if head is None else named(model, head)
        features, logits, output = _run(model, name, module, inputs)
        found = checked(name, module, features, logits)
        rows_of(found, features, logits, output, positions=True)
        return found


def forward(model: nn.Module, head: Head, inputs: Any, *, positions: bool = False) -> tuple[Tensor, Tensor]:
    """Run the model and return what went into the head and what came out of it, (n, d) and (n, K), with gradients.

    A head that is applied at every position gives the means over positions, if that is the model's output; else, with
    `positions`, what it has made at each, (n, ..., d) and (n, ..., K).

    Raises
    ------
    CollapseError
        If the head is not called exactly once, or what it makes is not the model's output.
    """
    return rows_of(head, *_run(model, head.name, head.module, inputs), positions=positions)


def _run(model: nn.Module, name: str, module: nn.Module, inputs: Any) -> tuple[Tensor, Tensor, Any]:
    """What goes into a module and comes out of it in one forward pass, and the model's output."""
    calls: list[tuple[Any, Any]] = []

    def watch(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        given = next(iter((*args, *kwargs.values())), None)
        calls.append((given, out.clone() if isinstance(out, Tensor) else out))  # the model may change it in place

    with module.register_forward_hook(watch, with_kwargs=True):
        output = call(model, inputs)
    if not calls:
        raise CollapseError(
            f"{_says(name)}: was not called in a forward pass{_sealed(model)}; name a layer that is, {OR_ELSE}"
        )
    if len(calls) > 1:
        raise CollapseError(f"{_says(name)}: was called {len(calls)} times in one forward pass; expected once")
    features, logits = calls[0]
    if not (isinstance(features, Tensor) and isinstance(logits, Tensor)):
        raise CollapseError(
            f"{_says(name)}: a {type(module).__name__} from {type(features).__name__} to {type(logits).__name__}; "
            "name a layer from tensor to tensor"
        )
    return features, logits, output


def rows_of(head: Head, features: Tensor, logits: Tensor, output: Any, *, positions: bool) -> tuple[Tensor, Tensor]:
    """Return features and logits as they are, or their means over positions: whichever are the model's output."""
    made = list(tensors(output))
    if all(one.ndim == 0 for one in made):  # a loss alone, or nothing: there is no output to compare with
        made = [logits]
    means = averaged(head.module, features), averaged(head.module, logits)
    if _among(means[1], made):
        return means
    if features.ndim == 2 or not _among(logits, made):
        raise CollapseError(
            f"{_says(head.name)}: its W h + b, {tuple(logits.shape)}, is not the model's output; name the layer that "
            f"makes it, or {MERGE}, {OR_ELSE}"
        )
    if not positions:
        raise CollapseError(
            f"{_says(head.name)}: is applied at every position, output {tuple(logits.shape)}, and the model does not "
            f"average its logits; give labels of the positions, or average the features first, {OR_ELSE}"
        )
    return (
        (features.movedim(1, -1), logits.movedim(1, -1)) if isinstance(head.module, Convolution) else (features, logits)
    )


def tensors(output: Any, depth: int = 3) -> Iterator[Tensor]:
    """Every tensor in whatever a model returns."""
    if isinstance(output, Tensor):
        yield output
    elif depth:
        parts = output if isinstance(output, tuple | list) else getattr(output, "__dict__", {}).values()
        for part in output.values() if isinstance(output, Mapping) else parts:
            yield from tensors(part, depth - 1)


def _among(logits: Tensor, made: Sequence[Tensor]) -> bool:
    """Whether the logits, or what softmax makes of them, are among these tensors."""
    functions = (Tensor.softmax, Tensor.log_softmax) if logits.ndim == 2 else ()
    return any(_same(logits, one) for one in made) or any(_same(f(logits, 1), one) for f in functions for one in made)


def averaged(module: nn.Module, values: Tensor) -> Tensor:
    """Return means over positions: channels come second in a convolution, last otherwise."""
    if values.ndim <= 2:
        return values
    return values.flatten(2).mean(dim=2) if isinstance(module, Convolution) else values.flatten(1, -2).mean(dim=1)


def checked(name: str, module: nn.Module, features: Tensor, logits: Tensor) -> Head:
    """Return the head, if what came out of it is W h + b, computed once more in float64."""
    h, z = _rows(module, features), _rows(module, logits)
    if z.shape[1] == 1:
        raise CollapseError(
            f"{_says(name)}: a single logit; the theory is about one logit a class: use two logits, nn.Linear(d, 2), "
            "and the labels 0 and 1"
        )
    heads = [Head(name, module, turned) for turned in (False, True) if not (turned and isinstance(module, Convolution))]
    heads = [head for head in heads if tuple(head.weight.shape) == (z.shape[1], h.shape[1])]
    if not heads or len(h) != len(z):
        weight = Head(name, module).weight
        raise CollapseError(
            f"{_says(name)}: maps {tuple(features.shape)} to {tuple(logits.shape)} with a weight "
            f"{tuple(weight.shape)}; expected (n, d) to (n, K) with (K, d); {ABOUT}"
        )
    finite = torch.isfinite(h).all(dim=1) & torch.isfinite(z).all(dim=1)
    h, z = h[finite], z[finite]
    tolerance = _rounding(LINEAR, features, logits, heads[0].weight)
    kinds = [_deviation(head, h, z, tolerance) for head in heads]
    if None in kinds:
        return heads[kinds.index(None)]
    likeliest = next((kind for kind in kinds if kind != UNKNOWN), UNKNOWN)
    raise CollapseError(
        f"{_says(name)}: a {'quantised ' * callable(module.weight)}{type(module).__name__}, {likeliest}; "
        f"{ABOUT}: use nn.Linear (unquantised, adapters like LoRA merged), {OR_ELSE}"
    )


def _deviation(head: Head, h: Tensor, z: Tensor, tolerance: float) -> str | None:
    """Return None if z is W h + b, else what it looks like."""
    W = head.weight.detach().cpu().double()
    b = torch.zeros(len(W)).double() if head.bias is None else head.bias.detach().cpu().double()
    if not len(h) or not (torch.isfinite(W).all() and torch.isfinite(b).all()):
        return None  # nothing to compare; or the head has diverged, which is said where it is measured
    if b.shape != W.shape[:1]:
        return UNKNOWN
    linear, size = h @ W.T + b, h.abs() @ W.abs().T + b.abs()
    if bool((z - linear).abs().max() <= tolerance * size.max()):
        return None
    unit_h, unit_W = nn.functional.normalize(h, dim=1), nn.functional.normalize(W, dim=1)
    likely = {
        "a scaled head, {:.3g} times W h + b": linear,
        "a scaled head, {:.3g} times W h, plus b": h @ W.T,
        "a cosine head: it normalises features and weights": unit_h @ unit_W.T,
        "a head that normalises its weights": h @ unit_W.T,
        "a head that normalises the features": unit_h @ W.T,
        "a linear layer with a softmax behind it": linear.softmax(dim=1),
        "a linear layer with a log_softmax behind it": linear.log_softmax(dim=1),
        "a linear layer with a sigmoid behind it": linear.sigmoid(),
        "a linear layer with a tanh behind it": linear.tanh(),
        "a linear layer with a ReLU behind it": linear.relu(),
    }
    for kind, value in likely.items():
        for found in (z, z - b):
            factor = float((value * found).sum() / value.square().sum()) if bool(value.any()) else 0.0
            if factor and bool((found - factor * value).abs().max() <= 10 * tolerance * found.abs().max()):
                return kind.format(factor)
    return UNKNOWN


def named(model: nn.Module, head: str | nn.Module) -> tuple[str, nn.Module]:
    """Return the layer that is named, or the last one of what is named, and its name."""
    modules = {_uncompiled(name): module for name, module in model.named_modules(remove_duplicate=False)}
    head = getattr(head, "_orig_mod", head)  # of a compiled layer
    name = _uncompiled(head) if isinstance(head, str) else next((n for n, m in modules.items() if m is head), None)
    if name is None or name not in modules:
        what = "is" if isinstance(head, str) else f"a {type(head).__name__}, is"
        raise CollapseError(f"head={shorten(head)}: {what} no module of the model; name one of {_listed(model)}")
    named = module = modules[name]
    while isinstance(module, nn.Sequential | nn.ModuleList) and len(module):
        last, module = list(module.named_children())[-1]
        name = f"{name}.{last}" if name else last
    if not _has_matrix(module):
        raise CollapseError(
            f"head={shorten(head)}: is a {type(named).__name__}, which does not end in a linear layer (an adapter like "
            f"LoRA has to be merged into one){_sealed(model)}; name one of {_listed(model) or 'none'}, {OR_ELSE}"
        )
    return name, module


def _maker(model: nn.Module, inputs: Any) -> tuple[str, nn.Module]:
    """The layer whose output is the model's output."""
    outputs: dict[nn.Module, Tensor] = {}

    def watch(module: nn.Module, _: Any, out: Any) -> None:
        if isinstance(out, Tensor) and out.ndim >= 2:
            outputs[module] = averaged(module, out).clone()  # averaged: a network's every activation is too much

    modules = candidates(model)
    with ExitStack() as hooked:
        for module in modules.values():
            hooked.enter_context(module.register_forward_hook(watch))
        output = call(model, inputs)
    return maker(model, modules, outputs, output)


def candidates(model: nn.Module) -> dict[str, nn.Module]:
    """Return the layers that may be the head, by name."""
    return {_uncompiled(name): module for name, module in model.named_modules() if _has_matrix(module)}


def maker(
    model: nn.Module, modules: Mapping[str, nn.Module], outputs: Mapping[nn.Module, Tensor], output: Any
) -> tuple[str, nn.Module]:
    """Return the layer whose output, averaged over positions as those in `outputs` are, is the model's output."""
    logits, listed = logits_of(output), _listed(model)
    made = [
        name
        for name, module in modules.items()
        if module in outputs
        and (_among(outputs[module], logits) or _among(outputs[module], [averaged(module, one) for one in logits]))
    ]
    made = [name for name in made if not any(other.startswith(f"{name}.") for other in made)]  # the layer in a wrapper
    if len(made) == 1:
        return made[0], modules[made[0]]
    if made:
        raise CollapseError(f"head=None: {_names(made)} all make the model's output; name one")
    if not listed:
        raise CollapseError(f"head=None: {type(model).__name__} has no linear layer{_sealed(model)}; {ABOUT}: {GIVE}")
    if not logits:
        raise CollapseError(
            f"head=None: the model returns a {type(output).__name__} without logits; name the head, one of {listed}"
        )
    shapes = ", ".join(str(tuple(one.shape)) for one in logits)
    raise CollapseError(
        f"head=None: no linear layer makes the model's output, {shapes}{_sealed(model)}; {ABOUT}: {MERGE}, {OR_ELSE}; "
        f"there are {listed}"
    )


def _sealed(model: nn.Module) -> str:
    """What hides the layers of a model from us, and where they can be seen."""
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        return " (it is traced or scripted: measure the model it was made from)"
    return ""


def logits_of(output: Any) -> list[Tensor]:
    """What may be the logits in whatever a model returns: a tensor, `.logits`, the key logits, a tuple's matrices."""
    if isinstance(output, Mapping):
        output = output.get("logits")
    elif hasattr(output, "logits"):
        output = output.logits
    elif isinstance(output, tuple | list):
        return [one for one in output if isinstance(one, Tensor) and one.ndim >= 2]
    return [output] if isinstance(output, Tensor) else []


def _same(out: Tensor, logits: Tensor) -> bool:
    """Whether the numbers are the same, in whatever precision; a single logit may have lost its axis."""
    if not logits.ndim or len(out) != len(logits) or out.numel() != logits.numel():
        return False
    if out.shape == logits.shape and out.dtype == logits.dtype and torch.equal(out, logits.to(out.device)):
        return True
    if not out.numel():  # of a batch without samples
        return out.shape == logits.shape
    a, b = (value.detach().double().reshape(len(out), -1) for value in (out, logits.to(out.device)))
    finite = torch.isfinite(a) & torch.isfinite(b)
    if not torch.equal(a.isfinite(), b.isfinite()):
        return False
    a, b = a[finite], b[finite]
    return not len(a) or bool((a - b).abs().max() <= _rounding(SAME, out, logits) * b.abs().max())


def _uncompiled(name: str) -> str:
    """The name of a layer without what torch.compile puts into it."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def _has_matrix(module: nn.Module) -> bool:
    """Whether a module's weight is a matrix, or that of a convolution over single positions."""
    weight = getattr(module, "weight", None)
    weight = _whole(weight) if callable(weight) else weight
    without = nn.Embedding | nn.EmbeddingBag | nn.LayerNorm | torch.jit.ScriptModule  # the last calls no hooks
    if not isinstance(weight, Tensor) or isinstance(module, without):
        return False
    if isinstance(module, Convolution):
        single = all(size == 1 for size in module.kernel_size) and module.groups == 1
        return single and not isinstance(weight, UninitializedParameter)
    return isinstance(weight, UninitializedParameter) or weight.ndim == 2


def _listed(model: nn.Module) -> str:
    return _names(list(dict.fromkeys(_uncompiled(name) for name, m in model.named_modules() if _has_matrix(m))))


def _names(names: Sequence[str], most: int = 8) -> str:
    return ("…, " if len(names) > most else "") + ", ".join(shorten(name) for name in names[-most:])


def _rounding(least: float, *tensors: Tensor) -> float:
    """Four roundings of the shortest type that took part in the products."""
    types = [tensor.dtype for tensor in tensors if tensor.is_floating_point()]
    shortest = max([torch.finfo(dtype).eps for dtype in types] + [PRODUCTS[torch.get_float32_matmul_precision()]])
    return max(least, 4 * shortest)


def _rows(module: nn.Module, values: Tensor) -> Tensor:
    """One float64 row a position, the first ones, on the CPU; empty if there are no channels."""
    if values.ndim < 2:
        return values.new_zeros(0, 0)
    last = values.movedim(1, -1) if isinstance(module, Convolution) else values
    return last.flatten(0, -2)[:CHECKED_ROWS].detach().cpu().double()


def _whole(weight: Any) -> Tensor | None:
    """A weight as one plain tensor: quantised ones are methods, those of FSDP2 are in parts."""
    weight = weight() if callable(weight) else weight
    if not isinstance(weight, Tensor):
        return None
    if weight.is_quantized:
        return weight.dequantize()
    return weight.full_tensor() if hasattr(weight, "full_tensor") else weight


def _says(name: str) -> str:
    return f"head={shorten(name)}" if name else "head=the model itself"
