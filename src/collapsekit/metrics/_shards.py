"""measure_shards: features in files, larger than the memory, on one machine or many, to the same last bit."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from collapsekit.data import read_head
from collapsekit.data.shards import shard_files
from collapsekit.errors import CollapseError
from collapsekit.losses import Loss
from collapsekit.metrics._metric import IGNORED
from collapsekit.metrics.batches import as_tensor
from collapsekit.metrics.decisions import PLAIN, checked_head
from collapsekit.metrics.last_layer import Head
from collapsekit.metrics.losses import checked_loss
from collapsekit.metrics.measurement import Measurement
from collapsekit.metrics.moments import ClassMoments, Precision, Within
from collapsekit.metrics.shard_jobs import Names, Plan, class_means, everything, survey
from collapsekit.pool import as_executor, in_order
from collapsekit.validation import Array, class_names, shorten, whole_number

AnyHead = str | os.PathLike[str] | nn.Module | Head | ArrayLike | Tensor | tuple[Any, Any] | None
Progress = Callable[[float, int], object]


def measure_shards(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    head: AnyHead = None,
    executor: Executor | Any = None,
    *,
    labels: str | None = None,
    num_classes: int | None = None,
    names: Sequence[str] | None = None,
    loss: Loss | Callable[[Array], Loss] = PLAIN,
    ignore_index: int = IGNORED,
    within: Within | None = None,
    precision: Precision = "input",
    centres: bool = True,
    progress: Progress | None = None,
) -> Measurement:
    r"""Measure features that lie in many files and need not fit into memory.

    The result is that of :func:`measure_features` on all samples together, but for rounding. Every file is one job,
    whose state, about :math:`3Kd+d^2` float64 numbers and 8 bytes a sample, joins the others in the order of the files:
    to the last bit it does not depend on which worker is done first, on the executor, nor on their number (if each
    has the same number of threads). A worker holds one block of rows of one file: 16 MiB of features and logits, and a
    few times as much of temporaries. Nearest centres need the class means first, so that all files are read twice.

    Parameters
    ----------
    paths : path or iterable of path
        Files, folders and patterns (``"features/**/*.npz"``). Of a folder the files of these kinds, by name, without
        its sub-folders. A file that is met twice counts once. Each is one of

        - ``.npz`` or ``.safetensors`` with the arrays ``features`` (N, ..., d) and ``labels`` (N, ...), or X and y;
        - ``.npy`` with its labels beside it: ``NAME_labels.npy``; or the name with ``features`` or ``embeddings``
          replaced by ``labels``, or ``X`` by ``y`` (``train_features_00.npy`` and ``train_labels_00.npy``); or
          ``labels.npy`` if one file alone needs it;
        - ``.parquet``: features in a column of lists, ``features`` or ``X``, or in all columns but that of the labels.

        Labels are numbers of the head's rows, or words that are among `names`. A file without rows counts as nothing.
    head : path, module, (K, d) array, or pair of weight and bias, optional
        The head; of a file as the command `measure` reads it (``"checkpoint.safetensors:fc"``). It is no shard even if
        it lies in the same folder.
    executor : concurrent.futures.Executor or dask.distributed.Client, optional
        Where; by default in this process. The workers must see the files under the same names. A worker that dies
        costs its file, which is read again; a ProcessPoolExecutor ends as a whole with one of its workers.
    labels : str, optional
        Name of the array or column of labels.
    num_classes : int, optional
        K, without a head; by default the number of names, else the largest label plus one, for which the labels are
        read once more.
    names : sequence of str, optional
        K class names; by default those that the files bring as the array ``names``, which must agree.
    loss : CrossEntropy, Focal, Hinge or MSE, or callable
        The training loss; or what makes it of the samples of each class, (K,).
    ignore_index : int
        The label of samples that do not count.
    within, precision
        As :func:`measure_features` takes them, but for "projected".
    centres : bool
        Whether to read all files a second time for :attr:`Measurement.centre_agreement`.
    progress : callable, optional
        ``progress(done, total)``, in files, a file that is read twice counting twice.

    Returns
    -------
    Measurement

    Raises
    ------
    CollapseError
        If a file is damaged, has another width, labels out of range or features that are not finite: the file and the
        sample are named, and nothing is returned. If the executor is lost, or a scheduler has no workers.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> folder = Path(tempfile.mkdtemp())
    >>> for i, labels in enumerate([[0, 1], [1, 2, 2]]):
    ...     np.savez(folder / f"part{i}.npz", features=np.eye(3)[labels], labels=labels)
    >>> measure_shards(folder, head=np.eye(3))
    Measurement(ClassMoments(K=3, d=3, 5 samples, scatter), head)
    """
    if not callable(loss):
        checked_loss(loss)
    if within == "projected":
        raise CollapseError(f"within={within!r}: is not kept of shards; give 'full', or 'trace', without nc1")
    pool, (weight, bias) = as_executor(executor), _head_of(head)
    files = shard_files(paths, apart=_file_of(head))
    if pool is not None:  # workers have another working folder
        files = [path.absolute() for path in files]
    first = weight is not None and (centres or callable(loss))
    run = _Run(files, pool, progress, total=len(files) * ((weight is None) + first + 1))
    given = None if names is None else class_names(names, len(names))
    plan = Plan(
        labels=labels,
        ignore_index=ignore_index,
        names=given,
        weight=weight,
        bias=bias,
        within=within,
        precision=precision,
    )
    plan = run.sized(plan, num_classes)
    moments = run.class_moments(plan) if first else None
    _require_samples(moments)
    if moments is not None:
        counts, means = moments.counts.numpy(), moments.means.numpy()
        plan = replace(plan, loss=loss(counts) if callable(loss) else loss, centres=means if centres else None)
    elif not callable(loss):
        plan = replace(plan, loss=loss)
    measured = run.measurement(plan)
    _require_samples(measured.moments)
    if moments is not None and not np.array_equal(counts, measured.counts):
        raise CollapseError("paths: files changed while they were measured; measure them again once they are complete")
    return measured


def _require_samples(moments: ClassMoments | None) -> None:
    if moments is not None and not moments.seen.any():
        raise CollapseError("paths: no samples; give at least one that counts")


class _Run:
    """Files, where they are read, and how far that is."""

    def __init__(self, files: list[Path], pool: Executor | None, progress: Progress | None, total: int) -> None:
        self.files, self.pool, self.progress, self.total, self.done = files, pool, progress, total, 0

    def sized(self, plan: Plan, num_classes: int | None) -> Plan:
        """Return the plan with K and d, and with names if the files bring them and there is no head."""
        if num_classes is not None:
            num_classes = whole_number("num_classes", num_classes, 2, "give at least two classes")
        if plan.weight is not None:
            size, dim = plan.weight.shape
            weight, bias = plan.head
            assert weight is not None
            checked_head(weight, bias, size if num_classes is None else num_classes, dim)
            return replace(plan, num_classes=size, dim=dim, names=class_names(plan.names, size))
        known = num_classes or (None if plan.names is None else len(plan.names))
        widths, largest, names = dict[int, Path](), 1, plan.names
        for path, (rows, width, label, found) in zip(
            self.files, self._each(survey, replace(plan, num_classes=known)), strict=True
        ):
            if rows:
                widths.setdefault(width, path)
            if len(widths) > 1:
                (one, other), (at, _) = widths, widths.values()
                raise CollapseError(f"shard={str(path)!r}: features: width {other}; {str(at)!r} has {one}")
            largest, names = max(largest, label), _agreeing(names, found, path)
        size = known or max(largest + 1, len(names or ()))
        return replace(plan, num_classes=size, dim=next(iter(widths), 1), names=class_names(names, size))

    def class_moments(self, plan: Plan) -> ClassMoments:
        """Return the counts and means of all files."""
        moments = ClassMoments(plan.classes, plan.dim, within="trace")
        for state in self._each(class_means, plan):
            other = ClassMoments.from_state(torch.from_numpy(state), plan.classes, plan.dim)
            moments = moments.merge(other)
        return moments

    def measurement(self, plan: Plan) -> Measurement:
        """Return what is known of the samples of all files."""
        total, names = plan.metric(), plan.names
        for path, (state, found) in zip(self.files, self._each(everything, plan), strict=True):
            total.merge_state({key: _unpacked(value) for key, value in state.items()})
            names = _agreeing(names, found, path)
        return total.measurement(names)

    def _each(self, job: Callable[..., Any], plan: Plan) -> Iterator[Any]:
        """The results of the files in their order."""
        if self.pool is None:
            results: Iterator[Any] = (job(path, plan, self._tell) for path in self.files)
        else:
            results = in_order(self.pool, job, self.files, plan, lambda path: f"shard={str(path)!r}")
        for result in results:
            self.done += 1
            self._tell(0.0)
            yield result

    def _tell(self, share: float) -> None:
        if self.progress is not None:
            self.progress(self.done + share, self.total)


def _unpacked(value: Any) -> Tensor | list[Tensor]:
    return [torch.from_numpy(part) for part in value] if isinstance(value, list) else torch.from_numpy(value)


def _agreeing(names: Names, found: Names, path: Path) -> Names:
    if names is not None and found is not None and names != found:
        raise CollapseError(
            f"shard={str(path)!r}: names: {shorten(found)} differ from {shorten(names)}; save all files with one order "
            "of the classes"
        )
    return found if names is None else names


def _file_of(head: AnyHead) -> str:
    """The name of the file that the head is read from, without its layer; empty if it is none."""
    if not isinstance(head, str | os.PathLike):
        return ""
    name = os.fspath(head)
    return name if os.path.exists(name) else name.rpartition(":")[0]


def _head_of(head: AnyHead) -> tuple[Array | None, Array | None]:
    if head is None:
        return None, None
    if isinstance(head, str | os.PathLike):
        pair: Any = read_head(os.fspath(head))
    elif isinstance(head, nn.Module | Head):
        pair = head.weight, head.bias
    else:
        pair = head if isinstance(head, tuple) and len(head) == 2 else (head, None)
    W, b = (None if part is None else as_tensor("head", part) for part in pair)
    if W is None or W.ndim != 2:
        raise CollapseError(f"head: shape {None if W is None else tuple(W.shape)}; give (K, d), one row a class")
    if len(W) == 1:  # the logit of class 1 of two, as measure_features takes it
        W, b = torch.cat([-W / 2, W / 2]), None if b is None else torch.cat([-b / 2, b / 2])
    weight, bias = (None if part is None else part.cpu().double().contiguous().numpy() for part in (W, b))
    return weight, bias
