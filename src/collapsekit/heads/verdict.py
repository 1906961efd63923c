"""The verdict on a head, in sentences that rest on its numbers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from collapsekit.validation import Array, short

if TYPE_CHECKING:
    from collapsekit.heads._inspect import Inspection

NAMED = 8
"""So many classes are named in a sentence."""
SMALL, LARGE = 0.05, 0.5
"""‖Σ w‖ over what independent rows would give: below, decay has acted; above, it has hardly."""


def sentences(found: Inspection) -> list[str]:
    """Return the verdict: which classes can never or hardly be output, then the dead point, causes and decay."""
    if not found.norm.any():
        return ["All rows are 0: the input makes no difference to any class. The head was never trained, or was lost."]
    spoken = [
        _headline(found),
        _hardly(found),
        _sigmoids(found),
        _dead(found),
        _causes(found),
        _decay(found),
        _shares(found),
        _missing(found),
    ]
    return [one for one in spoken if one]


def _headline(found: Inspection) -> str:
    never, size = found.unreachable, len(found.names)
    if never:
        many = f"{len(never)} of {size} classes" if len(never) > 1 else f"1 of {size} classes"
        never_so = "can never be output"
        if found.output == "sigmoids":
            never_so = (
                "are never the largest of the outputs" if len(never) > 1 else "is never the largest of the outputs"
            )
        return f"{many} {never_so}, whatever the input{_condition(found)}: {_listed(found, never)}."
    return "" if found.flagged.size else f"No class of {size} stands out as one that is never output."


def _sigmoids(found: Inspection) -> str:
    """What a proof about the largest output leaves open where each output is judged alone."""
    if found.output != "sigmoids" or not found.flagged.size:
        return ""
    return "Each output has a sigmoid of its own: a class that is never the largest may still be above one half."


def _condition(found: Inspection) -> str:
    """What the proofs rest on: how logits are used if no graph says it, and where its inputs come from."""
    if found.output == "unknown":
        return f", if the output is the largest of these logits{_inputs(found)}"
    return _inputs(found)


def _inputs(found: Inspection) -> str:
    """What the proofs rest on: nothing where rows are equal, the graph, or what was said."""
    if all(len(proof.mixture) == 1 and found.activation is None for proof in found.proofs.values()):
        return ""
    if found.activation is None or found.activation.lower is None:
        return ""
    if found.activation.read and found.output == "unknown":
        return f" (the head's inputs come from a {found.activation}, read from the file)"
    if found.activation.read:
        return f" (proved; the head's inputs come from a {found.activation}, read from the file)"
    return f", if the head's inputs come from a {found.activation}"


def _hardly(found: Inspection) -> str:
    left = [int(k) for k in found.flagged if found.reachable[k] is not False]
    if not left:
        return ""
    more = "more " if found.unreachable else ""
    noun = "class" if len(left) == 1 else "classes"
    what = "the largest of the outputs" if found.output == "sigmoids" else "output"
    return f"{len(left)} {more}{noun} at or near the dead point will hardly ever be {what}: {_listed(found, left)}."


def _dead(found: Inspection) -> str:
    if not found.groups:
        return "No dead point: no rows coincide (one class without samples, alone, cannot be found from weights)."
    rows = found.groups[0].rows
    where = f"at one point of norm {found.dead_norm:.3g}"
    if np.isnan(found.distance).all():
        where += ", too short to measure distances by"
    others = sum(len(one.rows) for one in found.groups[1:])
    also = f"; {others} more coincide elsewhere" if others else ""
    return f"{len(rows)} rows coincide {where}{also}."


def _causes(found: Inspection) -> str:
    risky = found.flagged
    if not risky.size:
        return ""
    if found.counts is None:
        return (
            "Weights cannot tell classes never seen in training from classes that weight decay has taken; the counts "
            "of the training set can."
        )
    unseen = int((found.counts[risky] == 0).sum())
    missed = int((found.counts == 0).sum()) - unseen
    text = f"By the counts {unseen} of these {risky.size} classes had no samples, {risky.size - unseen} had some"
    return text + (f"; {missed} classes without samples are not among them." if missed else ".")


def _decay(found: Inspection) -> str:
    size, ratio = len(found.names), nc0_share(found.nc0, found.norm)
    percent = f"{100 * ratio:.2g}" if ratio < 0.1 else f"{100 * ratio:.0f}"
    text = f"The rows add up to a vector of norm {found.nc0:.3g}, {percent} % of what independent rows would give"
    if ratio <= SMALL:
        text += ": as at a stationary point with coupled decay"
    elif ratio >= LARGE:
        return text + ": no stationary point with coupled decay; distances bound no shares here."
    start = float(np.sqrt(size / 3))
    if 0 < found.nc0 < start:
        text += f" (from torch's default start under SGD: a horizon of {np.log(start / found.nc0):.2g} e-folds)"
    if found.bias_sum is not None:
        text += f"; the biases add up to {found.bias_sum:.3g}, 0 there if they decay, too"
    return text + "."


def _shares(found: Inspection) -> str:
    """What bounds on shares rest on, and why there are none where they were asked for."""
    if found.bias_sum is None or found.bias_decays is None:
        return ""
    if found.bias_decays:
        return "Bounds on shares hold if the bias decays as the weight does."
    return "The head has a bias: shares are bounded only if it decays as the weight does (bias_decays, --bias-decays)."


def nc0_share(nc0: float, norm: Array) -> float:
    """Return the norm of the sum of all rows over what independent rows of these norms would give."""
    alone = float(np.sqrt((norm**2).sum()))
    return nc0 / alone if alone else 0.0


def _missing(found: Inspection) -> str:
    """What would have to be said for more to be proved."""
    if not found.flagged.size:
        return ""
    if found.activation is not None:
        name = "" if found.activation.lower is not None or not found.activation.read else found.activation.name
        return name and f"The head's inputs come from {name}, which is not bounded from below: nothing is proved."
    return "What the head's inputs come from is not known; say the activation, and classes can be proved unreachable."


def _listed(found: Inspection, rows: Iterable[int]) -> str:
    rows = list(rows)
    names = ", ".join(repr(short(found.names[k])) for k in rows[:NAMED])
    return names if len(rows) <= NAMED else f"{names} and {len(rows) - NAMED} more"
