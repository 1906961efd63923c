"""Repairs of a trained head: each method gives heads (weight, bias), one for each value of its parameter."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax

from collapsekit.prediction import Prediction
from collapsekit.validation import Array, shorten

Labels = NDArray[np.int64]
Head = tuple[Array, Array | None]
Candidate = tuple[float | None, Array, Array | None]
"""Parameter (None where there is none), weight, bias."""

STRENGTHS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 6.0)
"""τ, from the weakest change on: of equally good values the first is taken."""
DECAYS = (1.0, 0.1, 0.01, 1e-3, 1e-4)
"""On a head for features whose entries have mean square 1, beside a loss that is a mean over classes."""
PULL = 0.01
"""Of the fitted bias to where it was, over K, beside the same loss: so that it stays finite."""
MOST_PRODUCTS = 5e9
"""Of numbers in one evaluation of the retrained head's loss, a second or so: beyond, classes give fewer samples."""
STEPS = {"maxiter": 500, "maxfun": 1000, "ftol": 1e-11, "gtol": 1e-7}


class Unavailable(Exception):
    """A method cannot be had here; the message says why."""


@dataclass(frozen=True, eq=False)
class Samples:
    """Features (n, d) and labels (n,) of a split, for K classes."""

    features: Array
    labels: Labels
    num_classes: int

    @cached_property
    def counts(self) -> Labels:
        """Samples of each class, (K,)."""
        return np.bincount(self.labels, minlength=self.num_classes)

    @cached_property
    def balanced(self) -> Array:
        """The weight of each sample at which all classes present weigh the same and all samples 1, (n,)."""
        return 1 / (self.counts[self.labels] * np.count_nonzero(self.counts))

    def part(self, chosen: NDArray[np.bool_]) -> Samples:
        """Return some of the samples."""
        return Samples(self.features[chosen], self.labels[chosen], self.num_classes)

    def hits(self, weight: Array, bias: Array | None) -> NDArray[np.bool_]:
        """Return whether a head gives each sample's own class the largest logit, no other as large, (n,)."""
        logits, rows = _logits(self.features, weight, bias), np.arange(len(self.labels))
        own = logits[rows, self.labels]
        logits[rows, self.labels] = -np.inf
        return np.asarray(own > logits.max(axis=1))


@dataclass(frozen=True, eq=False)
class Given:
    """What a repair starts from: the head as it is, training samples, names, and a prediction if there is one."""

    weight: Array
    bias: Array | None
    train: Samples
    names: tuple[str, ...]
    add_bias: bool
    prediction: Prediction | None = None

    @property
    def biased(self) -> bool:
        """Whether the new head may have a bias."""
        return self.add_bias or self.bias is not None

    @property
    def offsets(self) -> Array:
        """The bias, 0 where there is none."""
        return np.zeros(len(self.weight)) if self.bias is None else self.bias

    @property
    def shares(self) -> Array:
        """Share of each class in the training data; a class without samples counts as one with a single one."""
        counts = np.maximum(self.train.counts, 1)
        return np.asarray(counts / counts.sum())

    @property
    def margins(self) -> Array | None:
        """The predicted margins; None without a prediction, or where it loses a class."""
        found = self.prediction
        return found.margins if found is not None and bool((found.margins > 0).all()) else None

    def require_all_classes(self) -> None:
        """Say which class has no training samples, if one has none."""
        unseen = np.flatnonzero(self.train.counts == 0)
        if unseen.size:
            raise Unavailable(f"class {shorten(self.names[unseen[0]])} has no training samples")


@dataclass(frozen=True)
class Method:
    """A way to repair a head.

    Attributes
    ----------
    heads : callable
        ``heads(given, samples)`` returns its candidates, from the weakest change on.
    symbol : str
        Of its parameter.
    needs_bias : bool
        Whether it does nothing without a bias.
    fits_validation : bool
        Whether `samples`, which are validation samples, are what it fits; else it takes no notice of them.
    """

    heads: Callable[[Given, Samples], list[Candidate]]
    symbol: str = ""
    needs_bias: bool = False
    fits_validation: bool = False


def untouched(given: Given, _: Samples) -> list[Candidate]:
    """The head as it is."""
    return [(None, given.weight, given.bias)]


def logit_adjustment(given: Given, _: Samples) -> list[Candidate]:
    """Take τ log π_k off the logit of class k, π its share of the training data."""
    return [(tau, given.weight, given.offsets - tau * np.log(given.shares)) for tau in STRENGTHS]


def row_norms(given: Given, _: Samples) -> list[Candidate]:
    """Divide row k by ‖w_k‖^τ, all rows multiplied by one number that keeps their geometric mean; the bias stays."""
    norms = np.linalg.norm(given.weight, axis=1)
    if not norms.all():
        raise Unavailable(f"the row of class {shorten(given.names[int(norms.argmin())])} is 0")
    return _rescaled(given, np.log(norms), np.zeros(len(norms)))


def predicted_geometry(given: Given, _: Samples) -> list[Candidate]:
    """Divide row k by M_k^τ, M the predicted margins, and take τ times the predicted bias off.

    Without a prediction, or where it loses a class: divide by n_k^(τ/4), which is how rows of the optimum grow with
    their class at small decay.
    """
    found, none = given.prediction, np.zeros(len(given.weight))
    if found is None or given.margins is None:
        return _rescaled(given, np.log(given.shares) / 4, none)
    return _rescaled(given, np.log(given.margins), none if found.bias is None else found.bias)


