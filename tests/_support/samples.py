"""Labelled features and a head to measure: by hand and at random; numpy, float64."""

from typing import NamedTuple

import numpy as np
import torch
from hypothesis import strategies as st

from collapsekit.metrics import ClassMoments


class Samples(NamedTuple):
    features: np.ndarray  # (N, d)
    labels: np.ndarray  # (N,), shuffled
    weight: np.ndarray  # (K, d)
    bias: np.ndarray  # (K,)

    @property
    def num_classes(self):
        return len(self.weight)

    @property
    def labelled(self):
        return self.features, self.labels, self.num_classes

    @property
    def tensors(self):
        return Samples(*map(torch.from_numpy, self))

    def moments(self, **kwargs):
        moments = ClassMoments(*self.weight.shape, **kwargs)
        moments.update(*self.tensors[:2])
        return moments

    def part(self, rows):
        return self._replace(features=self.features[rows], labels=self.labels[rows])


def draw_samples(counts, dim, seed=0, spread=0.3):
    """Gaussian clouds around Gaussian class means, with a head that knows the means a little."""
    rng = np.random.default_rng(seed)
    means = rng.normal(size=(len(counts), dim))
    labels = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    features = means[labels] + spread * rng.normal(size=(len(labels), dim))
    weight = means - means.mean(axis=0) + 0.3 * rng.normal(size=means.shape)
    return Samples(features, labels, weight, rng.normal(size=len(counts)))


@st.composite
def samples(draw, max_classes=6, max_dim=8):
    """K from 2, d from 1 (also below K), imbalanced, sometimes with an unseen class; at least two classes are seen."""
    counts = draw(st.lists(st.integers(1, 30), min_size=2, max_size=max_classes))
    if len(counts) > 2 and draw(st.booleans()):
        counts[draw(st.integers(0, len(counts) - 1))] = 0
    dim = draw(st.integers(1, max_dim))
    return draw_samples(counts, dim, draw(st.integers(0, 2**32 - 1)), 10.0 ** draw(st.integers(-3, 0)))


def rotation(dim, seed=0):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(dim, dim)))[0]
