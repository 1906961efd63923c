"""Textbook formulas on raw samples, in plain numpy with loops over classes; nothing here comes from src/.

Every function takes features (N, d), labels (N,) and K. Means and deviations are taken in extended precision.
"""

from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.testing import assert_allclose, assert_array_equal

from _support import tolerances


class Table(NamedTuple):
    counts: np.ndarray
    means: np.ndarray
    within: np.ndarray
    scatter: np.ndarray


def class_table(features, labels, num_classes):
    """Two passes: class means, then deviations from them."""
    x = np.asarray(features, dtype=np.longdouble)
    y = np.asarray(labels)
    counts = np.zeros(num_classes)
    means = np.full((num_classes, x.shape[1]), np.nan, dtype=np.longdouble)
    within = np.full(num_classes, np.nan, dtype=np.longdouble)
    scatter = np.zeros((x.shape[1], x.shape[1]), dtype=np.longdouble)
    for k in range(num_classes):
        own = x[y == k]
        counts[k] = len(own)
        if len(own):
            means[k] = own.mean(axis=0)
            deviations = own - means[k]
            within[k] = (deviations**2).sum() / len(own)
            scatter += deviations.T @ deviations
    return Table(counts, means, within, scatter)


def assert_moments(moments, features, labels, rtol):
    """Counts exact; means relative to their norm; within and scatter relative, down to rounding of the features."""
    table = class_table(features, labels, moments.num_classes)
    assert_array_equal(moments.counts.numpy(), table.counts)
    seen = table.counts > 0
    norms = np.sqrt((table.means[seen] ** 2).sum(axis=1))
    floor = tolerances.EXACT * norms
    means, within = moments.means.numpy(), moments.within.numpy()
    assert np.isnan(means[~seen]).all()
    assert np.isnan(within[~seen]).all()
    off = np.sqrt(((means[seen] - table.means[seen]) ** 2).sum(axis=1))
    assert_allclose((off / np.where(norms > 0, norms, 1)).astype(float), 0, atol=tolerances.EXACT)
    off = np.abs(within[seen] - table.within[seen])
    assert (off <= rtol * table.within[seen] + floor**2).all()
    assert_array_equal(within[table.counts == 1], 0)
    if moments.scatter is not None:
        largest = np.abs(np.diag(table.scatter)).max() + (table.counts[seen] * floor**2).sum()
        error = moments.scatter.numpy() - table.scatter
        assert_allclose((error / (largest if largest > 0 else 1)).astype(float), 0, atol=rtol)


def raw_moments(features, labels, num_classes):
    """The usual wrong way: mean of squares minus square of the mean, in float64."""
    table = class_table(features, labels, num_classes)
    x, y = np.asarray(features, dtype=float), np.asarray(labels)
    means = np.stack([x[y == k].sum(axis=0) / (y == k).sum() for k in range(num_classes)])
    within = np.array([(x[y == k] ** 2).sum() / (y == k).sum() for k in range(num_classes)]) - (means**2).sum(axis=1)
    scatter = x.T @ x - (means.T * table.counts) @ means
    return Table(table.counts, means, within, scatter)


def seen_means(features, labels, num_classes):
    """Class means of the classes that have samples."""
    table = class_table(features, labels, num_classes)
    return table.means[table.counts > 0].astype(float)


def nc1(features, labels, num_classes, *, centre="samples", per_class=True):
    table = class_table(features, labels, num_classes)
    means = seen_means(features, labels, num_classes)
    middle = np.asarray(features, dtype=float).mean(axis=0) if centre == "samples" else means.mean(axis=0)
    if (table.counts < 2).all():
        return np.nan
    between = sum(np.outer(mean - middle, mean - middle) for mean in means) / len(means)
    within = table.scatter.astype(float) / len(features)
    ratio = np.trace(within @ np.linalg.pinv(between, rcond=1e-10, hermitian=True))
    return ratio / len(means) if per_class else ratio


def cdnv(features, labels, num_classes, *, exponent=2, unbiased=False):
    """Return the mean over pairs and, for each class, over its partners; a loop over pairs of classes."""
    table = class_table(features, labels, num_classes)
    variance = table.within.copy()
    if unbiased:
        with np.errstate(invalid="ignore", divide="ignore"):
            variance = np.where(table.counts > 1, variance * table.counts / (table.counts - 1), np.nan)
    known = np.flatnonzero(np.isfinite(variance))
    if len(known) < 2 or (table.counts < 2).all():
        return np.nan, np.full(num_classes, np.nan)
    partners = {k: [] for k in known}
    for k, m in combinations(known, 2):
        distance = np.sqrt(((table.means[k] - table.means[m]) ** 2).sum())
        value = (variance[k] + variance[m]) / (2 * distance**exponent) if distance > 0 else np.inf
        partners[k].append(value)
        partners[m].append(value)
    per_class = np.full(num_classes, np.nan)
    for k, values in partners.items():
        per_class[k] = np.mean(values)
    return float(np.nanmean(per_class)), per_class


def cosines(rows):
    """Cosines of all pairs of different rows, a list."""
    return [a @ b / np.sqrt((a @ a) * (b @ b)) for a, b in combinations(np.asarray(rows, dtype=float), 2)]


def surviving(means):
    """Means that have at least one per cent of the largest squared norm."""
    sqnorms = [mean @ mean for mean in means]
    return [mean for mean, sqnorm in zip(means, sqnorms, strict=True) if sqnorm >= 0.01 * max(sqnorms) and sqnorm > 0]


