"""Early warnings: which classes are dying, from the numbers of the epochs so far.

A class that dies under its penalties loses confidence long before it loses a hit: as long as its own logit leads by
little, it leads. All confidences fall where penalties grow, so a class is held against the best quarter of them. The
rule and its constants were found on half A of experiments/early_warning.py; half B says how it does.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from collapsekit.prediction._fates import HALF
from collapsekit.validation import Array

SILENT = 3
"""Epochs in which nobody is called dying: nothing has been learned yet that could be lost."""
LIVED = 3
"""Epochs with a recall of at least one half from which a class has been alive."""
FALLS = 3
"""Epochs on end in which confidence and share have to fall."""
SOON = 30
"""Epochs within which the share would be gone, if it went on falling as it does; 20 and 40 are worse on half A."""
BEHIND = 0.9
"""Share of the best quarter's confidence from which a class is not called dying."""
CALM, GONE = 2, 0.05
"""Epochs with a share that would last twice as long, after which a class is no longer dying; below this share it has
nothing left to lose, and stays so."""
QUARTER = 75


class Alarms:
    """Which classes are dying, epoch by epoch.

    The *share* of a class is its confidence above chance over that of the best quarter of the classes, at most 1.

    Parameters
    ----------
    num_classes : int
        K.

    Attributes
    ----------
    dying : ndarray, shape (K,), bool
        As of the last epoch.
    now, best : ndarray, shape (2, K)
        Recall and confidence of the last epoch, and the largest of each so far.
    """

    def __init__(self, num_classes: int) -> None:
        self.now, self.best = np.zeros((2, num_classes)), np.zeros((2, num_classes))
        self.dying = np.zeros(num_classes, dtype=bool)
        self.lived, self.calm = np.zeros(num_classes, dtype=int), np.zeros(num_classes, dtype=int)
        self.past = np.zeros((0, 2, num_classes))
        self.epochs = 0

    def add(self, recalls: Array, confidences: Array, *, warming: bool) -> NDArray[np.bool_]:
        """Return who is dying after one more epoch.

        Parameters
        ----------
        recalls, confidences : ndarray, shape (K,)
            Of the epoch; NaN for classes without samples in it, of which the last numbers are kept.
        warming : bool
            Whether the learning rate still grows: nobody is called dying then.
        """
        given = np.stack([recalls, confidences])
        self.now = np.where(np.isnan(given), self.now, given)
        self.best, self.epochs = np.maximum(self.best, self.now), self.epochs + 1
        self.lived = self.lived + (self.now[0] >= HALF)
        above = np.maximum(self.now[1] - 1 / len(self.dying), 0.0)
        top = np.percentile(above, QUARTER)
        share = np.minimum(above / top, 1.0) if top > 0 else np.zeros_like(above)
        self.past = np.concatenate([self.past, [[above, share]]])[-FALLS - 1 :]
        silent = warming or self.epochs <= SILENT or len(self.past) <= FALLS
        self.dying = np.zeros_like(self.dying) if silent else self._dying(share)
        return self.dying

    def _dying(self, share: Array) -> NDArray[np.bool_]:
        steps, slope = np.diff(self.past, axis=0), (self.past[0, 1] - share) / FALLS
        left = np.divide(share, slope, out=np.full_like(share, np.inf), where=slope > 0)
        falls = (steps < 0).all(axis=(0, 1)) & (left <= SOON) & (share < BEHIND) & (self.lived >= LIVED)
        self.calm = np.where(self.dying & (left > 2 * SOON) & (share > GONE), self.calm + 1, 0)
        return np.asarray((self.dying & (self.calm < CALM)) | falls)

    def state(self) -> dict[str, Any]:
        """Return what the next epoch needs, as plain values."""
        return {key: getattr(self, key).tolist() for key in ARRAYS} | {"epochs": self.epochs}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.epochs = state["epochs"]
        for key in ARRAYS:
            before = getattr(self, key)
            value = np.array(state[key], dtype=before.dtype)
            setattr(self, key, value.reshape(-1, *before.shape[1:]))  # before the first epoch the past is empty


ARRAYS = ("now", "best", "dying", "lived", "calm", "past")
