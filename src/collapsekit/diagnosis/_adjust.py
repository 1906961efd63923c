"""adjust: repair the head of a trained network without retraining the rest, and say what that brings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from collapsekit.diagnosis.before_after import divided, tables
from collapsekit.diagnosis.held_out import balanced_accuracy, cross_validated, folds, gain, recalls
from collapsekit.diagnosis.repairs import METHODS, Given, Head, Method, Samples, Unavailable, digests
from collapsekit.errors import CollapseError
from collapsekit.metrics._measure import _numbered
from collapsekit.metrics.batches import as_tensor
from collapsekit.metrics.measurement import as_array
from collapsekit.prediction import Prediction
from collapsekit.validation import Array, class_names, known, shorten

MethodName = Literal[
    "untouched", "logit-adjustment", "row-norms", "predicted-geometry", "nearest-mean", "bias-only", "retrained"
]
Data = ArrayLike | Tensor
Advance = Callable[[float, float, str], None]
FEW_SAMPLES = 3
"""A class with fewer validation samples than this is named: its recall is hardly known."""
SHARED = 0.5
"""Validation samples that are training samples too, from this share on, are no validation."""
LISTED = 5
SURE = 2.0
"""Standard errors that a gain must exceed: the best of six exceeds one in 4 of 10 heads that cannot be improved, two in
almost none."""


@dataclass(frozen=True)
class Attempt:
    """What a method brought in cross-validation: NaN, with the reason, where it cannot be had.

    Attributes
    ----------
    method : str
        Its name.
    parameter : float or None
        τ or decay, chosen on the whole validation split.
    balanced_accuracy, gain, standard_error : float
        On samples that it was not tuned on; gain over the untouched head, its paired standard error.
    reason : str
        Why it is not available, else empty.
    """

    method: str
    parameter: float | None
    balanced_accuracy: float
    gain: float
    standard_error: float
    reason: str = ""


@dataclass(frozen=True, eq=False, repr=False)
class Adjustment:
    """A repaired head, and what every class has from it on the validation split; made by :func:`adjust`.

    Attributes
    ----------
    head : tuple
        weight (K, d) and bias (K,) or None of the new head.
    chosen : str
        The method, ``"untouched"`` where none gains more than two of its standard errors.
    attempts : tuple of Attempt
        Every method.
    table : list of dict
        A row a class: label, training count, validation samples, recall before and after with 95 % intervals.
    summary : list of dict
        The same of balanced accuracy, worst class, classes with many, medium and few training samples, accuracy.
    cuts : str
        Which counts divide many, medium and few.
    folds : int
        Of the cross-validation.
    notes : tuple of str
        What to know, the outcome first.
    """

    head: Head
    chosen: str
    attempts: tuple[Attempt, ...]
    table: list[dict[str, Any]]
    summary: list[dict[str, Any]]
    cuts: str
    folds: int
    notes: tuple[str, ...]

    @property
    def attempt(self) -> Attempt:
        """What the chosen method brought."""
        return next(one for one in self.attempts if one.method == self.chosen)

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the head as plain values, None for what is not known, with the schema version."""
        content = {
            "chosen": self.chosen,
            "parameter": self.attempt.parameter,
            "bias": self.head[1] is not None,
            "methods": [vars(one) for one in self.attempts],
            "classes": self.table,
            "summary": self.summary,
            "cuts": self.cuts,
            "folds": self.folds,
            "notes": list(self.notes),
        }
        return {"schema": 1, **known(content)}

    def __repr__(self) -> str:
        first = self.summary[0]
        return f"Adjustment({self.chosen}, balanced accuracy {first['before']:.4f} → {first['after']:.4f})"


