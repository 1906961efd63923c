"""What the readers of foreign files share: parser failures as one line, filling arrays, limits, lists of names."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BufferedIOBase
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from collapsekit.errors import CollapseError
from collapsekit.validation import shorten

MAX_BYTES = 8 * 2**30  # in one source: what a zip directory promises, and the float32 array that is built
BLOCK = 2**20


@contextmanager
def parsing(name: str, remedy: str) -> Iterator[None]:
    """Turn any failure of a parser into one line.

    What zip, image and Parquet parsers raise on damaged bytes is an open set (struct.error, KeyError, ...), so
    everything is caught; a file that cannot be opened and lack of memory pass, `read` words them.
    """
    try:
        yield
    except (CollapseError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise
        raise CollapseError(f"{shorten(name)} cannot be read ({detail(error)}); {remedy}") from None


def detail(error: Exception, limit: int = 120) -> str:
    """Return a foreign exception's message as one short printable line."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def fill(stream: BufferedIOBase, array: NDArray[Any]) -> int:
    """Read from the stream into a C-contiguous array until it is full or the stream ends; return the bytes read."""
    room = array.reshape(-1).view(np.uint8).data
    done = 0
    while done < len(room):
        got = stream.readinto(room[done : done + BLOCK])
        if not got:
            break
        done += got
    return done


def check_size(shape: Sequence[int], itemsize: int, name: str) -> None:
    """Refuse an array without samples, or one above MAX_BYTES, before it is allocated."""
    if not math.prod(shape):
        raise CollapseError(f"{name}: shape {shorten(tuple(shape))} holds nothing; give at least one sample")
    size = math.prod(shape) * itemsize
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
