"""The head of a network: the linear layer that makes the logits; how it is found, checked and run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from collapsekit.errors import CollapseError
from collapsekit.validation import shorten

ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-4}
"""How far logits may be from W h + b, relative to their size; 0.03 for shorter types."""


@dataclass(frozen=True, eq=False)
class Head:
    """The layer that makes the logits.

    Attributes
    ----------
    name : str
        Its name in the network.
    module : torch.nn.Module
        ``nn.Linear``, or any module with a (K, d) weight (a 1×1 convolution included) that computes ``W h + b``.
    """

    name: str
    module: nn.Module

    @property
    def weight(self) -> Tensor:
        """W, (K, d), as the last forward pass used it: a weight-normalised head's effective weight."""
        weight = self.module.weight
        assert isinstance(weight, Tensor)
        return weight.flatten(1)

    @property
    def bias(self) -> Tensor | None:
        """b, (K,), or None."""
        bias = getattr(self.module, "bias", None)
        return bias if isinstance(bias, Tensor) else None


def find_head(model: nn.Module, head: str | nn.Module | None, inputs: Any) -> Head:
    """Return the head of a network, checked on some inputs: its output is ``W h + b``.

    Parameters
    ----------
    model : torch.nn.Module
    head : str or torch.nn.Module, optional
        By name in ``model.named_modules()``, or itself; of an ``nn.Sequential`` its last layer. Left out: the layer
        whose output is the model's output.
    inputs : Tensor, tuple or mapping
        As the model is called with.

    Raises
    ------
    CollapseError
        If there is no such layer, or it is not linear in its input.
    """
    candidates = {name: m for name, m in model.named_modules() if _has_rows(m)}
    seen, output = _observed(model, candidates, inputs)
    if head is None:
        logits = _logits(output)
        made = [Head(name, candidates[name]) for name in seen if logits is not None and _makes(seen[name], logits)]
        if not made:
            raise CollapseError(_nothing_found(model, output, candidates))
        found = made[-1]
    else:
        found = _named(model, head, candidates)
        if found.name not in seen:
            raise CollapseError(f"head={shorten(found.name)}: was not called in a forward pass; name one that is")
        out, logits = seen[found.name][1], _logits(output)
        if out.ndim > 2 and (logits is None or not _makes(seen[found.name], logits)):
            raise CollapseError(
                f"head={shorten(found.name)}: is applied at every position, output {tuple(out.shape)}, and the model "
                "does not average its logits; average the features first and measure them with measure_features"
            )
    _require_linear(found, *seen[found.name])
    return found


def forward(model: nn.Module, head: Head, inputs: Any) -> tuple[Tensor, Tensor]:
    """Run the model and return what went into the head and what came out of it, (n, d) and (n, K), with gradients.

    A head that is applied at every position gives the means over positions, which is what averaging its logits does.
    """
    seen: list[tuple[Tensor, Tensor]] = []
    hook = head.module.register_forward_hook(lambda _, args, out: seen.append((args[0], out)))
    try:
        call(model, inputs)
    finally:
        hook.remove()
    if len(seen) != 1:
        raise CollapseError(
            f"head={shorten(head.name)}: was called {len(seen)} times in one forward pass; expected once"
        )
    features, logits = seen[0]
    return _averaged(head.module, features), _averaged(head.module, logits)


def call(model: nn.Module, inputs: Any) -> Any:
    """Call the model on a tensor, on a tuple of arguments, or on a mapping of them."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple | list) else model(inputs)


def unpack(batch: Any) -> tuple[Any, Tensor]:
    """Return (inputs, labels) of a loader's batch: a pair, or a mapping with the key labels or label."""
    if isinstance(batch, Mapping):
        key = next((key for key in ("labels", "label") if key in batch), None)
        if key is None:
            raise CollapseError(f"loader: a batch has the keys {shorten(sorted(map(str, batch)))}; expected labels")
        inputs: Any = {name: value for name, value in batch.items() if name != key}
        labels = batch[key]
    elif isinstance(batch, Sequence) and not isinstance(batch, str) and len(batch) >= 2:
        inputs, labels = batch[0], batch[1]
    else:
        raise CollapseError(
            f"loader: a batch is a {type(batch).__name__}; expected a pair (inputs, labels) of tensors or a mapping "
            "with the key labels"
        )
    if not isinstance(inputs, Tensor | Mapping | tuple | list):
        raise CollapseError(
            f"loader: inputs of a batch are a {type(inputs).__name__}; expected a tensor, or a tuple or mapping of them"
        )
    try:
        classes = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError):
        raise CollapseError(f"labels={shorten(labels)}: give one class number a sample") from None
    return inputs, _class_labels(classes)