def _rescaled(given: Given, logs: Array, shift: Array) -> list[Candidate]:
    """Rows over exp(τ logs), their geometric mean kept, and the bias less τ shift."""
    factors = {tau: np.exp(-tau * (logs - logs.mean())) for tau in STRENGTHS}
    return [
        (tau, given.weight * factor[:, None], None if given.bias is None else given.bias - tau * shift)
        for tau, factor in factors.items()
    ]


def nearest_mean(given: Given, _: Samples) -> list[Candidate]:
    """Name the class whose mean over the training samples is nearest: rows μ_k, bias −‖μ_k‖²/2."""
    given.require_all_classes()
    sums = np.zeros_like(given.weight)
    np.add.at(sums, given.train.labels, given.train.features)
    means = sums / given.train.counts[:, None]
    return [(None, means, -(means**2).sum(axis=1) / 2)]


def bias_only(given: Given, samples: Samples) -> list[Candidate]:
    """Fit the bias to the class-balanced cross-entropy of validation samples, held near where it was.

    That of a class without samples among them stays.
    """
    logits, seen = samples.features @ given.weight.T + given.offsets, samples.counts > 0
    scale = PULL / len(seen)

    def loss(shift: Array) -> tuple[float, Array]:
        value, error = _cross_entropy(logits + shift, samples)
        value += scale / 2 * float(shift @ shift)
        return value, np.where(seen, error.sum(axis=0) + scale * shift, 0.0)

    return [(None, given.weight, given.offsets + _minimised(loss, np.zeros(len(seen))))]


def retrained(given: Given, _: Samples) -> list[Candidate]:
    """Fit a new head to the class-balanced cross-entropy of the training samples with decay: convex, from 0.

    Of very many samples the largest classes give a part, as many each.
    """
    given.require_all_classes()
    train = fewer(given.train, MOST_PRODUCTS / given.weight.size)
    return [(decay, *balanced_head(train, decay, biased=given.biased)) for decay in DECAYS]


def fewer(samples: Samples, most: float) -> Samples:
    """Return at most so many samples, or one a class: of each class up to one number, whatever their order."""
    cap = int(samples.counts.max())
    while cap > 1 and np.minimum(samples.counts, cap).sum() > most:
        cap = cap * 3 // 4
    if cap == samples.counts.max():
        return samples
    order = np.argsort(digests(samples.features), kind="stable")
    ranks = np.empty(len(order), dtype=np.int64)
    for k in range(samples.num_classes):
        own = order[samples.labels[order] == k]
        ranks[own] = np.arange(len(own))
    return samples.part(ranks < cap)


def digests(features: Array) -> list[bytes]:
    """Return what tells samples apart, whatever their order."""
    return [hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in np.ascontiguousarray(features)]


def balanced_head(samples: Samples, decay: float, *, biased: bool) -> Head:
    """Return the head that minimises the mean over classes of their mean cross-entropies plus ``decay/2 ‖W‖²``.

    The decay is that of a head for features over their root mean square; with a bias, which does not decay, features
    count less their mean.
    """
    centre = samples.features.mean(axis=0) if biased else np.zeros(samples.features.shape[1])
    inputs = samples.features - centre
    scale = float(np.sqrt(np.mean(inputs**2))) or 1.0
    inputs /= scale
    shape = (samples.num_classes, inputs.shape[1] + biased)

    def loss(x: Array) -> tuple[float, Array]:
        table = x.reshape(shape)
        weight = table[:, : inputs.shape[1]]
        value, error = _cross_entropy(inputs @ weight.T + (table[:, -1] if biased else 0.0), samples)
        slope = error.T @ inputs + decay * weight
        slope = np.column_stack([slope, error.sum(axis=0)]) if biased else slope
        return value + decay / 2 * float((weight**2).sum()), slope.ravel()

    table = _minimised(loss, np.zeros(shape).ravel()).reshape(shape)
    weight = table[:, : inputs.shape[1]] / scale
    return weight, table[:, -1] - weight @ centre if biased else None


def _cross_entropy(logits: Array, samples: Samples) -> tuple[float, Array]:
    """The class-balanced cross-entropy and its derivative by each logit, (n, K)."""
    rows, logs = np.arange(len(logits)), log_softmax(logits, axis=1)
    error = np.exp(logs)
    error[rows, samples.labels] -= 1
    return -float(samples.balanced @ logs[rows, samples.labels]), error * samples.balanced[:, None]


def _minimised(loss: Callable[[Array], tuple[float, Array]], start: Array) -> Array:
    return np.asarray(minimize(loss, start, jac=True, method="L-BFGS-B", options=STEPS).x)


def _logits(features: Array, weight: Array, bias: Array | None) -> Array:
    logits = features @ weight.T
    return logits if bias is None else logits + bias


METHODS = {
    "untouched": Method(untouched),
    "logit-adjustment": Method(logit_adjustment, "τ", needs_bias=True),
    "row-norms": Method(row_norms, "τ"),
    "predicted-geometry": Method(predicted_geometry, "τ"),
    "nearest-mean": Method(nearest_mean, needs_bias=True),
    "bias-only": Method(bias_only, needs_bias=True, fits_validation=True),
    "retrained": Method(retrained, "decay"),
}
