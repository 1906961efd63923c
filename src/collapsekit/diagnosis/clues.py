"""What the causes rest on: of each network a few numbers, each of which tells two causes apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from collapsekit.diagnosis.samples import Samples, class_means, coinciding, confusions, reordered, straying, told_apart
from collapsekit.errors import CollapseError
from collapsekit.losses import MSE
from collapsekit.metrics import Measurement
from collapsekit.metrics.losses import sample_losses
from collapsekit.metrics.measurement import as_array
from collapsekit.prediction import Prediction
from collapsekit.prediction._fates import confidence_decides
from collapsekit.validation import Array, numeric, shorten

REFITS, SETTLED = 30, 1e-3
"""Steps of iterative scaling for the bias, each of which moves a class's share of the output to its share of the data;
they end where none is off by more than the second."""
MOST_TOLD_APART = 200
"""Classes for which a pair is told apart: a fraction of a second each."""
SMALLEST = 1e-30
"""Squares below which head, force or features are nothing."""
CONSTANT = 1e-6
"""Share of the features' mean square around their mean up to which they are all the same."""
VARIES = 1e-6
"""Spread of a feature, relative to the largest, from which it is not the same for all samples."""
WITHIN = 0.05
"""Mean square of a class's features around their mean, relative to that of all, up to which class means stand for
samples."""


@dataclass(frozen=True, eq=False)
class Clues:
    """The numbers that causes rest on; NaN where they are not known.

    Attributes
    ----------
    alignment : float
        Cosine between the head and the loss's force on it: 1 where training stands still against a decay.
    decay : float
        The decay of the head under which it would stand still: force over weight.
    prices : (K,) array
        Error probability that this decay and the balance of head and features would cost a class of its size.
    start : float
        Norm of the sum of the head's rows over that of torch's default start: gradients of softmax losses leave it.
    grown : float
        Mean squared norm of the head's rows over that at its start: torch's default, or one with rows of this sum.
    faint : float
        The largest part of a logit, centred over classes, that the mean feature makes without the bias.
    excess : float
        Mean loss over the entropy of the class shares, which a bias alone reaches; NaN for losses of no confidences.
    diverged : bool
        Whether the loss became infinite or NaN.
    falling, risen, rises : float
        Share of its whole fall that the loss made in the second half of training, how far it lies above its lowest in
        the end, and the sum of all its rises in the second half.
    units : int
        Features that are not the same for all samples.
    horizon : float
        E-folds over which the decay acted.
    died : (K,) array of bool
        Classes that once had a recall of one half and have lost it.
    named, shares : (K,) arrays
        Share of the output that is each class (with squared error its mean output), and share of the samples.
    refitted : (K,) array
        Recall with the bias that fits the shares.
    shift : (K,) array
        What this bias adds to that of the head, in units of the outputs.
    other, mistaken : (K,) arrays
        The class it is mistaken for most often (−1: none), and the share of its samples.
    rows : (K,) array
        The row whose name the samples of each class get, where rows and labels differ in their order, else its own.
    coinciding, twin : (K,) arrays
        Share of samples that coincide with at least as many of another class, and which.
    straying, nearest : (K,) arrays
        Share of samples nearer to another class's mean, and whose.
    apart : (K,) array
        How well a linear rule tells the class from the one it is mistaken for.
    length : (K,) array
        Squared norm of each class mean over the largest.
    spread : float
        Mean square of the features around their mean over their mean square.
    scatter : float
        The largest mean square of a class's features around their own mean, over that of all features.
    """

    alignment: float
    decay: float
    prices: Array
    start: float
    grown: float
    faint: float
    excess: float
    diverged: bool
    falling: float
    risen: float
    rises: float
    units: int
    horizon: float
    died: NDArray[np.bool_]
    named: Array
    shares: Array
    refitted: Array
    shift: Array
    other: NDArray[np.int64]
    mistaken: Array
    rows: NDArray[np.intp]
    coinciding: Array
    twin: NDArray[np.int64]
    straying: Array
    nearest: NDArray[np.int64]
    apart: Array
    length: Array
    spread: float
    scatter: float


