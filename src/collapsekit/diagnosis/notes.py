"""Findings that are no cause of a lost class: what fails on held-out samples, and what is worth knowing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from collapsekit.diagnosis.causes import TOO_FEW, Case
from collapsekit.diagnosis.findings import Finding, listed
from collapsekit.metrics import Measurement
from collapsekit.recipe import BatchNorm, Optimizer, Plain, Recipe
from collapsekit.recipe._optimizer import UNACTED
from collapsekit.validation import Array, short

SIGMAS = 1.96
"""Of the interval of a held-out recall: 95 %."""
FAILS, FAILS_FEW = 0.3, 0.25
"""A class fails on held-out samples if its recall is below the first with that certainty, or if it has hardly any
training samples and is below the second; rarest classes of healthy networks had 0.32 to 0.6."""
STRAYS, TIMES_MEDIAN, MOST_STRAYED, LEAST_STRAYED = 0.25, 5.0, 0.7, 8
"""Labels are suspicious if this share of a class, and so many times that of the median class, lies nearer to another
class, at least so many samples, unless the
held-out recall of both is above the second: in healthy networks up to 0.1 of a class does."""
FITS = 0.9
"""Recall of the median class from which a network has learned its classes; of a class, strays included, from which
suspicious labels are a warning: among healthy networks one that was stopped early has others."""


@dataclass(frozen=True, eq=False)
class Given:
    """What was given beside the network."""

    names: tuple[str, ...]
    recipe: Recipe | None
    optimizer: Optimizer | None
    refusal: str | None
    held_out: Measurement | None
    held_out_recalls: Array
    held_out_other: NDArray[np.int64]
    excess: float


def failing(case: Case, given: Given) -> list[int]:
    """Return the classes that are alive in training and fail on held-out samples."""
    if given.held_out is None:
        return []
    recalls, counts = given.held_out_recalls, case.measured.counts
    fails = (_upper(recalls, given.held_out.counts) < FAILS) | ((counts <= TOO_FEW) & (recalls < FAILS_FEW))
    return [k for k, word in enumerate(case.statuses) if word == "alive" and fails[k]]


def _upper(recalls: Array, counts: Array) -> Array:
    """Upper end of Wilson's interval of a share."""
    with np.errstate(invalid="ignore", divide="ignore"):
        square = SIGMAS**2 / counts
        half = SIGMAS * np.sqrt(recalls * (1 - recalls) / counts + square / counts / 4)
        return np.asarray((recalls + square / 2 + half) / (1 + square))


def suspicious(case: Case, given: Given) -> list[int]:
    """Return the classes of whose samples many lie nearer to another class."""
    clues, chosen = case.clues, list[int]()
    if np.isnan(clues.straying).all() or not np.nanmedian(case.recalls) >= FITS:
        return chosen
    enough = max(STRAYS, TIMES_MEDIAN * float(np.nanmedian(clues.straying)))
    highest = (
        given.held_out_recalls if given.held_out is None else _upper(given.held_out_recalls, given.held_out.counts)
    )
    for k in np.flatnonzero((clues.straying >= enough) & (clues.straying * case.measured.counts >= LEAST_STRAYED)):
        both = [highest[k], highest[clues.nearest[k]]]
        if case.statuses[k] == "alive" and not np.min(both) > MOST_STRAYED:
            chosen.append(int(k))
    return chosen


def notes(case: Case, given: Given) -> Iterator[Finding]:
    """Return the findings that need no lost class, warnings first."""
    names, counts, clues = given.names, case.measured.counts, case.clues
    lost = failing(case, given)
    if lost:
        k = min(lost, key=lambda row: given.held_out_recalls[row])
        yield Finding(
            "too-few-samples",
            "warning",
            "data",
            tuple(names[row] for row in lost),
            {
                "count": float(counts[k]),
                "recall": float(case.recalls[k]),
                "held_out_recall": float(given.held_out_recalls[k]),
            },
            f"{_classes(lost, names)} learned by heart: {names[k]!r} has a recall of {case.recalls[k]:.0%} on its "
            f"training samples ({counts[k]:.0f}), but of only {given.held_out_recalls[k]:.0%} on held-out ones.",
            "collapsekit adjust train.npz --validation val.npz --out head.safetensors  # and collect samples",
        )
    odd = suspicious(case, given)
    if odd:
        k = max(odd, key=lambda row: clues.straying[row])
        yield Finding(
            "suspicious-labels",
            "warning" if given.held_out is not None and case.recalls[k] >= FITS else "note",
            "data",
            tuple(names[row] for row in odd),
            {"straying": float(clues.straying[k])},
            f"{clues.straying[k]:.0%} of the samples labelled {names[k]!r} look like {names[clues.nearest[k]]!r}: "
            "their labels may be wrong.",
            f"found.suspects[{names[k]!r}]  # look at these samples: check their labels",
        )
    unseen, single = np.flatnonzero(counts == 0).tolist(), np.flatnonzero(counts == 1).tolist()
    if unseen:
        yield Finding(
            "no-samples",
            "warning",
            None,
            tuple(names[row] for row in unseen),
            {"classes": float(len(unseen))},
            _unseen(unseen, given),
            "",
        )
    if single:
        yield Finding(
            "one-sample-class",
            "note",
            None,
            tuple(names[row] for row in single),
            {"classes": float(len(single))},
            f"{_classes(single, names)} known from one training sample only: recall there is 0 or 1, and says little.",
            "collapsekit measure val.npz --head train.npz  # their recall on other samples",
        )
    yield from _recipe_notes(case, given)


