"""Measure a network, or its stored features: the same numbers that the theory predicts, class by class."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from collapsekit.errors import CollapseError
from collapsekit.geometry import Geometry
from collapsekit.losses import CrossEntropy
from collapsekit.metrics import summary
from collapsekit.metrics._metric import decision, nearest_centre, packed_head, unpacked_head
from collapsekit.metrics.batches import as_tensor, class_labels, move, unpack
from collapsekit.metrics.last_layer import evaluating, find_head, forward
from collapsekit.metrics.losses import sample_losses
from collapsekit.metrics.moments import LARGEST_SCATTER_BYTES, ClassMoments
from collapsekit.prediction import Prediction
from collapsekit.problem import UFM
from collapsekit.validation import Array, class_names, whole_number

PLAIN = CrossEntropy()
LARGEST_KEPT_BYTES = 128 * 1024**2


class Sample(NamedTuple):
    """A batch: features (n, d), labels (n,), logits (n, K) if the network has computed them, and what to call it."""

    features: Tensor
    labels: Tensor
    logits: Tensor | None = None
    place: str = ""


@dataclass(frozen=True, eq=False, repr=False)
class Measurement:
    """A trained last layer as measured on its training samples.

    Attributes
    ----------
    moments : ClassMoments
        Counts, means and scatter of the features.
    weight : Tensor, shape (K, d), or None
        Head, float64.
    bias : Tensor, shape (K,), or None
        Its bias.
    confidences : ndarray, shape (K,), or None
        Mean softmax probability of the target, by class; NaN for classes without samples. None without a head.
    losses : ndarray, shape (K,), or None
        Mean loss (nats), by class.
    recalls : ndarray, shape (K,), or None
        Share of samples that the network assigns to their class.
    centre_agreement : ndarray, shape (K,), or None
        Share of samples whose nearest class mean names the class that the network names.
    names : tuple of str, or None
        Class names.
    nonnegative : bool or None
        Whether all features are at least 0, as they are when they leave a ReLU.
    loss : CrossEntropy
        The loss that `losses` are of.
    """

    moments: ClassMoments
    weight: Tensor | None = None
    bias: Tensor | None = None
    confidences: Array | None = None
    losses: Array | None = None
    recalls: Array | None = None
    centre_agreement: Array | None = None
    names: tuple[str, ...] | None = None
    nonnegative: bool | None = None
    loss: CrossEntropy = PLAIN

    @property
    def counts(self) -> Array:
        """Samples of each class, (K,)."""
        return _array(self.moments.counts)

    @property
    def margins(self) -> Array:
        """Mean target logit minus the mean of the others, with bias, (K,); NaN without a head."""
        vectors = self.per_class()
        return vectors.get("margin", np.full(self.moments.num_classes, np.nan))

    def geometry(self) -> Geometry:
        """Return the Gram matrices of class means and head; NaN for classes without samples.

        Raises
        ------
        CollapseError
            If there is no head.
        """
        if self.weight is None:
            raise CollapseError("weight=None: a geometry needs the head; measure with weight=")
        means, W = _array(self.moments.means), _array(self.weight)
        return Geometry(
            means @ means.T,
            W @ W.T,
            W @ means.T,
            self.counts,
            within=_array(self.moments.within),
            names=self.names,
        )

    def metrics(self, frame: Prediction | None = None) -> dict[str, float]:
        """Return the scalar metrics, those against `frame` included if one is given."""
        result = summary.scalars(self.moments, self.weight, frame)
        for key, values in (("ncc", self.centre_agreement), ("train_accuracy", self.recalls)):
            if values is not None:
                seen = self.counts > 0
                result[key] = float(self.counts[seen] @ values[seen] / self.counts.sum())
        return result

    def per_class(self) -> dict[str, Array]:
        """Return what is known of each class, (K,) by key."""
        result = {key: _array(value) for key, value in summary.vectors(self.moments, self.weight, self.bias).items()}
        own = {
            "confidence": self.confidences,
            "loss": self.losses,
            "recall": self.recalls,
            "ncc": self.centre_agreement,
        }
        return result | {key: value for key, value in own.items() if value is not None}

    def objective(self, problem: UFM) -> float:
        """Return the training objective of `problem` at this network, over its N samples and not just its means.

        Raises
        ------
        CollapseError
            If there is no head, or the problem has other counts.
        """
        if self.weight is None or self.losses is None:
            raise CollapseError("weight=None: the objective needs the head; measure with weight=")
        if not np.array_equal(problem.counts, self.counts):
            raise CollapseError("problem: its counts are not those measured; build it from measured.counts")
        if problem.loss != self.loss:
            raise CollapseError(f"problem: its loss is {problem.loss}, measured {self.loss}; measure with loss=")
        means = _array(self.moments.means)
        second_moments = (means**2).sum(axis=1) + _array(self.moments.within)
        bias = np.zeros(1) if self.bias is None else _array(self.bias)
        penalties = (
            problem.lambda_w * float(self.weight.square().sum())
            + (problem.lambda_h * problem.counts) @ second_moments
            + problem.bias_penalty * (bias @ bias)
        )
        return float(problem.loss_weights @ self.losses + 0.5 * penalties)

    def to_dict(self) -> dict[str, Any]:
        """Return metrics and per-class vectors as plain numbers and lists, with the schema version."""
        return {
            "schema": 1,
            "names": None if self.names is None else list(self.names),
            "unseen": self.moments.unseen,
            "singletons": self.moments.singletons,
            "nonnegative": self.nonnegative,
            "metrics": self.metrics(),
            "per_class": {key: value.tolist() for key, value in self.per_class().items()},
        }

    def __repr__(self) -> str:
        head = "no head" if self.weight is None else ("head" if self.bias is None else "head with bias")
        unseen = f", unseen classes {self.moments.unseen}" if self.moments.unseen else ""
        return f"Measurement({self.moments!r}, {head}{unseen})"


def measure_features(
    features: ArrayLike | Tensor,
    labels: ArrayLike | Tensor,
    weight: ArrayLike | Tensor | None = None,
    bias: ArrayLike | Tensor | None = None,
    *,
    num_classes: int | None = None,
    names: Sequence[str] | None = None,
    loss: CrossEntropy = PLAIN,
) -> Measurement:
    """Measure stored last-layer features.

    Parameters
    ----------
    features : array_like or Tensor, shape (N, d)
        Inputs of the head, any floating dtype.
    labels : array_like or Tensor, shape (N,)
        Any integer dtype, in [0, K).
    weight : array_like or Tensor, shape (K, d), optional
        Head, row k for class k.
    bias : array_like or Tensor, shape (K,), optional
        Its bias.
    num_classes : int, optional
        K; by default the rows of `weight`, else the largest label plus one.
    names : sequence of str, optional
        K class names.
    loss : CrossEntropy
        The training loss, for :meth:`Measurement.objective`.

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
    x, y = as_tensor("features", features), class_labels(labels)
    if x.ndim != 2:
        raise CollapseError(f"features: shape {tuple(x.shape)}; expected (N, d)")
    if len(x) == 0:
        raise CollapseError("features: no samples; give at least one")
    W = None if weight is None else as_tensor("weight", weight)
    b = None if bias is None else as_tensor("bias", bias)
    if W is None and b is not None:
        raise CollapseError("bias: given without weight; pass both of the head")
    if W is not None and W.ndim != 2:
        raise CollapseError(f"weight: shape {tuple(W.shape)}; expected (K, {x.shape[1]}), one row a class")
    if num_classes is None:
        num_classes = _largest_label(y) + 1 if W is None else len(W)
    num_classes = whole_number("num_classes", num_classes, 2, "give at least two classes")
    return _measure(lambda: [Sample(x, y)], W, b, names, (num_classes, x.shape[1]), loss, once=False)