def collect(
    measured: Measurement,
    samples: Samples | None,
    prediction: Prediction | None,
    history: Mapping[str, Any],
    horizon: float,
    troubled: NDArray[np.intp],
) -> Clues:
    """Gather the numbers; those of samples from class means where features hardly scatter, else unknown."""
    size, unknown = len(measured.counts), np.full(len(measured.counts), np.nan)
    nobody = np.full(size, -1)
    sqnorms = measured.per_class()["feature_sqnorm"]
    largest, (fall, risen, rises) = float(np.nanmax(sqnorms)), falling(history)
    losses = _numbers(history.get("loss"), "loss", 1)
    shares = measured.counts / measured.counts.sum()
    standing = samples if samples is not None else class_means(measured) if _scatter(measured) <= WITHIN else None
    alignment, decay, prices = np.nan, np.nan, unknown
    named, refitted, shift, rows = unknown, unknown, unknown, np.arange(size)
    if standing is not None:
        alignment, decay, prices = head_balance(measured, standing, prediction)
        rows = reordered(standing.logits(measured), standing.labels, standing.weights)
        if confidence_decides(measured.loss):
            named, refitted, shift = bias_refit(standing.logits(measured), standing, shares)
        elif isinstance(measured.loss, MSE):
            named, refitted, shift = output_refit(standing.logits(measured), standing, shares)
    other, mistaken, twins, twin, strays, nearest, apart = nobody, unknown, unknown, nobody, unknown, nobody, unknown
    if samples is not None:
        other, mistaken = confusions(samples.logits(measured), samples.labels, samples.weights)
        twins, twin = coinciding(samples, size)
        strays, nearest = straying(samples, measured)
        apart = unknown.copy()
        for k in troubled[:MOST_TOLD_APART]:
            partner = other[k] if other[k] >= 0 else nearest[k]
            if partner >= 0:
                apart[k] = told_apart(samples, int(k), int(partner))
    start, spread = float(np.linalg.norm(_head(measured).sum(axis=0)) / np.sqrt(size / 3)), _spread(measured)
    return Clues(
        alignment=alignment,
        decay=decay,
        prices=prices,
        start=start,
        grown=float(3 * (_head(measured) ** 2).sum(axis=1).mean() / max(start, 1.0) ** 2),
        faint=_faint(measured),
        excess=_excess(measured, shares),
        diverged=losses is not None and not np.isfinite(losses).all(),
        falling=fall,
        risen=risen,
        rises=rises,
        units=_units(measured) if spread > CONSTANT else 0,
        horizon=horizon,
        died=died(history, size),
        named=named,
        shares=shares,
        refitted=refitted,
        shift=shift,
        other=other,
        mistaken=mistaken,
        rows=rows,
        coinciding=twins,
        twin=twin,
        straying=strays,
        nearest=nearest,
        apart=apart,
        length=sqnorms / largest if largest > 0 else np.zeros(size),
        spread=spread,
        scatter=_scatter(measured),
    )


def _head(measured: Measurement) -> Array:
    assert measured.weight is not None  # as diagnose has checked
    return as_array(measured.weight)


def _faint(measured: Measurement) -> float:
    weight, mean = _head(measured), as_array(measured.moments.overall_mean)
    return float(np.abs((weight - weight.mean(axis=0)) @ mean).max())


def _excess(measured: Measurement, shares: Array) -> float:
    if measured.losses is None or not confidence_decides(measured.loss):
        return np.nan
    seen = shares > 0
    return float(shares[seen] @ measured.losses[seen] / -(shares[seen] @ np.log(shares[seen])))


def _spread(measured: Measurement) -> float:
    moments, seen = measured.moments, measured.counts > 0
    weights = measured.counts[seen] / measured.counts.sum()
    vectors = measured.per_class()
    square = weights @ (vectors["feature_sqnorm"] + np.nan_to_num(vectors["within"]))[seen]
    centre = float(moments.overall_mean.square().sum())
    return float(max(square - centre, 0.0) / square) if square > 0 else 0.0


def _scatter(measured: Measurement) -> float:
    vectors, seen = measured.per_class(), measured.counts > 0
    within = np.nan_to_num(
        vectors["within"]
    )  # not known: below what the features' storage resolves, hence nothing here
    square = measured.counts[seen] @ (within + vectors["feature_sqnorm"])[seen] / measured.counts.sum()
    return float(within[seen].max() / square) if square > 0 else 0.0


def _units(measured: Measurement) -> int:
    """How many coordinates of the features vary, within classes or between them."""
    moments, seen = measured.moments, measured.counts > 0
    means = as_array(moments.means)[seen]
    spread = np.abs(means - means.mean(axis=0)).max(axis=0)
    if moments.scatter is not None:
        spread = np.maximum(spread, np.sqrt(np.maximum(as_array(moments.scatter.diagonal()), 0.0)))
    return int((spread > VARIES * spread.max()).sum())


