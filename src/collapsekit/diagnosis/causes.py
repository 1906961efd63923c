"""Why a class is lost: one small rule a cause, asked in an order in which an earlier one explains a later one away.

Thresholds were set on some eighty small networks made on purpose for each cause (experiments/diagnosis_suite.py holds
others, about half of them made after the rules were frozen). Rules mended since, with thresholds set by looking at both
halves: features that are all 0, row order, bias, blocks of wrong labels, overlapping classes, divergence. Mended
after a blind half C: twins of short features, dead units, a loss that jumps to the end. Mended after a second blind
half D: the bias under squared error, equal inputs of whole classes, equal features that no decay leaves, dead units
before training is over, heads that were thrown back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from collapsekit.diagnosis.clues import CONSTANT, WITHIN, Clues
from collapsekit.diagnosis.samples import EMPTY
from collapsekit.diagnosis.status import Status
from collapsekit.metrics import Measurement
from collapsekit.prediction import Prediction
from collapsekit.prediction._fates import HALF, Fate, confidence_decides
from collapsekit.recipe._optimizer import UNACTED
from collapsekit.validation import Array

Cause = Literal["regularisation", "optimiser", "unfinished", "data", "bias", "width", "unknown"]

STILL = 0.9
"""Cosine of head and force from which training stands still: 0.97 and more in networks that do, 0.71 at most before."""
AT_REST, UNSTABLE = 0.95, 0.3
"""The cosine from which a strong decay comes first; how much the loss rises again under steps too large."""
FORGOTTEN, FAINT = 0.01, 0.01
"""Share of its start up to which a head is gone; part of a logit up to which features that are all the same may have
decayed: 0.34 and more in those that never did."""
GROWN, AS_SHARES = 100.0, 0.9
"""Squared length of rows over that of their start from which a head has been far (11 at most in networks stopped early
or with a wrong bias), and loss over the entropy of the class shares from which it is of no use there."""
HELD, LOOSE, PULLED = 0.85, 0.75, 0.5
"""The same where nothing speaks against it; below which a head is still on its way; and under AdamW's noise (0.56 to
0.89)."""
FALLING, LEVEL, RISEN = 0.045, 0.02, 0.1
"""Share of the loss's fall in the second half of training from which it is not over, and up to which it is; and by
which the loss rises again where a decay gains the upper hand."""
PRICE = 0.03
"""Error probability that the decay costs a class from which it may have lost it; everyday decays cost below 0.01."""
ACTED, LONG = 1.0, 10.0
"""E-folds from which a decay has moved what it decays, and from which nothing is left of the start."""
SHIFTED, FAR_SHIFTED = 2.0, 5.0
"""Range of what a bias that fits adds, in logits, from which the bias is wrong: 2.4 and more where it is, 1.8 under
the noise of large steps; and where training is not over: 3.1 at most in networks stopped early, 6.3 and more
under wrong biases."""
HALF_WAY, WHOLE_WAY = 0.5, 1.0
"""The same for squared error, whose targets lie 1 apart: a bias off by this much hides samples that are fitted so far.
0.31 at most in networks stopped early."""
UNDERNAMED, MENDED, ALL_MENDED = 0.6, 0.2, 0.85
"""A bias hides a class that has less than this part of its share of the output, gains so much recall by a bias that
fits the shares, and this bias gives all classes together at least this recall: in unfinished networks it does not."""
ALONGSIDE = 0.75
"""Part of its share below which another weak class of a network with a wrong bias is explained by it, too."""
COINCIDING = 0.5
"""Share of coinciding samples from which half the recall is out of reach."""
MIXED, OVERLAPPING, NEARLY, ASTRAY = 0.75, 0.85, 0.88, 0.4
"""Mean recall of a linear rule on two classes, each sample left out, below which their samples are not told apart; up
to the second if nothing else explains the loss, up to the third if this share of samples is nearer to another mean."""
BLOCK, BLOCK_SAMPLES, TIMES_MEDIAN = 0.25, 8, 5.0
"""Share and number of the samples of one class nearer to the mean of another, and how many times the median class's,
from which they are a block of wrong labels."""
AT_BEST = 0.02
"""How far the mean recall may lie below that of the nearest class mean in a network that does what its features
allow."""
LEARNED = 0.8
"""Median recall from which a network has learned its other classes: 0.95 and more beside spoiled data, 0.72 at most in
unfinished networks whose classes overlap."""
SURE_COUNT = 8
"""Samples from which the first of these is no accident."""
NO_FEATURE = 0.01
"""Squared length relative to the longest class mean below which a class has no feature that data could spoil."""
NARROW, ROOMY = 3, 8
"""Up to so many dimensions, or a third of the classes but at most the second, rows of a head lie between others; in any
number below K − 1 they may."""
NEAR_HALF, AS_EXPECTED = 0.6, 0.15
"""A class expected just above one half is lost as expected if its confidence is not far below."""
TOO_FEW = 4
"""Samples up to which a class that nothing else explains is too small."""


@dataclass(frozen=True, eq=False)
class Case:
    """A network with all that is known of it."""

    measured: Measurement
    statuses: list[Status]
    recalls: Array
    confidences: Array
    clues: Clues
    prediction: Prediction | None
    fates: list[Fate] | None
    unreachable: frozenset[int]

    @property
    def over(self) -> bool | None:
        """Whether training is over: the head stands still, or the loss does; None where nothing says so.

        A loss that stands still while the head does not is what the end of a learning-rate schedule makes.
        """
        clues = self.clues
        if clues.alignment >= STILL or (clues.alignment >= LOOSE and clues.horizon >= LONG):
            return True
        if clues.falling >= FALLING:
            return False
        if clues.alignment < LOOSE:
            return None if clues.falling < LEVEL else False
        return None if np.isnan(clues.falling) or np.isnan(clues.alignment) else True

    @property
    def fits(self) -> bool:
        """Whether the network has learned its other classes."""
        return float(np.nanmedian(self.recalls)) >= LEARNED

    @property
    def at_best(self) -> bool:
        """Whether, as far as is known, the loss no longer falls, and the head does as well as nearest class means."""
        seen = self.measured.counts > 0
        reached, nearest = self.recalls[seen].mean(), 1 - self.clues.straying[seen].mean()
        return bool(not self.clues.falling >= FALLING and reached >= nearest - AT_BEST)

    @property
    def dim(self) -> int:
        """Width of the features."""
        return self.measured.moments.dim

    @property
    def dead(self) -> bool:
        """Whether all samples have one and the same feature."""
        return self.clues.spread <= CONSTANT


def other_order(case: Case, k: int) -> bool:
    """The samples get the name of one other row, and so on in a circle: rows and labels have different orders."""
    return bool(case.clues.rows[k] != k)


def dead_features(case: Case, k: int) -> bool:
    """All features are the same although the optimum keeps the class; or 0, with the head still there."""
    kept = case.fates is not None and case.fates[k] == "survives"
    return case.dead and (kept or (not case.clues.length.any() and case.clues.start > FORGOTTEN))


def decayed_to_nothing(case: Case, k: int) -> bool:
    """All features are the same, and nothing is left of them in the logits; no step too large has made them 0."""
    return case.dead and case.clues.faint <= FAINT


def regularised(case: Case, k: int) -> bool:
    """The optimum of the recipe's own problem loses the class, or keeps it just so."""
    if case.prediction is None or case.fates is None or _only_begun(case):
        return False
    if case.fates[k] in ("collapses", "nearly lost"):
        return True
    expected = case.prediction.confidences[k]
    return bool(expected <= NEAR_HALF and case.confidences[k] >= expected - AS_EXPECTED)


