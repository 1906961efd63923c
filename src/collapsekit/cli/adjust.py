"""`collapsekit adjust`: repair the head of a trained network, with the gain measured on validation samples."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from cyclopts import Parameter
from numpy.typing import NDArray

from collapsekit import CollapseError, files
from collapsekit.cli._console import MOST_ROWS, print_json, print_note, print_table, progress
from collapsekit.cli._inputs import Head, Penalties, by_flags
from collapsekit.cli._outputs import check_output, fresh, pages, same
from collapsekit.cli._reading import Reading
from collapsekit.data import read_head
from collapsekit.data.labelled import rows_of_others
from collapsekit.diagnosis import Adjustment
from collapsekit.diagnosis import adjust as repaired
from collapsekit.diagnosis._adjust import MethodName
from collapsekit.heads.files import read_model
from collapsekit.heads.model_head import ModelHead
from collapsekit.heads.write_back import rewritten
from collapsekit.heads.write_back import write_back as put
from collapsekit.prediction import Prediction, predict
from collapsekit.validation import short, shorten


def adjust(
    features: Path,
    /,
    *,
    validation: Path,
    head: str | None = None,
    out: Path | None = None,
    write_back: str | None = None,
    method: MethodName | None = None,
    cuts: tuple[float, float] | None = None,
    reading: Annotated[Reading | None, Parameter(name="*")] = None,
    trained: Annotated[Head | None, Parameter(name="*")] = None,
    penalties: Annotated[Penalties | None, Parameter(name="*")] = None,
    html: Path | None = None,
    json: bool = False,
) -> None:
    """Repair the head of a trained network without retraining the rest, with the gain measured on validation samples.

    FEATURES holds the inputs of the head on the training samples, one row a sample, and labels: an .npz or .safetensors
    with the arrays features and labels (or X and y), or .npy, .csv, .parquet. The head stays untouched unless a method
    gains more balanced accuracy, in cross-validation on the validation samples, than two standard errors of its gain.

    Example: collapsekit adjust train.npz --validation val.npz --head model.safetensors --out head.safetensors

    Example: collapsekit adjust train.npz --validation val.npz --head model.onnx --write-back repaired.onnx

    Parameters
    ----------
    validation : Path
        Features and labels of samples that the network was not trained on; not those it will be tested on.
    head : str
        File of the head: a model (.onnx, .safetensors, .npz, .pt, a folder) or a head (weight and bias); FILE:LAYER
        names a layer. Left out: the arrays weight and bias in FEATURES.
    out : Path
        Write the new head here, a .safetensors with weight and bias.
    write_back : str
        Write a copy of the .safetensors or .onnx file of --head here, with the new head in the old one's place; of a
        folder of .safetensors files a new folder, in which all but the files with the head are links or copies. A head
        without bias gets none then.
    method : str
        Take this method, whatever it gains.
    cuts : tuple of float
        Training samples above which a class has many, and below which few; left out: 100 and 20 if no group is empty
        then, else terciles.
    html : Path
        Write a page with the tables and a figure, too (needs the extras report and torch).
    json : bool
        Print one JSON object.
    """
    reading, penalties, trained = reading or Reading(), penalties or Penalties(), trained or Head()
    found, source, layer = _head(features, head)
    _check_outputs((features, validation), source, out, write_back, named=head is not None)
    if html is not None:
        pages("adjust_page")
        check_output("--html", html, (features, validation, source))
        if any(one is not None and same(html, one) for one in (out, write_back)):
            raise CollapseError(f"--html={str(html)!r}: is the file of --out or --write-back, too; give another name")
    if write_back is not None:
        with by_flags():
            rewritten(source, write_back, found.weight, found.bias, head=layer)  # refused before the work
    (x, y), (held, marks), names, order = _both(features, validation, found, reading)
    expected, obstacle = _predicted(
        penalties, trained, np.bincount(y, minlength=len(found.weight)), found.bias is not None
    )
    with progress("adjusting") as advance, by_flags(train_features="features"):
        result = repaired(
            x,
            y,
            (found.weight, found.bias),
            validation=(held, marks),
            names=names,
            prediction=expected,
            method=method,
            add_bias=write_back is None,
            cuts=cuts,
            advance=advance,
        )
    said = [one for one in (obstacle, order) if one is not None]
    if out is not None:
        with by_flags():
            _save(out, result)
        said.append(f"The head is in {out}.")
    if write_back is not None:
        with by_flags(out="--write-back"):
            put(source, write_back, rewritten(source, write_back, *result.head, head=layer))
        said.append(f"{source} with that head is in {write_back}.")
    if html is not None:
        _page(result, said, html)
        said.append(f"page: {html}")
    if out is None and write_back is None:
        said.append(f"Nothing was written; --out {fresh('head.safetensors')} writes the head.")
    if json:
        print_json(
            result.to_dict()
            | {
                "out": out and str(out),
                "html": html and str(html),
                "write_back": write_back,
                "assumed_order": order,
                "no_prediction": obstacle,
            }
        )
        return
    _print(result, said)


def _check_outputs(
    data: tuple[Path, Path], source: str, out: Path | None, write_back: str | None, *, named: bool
) -> None:
    """Refuse outputs before the work; of what is read only the head's own file may be written back."""
    if out is not None:
        if out.suffix.lower() != ".safetensors":
            raise CollapseError(f"--out={str(out)!r}: give a name that ends in .safetensors")
        check_output("--out", out, (*data, source))
    if write_back is not None:
        if not named:
            raise CollapseError("--write-back: writes a copy of the file of --head; give --head FILE")
        own = same(write_back, source)
        if Path(source).is_dir():
            _check_folder(Path(write_back), source, own)
        else:
            check_output("--write-back", Path(write_back), () if own else data)
        if out is not None and same(out, write_back):
            raise CollapseError(f"--write-back={write_back!r}: is the file of --out, too; give another name")


