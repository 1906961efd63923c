"""`collapsekit measure`: stored features of a network, class by class, beside the prediction where there is one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
from cyclopts import Parameter

from collapsekit import UFM, CollapseError
from collapsekit.cli._console import print_classes, print_json, print_note
from collapsekit.cli._inputs import Penalties
from collapsekit.cli.train import print_comparison
from collapsekit.data import LabelledData, read, read_head
from collapsekit.diagnosis import Comparison, compare, effective_penalties
from collapsekit.evidence import Scope, scope
from collapsekit.metrics import Measurement, measure_features
from collapsekit.prediction import Prediction
from collapsekit.prediction._predict import predicted
from collapsekit.recipe import Recipe
from collapsekit.theory import Nearness, nearest_reference
from collapsekit.validation import shorten

MOST_CLASSES = 2000
"""Of more classes no reference geometries are computed: they take a singular value decomposition."""


def measure(
    features: Path,
    /,
    *,
    head: str | None = None,
    label_column: str | None = None,
    delimiter: str | None = None,
    keep_na: bool = False,
    class_names: tuple[str, ...] | None = None,
    penalties: Annotated[Penalties | None, Parameter(name="*")] = None,
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
    label_column : str
        Column of a table that holds the labels.
    delimiter : str
        Delimiter of a table, where it is none of comma, semicolon and tab.
    keep_na : bool
        Labels like NA, null, none and ? are classes, not missing.
    class_names : tuple of str
        One name a row of the head, in the order of its rows. Left out: labels that are words are taken in sorted order.
    json : bool
        Print one JSON object.
    """
    penalties = penalties or Penalties()
    data = read(str(features), label_column=label_column, delimiter=delimiter, keep_na=keep_na, argument="features")
    measured = _measured(data, features, head, class_names, penalties)
    order = _assumed_order(data, measured, class_names)
    expected = _expected(measured, penalties)
    comparison, grounds = _compared(measured, expected, penalties.recipe)
    estimate = None
    if measured.weight is not None and not measured.moments.unseen:
        estimate = effective_penalties(measured, class_weights=_loss_weights(measured, penalties))
    nearest = _nearest(measured, None if isinstance(expected, str) else expected.problem)
    if json:
        content: dict[str, Any] = {"measurement": measured.to_dict(), "counts": measured.counts.astype(int).tolist()}
        content["comparison"] = None if comparison is None else comparison.to_dict()
        content["effective_penalties"] = None if estimate is None else estimate.to_dict()
        content["nearest_references"] = [near.to_dict() for near in nearest]
        print_json({"schema": 1} | content | {"scope": grounds.details if grounds else "", "assumed_order": order})
        return
    if comparison is not None:
        print_comparison(comparison)
    else:
        _print_classes(measured)
    metrics = "; ".join(f"{key} {value:.4g}" for key, value in measured.metrics().items()) + "."
    ranking = ", ".join(f"{near.name} {near.shape:.3g}" for near in nearest)
    references = f"Distance in shape (0: the same, up to 2): {ranking}." if ranking else ""
    for sentence in (comparison and comparison.verdict, metrics, estimate, references, order, grounds):
        if sentence:
            print_note(str(sentence))


def _measured(
    data: LabelledData, path: Path, head: str | None, names: tuple[str, ...] | None, penalties: Penalties
) -> Measurement:
    if data.inputs.ndim != 2:
        raise CollapseError(
            f"features={str(path)!r}: a sample has the shape {data.inputs.shape[1:]}; give the vectors that enter the "
            "head, (N, d)"
        )
    weight, bias = read_head(str(path) if head is None else head, required=head is not None)
    size = len(weight) if weight is not None else max(len(names or ()), len(data.names))
    rows, shown = data.rows(size, names)
    labels = rows[data.labels]
    return measure_features(data.inputs, labels, weight, bias, num_classes=size, names=shown, loss=penalties.loss)


def _assumed_order(data: LabelledData, measured: Measurement, names: tuple[str, ...] | None) -> str | None:
    """Words do not say which row of the head is theirs; sorted order is that of scikit-learn and of image folders."""
    if names is not None or measured.weight is None or not data.sorted_words:
        return None
    return (
        f"The head's rows are taken to be the classes in sorted order ({shorten(', '.join(data.names))}); "
        "--class-names gives another."
    )


def _expected(measured: Measurement, penalties: Penalties) -> Prediction | str:
    """The prediction for these penalties, or why there is none."""
    if not penalties.given:
        return "no penalties were given"
    if measured.weight is None:
        raise CollapseError("head: missing; a comparison with the prediction needs the head: give --head FILE")
    if measured.moments.unseen:
        k = measured.moments.unseen[0]
        raise CollapseError(f"features: class {k} has no samples; give the whole training set")
    reason = penalties.refusal(measured.counts)
    if reason is not None:
        return reason
    return predicted(penalties.problem(measured.counts, biased=measured.bias is not None))


def _compared(
    measured: Measurement, expected: Prediction | str, recipe: Recipe | None
) -> tuple[Comparison | None, Scope | None]:
    if measured.weight is None:
        return None, None
    if isinstance(expected, str):
        return compare(None, measured, outside=expected), None
    return compare(expected, measured), scope(expected.problem, recipe)


def _nearest(measured: Measurement, problem: UFM | None) -> list[Nearness]:
    """Reference geometries by distance, where there is a head and every class has samples."""
    if measured.weight is None or measured.moments.unseen or len(measured.counts) > MOST_CLASSES:
        return []
    return nearest_reference(measured.geometry(), problem)


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
    vectors, names, keys = measured.per_class(), measured.names or (), ("feature_sqnorm", "within", "cdnv")
    print_classes(
        ("class", "count", "‖h‖²", "within", "cdnv", ""),
        lambda k: [names[k], f"{vectors['count'][k]:.0f}", *(f"{vectors[key][k]:.4g}" for key in keys), ""],
        [""] * len(names),
        ("cdnv", "within"),
    )