def move(inputs: Any, device: torch.device | None) -> Any:
    """Return inputs with every tensor in them on the device."""
    if isinstance(inputs, Tensor):
        return inputs.to(device)
    if isinstance(inputs, Mapping):
        return {key: move(value, device) for key, value in inputs.items()}
    if isinstance(inputs, tuple | list):
        return tuple(move(value, device) for value in inputs)
    return inputs


def _class_labels(labels: Tensor) -> Tensor:
    if labels.ndim == 2 and labels.shape[1] > 1:
        one_hot = bool(((labels == 0) | (labels == 1)).all() and (labels.sum(dim=1) == 1).all())
        what, remedy = ("one-hot rows", "") if one_hot else ("several labels a sample", "a single class a sample, ")
        raise CollapseError(
            f"labels: shape {tuple(labels.shape)}, {what}; the theory is about one class a sample: give {remedy}"
            "class numbers, e.g. labels.argmax(dim=1)"
        )
    return labels


def _has_rows(module: nn.Module) -> bool:
    """Whether a module has a weight with one row a class: a matrix, or a convolution over single positions."""
    weight = getattr(module, "weight", None)
    if isinstance(module, nn.Embedding) or not isinstance(weight, Tensor):
        return False
    return weight.ndim == 2 or (weight.ndim > 2 and _is_convolution(module) and weight[0, 0].numel() == 1)


def _is_convolution(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) and module.groups == 1


def _observed(
    model: nn.Module, modules: Mapping[str, nn.Module], inputs: Any
) -> tuple[dict[str, tuple[Tensor, Tensor]], Any]:
    """Inputs and outputs of the modules in one forward pass, in the order of calls, and the model's output."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def watch(name: str, module: nn.Module) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], out: Any) -> None:
            if args and isinstance(args[0], Tensor) and isinstance(out, Tensor):
                seen.pop(name, None)
                seen[name] = (args[0], out)

        return module.register_forward_hook(hook)

    modes = {module: module.training for module in model.modules()}
    hooks = [watch(name, module) for name, module in modules.items()]
    model.eval()
    try:
        with torch.no_grad():
            output = call(model, inputs)
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes.items():
            module.training = mode
    return seen, output


def _logits(output: Any) -> Tensor | None:
    """The logits in whatever a model returns: a tensor, `.logits`, the key logits, the first matrix of a tuple."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        output = output.get("logits")
    elif hasattr(output, "logits"):
        output = output.logits
    elif isinstance(output, tuple | list):
        output = next((one for one in output if isinstance(one, Tensor) and one.ndim == 2), None)
    return output if isinstance(output, Tensor) else None


def _makes(observed: tuple[Tensor, Tensor], logits: Tensor) -> bool:
    """Whether a layer's output is the logits, as it stands or averaged over positions."""
    out = observed[1]
    if out is logits and out.ndim == 2:
        return True
    if logits.ndim != 2 or out.shape[0] != logits.shape[0] or out.ndim < 2:
        return False
    candidates = [out.flatten(2).mean(dim=2)] if out.ndim > 2 else [out]
    if out.ndim == 3:
        candidates.append(out.mean(dim=1))
    return any(_close(one, logits) for one in candidates if one.shape == logits.shape)