def _check_folder(write_back: Path, source: str, own: bool) -> None:
    """A model's folder is written back to itself, or to one beside it that is not there yet."""
    if own:
        return
    if os.path.lexists(write_back) or write_back.resolve().is_relative_to(Path(source).resolve()):
        where = "is there already" if os.path.lexists(write_back) else "is in the model's own folder"
        raise CollapseError(f"--write-back={str(write_back)!r}: {where}; name a new folder beside the model's")
    check_output("--write-back", write_back, ())


def _head(features: Path, head: str | None) -> tuple[ModelHead, str, str | None]:
    """The head, the file it is in, and the layer that was named."""
    if head is None:
        weight, bias = read_head(str(features), required=False)
        if weight is None:
            raise CollapseError(f"head: missing; {shorten(features.name)} holds none: give --head FILE")
        return ModelHead("weight", weight, bias), str(features), None
    path, layer = head, None
    if not Path(head).exists() and ":" in Path(head).name:
        path, _, layer = head.rpartition(":")
    return read_model(path, layer), path, layer


def _both(
    features: Path, validation: Path, found: ModelHead, reading: Reading
) -> tuple[tuple[Any, NDArray[np.int64]], tuple[Any, NDArray[np.int64]], tuple[str, ...], str | None]:
    """Training and validation samples with the row of each label, the rows' names, and what was assumed of them."""
    train, held = reading.vectors(features), reading.vectors(validation, "validation")
    rows, names = train.rows(len(found.weight), reading.class_names or found.names)
    marks = rows_of_others(held, train, rows, names, argument=f"validation={str(validation)!r}")[held.labels]
    order = reading.assumed(train, len(found.weight), found.names)
    return (train.inputs, rows[train.labels]), (held.inputs, marks), names, order


def _predicted(
    penalties: Penalties, trained: Head, counts: NDArray[np.int64], biased: bool
) -> tuple[Prediction | None, str | None]:
    """The prediction of the recipe, or why there is none although a recipe is given; what contradicts itself raises."""
    trained.made(penalties, np.maximum(counts, 1))
    if penalties.horizon is None and not penalties.given:  # a horizon without penalties raises
        return None, None
    reason = penalties.refusal(counts) if counts.all() else f"class {counts.argmin()} has no training samples"
    if reason is not None:
        return None, f"There is no prediction ({reason}): predicted-geometry goes by the counts."
    return predict(trained.problem(penalties, counts, biased=biased)), None


def _save(out: Path, result: Adjustment) -> None:
    from safetensors.numpy import save

    weight, bias = result.head
    tensors = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
    files.replace(out, save({key: np.ascontiguousarray(array, dtype=np.float32) for key, array in tensors.items()}))


