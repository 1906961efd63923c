"""The early warning as a finding, in the form that diagnose gives."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from collapsekit.diagnosis.findings import Finding, listed
from collapsekit.monitor.alarms import Alarms


def dying_finding(alarms: Alarms, names: Sequence[str], *, decays: bool) -> tuple[Finding, ...]:
    """Return one finding for all classes that are dying, or none."""
    rows: NDArray[np.intp] = np.flatnonzero(alarms.dying)
    if not rows.size:
        return ()
    (recalls, confidences), best = alarms.now, alarms.best
    k = int(rows[np.argmin(confidences[rows])])
    what = "weight_decay" if decays else "lr"
    many = rows.size > 1
    labels = [names[row] for row in rows]
    sentence = (
        f"Class{'es' if many else ''} {listed(labels)} {'are' if many else 'is'} dying: the recall of {names[k]!r} was "
        f"{best[0, k]:.0%} and is {recalls[k]:.0%}, its confidence was {best[1, k]:.2f} and is {confidences[k]:.2f}."
    )
    return (
        Finding(
            "dying",
            "warning",
            None,
            tuple(labels),
            {
                "recall": float(recalls[k]),
                "best_recall": float(best[0, k]),
                "confidence": float(confidences[k]),
                "best_confidence": float(best[1, k]),
            },
            sentence,
            f"for group in optimizer.param_groups: group[{what!r}] /= 10  # from a checkpoint before the fall",
        ),
    )
