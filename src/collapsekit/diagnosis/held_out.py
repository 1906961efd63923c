"""Cross-validation on one split, and how sure a recall and a gain are: smoothed bootstrap within classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import chain

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

from collapsekit.diagnosis.repairs import Candidate, Given, Method, Samples, digests
from collapsekit.validation import Array

Hits = NDArray[np.bool_]
FOLDS = 5
DRAWS, FEW_DRAWS, DRAWN = 2000, 200, 4_000_000
"""Bootstrap samples; of many classes fewer, so that about so many recalls are held at once."""
SIDES = (0.025, 0.975)


def folds(samples: Samples) -> tuple[NDArray[np.intp], int]:
    """Return the fold of each sample, (n,), and their number: at most 5, at most the distinct ones of a class.

    Stratified; samples with the same features share a fold, whatever their labels. It depends on the samples alone,
    not on their order or that of the classes.
    """
    marks = digests(samples.features)
    own = [sorted({marks[i] for i in np.flatnonzero(samples.labels == k)}) for k in np.flatnonzero(samples.counts)]
    number, times = min(FOLDS, max(map(len, own))), Counter(chain(*own))
    fold = {mark: _number(mark) % number for mark in times}  # what several classes have stays there
    for some in own:
        alone = [mark for mark in some if times[mark] == 1]
        fold |= {mark: (i + _number(some[0])) % number for i, mark in enumerate(alone)}
    return np.array([fold[mark] for mark in marks], dtype=np.intp), number


def _number(mark: bytes) -> int:
    return int.from_bytes(mark, "little")


def balanced_accuracy(hits: Hits, samples: Samples) -> float:
    """Return the mean of the recalls of the classes present."""
    return float(samples.balanced @ hits)


def recalls(hits: Hits, samples: Samples) -> Array:
    """Return the recall of each class, (K,), NaN where it has no samples."""
    right = np.bincount(samples.labels, hits, minlength=samples.num_classes)
    unknown = np.full(len(right), np.nan)
    return np.asarray(np.divide(right, samples.counts, out=unknown, where=samples.counts > 0))


def cross_validated(method: Method, given: Given, samples: Samples, fold: NDArray[np.intp]) -> tuple[Hits, Candidate]:
    """Return the hits of a method on samples that it was not tuned on, (n,), and its head tuned on all of them.

    For each fold the parameter is chosen by the balanced accuracy on the others; what is fitted to validation samples
    is fitted to those of the others.
    """
    heads = method.heads(given, samples)
    table = np.array([samples.hits(weight, bias) for _, weight, bias in heads])
    if method.fits_validation:
        for i in np.unique(fold):
            inside = fold == i
            fitted, apart = method.heads(given, samples.part(~inside)), samples.part(inside)
            table[:, inside] = [apart.hits(weight, bias) for _, weight, bias in fitted]
    found = np.zeros(len(fold), dtype=bool)
    for i in np.unique(fold):
        others = fold != i
        found[~others] = table[_best(table[:, others], samples.part(others))][~others]
    return found, heads[_best(table, samples)]


def _best(table: NDArray[np.bool_], samples: Samples) -> int:
    scores = [round(balanced_accuracy(hits, samples), 12) for hits in table]  # of equal ones the weakest change
    return int(np.argmax(scores))


def outcomes(before: Hits, after: Hits, samples: Samples) -> tuple[Array, Array]:
    """Return the shares of (miss, miss), (miss, hit), (hit, miss), (hit, hit) in each class present, twice (K', 4).

    As observed, and smoothed by one more sample a class, drawn from the mean over classes: 2 hits of 2 samples are no
    certainty.
    """
    present = samples.counts > 0
    table = np.zeros((samples.num_classes, 4))
    np.add.at(table, (samples.labels, 2 * before + after), 1.0)
    table, counts = table[present], samples.counts[present][:, None]
    pooled = (table / counts).mean(axis=0)
    return table / counts, (table + pooled) / (counts + 1)


def gain(before: Hits, after: Hits, samples: Samples) -> tuple[float, float]:
    """Return by how much the balanced accuracy rises, and the paired standard error of that."""
    observed, smoothed = outcomes(before, after, samples)
    rises = observed[:, 1] - observed[:, 2]
    spread = smoothed[:, 1] + smoothed[:, 2] - (smoothed[:, 1] - smoothed[:, 2]) ** 2
    counts = samples.counts[samples.counts > 0]
    return float(rises.mean()), float(np.sqrt((spread / counts).sum()) / len(counts))


def jeffreys(hits: Hits, samples: Samples) -> Array:
    """Return the 95 % interval of each class's recall by Jeffreys' prior, (K, 2); NaN where it has no samples."""
    right, counts = np.bincount(samples.labels, hits, minlength=samples.num_classes), samples.counts
    found = beta.ppf(np.array(SIDES)[:, None], right + 0.5, counts - right + 0.5)
    found[0, right == 0], found[1, right == counts] = 0.0, 1.0
    return np.asarray(np.where(counts > 0, found, np.nan).T)


def intervals(
    before: Hits, after: Hits, samples: Samples, statistics: list[Callable[[Array], Array]], seed: int = 0
) -> Array:
    """Return 95 % intervals of statistics of the recalls, before, after, and after minus before, (S, 3, 2).

    Within each class present as many samples are drawn as it has, from the smoothed outcomes; intervals are those of
    the deviations, around what was observed.

    Parameters
    ----------
    statistics : list of callable
        Of recalls (..., K'), each gives (...).
    """
    observed, smoothed = outcomes(before, after, samples)
    counts, rng = samples.counts[samples.counts > 0], np.random.default_rng(seed)
    draws = min(DRAWS, max(FEW_DRAWS, DRAWN // len(counts)))
    pairs = _pair(rng.multinomial(counts, smoothed, size=(draws, len(counts))) / counts[:, None])  # (draws, 2, K')
    centre, found = _pair(smoothed), _pair(observed)
    overall = []
    for statistic in statistics:
        deviations = np.clip(statistic(pairs) - statistic(centre) + statistic(found), 0, 1)
        three = np.column_stack([deviations, deviations[:, 1] - deviations[:, 0]])
        overall.append(np.quantile(three, SIDES, axis=0).T)
    return np.array(overall)


def _pair(shares: Array) -> Array:
    """Recalls before and after, (..., 2, K'), of shares of the four outcomes (..., K', 4)."""
    return np.stack([shares[..., 2] + shares[..., 3], shares[..., 1] + shares[..., 3]], axis=-2)
