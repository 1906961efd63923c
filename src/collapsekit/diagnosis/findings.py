"""Findings: what is told of the classes that share a cause, in a sentence, with a remedy that can be typed."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from collapsekit.diagnosis.causes import ASTRAY, FALLING, Case, Cause, blocks, shifted, thrown_back
from collapsekit.diagnosis.status import GONE
from collapsekit.prediction._fates import HALF
from collapsekit.validation import Array, short

Severity = Literal["error", "warning", "note"]
RANKS: dict[Severity, int] = {"error": 0, "warning": 1, "note": 2}
PAGE = "docs/diagnose.md"
SAFE = 0.9
"""Share of the largest possible decay that is recommended."""
LISTED, LETTERS, MOST_TYPED = 6, 40, 20
"""Names in a sentence; letters of a name; numbers in a line."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or worth knowing.

    Attributes
    ----------
    code : str
        Stable name of its kind; the anchor of its section in docs/diagnose.md.
    severity : {"error", "warning", "note"}
        error: classes are never predicted; warning: classes are weak, or fail on held-out samples.
    cause : str or None
        regularisation, optimiser, unfinished, data, bias, width or unknown; None for what is no cause.
    classes : tuple of str
        The classes it is about.
    numbers : dict of str to float
        What it rests on.
    sentence : str
        What is the matter.
    remedy : str
        What to type.
    """

    code: str
    severity: Severity
    cause: Cause | None
    classes: tuple[str, ...]
    numbers: dict[str, float]
    sentence: str
    remedy: str

    @property
    def page(self) -> str:
        """Where the documentation explains it."""
        return f"{PAGE}#{self.code}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values; a number that is not known is None."""
        numbers = {key: value if np.isfinite(value) else None for key, value in self.numbers.items()}
        return asdict(self) | {"classes": list(self.classes), "numbers": numbers, "page": self.page}


def listed(labels: Sequence[str], most: int = LISTED) -> str:
    """Return names in words."""
    shown = [f"{short(label, LETTERS)!r}" for label in labels[:most]]
    if len(labels) > most:
        return f"{', '.join(shown)} and {len(labels) - most} more"
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


@dataclass(frozen=True)
class Told:
    """The classes of a finding, for the functions that put it in words."""

    case: Case
    rows: list[int]
    names: tuple[str, ...]
    decay: float
    rate: float

    @property
    def labels(self) -> list[str]:
        """Their names."""
        return [self.names[k] for k in self.rows]

    @property
    def subject(self) -> str:
        """Who, and what is the matter with them."""
        gone = {self.case.statuses[k] in GONE for k in self.rows}
        weak = any(self.case.recalls[k] < HALF for k in self.rows if self.case.statuses[k] not in GONE)
        sure = any(self.case.recalls[k] >= HALF for k in self.rows)
        what = " or ".join(word for word, held in (("never", True in gone), ("hardly", weak)) if held)
        words = [f"{what} predicted"] if what else []
        what = ", or ".join([*words, *(["right, but with low confidence"] if sure else [])])
        many = len(self.rows) > 1
        return f"{'Classes' if many else 'Class'} {listed(self.labels)} {'are' if many else 'is'} {what}"

    def worst(self, values: Array) -> int:
        """Return the class of the smallest value."""
        return min(self.rows, key=lambda k: np.inf if np.isnan(values[k]) else values[k])

    def partner(self, k: int) -> str:
        """Return the class it is mistaken for."""
        clues = self.case.clues
        for other in (clues.twin[k], clues.other[k], clues.nearest[k]):
            if other >= 0:
                return repr(short(self.names[other]))
        return "another class"


Words = tuple[str, str, dict[str, float]]
"""Sentence, remedy, numbers."""


def row_order(told: Told) -> Words:
    """Labels and rows in two orders."""
    case, rows = told.case, told.case.clues.rows
    label, given = told.names[told.rows[0]], told.names[rows[told.rows[0]]]
    steps = {int(k - rows[k]) for k in told.rows}
    how = (
        "counted from 1, and the rows from 0" if steps == {1} else "in another order than the rows of the output layer"
    )
    rest = ", and each of the others as one other class, too" if len(told.rows) > 2 else " and the other way round"
    names = shlex.join(told.names[k] for k in np.argsort(rows))
    return (
        f"{told.subject}, yet nearly all samples of {short(label)!r} are named {short(given)!r}"
        f"{rest}: the labels are {how}.",
        f"collapsekit diagnose train.npz --class-names {names}  # one a row, in the order of the training",
        {"classes": float(len(told.rows)), "recall": float(np.nanmean(case.recalls[told.rows]))},
    )


