"""Measure a network, or its stored features: the same numbers that the theory predicts, class by class."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from collapsekit.errors import CollapseError
from collapsekit.losses import Loss
from collapsekit.metrics._metric import IGNORED, NeuralCollapse
from collapsekit.metrics.batches import as_tensor, move, own_samples, several_processes, unchanged, unpack
from collapsekit.metrics.decisions import PLAIN
from collapsekit.metrics.last_layer import Head, find_head, forward
from collapsekit.metrics.losses import checked_loss
from collapsekit.metrics.measurement import Measurement
from collapsekit.metrics.moments import LARGEST_SCATTER_BYTES, Precision, Within
from collapsekit.validation import class_names, shorten, whole_number

LARGEST_KEPT_BYTES = 128 * 1024**2


Sample = tuple[str, Tensor, Tensor, Tensor | None]
"""A batch: what to call it, features (..., d), labels (...), and logits (..., K) if the network has made them."""


def measure_features(
    features: ArrayLike | Tensor,
    labels: ArrayLike | Tensor,
    weight: ArrayLike | Tensor | None = None,
    bias: ArrayLike | Tensor | None = None,
    *,
    num_classes: int | None = None,
    names: Sequence[str] | None = None,
    loss: Loss = PLAIN,
    ignore_index: int = IGNORED,
    within: Within | None = None,
    precision: Precision = "input",
) -> Measurement:
    """Measure stored last-layer features.

    Parameters
    ----------
    features : array_like or Tensor, shape (..., d)
        Inputs of the head, any floating dtype; every position (a token, a pixel) is a sample.
    labels : array_like or Tensor, shape (...)
        Any integer dtype, in [0, K), or `ignore_index`. Or strings: class names, in the order of `names`, else in the
        order in which they are first met.
    weight : array_like or Tensor, shape (K, d), optional
        Head, row k for class k. One row, (1, d), is the logit of class 1 of two, as scikit-learn stores a binary
        model: it stands for the rows −w/2 and w/2.
    bias : array_like or Tensor, shape (K,), optional
        Its bias.
    num_classes : int, optional
        K; by default the rows of `weight`, else the largest label plus one.
    names : sequence of str, optional
        K class names.
    loss : CrossEntropy, Focal, Hinge or MSE
        The training loss, for :meth:`Measurement.objective`.
    ignore_index : int
        The label of samples that do not count.
    within, precision
        As :class:`ClassMoments` takes them. By default all of the scatter is kept up to 16,384 dimensions, above its
        trace. "projected" takes a second pass over the samples, as nearest centres do, and gives the same NC1.

    Returns
    -------
    Measurement

    Raises
    ------
    CollapseError
        If shapes, types or values do not fit; a non-finite feature is named by its sample.

    Examples
    --------
    >>> import numpy as np
    >>> measured = measure_features(np.array([[1.0, 0.0], [0.0, 2.0]]), [0, 1], weight=np.eye(2))
    >>> measured
    Measurement(ClassMoments(K=2, d=2, 2 samples, scatter), head)
    >>> measured.confidences.round(4)
    array([0.7311, 0.8808])
    """
    checked_loss(loss)
    x = as_tensor("features", features)
    if x.ndim < 2:
        raise CollapseError(f"features: shape {tuple(x.shape)}; expected (N, d)")
    if not x.numel():
        raise CollapseError("features: no samples; give at least one")
    W = None if weight is None else as_tensor("weight", weight)
    b = None if bias is None else as_tensor("bias", bias)
    if W is not None and W.ndim != 2:
        raise CollapseError(f"weight: shape {tuple(W.shape)}; expected (K, {x.shape[-1]}), one row a class")
    if W is not None and len(W) == 1:
        W, b = (None if row is None else torch.cat([-row / 2, row / 2]) for row in (W, b))
    y, names = _numbered(labels, names, None if W is None else len(W))
    if num_classes is None:
        whole = y.numel() and not (y.is_floating_point() or y.is_complex())
        num_classes = max(int(y.long().max()) + 1 if whole else 2, len(names or ()), 2) if W is None else len(W)
    num_classes = whole_number("num_classes", num_classes, 2, "give at least two classes")
    return _measured(
        lambda: [("", x, y, None)],
        (num_classes, x.shape[-1]),
        (W, b),
        names,
        loss,
        ignore_index,
        within=within,
        precision=precision,
        held=True,
    )


def measure(
    model: nn.Module,
    loader: Iterable[Any],
    head: str | nn.Module | Head | None = None,
    *,
    device: torch.device | str | None = None,
    names: Sequence[str] | None = None,
    loss: Loss = PLAIN,
    ignore_index: int = IGNORED,
    within: Within | None = None,
    precision: Precision = "input",
) -> Measurement:
    """Measure any network whose last layer is linear, by hooking that layer.

    The model is run in eval mode without gradients. Measuring changes nothing: the modes and buffers of the model, the
    random states and the order of the loader's next epoch are as without it. Nearest centres need every feature again
    once the moments are known: up to 128 MB of them are kept, beyond that a second pass is made. A loader that can be
    iterated only once gets one pass, and the measurement no `centre_agreement`.

    In several processes of ``torch.distributed`` give each a ``DataLoader`` with a ``DistributedSampler``, and call
    this in all of them: all get the measurement of the whole, the samples that the sampler repeats counted once.

    Parameters
    ----------
    model : torch.nn.Module
        Called as ``model(inputs)``, ``model(*inputs)`` for a tuple, ``model(**inputs)`` for a mapping.
    loader : iterable
        Batches ``(inputs, labels)`` or mappings with the key ``labels``, in any order, with the transforms of training.
        Where the model makes logits at every position (token, pixel), labels (n, ...) of the positions.
    head : str, torch.nn.Module or Head, optional
        The linear layer that makes the logits, by name in ``model.named_modules()`` or itself, or what `find_head` has
        found; by default the layer whose output is the model's output.
    device : torch.device or str, optional
        Where to run; by default where the model's parameters are.
    names : sequence of str, optional
        K class names.
    loss : CrossEntropy, Focal, Hinge or MSE
        The training loss, for :meth:`Measurement.objective`.
    ignore_index : int
        The label of samples that do not count.
    within, precision
        As :class:`ClassMoments` takes them. By default all of the scatter is kept up to 16,384 dimensions, above its
        trace. "projected" takes a second pass over the samples, as nearest centres do, and gives the same NC1.

    Returns
    -------
    Measurement

    Raises
    ------
    CollapseError
        If the head cannot be found, is not linear (a cosine head, a single logit) or does not make the model's output,
        the loader is empty, or labels do not fit; the batch is named.

    Examples
    --------
    >>> import torch
    >>> _ = torch.manual_seed(0)
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3, bias=False))
    >>> batches = [(torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 0]))]
    >>> measure(model, batches)
    Measurement(ClassMoments(K=3, d=8, 6 samples, scatter), head)
    """
    device = torch.device(device) if device is not None else next((p.device for p in model.parameters()), None)
    own = own_samples(loader)
    with unchanged(model, loader) as rewind:
        batches = iter(loader)
        once, first = batches is loader, next(batches, None)
        if first is None:
            raise CollapseError("loader: no batches; give at least one sample")
        with _placed("batch 0: "):
            inputs, _ = unpack(first)
        found = head if isinstance(head, Head) else find_head(model, head, move(inputs, device))

        def samples() -> Iterator[Sample]:
            seen = 0
            if not once:
                rewind()
            for i, batch in enumerate(chain([first], batches) if once else loader):
                with _placed(f"batch {i}: "):
                    inputs, labels = unpack(batch)
                    features, logits = forward(model, found, move(inputs, device), positions=labels.ndim > 1)
                left = None if own is None else max(0, own - seen)
                seen += len(features)
                # copies: a loader may fill the same buffers again
                yield f"batch {i}: ", features[:left].clone(), labels[:left].clone(), logits[:left].clone()

        return _measured(
            samples,
            found.weight.shape,
            (found.weight, found.bias),
            names,
            loss,
            ignore_index,
            within=within,
            precision=precision,
            once=once,
            several=several_processes(),
            device=device,
        )


def _measured(
    samples: Callable[[], Iterable[Sample]],
    shape: Sequence[int],
    head: tuple[Tensor | None, Tensor | None],
    names: Sequence[str] | None,
    loss: Loss,
    ignore_index: int,
    *,
    within: Within | None,
    precision: Precision,
    held: bool = False,
    once: bool = False,
    several: bool = False,
    device: torch.device | None = None,
) -> Measurement:
    """Run the first pass, and the one for the nearest centres if there is a head and samples can be had again."""
    num_classes, dim = shape
    if within is None:
        within = "full" if 8 * dim**2 <= LARGEST_SCATTER_BYTES else "trace"
    metric = NeuralCollapse(
        num_classes,
        dim,
        within=within,
        precision=precision,
        loss=loss,
        ignore_index=ignore_index,
        sync_on_compute=several,
    )
    if several:
        metric.to(device)  # where the processes can exchange it
    checked_names = class_names(names, num_classes)
    known = metric._head(*head)
    kept: list[tuple[Tensor, Tensor, Tensor | None]] = []
    size, most = 0.0, math.inf if held else LARGEST_KEPT_BYTES
    for place, x, y, z in samples():
        with _placed(place):
            added = metric._add(x, y, known, z)
        size += sum(part.nbytes for part in added if part is not None)
        if size <= most:
            kept.append(added)
        else:
            kept.clear()
    if known is not None:
        metric._keep_head(*known)
    if not once and (known is not None or within == "projected"):
        metric.use_centres()
        if size <= most:
            metric._count_all(kept)
        else:
            for place, x, y, z in samples():
                with _placed(place):
                    metric._add(x, y, known, z)
        metric.centres = metric.centres.new_empty(0, dim)  # of no use any more, and as large as the means
    with metric._all_ranks():
        return metric._measurement(checked_names, copy=False)


@contextmanager
def _placed(place: str) -> Iterator[None]:
    """Put the place of a mistake before its message."""
    try:
        yield
    except CollapseError as error:
        raise CollapseError(f"{place}{error}") from None


def _numbered(
    labels: ArrayLike | Tensor, names: Sequence[str] | None, rows: int | None
) -> tuple[Tensor, Sequence[str] | None]:
    """Labels as numbers; of strings by the order of `names`, else by the order in which they are first met."""
    array = None if isinstance(labels, Tensor) else np.asarray(labels)
    if array is None or not (
        array.dtype.kind == "U" or (array.size and all(isinstance(one, str) for one in array.flat))
    ):
        return as_tensor("labels", labels), names
    found = list(dict.fromkeys(array.ravel().tolist()))
    order = found if names is None else list(class_names(names, len(names)) or ())
    unknown = [name for name in found if name not in order]
    if unknown or (names is None and rows not in (None, len(found))):
        raise CollapseError(
            f"labels: {shorten(unknown[0])} is not among names; give names=, in the order of the head's rows"
            if unknown
            else f"labels: {len(found)} names for {rows} rows of the head; give names=, in the order of those rows"
        )
    number = {name: k for k, name in enumerate(order)}
    return torch.tensor([number[name] for name in array.ravel().tolist()]).reshape(array.shape), order
