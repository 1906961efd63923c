"""Short texts, one `label<TAB>text` a line, as TF-IDF."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from collapsekit.data.files import check_size, parsing
from collapsekit.data.labelled import LabelledData, assemble, typed
from collapsekit.errors import CollapseError

MAX_TERMS = 2000
FORMAT = "give one label<TAB>text a line"


def read_text(path: Path) -> LabelledData:
    """Return TF-IDF rows of unit length over the (at most) 2,000 most frequent terms, with sublinear term frequency.

    Document frequencies are those of the whole file. A text without any of the terms is a row of zeros.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    with parsing(path.name, "save it as UTF-8 text"), path.open(encoding="utf-8-sig") as stream:
        labels, texts = _lines(stream)
    with parsing(path.name, f"{FORMAT}, with words of two letters or more"):
        rows = TfidfVectorizer(max_features=MAX_TERMS, sublinear_tf=True, dtype=np.float32).fit_transform(texts)
    check_size(rows.shape, 4, "texts and terms")
    return assemble(rows.toarray(), typed(labels), "text")


def _lines(lines: Iterable[str]) -> tuple[list[str], list[str]]:
    labels, texts = [], []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        label, tab, text = line.partition("\t")
        if not tab:
            raise CollapseError(f"line {number} has no TAB; {FORMAT}")
        if not label.strip():
            raise CollapseError(f"line {number} has no label before its TAB; {FORMAT}")
        if not text.strip():
            raise CollapseError(f"line {number} has no text after its TAB; {FORMAT}")
        labels.append(label.strip())
        texts.append(text)
    if not labels:
        raise CollapseError(f"no lines; {FORMAT}")
    return labels, texts
