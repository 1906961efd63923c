"""`collapsekit diagnose`: which classes of a trained model are lost or weak, why, and what to do about it."""

from __future__ import annotations

import json as json_format
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from collapsekit import CollapseError
from collapsekit.cli._console import print_json, print_note, print_table, progress
from collapsekit.cli._diagnose_doors import Door, of_run
from collapsekit.cli._inputs import Head, Penalties
from collapsekit.cli._outputs import check_output, pages
from collapsekit.cli._reading import Reading
from collapsekit.cli._remedies import Words, changed
from collapsekit.data.files import one_line
from collapsekit.diagnosis import ClassDiagnosis, Diagnosis
from collapsekit.diagnosis.status import GONE
from collapsekit.training import load_run
from collapsekit.validation import short

MOST_CLASSES = 20
"""Of more the worst are shown."""
HELD_OUT = "held-out\nrecall"
DROP = ("mistaken for", "confidence", HELD_OUT)
"""What a narrow terminal goes without, in this order; never class, count, recall, cause and status."""


def diagnose(
    model_or_features: Path,
    /,
    *,
    model: str | None = None,
    data: str | None = None,
    head: str | None = None,
    held_out: str | None = None,
    reading: Annotated[Reading | None, Parameter(name="*")] = None,
    history: Path | None = None,
    trained: Annotated[Head | None, Parameter(name="*")] = None,
    penalties: Annotated[Penalties | None, Parameter(name="*")] = None,
    json: bool = False,
    html: Path | None = None,
) -> None:
    """Say which classes of a trained model are lost or weak, why, and what to do about it.

    Give stored features of the TRAINING samples, as measure takes them (.npz with features, labels, weight, bias); or
    a checkpoint (.pt, .safetensors) with --model and --data; or the folder of a run of train. What you know of the
    training (--weight-decay, --optimizer, --learning-rate, --steps) sharpens the causes; nothing of it is needed.

    --model module:function runs that function, and so whatever code its module holds: name only what you trust.

    Example: collapsekit diagnose train.npz --held-out val.npz

    Example: collapsekit diagnose checkpoint.pt --model mynets:build --data images/ --weight-decay 5e-4

    Parameters
    ----------
    model_or_features : Path
        Features, a checkpoint, or a folder of a run.
    model : str
        module:function that makes the network of a checkpoint, called with the shape of an input and the number of
        classes.
    data : str
        Training data of a checkpoint, as train reads it; inputs are given to the network as they are.
    head : str
        File of the head, as measure takes it; of a checkpoint the layer that makes the logits.
    held_out : str
        Held-out features, or held-out data of a checkpoint. Left out: those that the file or folder brings.
    history : Path
        JSON with the training loss of each epoch, {"loss": [2.3, 1.1]}, and recalls, K numbers an epoch, where known.
    json : bool
        Print one JSON object.
    html : Path
        Write a page for whoever owns the model.
    """
    reading, penalties, trained = reading or Reading(), penalties or Penalties(), trained or Head()
    path, door = model_or_features, Door(reading, head, held_out, penalties, trained)
    if (model is None) != (data is None):
        missing = "model" if model is None else "data"
        raise CollapseError(f"--{missing}: missing; a checkpoint needs --model module:function and --data PATH")
    if html is not None:
        of_layer = head and head.rpartition(":")[0]  # --head FILE:LAYER
        check_output("--html", html, (None if path.is_dir() else path, data, held_out, head, of_layer or None, history))
    past, stored = None if history is None else _history(history), False
    if model is not None and data is not None:
        found = door.checkpoint(path, model, data)
    elif path.is_dir():
        if past is not None:
            raise CollapseError("--history: a run brings its own; leave it out")
        found = of_run(load_run(path))
    else:
        found, stored = door.features(path), True
    words = Words(
        path=str(path),
        stored=stored,
        door={"model": model, "data": data, "head": head},
        rest={"held_out": held_out, "history": history},
        names=found.measured.names if found.ambiguous else None,
        reading=changed(reading),
        recipe=changed(penalties) | changed(trained),
    )
    with progress("diagnosing"):
        result = found.diagnosis(past)
    findings = tuple(replace(one, remedy=words.typed(one.remedy, result)) for one in result.findings)
    result = replace(result, findings=findings)
    page = None if html is None else pages("diagnosis_page").diagnosis_page(result, html)
    if json:
        print_json(result.to_dict() | ({} if page is None else {"page": str(page)}))
        return
    _print(result)
    for sentence in (found.note, None if page is None else f"page: {page}"):
        if sentence:
            print_note(sentence)


def _history(path: Path) -> Mapping[str, Any]:
    with one_line("--history", str(path), "give a JSON file with loss, one number an epoch"):
        try:
            found = json_format.loads(path.read_bytes())
        except ValueError:
            raise CollapseError('no JSON; give {"loss": [2.3, 1.1]}, one number an epoch') from None
        if not isinstance(found, dict):
            raise CollapseError('no JSON object; give {"loss": [2.3, 1.1]}, one number an epoch')
    return found


def _print(result: Diagnosis) -> None:
    for line in result.verdict:
        print_note(line, whole=line.startswith("First: "))
    if result.assumed_order:
        print_note(result.assumed_order)
    if result.findings:
        print_note("")
    for number, one in enumerate(result.findings, start=1):
        print_note(f"{number}. {one.severity}: {one.sentence}")
        if one.remedy:
            print_note(f"   {one.remedy}", whole=True)
        print_note(f"   {one.page}")
    rows = sorted(result.classes, key=lambda one: one.badness)[:MOST_CLASSES]
    print_note("")
    known = any(not math.isnan(one.held_out_recall) for one in result.classes)
    kept = [i for i, header in enumerate(HEADERS) if known or header != HELD_OUT]
    names = _distinct([one.label for one in rows], 20)
    others = _distinct([one.confused_with or "" for one in rows], 12)
    cells = [_row(*three) for three in zip(rows, names, others, strict=True)]
    table = [[row[i] for i in kept] for row in cells]
    print_table([HEADERS[i] for i in kept], table, drop=DROP, muted=[one.status in GONE for one in rows])
    if len(rows) < len(result.classes):
        print_note(f"The worst {len(rows)} of {len(result.classes)} classes are shown; --json prints all.")


def _distinct(names: Sequence[str], most: int) -> list[str]:
    """Return short names; where two become one, without what all long ones begin with."""
    found = [short(name, most) for name in names]
    if len(set(found)) == len(set(names)):
        return found
    long = [name for name in names if len(name) > most]
    same = next((i for i, letters in enumerate(zip(*long, strict=False)) if len(set(letters)) > 1), 0)
    begins = max(long[0].rfind(" ", 0, same) + 1, same - 6)  # from the word in which they differ
    cut = [f"…{name[begins:]}" if len(name) > most else name for name in names]
    return [name if len(name) <= most else f"{name[: most - 1]}…" for name in cut]


HEADERS = ("class", "count", "recall", HELD_OUT, "confidence", "mistaken for", "cause", "status")


def _row(one: ClassDiagnosis, name: str, other: str) -> list[str]:
    numbers = [one.recall, one.held_out_recall, one.confidence]
    return [
        name,
        str(one.count),
        *("" if math.isnan(value) else f"{value:.3f}" for value in numbers),
        other,
        one.cause or "",
        one.status,
    ]
