"""Short texts, one `label<TAB>text` a line, as TF-IDF."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from collapsekit.data.files import check_size, parsing
from collapsekit.data.labelled import LabelledData, assemble
from collapsekit.errors import CollapseError

MAX_TERMS = 2000
FORMAT = "give one label<TAB>text a line"


def read_text(path: Path, keep_na: bool = False) -> LabelledData:
    """Return TF-IDF rows of unit length over the (at most) 2,000 most frequent terms, with sublinear term frequency.

    Document frequencies are those of the whole file. A text without any of the terms is a row of zeros.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    labels, texts = labels_and_texts(path)
    with parsing(path.name, f"{FORMAT}, with words of two letters or more"):
        rows = TfidfVectorizer(max_features=MAX_TERMS, sublinear_tf=True, dtype=np.float32).fit_transform(texts)
    check_size(rows.shape, 4, "texts and terms")
    return assemble(rows.toarray(), labels, "text", keep_na=keep_na)


def labels_and_texts(path: Path) -> tuple[list[str], list[str]]:
    """Return the two halves of every line that is not blank."""
    labels, texts = list[str](), list[str]()
    with parsing(path.name, "save it as UTF-8 text"), path.open(encoding="utf-8-sig") as stream:
        for number, line in enumerate(stream, 1):
            label, _, text = (part.strip() for part in line.partition("\t"))
            if not line.strip():
                continue
            missing = "TAB" * ("\t" not in line) or "label before its TAB" * (not label) or "text" * (not text)
            if missing:
                raise CollapseError(f"line {number} has no {missing}; {FORMAT}")
            labels.append(label)
            texts.append(text)
    if not labels:
        raise CollapseError(f"no lines; {FORMAT}")
    return labels, texts
