"""A pass over a loader that leaves no trace: modes, buffers, random states; the shards of several processes."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import distributed, nn
from torch.nn.parameter import is_lazy
from torch.utils.data import DistributedSampler

from collapsekit.errors import CollapseError
from collapsekit.metrics.last_layer import evaluating


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
