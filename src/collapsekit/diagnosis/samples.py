"""What the training samples themselves tell: which coincide, which classes their features separate, which labels stray.

Everything here is a function of features and labels, and of the head where it says so.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linear_sum_assignment

from collapsekit.errors import CollapseError
from collapsekit.metrics import Measurement
from collapsekit.metrics.batches import as_tensor
from collapsekit.metrics.measurement import as_array
from collapsekit.validation import Array, shorten

MOST_LOGITS = 2 * 10**7
"""Samples times classes that are looked at, 160 MB of logits; of more an even choice of each class."""
MOST_PAIR = 400
"""Samples a class of a pair that is told apart: their Gram matrix takes the cube of it."""
RESOLUTION = 1e-5
"""Features this close, relative to their root mean square, coincide: equal inputs differ by the order of sums."""
HALF_RESOLUTION = 4e-3
"""The same for features that were stored in half precision, whose steps are a thousandth."""
EMPTY, NOTHING = 0.02, 1e-3
"""Shares of the root mean square norm below which a feature, as long as those of lost classes, may be a remnant; and
below which it is nothing, and coincides with none."""
COLLAPSED = 0.3
"""Share of a class at one point from which it has collapsed there, whatever its inputs."""
MOST_SUSPECTS = 1_000
"""Positions that are named of a class."""
ALIKE = 1e-2
"""Distance of a class mean from the measured one, over the root mean square, that rounding may make."""
MOST_ORDERED = 2_000
"""Classes up to which another order of the rows is looked for: the cube of it."""
AS_ANOTHER, AS_ITSELF = 0.7, 0.2
"""Mean recall from which classes that change places are in another order, and up to which without that."""
LEAST_PAIR = 5
"""Samples a class needs for its separability to be told: with fewer one sample decides."""
RIDGES = (1e-3, 1e-1)
"""Penalties of the linear rule, in units of the mean squared norm."""


@dataclass(frozen=True, eq=False)
class Samples:
    """Features (n, d), labels (n,), how many samples each stands for, and where it stood among those given, (n,)."""

    features: Array
    labels: NDArray[np.int64]
    weights: Array
    resolution: float
    rows: NDArray[np.intp]

    def logits(self, measured: Measurement) -> Array:
        """Return the logits of the measured head, (n, K)."""
        assert measured.weight is not None
        bias = 0.0 if measured.bias is None else as_array(measured.bias)
        return self.features @ as_array(measured.weight).T + bias

    def of(self, k: int, most: int = MOST_PAIR) -> Array:
        """Return the features of a class, at most so many of them, evenly chosen."""
        return self.features[_evenly(np.flatnonzero(self.labels == k), most)]


def checked_samples(samples: tuple[ArrayLike, ArrayLike], measured: Measurement, name: str = "samples") -> Samples:
    """Return the samples that a measurement was made of, or a choice of them."""
    try:
        given, marks = samples
    except (TypeError, ValueError):
        raise CollapseError(f"{name}={shorten(samples)}: give a pair (features, labels)") from None
    x = as_tensor("features", given).detach().cpu().numpy()
    if x.ndim < 2 or x.shape[-1] != measured.moments.dim:
        raise CollapseError(
            f"{name}: features of the shape {x.shape}; give the (N, {measured.moments.dim}) that were measured"
        )
    x = x.reshape(-1, x.shape[-1])
    y = as_tensor("labels", marks).detach().cpu().reshape(-1).numpy()
    if len(x) != len(y):
        raise CollapseError(f"{name}: {len(x)} features for {len(y)} labels; give one label a sample")
    size, rows = measured.moments.num_classes, np.flatnonzero(y >= 0)  # negative: ignored, as in measuring
    x, y = x[rows], y[rows].astype(np.int64)
    if not np.array_equal(np.bincount(y, minlength=size), measured.counts):
        raise CollapseError(f"{name}: other counts than those measured; give the samples that were measured")
    _check_means(x, y, measured, name)
    coarse = bool((x[:64] == x[:64].astype(np.float16)).all())
    if len(y) * size > MOST_LOGITS:
        most = max(1, MOST_LOGITS // size**2)
        chosen = np.concatenate([_evenly(np.flatnonzero(y == k), most) for k in range(size)])
        x, y, rows = x[chosen], y[chosen], rows[chosen]
    weights = measured.counts[y] / np.bincount(y, minlength=size)[y]
    return Samples(x.astype(np.float64), y, weights, HALF_RESOLUTION if coarse else RESOLUTION, rows)


def _check_means(x: Array, y: NDArray[np.int64], measured: Measurement, name: str) -> None:
    """Refuse samples of other means than those measured: in another order, scaled, of another layer."""
    means, counts = as_array(measured.moments.means), measured.counts
    for k in np.flatnonzero(counts > 0):
        own = x[y == k].astype(np.float64)
        size = np.sqrt(max((own**2).sum(axis=1).mean(), (means[k] ** 2).sum()))
        if not np.linalg.norm(own.mean(axis=0) - means[k]) <= ALIKE * size:
            label = k if measured.names is None else shorten(measured.names[k])
            raise CollapseError(
                f"{name}: the mean of class {label} is not the one measured; give the features and labels that were "
                "measured, in one order"
            )


def class_means(measured: Measurement) -> Samples:
    """Return the class means in place of samples: all that a measurement alone has."""
    seen = np.flatnonzero(measured.counts > 0)
    return Samples(as_array(measured.moments.means)[seen], seen, measured.counts[seen], 0.0, seen)


def _evenly(rows: NDArray[np.intp], most: int) -> NDArray[np.intp]:
    return rows if len(rows) <= most else rows[np.linspace(0, len(rows) - 1, most).astype(int)]


def confusions(logits: Array, labels: NDArray[np.int64], weights: Array) -> tuple[NDArray[np.int64], Array]:
    """Return the class each class is mistaken for most often, −1 for none, and the share of its samples, (K,)."""
    size = logits.shape[1]
    named, other, share = logits.argmax(axis=1), np.full(size, -1), np.zeros(size)
    for k in range(size):
        own = labels == k
        wrong = own & (named != k)
        if wrong.any():
            found = np.bincount(named[wrong], weights[wrong], size)
            other[k], share[k] = int(found.argmax()), found.max() / weights[own].sum()
    return other, share


def reordered(logits: Array, labels: NDArray[np.int64], weights: Array) -> NDArray[np.intp]:
    """Return the row whose name the samples of each class get, (K,), where rows and labels differ in their order.

    The assignment of rows to classes with the largest mean recall; of its cycles those that turn classes that are never
    right into classes that are. A cycle through a class without samples must move half of the others.
    """
    size = logits.shape[1]
    itself = np.arange(size)
    if size > MOST_ORDERED:
        return itself
    shares = np.zeros((size, size))
    np.add.at(shares, (labels, logits.argmax(axis=1)), weights)
    total = shares.sum(axis=1)
    shares /= np.where(total > 0, total, 1.0)[:, None]
    best = linear_sum_assignment(shares + 1e-6 * np.eye(size), maximize=True)[1]
    rows, seen = itself.copy(), total > 0
    for start in range(size):
        cycle = [start]
        while (step := int(best[cycle[-1]])) != start:
            cycle.append(step)
        own = [k for k in cycle if seen[k]]
        if len(own) < 2 or min(cycle) < start or (len(own) < len(cycle) and len(own) < seen.sum() / 2):
            continue
        if shares[own, best[own]].mean() >= AS_ANOTHER and shares[own, own].mean() <= AS_ITSELF:
            rows[cycle] = best[cycle]
    return rows


def named_instead(logits: Array, labels: NDArray[np.int64], k: int, most: int = 4) -> dict[int, float]:
    """Return the classes that samples of class k are given, k itself among them, with the largest shares first."""
    found = np.bincount(logits[labels == k].argmax(axis=1), minlength=logits.shape[1])
    order = np.argsort(-found, kind="stable")[:most]
    return {int(j): float(found[j] / found.sum()) for j in order if found[j]}


def coinciding(samples: Samples, size: int) -> tuple[Array, NDArray[np.int64]]:
    """Return the share of each class's samples that coincide with at least as many of another class, and with which.

    No head, and no network that gives equal inputs equal features, can name both. Features of length 0 do not count:
    all lost classes have them. Nor does a point at which most samples of a class lie, for classes that have collapsed
    may do so at one point; unless no other class has collapsed anywhere, and these are no fewer.
    """
    x, y = samples.features, samples.labels
    scale = np.sqrt((x**2).sum(axis=1).mean()) or 1.0
    lengths = np.linalg.norm(x, axis=1)
    full = lengths > NOTHING * scale
    shadow = x @ np.random.default_rng(0).normal(size=x.shape[1]) / np.sqrt(x.shape[1])
    order = np.argsort(shadow, kind="stable")
    near = samples.resolution * np.minimum(scale, lengths[order][1:])  # remnants of lost classes are all near 0
    step = np.linalg.norm(np.diff(x[order], axis=0), axis=1) <= near
    group = np.empty(len(y), dtype=np.int64)
    group[order] = np.concatenate([[0], np.cumsum(~step)])
    caught, partner, sizes = np.zeros(size), np.full(size, -1), np.bincount(y, minlength=size)
    few = np.maximum(2, COLLAPSED * sizes)
    collapsed = _most_at_a_point(group, y, size) > few
    mixed = np.flatnonzero(np.bincount(group[full], minlength=group.max() + 1) > 1)
    met: dict[int, list[int]] = {}
    rows = np.flatnonzero(full & np.isin(group, mixed))
    for one in np.split(
        rows[np.argsort(group[rows], kind="stable")], np.flatnonzero(np.diff(np.sort(group[rows]))) + 1
    ):
        classes, times = np.unique(y[one], return_counts=True)
        here = classes[times > few[classes]]
        equal_inputs = collapsed.sum() == len(here) <= (sizes > 0).sum() - len(here)
        for k, n in zip(classes, times, strict=True):
            rest = np.where(classes == k, 0, times)
            if rest.max() >= n and (n <= few[k] or equal_inputs):
                caught[k] += n
                met.setdefault(int(k), []).extend([int(classes[rest.argmax()])] * int(n))
    for k, others in met.items():
        partner[k] = np.bincount(others).argmax()
    return caught / np.maximum(sizes, 1), partner


def _most_at_a_point(group: NDArray[np.int64], labels: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """How many samples of each class lie at the point that has most of them, (K,)."""
    pairs, times = np.unique(group * size + labels, return_counts=True)
    most = np.zeros(size, dtype=np.int64)
    np.maximum.at(most, pairs % size, times)
    return most


def straying(samples: Samples, measured: Measurement) -> tuple[Array, NDArray[np.int64]]:
    """Return the share of each class's samples that lie nearer to another class's mean than to their own, and whose.

    The own mean is that of the class's other samples; a class of one sample has none.
    """
    means, counts = as_array(measured.moments.means), measured.counts
    x, y, size = samples.features, samples.labels, len(counts)
    squares = np.where(counts > 0, (means**2).sum(axis=1), np.inf)
    apart = squares - 2 * x @ np.where(counts > 0, means.T, 0.0) + (x**2).sum(axis=1)[:, None]
    rows = np.arange(len(y))
    own = apart[rows, y] * (counts[y] / np.maximum(counts[y] - 1, 1)) ** 2
    apart[rows, y] = np.inf
    strays = (apart.min(axis=1) < own) & (counts[y] > 1)
    share = np.bincount(y[strays], minlength=size) / np.maximum(np.bincount(y, minlength=size), 1)
    nearest = apart.argmin(axis=1)
    where = [np.bincount(nearest[strays & (y == k)], minlength=1).argmax() if share[k] else -1 for k in range(size)]
    return share, np.array(where)


def told_apart(samples: Samples, k: int, other: int) -> float:
    """Return how well a linear rule on the features tells two classes apart: mean recall of both, each sample left out.

    Ridge regression on ±1 with both classes weighted alike, its leave-one-out residuals in closed form; 0.5 is chance.
    NaN where a class has fewer than five samples.
    """
    a, b = samples.of(k), samples.of(other)
    if min(len(a), len(b)) < LEAST_PAIR:
        return float("nan")
    x, y = np.vstack([a, b]), np.repeat([1.0, -1.0], [len(a), len(b)])
    x = x - (a.mean(axis=0) + b.mean(axis=0)) / 2
    unit = np.sqrt((x**2).sum(axis=1).mean())
    x = np.column_stack([x / (unit or 1.0), np.ones(len(y))])
    root = np.sqrt(np.repeat([0.5 / len(a), 0.5 / len(b)], [len(a), len(b)]))
    gram = root[:, None] * (x @ x.T) * root
    best = 0.0
    for ridge in RIDGES:
        inverse = np.linalg.inv(gram + ridge * np.eye(len(y)) / len(y))
        # residuals of weighted ridge regression, each sample left out: (A⁻¹ u)_i / (A⁻¹)_ii, u = root · y
        left_out = y - inverse @ (root * y) / np.diag(inverse) / root
        right = left_out * y > 0
        best = max(best, (right[: len(a)].mean() + right[len(a) :].mean()) / 2)
    return best


def suspects(samples: Samples, measured: Measurement, k: int) -> tuple[int, ...]:
    """Return the positions of the samples of a class that lie nearer to another class's mean, or at its samples."""
    means = as_array(measured.moments.means)
    own = np.flatnonzero(samples.labels == k)
    x = samples.features[own]
    scale = np.sqrt((samples.features**2).sum(axis=1).mean()) or 1.0
    rest = samples.features[samples.labels != k]
    chosen = []
    for i, one in zip(own, x, strict=True):
        apart = ((means - one) ** 2).sum(axis=1)
        away = apart[k]
        apart[k] = np.inf
        twin = np.sqrt(((rest - one) ** 2).sum(axis=1).min()) <= samples.resolution * scale
        if twin or np.nanmin(apart) < away:
            chosen.append(int(samples.rows[i]))
    return tuple(chosen[:MOST_SUSPECTS])
