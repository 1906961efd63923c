"""diagnose: which classes of a trained network are lost, why, and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from collapsekit.diagnosis.causes import Case, Cause, blocks, cause_of, narrow
from collapsekit.diagnosis.clues import collect
from collapsekit.diagnosis.findings import RANKS, Finding, Told, finding
from collapsekit.diagnosis.notes import Given, failing, notes
from collapsekit.diagnosis.result import TROUBLED, ClassDiagnosis, Diagnosis
from collapsekit.diagnosis.samples import Samples, checked_samples, confusions, named_instead, suspects
from collapsekit.diagnosis.status import statuses
from collapsekit.errors import CollapseError
from collapsekit.geometry import require_same_names
from collapsekit.heads.proofs import Head, Proof, decide_all
from collapsekit.metrics import Measurement, NeuralCollapse, measure_features
from collapsekit.metrics.measurement import as_array, has_free_shift
from collapsekit.prediction import fates, predict
from collapsekit.problem import UFM
from collapsekit.recipe import LastLayer, Optimizer, Penalty, Recipe
from collapsekit.recipe._kinds import BatchNorm
from collapsekit.validation import shorten

HISTORY = ("loss", "recalls", "steps")
TIME_LIMIT = 30.0
"""Seconds for a prediction that has to be searched for: past it the best point does."""
MOST_PROVED = 50
"""Classes that are proved unreachable or not."""
MOST_PROVED_AMONG = 2_000
OTHER_RECIPE = 3.0
"""Objective of a network that has come to rest, relative to the optimum's and less 1, beyond which the problem is not
the one that was trained: 1.8 at most where the optimiser lost classes."""
MOST_NAMED = 12
"""Classes of which it is told what their samples are taken for."""


@np.errstate(all="ignore")  # what is not finite decides nothing
def diagnose(
    measured: Measurement | NeuralCollapse,
    *,
    samples: tuple[ArrayLike, ArrayLike] | None = None,
    problem: UFM | None = None,
    recipe: Recipe | None = None,
    last: LastLayer | None = None,
    optimizer: Optimizer | None = None,
    history: Mapping[str, Any] | None = None,
    held_out: Measurement | tuple[ArrayLike, ArrayLike] | None = None,
) -> Diagnosis:
    """Say which classes of a trained network are lost or weak, why, and what to do about it.

    Only the measurement is needed; whatever else is given sharpens the causes. Works with and without a bias, for
    coupled and decoupled decay, ReLU or not.

    Parameters
    ----------
    measured : Measurement or NeuralCollapse
        Of the training samples, with head: from ``measure`` or ``measure_features``.
    samples : tuple of array_like, optional
        Features (N, d) and labels (N,) that were measured: they tell coinciding and straying samples, which classes
        the features separate, and what another bias would do.
    problem : UFM, optional
        What training minimised; left out: made from `recipe`, with `last` for the last layer.
    recipe : Penalty, BatchNorm or Plain, optional
        What was penalised; beside a problem only its decay counts.
    last : LastLayer, optional
        By default a head with a bias if the measured one has one, behind one BatchNorm for that recipe.
    optimizer : Optimizer, optional
        What took the steps, with their number.
    history : mapping, optional
        Any of ``loss`` (one training loss an epoch), ``recalls`` (K numbers an epoch), ``steps``.
    held_out : Measurement or tuple of array_like, optional
        Of held-out samples with the same head; or their features and labels.

    Returns
    -------
    Diagnosis

    Raises
    ------
    CollapseError
        If there is no head, no class has samples, or what is given does not belong together.

    References
    ----------
    Causes and their order: docs/diagnose.md; the theory: Dang et al., ICML 2024, and docs/theory.md.

    Examples
    --------
    >>> import numpy as np
    >>> from collapsekit.metrics import measure_features
    >>> features = np.repeat(np.eye(3), [20, 10, 5], axis=0)
    >>> labels = np.repeat([0, 1, 2], [20, 10, 5])
    >>> measured = measure_features(features, labels, 9 * np.eye(3), [0.0, 0.0, -30.0], names=["ant", "bee", "cat"])
    >>> found = diagnose(measured, samples=(features, labels))
    >>> found.cause, [(c.label, c.status, c.cause) for c in found.classes][2]
    ('bias', ('cat', 'lost', 'bias'))
    >>> found.findings[0].sentence.partition(":")[0]
    "Class 'cat' is never predicted, although the features tell them apart"
    """
    if isinstance(measured, NeuralCollapse):
        measured = measured.measurement()
    _check(measured, optimizer, recipe, problem, last)
    given_samples = None if samples is None else checked_samples(samples, measured)
    held, tested = _held_out(held_out, measured)
    size = len(measured.counts)
    names = measured.names or tuple(str(k) for k in range(size))
    made, refusal = _problem(measured, problem, recipe, last, optimizer)
    cramped = narrow(measured.moments.dim, size)
    if made is not None and cramped:
        made = replace(made, dim=None)  # what the penalties lose where there is room: the width is a cause of its own
    prediction = None if made is None else predict(made, time_limit=TIME_LIMIT)
    if prediction is not None and np.isnan(prediction.confidences).any():
        refusal, prediction = prediction.basis.value, None
    seen_by = measured.centred() if prediction is not None and has_free_shift(prediction.problem) else measured
    words = statuses(measured)
    troubled = np.flatnonzero([word in TROUBLED for word in words])
    past = _history(history)
    clues = collect(measured, given_samples, prediction, past, _horizon(recipe, optimizer, past), troubled)
    excess = np.nan if prediction is None else seen_by.objective(prediction.problem) / prediction.objective - 1
    case = Case(
        measured=seen_by,
        statuses=words,
        recalls=np.asarray(measured.recalls),
        confidences=np.asarray(measured.confidences),
        clues=clues,
        prediction=prediction,
        fates=None
        if prediction is None
        else fates(prediction.problem.loss, prediction.confidences, prediction.collapses),
        unreachable=_unreachable(measured, troubled),
    )
    foreign = excess if excess > OTHER_RECIPE and case.over is not False and not (case.dead or cramped) else np.nan
    if np.isfinite(foreign):
        prediction, case = None, replace(case, prediction=None, fates=None)
    unknown = np.full(size, np.nan)
    held_recalls = unknown if held is None or held.recalls is None else held.recalls
    other = (
        np.full(size, -1) if tested is None else confusions(tested.logits(measured), tested.labels, tested.weights)[0]
    )
    given = Given(names, recipe, optimizer, refusal, held, held_recalls, other, foreign)
    causes = {int(k): cause_of(case, int(k)) for k in troubled}
    found = [*_findings(case, given, causes), *notes(case, given)]
    order = {id(one): i for i, one in enumerate(found)}
    found.sort(
        key=lambda one: (
            one.code != "row-order",
            RANKS[one.severity],
            one.cause is None,
            -len(one.classes),
            order[id(one)],
        )
    )
    known = {k: cause for k, (cause, _) in causes.items()} | dict.fromkeys(failing(case, given), "data")
    return Diagnosis(
        classes=tuple(_classes(case, given, known)),
        findings=tuple(found),
        suspects=_suspects(given_samples, case, found, names),
        named=_named(known, [(given_samples, measured), (tested, held)], case, names),
        prediction=prediction,
        measured=measured,
    )


def _check(
    measured: Measurement,
    optimizer: Optimizer | None,
    recipe: Recipe | None,
    problem: UFM | None,
    last: LastLayer | None,
) -> None:
    if not isinstance(measured, Measurement):
        raise CollapseError(f"measured={shorten(measured)}: give what measure or measure_features returned")
    if measured.weight is None or measured.recalls is None or measured.confidences is None:
        raise CollapseError("measured: without a head no class is predicted; measure with weight=")
    if not (measured.counts > 0).any():
        raise CollapseError("measured: no samples; measure at least one")
    kinds: dict[str, tuple[object, type, str]]
    kinds = {"optimizer": (optimizer, Optimizer, "an Optimizer"), "problem": (problem, UFM, "a UFM")}
    kinds["recipe"] = (recipe, Recipe, "a Penalty, BatchNorm or Plain")
    kinds["last"] = (last, LastLayer, "a LastLayer")
    for name, (value, kind, remedy) in kinds.items():
        if value is not None and not isinstance(value, kind):
            raise CollapseError(f"{name}={shorten(value)}: give {remedy}")


def _history(history: Mapping[str, Any] | None) -> Mapping[str, Any]:
    if history is None:
        return {}
    if not isinstance(history, Mapping):
        raise CollapseError(f"history={shorten(history)}: give a mapping with loss, recalls or steps")
    strange = next((key for key in history if key not in HISTORY), None)
    if strange is not None:
        raise CollapseError(f"history: {shorten(strange)} is none of {', '.join(HISTORY)}; leave it out or rename it")
    steps = history.get("steps")
    if steps is not None and (isinstance(steps, bool) or not isinstance(steps, Integral) or steps < 1):
        raise CollapseError(f"history: steps={shorten(steps)}; give a whole number of at least 1")
    return history


def _problem(
    measured: Measurement,
    problem: UFM | None,
    recipe: Recipe | None,
    last: LastLayer | None,
    optimizer: Optimizer | None,
) -> tuple[UFM | None, str | None]:
    """The problem that training minimised, or why none is known."""
    if problem is not None:
        if not np.array_equal(problem.counts, measured.counts):
            raise CollapseError("problem: its counts are not those measured; build it from measured.counts")
        require_same_names("problem", problem.names, measured.names)
        return problem, None
    if recipe is None:
        return None, None
    if measured.moments.unseen:
        return None, f"class {measured.moments.unseen[0]} has no samples"
    layer = last or LastLayer(biased=measured.bias is not None, branches=int(isinstance(recipe, BatchNorm)))
    # penalties that are terms of the loss are applied by the gradient, whatever takes the steps
    steps = Optimizer() if optimizer is None or isinstance(recipe, Penalty) else optimizer
    refusal = recipe.refusal(layer, steps, measured.counts)
    if refusal is not None:
        return None, refusal
    return recipe.problem(measured.counts, layer, loss=measured.loss, names=measured.names, optimizer=steps), None


def _horizon(recipe: Recipe | None, optimizer: Optimizer | None, history: Mapping[str, Any]) -> float:
    """Over how many e-folds the decay acted; NaN where that is not known."""
    if recipe is None or optimizer is None:
        return float("nan")
    steps = optimizer.steps or history.get("steps")
    if steps is None or (isinstance(recipe, Penalty) and optimizer.name == "adamw"):
        return float("nan")
    values = {key: getattr(optimizer, key) for key in Optimizer.__dataclass_fields__} | {"steps": steps}
    return Optimizer(**values).horizon(recipe.weight_decay)


def _held_out(
    held_out: Measurement | tuple[ArrayLike, ArrayLike] | None, measured: Measurement
) -> tuple[Measurement | None, Samples | None]:
    """The measurement of the held-out samples, and these, where they are given."""
    if held_out is None or isinstance(held_out, Measurement):
        if held_out is not None and (held_out.recalls is None or len(held_out.counts) != len(measured.counts)):
            raise CollapseError("held_out: measure it with the same head, over the same classes")
        if held_out is not None:
            require_same_names("held_out", held_out.names, measured.names)
            if not _same_head(held_out, measured):
                raise CollapseError("held_out: measured with another head; give measure_features the same weight, bias")
        return held_out, None
    try:
        features, labels = held_out
    except (TypeError, ValueError):
        raise CollapseError(f"held_out={shorten(held_out)}: give a Measurement, or features and labels") from None
    try:
        found = measure_features(
            features, labels, measured.weight, measured.bias, names=measured.names, loss=measured.loss
        )
    except CollapseError as error:
        raise CollapseError(f"held_out: {error}") from None
    return found, checked_samples(held_out, found, "held_out")


def _same_head(a: Measurement, b: Measurement) -> bool:
    heads = [[one.weight, one.bias] for one in (a, b)]
    return all(
        (x is None) == (y is None) and (x is None or y is None or np.allclose(as_array(x), as_array(y), rtol=1e-3))
        for x, y in zip(*heads, strict=True)
    )


def _unreachable(measured: Measurement, troubled: NDArray[np.intp]) -> frozenset[int]:
    """The troubled classes that another mixture of rows always beats, where features leave a ReLU and are few."""
    size = len(measured.counts)
    if not measured.nonnegative or measured.moments.dim >= size - 1 or size > MOST_PROVED_AMONG:
        return frozenset()
    bias = np.zeros(size) if measured.bias is None else as_array(measured.bias)
    head = Head(as_array(measured.weight), bias, 0.0)  # type: ignore[arg-type]
    decided = decide_all(head, [int(k) for k in troubled[:MOST_PROVED]])
    return frozenset(k for k, verdict in decided.items() if isinstance(verdict, Proof))


def _findings(case: Case, given: Given, causes: Mapping[int, tuple[Cause, str]]) -> list[Finding]:
    """One finding for all classes that share its code."""
    groups: dict[tuple[str, Cause], list[int]] = {}
    worst = sorted(causes, key=lambda k: (TROUBLED.index(case.statuses[k]), case.recalls[k], case.confidences[k]))
    for k in worst:  # first, in a sentence that does not name all
        cause, code = causes[k]
        groups.setdefault((code, cause), []).append(k)
    decay = np.nan if given.recipe is None else given.recipe.weight_decay
    rate = np.nan if given.optimizer is None else given.optimizer.rate
    return [finding(code, cause, Told(case, rows, given.names, decay, rate)) for (code, cause), rows in groups.items()]


def _classes(case: Case, given: Given, causes: Mapping[int, Cause]) -> list[ClassDiagnosis]:
    margins = case.measured.per_class()["margin"]
    found = []
    for k, label in enumerate(given.names):
        other = int(case.clues.other[k]) if case.clues.other[k] >= 0 else int(given.held_out_other[k])
        found.append(
            ClassDiagnosis(
                label=label,
                count=int(case.measured.counts[k]),
                status=case.statuses[k],
                cause=causes.get(k),
                recall=float(case.recalls[k]),
                confidence=float(case.confidences[k]),
                margin=float(margins[k]),
                held_out_recall=float(given.held_out_recalls[k]),
                confused_with=given.names[other] if other >= 0 else None,
            )
        )
    return found


def _suspects(
    samples: Samples | None, case: Case, found: Sequence[Finding], names: Sequence[str]
) -> dict[str, tuple[int, ...]]:
    """Positions of the samples to look at, for classes of a finding about data."""
    if samples is None:
        return {}
    about = {label for one in found if one.cause == "data" and one.code != "too-few-samples" for label in one.classes}
    about |= {names[j] for k, label in enumerate(names) if label in about for j in blocks(case, k)}
    return {label: suspects(samples, case.measured, k) for k, label in enumerate(names) if label in about}


def _named(
    causes: Mapping[int, Cause],
    sources: Sequence[tuple[Samples | None, Measurement | None]],
    case: Case,
    names: Sequence[str],
) -> dict[str, dict[str, float]]:
    """What samples of the worst classes are taken for: training samples, or held-out ones if it fails only there."""
    found = {}
    for k in sorted(causes, key=lambda row: case.recalls[row])[:MOST_NAMED]:
        samples, measured = sources[case.statuses[k] == "alive"]
        if samples is None or measured is None or not (samples.labels == k).any():
            continue
        taken = named_instead(samples.logits(measured), samples.labels, k)
        found[names[k]] = {names[j]: share for j, share in taken.items()}
    return found