def adjust(
    train_features: Data,
    labels: Data,
    head: Data | tuple[Data, Data | None],
    *,
    validation: tuple[Data, Data],
    names: Sequence[str] | None = None,
    prediction: Prediction | None = None,
    method: MethodName | None = None,
    add_bias: bool = True,
    cuts: tuple[float, float] | None = None,
    advance: Advance = lambda done, total, what: None,
) -> Adjustment:
    """Repair the head of a trained network for its rare classes, and say what that brings on validation samples.

    A network trained on a long tail often has features that tell rare classes apart and a head that never names them.
    Six repairs change the head alone. Training features serve to count, average and fit (nearest means, the retrained
    head); the validation split alone serves to tune (every parameter), to fit the bias of ``bias-only``, and to choose,
    in stratified cross-validation: a sample's hit is always that of a head for which it was not used. The head stays
    untouched unless a method gains more balanced accuracy than two paired standard errors of its gain: among several
    methods one gains more than one standard error by chance in 4 of 10 cases.

    Parameters
    ----------
    train_features : array_like or Tensor, shape (N, d)
        Inputs of the head on the training samples, any sign.
    labels : array_like or Tensor, shape (N,)
        Whole numbers in [0, K), the row of the head; or strings, with `names`.
    head : array_like, or tuple of weight and bias
        Weight (K, d), one row a class, and bias (K,) or None.
    validation : tuple
        Features (M, d) and labels (M,) of samples that the network was not trained on; not the test split.
    names : sequence of str, optional
        K class names, in the order of the rows.
    prediction : Prediction, optional
        Of the training recipe: its margins and bias for ``predicted-geometry``, which else goes by the counts.
    method : str, optional
        Take this one, whatever it gains.
    add_bias : bool
        Whether a head without bias may get one; False leaves out the methods that need it.
    cuts : tuple of float, optional
        Classes above the first count have many samples, below the second few; left out: 100 and 20 if each of the
        three groups then has a class, else terciles of the counts.
    advance : callable, optional
        ``advance(done, total, what)`` after each method.

    Returns
    -------
    Adjustment

    Raises
    ------
    CollapseError
        If shapes, types or values do not fit, or the validation split has no class with two samples.

    References
    ----------
    Logit adjustment: Menon et al., ICLR 2021; row norms, nearest means and the retrained head: Kang et al., ICLR 2020;
    the geometry: Dang et al., ICML 2024.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> labels, held_out = np.repeat([0, 1, 2], [200, 50, 4]), np.repeat([0, 1, 2], 30)
    >>> centres = 1.5 * np.eye(3)
    >>> x, v = (centres[y] + rng.normal(size=(len(y), 3)) for y in (labels, held_out))
    >>> found = adjust(x, labels, (np.eye(3), np.log([200, 50, 4])), validation=(v, held_out))
    >>> found
    Adjustment(bias-only, balanced accuracy 0.5667 → 0.8778)
    >>> [(round(row["before"], 2), round(row["after"], 2)) for row in found.table]
    [(1.0, 0.97), (0.67, 0.87), (0.03, 0.8)]
    """
    given, samples = _checked(train_features, labels, head, validation, names, add_bias)
    if prediction is not None and prediction.problem.num_classes != len(given.weight):
        size = prediction.problem.num_classes
        raise CollapseError(f"prediction: of {size} classes for {len(given.weight)} rows; give that of this head")
    given = replace(given, prediction=prediction)
    where, number = _folds(samples)
    tried = _considered(method)
    before = samples.hits(given.weight, given.bias)
    found = dict[str, tuple[Attempt, NDArray[np.bool_], Head]]()
    for i, name in enumerate(tried):
        found[name] = _attempt(name, METHODS[name], given, samples, where, before)
        advance(i + 1, len(tried), "methods")
    chosen = _chosen({name: one for name, (one, _, _) in found.items()}, method)
    attempts, (_, after, new) = tuple(one for one, _, _ in found.values()), found[chosen]
    groups, words = divided(given.train.counts, cuts)
    table, summary = tables(before, after, samples, given, groups)
    notes = _notes(found[chosen][0], summary[0]["before"], number, given, new, samples, method)
    return Adjustment(new, chosen, attempts, table, summary, words, number, notes)


def _checked(
    features: Data,
    labels: Data,
    head: Data | tuple[Data, Data | None],
    validation: tuple[Data, Data],
    names: Sequence[str] | None,
    add_bias: bool,
) -> tuple[Given, Samples]:
    weight, bias = head if isinstance(head, tuple) else (head, None)
    W = _matrix("head", weight, None)
    if len(W) < 2:
        raise CollapseError(f"head: weight of shape {W.shape}; give one row a class, (K, d), for at least two classes")
    b = None if bias is None else as_array(as_tensor("head", bias).double())
    if b is not None and (b.shape != (len(W),) or not np.isfinite(b).all()):
        raise CollapseError(f"head: bias of shape {b.shape}; give {len(W)} finite numbers, one a row, or None")
    if not isinstance(validation, tuple | list) or len(validation) != 2:
        raise CollapseError("validation: give features and labels of the validation split, (X, y)")
    shown = class_names(names, len(W))
    train, shown = _samples("train_features", features, "labels", labels, shown, W)
    held, _ = _samples("validation features", validation[0], "validation labels", validation[1], shown, W)
    return Given(W, b, train, shown or tuple(map(str, range(len(W)))), add_bias), held


def _samples(
    place: str, features: Data, other: str, labels: Data, names: tuple[str, ...] | None, weight: Array
) -> tuple[Samples, tuple[str, ...] | None]:
    """Checked samples, and the names of the rows: those given, else those of labels that are words."""
    x = _matrix(place, features, weight.shape[1])
    try:
        y, found = _numbered(labels, names, len(weight))
    except CollapseError as error:
        raise CollapseError(str(error).replace("labels", other, 1)) from None
    if y.is_floating_point() or y.is_complex() or tuple(y.shape) != (len(x),):
        raise CollapseError(f"{other}: shape {tuple(y.shape)}, {y.dtype}; give one whole number a sample, ({len(x)},)")
    if int(y.min()) < 0 or int(y.max()) >= len(weight):
        bad = int(y.min()) if int(y.min()) < 0 else int(y.max())
        raise CollapseError(f"{other}: {bad} is no row of the head; give numbers from 0 to {len(weight) - 1}")
    return Samples(x, y.long().cpu().numpy(), len(weight)), None if found is None else tuple(found)


