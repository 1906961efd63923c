"""Samples per class as people have them: numbers, files of counts or of labels, and anything that holds labels."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from collapsekit.data.arrays import READERS as ARRAYS
from collapsekit.data.arrays import read_npy
from collapsekit.data.files import is_folder, one_line, parsing
from collapsekit.data.images import list_samples
from collapsekit.data.labelled import KEEP, is_missing, is_number
from collapsekit.data.source import CODE, NAMED, TEXTS, read_labels
from collapsekit.data.tables import LABEL_COLUMNS
from collapsekit.errors import CollapseError
from collapsekit.profiles import long_tail as long_tail_counts
from collapsekit.validation import Array, class_names, shorten

Lines = Literal["counts", "labels"]
Sizes = Array | list[float] | dict[str, float]

COUNTS = ("count", "counts", "n", "size", "samples", "freq", "frequency", "number", "total")
THOUSANDS = re.compile(r"\d{1,3}(,\d{3})+")
PRINTED = re.compile(r"(Name: .*, )?(Length: \d+, )?dtype: \S+")  # the last line of a printed pandas Series
TABLES = (".csv", ".tsv")


def class_sizes(
    words: Sequence[str],
    *,
    long_tail: str | None = None,
    label_column: str | None = None,
    lines: Lines | None = None,
    delimiter: str | None = None,
    keep_na: bool = False,
) -> Sizes:
    """Return the samples of each class: numbers, or a mapping of name to number.

    Parameters
    ----------
    words : sequence of str
        Counts, in as many words or in one (``"5000,2997"``, a JSON list or object), or one path: a file of counts (a
        count a line, ``name,count``, ``name: count`` or ``name count`` a line, JSON), of labels, one a line, or
        whatever `read` reads, whose labels are counted.
    long_tail : str, optional
        LARGEST:SMALLEST:CLASSES in place of words.
    label_column, delimiter, keep_na
        As for `read`.
    lines : {"counts", "labels"}, optional
        What the lines of a file of bare words are; needed where numbers repeat, for then they may be either.

    Raises
    ------
    CollapseError
        If the words name no counts, or more than one reading fits.

    Examples
    --------
    >>> class_sizes(["5000,2997"])
    [5000.0, 2997.0]
    """
    if (long_tail is None) == (not words):
        raise CollapseError("counts: give one count a class, one file, or --long-tail LARGEST:SMALLEST:CLASSES")
    if long_tail is not None:
        parts = long_tail.split(":")
        if len(parts) != 3 or not all(part.isdecimal() for part in parts):
            raise CollapseError(f"--long-tail={shorten(long_tail)}: give LARGEST:SMALLEST:CLASSES, three whole numbers")
        return long_tail_counts(*map(int, parts))
    text = " ".join(words).strip()
    if (numbers := _numbers(text)) is not None and label_column is None:
        return list(map(float, numbers))
    if len(words) > 1:
        odd = next((word for word in words if not is_number(word.strip("[],;"))), text)
        raise CollapseError(f"counts: {shorten(odd)} is not a number; give one count a class, or one file")
    with one_line("counts", words[0], "give counts, or a file of counts or labels"):
        if text.startswith(("[", "{")):
            return _from_json(text, "counts", keep_na)
        return _from_path(Path(words[0]), label_column, lines, delimiter, keep_na)


def _from_path(
    path: Path, label_column: str | None, lines: Lines | None, delimiter: str | None, keep_na: bool
) -> Sizes:
    named, suffix = str(path) in NAMED, path.suffix.lower()
    folder = not named and is_folder(path)
    if suffix == ".npy" and (array := read_npy(path)).ndim == 1:  # not the inputs, with their labels beside
        return _bare(list(map(str, array.tolist())), lines, keep_na)
    if not (named or folder or label_column is not None or suffix in (*ARRAYS, *CODE, ".parquet")):
        sizes = _from_text(path, suffix, lines, keep_na)
        if sizes is not None:
            return sizes
    found = read_labels(str(path), label_column=label_column, delimiter=delimiter, keep_na=keep_na)
    return _tally(found, keep_na or folder)


def _from_text(path: Path, suffix: str, lines: Lines | None, keep_na: bool) -> Sizes | None:
    """Counts, or labels one a line; None if it is what holds labels among other things."""
    with parsing(path.name, "save it as UTF-8 text"):
        text = path.read_text(encoding="utf-8-sig").strip()
    content = [line.strip() for line in text.split("\n") if line.strip() and not PRINTED.fullmatch(line.strip())]
    if not content:
        raise CollapseError("the file is empty; give a count a line")
    if text.startswith(("[", "{")):
        return _from_json(text, lines, keep_na)
    if suffix in TEXTS and list_samples(path) is not None:
        return None
    numbers = _numbers(text)
    if numbers is not None and (len(content) == 1 or len(numbers) == len(content)):
        return _bare(numbers, lines, keep_na)
    pairs = None if lines == "labels" else _pairs(content)
    if pairs is not None:
        return _named(pairs)
    is_table = suffix in TABLES or (suffix in TEXTS and "\t" in content[0])
    return None if lines is None and is_table else _bare(content, lines, keep_na)


def _numbers(text: str) -> list[str] | None:
    """The words of a text of nothing but numbers, with blanks, commas or semicolons between."""
    words = re.split(r"[,;\s]+", text.strip("[] ,;"))
    if not all(map(is_number, words)):
        return None
    odd = next((word for word in text.split() if THOUSANDS.fullmatch(word)), None)
    if odd is not None and len(text.split()) > 1:
        raise CollapseError(f"counts: {shorten(odd)} may be one number or several; write numbers without commas")
    return words


def _bare(words: Sequence[str], lines: Lines | None, keep_na: bool) -> Sizes:
    """Counts, one a class, or labels, one a sample; numbers that repeat may be either."""
    odd = next((i for i, word in enumerate(words) if not is_number(word)), None)
    if lines == "labels" or (lines is None and odd is not None and not any(map(is_number, words))):
        return _tally(words, keep_na)
    if odd is not None:
        raise CollapseError(
            f"line {odd + 1}: {shorten(words[odd])} is not a number; give one count a class, or say --lines labels for "
            "one label a sample"
        )
    different = len(set(map(float, words)))
    if lines is None and different < len(words):
        raise CollapseError(
            f"{len(words)} numbers, {different} of them different, may be counts or labels; say --lines counts (one a "
            "class) or --lines labels (one a sample)"
        )
    return [float(word) for word in words]


def _tally(labels: Sequence[str], keep_na: bool) -> dict[str, float]:
    """The number of samples of each label, the most frequent first."""
    found = Counter(label.strip() for label in labels)
    missing = next((label for label in found if is_missing(label, keep_na)), None)
    if missing is not None:
        raise CollapseError(f"{found[missing]} labels are {shorten(missing)}, which counts as missing; {KEEP}")
    if len(found) == len(labels):
        raise CollapseError("every label occurs once; give counts, or one label a sample")
    return _named(found.most_common())


def _pairs(content: Sequence[str]) -> list[tuple[str, str]] | None:
    """Names and counts of lines like `name,count`, `name: count` or `name count`; None if they are something else."""
    separator = next((one for one in ",;\t|:" if all(one in line for line in content)), None)
    rows = [_cells(line, separator) for line in content]
    header = [cell.lower() for cell in rows[0]] if len(rows) > 1 and not any(map(is_number, rows[0])) else []
    body = rows[1:] if header else rows
    if any(len(row) < 2 for row in body) or (len(header) > 2 and not set(header) & set(COUNTS)):
        return None
    at = next((k for k, name in enumerate(header) if name in COUNTS), -1)
    if separator is None and not any(is_number(row[-1]) for row in body):
        at = 0  # as uniq -c prints
    odd = [number for number, row in enumerate(body, 1) if not is_number(row[at])]
    names = [(separator or " ").join(row[:at] + row[at:][1:]).strip() for row in body]
    told = len(header) > 1 and header[at] not in COUNTS  # a header of one word is the name of a printed index
    if len(odd) == len(body) or (told and (odd or header[at] in LABEL_COLUMNS or len(set(names)) < len(names))):
        return None
    if odd:
        row = body[odd[0] - 1]
        raise CollapseError(f"line {odd[0] + bool(header)}: {shorten(row[at])} is not a number; give one count a class")
    counts, places = [row[at] for row in body], [set(map(str, range(k, len(body) + k))) for k in (0, 1)]
    bare = separator is None and not header and all(map(is_number, names))
    if bare and set(counts) in places and set(names) not in places:
        raise CollapseError(
            "which number of a line is the count is not clear; write 'name count' or 'count name' as its first line"
        )
    if separator == "," and not header and any(re.search(r",\d{1,3}$", name) for name in names):
        raise CollapseError("commas within numbers, or names that end in a number; write numbers without commas")
    return list(zip(names, counts, strict=True))


def _cells(line: str, separator: str | None) -> list[str]:
    if separator is None:
        return line.split()
    if separator == ":":
        return [cell.strip() for cell in line.rstrip(":").rsplit(":", 1)]
    cells = [cell.strip() for cell in next(csv.reader([line], delimiter=separator, skipinitialspace=True))]
    return cells if cells[-1] else cells[:-1]


def _from_json(text: str, lines: Lines | None, keep_na: bool) -> Sizes:
    with parsing("it", "give a JSON list of counts or an object of names and counts"):
        found = json.loads(text, object_pairs_hook=tuple)
        if isinstance(found, tuple):
            return _named([(str(name), str(count)) for name, count in found])
        return _bare([str(value) for value in found], lines, keep_na)


def _named(pairs: Iterable[tuple[str, Any]]) -> dict[str, float]:
    names, counts = zip(*pairs, strict=True)
    odd = next((count for count in counts if not is_number(count)), None)
    if odd is not None:
        raise CollapseError(f"{shorten(odd)} is not a number; give one count a class")
    return dict(zip(class_names(names, len(names)) or (), map(float, counts), strict=True))
