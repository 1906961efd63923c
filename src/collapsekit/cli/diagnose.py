"""`collapsekit diagnose`: which classes of a trained model are lost or weak, why, and what to do about it."""

from __future__ import annotations

import ast
import json as json_format
import math
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from cyclopts import Parameter
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from collapsekit import UFM, CollapseError
from collapsekit.cli._console import print_json, print_note, print_table, progress
from collapsekit.cli._inputs import Head, Penalties
from collapsekit.data import LabelledData, read, read_head
from collapsekit.data.arrays import READERS
from collapsekit.data.files import one_line
from collapsekit.data.labelled import rows_of_others
from collapsekit.diagnosis import ClassDiagnosis, Diagnosis
from collapsekit.diagnosis import diagnose as find
from collapsekit.diagnosis.status import GONE
from collapsekit.losses import Loss
from collapsekit.metrics import Measurement, features_of, measure_features
from collapsekit.recipe import LastLayer, Optimizer, Recipe
from collapsekit.training import Run, load_run
from collapsekit.training._run_samples import run_samples
from collapsekit.training.models import build
from collapsekit.validation import short, shorten

MOST_CLASSES = 20
"""Of more the worst are shown."""
CHECKPOINTS = (".pt", ".pth", ".safetensors")
MOST_POSITIONS = 12
"""Positions of samples in a line."""
TOGETHER = 256
"""Samples a forward pass."""
HELD_OUT = "held-out\nrecall"
DROP = ("mistaken for", "confidence", HELD_OUT)
"""What a narrow terminal goes without, in this order; never class, count, recall, cause and status."""

Pair = tuple[ArrayLike, ArrayLike]


@dataclass(frozen=True, eq=False)
class Found:
    """A measured network with its samples, and whatever else is known of it."""

    measured: Measurement
    samples: Pair | None = None
    held_out: Pair | None = None
    problem: UFM | None = None
    recipe: Recipe | None = None
    last: LastLayer | None = None
    optimizer: Optimizer | None = None
    history: Mapping[str, Any] | None = None
    note: str | None = None
    assumed_order: str | None = None
    stored: bool = False
    typed: Mapping[str, str] = field(default_factory=dict)

    def diagnosis(self) -> Diagnosis:
        """Diagnose it."""
        own = ("measured", "note", "assumed_order", "stored", "typed")
        given = {key: value for key, value in vars(self).items() if key not in own}
        result = find(self.measured, **given)
        findings = tuple(replace(one, remedy=_typed(one.remedy, self.typed, result)) for one in result.findings)
        return replace(result, findings=findings, assumed_order=self.assumed_order)


def _typed(remedy: str, typed: Mapping[str, str], result: Diagnosis) -> str:
    """Return a remedy with the user's own files, and with positions in place of a Python variable."""
    if remedy.startswith("found.suspects["):
        call, _, advice = remedy.partition("  # ")
        rows = result.suspects.get(ast.literal_eval(call[len("found.suspects[") : -1]), ())
        shown = ", ".join(map(str, rows[:MOST_POSITIONS]))
        more = f" and {len(rows) - MOST_POSITIONS} more (--json has all)" if len(rows) > MOST_POSITIONS else ""
        return advice.replace("these samples", f"the samples {shown}{more}") if rows else ""
    if not remedy.startswith("collapsekit "):
        return remedy
    if typed:
        remedy = re.sub("|".join(map(re.escape, typed)), lambda found: typed[found[0]], remedy)
    left = [name for name in ("train.npz", "val.npz") if name not in typed and f" {name}" in remedy]
    stored = f"{' and '.join(left)}: stored as docs/never_predicted.md says" if left else ""
    return remedy + (f"{'; ' if '#' in remedy else '  # '}{stored}" if stored else "")


