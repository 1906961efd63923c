"""`collapsekit inspect`: which classes of a trained model can never or hardly be output, from its weights alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from collapsekit import CollapseError
from collapsekit.cli._console import MOST_ROWS, print_json, print_note, print_table, progress
from collapsekit.cli._inputs import by_flags
from collapsekit.cli._outputs import check_output, pages
from collapsekit.data import class_sizes
from collapsekit.data.lists import Lines
from collapsekit.heads import Inspection, inspect_head
from collapsekit.heads.activations import as_activation
from collapsekit.heads.files import read_model
from collapsekit.heads.labels import read_labels
from collapsekit.heads.model_head import ModelHead
from collapsekit.validation import short, shorten

DROP = ("shortest\ninput", "share\nat least", "norm", "row")
"""What a narrow terminal goes without, in this order; never class, distance and whether the class can be output."""
WORDS = {True: "can be", False: "never", None: "not known"}


def inspect(
    model: str,
    /,
    *,
    head: str | None = None,
    labels: str | None = None,
    counts: str | None = None,
    lines: Lines | None = None,
    activation: Literal["relu", "swish", "gelu", "hardswish", "mish", "none"] | None = None,
    weight_decay: float | None = None,
    feature_norm: float | None = None,
    bias_decays: bool = False,
    prove: Literal["flagged", "all", "none"] = "flagged",
    least_norm: bool = False,
    html: Path | None = None,
    json: bool = False,
) -> None:
    """Say which classes of a trained model can never or hardly be output, from its weights alone.

    MODEL is an .onnx, .safetensors, .npz, .npy, .pt or .pth file, or a folder with config.json and .safetensors files.
    Nothing in it runs.

    Example: collapsekit inspect model.onnx

    Example: collapsekit inspect checkpoint.safetensors --head classifier --labels labels.txt --activation relu

    Parameters
    ----------
    head : str
        Name of the output layer, where the file holds several that may be it.
    labels : str
        File of the classes' names in the order of the head's rows: one a line, or JSON.
    counts : str
        File of training samples by class: `name,count` a line, or a count a line in the order of the rows. A class
        that is not named in it has none.
    lines : str
        What the numbers of the file of counts are: counts, one a class, or labels, one a sample.
    activation : str
        What the inputs of the head come from, where no graph says so.
    weight_decay : float
        Coupled decay of the head, for lower bounds on the classes' shares of the data.
    feature_norm : float
        Upper bound on the norm of the head's inputs, for the same.
    bias_decays : bool
        The head's bias decays as its weight does; else a head with a bias gets no bounds on shares.
    prove : str
        Which classes are proved unreachable or not: the 200 flagged ones nearest the dead point, all, or none.
    least_norm : bool
        Compute the shortest input at which each other flagged class is output.
    html : Path
        Write a page with the table and figures, too (needs the extras report and torch).
    json : bool
        Print one JSON object.
    """
    if html is not None:
        check_output("--html", html, (model, labels, counts))
    found = read_model(model, head)
    names = found.names if labels is None else read_labels(labels, len(found.weight))
    samples = None if counts is None else _samples(counts, lines, names, len(found.weight))
    given = as_activation(activation) or found.activation
    if found.activation is not None and found.activation.lower is not None and activation is not None:
        raise CollapseError(f"activation={activation!r}: the file says {found.activation}; leave it out")
    with progress("inspecting") as advance:
        result = inspect_head(
            found.weight,
            found.bias,
            names=names,
            counts=samples,
            activation=given,
            weight_decay=weight_decay,
            feature_norm=feature_norm,
            bias_decays=bias_decays,
            prove=prove,
            least_norm=least_norm,
            advance=advance,
        )
    result = replace(result, output=found.output)
    with by_flags(out="--html", path="--html"):
        page = None if html is None else pages("head_page").head_page(result, found.weight, found.layer, html)
    if json:
        print_json(result.to_dict() | ({} if page is None else {"page": str(page)}))
        return
    _print(result, found)
    if page is not None:
        print_note(f"page: {page}")


def _samples(path: str, lines: Lines | None, names: tuple[str, ...] | None, size: int) -> Any:
    """Samples of each row: by name where names are given, else by row."""
    found = class_sizes([path], lines=lines)
    if not isinstance(found, dict):
        if len(found) != size:
            raise CollapseError(f"counts={path!r}: {len(found)} counts for {size} rows; give one a row, or name,count")
        return found
    rows = names or tuple(str(k) for k in range(size))
    odd = next((name for name in found if name not in set(rows)), None)
    if odd is not None:
        raise CollapseError(f"counts={path!r}: {shorten(odd)} is no class; give the labels of the head with --labels")
    return [found.get(name, 0) for name in rows]


def _print(result: Inspection, found: ModelHead) -> None:
    first, *rest = result.verdict
    print_note(first)
    for sentence in rest:
        print_note(sentence)
    print_note(
        f"Head: {short(found.layer or 'weight', 60)!r}, {len(found.weight)} classes × {found.weight.shape[1]} inputs."
    )
    rows = result.table()[:MOST_ROWS]
    cells = [_row(one) for one in rows]
    headers = (*HEADERS[:-1], "can be\nlargest") if result.output == "sigmoids" else HEADERS
    known = [i for i in range(len(HEADERS)) if any(row[i] for row in cells)]  # a column in which nothing is known goes
    print_table(
        [headers[i] for i in known],
        [[row[i] for i in known] for row in cells],
        drop=[name for name in DROP if HEADERS.index(name) in known],
        muted=[one["reachable"] is False for one in rows],
    )
    if len(rows) < len(result.names):
        print_note(f"The {len(rows)} classes most at risk of {len(result.names)} are shown; --json prints all.")


HEADERS = ("class", "row", "distance", "norm", "share\nat least", "shortest\ninput", "same\nrow", "can be\noutput")


def _row(one: dict[str, Any]) -> list[str]:
    return [
        short(one["label"], 24),
        str(one["row"]),
        *(_number(one[key]) for key in ("distance", "norm", "share_at_least", "least_norm")),
        "yes" if one["coinciding"] else "",
        WORDS[one["reachable"]],
    ]


def _number(value: float | None) -> str:
    return "" if value is None or np.isnan(value) else f"{value:.3g}"
