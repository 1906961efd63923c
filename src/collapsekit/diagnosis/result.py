"""Diagnosis: what diagnose returns, class by class, with findings and a verdict in three lines."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from collapsekit.diagnosis.causes import Cause
from collapsekit.diagnosis.findings import Finding
from collapsekit.diagnosis.status import GONE, Status
from collapsekit.metrics import Measurement
from collapsekit.prediction import Prediction

CAUSES: dict[str, str] = {
    "regularisation": "regularisation, a weight decay that is too strong for their few samples.",
    "optimiser": "optimiser, which came to rest, or never did, at a poor point.",
    "unfinished": "unfinished, training stopped before these classes were learned.",
    "data": "data, their samples or labels do not tell them apart, or are too few.",
    "bias": "bias, the output layer's bias hides classes that the features tell apart.",
    "width": "width, the features have too few dimensions for so many classes.",
    "unknown": "unknown, nothing that was given decides.",
}
TROUBLED: tuple[Status, ...] = (*GONE, "weak")


@dataclass(frozen=True)
class ClassDiagnosis:
    """One class: its status on training samples, and why, with the numbers beside it; NaN or None for the unknown.

    Attributes
    ----------
    label, count : str, int
        Name, and training samples.
    status : {"lost", "never predicted", "weak", "alive", "unseen"}
        From the network alone.
    cause : {"regularisation", "optimiser", "unfinished", "data", "bias", "width", "unknown"} or None
        Why it is not alive, or fails on held-out samples; None where it does neither.
    recall, confidence, margin : float
        On the training samples.
    held_out_recall : float
        On held-out samples.
    confused_with : str or None
        The class it is mistaken for most often.
    """

    label: str
    count: int
    status: Status
    cause: Cause | None
    recall: float
    confidence: float
    margin: float
    held_out_recall: float
    confused_with: str | None

    @property
    def badness(self) -> tuple[float, ...]:
        """What puts the worst classes first: status, recall (held-out if the class is alive), confidence, count."""
        rank = TROUBLED.index(self.status) if self.status in TROUBLED else len(TROUBLED) + (self.cause is None)
        tested = 1.0 if np.isnan(self.held_out_recall) else self.held_out_recall
        return rank, self.recall if rank < len(TROUBLED) else tested, self.confidence, self.count


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """What is wrong with a trained classifier, class by class; made by :func:`diagnose`.

    Attributes
    ----------
    classes : tuple of ClassDiagnosis
        One a class.
    findings : tuple of Finding
        The worst first.
    suspects : dict of str to tuple of int
        For classes with coinciding or straying samples their positions among the samples given.
    named : dict of str to dict of str to float
        For the worst classes what their samples are taken for, in shares: held-out samples where the class fails only
        there, else training samples.
    prediction : Prediction or None
        What the recipe's own problem says of each class, where there is one.
    measured : Measurement
        What was diagnosed.
    assumed_order : str or None
        What was taken for granted of the order of the head's rows, where nothing named them.
    """

    classes: tuple[ClassDiagnosis, ...]
    findings: tuple[Finding, ...]
    suspects: dict[str, tuple[int, ...]] = field(repr=False)
    named: dict[str, dict[str, float]] = field(repr=False)
    prediction: Prediction | None = field(repr=False)
    measured: Measurement = field(repr=False)
    assumed_order: str | None = field(default=None, repr=False)

    @property
    def cause(self) -> Cause | None:
        """The first cause: that of the most classes among the most severe findings; None where nothing is wrong."""
        causal = [one for one in self.findings if one.cause is not None and one.severity != "note"]
        return causal[0].cause if causal else None

    @property
    def verdict(self) -> tuple[str, str, str]:
        """Three lines: how many classes are lost, the likeliest cause, the first thing to do."""
        serious = [one for one in self.findings if one.severity != "note"]
        if not serious:
            return (self._counted, "Nothing is wrong that can be seen here.", "Nothing to do.")
        first = serious[0]
        why = CAUSES[first.cause] if first.cause and first.code != "row-order" else first.sentence
        remedy = next((one.remedy for one in serious if one.remedy), "")
        what = f"First: {remedy}" if remedy else "First: give these classes training samples."
        return (self._counted, f"Likeliest cause: {why}" if first.cause else why, what)

    @property
    def _counted(self) -> str:
        numbers = {word: [c.label for c in self.classes if c.status == word] for word in TROUBLED}
        told = ", ".join(f"{len(labels)} {word}" for word, labels in numbers.items() if labels)
        total = len(self.classes)
        if told:
            return f"Of {total} classes {told}."
        fails, seen = sum(c.cause is not None for c in self.classes), sum(c.status != "unseen" for c in self.classes)
        which = (
            ("Both classes" if total == 2 else f"All {total} classes")
            if seen == total
            else f"The {seen} of {total} classes that have training samples"
        )
        alive = f"{which} are alive on {'their training samples' if seen == total else 'them'}"
        return f"{alive}; on held-out ones {fails} {'fails' if fails == 1 else 'fail'}." if fails else f"{alive}."

    def to_dict(self) -> dict[str, Any]:
        """Return plain values (JSON-ready; what is not known is None), with the schema version."""
        return {
            "schema": 1,
            "classes": [{key: _known(value) for key, value in asdict(c).items()} for c in self.classes],
            "findings": [one.to_dict() for one in self.findings],
            "suspects": {name: list(rows) for name, rows in self.suspects.items()},
            "named": self.named,
            "assumed_order": self.assumed_order,
            "cause": self.cause,
            "verdict": list(self.verdict),
        }

    def __repr__(self) -> str:
        return f"Diagnosis({self._counted[:-1]}; cause: {self.cause or 'none'}; {len(self.findings)} findings)"


def _known(value: Any) -> Any:
    return None if isinstance(value, float) and not np.isfinite(value) else value