def _matrix(name: str, value: Data, width: int | None) -> Array:
    """A finite float64 matrix with at least one row."""
    table = as_array(as_tensor(name, value).double())
    if table.ndim != 2 or not table.size or (width is not None and table.shape[1] != width):
        wanted = "(K, d)" if width is None else f"(n, {width}), what enters the head"
        raise CollapseError(f"{name}: shape {shorten(table.shape)}; give {wanted}")
    bad = np.flatnonzero(~np.isfinite(table).all(axis=1))
    if bad.size:
        raise CollapseError(f"{name}: row {bad[0]} is not finite; remove it, or find where the network overflows")
    return table


def _folds(samples: Samples) -> tuple[NDArray[np.intp], int]:
    where, number = folds(samples)
    if np.count_nonzero(samples.counts) < 2 or number < 2:
        raise CollapseError(
            f"validation: {len(samples.labels)} samples of {np.count_nonzero(samples.counts)} classes; give samples of "
            "two classes or more, and of one of them two that differ"
        )
    return where, number


def _considered(method: MethodName | None) -> list[str]:
    if method is None:
        return [*METHODS]
    if method not in METHODS:
        raise CollapseError(f"method={shorten(method)}: give one of {', '.join(METHODS)}")
    return list(dict.fromkeys(["untouched", method]))


def _attempt(
    name: str, method: Method, given: Given, samples: Samples, fold: NDArray[np.intp], before: NDArray[np.bool_]
) -> tuple[Attempt, NDArray[np.bool_], Head]:
    """What a method brings, its hits in cross-validation, and the head that it gives."""
    try:
        if method.needs_bias and not given.biased:
            raise Unavailable("needs a bias, which the head does not have")
        after, (parameter, weight, bias) = cross_validated(method, given, samples, fold)
    except Unavailable as why:
        unknown = Attempt(name, None, np.nan, np.nan, np.nan, str(why))
        return unknown, before, (given.weight, given.bias)
    rise, error = gain(before, after, samples)
    accuracy = float(np.nanmean(recalls(after, samples)))
    return Attempt(name, parameter, accuracy, rise, error), after, (weight, bias)


def _chosen(attempts: dict[str, Attempt], method: str | None) -> str:
    """The one that is insisted on, else the best of those whose gain is more than chance among several."""
    if method is not None:
        if attempts[method].reason:
            raise CollapseError(f"method={method!r}: {attempts[method].reason}; give another, or leave it out")
        return method
    sure = {name: one.gain for name, one in attempts.items() if one.gain > SURE * one.standard_error}
    return max(sure, key=lambda name: sure[name]) if sure else "untouched"


def _notes(
    one: Attempt, before: float, number: int, given: Given, head: Head, samples: Samples, method: MethodName | None
) -> tuple[str, ...]:
    notes, counts = [_outcome(one, before, number, method is not None)], samples.counts
    right = balanced_accuracy(given.train.hits(given.weight, given.bias), given.train)
    if not given.weight.any():
        notes.append("The weight of the head as it was is 0: it told no samples apart.")
    elif right <= 1 / len(counts):
        notes.append(
            f"The head as it was names {right:.1%} of the training samples right (mean over classes), no better than "
            "chance: are its rows in the order of the labels, and are these the features that enter it?"
        )
    if given.prediction is not None and given.margins is None:
        notes.append("The prediction keeps not every class alive: predicted-geometry goes by the counts.")
    if head[1] is not None and given.bias is None:
        notes.append("The head had no bias, the new one has.")
    elif given.bias is None and not given.add_bias:
        notes.append("The head has no bias: only methods that need none were considered.")
    for words, found in (
        ("without validation samples: nothing is known of them", counts == 0),
        (f"with fewer than {FEW_SAMPLES} validation samples: their recall is hardly known", _between(counts)),
    ):
        if found.any():
            some = "class is" if found.sum() == 1 else "classes are"
            notes.append(f"{found.sum()} {some} {words} ({_listed([given.names[k] for k in np.flatnonzero(found)])}).")
    known = set(digests(given.train.features))
    shared = sum(mark in known for mark in digests(samples.features))
    if shared >= SHARED * len(samples.labels):
        notes.append(
            f"{shared} of {len(samples.labels)} validation samples have the features of a training sample: what is "
            "gained there says nothing of new data; give samples that the network was not trained on."
        )
    return tuple(notes)


def _between(counts: NDArray[np.int64]) -> NDArray[np.bool_]:
    return (counts > 0) & (counts < FEW_SAMPLES)


def _outcome(one: Attempt, before: float, number: int, asked: bool) -> str:
    if one.method == "untouched":
        why = (
            "that was asked for"
            if asked
            else f"no method gains more than two standard errors in {number}-fold cross-validation"
        )
        return f"The head stays: {why}."
    symbol = METHODS[one.method].symbol
    how = f" ({symbol} = {one.parameter:g})" if symbol else ""
    return (
        f"{one.method}{how}: balanced accuracy {before:.3f} → {one.balanced_accuracy:.3f}, a "
        f"gain of {one.gain:+.3f} ± {one.standard_error:.3f} (standard error) in {number}-fold cross-validation on the "
        "validation split."
    )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(shorten(name) for name in names[:LISTED]) + more