def measure(
    model: nn.Module,
    loader: Iterable[Any],
    head: str | nn.Module | None = None,
    *,
    device: torch.device | str | None = None,
    names: Sequence[str] | None = None,
    loss: CrossEntropy = PLAIN,
) -> Measurement:
    """Measure any network whose last layer is linear, by hooking that layer.

    The model is run in eval mode without gradients, and put back as it was. Nearest centres need every feature again
    once the moments are known: up to 128 MB of them are kept, beyond that a second pass is made. A loader that can be
    iterated only once gets one pass, and the measurement no `centre_agreement`.

    Parameters
    ----------
    model : torch.nn.Module
        Called as ``model(inputs)``, ``model(*inputs)`` for a tuple, ``model(**inputs)`` for a mapping.
    loader : iterable
        Batches ``(inputs, labels)`` or mappings with the key ``labels``, in any order, with the transforms of training.
    head : str or torch.nn.Module, optional
        The linear layer that makes the logits, by name in ``model.named_modules()`` or itself; by default the
        layer whose output is the model's output.
    device : torch.device or str, optional
        Where to run; by default where the model's parameters are.
    names : sequence of str, optional
        K class names.
    loss : CrossEntropy
        The training loss, for :meth:`Measurement.objective`.

    Returns
    -------
    Measurement

    Raises
    ------
    CollapseError
        If the head cannot be found or is not linear (a cosine head, a single logit), the loader is empty, or labels do
        not fit; the batch is named.

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
    once = iter(loader) is loader
    with evaluating(model), torch.no_grad():
        batches = iter(loader)
        first = next(batches, None)
        if first is None:
            raise CollapseError("loader: no batches; give at least one sample")
        with _placed("batch 0: "):
            inputs, _ = unpack(first)
        found = find_head(model, head, move(inputs, device))

        def samples() -> Iterator[Sample]:
            for i, batch in enumerate(chain([first], batches) if once else loader):
                with _placed(f"batch {i}: "):
                    inputs, labels = unpack(batch)
                    features, logits = forward(model, found, move(inputs, device))
                yield Sample(features, labels, logits, f"batch {i}: ")

        shape = tuple(found.weight.shape)
        every = samples if once else _kept_while_small(samples)
        return _measure(every, found.weight, found.bias, names, (shape[0], shape[1]), loss, once)


def _kept_while_small(samples: Callable[[], Iterator[Sample]]) -> Callable[[], Iterator[Sample]]:
    """The same samples; a second pass over them comes from memory if the first one was small."""
    kept: list[Sample] = []
    complete = False

    def remembering() -> Iterator[Sample]:
        nonlocal complete
        if complete:
            yield from kept
            return
        size = 0
        for sample in samples():
            size += sample.features.nbytes
            if size <= LARGEST_KEPT_BYTES:  # copies: a loader may fill the same buffers again
                kept.append(Sample(sample.features.clone(), sample.labels.clone()))
            else:
                kept.clear()
            yield sample
        complete = size <= LARGEST_KEPT_BYTES

    return remembering


def _measure(
    samples: Callable[[], Iterable[Sample]],
    weight: Tensor | None,
    bias: Tensor | None,
    names: Sequence[str] | None,
    shape: tuple[int, int],
    loss: CrossEntropy,
    once: bool,
) -> Measurement:
    """Run the first pass, and the second one unless samples can be had only once."""
    num_classes, dim = shape
    moments = ClassMoments(num_classes, dim, scatter=8 * dim**2 <= LARGEST_SCATTER_BYTES)
    checked_names = class_names(names, num_classes)
    if weight is None:
        least = min(_added(moments, sample) for sample in samples())
        return Measurement(moments, names=checked_names, nonnegative=least >= 0)
    W, b = unpacked_head(packed_head(weight, bias, num_classes, dim).cpu())
    assert W is not None
    sums, least = torch.zeros(3, num_classes, dtype=torch.float64), float("inf")
    for sample in samples():
        least = min(least, _added(moments, sample))
        x, y = sample.features.cpu().double(), sample.labels.cpu().long()
        z = nn.functional.linear(x, W, b) if sample.logits is None else sample.logits.cpu().double()
        own = nn.functional.cross_entropy(z, y, reduction="none")
        losses = own if loss == PLAIN else sample_losses(z, y, loss)
        sums.index_add_(1, y, torch.stack([(-own).exp(), losses, (z.argmax(1) == y).double()]))
    counts = torch.where(moments.seen, moments.counts, torch.nan)
    confidences, mean_losses, recalls = (_array(row) for row in sums / counts)
    agreement = None
    if not once:
        agreeing = torch.zeros(num_classes, dtype=torch.float64)
        for sample in samples():
            x, y = sample.features.cpu().double(), sample.labels.cpu().long()
            agreeing.index_add_(0, y, (nearest_centre(x, moments.means) == decision(x, W, b)).double())
        agreement = _array(agreeing / counts)
    return Measurement(
        moments,
        W,
        b,
        confidences=confidences,
        losses=mean_losses,
        recalls=recalls,
        centre_agreement=agreement,
        names=checked_names,
        nonnegative=least >= 0,
        loss=loss,
    )


def _added(moments: ClassMoments, sample: Sample) -> float:
    """Add a batch, say which one is at fault if it is refused, and return its least feature."""
    with _placed(sample.place):
        moments.update(sample.features, sample.labels)
    return float(sample.features.min()) if sample.features.numel() else float("inf")


@contextmanager
def _placed(place: str) -> Iterator[None]:
    """Put the place of a mistake before its message."""
    try:
        yield
    except CollapseError as error:
        raise CollapseError(f"{place}{error}") from None


def _largest_label(labels: Tensor) -> int:
    """The largest label, at least 1; what is wrong with labels of another kind is said when they are counted."""
    if labels.numel() == 0 or labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        return 1
    return max(1, int(labels.to(torch.int64).max()))


def _array(tensor: Tensor) -> Array:
    return tensor.detach().cpu().numpy().astype(np.float64)