def _only_begun(case: Case) -> bool:
    return case.over is False and (case.clues.horizon <= UNACTED or case.clues.falling >= FALLING)


def hidden_by_bias(case: Case, k: int) -> bool:
    """The bias that fits the shares of the data brings the class back, and all others with it."""
    clues = case.clues
    if case.measured.bias is None:
        return False
    known = clues.refitted[np.isfinite(clues.refitted)]
    if not known.size or known.mean() < ALL_MENDED:
        return False
    rate = clues.named / np.where(clues.shares > 0, clues.shares, np.nan)
    hidden = (rate < UNDERNAMED) & (clues.refitted >= np.maximum(HALF, case.recalls + MENDED))
    near, far = shifted(case)
    enough = far if case.over is False else near
    return bool(hidden.any() and np.ptp(clues.shift) >= enough and rate[k] < ALONGSIDE and clues.refitted[k] >= HALF)


def shifted(case: Case) -> tuple[float, float]:
    """Return from which range of what is added the bias is wrong, and from which where training is not over."""
    return (SHIFTED, FAR_SHIFTED) if confidence_decides(case.measured.loss) else (HALF_WAY, WHOLE_WAY)


def coincides(case: Case, k: int) -> bool:
    """Half of the samples or more have a twin under another label."""
    return bool(case.clues.coinciding[k] >= COINCIDING)


