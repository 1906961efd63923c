"""Early warnings: which classes are dying, from the numbers of the epochs so far."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from collapsekit.validation import Array

SILENT = 3
"""Epochs after which a class may be called dying: before, nothing has been learned that could be lost."""
ALIVE = 0.5
"""Recall that a class must have had."""
TREND = 4
"""Epochs over which a fall is looked at."""
FALLEN = 0.1
"""Share of its best by which recall or confidence must have fallen."""
RECOVERED = 0.9
"""Share of the best from which a class is no longer dying."""


class Alarms:
    """Which classes are dying, epoch by epoch.

    Attributes
    ----------
    dying : ndarray, shape (K,), bool
        As of the last epoch.
    """

    def __init__(self, num_classes: int) -> None:
        self.past: list[list[list[float]]] = []
        self.best = np.zeros((2, num_classes))
        self.dying = np.zeros(num_classes, dtype=bool)
        self.epochs = 0

    def add(self, recalls: Array, confidences: Array, *, warming: bool) -> NDArray[np.bool_]:
        """Take the numbers of an epoch, each (K,), NaN for classes without samples; return who is dying."""
        now = np.stack([recalls, confidences])
        self.past = [*self.past, now.tolist()][-TREND:]
        self.best = np.fmax(self.best, now)
        self.epochs += 1
        if warming or self.epochs <= SILENT or len(self.past) < TREND:
            self.dying = np.zeros_like(self.dying)
            return self.dying
        steps = np.diff(np.array(self.past), axis=0)
        falling = (steps <= 0).all(axis=0) & (now < (1 - FALLEN) * self.best)
        alive = self.best[0] >= ALIVE
        recovered = (now >= RECOVERED * self.best).all(axis=0)
        self.dying = alive & ((self.dying & ~recovered) | falling.any(axis=0))
        return self.dying

    @property
    def now(self) -> Array:
        """Recall and confidence of the last epoch, (2, K)."""
        return np.array(self.past[-1])

    def state(self) -> dict[str, Any]:
        """Return what the next epoch needs, as plain values."""
        return {"past": self.past, "best": self.best.tolist(), "dying": self.dying.tolist(), "epochs": self.epochs}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.past, self.epochs = state["past"], state["epochs"]
        self.best, self.dying = np.array(state["best"]), np.array(state["dying"], dtype=bool)
