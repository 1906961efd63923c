"""What a repair changes: recall by class, balanced accuracy, worst class, many/medium/few, each with its interval."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from collapsekit.diagnosis.held_out import intervals, jeffreys, recalls
from collapsekit.diagnosis.repairs import Given, Samples
from collapsekit.errors import CollapseError
from collapsekit.validation import Array, shorten

CUTS = (100, 20)
"""Of the long-tailed benchmarks: many above 100 training samples, few below 20."""


def divided(counts: NDArray[np.int64], cuts: tuple[float, float] | None) -> tuple[dict[str, NDArray[np.bool_]], str]:
    """Return which classes have many, medium and few training samples, and the counts that divide them in words.

    By the field's 100 and 20 if each group then has a class, else by terciles of the counts.
    """
    high, low = CUTS if cuts is None else cuts
    if not high >= low:
        raise CollapseError(f"cuts={shorten(cuts)}: the first count must not be below the second; give (100, 20)")
    groups = _by_cuts(counts, high, low)
    if cuts is None and not all(one.any() for one in groups.values()):
        low, high = (float(np.quantile(counts, share, method="lower")) for share in (1 / 3, 2 / 3))
        groups = {"many": counts > high, "medium": (counts <= high) & (counts > low), "few": counts <= low}
        return groups, (
            f"many: above {high:g} training samples, few: up to {low:g} (terciles of the counts: with more than "
            f"{CUTS[0]} and fewer than {CUTS[1]} a group would be empty)"
        )
    return groups, f"many: above {high:g} training samples, few: below {low:g}"


def _by_cuts(counts: NDArray[np.int64], high: float, low: float) -> dict[str, NDArray[np.bool_]]:
    return {"many": counts > high, "medium": (counts <= high) & (counts >= low), "few": counts < low}


def tables(
    before: NDArray[np.bool_],
    after: NDArray[np.bool_],
    samples: Samples,
    given: Given,
    groups: dict[str, NDArray[np.bool_]],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the rows of the classes and of the summary."""
    present, both = samples.counts > 0, np.stack([recalls(before, samples), recalls(after, samples)])
    seen, shares = both[:, present], samples.counts[present] / len(before)
    parts = {"balanced accuracy": np.ones(len(shares), dtype=bool)}
    parts |= {name: mask[present] for name, mask in groups.items()}
    statistics = {name: _mean_over(mask) for name, mask in parts.items() if mask.any()}
    statistics |= {"worst class": lambda r: r.min(axis=-1), "accuracy": lambda r: r @ shares}
    overall = intervals(before, after, samples, [*statistics.values()])
    bounds = jeffreys(before, samples), jeffreys(after, samples)
    table = [
        {
            "label": given.names[k],
            "count": int(given.train.counts[k]),
            "validation": int(samples.counts[k]),
            **_three("before", both[0, k], bounds[0][k]),
            **_three("after", both[1, k], bounds[1][k]),
            "reason": "" if present[k] else "no validation samples",
        }
        for k in range(len(present))
    ]
    summary = []
    for name in ("balanced accuracy", "worst class", "many", "medium", "few", "accuracy"):
        known = name in statistics
        values = statistics[name](seen) if known else np.full(2, np.nan)
        around = overall[[*statistics].index(name)] if known else np.full((3, 2), np.nan)
        size = int(groups[name].sum()) if name in groups else len(present)
        summary.append(
            {
                "what": name,
                "classes": size,
                **_three("before", values[0], around[0]),
                **_three("after", values[1], around[1]),
                **_three("gain", values[1] - values[0], around[2]),
                "reason": "" if known else "no validation samples" if size else "no such class",
            }
        )
    return table, summary


def _mean_over(mask: NDArray[np.bool_]) -> Callable[[Array], Array]:
    return lambda recalls: np.asarray(recalls[..., mask].mean(axis=-1))


def _three(name: str, value: float, bounds: Array) -> dict[str, float]:
    return {name: float(value), f"{name}_low": float(bounds[0]), f"{name}_high": float(bounds[1])}
