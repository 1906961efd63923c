"""Types of samples: those that the network cannot tell apart share a feature, whatever their labels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from collapsekit.validation import Array, distributions, frozen, whole_counts


@dataclass(frozen=True, eq=False)
class Types:
    """T types of samples.

    Attributes
    ----------
    counts : ndarray, shape (T,)
        Samples of each type, m_t.
    targets : ndarray, shape (T, K)
        Y_t, the distribution of their labels; rows sum to 1.
    """

    counts: Array
    targets: Array

    @classmethod
    def checked(cls, counts: ArrayLike, targets: ArrayLike) -> Types:
        """Return the types after checking them."""
        m = whole_counts("counts", counts)
        return cls(m, distributions("targets", targets, m.size))

    @cached_property
    def labels(self) -> NDArray[np.intp]:
        """The class with the largest share of each type, (T,)."""
        return np.asarray(self.targets.argmax(axis=1))

    @cached_property
    def class_counts(self) -> Array:
        """``Σ_t m_t Y_tk``, (K,)."""
        return frozen(self.counts @ self.targets)

    @cached_property
    def shares(self) -> Array:
        """Which share of a class each type is, (K, T): ``m_t Y_tk`` over their sum."""
        return frozen((self.counts[:, None] * self.targets).T / self.class_counts[:, None])

    @property
    def are_classes(self) -> bool:
        """Whether type k is all of class k: types are classes then."""
        return self.targets.shape[0] == self.targets.shape[1] and bool(
            (self.targets == np.eye(len(self.targets))).all()
        )