def regularised_away(told: Told) -> Words:
    """The recipe's own optimum loses them."""
    prediction = told.case.prediction
    assert prediction is not None
    k = told.worst(prediction.confidences)
    expected, headroom = float(prediction.confidences[k]), float(np.min(prediction.headroom[told.rows]))
    numbers = {"predicted_confidence": expected, "headroom": headroom, "count": float(told.case.measured.counts[k])}
    divide = 1 / (SAFE * np.sqrt(headroom)) if headroom > 0 else 10.0
    divide = max(divide, 2.0)
    remedy = (
        f"weight_decay={told.decay / divide:.2g}"
        if told.decay > 0
        else f"lambda_w, lambda_h = lambda_w / {divide:.2g}, lambda_h / {divide:.2g}"
    )
    return (
        f"{told.subject}: the weight decay is too strong for so few samples, so that even perfect training gives "
        f"{told.names[k]!r} a confidence of only {expected:.2f}.",
        f"{remedy}  # of all decays a {divide:.2g}th part; then train again",
        numbers,
    )


def decay_too_strong(told: Told) -> Words:
    """The head is held by its decay."""
    clues = told.case.clues
    k = told.worst(-clues.prices)
    count = told.case.measured.counts[k]
    numbers = {
        "alignment": clues.alignment,
        "implied_decay": clues.decay,
        "price": float(clues.prices[k]),
        "horizon": clues.horizon,
    }
    decay = told.decay if told.decay > 0 else clues.decay
    value = f"weight_decay={decay / 10:.1g}" if np.isfinite(decay) else "weight_decay=0.0005"
    return (
        f"{told.subject}: training has come to rest against its weight decay, which costs a class of {count:.0f} "
        "samples more than it can gain.",
        f"{value}  # a tenth of what now holds the head back; then train again",
        numbers,
    )


def hidden_by_bias(told: Told) -> Words:
    """The bias is wrong."""
    clues = told.case.clues
    k = told.worst(clues.named / np.maximum(clues.shares, 1e-300))
    remedy = _added_to_bias(told)
    return (
        f"{told.subject}, although the features tell them apart: the bias of the output layer hides them, and another "
        f"bias gives {told.names[k]!r} a recall of {clues.refitted[k]:.0%} without retraining.",
        remedy,
        {
            "share_of_output": float(clues.named[k]),
            "share_of_samples": float(clues.shares[k]),
            "recall_with_another_bias": float(clues.refitted[k]),
            "added_to_bias": float(clues.shift[k]),
        },
    )


def _added_to_bias(told: Told) -> str:
    """The line that adds what fits: to the hidden rows where only they are off, else to all."""
    shift, rows = told.case.clues.shift, told.rows
    rest = np.delete(shift, rows)
    alone = rest.size > 0 and float(np.ptp(rest)) < shifted(told.case)[0] and len(rows) <= LISTED
    if told.case.measured.bias is None or not (alone or len(shift) <= MOST_TYPED):
        return "collapsekit adjust train.npz --validation val.npz --out head.safetensors"
    numbers = ", ".join(f"{one:.2f}" for one in (shift[rows] - np.median(rest) if alone else shift))
    return f"head.bias.data{[rows] if alone else ''} += torch.tensor([{numbers}])"


def coinciding_samples(told: Told) -> Words:
    """Twins under another label."""
    clues = told.case.clues
    k = told.worst(-clues.coinciding)
    return (
        f"{told.subject}: {clues.coinciding[k]:.0%} of the samples of {told.names[k]!r} are the same as samples of "
        f"{told.partner(k)}, so that no network can name both.",
        f"found.suspects[{told.names[k]!r}]  # look at these samples: give equal inputs one label",
        {"coinciding": float(clues.coinciding[k]), "recall": float(told.case.recalls[k])},
    )


def inseparable(told: Told) -> Words:
    """Samples among those of another class."""
    clues = told.case.clues
    k = told.worst(clues.apart)
    others = blocks(told.case, k)
    where = told.names[others[0] if others and not clues.straying[k] >= ASTRAY else k]
    return (
        f"{told.subject}: samples of {told.names[k]!r} lie among those of {told.partner(k)}; a linear rule tells the "
        f"two apart in only {clues.apart[k]:.0%}, so the labels or the inputs do not separate them.",
        f"found.suspects[{where!r}]  # look at these samples: relabel them, or add inputs that show the difference",
        {
            "told_apart": float(clues.apart[k]),
            "straying": float(clues.straying[k]),
            "mistaken": float(clues.mistaken[k]),
        },
    )


def too_few_samples(told: Told) -> Words:
    """Too small to be learned."""
    counts = told.case.measured.counts
    k = told.worst(counts)
    return (
        f"{told.subject}: {told.names[k]!r} has only {counts[k]:.0f} training samples.",
        "collapsekit adjust train.npz --validation val.npz --out head.safetensors  # and collect samples",
        {"count": float(counts[k])},
    )


def too_narrow(told: Told) -> Words:
    """Too few dimensions."""
    size, dim = len(told.names), told.case.dim
    return (
        f"{told.subject}: the output layer sees only {dim} numbers for {size} classes, and these lie between others "
        "there.",
        f"torch.nn.Linear({size}, {size})  # as output layer: widen the layer before it from {dim} to {size} or more",
        {
            "dim": float(dim),
            "classes": float(size),
            "proved_unreachable": float(sum(k in told.case.unreachable for k in told.rows)),
        },
    )