def largest_cosine(means):
    return max((abs(cosine) for cosine in cosines(surviving(means))), default=np.nan)


def mean_cosine(means):
    sizes = [abs(cosine) for cosine in cosines(surviving(means))]
    return sum(sizes) / len(sizes) if sizes else np.nan


def etf_angles(rows):
    return np.mean([abs(cosine + 1 / (len(rows) - 1)) for cosine in cosines(rows)])


def norm_spread(rows):
    norms = [np.sqrt(row @ row) for row in rows]
    middle = sum(norms) / len(norms)
    return np.sqrt(sum((norm - middle) ** 2 for norm in norms) / len(norms)) / middle


def apart(a, b):
    """Distance of two matrices, each divided by its Frobenius norm."""
    return np.sqrt(((a / np.sqrt((a**2).sum()) - b / np.sqrt((b**2).sum())) ** 2).sum())


def residual(a, b):
    return np.sqrt(((a - b) ** 2).sum() / (b**2).sum())


def duality(weight, features, labels):
    num_classes = len(weight)
    means = seen_means(features, labels, num_classes)
    seen = [k for k in range(num_classes) if (np.asarray(labels) == k).any()]
    return apart(np.asarray(weight)[seen], means - means.mean(axis=0))


def generalised_duality(weight, features, labels):
    """V_k = K √n_k μ_k − Σ_m √n_m μ_m, an empty class counting as a zero mean."""
    table = class_table(features, labels, len(weight))
    scaled = [np.sqrt(n) * np.nan_to_num(mean) for n, mean in zip(table.counts, table.means.astype(float), strict=True)]
    expected = np.stack([len(weight) * own - sum(scaled) for own in scaled])
    return apart(np.asarray(weight), expected)


def against_frame(weight, features, labels, frame):
    """The published NC2 and NC3 metrics and their residuals, from one optimal pair (W*, H*) of the prediction."""
    num_classes = len(weight)
    table = class_table(features, labels, num_classes)
    means = np.nan_to_num(table.means.astype(float))
    optimal_w, optimal_h = frame.weights_and_features(max(num_classes, means.shape[1]))
    optimal_h = optimal_h * (table.counts > 0)[:, None]
    pairs = {
        "nc2_h": (means @ means.T, optimal_h @ optimal_h.T),
        "nc2_wwt": (weight @ weight.T, optimal_w @ optimal_w.T),
        "nc3_wh": (weight @ means.T, optimal_w @ optimal_h.T),
    }
    result = {name: apart(*pair) for name, pair in pairs.items()}
    result |= {f"{name}_residual": residual(*pair) for name, pair in pairs.items()}
    problem = frame.problem
    scales = np.sqrt(num_classes * problem.lambda_h * problem.counts / ((num_classes - 1) * problem.lambda_w))
    alive = np.flatnonzero(~frame.collapses)
    expected = sum(scales[k] * np.outer(np.eye(num_classes)[k] - 1 / num_classes, means[k]) for k in alive)
    return result | {"nc2_w_residual": residual(weight, expected)}


def softmax_table(logits, labels, num_classes):
    """Mean target probability, mean cross-entropy and recall, (K,) each, sample by sample; NaN without samples.

    A sample is right if its own logit leads every other by more than 1 % of the median lead.
    """
    rows = {k: [] for k in range(num_classes)}
    median = np.median([np.sort(z)[-1] - np.sort(z)[-2] for z in np.asarray(logits, dtype=float)])
    for z, y in zip(np.asarray(logits, dtype=np.longdouble), np.asarray(labels), strict=True):
        share = np.exp(z[y] - z.max()) / np.exp(z - z.max()).sum()
        rows[int(y)].append((share, -np.log(share), float(z[y] - np.delete(z, y).max() > 0.01 * median)))
    empty = np.full(3, np.nan)
    return np.stack([np.mean(rows[k], axis=0) if rows[k] else empty for k in range(num_classes)]).T.astype(float)


def margins(logits, labels, num_classes):
    """Mean over the samples of a class of the target logit minus the mean of the others."""
    result = np.full(num_classes, np.nan)
    for k in set(np.asarray(labels).tolist()):
        own = np.asarray(logits, dtype=float)[np.asarray(labels) == k]
        result[k] = np.mean([z[k] - np.delete(z, k).mean() for z in own])
    return result


def centre_votes(features, centres):
    """The nearest centre of each feature by differences, one pair at a time; NaN centres do not stand."""
    x, points = np.asarray(features, dtype=np.longdouble), np.asarray(centres, dtype=np.longdouble)
    return np.array([np.nanargmin([((row - point) ** 2).sum() for point in points]) for row in x])


def objective(problem, features, labels, weight, bias=None):
    """The objective of UFM+ as written: a sum over all N samples."""
    x, y, W = np.asarray(features, dtype=float), np.asarray(labels), np.asarray(weight, dtype=float)
    b = np.zeros(len(W)) if bias is None else np.asarray(bias, dtype=float)
    omega = np.ones(len(W)) if problem.class_weights is None else problem.class_weights
    lambda_h = np.broadcast_to(problem.lambda_h, len(W))
    total = 0.5 * problem.lambda_w * (W**2).sum() + 0.5 * problem.bias_penalty * (b**2).sum()
    for h, k in zip(x, y, strict=True):
        z = W @ h + b
        total += omega[k] * (np.log(np.exp(z - z.max()).sum()) + z.max() - z[k]) / len(x)
        total += 0.5 * lambda_h[k] * (h @ h)
    return total
