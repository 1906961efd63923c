"""How a search ends, and what it may cost."""

from __future__ import annotations

import time
from dataclasses import dataclass
from enum import Enum

from collapsekit.solver.model import Point


class Status(Enum):
    """How a search ended, in a sentence; the numbers of the case stand in the certificate."""

    OPTIMAL = "globally optimal: the gap is at most the tolerance"
    NO_CERTIFICATE = "no certificate: the focal loss is not convex; the best of the local searches"
    STEP_LIMIT = "not converged: the limit of steps was reached; best point kept"
    TIME_LIMIT = "not converged: the time limit was reached; best point kept"
    INTERRUPTED = "not converged: stopped by Ctrl-C; best point kept"
    NOT_FINITE = "not converged: the objective is not finite at the start; give smaller numbers"
    NOT_STATIONARY = "not converged: descent stalled before a stationary point; try another start or penalty"
    NARROW = (
        "the best of many descents at this dim; the gap is not closed, as the bound holds for wider features too and "
        "the best point of any dimension uses more coordinates"
    )
    SPURIOUS = "spurious: one more coordinate would lower the objective, but none of dim is free"
    LOOSE = "stationary, gap not closed: the bound on the polar may be loose"


GRACE = 0.3
"""Seconds for which a bound is sharpened after the time is over or Ctrl-C: less than a step of 1,000 classes."""


@dataclass
class Progress:
    """Steps taken and allowed, the time by which to end, why a search ended early, and the last point reached."""

    steps: int
    deadline: float = float("inf")
    taken: int = 0
    ended: Status | None = None
    point: Point | None = None

    @property
    def late(self) -> bool:
        """Whether the time is over: asked for inside a step, too, which may take longer than what is left."""
        return time.monotonic() > self.deadline

    @property
    def over(self) -> bool:
        """Whether the search has been ended, or its time is over."""
        return self.ended is not None or self.late

    @property
    def patience(self) -> float:
        """Until when a bound may be sharpened, by the monotonic clock."""
        end = 0.0 if self.ended is Status.INTERRUPTED else self.deadline
        return max(end, time.monotonic() + GRACE)

    def spent(self) -> bool:
        """Whether to end now."""
        if self.taken >= self.steps:
            self.ended = Status.STEP_LIMIT
        elif self.late:
            self.ended = Status.TIME_LIMIT
        return self.ended is not None