def _close(a: Tensor, b: Tensor) -> bool:
    a, b = a.double(), b.double()
    scale = float(b.abs().max()) if b.numel() else 0.0
    return bool((a - b).abs().max() <= 1e-6 * scale) if a.numel() else True


def _named(model: nn.Module, head: str | nn.Module, candidates: Mapping[str, nn.Module]) -> Head:
    modules = dict(model.named_modules())
    if isinstance(head, str):
        name, layer = head, modules.get(head)
    else:
        name, layer = next(((name, m) for name, m in modules.items() if m is head), ("", None))
    if layer is None:
        what = "is" if isinstance(head, str) else f"a {type(head).__name__}, is"
        raise CollapseError(f"head={shorten(head)}: {what} no module of the model; name one of {_listed(candidates)}")
    if isinstance(layer, nn.Sequential) and len(layer) and _has_rows(layer[-1]):
        name, layer = f"{name}.{len(layer) - 1}", layer[-1]
    if not _has_rows(layer):
        raise CollapseError(
            f"head={shorten(head)}: is a {type(layer).__name__}, which has no weight of one row a class; name one of "
            f"{_listed(candidates)}"
        )
    return Head(name, layer)


def _require_linear(head: Head, features: Tensor, logits: Tensor) -> None:
    """The theory is about W h + b: what scales, normalises or squashes is refused by name."""
    name, kind = shorten(head.name), type(head.module).__name__
    weight = head.weight
    if weight.shape[0] == 1:
        raise CollapseError(
            f"head={name}: a single logit; the theory is about one logit a class: use two, nn.Linear(d, 2), and the "
            "labels 0 and 1"
        )
    x, z = (_averaged(head.module, t).double() for t in (features, logits))
    if x.ndim != 2 or z.ndim != 2 or x.shape[1] != weight.shape[1] or z.shape[1] != weight.shape[0]:
        raise CollapseError(
            f"head={name}: maps {tuple(features.shape)} to {tuple(logits.shape)} with a weight {tuple(weight.shape)}; "
            "expected (n, d) to (n, K)"
        )
    W = weight.detach().double()
    b = 0.0 if head.bias is None else head.bias.detach().double()
    if not z.numel() or not torch.isfinite(z).all():
        return  # nothing to compare; or a sample or the head is at fault, and will be named
    if _deviation(x @ W.T + b, z) <= ROUNDING.get(logits.dtype, 0.03):
        return
    cosines = nn.functional.normalize(x, dim=1) @ nn.functional.normalize(W, dim=1).T
    scale = float((cosines * z).sum() / cosines.square().sum()) if bool(cosines.any()) else 0.0
    is_cosine = _deviation(scale * cosines, z) <= 1e-3
    what = "a cosine head: it normalises features and weights" if is_cosine else "its output is not W h + b"
    raise CollapseError(
        f"head={name}: a {kind}, {what}; the theory is about linear heads, so use nn.Linear or measure its inputs with "
        "measure_features"
    )


def _deviation(a: Tensor, b: Tensor) -> float:
    scale = float(b.abs().max()) or 1.0
    return float((a - b).abs().max()) / scale


def _averaged(module: nn.Module, values: Tensor) -> Tensor:
    """Means over positions: channels come second in a convolution, last otherwise."""
    if values.ndim <= 2:
        return values
    return values.flatten(2).mean(dim=2) if _is_convolution(module) else values.flatten(1, -2).mean(dim=1)


def _nothing_found(model: nn.Module, output: Any, candidates: Mapping[str, nn.Module]) -> str:
    if not candidates:
        return f"head=None: {type(model).__name__} has no linear layer; the theory is about linear heads"
    if _logits(output) is None:
        return f"head=None: the model returns a {type(output).__name__} without logits; name the head, one of " + (
            _listed(candidates)
        )
    return f"head=None: no nn.Linear makes the model's output; name it, one of {_listed(candidates)}"


def _listed(candidates: Mapping[str, nn.Module], most: int = 8) -> str:
    names = [shorten(name) for name in candidates]
    return ", ".join(names[-most:]) if names else "none"
