"""What a loader yields: batches in their many forms; and a pass over it that leaves no trace."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from numbers import Integral
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, distributed, nn
from torch.nn.parameter import is_lazy
from torch.utils.data import DistributedSampler

from collapsekit.errors import CollapseError
from collapsekit.validation import shorten

GIVE = "give measure_features the features, labels, and a weight and bias that make the output of the features"
OR_ELSE = f"or {GIVE}"
COMMON = torch.float16, torch.bfloat16, torch.float32, torch.float64


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
    return inputs, as_tensor("labels", labels)


def move(inputs: Any, device: torch.device | None) -> Any:
    """Return inputs with every tensor in them on the device."""
    if isinstance(inputs, Tensor):
        return inputs.to(device)
    if isinstance(inputs, Mapping):
        return {key: move(value, device) for key, value in inputs.items()}
    if isinstance(inputs, tuple | list):
        return tuple(move(value, device) for value in inputs)
    return inputs


def as_rows(
    features: ArrayLike | Tensor, labels: ArrayLike | Tensor, logits: Tensor | None, ignore_index: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return features (n, d), labels (n,) and logits (n, K) of whatever leading shape, without those to be ignored."""
    x, y = as_tensor("features", features), as_tensor("labels", labels)
    if x.ndim < 2:
        raise CollapseError(f"features: shape {tuple(x.shape)}; expected (N, d)")
    shape, rows = tuple(y.shape), tuple(x.shape[:-1])
    if shape != rows:
        if y.ndim < 2 or x.ndim > 2 or y.is_complex():
            raise CollapseError(f"labels: shape {shape} for {' × '.join(map(str, rows))} features; expected {rows}")
        if shape[1:] == (1,):
            raise CollapseError(f"labels: shape {shape}; expected ({len(y)},): give labels.squeeze(1)")
        if y.ndim == 2 and bool(((y == 0) | (y == 1)).all() and (y.sum(dim=1) == 1).all()):
            raise CollapseError(f"labels: shape {shape}, one-hot rows; give class numbers, labels.argmax(dim=1)")
        raise CollapseError(
            f"labels: shape {shape}, several labels a sample (multi-label or soft targets); the theory is about one "
            "class a sample: give (n,) class numbers (a batch is (inputs, labels); several inputs go in a tuple of "
            "their own)"
        )
    x, y, z = x.flatten(0, -2), y.flatten(), None if logits is None else logits.flatten(0, -2)
    kept = y != ignore_index
    if bool(kept.all()):
        return x, y, z
    return x[kept.to(x.device)], y[kept], None if z is None else z[kept.to(z.device)]


def as_tensor(name: str, value: ArrayLike | Tensor) -> Tensor:
    """Return a detached tensor, of class numbers in int64, or say what `value` should be."""
    if isinstance(value, Tensor):
        return _wide(name, value.detach())
    try:
        array = np.asarray(value)
        kind, size = array.dtype.kind, array.dtype.itemsize
        if kind == "V" or (kind == "f" and size > 8):  # bfloat16 as ml_dtypes has it; long double
            array = array.astype(np.float64)
        # torch shares memory with neither foreign bytes, negative strides nor what is read-only
        return _wide(name, torch.as_tensor(np.require(array, array.dtype.newbyteorder("="), ["C", "W"])))
    except (TypeError, ValueError):
        what = "one class number a sample" if name == "labels" else "an array of numbers"
        raise CollapseError(f"{name}={shorten(value)}: give {what}") from None


def _wide(name: str, value: Tensor) -> Tensor:
    """Class numbers of few bits in int64: compared with an 8-bit 156, −100 is the same number."""
    whole = not (value.is_floating_point() or value.is_complex() or value.dtype == torch.bool)
    return value.long() if name == "labels" and whole else value


def label_number(name: str, value: object) -> int:
    """Return a label as an int, of either sign."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise CollapseError(f"{name}={shorten(value)}: give a whole number, e.g. -100")
    return int(value)


def one_of(name: str, value: object, words: object) -> None:
    """Refuse a value that is not among the words of a Literal type."""
    if value not in get_args(words):
        raise CollapseError(f"{name}={shorten(value)}: give one of {', '.join(map(repr, get_args(words)))}")


def checked_batch(
    features: Tensor, labels: Tensor, num_classes: int, dim: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return features (n, d) in their own precision and labels as int64 (n,) on `device`, or say what is wrong."""
    x, y = as_tensor("features", features), as_tensor("labels", labels)
    if not x.is_floating_point():
        raise CollapseError(f"features: dtype {x.dtype}; give floating point numbers")
    if x.ndim != 2 or x.shape[1] != dim:
        raise CollapseError(f"features: shape {tuple(x.shape)}; expected (n, {dim})")
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise CollapseError(f"labels: dtype {y.dtype}; give integers from 0 to {num_classes - 1}")
    if y.shape != x.shape[:1]:
        raise CollapseError(f"labels: shape {tuple(y.shape)} for {len(x)} features; expected ({len(x)},)")
    y = y.detach().to(device).to(torch.int64)
    bad = torch.nonzero((y < 0) | (y >= num_classes)).flatten()
    if len(bad):
        i = int(bad[0])
        raise CollapseError(f"labels: sample {i} has label {int(y[i])}; expected 0 to {num_classes - 1}")
    x = x.detach().to(device)
    return (x if x.dtype in COMMON else x.to(torch.float32)), y  # of eight bits, which hardly anything computes in