def head_balance(measured: Measurement, samples: Samples, prediction: Prediction | None) -> tuple[float, float, Array]:
    """Return cosine of head and force, the decay at which it stands still, and what that costs each class, (K,).

    With a decay λ a head stands still where ``λ W = −∇_W loss``. At a minimum of a problem with penalties on head and
    features ``λ_W ‖W‖² = λ_H Σ ‖h‖²``, and a class alone on a coordinate pays ``q_k = N sqrt(λ_W λ_H (K−1)/(K n_k))``.
    """
    weights = samples.weights / samples.weights.sum()
    if prediction is not None and prediction.problem.class_weights is not None:
        weights = weights * prediction.problem.class_weights[samples.labels]
    logits = torch.from_numpy(samples.logits(measured)).requires_grad_()
    losses = sample_losses(logits, torch.from_numpy(samples.labels), measured.loss)
    (losses * torch.from_numpy(weights)).sum().backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    force, head = -logits.grad.numpy().T @ samples.features, _head(measured)
    square, strength = float((head**2).sum()), float(np.linalg.norm(force))
    size, spread = len(head), float(weights @ (samples.features**2).sum(axis=1))
    if not min(square, strength, spread) > SMALLEST:
        return np.nan, np.nan, np.full(size, np.nan)
    pull = float((force * head).sum())
    decay = pull / square
    counts = np.where(measured.counts > 0, measured.counts, np.nan)
    cost = np.sqrt((size - 1) * measured.counts.sum() / (size * counts))
    return float(pull / strength / np.sqrt(square)), decay, max(decay, 0.0) * np.sqrt(square / spread) * cost


def bias_refit(logits: Array, samples: Samples, shares: Array) -> tuple[Array, Array, Array]:
    """Return each class's share of the output, and recall and change with the bias that fits shares of the data, (K,).

    Generalised iterative scaling: cross-entropy over the bias alone, convex, never rises.
    """
    weights, seen = samples.weights / samples.weights.sum(), shares > 0
    shift, first = np.zeros(len(shares)), np.empty(0)
    for _ in range(REFITS):
        named = weights @ _softmax(logits + shift)
        first = first if first.size else named
        step = np.log(shares[seen]) - np.log(np.maximum(named[seen], 1e-300))
        shift[seen] += step
        if np.abs(step).max() <= SETTLED:
            break
    return first, _recalls(logits + shift, samples, len(shares)), shift - np.median(shift)


def output_refit(logits: Array, samples: Samples, shares: Array) -> tuple[Array, Array, Array]:
    """The same for squared error, at whose best bias the mean of each output is the share of its class."""
    outputs = samples.weights @ logits / samples.weights.sum()
    shift = np.where(shares > 0, shares - outputs, 0.0)
    return outputs, _recalls(logits + shift, samples, len(shares)), shift - np.median(shift)


def _recalls(moved: Array, samples: Samples, size: int) -> Array:
    """Recall of each class by logits, (K,), which this overwrites; NaN without samples."""
    own = moved[np.arange(len(moved)), samples.labels]
    moved[np.arange(len(moved)), samples.labels] = -np.inf
    right = own > moved.max(axis=1)
    with np.errstate(invalid="ignore"):
        total = np.bincount(samples.labels, samples.weights, size)
        return np.asarray(np.bincount(samples.labels, right * samples.weights, size) / total)


def _softmax(logits: Array) -> Array:
    power = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(power / power.sum(axis=1, keepdims=True))


def falling(history: Mapping[str, Any]) -> tuple[float, float, float]:
    """Return how much the loss fell in the second half of training, lies above its lowest, and rose again on the way.

    The first half ends where it does whatever the schedule: towards the end of a cosine every loss stands still. All
    are relative to the fall from the first epoch to the lowest; NaN if the loss never fell, or is not known.
    """
    losses = _numbers(history.get("loss"), "loss", 1)
    unknown = float("nan"), float("nan"), float("nan")
    if losses is None or len(losses) < 2 or not np.isfinite(losses).all():
        return unknown
    few, middle = max(1, len(losses) // 10), (len(losses) - 1) // 2
    end, lowest = losses[-few:].mean(), losses.min()
    if losses[0] <= lowest:
        return unknown
    whole, half = losses[0] - lowest, losses[middle:]
    fall = losses[max(0, middle - few + 1) : middle + 1].mean() - end
    return float(fall / whole), float((end - lowest) / whole), float(np.maximum(np.diff(half), 0).sum() / whole)


def died(history: Mapping[str, Any], size: int) -> NDArray[np.bool_]:
    """Return which classes once had a recall of at least one half in three epochs and end below a tenth."""
    recalls = _numbers(history.get("recalls"), "recalls", 2)
    if recalls is None:
        return np.zeros(size, dtype=bool)
    if recalls.shape[1] != size:
        raise CollapseError(f"history: recalls of {recalls.shape[1]} classes, measured {size}; give one a class")
    return np.asarray(((recalls >= 0.5).sum(axis=0) >= 3) & (recalls[-1] < 0.1))


def _numbers(value: ArrayLike | None, name: str, ndim: int) -> Array | None:
    if value is None:
        return None
    found = numeric(f"history[{name!r}]", value)
    if not found.size:
        return None
    if found.ndim != ndim:
        raise CollapseError(f"history: {name}={shorten(value)}; give one {'number' if ndim == 1 else 'list'} an epoch")
    return found