def too_narrow(case: Case, k: int) -> bool:
    """So few dimensions that rows of the head lie between others."""
    return narrow(case.dim, len(case.statuses))


def narrow(dim: int, size: int) -> bool:
    """Return whether so many dimensions leave no room for so many classes."""
    return dim < size - 1 and dim <= max(NARROW, min(ROOMY, size / 3))


def mixed(case: Case, k: int) -> bool:
    """The samples are among those of another class, whatever the head."""
    clues = case.clues
    astray = clues.straying[k] >= ASTRAY or bool(blocks(case, k))
    among = clues.apart[k] < MIXED or (clues.apart[k] < NEARLY and astray)
    enough = case.measured.counts[k] >= SURE_COUNT and (case.fits or case.over is True)
    return bool(among and enough and _has_feature(case, k))


def blocks(case: Case, k: int) -> list[int]:
    """Return the classes of which a clear block of samples lies nearer to the mean of class k."""
    clues, counts = case.clues, case.measured.counts
    if np.isnan(clues.straying).all():
        return []
    least = max(BLOCK, TIMES_MEDIAN * float(np.nanmedian(clues.straying)))
    clear = (clues.nearest == k) & (clues.straying >= least) & (clues.straying * counts >= BLOCK_SAMPLES)
    return [int(j) for j in np.flatnonzero(clear)]


def overlapping_everywhere(case: Case, k: int) -> bool:
    """The network does what its features allow, and most of its weak classes overlap for any linear rule."""
    return case.at_best and _most_overlap(case) and _has_feature(case, k)


def _most_overlap(case: Case) -> bool:
    known = case.clues.apart[np.isfinite(case.clues.apart)]
    return bool(known.size and np.median(known) < OVERLAPPING)


def overlapping(case: Case, k: int) -> bool:
    """The samples overlap with those of another class, and training is over."""
    return bool(case.clues.apart[k] < OVERLAPPING and case.fits and case.over is not False and _has_feature(case, k))


def _has_feature(case: Case, k: int) -> bool:
    return bool(case.clues.length[k] >= NO_FEATURE)


def affordable(case: Case, k: int) -> bool:
    """All features have collapsed, the class to nothing, although the decay would leave it more than one half."""
    clues = case.clues
    if case.prediction is not None or clues.alignment < AT_REST or not clues.scatter <= WITHIN:
        return False
    return bool(clues.length[k] < EMPTY and PRICE <= clues.prices[k] < HALF)


def held_down(case: Case, k: int) -> bool:
    """The head stands still against a decay that costs a class of this size dearly."""
    return case.clues.alignment >= AT_REST and pulled_down(case, k)


