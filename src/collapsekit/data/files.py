"""What the readers of foreign files share: parser failures as one line, limits, regular files only, lists of names."""

from __future__ import annotations

import math
import stat
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from collapsekit.errors import CollapseError
from collapsekit.validation import printable, shorten

MAX_BYTES = 8 * 2**30  # in one source: what a zip directory promises, and the float32 array that is built
PATH_SHOWN = 160


@contextmanager
def one_line(argument: str, path: str, remedy: str = "give a readable file") -> Iterator[None]:
    """Turn whatever goes wrong with a file into one line that names the argument and the file."""
    text = repr(path)  # of a long one its end, which names the file
    name = f"{argument}=" + (text if len(text) <= PATH_SHOWN else f"'…{text[-PATH_SHOWN + 2 :]}")
    try:
        yield
    except CollapseError as error:
        raise CollapseError(f"{name}: {error}") from None
    except OSError as error:
        where = f"{shorten(Path(str(error.filename)).name)}: " if error.filename is not None else ""
        raise CollapseError(f"{name}: {where}{error.strerror or 'cannot be read'}; {remedy}") from None
    except MemoryError:
        raise CollapseError(f"{name}: larger than the memory; give fewer samples") from None


@contextmanager
def parsing(name: str, remedy: str) -> Iterator[None]:
    """Turn any failure of a parser into one line, as `failing` does; its warnings about damaged files are dropped."""
    with warnings.catch_warnings(), failing(name, remedy):
        warnings.simplefilter("ignore")  # what matters is an error
        yield


@contextmanager
def failing(name: str, remedy: str) -> Iterator[None]:
    """Turn any failure into one line; threads may use it, other than `parsing`, which sets the process's filters.

    What zip, image and Parquet parsers raise on damaged bytes is an open set (struct.error, KeyError, ...), so
    everything is caught; a file that cannot be opened and lack of memory pass, `one_line` words them.
    """
    try:
        yield
    except (CollapseError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise
        detail = printable(" ".join(str(error).split())) or type(error).__name__
        detail = detail if len(detail) <= 120 else detail[:119] + "…"
        raise CollapseError(f"{shorten(name)} cannot be read ({detail}); {remedy}") from None


def is_folder(path: Path) -> bool:
    """Return whether the path is a folder; what is neither that nor a regular file is refused, never opened."""
    try:
        mode = path.stat().st_mode
    except ValueError:  # a NUL, or a character that no file name has
        raise CollapseError("not a path; give a name or a path") from None
    if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
        raise CollapseError("neither a file nor a folder; give one of the two")
    return stat.S_ISDIR(mode)


def check_size(shape: Sequence[int], itemsize: int, name: str) -> None:
    """Refuse an array without samples, or one above MAX_BYTES, before it is allocated."""
    if not math.prod(shape):
        raise CollapseError(f"{name}: shape {shorten(tuple(shape))} holds nothing; give at least one sample")
    check_bytes(math.prod(shape) * itemsize, name)


def check_bytes(size: int, name: str) -> None:
    """Refuse what is above MAX_BYTES."""
    if size > MAX_BYTES:
        raise CollapseError(
            f"{name}: {size / 2**30:.3g} GiB, more than the limit of {MAX_BYTES / 2**30:g} GiB; give fewer samples"
        )


def names_from(folder: Path, *candidates: str) -> list[str] | None:
    """Return the lines of the first of these files that exists, without blank ones; bytes outside UTF-8 survive."""
    for name in candidates:
        if (folder / name).is_file():
            lines = (folder / name).read_text(encoding="utf-8-sig", errors="surrogateescape").split("\n")
            return [line.strip() for line in lines if line.strip()]
    return None
