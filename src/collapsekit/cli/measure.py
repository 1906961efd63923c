"""`collapsekit measure`: stored features of a network, class by class, beside the prediction where there is one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from cyclopts import Parameter

from collapsekit import CollapseError
from collapsekit.cli._console import print_classes, print_json, print_note, print_table
from collapsekit.cli._inputs import Head, Penalties
from collapsekit.cli._reading import Reading
from collapsekit.cli.train import print_comparison
from collapsekit.data import LabelledData, read_head
from collapsekit.diagnosis import Comparison, compare, effective_penalties
from collapsekit.evidence import Scope, scope
from collapsekit.losses import Loss
from collapsekit.metrics import Measurement, conventions, measure_features
from collapsekit.prediction import Prediction, predict
from collapsekit.theory import Nearness, nearest_reference

MOST_CLASSES = 2000  # of more no reference geometries are computed: they take a singular value decomposition


def measure(
    features: Path,
    /,
    *,
    head: str | None = None,
    reading: Annotated[Reading | None, Parameter(name="*")] = None,
    trained: Annotated[Head | None, Parameter(name="*")] = None,
    penalties: Annotated[Penalties | None, Parameter(name="*")] = None,
    papers: Annotated[bool, Parameter(name="--conventions")] = False,
    json: bool = False,
) -> None:
    """Measure stored last-layer features, and lay them beside the prediction if penalties are given.

    FEATURES holds the inputs of the head, one row a sample, and labels: an .npz or .safetensors with the arrays
    features and labels (or X and y) and, of the head, weight and bias; or .npy, .csv, .parquet with --head FILE.

    Example: collapsekit measure features.npz

    Example: collapsekit measure features.npz --weight-decay 0.1 --batchnorm-branches 1

    Parameters
    ----------
    features : Path
        File of features and labels.
    head : str
        File of the head (.npz, .safetensors with weight and bias, or .npy with the weight), one row a class; of a whole
        network FILE:LAYER, e.g. checkpoint.safetensors:fc.
    papers : bool
        Print metrics as papers and scripts define them, too, each with its worst class.
    json : bool
        Print one JSON object.
    """
    reading, penalties, trained = reading or Reading(), penalties or Penalties(), trained or Head()
    data = reading.vectors(features)
    measured = _measured(data, features, head, reading.class_names, lambda counts: trained.made(penalties, counts))
    comparison, ground, expected = _compared(measured, penalties, trained)
    estimate, nearest = None, list[Nearness]()
    order = None if measured.weight is None else reading.assumed(data, len(measured.counts))
    if measured.weight is not None and not measured.moments.unseen:
        estimate = effective_penalties(measured, class_weights=_loss_weights(measured, penalties))
        if len(measured.counts) <= MOST_CLASSES:
            known = () if expected is None else (expected.problem, expected.geometry())
            nearest = nearest_reference(measured.geometry(), *known)
    if json:
        content = {
            "schema": 1,
            "measurement": measured.to_dict(),
            "counts": measured.counts.astype(int).tolist(),
            "comparison": comparison and comparison.to_dict(),
            "effective_penalties": estimate and estimate.to_dict(),
            "nearest_references": [near.to_dict() for near in nearest],
            "scope": ground.details if ground else "",
            "assumed_order": order,
        }
        if papers:
            content["conventions"] = {
                key: {"value": one.value, "worst": one.worst, "worst_class": one.worst_class}
                for key, one in conventions.readings(measured).items()
            }
        print_json(content)
        return
    if comparison is not None:
        print_comparison(comparison)
    else:
        _print_classes(measured)
    metrics = "; ".join(f"{key} {value:.4g}" for key, value in measured.metrics().items()) + "."
    ranking = ", ".join(f"{near.name} {near.shape:.3g}" for near in nearest)
    references = f"Distance in shape (0: the same, up to 2): {ranking}." if ranking else ""
    for sentence in (comparison and comparison.verdict, metrics, estimate, references, order, ground):
        if sentence:
            print_note(str(sentence))
    if papers:
        _print_conventions(measured)


def _print_conventions(measured: Measurement) -> None:
    rows = []
    for key, one in conventions.readings(measured).items():
        k = one.worst_class
        worst = ("", "") if k is None else (f"{one.worst:.4g}", measured.names[k] if measured.names else str(k))
        rows.append([key, f"{one.value:.4g}", *worst])
    print_table(["metric, as papers define it", "value", "worst", "class"], rows)
    print_note("Most of NC2 and NC3 is not 0 at an imbalanced optimum: docs/conventions.md says which can be read.")


def _measured(
    data: LabelledData, path: Path, head: str | None, names: tuple[str, ...] | None, loss: Callable[[Any], Loss]
) -> Measurement:
    weight, bias = read_head(str(path) if head is None else head, required=head is not None)
    size = len(weight) if weight is not None else max(len(names or ()), len(data.names))
    rows, shown = data.rows(size, names)
    labels = rows[data.labels]
    of_counts = loss(np.bincount(labels, minlength=size))
    return measure_features(data.inputs, labels, weight, bias, num_classes=size, names=shown, loss=of_counts)


def _compared(
    measured: Measurement, penalties: Penalties, trained: Head
) -> tuple[Comparison | None, Scope | None, Prediction | None]:
    """The network beside its prediction, or beside the reason why there is none; what was tested; the prediction."""
    outside = "no penalties were given"
    if penalties.given:
        if measured.weight is None:
            raise CollapseError("head: missing; a comparison with the prediction needs the head: give --head FILE")
        if measured.moments.unseen:
            k = measured.moments.unseen[0]
            raise CollapseError(f"features: class {k} has no samples; give the whole training set")
        reason = penalties.refusal(measured.counts)
        if reason is None:
            problem = trained.problem(penalties, measured.counts, biased=measured.bias is not None)
            expected = predict(problem)
            return compare(expected, measured), scope(problem, penalties.recipe), expected
        outside = reason
    return None if measured.weight is None else compare(None, measured, outside=outside), None, None


def _loss_weights(measured: Measurement, penalties: Penalties) -> Any:
    if penalties.class_weights is None:
        return None
    weights = np.array(penalties.class_weights, dtype=np.float64)
    if weights.shape != measured.counts.shape:
        raise CollapseError(f"class_weights: {len(weights)} for {len(measured.counts)} classes; give one a class")
    return (
        weights if penalties.weight_decay is None else weights * (measured.counts.sum() / (weights @ measured.counts))
    )


def _print_classes(measured: Measurement) -> None:
    vectors, names = measured.per_class(), measured.names or ()
    numbers = [
        (header, vectors[key], ".4g")
        for header, key in (("‖h‖²", "feature_sqnorm"), ("within", "within"), ("cdnv", "cdnv"))
    ]
    print_classes(
        [("class", names, ""), ("count", vectors["count"], ".0f"), *numbers, ("", [""] * len(names), "")],
        ("cdnv", "within"),
    )
