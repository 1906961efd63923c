"""Names of classes as model files have them: lines, JSON, Python dictionaries; one for each row of the head."""

from __future__ import annotations

import ast
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from collapsekit.data.files import check_bytes, is_folder, one_line, parsing
from collapsekit.errors import CollapseError
from collapsekit.validation import printable

LINES = "give one label a line in the order of the head's rows, or JSON"
KEYS = ("names", "id2label", "labels", "classes", "class_names", "character")
"""Where ONNX files have them, in their metadata."""


def read_labels(path: str, size: int) -> tuple[str, ...]:
    """Return the label of each of `size` rows from a file: one a line, a JSON list, or an object by row."""
    with one_line("labels", path, LINES):
        file = Path(path)
        if is_folder(file):
            raise CollapseError(f"a folder; {LINES}")
        check_bytes(file.stat().st_size, file.name)
        with parsing(file.name, "save it as UTF-8 text"):
            text = file.read_text(encoding="utf-8-sig")
        names = parsed(text)
        if names is None or len(names) != size:
            raise CollapseError(f"{len(names or ())} labels for {size} rows of the head; {LINES}")
        return distinct(names)


def config_labels(path: Path) -> tuple[str, ...] | None:
    """Return the labels of a config.json's id2label, None where it has none."""
    with parsing(path.name, "mend the JSON, or give --labels"):
        found = json.loads(path.read_text(encoding="utf-8"))
        table = found.get("id2label") if isinstance(found, dict) else None
        names = by_row(table) if isinstance(table, dict) else None
    return None if names is None else distinct(names)


def metadata_labels(entries: Mapping[str, str], size: int) -> tuple[str, ...] | None:
    """Return the labels that a file's metadata holds for `size` rows, None where none fit.

    Text readers of PaddleOCR (key `character`) leave out row 0, the blank between characters, and the last, a space.
    """
    for key in KEYS:
        names = parsed(entries[key]) if key in entries else None
        if names is not None and key == "character" and len(names) in (size - 1, size - 2):
            names = ["<blank>", *names, " "][:size]
        if names is not None and len(names) == size:
            return distinct(names)
    return None


def parsed(text: str) -> list[str] | None:
    """Return the labels in a text; None where it is JSON, or a Python literal, of something else or damaged."""
    content = text.strip()
    lines = [line.rstrip("\r") for line in text.removesuffix("\n").split("\n")]
    if content[:1] in ("[", "{"):
        table = _literal(content)
        if isinstance(table, dict):
            return by_row(table)
        if isinstance(table, list | tuple):
            return [str(one) for one in table]
        return lines if table is None and _of_tokens(lines) else None
    return lines


def _of_tokens(lines: Sequence[str]) -> bool:
    """Whether lines that are no JSON are labels that begin with a bracket, such as [PAD], not JSON that is damaged."""
    first, second = lines[0].strip(), lines[1].strip() if len(lines) > 1 else ""
    return first.endswith(("]", "}")) or (len(first) == 1 and second[:1] not in ("'", '"', "[", "{"))


def _literal(content: str) -> Any:
    for read in (json.loads, ast.literal_eval):
        try:
            return read(content)
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            continue
    return None


def by_row(table: Mapping[Any, Any]) -> list[str] | None:
    """Return the labels of an object {row: label} or {label: row}; None where rows are missing.

    Where both may be meant, words with whole numbers are labels with their rows, as in torchvision's class_to_idx:
    {"0": 0, "1": 1, "10": 2} are folders. All else is {row: label}.
    """
    turned = {value: key for key, value in table.items() if isinstance(value, int | str)}
    whole = all(isinstance(key, str) and type(value) is int for key, value in table.items())
    for rows in (turned, table) if whole else (table, turned):
        numbered = {str(row): str(label) for row, label in rows.items()}
        if all(str(k) in numbered for k in range(len(table))):
            return [numbered[str(k)] for k in range(len(table))]
    return None


def distinct(names: Sequence[str] | Iterable[str]) -> tuple[str, ...]:
    """Return printable names, those that stand for several rows with their row behind."""
    shown = [printable(str(name)) for name in names]
    times = Counter(shown)
    found, taken = list[str](), {name for name in shown if times[name] == 1}
    for k, name in enumerate(shown):
        own = name
        while times[name] > 1 and (own == name or own in taken):
            own += f" (row {k})"
        taken.add(own)
        found.append(own)
    return tuple(found)