def _unseen(unseen: list[int], given: Given) -> str:
    names, recalls, others = given.names, given.held_out_recalls, given.held_out_other
    labels = listed([names[k] for k in unseen])
    subject = f"Classes {labels} have" if len(unseen) > 1 else f"Class {labels} has"
    told = f"{subject} no training sample here"
    tested = [k for k in unseen if np.isfinite(recalls[k])]
    if not tested:
        return f"{told}: nothing can be said of {'them' if len(unseen) > 1 else 'it'}."
    k = min(tested, key=lambda row: recalls[row])
    who = "it" if len(unseen) == 1 else repr(short(names[k]))
    named = f" (named {short(names[others[k]])!r})" if others[k] >= 0 else ""
    how = "is never right" if recalls[k] == 0 else f"has a recall of {recalls[k]:.0%}"
    return f"{told}; on held-out samples {who} {how}{named}."


def _classes(rows: list[int], names: tuple[str, ...]) -> str:
    return f"Class{'es' if len(rows) > 1 else ''} {listed([names[k] for k in rows])} {'are' if len(rows) > 1 else 'is'}"


def _recipe_notes(case: Case, given: Given) -> Iterator[Finding]:
    recipe, optimizer = given.recipe, given.optimizer
    if np.isfinite(given.excess):
        yield Finding(
            "other-recipe",
            "warning",
            None,
            (),
            {"objective_excess": given.excess},
            "Training has come to rest, but the objective of the given recipe is "
            f"{1 + given.excess:.3g} times that of its optimum: this is not the recipe of the network, and no cause "
            "rests on it.",
            "collapsekit diagnose train.npz  # with the penalties and the loss of the training, or with none",
        )
    decoupled = optimizer is not None and optimizer.name == "adamw"
    if decoupled:
        yield Finding(
            "decoupled-decay",
            "note",
            None,
            (),
            {"horizon": case.clues.horizon},
            "AdamW's weight decay is no penalty of a loss, so no prediction says what it costs each class.",
            "torch.optim.Adam(model.parameters(), weight_decay=5e-4)  # only if you want a prediction",
        )
    if isinstance(recipe, BatchNorm) and recipe.decays == "none":
        yield Finding(
            "norm-layers-excluded",
            "note",
            None,
            (),
            {"weight_decay": recipe.weight_decay},
            "Norm layers and biases do not decay, so no class can be lost to the decay of features.",
            "",
        )
    elif given.refusal is not None and not decoupled:
        yield Finding(
            "no-prediction",
            "note",
            None,
            (),
            {},
            f"No prediction: {given.refusal}.",
            "",
        )
    if case.clues.horizon <= UNACTED:
        yield Finding(
            "decay-has-not-acted",
            "note",
            None,
            (),
            {"horizon": case.clues.horizon},
            "Over the whole training the weight decay alone would have shrunk a weight by "
            f"{1 - np.exp(-case.clues.horizon):.0%}: no class was lost to it.",
            "",
        )
    if case.measured.nonnegative is False and not (recipe is None or isinstance(recipe, Plain)):
        yield Finding(
            "features-not-nonnegative",
            "note",
            None,
            (),
            {},
            "Features are negative, so they do not come from a ReLU as the prediction assumes.",
            "collapsekit diagnose train.npz --no-relu  # with your recipe",
        )
    reasons = case.measured.reasons
    if reasons and not case.dead and case.measured.moments.seen.sum() > 1:
        yield Finding(
            "degenerate-features",
            "note",
            None,
            (),
            {"metrics": float(len(reasons))},
            f"Some numbers of the geometry are not known: {next(iter(reasons.values()))}.",
            "collapsekit measure train.npz",
        )