def unfinished(told: Told) -> Words:
    """Training is not over."""
    clues = told.case.clues
    falls = (
        f"in its second half the loss still made {clues.falling:.0%} of its way down"
        if clues.falling > FALLING
        else "the output layer is still on its way"
    )
    return (
        f"{told.subject}: training stopped too early; {falls}.",
        "for epoch in range(2 * epochs): ...  # train on with the same optimizer, or with a larger learning rate",
        {"falling": clues.falling, "alignment": clues.alignment, "horizon": clues.horizon},
    )


def lost_by_the_optimiser(told: Told) -> Words:
    """A spurious point."""
    case, prediction = told.case, told.case.prediction
    if prediction is None:
        return _affordable(told)
    k = told.worst(prediction.confidences)
    excess = case.measured.objective(prediction.problem) / prediction.objective - 1 if prediction.objective else np.nan
    rate = f"lr={told.rate / 3:.2g}" if told.rate > 0 else "lr /= 3"
    return (
        f"{told.subject}, although this recipe can keep them: training has come to rest at a poor point "
        f"({excess:.1%} above the best), where {told.names[k]!r} has {case.confidences[k]:.2f} instead of "
        f"{prediction.confidences[k]:.2f} confidence.",
        f"torch.manual_seed(1); {rate}  # train again, with decays that begin at 0 and grow over the first half",
        {
            "objective_excess": float(excess),
            "gap": prediction.gap,
            "predicted_confidence": float(prediction.confidences[k]),
            "confidence": float(case.confidences[k]),
        },
    )


def _affordable(told: Told) -> Words:
    """A spurious point, by the decay that the head itself shows."""
    clues = told.case.clues
    k = told.worst(-clues.prices)
    rate = f"lr={told.rate / 3:.2g}" if told.rate > 0 else "lr /= 3"
    return (
        f"{told.subject}, although the decay that holds the head leaves {told.names[k]!r} a confidence of about "
        f"{1 - clues.prices[k]:.2f}: training has come to rest at a poor point.",
        f"torch.manual_seed(1); {rate}  # train again, with decays that begin at 0 and grow over the first half",
        {"implied_decay": clues.decay, "price": float(clues.prices[k]), "alignment": clues.alignment},
    )


def unstable_training(told: Told) -> Words:
    """Steps too large."""
    clues = told.case.clues
    rate = f"lr={told.rate / 10:.2g}" if told.rate > 0 else "lr /= 10"
    what = "the loss no longer falls, yet the weights do not come to rest, as under too large steps"
    if clues.diverged:
        what = "the loss became infinite or NaN, training diverged under too large steps"
    elif thrown_back(told.case):
        what = (
            f"rows of the output layer are {np.sqrt(clues.grown):.0f} times as long as at their start, yet the loss is "
            "hardly below that of guessing by the class shares, as after too large a step"
        )
    return (
        f"{told.subject}: {what}.",
        f"{rate}  # train again, with a learning rate that falls to 0",
        {"falling": clues.falling, "risen": clues.risen, "alignment": clues.alignment},
    )


def degenerate_features(told: Told) -> Words:
    """All features, or all but a few, are the same for every sample."""
    clues, dim = told.case.clues, told.case.dim
    rate = f"lr={told.rate / 10:.2g}" if told.rate > 0 else "lr /= 10"
    few = f"{clues.units} of {dim} features still {'varies' if clues.units == 1 else 'vary'}"
    what = f"only {few} from sample to sample"
    if told.case.dead:
        every = "the same for every sample" if clues.length.any() else "0"
        what = f"no input reaches the output layer any more, every feature is {every}"
    return (
        f"{told.subject}: {what}, as after too large a step.",
        f"{rate}  # train again from the start",
        {"features_that_vary": float(clues.units), "start": clues.start},
    )


def unknown_cause(told: Told) -> Words:
    """Nothing decides."""
    clues = told.case.clues
    remedy = "collapsekit diagnose train.npz --weight-decay 5e-4 --learning-rate 0.1 --steps 1000  # with your numbers"
    if np.isnan(clues.straying).all():
        remedy = "diagnose(measured, samples=(features, labels), history={'loss': losses})"
    return (
        f"{told.subject}, and nothing that was given decides why.",
        remedy,
        {"alignment": clues.alignment, "falling": clues.falling, "horizon": clues.horizon},
    )


WORDS: dict[str, Callable[[Told], Words]] = {
    "row-order": row_order,
    "regularised-away": regularised_away,
    "decay-too-strong": decay_too_strong,
    "degenerate-features": degenerate_features,
    "hidden-by-bias": hidden_by_bias,
    "coinciding-samples": coinciding_samples,
    "inseparable-classes": inseparable,
    "too-few-samples": too_few_samples,
    "too-narrow": too_narrow,
    "unfinished-training": unfinished,
    "unstable-training": unstable_training,
    "lost-by-the-optimiser": lost_by_the_optimiser,
    "unknown-cause": unknown_cause,
}


def finding(code: str, cause: Cause, told: Told) -> Finding:
    """Return the finding of the classes that share a code."""
    sentence, remedy, numbers = WORDS[code](told)
    gone = any(told.case.statuses[k] in GONE for k in told.rows)
    return Finding(code, "error" if gone else "warning", cause, tuple(told.labels), numbers, sentence, remedy)
