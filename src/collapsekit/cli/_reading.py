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

    def assumed(self, data: LabelledData, given: Sequence[str] | None) -> str | None:
        """Say that words tell no row of the head: sorted order is that of scikit-learn and of image folders."""
        if not data.sorted_words or given is not None:
            return None
        listed = shorten(", ".join(data.names))
        return f"The head's rows are taken to be the classes in sorted order ({listed}); --class-names gives another."