def pulled_down(case: Case, k: int) -> bool:
    """The head is held by a decay that costs a class of this size dearly, under noise."""
    clues = case.clues
    if case.prediction is not None or clues.horizon <= UNACTED or not clues.prices[k] >= PRICE:
        return False
    held = clues.alignment >= HELD and case.over is not False
    died = clues.died[k] and case.over is not False
    acted = clues.horizon >= ACTED or clues.falling < LEVEL or clues.risen >= RISEN or died
    return bool(held or (clues.alignment >= PULLED and acted))


def dead_units(case: Case, k: int) -> bool:
    """Of features that are many so few vary at all that rows of the head lie between others.

    Training is over, or what is left does not tell the weak classes apart: units without a gradient do not come back.
    """
    size = len(case.statuses)
    final = case.over is not False or _most_overlap(case)
    return final and narrow(case.clues.units, size) and not narrow(case.dim, size)


def unstable(case: Case, k: int) -> bool:
    """The loss rises again or stands still, but the head does not: steps too large for it to come to rest.

    Or the head has been far and is of no use there.
    """
    clues = case.clues
    if clues.alignment < PULLED and thrown_back(case):
        return True
    rising = max(clues.risen, clues.rises) >= UNSTABLE and clues.alignment < PULLED
    return bool(rising or (clues.falling < LEVEL and clues.alignment < LOOSE and not case.at_best))


def thrown_back(case: Case) -> bool:
    """Return whether rows are far longer than at their start, and the loss hardly below that of a bias alone."""
    return case.clues.grown >= GROWN and case.clues.excess >= AS_SHARES


def diverged(case: Case, k: int) -> bool:
    """The loss became infinite or NaN."""
    return case.clues.diverged


def unfinished(case: Case, k: int) -> bool:
    """Training is not over: the loss falls, or the head is on its way."""
    return case.over is False and not case.at_best


def spurious(case: Case, k: int) -> bool:
    """Training is over, and the optimum of its own problem keeps the class."""
    return case.fates is not None and case.fates[k] == "survives" and case.over is True


def unreachable(case: Case, k: int) -> bool:
    """Fewer dimensions than classes need, and a mixture of other rows beats this one whatever the input."""
    return k in case.unreachable and case.dim < len(case.statuses) - 1


def too_few(case: Case, k: int) -> bool:
    """Hardly any samples, and nothing else."""
    return bool(case.measured.counts[k] <= TOO_FEW)


Rule = Callable[[Case, int], bool]
RULES: tuple[tuple[Rule, Cause, str], ...] = (
    (other_order, "unknown", "row-order"),
    (regularised, "regularisation", "regularised-away"),
    (dead_features, "optimiser", "degenerate-features"),
    (decayed_to_nothing, "regularisation", "decay-too-strong"),
    (diverged, "optimiser", "unstable-training"),
    (hidden_by_bias, "bias", "hidden-by-bias"),
    (too_narrow, "width", "too-narrow"),
    (affordable, "optimiser", "lost-by-the-optimiser"),
    (held_down, "regularisation", "decay-too-strong"),
    (coincides, "data", "coinciding-samples"),
    (mixed, "data", "inseparable-classes"),
    (pulled_down, "regularisation", "decay-too-strong"),
    (overlapping, "data", "inseparable-classes"),
    (overlapping_everywhere, "data", "inseparable-classes"),
    (dead_units, "optimiser", "degenerate-features"),
    (unstable, "optimiser", "unstable-training"),
    (unfinished, "unfinished", "unfinished-training"),
    (spurious, "optimiser", "lost-by-the-optimiser"),
    (unreachable, "width", "too-narrow"),
    (too_few, "data", "too-few-samples"),
)
"""A rule, the cause and the finding that it names. An order of labels that is not the head's is no
fault of the network and comes before all; then what the recipe itself loses; then what no training
mends (bias, twins, width, mixed samples); a decay before an unfinished training, which it resembles; the optimiser
where all else is excluded."""


def cause_of(case: Case, k: int) -> tuple[Cause, str]:
    """Return the first cause that explains a class, and its finding."""
    return next(((cause, code) for rule, cause, code in RULES if rule(case, k)), ("unknown", "unknown-cause"))