METHODS_HEAD = ("method", "tuned to", "balanced\naccuracy", "gain", "standard\nerror", "")
OVERALL_HEAD = ("", "classes", "before", "95 %", "after", "95 %", "gain", "95 %", "")
CLASS_HEAD = (
    "class",
    "training\nsamples",
    "validation\nsamples",
    "recall\nbefore",
    "95 %",
    "recall\nafter",
    "95 %",
    "",
)


def _print(result: Adjustment, said: list[str]) -> None:
    for sentence in result.notes:
        print_note(sentence)
    print_table(
        METHODS_HEAD,
        [_attempted(one, result.chosen) for one in result.attempts],
        muted=[bool(one.reason) for one in result.attempts],
        drop=("tuned to",),
    )
    print_note("")
    print_table(OVERALL_HEAD, [_overall(row) for row in result.summary], drop=("classes", "95 %", "95 %"))
    print_note(f"{result.cuts}.")
    print_note("")
    rows = _by_size(result)
    shown = _most_changed(rows, MOST_ROWS)
    print_table(CLASS_HEAD, [_class(row) for row in shown], drop=("95 %", "95 %", "validation\nsamples"))
    if len(shown) < len(rows):
        print_note(f"The {len(shown)} of {len(rows)} classes that change most are shown; --json prints all.")
    for sentence in said:
        print_note(sentence)


def _by_size(result: Adjustment) -> list[dict[str, Any]]:
    return sorted(result.table, key=lambda row: -row["count"])


def _page(result: Adjustment, said: list[str], html: Path) -> None:
    """Write the page, with the same tables and every class, or those of many that change most."""
    tried = [_attempted(one, result.chosen) for one in result.attempts]
    rows, most = _by_size(result), pages("sheet").MOST_ROWS
    shown = _most_changed(rows, most)
    omitted = f"{len(rows) - most} classes that change less are left out" * (len(rows) > most)
    tables = [
        _filled("Classes", "Recall on the validation samples", CLASS_HEAD, [_class(row) for row in shown], omitted),
        _filled("Overall", f"{result.cuts}", OVERALL_HEAD, [_overall(row) for row in result.summary]),
        _filled("Methods", f"In {result.folds}-fold cross-validation on the validation samples", METHODS_HEAD, tried),
    ]
    with by_flags(out="--html"):
        pages("adjust_page").adjust_page(result, [*result.notes, *said], tables, html)


def _filled(
    heading: str, caption: str, headers: Sequence[str], rows: Sequence[Sequence[str]], omitted: str = ""
) -> Any:
    """A table of the page without columns in which nothing is known; the last has no header on a terminal."""
    kept = [i for i in range(len(headers)) if any(row[i] for row in rows)]
    named = [headers[i] or "remark" for i in kept]
    filled = [[row[i] for i in kept] for row in rows]
    return pages("sheet").Table(heading, caption, named, filled, words=("remark",), omitted=omitted)


def _most_changed(rows: list[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    def change(row: dict[str, Any]) -> float:
        return 0.0 if np.isnan(row["after"]) else abs(row["after"] - row["before"])

    chosen = {id(row) for row in sorted(rows, key=change, reverse=True)[:most]}
    return [row for row in rows if id(row) in chosen]


def _attempted(one: Any, chosen: str) -> list[str]:
    if one.reason:
        return [one.method, "", "", "", "", short(one.reason, 40)]
    tuned = "" if one.parameter is None else f"{one.parameter:g}"
    mark = "chosen" if one.method == chosen else ""
    return [one.method, tuned, f"{one.balanced_accuracy:.3f}", f"{one.gain:+.3f}", f"{one.standard_error:.3f}", mark]


def _overall(row: dict[str, Any]) -> list[str]:
    cells = [row["what"], str(row["classes"])]
    for name, form in (("before", ".3f"), ("after", ".3f"), ("gain", "+.3f")):
        cells += _with_interval(row, name, form, form.replace("3", "2"))
    return [*cells, row["reason"]]


def _class(row: dict[str, Any]) -> list[str]:
    cells = [short(row["label"], 24), str(row["count"]), str(row["validation"])]
    for name in ("before", "after"):
        cells += _with_interval(row, name, ".2f", ".2f")
    return [*cells, row["reason"]]


def _with_interval(row: dict[str, Any], name: str, form: str, rough: str) -> list[str]:
    if np.isnan(row[name]):
        return ["", ""]
    return [format(row[name], form), f"{row[f'{name}_low']:{rough}} … {row[f'{name}_high']:{rough}}"]