def diagnose(
    model_or_features: Path,
    /,
    *,
    model: str | None = None,
    data: str | None = None,
    head: str | None = None,
    held_out: str | None = None,
    label_column: str | None = None,
    delimiter: str | None = None,
    keep_na: bool = False,
    class_names: tuple[str, ...] | None = None,
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
    label_column : str
        Column of a table that holds the labels.
    delimiter : str
        Delimiter of a table, where it is none of comma, semicolon and tab.
    keep_na : bool
        Labels like NA, null, none and ? are classes, not missing.
    class_names : tuple of str
        One name a row of the head, in the order of its rows.
    history : Path
        JSON with the training loss of each epoch, {"loss": [2.3, 1.1]}, and recalls, K numbers an epoch, where known.
    json : bool
        Print one JSON object.
    html : Path
        Write a page for whoever owns the model.
    """
    penalties, trained = penalties or Penalties(), trained or Head()
    table: dict[str, Any] = {"label_column": label_column, "delimiter": delimiter, "keep_na": keep_na}
    path = model_or_features
    if (model is None) != (data is None):
        missing = "model" if model is None else "data"
        raise CollapseError(f"--{missing}: missing; a checkpoint needs --model module:function and --data PATH")
    past = None if history is None else _history(history)
    if model is None and path.is_dir():
        if past is not None:
            raise CollapseError("--history: a run brings its own; leave it out")
        found = _of_run(load_run(path))
    else:

        def loaded(name: str, argument: str) -> LabelledData:
            return read(name, argument=argument, **table)

        if model is None or data is None:
            found = _of_features(path, loaded, head, held_out, class_names, penalties, trained)
        else:
            found = _of_checkpoint(path, model, loaded, data, head, held_out, class_names, penalties, trained)
    doors = () if model is None else ("--model", model, "--data", str(data))
    door = shlex.join([str(path), *doors, *(("--head", head) if head else ())])
    typed = {"diagnose train.npz": f"diagnose {door}"}
    if found.stored:
        typed |= {"--head train.npz": f"--head {shlex.quote(head or str(path))}", "train.npz": door}
    if found.stored and held_out is not None:
        typed["val.npz"] = shlex.quote(held_out)
    found = replace(found, typed=typed, history=found.history if past is None else past)
    with progress("diagnosing"):
        result = found.diagnosis()
    page = None if html is None else _page(result, html)
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


Load = Callable[[str, str], LabelledData]


def _of_features(
    path: Path,
    loaded: Load,
    head: str | None,
    held_out: str | None,
    names: tuple[str, ...] | None,
    penalties: Penalties,
    trained: Head,
) -> Found:
    try:
        known = loaded(str(path), "features")
    except CollapseError as error:
        told = f"{error}; or, of a checkpoint, --model module:function and --data PATH"
        raise CollapseError(told if path.suffix in CHECKPOINTS else str(error)) from None
    if known.inputs.ndim != 2:
        raise CollapseError(
            f"features={str(path)!r}: a sample has the shape {known.inputs.shape[1:]}; give the vectors that enter the "
            "head, (N, d), or the checkpoint with --model and --data"
        )
    weight, bias = read_head(str(path) if head is None else head, required=head is not None)
    if weight is None:
        raise CollapseError("--head: missing; a diagnosis needs the output layer: give --head FILE")
    rows, shown = known.rows(len(weight), names)
    tested = None
    if held_out is not None:
        other = loaded(held_out, "held_out")
        places = rows_of_others(other, known, rows, shown)
        tested = other.inputs, places[other.labels]
    elif known.test_inputs is not None and known.test_labels is not None:
        tested = known.test_inputs, rows[known.test_labels]
    order = _assumed(known, rows, shown, names)
    found = _with_recipe((known.inputs, rows[known.labels]), weight, bias, shown, tested, penalties, trained, order)
    return replace(found, stored=True)


def _assumed(
    known: LabelledData, rows: NDArray[np.int64], shown: Sequence[str], names: Sequence[str] | None
) -> str | None:
    """What is taken for granted of the order of the rows; None where names give it, or labels are 0 to K - 1."""
    if names is not None or (known.worded and not known.sorted_words):
        return None
    given = shorten(", ".join(known.names), 40)
    if known.sorted_words:
        return f"Assumed: the rows of the head are the classes in sorted order ({given}). --class-names gives another."
    if len(shown) != len(known.names):
        return f"Assumed: the labels ({given}) are row numbers, from 0. --class-names names the rows."
    if [*map(str, rows)] != [*known.names]:
        return f"Assumed: the rows of the head are the labels in order ({given}). --class-names gives another."
    return None


def _of_checkpoint(
    path: Path,
    model: str,
    loaded: Load,
    data: str,
    head: str | None,
    held_out: str | None,
    names: tuple[str, ...] | None,
    penalties: Penalties,
    trained: Head,
) -> Found:
    known = loaded(data, "data")
    size = len(known.names if names is None else names)
    network = _network(model, known.inputs.shape[1:], size)
    with one_line("checkpoint", str(path), "give a state dict, .pt or .safetensors"):
        tensors = _tensors(network, path)
        stored = _rows_stored(network, tensors, size)
        if stored != size and names is None:  # some classes have no sample among these data
            size, network = stored, _network(model, known.inputs.shape[1:], stored)
        _load(network, tensors)
    rows, shown = known.rows(size, names)
    found = features_of(network, _batches(known.inputs, rows[known.labels]), head)
    tested = None
    if held_out is not None:
        other = loaded(held_out, "held_out")
        places = rows_of_others(other, known, rows, shown)
        tested = features_of(network, _batches(other.inputs, places[other.labels]), head)[:2]
    elif known.test_inputs is not None and known.test_labels is not None:
        tested = features_of(network, _batches(known.test_inputs, rows[known.test_labels]), head)[:2]
    order = _assumed(known, rows, shown, names)
    return _with_recipe(found[:2], found.weight, found.bias, shown, tested, penalties, trained, order)


def _batches(inputs: NDArray[Any], labels: NDArray[np.int64]) -> list[tuple[Tensor, Tensor]]:
    parts = (torch.split(torch.from_numpy(values), TOGETHER) for values in (inputs, labels))
    return list(zip(*parts, strict=True))


def _network(model: str, shape: tuple[int, ...], size: int) -> nn.Module:
    if ":" not in model:
        raise CollapseError(f"--model={shorten(model)}: give module:function, which returns a torch.nn.Module")
    try:
        return build(model, shape, size, hidden=(), feature_dim=0, width=0, batchnorm=False)
    except CollapseError as error:
        raise CollapseError(str(error).replace("network=", "--model=", 1)) from None


def _tensors(network: nn.Module, path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file by the network's own keys; nothing in the file runs."""
    suffix = path.suffix.lower()
    if suffix not in CHECKPOINTS:
        raise CollapseError(f"no state dict has the ending {shorten(suffix)}; give .pt, .pth or .safetensors")
    tensors = {key: torch.from_numpy(np.array(value)) for key, value in READERS[suffix](path, list).items()}
    own = set(network.state_dict())
    for prefix in ("module.", "model.", "_orig_mod."):  # of DistributedDataParallel, Lightning and torch.compile
        if not own & set(tensors):
            tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return tensors


def _rows_stored(network: nn.Module, tensors: Mapping[str, Tensor], size: int) -> int:
    """Return of how many classes the stored head is: the first dimension in which alone it differs from the network."""
    own = {key: value.shape for key, value in network.state_dict().items()}
    other = [(own[key], value.shape) for key, value in tensors.items() if key in own and own[key] != value.shape]
    fits = all(len(a) and a[0] == size and a[1:] == b[1:] for a, b in other)
    found = {b[0] for _, b in other if len(b)}
    return found.pop() if fits and len(found) == 1 else size


def _load(network: nn.Module, tensors: dict[str, Tensor]) -> None:
    own = set(network.state_dict())
    missing, strange = sorted(own - set(tensors)), sorted(set(tensors) - own)
    if missing or strange:
        kind, key = ("lacks", missing[0]) if missing else ("holds", strange[0])
        raise CollapseError(f"it {kind} {shorten(key)}, unlike the network that --model makes; give its own checkpoint")
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        reason = " ".join(str(error).split()[-20:])
        raise CollapseError(f"other shapes than the network that --model makes ({reason}); give its own") from None


def _with_recipe(
    samples: Pair,
    weight: Any,
    bias: Any,
    names: tuple[str, ...],
    held_out: Pair | None,
    penalties: Penalties,
    trained: Head,
    assumed_order: str | None,
) -> Found:
    counts = np.bincount(np.asarray(samples[1]), minlength=len(weight))
    loss: Loss = trained.made(penalties, np.maximum(counts, 1))
    measured = measure_features(*samples, weight, bias, names=names, loss=loss)
    biased = measured.bias is not None
    problem = None
    if penalties.given and counts.all() and penalties.refusal(counts) is None:
        problem = trained.problem(penalties, counts, biased=biased)
    told = penalties.optimizer != "sgd" or penalties.learning_rate is not None or penalties.steps is not None
    return Found(
        measured,
        samples,
        held_out,
        problem,
        penalties.recipe if penalties.given else None,
        LastLayer(penalties.feature_dim, biased, penalties.batchnorm_branches or 0),
        penalties.takes_steps if told else None,
        assumed_order=assumed_order,
    )


def _of_run(run: Run) -> Found:
    optimizer = run.config.optimizer_used
    steps = [entry["step"] for entry in run.history]
    grid = np.linspace(steps[0], steps[-1], len(steps)) if steps else np.empty(0)
    losses = np.interp(grid, steps, [entry["loss"] for entry in run.history]) if steps else grid
    samples = held_out = note = None
    try:
        found, tested = run_samples(run)
        samples, held_out = found[:2], None if tested is None else tested[:2]
    except CollapseError as error:
        note = f"Only what the run has measured is diagnosed: {error}."
    return Found(
        run.measured,
        samples,
        held_out,
        run.problem,
        run.recipe,
        run.last_layer,
        Optimizer(
            optimizer.name, optimizer.learning_rate, steps[-1] if steps else None, "cosine", momentum=optimizer.momentum
        ),
        {"loss": losses.tolist()},
        note,
    )


def _page(result: Diagnosis, path: Path) -> Path:
    try:
        from collapsekit.report.diagnosis_page import diagnosis_page
    except ModuleNotFoundError as missing:
        raise CollapseError(
            f"--html: {missing.name} is not installed; run: pip install 'collapsekit[report,torch]'"
        ) from None
    return diagnosis_page(result, path)


def _print(result: Diagnosis) -> None:
    for line in result.verdict:
        print_note(line)
    if result.assumed_order:
        print_note(result.assumed_order)
    if result.findings:
        print_note("")
    for number, one in enumerate(result.findings, start=1):
        print_note(f"{number}. {one.severity}: {one.sentence}")
        if one.remedy:
            print_note(f"   {one.remedy}")
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
