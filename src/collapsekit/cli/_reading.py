"""Flags of every command that reads labelled data; no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from collapsekit import CollapseError
from collapsekit.data import LabelledData, read
from collapsekit.validation import shorten


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How samples and their labels are read.

    Attributes
    ----------
    label_column : str
        Column of a table that holds the labels.
    delimiter : str
        Delimiter of a table, where it is none of comma, semicolon and tab.
    keep_na : bool
        Labels like NA, null, none and ? are classes, not missing.
    class_names : tuple of str
        One name a row of the head, in the order of its rows. Left out: the names in the files, or the sorted labels.
    """

    label_column: str | None = None
    delimiter: str | None = None
    keep_na: bool = False
    class_names: tuple[str, ...] | None = None

    def load(self, path: str | Path, argument: str) -> LabelledData:
        """Return the samples of a file or folder; an error calls it by the argument."""
        return read(
            str(path),
            label_column=self.label_column,
            delimiter=self.delimiter,
            keep_na=self.keep_na,
            argument=argument,
        )

    def vectors(self, path: str | Path, argument: str = "features", *, rather: str = "") -> LabelledData:
        """Return stored features, or say what to give; `rather` is another way."""
        found = self.load(path, argument)
        if found.inputs.ndim != 2:
            raise CollapseError(
                f"{argument}={str(path)!r}: a sample has the shape {found.inputs.shape[1:]}; give the vectors that "
                f"enter the head, (N, d){rather}"
            )
        return found

    def assumed(self, data: LabelledData, size: int, given: Sequence[str] | None = None) -> str | None:
        """Return what is taken for granted of the order of a head's rows, of which there are `size`.

        None where names give it (--class-names or, of a model, `given`), or labels are 0 to K - 1. Sorted order is that
        of scikit-learn and of image folders.
        """
        if self.class_names or given or (data.worded and not data.sorted_words):
            return None
        rows, shown = data.rows(size)
        listed = shorten(", ".join(data.names), 40)
        if data.sorted_words:
            what, so = f"the rows of the head are the classes in sorted order ({listed})", "gives another"
        elif len(shown) != len(data.names):
            what, so = f"the labels ({listed}) are row numbers, from 0", "names the rows"
        elif [*map(str, rows)] != [*data.names]:
            what, so = f"the rows of the head are the labels in order ({listed})", "gives another"
        else:
            return None
        return f"Assumed: {what}. --class-names {so}."