def require_finite(features: Tensor) -> None:
    """Name the first sample that is not finite, if there is one."""
    if not len(features) or bool(torch.isfinite(torch.stack(torch.aminmax(features))).all()):
        return
    bad = torch.nonzero(~torch.isfinite(features).all(dim=1)).flatten()
    i = int(bad[0])
    value = features[i][~torch.isfinite(features[i])][0].item()
    raise CollapseError(f"features: sample {i} holds {value}; {len(bad)} of {len(features)} samples are not finite")


@contextmanager
def unchanged(model: nn.Module, loader: Iterable[Any]) -> Iterator[Callable[[], None]]:
    """Evaluate without gradients; then put back modes, buffers, random states, and an epoch that is under way.

    Gives a function that takes the random states back to the beginning, so that a second pass is like the first.
    """
    buffers = [
        (module, name, value, value.clone())
        for module in model.modules()
        for name, value in module._buffers.items()
        if value is not None and not is_lazy(value)
    ]
    workers = getattr(loader, "_iterator", None)  # persistent ones: an epoch of theirs may be under way
    if workers is not None:
        loader._iterator = None  # type: ignore[attr-defined]
    restoring = list(_random_states(loader))

    def rewind() -> None:
        for restore in restoring:
            restore()

    try:
        with evaluating(model), torch.no_grad():
            yield rewind
    finally:
        rewind()
        if hasattr(loader, "_iterator"):
            loader._iterator = workers
        with torch.no_grad():
            for module, name, value, kept in buffers:
                if not torch.equal(value, kept):
                    value.copy_(kept)
                module._buffers[name] = value


def _random_states(loader: Any) -> Iterator[Callable[[], object]]:
    """How to put back each random state that a pass may use: the global ones, and those of the loader's parts."""
    yield partial(torch.set_rng_state, torch.get_rng_state())
    yield partial(np.random.set_state, np.random.get_state())  # noqa: NPY002  (the global state that transforms draw from)
    yield partial(random.setstate, random.getstate())
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        yield partial(torch.cuda.set_rng_state_all, torch.cuda.get_rng_state_all())
    samplers = [getattr(loader, name, None) for name in ("sampler", "batch_sampler", "dataset")]
    for part in (loader, *samplers, getattr(samplers[1], "sampler", None)):
        for value in getattr(part, "__dict__", {}).values():
            if isinstance(value, torch.Generator | np.random.RandomState):
                yield partial(value.set_state, value.get_state())  # type: ignore[arg-type]
            elif isinstance(value, np.random.Generator):
                yield partial(setattr, value.bit_generator, "state", value.bit_generator.state)
            elif isinstance(value, random.Random):
                yield partial(value.setstate, value.getstate())


def several_processes() -> bool:
    """Return whether this is one of several processes of torch.distributed."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def own_samples(loader: Any) -> int | None:
    """Return how many of the loader's samples, the first ones, this process has to count; None: all.

    A sampler for several processes repeats samples at its end, so that each process gets equally many.

    Raises
    ------
    CollapseError
        If it is one of several processes and cannot tell which samples are its own.
    """
    if not several_processes():
        return None
    sampler = getattr(getattr(loader, "batch_sampler", None), "sampler", getattr(loader, "sampler", None))
    world = distributed.get_world_size()
    if type(sampler) is not DistributedSampler or sampler.num_replicas != world:
        raise CollapseError(
            f"loader: one of {world} processes cannot tell its own samples from those of the others; give each a "
            "DataLoader with sampler=torch.utils.data.DistributedSampler(dataset)"
        )
    if sampler.drop_last:
        return None
    return max(0, -((sampler.rank - len(sampler.dataset)) // world))  # type: ignore[arg-type]


def call(model: nn.Module, inputs: Any) -> Any:
    """Call the model on a tensor, on a tuple of arguments, or on a mapping of them; a compiled one without its code."""
    # compiled code calls no hooks; without torch._dynamo, which takes a second to import, nothing is compiled
    with torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext():
        if isinstance(inputs, Mapping):
            return model(**inputs)
        return model(*inputs) if isinstance(inputs, tuple | list) else model(inputs)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every submodule in eval mode, and each back in its own mode afterwards."""
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
    except NotImplementedError:  # what torch.export makes has neither modes nor layers
        raise CollapseError(
            f"model: an exported {type(model).__name__}, without modes; measure the model it was made from, {OR_ELSE}"
        ) from None
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
