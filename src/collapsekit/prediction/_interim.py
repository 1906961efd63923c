"""Stands in for Prediction until it is merged; goes with that merge."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from collapsekit.theory._closed_form import GeneralOrthogonalFrame

GeneralOrthogonalFrame.collapses = property(lambda self: self.collapsed)  # type: ignore[attr-defined]
Prediction: Any = GeneralOrthogonalFrame


def from_solution(solution: Any) -> Any:
    """What Prediction will hold of a solution."""
    W, H = solution.weights, solution.features
    logits = H @ W.T + (0.0 if solution.bias is None else solution.bias)
    apart = logits - np.diagonal(logits)[:, None]
    others = np.where(np.eye(len(logits), dtype=bool), -np.inf, logits).max(axis=1)
    lead = np.diagonal(logits) - others
    size = len(logits)
    return SimpleNamespace(
        problem=solution.problem,
        margins=-apart.sum(axis=1) / (size - 1),
        confidences=1 / np.exp(apart).sum(axis=1),
        feature_sqnorms=(H**2).sum(axis=1),
        classifier_sqnorms=(W**2).sum(axis=1),
        collapses=lead <= max(1e-6 * float(lead.max()), 1e-9),
        headroom=np.full(size, np.nan),
        objective=solution.objective,
        source=solution,
    )
